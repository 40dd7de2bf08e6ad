"""`prepare` killed with SIGKILL at named points, run again, and run with several processes: never another byte."""

from __future__ import annotations

import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distwsss.config.schema import Config
from distwsss.data import prepare as prepare_stage
from distwsss.data.images import encode_palette
from distwsss.data.prepare import prepare
from distwsss.data.shards import stage as shard_stage
from distwsss.data.shards.verify import verify
from distwsss.errors import DataError
from distwsss.runtime.layout import images_dir, shard_dir
from distwsss.runtime.pool import spread
from helpers.small import flip_a_bit, make_config, snapshot, write_config, write_folder

SIZE = (10, 14)  # height, width


def sections(root: Path, workers: int = 0) -> dict[str, Any]:
    """What `tiny` is here: the data set of `root`, in shards of two."""
    data = {"dataset": "folder", "root": str(root)}
    return {"data": data, "hardware": {"workers": workers}, "prepare": {"shard_size": 2}}


def settings(root: Path, folder: Path, workers: int = 0) -> Config:
    return make_config(folder, **sections(root, workers))


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Every shard's inode and time: another where it was written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.tar"))}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three formats, masks for half of them, two pictures in the val split."""
    return write_folder(tmp_path_factory.mktemp("data") / "data", 12, SIZE, ("jpg", "png", "bmp"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a `prepare` in one process that nothing disturbed: five train shards and one of val."""
    config = settings(data, tmp_path_factory.mktemp("undisturbed"))
    prepare(config)
    found = snapshot(Path(str(shard_dir(config))))
    assert len([name for name in found if name.startswith("images/train") and name.endswith(".tar")]) == 5
    return found


@pytest.fixture
def run(distwsss, data: Path, tmp_path: Path) -> Callable[..., Any]:
    """run(workers=0, fault=None): `distwsss prepare` in a process, into tmp_path."""

    def start(workers: int = 0, fault: str | None = None) -> Any:
        return distwsss("prepare", "--config", write_config(tmp_path, **sections(data, workers)), fault=fault)

    return start


@pytest.mark.parametrize(
    ("fault", "kept"),
    [
        pytest.param("making:images-00000.tar", 0, marks=pytest.mark.slow),
        ("after-shard:images-00002.tar", 3),
        pytest.param("after-shard:images-00004.tar", 5, marks=pytest.mark.slow),  # all shards, no index
        ("after-index:images", 5),
    ],
)
def test_a_killed_prepare_keeps_what_it_published(
    run, undisturbed: dict[str, bytes], tmp_path: Path, fault: str, kept: int
) -> None:
    killed = run(fault=fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    train = tmp_path / "shards/images/train"
    before = written(train)
    assert len(before) == kept
    assert (train / "index.json").exists() == (fault == "after-index:images")
    again = run()
    assert again.returncode == 0, again.stderr
    assert ("train complete, skipped" in again.stderr) == (fault == "after-index:images")
    if kept > 0 and fault != "after-index:images":
        assert f"prepare: train: {kept} of 5 shards are there already" in again.stderr
    after = written(train)
    assert {name: after[name] for name in before} == before
    assert snapshot(tmp_path / "shards") == undisturbed
    assert verify(tmp_path / "shards") == []


def test_a_killed_worker_is_one_error_and_its_shard_is_made_later(
    run, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    killed = run(workers=2, fault="making:images-00004.tar")
    assert killed.returncode == 1
    assert "a worker process died" in killed.stderr
    assert "Traceback" not in killed.stderr
    before = written(tmp_path / "shards/images/train")
    assert "images-00004.tar" not in before
    assert run(workers=2).returncode == 0
    after = written(tmp_path / "shards/images/train")
    assert {name: after[name] for name in before} == before
    assert snapshot(tmp_path / "shards") == undisturbed


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_work_is_done_by_as_many_processes_as_are_asked_for(workers: int) -> None:
    asked = list(spread(os.path.realpath, ["/proc/self"] * 12, workers))
    own = {name for _, name in asked} == {f"/proc/{os.getpid()}"}
    assert own == (workers < 2)
    assert len(asked) == 12


def test_processes_do_not_change_a_byte(data: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    config = settings(data, tmp_path, workers=2)
    prepare(config)
    assert snapshot(tmp_path / "shards") == undisturbed


def test_problems_are_the_same_in_the_same_order_by_processes(tmp_path: Path) -> None:
    """More images than a process checks at a time, most of them bad."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    names = [f"p{number:03d}" for number in range(100)]
    for number, name in enumerate(names):
        (root / f"images/{name}.jpg").write_bytes(f"picture {number}".encode())
    (root / "tags.csv").write_text("id,labels\n" + "".join(f"{name},dog\n" for name in names))
    said = []
    for workers in (0, 2):
        with pytest.raises(DataError) as caught:
            prepare(settings(root, tmp_path, workers))
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "(100 problems)" in said[0]
    assert [line.split(":")[1].strip() for line in said[0].splitlines()[1:51]] == [f"{name}.jpg" for name in names[:50]]


# --- what changes between two attempts ---

KEPT = ["images-00000.tar", "images-00001.tar", "images-00002.tar"]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """attempt(config) -> the folder of the train shards, after Ctrl-C when three of five were published."""

    def interrupt(name: str) -> None:
        if name == f"after-shard:{KEPT[-1]}":
            raise KeyboardInterrupt

    def make(config: Config, on_bad: str = "fail") -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(shard_stage, "fault_point", interrupt)
            with pytest.raises(KeyboardInterrupt):
                prepare(config, on_bad)
        folder = Path(str(images_dir(config, "train")))
        assert sorted(written(folder)) == KEPT
        return folder

    return make


def shard_of_p2(folder: Path) -> Path:
    """Of the published shards the one that holds picture p2, of which the tests below change something."""
    for name in KEPT:
        with tarfile.open(folder / name) as tar:
            if "p2.json" in tar.getnames():
                return folder / name
    raise AssertionError("p2 is in none of them")


def change_picture(root: Path, folder: Path) -> None:
    """Other pixels, as many bytes."""
    path, before = root / "images/p2.bmp", (root / "images/p2.bmp").stat().st_size
    Image.fromarray(np.full((*SIZE, 3), 7, np.uint8)).save(path)
    assert path.stat().st_size == before


def change_mask(root: Path, folder: Path) -> None:
    (root / "masks/p2.png").write_bytes(encode_palette(np.full(SIZE, 255, np.uint8)))


def damage_shard(root: Path, folder: Path) -> None:
    flip_a_bit(shard_of_p2(folder))


def damage_record(root: Path, folder: Path) -> None:
    record = folder / f"{shard_of_p2(folder).name}.json"
    record.write_bytes(record.read_bytes()[:-40])


@pytest.mark.parametrize("change", [change_picture, change_mask, damage_shard, damage_record])
def test_only_the_shard_that_is_concerned_is_made_anew(
    data: Path, attempt, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    config = settings(root, tmp_path)
    folder = attempt(config)
    owner = shard_of_p2(folder).name
    before = written(folder)
    change(root, folder)
    prepare(config)
    after = written(folder)
    assert {name for name in KEPT if before[name] != after[name]} == {owner}
    fresh = settings(root, tmp_path / "fresh")
    prepare(fresh)
    assert snapshot(tmp_path / "shards") == snapshot(tmp_path / "fresh/shards")


def change_labels(changed: dict[str, Any], root: Path) -> None:
    text = (root / "tags.csv").read_text()
    (root / "tags.csv").write_text(text.replace("p2,dog", "p2,cat"))


def change_size(changed: dict[str, Any], root: Path) -> None:
    changed["prepare"] = {"shard_size": 3}


@pytest.mark.parametrize("change", [change_labels, change_size])
def test_other_parameters_start_anew(
    data: Path, attempt, tmp_path: Path, change: Callable[[dict[str, Any], Path], None]
) -> None:
    """What is in the fingerprint: no shard of the attempt is kept, not even as a file."""
    root = Path(shutil.copytree(data, tmp_path / "data"))
    folder = attempt(settings(root, tmp_path))
    before = written(folder)
    for place in (tmp_path, tmp_path / "fresh"):
        changed = sections(root)
        change(changed, root)
        prepare(make_config(place, **changed))
    after = written(folder)
    assert not set(before.values()) & set(after.values())
    assert snapshot(tmp_path / "shards") == snapshot(tmp_path / "fresh/shards")


def test_an_interrupted_quarantine_leaves_out_and_lists_the_same(data: Path, attempt, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    (root / "images/p3.jpg").write_bytes(b"no picture")
    (root / "tags.csv").write_text((root / "tags.csv").read_text() + "\nother,dog,train")
    prepare(settings(root, tmp_path / "fresh"), "quarantine")
    config = settings(root, tmp_path)
    folder = attempt(config, "quarantine")
    before = written(folder)
    with pytest.raises(DataError, match="2 problems"):
        prepare(config)
    prepare(config, "quarantine")
    after = written(folder)
    assert {name: after[name] for name in KEPT} == before
    assert snapshot(tmp_path / "shards") == snapshot(tmp_path / "fresh/shards")
    assert snapshot(tmp_path / "run/prepare") == snapshot(tmp_path / "fresh/run/prepare")
    assert len((tmp_path / "run/prepare/quarantine.jsonl").read_text().splitlines()) == 2


def test_only_what_is_left_to_do_needs_room(
    data: Path, attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(prepare_stage, "free_space_check", lambda folder, needed, what: asked.append(needed))
    prepare(settings(data, tmp_path / "fresh"))
    config = settings(data, tmp_path)
    attempt(config)
    prepare(config)
    whole, again = asked[0], asked[-2]
    assert 0 < again < 0.6 * whole
