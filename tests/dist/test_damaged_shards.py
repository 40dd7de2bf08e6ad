"""Every damage of a shard is found by `distwsss verify`, and by training before its first step, as real processes.

One shard of each damage, of one image each. A plain WebDataset reader says nothing of most of them.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.launching import Run, Start, make_shared, variables
from helpers.paths import only


def member(path: Path, field: str) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return next(info for info in tar if info.name.partition(".")[2] == field)


def cut(place: Callable[[Path], int]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: place(path)])


def flipped(place: Callable[[Path], int]) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place(path)] ^= 1
        path.write_bytes(data)

    return flip


def middle(path: Path, field: str) -> int:
    return member(path, field).offset_data + member(path, field).size // 2


def end(path: Path) -> int:
    with tarfile.open(path) as tar:
        return max(info.offset_data + -(-info.size // 512) * 512 for info in tar)


BYTES = "bytes"
SUM = "sha256 differs"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut at a member's boundary": (cut(lambda path: member(path, "label.png").offset), BYTES),
    "cut inside a header": (cut(lambda path: member(path, "label.png").offset + 200), BYTES),
    "cut inside a payload": (cut(lambda path: middle(path, "jpg")), BYTES),
    "cut before the end-of-file blocks": (cut(end), BYTES),
    "empty": (lambda path: path.write_bytes(b""), BYTES),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), SUM),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(1).bytes(path.stat().st_size)), SUM),
    "a bit of a header": (flipped(lambda path: member(path, "label.png").offset + 130), SUM),
    "a bit of a JPEG": (flipped(lambda path: middle(path, "jpg")), SUM),
    "a bit of a PNG": (flipped(lambda path: middle(path, "label.png")), SUM),
    "missing": (lambda path: path.unlink(), "missing"),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as of `make_shared`; the last of its twelve pseudo-label shards is whole."""
    folder = make_shared(tmp_path_factory.mktemp("damaged"), prepare={"shard_size": 1}, train={"holdout": 0.0})
    pseudo = only(folder / "shards/pseudo")
    for number, (damage, _) in enumerate(DAMAGES.values()):
        damage(pseudo / f"pseudo-{number:05d}.tar")
    return folder


def check_all_are_named(text: str) -> None:
    for number, (name, (_, reason)) in enumerate(DAMAGES.items()):
        lines = [line for line in text.splitlines() if f"pseudo-{number:05d}.tar" in line]
        assert any(reason in line for line in lines), (name, lines)
    assert f"pseudo-{len(DAMAGES):05d}.tar" not in text


def test_verify_names_every_damaged_shard(damaged: Path) -> None:
    command = [sys.executable, "-m", "distwsss", "verify", only(damaged / "shards/pseudo")]
    done = subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 3
    check_all_are_named(done.stderr)


@pytest.mark.slow
def test_two_ranks_refuse_to_start(damaged: Path) -> None:
    found = Run(damaged, "refused")
    assert found(Start()) == 1, found.log
    assert found.exit()["code"] == 3
    check_all_are_named(found.exit()["message"])
    assert "]: Traceback" not in found.log  # torchrun's own has no [rankN]
    assert not list(found.train.glob("checkpoints/*"))
