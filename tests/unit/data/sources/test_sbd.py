"""`train_aug` of VOC 2012 and SBD: which images, whose masks, whose labels, on trees built here with known answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from distwsss.config.data import DataSection
from distwsss.config.load import check_config
from distwsss.config.schema import Config
from distwsss.data.images import encode_palette
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.data.shards.verify import verify
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import Listing
from distwsss.data.sources.sbd import MatMask
from distwsss.data.sources.voc import VOC_CLASSES
from distwsss.errors import DataError
from distwsss.runtime.layout import images_dir, shard_dir

SIZE = (6, 9)  # height, width
HERE = {"hardware": {"workers": 0}}
VOC_TRAIN, VOC_VAL = ["both", "voc_only"], ["val_only", "val_in_sbd"]
SBD_TRAIN, SBD_VAL = ["both", "sbd_one"], ["sbd_two", "val_in_sbd"]
CLASSES_OF = {"both": ["dog"], "voc_only": ["cat"], "sbd_one": ["person", "boat"], "sbd_two": ["car"]}


def lines(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def save_mat(path: Path, mask: np.ndarray) -> None:
    """As SBD's release: a struct GTcls of Boundaries, Segmentation and CategoriesPresent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    present = np.unique(mask[mask > 0]).reshape(-1, 1)
    savemat(path, {"GTcls": {"Boundaries": np.zeros((20, 1)), "Segmentation": mask, "CategoriesPresent": present}})


def sbd_mask(name: str) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    for number, label in enumerate(CLASSES_OF.get(name, ["train"])):
        mask[1 + 2 * number : 3 + 2 * number, 2:7] = VOC_CLASSES.index(label)
    return mask


def voc_mask(name: str) -> np.ndarray:
    mask = sbd_mask(name)
    mask[0] = 255  # only VOC's masks have ignored pixels
    return mask


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """(a VOC devkit folder, an SBD dataset folder)."""
    voc, sbd = tmp_path / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    lines(voc / "ImageSets/Segmentation/train.txt", VOC_TRAIN)
    lines(voc / "ImageSets/Segmentation/val.txt", VOC_VAL)
    lines(sbd / "train.txt", SBD_TRAIN)
    lines(sbd / "val.txt", SBD_VAL)
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (voc / folder).mkdir()
    for number, name in enumerate(sorted({*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL})):
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(voc / f"JPEGImages/{name}.jpg")
        objects = "".join(
            f"<object><name>{label}</name><difficult>1</difficult><part><name>head</name></part></object>"
            for label in CLASSES_OF.get(name, ["train"])
        )
        (voc / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        if name in (*VOC_TRAIN, *VOC_VAL):
            (voc / f"SegmentationClass/{name}.png").write_bytes(encode_palette(voc_mask(name)))
        if name in (*SBD_TRAIN, *SBD_VAL):
            save_mat(sbd / f"cls/{name}.mat", sbd_mask(name))
    return voc, sbd


def section(voc: Path, sbd: Path | None, **keys: Any) -> dict[str, Any]:
    return {"dataset": "voc", "root": str(voc), "sbd": sbd and str(sbd), "train_split": "train_aug", **keys}


def listing(voc: Path, sbd: Path | None, **keys: Any) -> Listing:
    return DATASETS["voc"](DataSection(**section(voc, sbd, **keys)), "train_aug")


def settings(voc: Path, sbd: Path, folder: Path, **keys: Any) -> Config:
    paths = {"shards": str(folder / "shards"), "run": str(folder / "run")}
    data = section(voc, sbd, **keys)
    return check_config({"name": "test", "paths": paths, "data": data, "prepare": {"shard_size": 3}, **HERE})


def contents(config: Config, role: str) -> dict[str, tuple[list[int], np.ndarray]]:
    """key -> labels, truth."""
    index, found = load_index(images_dir(config, role), "images"), {}
    for shard, count in enumerate(index.counts):
        for position in range(count):
            about = json.loads(read_fields(index, shard, position, ["json"])["json"])
            truth = read_truth(index, shard, position)
            assert truth is not None
            found[index.key(shard, position)] = (about["labels"], truth)
    return found


@pytest.mark.parametrize("given", ["dataset", "benchmark_RELEASE", "parent"])
def test_train_aug_goes_through_prepare_pixel_by_pixel(trees: tuple[Path, Path], tmp_path: Path, given: str) -> None:
    voc, sbd = trees
    folder = {"dataset": sbd, "benchmark_RELEASE": sbd.parent, "parent": sbd.parent.parent}[given]
    config = settings(voc, folder, tmp_path)
    prepare(config)
    prepare(config)
    assert verify(shard_dir(config)) == []
    found = contents(config, "train")
    assert set(found) == {"both", "voc_only", "sbd_one", "sbd_two"}
    for name, (labels, truth) in found.items():
        assert labels == sorted(VOC_CLASSES.index(label) for label in CLASSES_OF[name])
        assert (truth == (voc_mask if name in VOC_TRAIN else sbd_mask)(name)).all(), name
    assert set(contents(config, "val")) == set(VOC_VAL)
    assert load_index(images_dir(config, "train")).extra["labels_from"] == "xml"


def test_a_changed_mat_is_other_masks_and_not_another_fingerprint(trees: tuple[Path, Path], tmp_path: Path) -> None:
    voc, sbd = trees
    first, second = settings(voc, sbd, tmp_path / "first"), settings(voc, sbd, tmp_path / "second")
    prepare(first)
    save_mat(sbd / "cls/sbd_two.mat", np.zeros(SIZE, np.uint8))
    prepare(second)
    old, new = (load_index(images_dir(config, "train")) for config in (first, second))
    assert old.fingerprint == new.fingerprint
    assert old.extra["truth"] != new.extra["truth"]


def test_sbd_masks_are_no_labels(trees: tuple[Path, Path]) -> None:
    found = listing(*trees, labels_from="masks")
    assert {item.name: item.labels for item in found.items} == {
        "both": [12], "voc_only": [8], "sbd_one": None, "sbd_two": None,
    }  # fmt: skip


def test_a_subset_warns_and_says_what_it_found(trees: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    assert len(listing(*trees).items) == 4
    assert "found 4 images, not 10582" in caplog.text
    assert "VOC train 2 of 1464, VOC val 2 of 1449, SBD train 2 of 8498, SBD val 2 of 2857" in caplog.text


@pytest.mark.parametrize("in_voc_train", [691, 690])
def test_lists_of_the_official_lengths_give_10582(
    trees: tuple[Path, Path], in_voc_train: int, caplog: pytest.LogCaptureFixture
) -> None:
    """8,498 + 2,857 ids of SBD, of which 1,546 are in VOC val; `in_voc_train` of its ids are in VOC train's 1,464."""
    voc, sbd = trees
    ids = [f"2008_{number:06d}" for number in range(8498 + 2857)]
    in_val = ids[: 8498 + 2857 + 1464 - 691 - 10_582]
    lines(sbd / "train.txt", ids[:8498])
    lines(sbd / "val.txt", ids[8498:])
    lines(voc / "ImageSets/Segmentation/val.txt", [*in_val[:1449], *(f"v{n}" for n in range(1449 - len(in_val)))])
    train = [*ids[5000 : 5000 + in_voc_train], *(f"t{number}" for number in range(1464 - in_voc_train))]
    lines(voc / "ImageSets/Segmentation/train.txt", train)
    removed = min(len(in_val), 1449)
    expected = 8498 + 2857 + 1464 - in_voc_train - removed
    if expected == 10_582:
        assert len(listing(voc, sbd).items) == 10_582
        assert not caplog.text
    else:
        with pytest.raises(DataError, match=f"found {expected} images, not 10582, in lists of the official lengths"):
            listing(voc, sbd)


def test_train_aug_needs_the_sbd_release(trees: tuple[Path, Path]) -> None:
    voc, _ = trees
    with pytest.raises(DataError, match=r"needs `data\.sbd`: it is not set"):
        listing(voc, None)


def test_a_folder_that_is_no_sbd_release_is_refused(trees: tuple[Path, Path]) -> None:
    voc, _ = trees
    with pytest.raises(DataError, match=r"found no cls/ and train\.txt in .*VOC2012"):
        listing(voc, voc)


def test_a_list_of_ones_own_is_used_where_sbd_is_not_set(trees: tuple[Path, Path]) -> None:
    voc, sbd = trees
    lines(voc / "ImageSets/Segmentation/train_aug.txt", ["sbd_one"])
    assert [item.name for item in listing(voc, None).items] == ["sbd_one"]
    assert len(listing(voc, sbd).items) == 4  # derived


def test_a_missing_list_of_sbd_is_named(trees: tuple[Path, Path]) -> None:
    voc, sbd = trees
    (sbd / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt: cannot be read"):
        listing(voc, sbd)


def test_masks_that_cannot_be_used_are_named(trees: tuple[Path, Path], tmp_path: Path) -> None:
    voc, sbd = trees
    save_mat(sbd / "cls/sbd_one.mat", np.zeros((9, 6), np.uint8))
    (sbd / "cls/sbd_two.mat").write_bytes(b"no mat file, whatever its name says" * 9)
    with pytest.raises(DataError, match="2 problems") as caught:
        prepare(settings(voc, sbd, tmp_path))
    assert "sbd_one: mask: found 6 x 9 pixels; allowed: 9 x 6" in str(caught.value)
    assert "no SBD mask" in str(caught.value)


def test_a_mask_of_other_numbers_is_refused(tmp_path: Path) -> None:
    save_mat(tmp_path / "a.mat", np.full(SIZE, 0.5))
    with pytest.raises(DataError, match=r"found GTcls\.Segmentation float64\[6, 9\]"):
        MatMask(tmp_path / "a.mat").draw()


def test_a_file_of_another_struct_is_no_mask(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"GTinst": {"Segmentation": np.zeros(SIZE)}})
    with pytest.raises(DataError, match="no SBD mask"):
        MatMask(tmp_path / "a.mat").draw()


def test_a_file_cut_short_is_no_mask(tmp_path: Path) -> None:
    save_mat(tmp_path / "a.mat", sbd_mask("both"))
    (tmp_path / "a.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:-20])
    with pytest.raises(DataError, match="no SBD mask"):
        MatMask(tmp_path / "a.mat").draw()
