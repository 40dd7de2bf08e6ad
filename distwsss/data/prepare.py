"""The stage `prepare`: checks a data set as a whole, then writes its image shards. Called by `cli` and by `evaluate`.

A first pass decodes every image and mask and reports all problems of both splits at once; only then is anything
written. Masks travel as `truth.png`; their digest is kept beside the parameters, not among them, so that no fingerprint
of a later stage depends on masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distwsss.config.schema import Config
from distwsss.data.check import listing_problems
from distwsss.data.datasets import DATASETS
from distwsss.data.images import decode_image, decode_mask, encode_jpeg, encode_palette, jpeg_mode
from distwsss.data.listing import Item, Listing, item_key, read_source
from distwsss.data.shard_format import INDEX
from distwsss.data.shard_index import images_dir, load_index
from distwsss.data.shard_writer import write_index, write_shard
from distwsss.errors import ConfigError, DataError, report_problems
from distwsss.runtime.artifacts import check_same, fingerprint, free_space_check, sha256_bytes, to_json
from distwsss.runtime.progress import log, track

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

    Raises DataError with every problem of the data, and ConfigError when the shards were made from other data, masks or
    parameters.
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
    problems = [f"{split.name}: {problem}" for split in pending for problem in _check(config, split)]
    if problems:
        raise DataError(report_problems("The data cannot be used; nothing was written", problems))
    for split in pending:
        free_space_check(split.folder, sum(map(_bytes_needed, split.listing.items)), f"prepare, split {split.name}")
    for split in pending:
        _write(config, split)


def _check(config: Config, split: _Split) -> list[str]:
    what = f"prepare: checking {split.name}"
    return listing_problems(split.listing, config.data, split.labelled, config.hardware.workers, what)


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
    masks = [[item.name, sha256_bytes(read_source(item.mask))] for item in _by_name(listing) if item.mask is not None]
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


def _write(config: Config, split: _Split) -> None:
    """Shards in the order of the keys' sha256, which mixes the classes and does not depend on the listing's order."""
    for stale in [*split.folder.glob("images-*.tar"), *split.folder.glob(".*.tmp")]:  # of an interrupted attempt
        stale.unlink()
    items = sorted(split.listing.items, key=lambda item: sha256_bytes(item_key(item).encode()))
    size = config.prepare.shard_size
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    records = []
    for number, chunk in enumerate(track(chunks, len(chunks), f"prepare: writing {split.name}", unit="shard")):
        samples = ((item_key(item), _sample(item, config.data.max_pixels)) for item in chunk)
        records.append(write_shard(split.folder / f"images-{number:05d}.tar", samples))
    truth = _truth_digest(split.listing)
    extra = {"labels_from": split.listing.labels_from, "truth": truth}
    parameters = _parameters(config, split.name, split.listing)
    write_index(split.folder, records, parameters, split.listing.classes, "images", extra)


def _sample(item: Item, max_pixels: int) -> dict[str, bytes]:
    """The members of one image: jpg (the original bytes wherever they are a JPEG in RGB or grey), json, truth.png."""
    data = read_source(item.image)
    image = decode_image(data, item.name, max_pixels)
    about = {"labels": item.labels, "size": list(image.shape[:2]), "name": item.name}
    mode = jpeg_mode(data, item.name)
    if mode not in ("RGB", "L"):
        about["encoded_from"] = "jpg" if mode else Path(item.name).suffix.lower().removeprefix(".")
        data = encode_jpeg(image)
    sample = {"jpg": data, "json": to_json(about)}
    if item.mask is not None:
        sample["truth.png"] = encode_palette(decode_mask(read_source(item.mask), f"{item.name}: mask", max_pixels))
    return sample


def _size(source: Path | bytes) -> int | str:
    """What stands for an image in the content digest: a file's size (cheap), the digest of generated bytes."""
    if isinstance(source, bytes):
        return sha256_bytes(source)
    return source.stat().st_size if source.is_file() else -1


def _bytes_needed(item: Item) -> int:
    files = [source for source in (item.image, item.mask) if source is not None]
    return PER_SAMPLE + sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files)
