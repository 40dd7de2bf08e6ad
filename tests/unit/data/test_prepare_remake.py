"""`prepare` after the data changed: every change is named by id; `--remake` ends with the bytes of a fresh `prepare`
and leaves shards alone whose bytes stay."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distwsss.config.schema import Config
from distwsss.data.images import encode_palette
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.data.shards.verify import verify
from distwsss.data.shards.writer import write_index
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.layout import images_dir
from helpers.small import data_config, flip_a_bit, snapshot, write_config, write_folder

SIZE = (10, 14)
DATA = {"dataset": "folder"}


def settings(root: Path, folder: Path, **data: object) -> Config:
    return data_config(root, folder, shard_size=2, **data)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ (JPEG, PNG and BMP, two of them val) and its shards, five of train."""
    folder = tmp_path_factory.mktemp("prepared")
    write_folder(folder / "data", 12, SIZE, ("jpg", "png", "bmp"))
    prepare(settings(folder / "data", folder))
    return folder


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def retag(root: Path, *pairs: tuple[str, str]) -> None:
    text = (root / "tags.csv").read_text()
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    (root / "tags.csv").write_text(text)


def correct_one(root: Path) -> None:
    retag(root, ("p4,dog", "p4,cat"))


def add_two(root: Path) -> None:
    for name in ("a.new", "b"):
        Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(root / f"images/{name}.png")
    retag(root, ("p4,dog,train", "p4,dog,train\na.new,dog,train\nb,cat,train"))


def remove_three(root: Path) -> None:
    retag(root, *((f"\np{number},dog,train", "") for number in (4, 5, 7)))


def add_a_class(root: Path) -> None:
    retag(root, ("p4,dog", "p4,dog;hat"), ("p5,dog", "p5,yak"))


def rename_a_class(root: Path) -> None:
    retag(root, ("dog", "hound"))


def drop_a_class(root: Path) -> None:
    retag(root, ("cat;dog", "dog"))
    for name in ("p2", "p8"):
        (root / f"masks/{name}.png").write_bytes(encode_palette(np.full(SIZE, 1, np.uint8)))


def other_pictures(root: Path) -> None:
    """One of another size; of a PNG, which the shards hold as a JPEG."""
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(root / "images/p4.png")


def other_masks(root: Path) -> None:
    (root / "masks/p4.png").write_bytes(encode_palette(np.full(SIZE, 2, np.uint8)))
    (root / "masks/p5.png").write_bytes(encode_palette(np.full(SIZE, 2, np.uint8)))
    (root / "masks/p6.png").unlink()


CHANGES = [
    (correct_one, ["tags changed: 1 (p4.png: dog -> cat)"], 1),
    (add_two, ["photographs added: 2 (a.new.png, b.png)"], None),
    (remove_three, ["photographs removed: 3 (p4.png, p5.bmp, p7.png)"], None),
    (
        add_a_class,
        ["tags changed: 2 (p4.png: dog -> dog, hat; p5.bmp: dog -> yak)", "classes added: 2 (hat, yak)"],
        None,
    ),
    (rename_a_class, ["classes renamed: 1 (dog -> hound)"], None),
    (
        drop_a_class,
        ["classes removed: 1 (cat)", "masks changed, come or gone: 2 (p2.bmp, p8.bmp)",
         "tags changed: 3 (p3.jpg: cat, dog -> dog; p6.jpg: cat, dog -> dog; p9.jpg: "
         "cat, dog -> dog)"],
        None,
    ),
    (other_pictures, ["photographs changed: 1 (p4.png)"], 1),
    (other_masks, ["masks changed, come or gone: 3 (p4.png, p5.bmp, p6.jpg)"], None),
]  # fmt: skip


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Of every train shard inode and time: others where it was written again."""
    found = sorted((folder / "shards/images/train").glob("*.tar"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize(("change", "lines", "written"), CHANGES, ids=lambda value: getattr(value, "__name__", None))
def test_a_change_is_named_and_remade(
    copy: Path, tmp_path: Path, change: Callable[[Path], None], lines: list[str], written: int | None
) -> None:
    change(copy / "data")
    config = settings(copy / "data", copy)
    before, times = snapshot(copy / "shards"), shards(copy)
    with pytest.raises(ConfigError) as caught:
        prepare(config)
    said = str(caught.value).splitlines()
    of_train = itertools.takewhile(lambda line: line.startswith("  "), said[1:])
    assert "images/train was made from other data, masks or parameters" in said[0]
    assert sorted(line.strip() for line in of_train) == sorted(lines)
    assert "--remake" in said[-1]
    assert snapshot(copy / "shards") == before
    prepare(config, remake=True)
    prepare(settings(copy / "data", tmp_path / "fresh"))
    assert snapshot(copy / "shards") == snapshot(tmp_path / "fresh/shards")
    assert verify(copy / "shards") == []
    after = snapshot(copy / "shards")
    for name, time in shards(copy).items():  # not written again unless the bytes are others
        path = f"images/train/{name}"
        assert (times.get(name) == time) == (before.get(path) == after[path])
    if written is not None:
        assert sum(times[name] != time for name, time in shards(copy).items()) == written
    prepare(config)


def test_a_photograph_that_is_gone_is_named_and_nothing_is_replaced(copy: Path) -> None:
    (copy / "data/images/p4.png").unlink()
    config, before = settings(copy / "data", copy), snapshot(copy / "shards")
    with pytest.raises(ConfigError, match=r"photographs changed: 1 \(p4 \(no such file\)\)"):
        prepare(config)
    with pytest.raises(DataError, match="p4: no image"):
        prepare(config, remake=True)
    assert snapshot(copy / "shards") == before
    prepare(config, "quarantine", remake=True)
    keys = load_index(images_dir(config, "train")).all().keys()
    assert len(keys) == 9
    assert "p4" not in keys
    with pytest.raises(ConfigError, match=r"made without 1 bad images \(p4\), by --on-bad quarantine"):
        prepare(config)


def test_more_than_a_few_ids_are_counted(copy: Path) -> None:
    for number in range(7):
        Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(copy / f"data/images/n{number}.png")
    rows = "".join(f"\nn{number},dog,train" for number in range(7))
    (copy / "data/tags.csv").write_text((copy / "data/tags.csv").read_text() + rows)
    with pytest.raises(ConfigError, match=r"added: 7 \(n0.png, n1.png, n2.png, n3.png, n4.png, \.\.\.\)"):
        prepare(settings(copy / "data", copy))


def test_classes_in_another_order_are_named(copy: Path) -> None:
    prepare(settings(copy / "data", copy), remake=True)
    with pytest.raises(ConfigError, match="classes in another order: dog, cat"):
        prepare(settings(copy / "data", copy, classes=["dog", "cat"]))


def test_shards_of_an_earlier_version_say_so(copy: Path) -> None:
    """They do not record sizes and masks; tags are known all the same."""
    config = settings(copy / "data", copy)
    for role in ("train", "val"):
        index = load_index(images_dir(config, role))
        extra = {key: value for key, value in index.extra.items() if key != "sources"}
        write_index(index.folder, index.shards, index.parameters, index.classes, "images", extra)
    prepare(config)
    other_pictures(copy / "data")
    with pytest.raises(ConfigError, match=r"of which, these shards \(of an earlier version\) do not say"):
        prepare(config)
    correct_one(copy / "data")
    with pytest.raises(ConfigError, match=r"tags changed: 1 \(p4.png: dog -> cat\)"):
        prepare(config)


def test_a_damaged_shard_does_not_stay(copy: Path, tmp_path: Path) -> None:
    correct_one(copy / "data")
    for path in (copy / "shards/images/train").glob("*.tar"):
        flip_a_bit(path)
    prepare(settings(copy / "data", copy), remake=True)
    prepare(settings(copy / "data", tmp_path / "fresh"))
    assert snapshot(copy / "shards") == snapshot(tmp_path / "fresh/shards")


@pytest.mark.parametrize(
    ("fault", "again"),
    [
        ("after-shard:images-00001.tar", ["--remake"]),
        pytest.param("after-shard:images-00001.tar", [], marks=pytest.mark.slow),  # goes on without it too
        pytest.param("after-reopen:images", ["--remake"], marks=pytest.mark.slow),
        pytest.param("making:images-00003.tar", ["--remake"], marks=pytest.mark.slow),
        pytest.param("after-index:images", ["--remake"], marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle_of_a_remake(distwsss, copy: Path, tmp_path: Path, fault: str, again: list[str]) -> None:
    """No index is left that names old and new shards; what follows ends with the bytes of a fresh one."""
    add_two(copy / "data")
    data = {**DATA, "root": str(copy / "data")}
    config = write_config(copy, data=data, prepare={"shard_size": 2})
    killed = distwsss("prepare", "--config", config, "--remake", fault=fault)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (copy / "shards/images/train/index.json").exists() == (fault == "after-index:images")
    done = distwsss("prepare", "--config", config, *again)
    assert done.returncode == 0, done.stderr
    prepare(settings(copy / "data", tmp_path / "fresh"))
    assert snapshot(copy / "shards") == snapshot(tmp_path / "fresh/shards")
