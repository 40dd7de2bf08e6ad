"""The stage `prepare`: checks a data set as a whole, then writes its image shards. Called by `cli` and by `evaluate`.

A first pass decodes every image and mask and reports all problems of both splits at once; only then is anything written.
Masks travel as `truth.png`; their digest is kept beside the parameters, not among them, so that no fingerprint of a later
stage depends on masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distwsss.config.schema import Config, DataSection
from distwsss.data.datasets import DATASETS
from distwsss.data.images import decode_image, decode_mask, encode_jpeg, encode_palette, jpeg_mode
from distwsss.data.listing import IMAGE_SUFFIXES, Item, Listing, stem_of
from distwsss.data.shard_format import INDEX, key_from_name
from distwsss.data.shard_index import ShardIndex, images_dir, load_index
from distwsss.data.shard_writer import write_index, write_shard
from distwsss.errors import ConfigError, DataError, report_problems
from distwsss.runtime.artifacts import check_same, fingerprint, free_space_check, sha256_bytes, to_json
from distwsss.runtime.progress import log, track

IGNORE = 255
PER_SAMPLE = 4096  # bytes of tar headers, padding, JSON and index, at most


@dataclass(frozen=True)
class _Split:
    """One split on its way into image shards."""

    name: str
    listing: Listing
    folder: Path
    labelled: bool  # labels are required


def prepare(config: Config) -> None:
    """Image shards of the train split and, where there is one, of the val split, under shard_dir/images.

    Raises DataError with every problem of the data, ConfigError when the shards were made from other data or parameters.
    """
    splits = []
    for role, name in (("train", config.data.train_split), ("val", config.data.val_split)):
        listing = DATASETS[config.data.dataset](config.data, name)
        if listing.items:
            splits.append(_Split(name, listing, images_dir(config, role), labelled=role == "train"))
        elif role == "train":
            raise DataError(_empty(name, listing))
        else:
            log.info(f"prepare: {_empty(name, listing)}; skipped")
    _prepare(config, splits)


def prepare_split(config: Config, split: str, folder: Path | Callable[[str], Path]) -> Path:
    """Image shards of any split of `config.data`, labels not required, in `folder`; returns that folder.

    `folder` may be a function of the content's digest, which gives each content a folder of its own.
    """
    listing = DATASETS[config.data.dataset](config.data, split)
    if not listing.items:
        raise DataError(_empty(split, listing))
    if not isinstance(folder, Path):
        folder = folder(fingerprint([_parameters(config, split, listing), _truth_digest(listing)]))
    _prepare(config, [_Split(split, listing, folder, labelled=False)])
    return folder


def _empty(name: str, listing: Listing) -> str:
    return f"split `{name}` has no images (looked in {listing.where})"


def _prepare(config: Config, splits: list[_Split]) -> None:
    pending = [split for split in splits if not _is_complete(config, split)]
    problems = [f"{split.name}: {problem}" for split in pending for problem in _problems(config, split)]
    if problems:
        raise DataError(report_problems("The data cannot be used; nothing was written", problems))
    for split in pending:
        free_space_check(split.folder, sum(map(_bytes_needed, split.listing.items)), f"prepare, split {split.name}")
    for split in pending:
        _write(config, split)


# What the shards are made from


def _parameters(config: Config, split: str, listing: Listing) -> dict[str, Any]:
    """What the index records and its fingerprint covers; without masks."""
    data = {key: value for key, value in config.data.parameters().items() if key != "masks"}
    content = [[item.name, item.labels, _size(item.image)] for item in _by_name(listing)]
    return {
        "data": data,
        "prepare": config.prepare.parameters(),
        "split": split,
        "classes": listing.classes,
        "content": fingerprint(content),
    }


def _truth_digest(listing: Listing) -> str | None:
    """Digest of all masks' bytes; None without masks."""
    masks = [[item.name, sha256_bytes(_read(item.mask))] for item in _by_name(listing) if item.mask is not None]
    return fingerprint(masks) if masks else None


def _by_name(listing: Listing) -> list[Item]:
    return sorted(listing.items, key=lambda item: item.name)


def _is_complete(config: Config, split: _Split) -> bool:
    """Whether the folder holds these shards. Raises ConfigError when it holds those of other parameters or masks."""
    if not (split.folder / INDEX).is_file():
        return False
    index = load_index(split.folder, "images")
    what = f"prepare: {split.folder}"
    check_same(index.parameters, _parameters(config, split.name, split.listing), what)
    if index.extra.get("truth") != _truth_digest(split.listing):
        raise ConfigError(
            f"{what} was made with other masks: they changed, came or went since. Restore them, choose another `name` "
            "(or `paths`), or delete that folder to make it anew."
        )
    log.info(f"prepare: {split.name} complete, skipped")
    return True


# Checks: nothing is written before all of them passed


def _problems(config: Config, split: _Split) -> list[str]:
    """Every problem of a split, `ID: what` each, in the order of the listing."""
    items, classes = split.listing.items, len(split.listing.classes)
    repeated = _repeated(items)
    with ThreadPoolExecutor(max(1, config.hardware.workers)) as pool:
        found = pool.map(lambda item: _item_problems(item, classes, config.data), items)
        checked = list(track(found, len(items), f"prepare: checking {split.name}"))
    problems = []
    for position, (item, of_files) in enumerate(zip(items, checked, strict=True)):
        of_labels = _label_problems(item, split, config.data.allow_empty)
        problems += [f"{item.name}: {text}" for text in [*item.problems, *repeated.get(position, []), *of_labels]]
        problems += of_files
    return problems


def _repeated(items: list[Item]) -> dict[int, list[str]]:
    """Position -> problem of the items whose id, or key, an earlier item has; and ids that no key can be made of."""
    owner: dict[str, str] = {}
    problems: dict[int, list[str]] = {}
    for position, item in enumerate(items):
        try:
            other = owner.setdefault(_key(item), item.name) if _key(item) in owner else None
            owner.setdefault(_key(item), item.name)
        except DataError as error:
            problems[position] = [str(error)]
            continue
        if other is not None:
            same = "duplicate id; allowed: each once"
            problems[position] = [same if other == item.name else f"same key {_key(item)} as {other}; rename one"]
    return problems


def _label_problems(item: Item, split: _Split, allow_empty: bool) -> list[str]:
    if not split.labelled or (item.labels is None and item.problems):
        return []
    if item.labels is None:
        return [f"no image-level labels (labels_from: {split.listing.labels_from}); the train split needs them"]
    if not item.labels and not item.problems and not allow_empty:
        return ["empty label list; if it shows background only, set `data.allow_empty: true`"]
    return []


def _item_problems(item: Item, classes: int, data: DataSection) -> list[str]:
    """What is wrong with the files of one image, each text naming its id."""
    problems, shape = [], None
    try:
        shape = decode_image(_read(item.image), item.name, data.max_pixels).shape[:2]
    except FileNotFoundError:
        problems.append(f"{item.name}: no image {item.image}; allowed: {', '.join(IMAGE_SUFFIXES)} files")
    except OSError as error:
        problems.append(f"{item.name}: {item.image} cannot be read ({error.strerror})")
    except DataError as error:
        problems.append(str(error))
    if item.mask is not None:
        try:
            mask = decode_mask(_read(item.mask), f"{item.name}: mask", data.max_pixels)
            problems += [f"{item.name}: mask: {text}" for text in _mask_problems(mask, shape, classes)]
        except OSError as error:
            problems.append(f"{item.name}: mask {item.mask} cannot be read ({error.strerror})")
        except DataError as error:
            problems.append(str(error))
    return problems


def _mask_problems(mask: np.ndarray, shape: tuple[int, ...] | None, classes: int) -> list[str]:
    problems = []
    if shape is not None and mask.shape != shape:
        found, allowed = (f"{width} x {height}" for height, width in (mask.shape, shape))
        problems.append(f"found {found} pixels; allowed: {allowed}, the size of the image")
    wrong = [int(value) for value in np.unique(mask) if value >= classes and value != IGNORE]
    if wrong:
        problems.append(f"found values {', '.join(map(str, wrong[:8]))}; allowed: 0..{classes - 1} and {IGNORE} (ignore)")
    return problems


# Writing


def _write(config: Config, split: _Split) -> None:
    """Shards in the order of the keys' sha256, which mixes the classes and does not depend on the listing's order."""
    for stale in [*split.folder.glob("images-*.tar"), *split.folder.glob(".*.tmp")]:  # of an interrupted attempt
        stale.unlink()
    items = sorted(split.listing.items, key=lambda item: sha256_bytes(_key(item).encode()))
    size = config.prepare.shard_size
    progress = track(items, len(items), f"prepare: writing {split.name}")
    records = [
        write_shard(split.folder / f"images-{number:05d}.tar", _samples(progress, min(size, len(items) - number * size)))
        for number in range(-(-len(items) // size))
    ]
    truth = _truth_digest(split.listing)
    extra = {"labels_from": split.listing.labels_from, "truth": truth}
    parameters = _parameters(config, split.name, split.listing)
    write_index(split.folder, records, parameters, split.listing.classes, "images", extra)


def _samples(items: Iterator[Item], count: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    for _ in range(count):
        item = next(items)
        yield _key(item), _sample(item)


def _sample(item: Item) -> dict[str, bytes]:
    """The members of one image: jpg (the original bytes wherever they are a JPEG in RGB or grey), json, truth.png."""
    data = _read(item.image)
    image = decode_image(data, item.name)
    about = {"labels": item.labels, "size": list(image.shape[:2]), "name": item.name}
    mode = jpeg_mode(data, item.name)
    if mode not in ("RGB", "L"):
        about["encoded_from"] = "jpg" if mode else Path(item.name).suffix.lower().removeprefix(".")
        data = encode_jpeg(image)
    sample = {"jpg": data, "json": to_json(about)}
    if item.mask is not None:
        sample["truth.png"] = encode_palette(decode_mask(_read(item.mask), f"{item.name}: mask"))
    return sample


# Files


def _key(item: Item) -> str:
    return key_from_name(stem_of(item.name))


def _read(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _size(source: Path | bytes) -> int | str:
    """What stands for an image in the content digest: a file's size (cheap), the digest of generated bytes."""
    if isinstance(source, bytes):
        return sha256_bytes(source)
    return source.stat().st_size if source.is_file() else -1


def _bytes_needed(item: Item) -> int:
    files = [source for source in (item.image, item.mask) if source is not None]
    return PER_SAMPLE + sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files)
