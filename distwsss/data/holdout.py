"""Which train photographs are kept out of a training, the same in every run: by a hash of the key; and those on which
values were chosen. Called by `train`, `evaluate` (to score them) and `seeds`."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from distwsss.config import Config
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.index import ShardIndex
from distwsss.data.shards.reader import read_fields, read_json_field
from distwsss.data.sources.listing import plain_name, stem_of
from distwsss.errors import DataError, report_problems
from distwsss.runtime.seeding import derive_seed

MEASURED_FROM = 100  # photographs: fewer are all trained on, and a tenth of them would measure nothing
LEFT = 4  # photographs of each class that a classifier keeps to learn from


def _in_order(index: ShardIndex) -> list[str]:
    return sorted(index.all().keys(), key=lambda key: derive_seed("holdout", key))


def held_out_keys(index: ShardIndex, share: float) -> set[str]:
    """The `share` of the images kept out of segmenter training."""
    return set(_in_order(index)[: round(share * len(index))])


def image_tags(index: ShardIndex) -> dict[str, list[int]]:
    """Key -> class ids of its image-level labels, in shard order."""

    def tags(place: tuple[int, int]) -> list[int]:
        found = read_json_field(read_fields(index, *place, ["json"])["json"], f"{index.key(*place)}.json")
        return found["labels"] or []

    with ThreadPoolExecutor(16) as pool:  # an object store answers each of them late
        return dict(zip(index.all().keys(), pool.map(tags, index.all().places()), strict=True))


def classifier_held_out_keys(index: ShardIndex, share: float) -> set[str]:
    """The `share` of the images kept out of classifier training; none of fewer than MEASURED_FROM.

    A photograph without which one of its classes would have fewer than LEFT to learn from stays: the next one goes.
    """
    if not share or len(index) < MEASURED_FROM:
        return set()
    kept_out: set[str] = set()
    tags = image_tags(index)
    left = Counter(label for labels in tags.values() for label in labels)
    for key in _in_order(index):
        if len(kept_out) == round(share * len(index)):
            break
        if all(left[label] > LEFT for label in tags[key]):
            kept_out.add(key)
            left.subtract(tags[key])
    return kept_out


def halves(keys: set[str]) -> tuple[set[str], set[str]]:
    """Two halves of `keys`, so that what is chosen on one is scored on the other."""
    order = sorted(keys, key=lambda key: derive_seed("halves", key))
    return set(order[: len(order) // 2]), set(order[len(order) // 2 :])


def some_keys(keys: set[str], count: int | None) -> set[str]:
    """`count` of `keys` (None: all), those of a smaller count among them."""
    return set(sorted(keys, key=lambda key: derive_seed("some", key))[:count])


def tuning_keys(config: Config, index: ShardIndex) -> set[str]:
    """The shard keys of `data.tuning_ids`, on which values were chosen; ids with or without suffix. Raises DataError
    for ids not in `index`."""
    known = set(index.all().keys())
    keys = {name: key_from_name(stem_of(plain_name(name))) for name in config.data.tuning_ids}
    problems = [f"{name!r} is not the id of an image there" for name, key in keys.items() if key not in known]
    if problems:
        raise DataError(report_problems(f"`data.tuning_ids`: not all in {index.folder}; correct them", problems))
    return set(keys.values())
