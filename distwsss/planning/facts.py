"""The fingerprint of a data set and of a machine: what recipes, times and checks are reckoned from.

Called by the other modules of `planning` and, through them, by `pipeline`.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distwsss.config import Config
from distwsss.data.images import stored_size
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_fields, read_json_field
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import Item, Listing
from distwsss.errors import DataError
from distwsss.runtime.layout import images_dir

SIZES_OF = 500  # photographs whose headers are read, evenly over the list


@dataclass(frozen=True)
class DataFacts:
    """A data set. `longest`: median longest side of its photographs in pixels; `pixels`: their median number of pixels;
    `most_pixels`: of the largest; `classes`: foreground class -> train photographs tagged with it."""

    photographs: int
    scored: int  # photographs of the val split
    masks: int  # train photographs with a mask
    longest: int
    pixels: int
    most_pixels: int
    classes: dict[str, int]

    @property
    def tags_each(self) -> float:
        """Classes per photograph, on average."""
        return sum(self.classes.values()) / max(1, self.photographs)


@dataclass(frozen=True)
class MachineFacts:
    """A machine. Memory in GiB; `gpu_memory`: of the smallest of its GPUs."""

    cores: int
    memory: float
    gpus: int = 0
    gpu_memory: float = 0.0
    gpu: str = ""


def read_data(config: Config) -> DataFacts:
    """Reads the lists, tags and the headers of photographs; decodes none. Raises DataError for an empty train split."""
    splits = (config.data.train_split, config.data.val_split)
    train, val = (DATASETS[config.data.dataset](config.data, split) for split in splits)
    if not train.items:
        raise DataError(f"split `{config.data.train_split}` has no images (looked in {train.where})")
    counts = Counter(label for item in train.items for label in item.labels or [])
    classes = {name: counts[index] for index, name in enumerate(train.classes) if index}
    masks = sum(item.mask is not None for item in train.items)
    return _facts(len(train.items), len(val.items), masks, _sizes(train), classes)


def read_shards(config: Config) -> DataFacts:
    """The same of image shards that are there, without the data itself; counts of classes are estimated from some."""
    train = load_index(images_dir(config, "train"), "images")
    val = images_dir(config, "val")
    places = train.all().places()
    some = places[:: max(1, len(places) // SIZES_OF)]
    about = [_about(train, shard, position) for shard, position in some]
    counts = Counter(label for each in about for label in each["labels"] or [])
    classes = {name: round(counts[i] * len(places) / len(some)) for i, name in enumerate(train.classes) if i}
    scored = len(load_index(val, "images")) if (val / INDEX).is_file() else 0
    return _facts(len(train), scored, len(train.with_truth()), [each["size"] for each in about], classes)


def _facts(
    photographs: int, scored: int, masks: int, sizes: Sequence[Sequence[int]], classes: dict[str, int]
) -> DataFacts:
    """sizes: (height, width) of some photographs."""
    return DataFacts(
        photographs,
        scored,
        masks,
        longest=round(statistics.median(max(size) for size in sizes)),
        pixels=round(statistics.median(height * width for height, width in sizes)),
        most_pixels=max(height * width for height, width in sizes),
        classes=classes,
    )


def _about(index: ShardIndex, shard: int, position: int) -> dict[str, Any]:
    where = f"{index.folder}: {index.key(shard, position)}.json"
    return read_json_field(read_fields(index, shard, position, ["json"])["json"], where)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_machine(device: str = "auto") -> MachineFacts:
    """This machine, with its GPUs unless `device` is cpu."""
    import torch

    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(number) for number in range(gpus)]
    smallest = min((gpu.total_memory / 2**30 for gpu in found), default=0.0)
    return MachineFacts(cores(), pages / 2**30, gpus, smallest, found[0].name if found else "")


def _sizes(listing: Listing) -> list[tuple[int, int]]:
    """(height, width) of some photographs; those that cannot be read are left to `prepare`, which names them."""
    step = max(1, len(listing.items) // SIZES_OF)
    found = [_size(item) for item in listing.items[::step]]
    return [size for size in found if size is not None] or [(1, 1)]


def _size(item: Item) -> tuple[int, int] | None:
    try:
        return stored_size(item.image, item.name)
    except DataError:
        return None
