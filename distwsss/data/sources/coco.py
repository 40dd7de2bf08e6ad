"""COCO 2014 as published: annotations/instances_SPLIT2014.json, and the photographs in SPLIT2014/.

`list_coco` is called through `datasets.DATASETS`. A label is 1 + the rank of its category id: person 1, ...,
toothbrush 80; the index records the ids. Image-level labels are the categories of all annotations of an image, crowds
too; an image without any is left out (82,081 train and 40,137 val images stay). Masks are drawn from the instances when
they are wanted, by `CocoMask` (`data/sources/coco_mask.py`).
"""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from distwsss.config.data import DataSection
from distwsss.data.sources.coco_mask import CocoMask, Region
from distwsss.data.sources.listing import BACKGROUND, Item, Listing, check_classes, data_root
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.progress import log

OFFICIAL = {82_783: 82_081, 40_504: 40_137}  # images in the JSON of 2014: those that have an annotation


def list_coco(data: DataSection, split: str) -> Listing:
    """The annotated images of `split` (`train` means train2014), by file name; no items where its JSON does not exist.

    Raises DataError for a JSON that is not COCO's, and ConfigError for keys that COCO does not have.
    """
    if data.labels_from != "auto" or data.classes is not None:
        raise ConfigError("`data.labels_from` and `data.classes` do not apply to `coco`; leave them out")
    root, name = data_root(data), split if split[-4:].isdigit() else f"{split}2014"
    path = root / "annotations" / f"instances_{name}.json"
    if not path.is_file():
        return Listing([BACKGROUND], [], "none", str(path))
    tree = _read(path)
    try:
        ids, classes = _categories(tree["categories"])
        regions = _regions(tree, {number: label for label, number in enumerate(ids)}, data.crowd)
        items = [_item(root / name, image, regions[image["id"]], data) for image in tree["images"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO's format ({type(error).__name__}: {error}); replace the file") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    kept = sorted((item for item in items if item.labels), key=lambda item: item.name)
    _check_count(path, len(items), len(kept))
    return Listing(classes, kept, "json", str(path), {"category_ids": ids})


def _read(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file, object_hook=_compact)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); replace the file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _compact(value: dict[str, Any]) -> dict[str, Any]:
    """Polygons as arrays of doubles while the file is read: an eighth of the memory of lists."""
    polygons = value.get("segmentation")
    if isinstance(polygons, list):
        with suppress(TypeError, OverflowError):  # not numbers: `CocoMask.draw` says so, of its image
            value["segmentation"] = [array("d", polygon) for polygon in polygons]
    return value


def _categories(categories: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    """(COCO's id of each class, 0 for the background; the names), in ascending order of the ids."""
    ranked = sorted(categories, key=lambda category: category["id"])
    ids = [category["id"] for category in ranked]
    if len(set(ids)) != len(ids) or not all(type(number) is int and number > 0 for number in ids):
        raise DataError(f"found category ids {ids}; allowed: distinct whole numbers above 0")
    return [0, *ids], check_classes([BACKGROUND, *(category["name"] for category in ranked)], "categories")


def _regions(tree: dict[str, Any], label_of: dict[int, int], crowd: str) -> dict[int, list[Region]]:
    """Image id -> the regions of its annotations, in their order. Raises DataError for unknown ids."""
    known, regions = {image["id"] for image in tree["images"]}, defaultdict(list)
    for annotation in tree["annotations"]:
        category, image = annotation["category_id"], annotation["image_id"]
        if image not in known or not label_of.get(category):
            found = f"annotation {annotation.get('id')}: found category {category!r} of image {image!r}"
            raise DataError(f"{found}; allowed: ids of `categories` and `images` in the same file")
        ignored = crowd == "ignore" and bool(annotation.get("iscrowd"))
        regions[image].append(Region(label_of[category], ignored, annotation["segmentation"]))
    return regions


def _item(folder: Path, image: dict[str, Any], regions: list[Region], data: DataSection) -> Item:
    """An image and its mask; the mask is left out where its size cannot be that of a photograph."""
    name, height, width = image["file_name"], image["height"], image["width"]
    labels = sorted({region.label for region in regions})
    if name.startswith("/") or ".." in name.split("/"):
        return Item(name, folder / name, labels, None, [f"the name leads out of {folder}; allowed: names below it"])
    sized = type(height) is type(width) is int and min(height, width) > 0 and height * width <= data.max_pixels
    if not sized:
        wrong = f"found {width!r} x {height!r} pixels in the JSON; allowed: 1..{data.max_pixels} (`data.max_pixels`)"
        return Item(name, folder / name, labels, None, [wrong])
    return Item(name, folder / name, labels, CocoMask(height, width, tuple(regions)))


def _check_count(path: Path, images: int, kept: int) -> None:
    wanted = OFFICIAL.get(images)
    if wanted not in (None, kept):
        raise DataError(f"{path}: {kept} of {images} images have an annotation, officially {wanted}; replace the file")
    what = "" if wanted else " (not as many as the official lists have: a subset, or another data set)"
    log.info(f"coco: {path.name}: {kept} of {images} images have an annotation{what}; the others are left out")
