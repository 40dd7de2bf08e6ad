"""Masks that are called other than STEM.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distwsss.data.images import decode_mask
from distwsss.data.sources.listing import Item
from distwsss.data.sources.masks import Masks
from distwsss.errors import DataError

MASK = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)


def give(folder: Path, *names: str) -> list[Item]:
    """Items of pictures `names` with their masks of `folder`."""
    items = [Item(name, folder / name, [1]) for name in names]
    masks = Masks(folder, set(names))
    for item in items:
        masks.give(item)
    masks.log(items, "train")
    return items


@pytest.mark.parametrize(
    "file",
    [
        "x.PNG",
        "x_mask.png",
        "x_label.png",
        "x_gt.png",
        "x-seg.png",
        "x.jpg.png",
        "X.png",
        "x.bmp",
        "x.tif",
        "x_MASK.TIFF",
        "mask_x.png",
    ],
)
def test_masks_of_other_names(tmp_path: Path, lines: pytest.LogCaptureFixture, file: str) -> None:
    Image.fromarray(MASK).save(tmp_path / file)
    (item,) = give(tmp_path, "x.jpg")
    assert item.mask == tmp_path / file
    assert np.array_equal(decode_mask((tmp_path / file).read_bytes(), file), MASK)
    assert "1 of 1 photographs of `train` have one (1 called " in lines.text


def test_two_masks_of_one_photograph(tmp_path: Path) -> None:
    for file in ("x_mask.png", "x_gt.png"):
        Image.fromarray(MASK).save(tmp_path / file)
    assert "could be any of x_mask.png, x_gt.png" in give(tmp_path, "x.jpg")[0].problems[0]
    Image.fromarray(MASK).save(tmp_path / "x.png")
    assert give(tmp_path, "x.jpg")[0].mask == tmp_path / "x.png"


def test_the_mask_of_another_photograph_is_left_to_it(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "x_mask.png")
    assert [item.mask for item in give(tmp_path, "x.jpg", "x_mask.jpg")] == [None, tmp_path / "x_mask.png"]


def test_files_that_are_no_masks_are_said(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        Image.fromarray(MASK).save(tmp_path / f"m{number}.jpg")
    assert give(tmp_path, "x.jpg")[0].mask is None
    for said in ("4 files lie in", "m0.jpg, m1.jpg, m2.jpg, ...", "allowed: STEM"):
        assert said in lines.text


def test_some_photographs_have_masks(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    Image.fromarray(MASK).save(tmp_path / "x.png")
    give(tmp_path, "x.jpg", "y.jpg")
    assert "1 of 2 photographs of `train` have one" in lines.text


@pytest.mark.parametrize("suffix", ["bmp", "tif"])
def test_other_pixels_than_8_bit_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match="pixel mode RGB"):
        decode_mask(path.read_bytes(), "x")


@pytest.mark.parametrize(
    ("photograph", "file"),
    [
        ("sub/x.jpg", "x.png"), ("sub/x.jpg", "sub_x_mask.png"), ("x.jpg", "sub/mask-x.png"),
        ("sub/x.jpg", "sub/gt_x.png"),
    ],
)  # fmt: skip
def test_masks_in_other_folders(tmp_path: Path, photograph: str, file: str) -> None:
    (tmp_path / "sub").mkdir()
    Image.fromarray(MASK).save(tmp_path / file)
    assert give(tmp_path, photograph)[0].mask == tmp_path / file


def test_a_name_that_two_photographs_have_says_nothing_without_its_folder(tmp_path: Path) -> None:
    Image.fromarray(MASK).save(tmp_path / "x.png")
    assert [item.mask for item in give(tmp_path, "a/x.jpg", "b/x.jpg")] == [None, None]


def test_files_of_no_photograph_are_counted(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    for file in ("x_mask.png", "zzz.png", "x_depth.npy"):
        Image.fromarray(MASK).save(tmp_path / file, "PNG")
    give(tmp_path, "x.jpg")
    assert "2 of 3 files are no photograph's (x_depth.npy, zzz.png)" in lines.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "TIFF", "compression": "jpeg"}, "lossy"),
        ({"format": "TIFF", "tiffinfo": {262: 0}}, "0 is white"),
        ({"format": "TIFF", "save_all": True, "append_images": [Image.fromarray(MASK)]}, "2 pictures"),
        ({"format": "GIF"}, "allowed: a PNG, BMP, TIFF file"),  # its writers renumber the values
    ],
)
def test_what_would_change_class_ids_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    Image.fromarray(MASK).save(tmp_path / "x", **options)
    with pytest.raises(DataError, match=message):
        decode_mask((tmp_path / "x").read_bytes(), "x")
