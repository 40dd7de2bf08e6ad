"""What is wrong with a listing: images, masks, labels, ids. Called by `data/prepare.py` before anything is written, and
by `evaluate/submit.py`."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import numpy as np

from distwsss.config import Config
from distwsss.config.data import DataSection
from distwsss.data.images import IGNORE, decode_image
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import IMAGE_SUFFIXES, Item, Listing, item_key, read_mask, read_source
from distwsss.errors import DataError, report_problems
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import track

CHUNK = 32  # images that a process checks at a time


def listing_problems(listing: Listing, data: DataSection, labelled: bool, workers: int, what: str) -> list[list[str]]:
    """What is wrong with each item of a split, in the order of the listing; every image and mask is decoded.

    `labelled`: each image needs labels. `workers`: processes that decode. `what`: names the progress. The texts do not
    name the item.
    """
    repeated, of_files = _repeated(listing.items), _of_files(listing, data.max_pixels, workers, what)
    problems = []
    for position, item in enumerate(listing.items):
        of_labels = _label_problems(item, listing.labels_from, data.allow_empty) if labelled else []
        problems.append([*item.problems, *repeated.get(position, []), *of_labels, *of_files[position]])
    return problems


def check_listings(config: Config) -> list[str]:
    """What the lists of both splits hold, a line each; no image is decoded. Raises DataError for what is wrong."""
    lines = []
    for split, labelled in ((config.data.train_split, True), (config.data.val_split, False)):
        listing = DATASETS[config.data.dataset](config.data, split)
        problems = [f"{i.name}: {why}" for i in listing.items for why in _listed_problems(i, listing, config, labelled)]
        if problems:
            raise DataError(report_problems(f"split `{split}`", problems))
        masks, classes = sum(item.mask is not None for item in listing.items), len(listing.classes) - 1
        lines.append(f"split `{split}`: {len(listing.items)} photographs, {classes} classes, {masks} with a mask")
    return lines


def _listed_problems(item: Item, listing: Listing, config: Config, labelled: bool) -> list[str]:
    of_labels = _label_problems(item, listing.labels_from, config.data.allow_empty) if labelled else []
    return [*item.problems, *of_labels]


def _of_files(listing: Listing, max_pixels: int, workers: int, what: str) -> list[list[str]]:
    """`_file_problems` of every item, in order."""
    items = listing.items
    chunks = [range(start, min(start + CHUNK, len(items))) for start in range(0, len(items), CHUNK)]
    tasks = [(chunk, [items[position] for position in chunk]) for chunk in chunks]
    found: dict[int, list[str]] = {}
    with closing(spread(partial(_chunk_problems, len(listing.classes), max_pixels), tasks, workers)) as checked:
        each = (pair for (chunk, _), problems in checked for pair in zip(chunk, problems, strict=True))
        found.update(track(each, len(items), what))
    return [found[position] for position in range(len(items))]


def _chunk_problems(classes: int, max_pixels: int, task: tuple[range, list[Item]]) -> list[list[str]]:
    return [_file_problems(item, classes, max_pixels) for item in task[1]]


def _repeated(items: list[Item]) -> dict[int, list[str]]:
    """Position -> problem of an item whose id, or key, an earlier one has, or of whose id no key can be made."""
    owner: dict[str, str] = {}
    seen: set[str] = set()
    problems: dict[int, list[str]] = {}
    for position, item in enumerate(items):
        try:
            key = item_key(item)
        except DataError as error:
            problems[position] = [str(error)]
            continue
        if owner.setdefault(key, item.name) != item.name:
            problems[position] = [f"has the key {key}, as {owner[key]} has; rename one of them"]
        elif item.name in seen:
            problems[position] = ["duplicate id; allowed: each once"]
        seen.add(item.name)
    return problems


def _label_problems(item: Item, labels_from: str, allow_empty: bool) -> list[str]:
    if item.problems:  # the labels may be missing because of them
        return []
    if item.labels is None:
        return [f"no image-level labels (labels_from: {labels_from}); the train split needs them"]
    if not item.labels and not allow_empty:
        return ["empty label list; if it shows background only, set `data.allow_empty: true`"]
    return []


def _file_problems(item: Item, classes: int, max_pixels: int) -> list[str]:
    """What is wrong with the files of one image."""
    problems: list[str] = []
    shape = None
    try:
        shape = decode_image(read_source(item.image), item.name, max_pixels).shape[:2]
    except FileNotFoundError as error:
        if not any(text.startswith("no image") for text in item.problems):
            problems.append(f"no image {error.filename}; allowed: a {', '.join(IMAGE_SUFFIXES)} file")
    except (DataError, OSError) as error:
        problems.append(_described(error, item.name))
    if item.mask is not None:
        try:
            mask = read_mask(item.mask, item.name, max_pixels)
            problems += [f"mask: {text}" for text in _mask_problems(mask, shape, classes)]
        except (DataError, OSError) as error:
            problems.append(f"mask: {_described(error, item.name)}")
    return problems


def _described(error: DataError | OSError, name: str) -> str:
    if isinstance(error, DataError):
        return str(error).removeprefix(f"{name}: ")
    return f"{error.filename} cannot be read ({error.strerror})"


def _mask_problems(mask: np.ndarray, shape: tuple[int, ...] | None, classes: int) -> list[str]:
    problems = []
    if shape is not None and mask.shape != shape:
        found, allowed = (f"{width} x {height}" for height, width in (mask.shape, shape))
        problems.append(f"found {found} pixels; allowed: {allowed}, the size of the image")
    wrong = [int(value) for value in np.unique(mask) if value >= classes and value != IGNORE]
    if wrong:
        values = ", ".join(map(str, wrong[:8]))
        problems.append(f"found values {values}; allowed: 0..{classes - 1} and {IGNORE} (ignore)")
    return problems
