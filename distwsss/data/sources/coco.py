"""COCO 2014 as published: annotations/instances_SPLIT2014.json, and the photographs in SPLIT2014/.

`list_coco` is called through `datasets.DATASETS`. A label is 1 + the rank of its category id: person 1, ...,
toothbrush 80; the index records the ids. Image-level labels are the categories of all annotations of an image, crowds
too; an image without any is left out (82,081 train and 40,137 val images stay). Masks are drawn from the instances when
they are wanted, by `CocoMask` (`data/sources/coco_mask.py`); an image of which an annotation has no outline has none.
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
        images = _images(tree["images"])
        regions, strange = _regions(tree, images, ids, data.crowd)
        items = [_item(root / name, image, regions[number], strange[number], data) for number, image in images.items()]
    except (KeyError, TypeError, AttributeError) as error:
        found = (
            f"{type(error).__name__}: {error}; it holds {', '.join(tree)[:80] if isinstance(tree, dict) else 'a list'}"
        )
        allowed = "`images`, `annotations` and `categories` of instances"
        raise DataError(f"{path}: not COCO's format ({found}); allowed: {allowed}; replace the file") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    kept = sorted((item for item in items if item.labels or item.problems), key=lambda item: item.name)
    _check_count(path, len(items), len(kept))
    bare = sum(item.mask is None and not item.problems for item in kept)
    if bare:
        log.info(f"coco: {path.name}: {bare} of {len(kept)} images have annotations without outlines: no masks of them")
    return Listing(classes, kept, "json", str(path), {"category_ids": [0, *ids]})


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


def _plain(number: Any) -> Any:
    """An id as `images` and `annotations` may both have it: 7 for "7" and 7.0."""
    if isinstance(number, str) and number.isdecimal() and str(int(number)) == number:
        return int(number)
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _categories(categories: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    """(COCO's id of each foreground class, all names), in ascending order of the ids. Ids may have gaps and begin at
    0, where some tools put the background."""
    named = [(_plain(category["id"]), category["name"]) for category in categories]
    ids = [number for number, _ in named]
    if not all(type(number) is int and number >= 0 for number in ids):
        raise DataError(f"found category ids {ids}; allowed: distinct whole numbers")
    if len(set(ids)) != len(ids):
        raise DataError(f"found category ids {sorted(ids)}: some twice; allowed: distinct whole numbers")
    ranked = sorted((number, name) for number, name in named if (number, name) != (0, BACKGROUND))
    return [number for number, _ in ranked], check_classes([BACKGROUND, *(name for _, name in ranked)], "categories")


def _images(images: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Image id -> its entry. Raises DataError for an id or a file name that stands twice: which annotations are of
    which photograph is not known."""
    found: dict[Any, dict[str, Any]] = {}
    owner: dict[str, Any] = {}
    for image in images:
        number, name = _plain(image["id"]), image["file_name"]
        advice = "were two files put together? Give each photograph an id of its own, in `images` and `annotations`"
        if number in found:
            raise DataError(f"image id {number!r} stands twice, for {found[number]['file_name']} and {name}; {advice}")
        if name in owner:
            raise DataError(f"the file {name} stands twice, with the ids {owner[name]!r} and {number!r}; {advice}")
        found[number], owner[name] = image, number
    return found


def _regions(
    tree: dict[str, Any], images: dict[Any, dict[str, Any]], ids: list[int], crowd: str
) -> tuple[dict[Any, list[Region]], dict[Any, list[str]]]:
    """By image id: the regions of its annotations, in their order, and problems with their categories. Annotations of
    no listed image are left out, with a warning; DataError where all are."""
    label_of, outside = {number: label for label, number in enumerate(ids, start=1)}, []
    regions: dict[Any, list[Region]] = defaultdict(list)
    problems: dict[Any, list[str]] = defaultdict(list)
    for annotation in tree["annotations"]:
        category, image = _plain(annotation["category_id"]), _plain(annotation["image_id"])
        about = f"annotation {annotation.get('id')}: found category {category!r} of image {image!r}"
        if image not in images:
            outside.append(f"{about}; allowed: ids of `images` in the same file")
        elif category not in label_of:
            problems[image].append(f"{about}; allowed: ids of `categories` in the same file")
        else:
            ignored = crowd == "ignore" and bool(annotation.get("iscrowd"))
            regions[image].append(Region(label_of[category], ignored, _outline(annotation)))
    if outside and not regions:
        raise DataError(outside[0])
    if outside:
        log.warning(f"coco: {len(outside)} annotations are of no image in the file and are not used ({outside[0]})")
    return regions, problems


def _outline(annotation: dict[str, Any]) -> Any:
    """Its `segmentation`; None where it is missing, null or empty (`[]`, `[[]]`), as tools for boxes write it."""
    found = annotation.get("segmentation")
    there = any(found) if isinstance(found, list) else found not in (None, "", {})
    return found if there else None


def _item(folder: Path, image: dict[str, Any], regions: list[Region], problems: list[str], data: DataSection) -> Item:
    """An image and its mask; the mask is left out where its size cannot be that of a photograph."""
    name, labels = image["file_name"], sorted({region.label for region in regions})
    if name.startswith("/") or ".." in name.split("/"):
        return Item(name, folder / name, labels, None, [f"the name leads out of {folder}; allowed: names below it"])
    if any(region.segmentation is None for region in regions):
        return Item(name, folder / name, labels, None, problems)
    height, width = image.get("height"), image.get("width")
    if type(height) is type(width) is int and min(height, width) > 0 and height * width <= data.max_pixels:
        return Item(name, folder / name, labels, CocoMask(height, width, tuple(regions)), problems)
    wrong = f"found {width!r} x {height!r} pixels in the JSON; allowed: 1..{data.max_pixels} (`data.max_pixels`)"
    return Item(name, folder / name, labels, None, [*problems, wrong])


def _check_count(path: Path, images: int, kept: int) -> None:
    wanted = OFFICIAL.get(images)
    if wanted not in (None, kept):
        raise DataError(f"{path}: {kept} of {images} images have an annotation, officially {wanted}; replace the file")
    what = "" if wanted else " (not as many as the official lists have: a subset, or another data set)"
    log.info(f"coco: {path.name}: {kept} of {images} images have an annotation{what}; the others are left out")
