"""The stage `prepare`: what it refuses, all at once; what it writes; what it skips."""

from __future__ import annotations

import io
import json
import logging
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distwsss.config.schema import Config
from distwsss.data.images import decode_image, encode_palette
from distwsss.data.prepare import prepare, prepare_split
from distwsss.data.shards.format import name_from_key
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.data.shards.verify import verify
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.layout import images_dir, shard_dir
from helpers.paths import VOC_MINI
from helpers.small import data_config, make_config, snapshot, write_folder

SIZE = (6, 8)  # height, width, of `write_folder` too


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)


def save(path: Path, image: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def save_mask(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_palette(mask.astype(np.uint8)))


def members(folder: Path) -> dict[str, bytes]:
    """Every member of every shard, by the standard library."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found.update({member.name: tar.extractfile(member).read() for member in tar})  # type: ignore[union-attr]
    return found


def refused(config: Config) -> list[str]:
    with pytest.raises(DataError) as caught:
        prepare(config)
    assert caught.value.exit_code == 3
    assert not shard_dir(config).exists(), "something was written"
    return str(caught.value).splitlines()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """A data set of ten pictures and the configuration of its shards; no test changes them."""
    folder = tmp_path_factory.mktemp("done")
    root = write_folder(folder / "data")
    config = data_config(root, folder)
    prepare(config)
    return root, config


def test_shards_verify(done: tuple[Path, Config]) -> None:
    assert verify(shard_dir(done[1])) == []


def test_the_index_says_what_is_in_a_split(done: tuple[Path, Config]) -> None:
    train, val = (load_index(images_dir(done[1], split), "images") for split in ("train", "val"))
    assert train.classes == val.classes == ["background", "cat", "dog"]
    assert (train.counts, val.counts) == ([4, 4], [2])
    assert [record.name for record in train.shards] == ["images-00000.tar", "images-00001.tar"]
    assert train.extra["labels_from"] == "csv"
    assert sorted(train.all().keys()) == [f"p{number}" for number in range(2, 10)]


def test_shards_hold_what_the_folder_holds(done: tuple[Path, Config]) -> None:
    root, config = done
    train = load_index(images_dir(config, "train"), "images")
    for shard, count in enumerate(train.counts):
        for position in range(count):
            key = train.key(shard, position)
            sample = read_fields(train, shard, position, ["jpg", "json"])
            number = int(key[1:])
            assert sample["jpg"] == (root / "images" / f"{key}.jpg").read_bytes()
            labels = [2] if number % 3 else [1, 2]
            assert json.loads(sample["json"]) == {"labels": labels, "size": list(SIZE), "name": f"{key}.jpg"}
            truth = read_truth(train, shard, position)
            assert (truth is None) == (number % 2 == 1)
            assert truth is None or (truth == number % 3).all()


SMOOTH = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (1, 40, 3))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Pictures that are no plain JPEG, and the members of their shard: PNG, grey, CMYK, turned by 90 degrees."""
    folder = tmp_path_factory.mktemp("encoded")
    images = folder / "data/images"
    save(images / "p.png", SMOOTH)
    save(images / "g.jpg", SMOOTH[..., 0])
    Image.fromarray(SMOOTH).convert("CMYK").save(images / "c.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SMOOTH).save(images / "turned.jpg", exif=exif)
    (folder / "data/tags.csv").write_text("id,labels\np,dog\ng,dog\nc,dog\nturned,dog\n")
    config = data_config(folder / "data", folder)
    prepare(config)
    return images, members(images_dir(config, "train"))


def test_what_was_encoded_again_says_so(encoded: tuple[Path, dict[str, bytes]]) -> None:
    about = {name: json.loads(encoded[1][f"{name}.json"]) for name in ("p", "g", "c", "turned")}
    assert {name: value.get("encoded_from") for name, value in about.items()} == {
        "p": "png", "g": None, "c": "jpg", "turned": "jpg",
    }  # fmt: skip


def test_a_grey_jpeg_is_kept_as_it_is(encoded: tuple[Path, dict[str, bytes]]) -> None:
    images, found = encoded
    assert found["g.jpg"] == (images / "g.jpg").read_bytes()


def test_a_png_becomes_a_jpeg_of_the_same_pixels(encoded: tuple[Path, dict[str, bytes]]) -> None:
    found = Image.open(io.BytesIO(encoded[1]["p.jpg"]))
    assert (found.format, found.mode) == ("JPEG", "RGB")
    assert np.abs(np.asarray(found).astype(int) - SMOOTH).mean() < 2
    assert json.loads(encoded[1]["p.json"])["size"] == [32, 40]


def test_a_turned_picture_has_the_size_that_is_seen(encoded: tuple[Path, dict[str, bytes]]) -> None:
    assert json.loads(encoded[1]["turned.json"])["size"] == [40, 32]
    assert decode_image(encoded[1]["turned.jpg"], "turned").shape == (40, 32, 3)


def test_names_with_dots_and_folders_survive(tmp_path: Path) -> None:
    root = tmp_path / "data"
    names = ["a.b.c.jpg", "x/y.z/img 1.png", "ünïcode.jpg", "100%.jpg"]
    for number, name in enumerate(names):
        save(root / "images" / name, pixels(number))
    (root / "tags.csv").write_text("id,labels\n" + "".join(f"{name},dog\n" for name in names), encoding="utf-8")
    config = data_config(root, tmp_path)
    prepare(config)
    found = members(images_dir(config, "train"))
    assert {name.count(".") for name in found} == {1}
    keys = {name.partition(".")[0] for name in found}
    assert {name_from_key(key) for key in keys} == {"a.b.c", "x/y.z/img 1", "ünïcode", "100%"}
    assert {json.loads(data)["name"] for name, data in found.items() if name.endswith(".json")} == set(names)


def test_every_problem_of_both_splits_at_once_by_id(tmp_path: Path) -> None:
    root = tmp_path / "data"
    images, masks = root / "images", root / "masks"
    for number, name in enumerate(("good", "shape", "mode", "range", "class", "empty", "twice", "val_range")):
        save(images / f"{name}.jpg", pixels(number))
    save(images / "cut.jpg", pixels(20, (64, 64)))
    (images / "cut.jpg").write_bytes((images / "cut.jpg").read_bytes()[:-400])
    save(images / "large.jpg", pixels(21, (90, 90)))
    (images / "junk.png").write_bytes(b"no picture")
    (images / "zero.jpg").write_bytes(b"")
    save(images / "same.jpg", pixels(22))
    save(images / "same.png", pixels(23))
    save_mask(masks / "shape.png", np.zeros((8, 6)))
    save(masks / "mode.png", pixels(24))
    save_mask(masks / "range.png", np.full(SIZE, 3))
    save_mask(masks / "val_range.png", np.full(SIZE, 200))
    save_mask(masks / "good.png", np.full(SIZE, 255))
    rows = ["good", "shape", "mode", "range", "twice", "twice", "cut", "large", "junk", "zero", "same.jpg", "same.png"]
    lines = [f"{name},dog,train" for name in [*rows, "missing"]]
    lines += ["class,wolf,train", "empty,,train", "val_range,dog,val", "gone,dog,val"]
    (root / "tags.csv").write_text("id,labels,split\n" + "\n".join(lines))
    report = refused(data_config(root, tmp_path, classes=["dog", "cat"], max_pixels=8000))
    expected = {
        "train: shape.jpg: mask: found 6 x 8 pixels; allowed: 8 x 6": 1,
        "train: mode.jpg: mask: found pixel mode RGB": 1,
        "train: range.jpg: mask: found values 3; allowed: 0..2 and 255": 1,
        "train: twice.jpg: duplicate id": 1,
        "train: cut.jpg: cannot be decoded": 1,
        "train: large.jpg: found 90 x 90 = 8100 pixels; allowed: at most 8000": 1,
        "train: junk.png: found b'no picture'": 1,
        "train: zero.jpg: ": 1,
        "train: same.png: has the key same, as same.jpg has": 1,
        "train: missing: no image": 1,
        "train: class.jpg: unknown class 'wolf'": 1,
        "train: empty.jpg: empty label list": 1,
        "val: val_range.jpg: mask: found values 200": 1,
        "val: gone: no image": 1,
    }
    assert {text: sum(text in line for line in report[1:]) for text in expected} == expected
    assert len(report) == 1 + len(expected)
    assert f"({len(expected)} problems)" in report[0]
    assert not any("good" in line for line in report)


def test_a_split_list_that_repeats_an_id(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    (root / "train.txt").write_text("p3\np4\np3.jpg\n")
    assert [line.strip() for line in refused(data_config(root, tmp_path))[1:]] == [
        "train: p3.jpg: duplicate id; allowed: each once"
    ]


def test_unlabelled_val_images_are_taken(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    save(root / "images/new.jpg", pixels(99))
    (root / "val.txt").write_text("new\n")
    prepare(data_config(root, tmp_path))
    assert json.loads(members(tmp_path / "shards/images/val")["new.json"])["labels"] is None


def test_unlabelled_train_images_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    save(root / "images/new.jpg", pixels(99))
    (root / "train.txt").write_text("new\np4\n")
    assert "new.jpg: no image-level labels" in refused(data_config(root, tmp_path))[1]


def test_empty_label_lists_where_allowed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    save(root / "images/a.jpg", pixels(0))
    save(root / "images/b.jpg", pixels(1))
    (root / "tags.csv").write_text("id,labels\na,dog\nb,\n")
    config = data_config(root, tmp_path, allow_empty=True)
    prepare(config)
    assert json.loads(members(images_dir(config, "train"))["b.json"])["labels"] == []


def test_no_val_images_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "distwsss"):
        prepare(data_config(write_folder(tmp_path / "data"), tmp_path, val_split="nothing"))
    assert "split `nothing` has no images" in caplog.text
    assert not (tmp_path / "shards/images/val").exists()


def test_no_train_images_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split `nothing` has no images"):
        prepare(data_config(write_folder(tmp_path / "data"), tmp_path, train_split="nothing"))


def test_bytes_depend_on_neither_the_run_nor_the_order_of_the_listing(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    prepare(data_config(root, tmp_path / "first"))
    lines = (root / "tags.csv").read_text().splitlines()
    rows = lines[1:]
    random.Random(0).shuffle(rows)
    assert rows != lines[1:]
    (root / "tags.csv").write_text("\n".join([lines[0], *rows]))
    prepare(data_config(root, tmp_path / "second"))
    first = snapshot(tmp_path / "first/shards")
    assert first == snapshot(tmp_path / "second/shards")
    assert len(first) == 7


def test_leftovers_of_an_interrupted_attempt_are_replaced(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    prepare(data_config(root, tmp_path / "first"))
    folder = tmp_path / "second/shards/images/train"
    folder.mkdir(parents=True)
    (folder / "images-00000.tar").write_bytes(b"half")
    (folder / "images-00007.tar").write_bytes(b"of a longer list")
    prepare(data_config(root, tmp_path / "second"))
    assert snapshot(tmp_path / "first/shards") == snapshot(tmp_path / "second/shards")


def test_a_second_run_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = data_config(write_folder(tmp_path / "data"), tmp_path)
    prepare(config)
    before = {path: path.stat().st_mtime_ns for path in shard_dir(config).rglob("*")}
    with caplog.at_level(logging.INFO, "distwsss"):
        prepare(config)
    assert before == {path: path.stat().st_mtime_ns for path in shard_dir(config).rglob("*")}
    assert "train complete, skipped" in caplog.text
    assert "val complete, skipped" in caplog.text


def change_tag(root: Path) -> None:
    (root / "tags.csv").write_text((root / "tags.csv").read_text().replace("p4,dog", "p4,cat"))


def change_picture(root: Path) -> None:
    save(root / "images/p4.jpg", pixels(4, (6, 9)))


@pytest.mark.parametrize(
    ("change", "keys", "named"),
    [
        (None, {"shard_size": 5}, "prepare.shard_size: was 4, now 5"),
        (None, {"allow_empty": True}, "data.allow_empty: was False, now True"),
        (None, {"classes": ["cat", "dog", "eel"]}, "data.classes"),
        (change_tag, {}, r"tags changed: 1 \(p4\.jpg: dog -> cat\)"),
        (change_picture, {}, r"photographs changed: 1 \(p4\.jpg\)"),
    ],
)
def test_other_parameters_are_refused_by_name(
    tmp_path: Path, change: Callable[[Path], None] | None, keys: dict[str, Any], named: str
) -> None:
    root = write_folder(tmp_path / "data")
    prepare(data_config(root, tmp_path))
    before = snapshot(tmp_path / "shards")
    if change:
        change(root)
    with pytest.raises(ConfigError, match=named):
        prepare(data_config(root, tmp_path, **keys))
    assert before == snapshot(tmp_path / "shards")


@pytest.mark.parametrize("kind", ["changed", "added", "removed"])
def test_other_masks_are_refused_but_are_no_part_of_the_fingerprint(tmp_path: Path, kind: str) -> None:
    root = write_folder(tmp_path / "data")
    prepare(data_config(root, tmp_path))
    if kind == "changed":
        save_mask(root / "masks/p4.png", np.full(SIZE, 2))
    elif kind == "added":
        save_mask(root / "masks/p5.png", np.full(SIZE, 2))
    else:
        for mask in (root / "masks").iterdir():
            mask.unlink()
    with pytest.raises(ConfigError, match="masks changed, come or gone"):
        prepare(data_config(root, tmp_path))
    prepare(data_config(root, tmp_path / "anew"))
    old, new = (load_index(tmp_path / name / "shards/images/train") for name in (".", "anew"))
    assert old.fingerprint == new.fingerprint
    assert old.extra["truth"] != new.extra["truth"]
    assert old.all().keys() == new.all().keys()


def test_another_folder_of_the_same_masks_is_complete(done: tuple[Path, Config], tmp_path: Path) -> None:
    """`data.masks`, as `data.crowd` and `data.sbd`, is asked for by what comes out of it."""
    root = Path(shutil.copytree(done[0], tmp_path / "data"))
    (root / "masks").rename(root / "other")
    prepare(data_config(root, tmp_path, masks="other"))
    before = snapshot(tmp_path / "shards")
    (root / "other").rename(root / "masks")
    prepare(data_config(root, tmp_path))
    assert snapshot(tmp_path / "shards") == before


def test_another_folder_of_other_masks_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    prepare(data_config(root, tmp_path))
    (root / "masks").rename(root / "other")
    save_mask(root / "other/p4.png", np.full(SIZE, 2))
    with pytest.raises(ConfigError, match="masks changed, come or gone"):
        prepare(data_config(root, tmp_path, masks="other"))


def test_the_folder_of_masks_is_of_the_truth_alone(done: tuple[Path, Config], tmp_path: Path) -> None:
    root = Path(shutil.copytree(done[0], tmp_path / "data"))
    (root / "masks").rename(root / "other")
    save_mask(root / "other/p4.png", np.full(SIZE, 2))
    configs = [done[1], data_config(root, tmp_path / "anew", masks="other")]
    configs.append(data_config(root, tmp_path / "none", masks="nowhere"))
    for config in configs[1:]:
        prepare(config)
    found = [load_index(images_dir(config, "train")) for config in configs]
    assert len({index.fingerprint for index in found}) == 1
    assert len({index.extra["truth"] for index in found}) == 3


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """A picture as VOC has it, with a mask and without labels."""
    root = tmp_path / "data"
    save(root / "JPEGImages/a.jpg", pixels(0))
    save_mask(root / "SegmentationClass/a.png", np.full(SIZE, 5))
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    return root


def test_labels_from_masks_have_to_be_asked_for(devkit: Path, tmp_path: Path) -> None:
    assert "labels_from: masks" in refused(data_config(devkit, tmp_path, "voc"))[0]


def test_labels_from_masks_are_recorded(devkit: Path, tmp_path: Path) -> None:
    prepare(data_config(devkit, tmp_path, "voc", labels_from="masks"))
    index = load_index(tmp_path / "shards/images/train")
    assert index.extra["labels_from"] == "masks"
    assert json.loads(members(index.folder)["a.json"])["labels"] == [5]


@pytest.fixture
def other(tmp_path: Path) -> Config:
    """A data set whose split `test` has a picture without labels and mask."""
    root = write_folder(tmp_path / "data")
    save(root / "images/new.jpg", pixels(99))
    (root / "test.txt").write_text("new\np4\n")
    return data_config(root, tmp_path)


def cached(config: Config, folder: Path) -> Path:
    return prepare_split(config, "test", lambda digest: folder / f"cache-{digest[:8]}")


def test_prepare_split_serves_other_data_without_labels(other: Config, tmp_path: Path) -> None:
    folder = cached(other, tmp_path)
    assert verify(folder) == []
    assert set(load_index(folder, "images").all().keys()) == {"new", "p4"}
    assert not shard_dir(other).exists()


def test_prepare_split_takes_another_folder_for_other_masks(other: Config, tmp_path: Path) -> None:
    folder = cached(other, tmp_path)
    assert cached(other, tmp_path) == folder
    save_mask(tmp_path / "data/masks/new.png", np.full(SIZE, 1))
    assert cached(other, tmp_path) != folder


def test_prepare_split_takes_a_folder_that_is_named(other: Config, tmp_path: Path) -> None:
    assert prepare_split(other, "test", tmp_path / "fixed") == tmp_path / "fixed"


def test_prepare_split_refuses_a_split_without_images(other: Config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split `none` has no images"):
        prepare_split(other, "none", tmp_path / "none")


def test_shapes_are_prepared(tmp_path: Path) -> None:
    config = make_config(tmp_path, data={"shapes": {"train": 9, "val": 3, "size": 48}})
    prepare(config)
    prepare(config)
    assert verify(shard_dir(config)) == []
    index = load_index(images_dir(config, "train"), "images")
    assert index.counts == [4, 4, 1]
    assert index.extra["labels_from"] == "generated"
    for shard, position in ((0, 0), (2, 0)):
        truth = read_truth(index, shard, position)
        assert truth is not None
        about = json.loads(read_fields(index, shard, position, ["json"])["json"])
        assert set(np.unique(truth).tolist()) - {0, 255} == set(about["labels"])


@pytest.mark.skipif(not VOC_MINI.is_dir(), reason="voc_mini is not here (DISTWSSS_DATA)")
def test_voc_mini_is_prepared(tmp_path: Path) -> None:
    config = data_config(VOC_MINI, tmp_path, "voc", shard_size=64)
    prepare(config)
    assert verify(shard_dir(config)) == []
    train, val = (load_index(images_dir(config, split), "images") for split in ("train", "val"))
    assert (len(train), len(val)) == (490, 239)
    key = train.key(0, 0)
    assert read_fields(train, 0, 0, ["jpg"])["jpg"] == (VOC_MINI / f"JPEGImages/{key}.jpg").read_bytes()
    truth = read_truth(train, 0, 0)
    assert truth is not None
    assert (truth == np.asarray(Image.open(VOC_MINI / f"SegmentationClass/{key}.png"))).all()
