"""`run --remake` killed with SIGKILL at every kind of moment: the same command ends with the bytes of a fresh run."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.command import run_distwsss
from helpers.small import picture, snapshot, write_config, write_folder

SIZE = (40, 48)


def config_of(folder: Path) -> Path:
    return write_config(folder, data={"dataset": "folder", "root": str(folder / "data")}, evaluate={"scales": [1.0]})


def correct(root: Path) -> None:
    (root / "images/new.jpg").write_bytes(picture(99, *SIZE))
    (root / "tags.csv").write_text((root / "tags.csv").read_text().replace("p4,dog", "p4,cat") + "\nnew,hat,train")


def results(folder: Path) -> dict[str, bytes]:
    """Shards, weights and scores; a record of a training says in how many attempts it was made."""
    kept = (".safetensors", "LAST", "val.json", "quality.json")
    found = {name: data for name, data in snapshot(folder / "run").items() if name.endswith(kept)}
    return {**snapshot(folder / "shards"), **found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose data was changed afterwards."""
    folder = tmp_path_factory.mktemp("finished")
    write_folder(folder / "data", size=SIZE)
    done = run_distwsss("run", "--config", config_of(folder))
    assert done.returncode == 0, done.stderr
    correct(folder / "data")
    return folder


@pytest.fixture(scope="module")
def fresh(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copytree(finished / "data", folder / "data")
    done = run_distwsss("run", "--config", config_of(folder))
    assert done.returncode == 0, done.stderr
    return results(folder)


@pytest.mark.slow
def test_two_ranks_remake_a_segmenter(distwsss: Callable, finished: Path, tmp_path: Path) -> None:
    """The same weights as those of two ranks that found nothing."""
    copies = [Path(shutil.copytree(finished, tmp_path / name)) for name in ("remade", "anew")]
    shutil.rmtree(copies[1] / "run/train")
    for copy, options in zip(copies, (["--remake"], []), strict=True):
        command = ["train", "--config", config_of(copy), "--set", "train.optim.lr=0.02", *options]
        assert distwsss(*command, ranks=2).returncode == 0
    remade, anew = (snapshot(copy / "run/train/checkpoints") for copy in copies)
    assert [name for name in remade if remade[name] != anew[name] and name.endswith("safetensors")] == []
    assert list(remade) == list(anew)
    assert not (copies[0] / "run/train/old").exists()


@pytest.mark.parametrize(
    "points",
    [
        ["retiring:checkpoints", "after-shard:seeds-00000.tar"],
        pytest.param(
            [
                "after-shard:images-00001.tar",
                "retiring:done.json",
                "retiring:metrics.jsonl",
                "in-step:1:rank0",
                "before-publish:step-00000004",
                "after-publish:step-00000004",
                "after-reopen:pseudo",
                "after-reopen:seeds",
                "after-shard:pseudo-00000.tar",
                "after-index:seeds",
                "after-index:pseudo",
                "retiring:checkpoints",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["twice", "again and again"],
)
def test_killed_and_given_again(
    distwsss: Callable, finished: Path, fresh: dict[str, bytes], tmp_path: Path, points: list[str]
) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    for point in points:
        killed = distwsss("run", "--config", config_of(copy), "--remake", fault=point)
        assert killed.returncode == -signal.SIGKILL, (point, killed.stderr)
    done = distwsss("run", "--config", config_of(copy), "--remake")
    assert done.returncode == 0, done.stderr
    assert results(copy) == fresh
    assert not list((copy / "run").rglob("old*"))
