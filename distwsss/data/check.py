"""What is wrong with a listing: images, masks, labels, ids. Called by `data/prepare.py` before anything is written, and
by `evaluate/submit.py`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from distwsss.config import Config
from distwsss.config.data import DataSection
from distwsss.data.images import IGNORE, TRANSPOSED, Photograph, decode_photograph
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import IMAGE_SUFFIXES, Item, Listing, item_key, read_mask, read_source
from distwsss.errors import DataError, report_problems
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import track

CHUNK = 32  # images that a process checks at a time


@dataclass
class Checked:
    """What was found of one image. `problems`: why it cannot be used, without its name; `mask`: value of the mask ->
    how many pixels have it, None without a mask that can be read."""

    problems: list[str] = field(default_factory=list)
    mask: dict[int, int] | None = None


def check_listing(
    listing: Listing, data: DataSection, labelled: bool, workers: int, what: str, longest_side: int | None = None
) -> list[Checked]:
    """What is found of each item of a split, in the order of the listing; every image and mask is decoded.

    `labelled`: each image needs labels. `workers`: processes that decode. `what`: names the progress. `longest_side`:
    `prepare`'s key, with which large photographs are decoded faster.
    """
    repeated, found = _repeated(listing.items), _of_files(listing, (data.max_pixels, longest_side), workers, what)
    for position, (item, checked) in enumerate(zip(listing.items, found, strict=True)):
        of_labels = _label_problems(item, listing.labels_from, data.allow_empty) if labelled else []
        checked.problems = [*item.problems, *repeated.get(position, []), *of_labels, *checked.problems]
    return found


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


def _of_files(listing: Listing, limits: tuple[int, int | None], workers: int, what: str) -> list[Checked]:
    """`_check_files` of every item, in order. limits: `data.max_pixels` and `prepare.longest_side`."""
    items = listing.items
    chunks = [range(start, min(start + CHUNK, len(items))) for start in range(0, len(items), CHUNK)]
    tasks = [(chunk, [items[position] for position in chunk]) for chunk in chunks]
    found: dict[int, Checked] = {}
    with closing(spread(partial(_check_chunk, len(listing.classes), limits), tasks, workers)) as checked:
        each = (pair for (chunk, _), results in checked for pair in zip(chunk, results, strict=True))
        found.update(track(each, len(items), what))
    return [found[position] for position in range(len(items))]


def _check_chunk(classes: int, limits: tuple[int, int | None], task: tuple[range, list[Item]]) -> list[Checked]:
    return [_check_files(item, classes, *limits) for item in task[1]]


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


def _check_files(item: Item, classes: int, max_pixels: int, longest_side: int | None) -> Checked:
    """What is wrong with the files of one image."""
    checked, photo = Checked(), None
    try:
        photo = decode_photograph(read_source(item.image), item.name, max_pixels, longest_side)
    except FileNotFoundError as error:
        if not any(text.startswith("no image") for text in item.problems):
            checked.problems.append(f"no image {error.filename}; allowed: a {', '.join(IMAGE_SUFFIXES)} file")
    except (DataError, OSError) as error:
        checked.problems.append(_described(error, item.name))
    if item.mask is not None:
        try:
            mask = read_mask(item.mask, item.name, max_pixels)
            counts = np.bincount(mask.ravel(), minlength=256)
            checked.mask = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
            found = [*_size_problems(mask.shape, photo), *_value_problems(checked.mask, classes)]
            checked.problems += [f"mask: {text}" for text in found]
        except (DataError, OSError) as error:
            checked.problems.append(f"mask: {_described(error, item.name)}")
    return checked


def _described(error: DataError | OSError, name: str) -> str:
    if isinstance(error, DataError):
        return str(error).removeprefix(f"{name}: ")
    return f"{error.filename} cannot be read ({error.strerror})"


def _size_problems(shape: tuple[int, ...], photo: Photograph | None) -> list[str]:
    if photo is None or shape == photo.size:
        return []
    found, allowed = (f"{width} x {height}" for height, width in (shape, photo.size))
    text = f"found {found} pixels; allowed: {allowed}, the size of the image"
    if shape != photo.size[::-1]:
        return [text]
    if photo.orientation not in TRANSPOSED:
        return [f"{text} (height and width are exchanged: turn the mask)"]
    how = f"as its EXIF orientation ({photo.orientation}) turns it upright; the mask is drawn on the unturned pixels"
    return [f"{text} {how}: turn the mask likewise, or remove the EXIF orientation from the photograph"]


def _value_problems(mask: dict[int, int], classes: int) -> list[str]:
    wrong = [value for value in mask if value >= classes and value != IGNORE]
    values = ", ".join(map(str, wrong[:8])) + ", ..." * (len(wrong) > 8)
    return [f"found values {values}; allowed: 0..{classes - 1} and {IGNORE} (ignore)"] if wrong else []
