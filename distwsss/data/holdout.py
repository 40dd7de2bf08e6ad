"""Which train photographs are kept out of a training, the same in every run: by a hash of the key. Called by
`train`, and by `evaluate` to score them."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from distwsss.data.shards.index import ShardIndex
from distwsss.data.shards.reader import read_fields, read_json_field
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
