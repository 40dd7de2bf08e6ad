"""Label maps against truth: shards in, counts out; the arithmetic is `maths.miou`'s. Called by `seeds.select`."""

from __future__ import annotations

from functools import partial

from distwsss.config import Config
from distwsss.data.images import decode_mask, resize_labels
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.data.sources.listing import plain_name, stem_of
from distwsss.errors import DataError, report_problems
from distwsss.maths.miou import ConfusionMatrix
from distwsss.runtime.pool import spread
from distwsss.runtime.storage import Folder


def seed_matrices(images: ShardIndex, seeds: ShardIndex, keys: set[str], workers: int) -> dict[str, ConfusionMatrix]:
    """Confusion matrix of every map of the seed shards, by name, over the masks of the images `keys`."""
    images.check_same_images(seeds)
    total = {name: ConfusionMatrix(len(images.classes)) for name in seeds.extra["seeds"]}
    places = images.select(keys.__contains__).positions
    tasks = [(shard, tuple(positions)) for shard, positions in enumerate(places) if positions]
    for _, found in spread(partial(_shard_counts, images.folder, seeds.folder), tasks, workers):
        for name, matrix in zip(total, found, strict=True):
            total[name].merge(matrix)
    return total


def _shard_counts(of_images: Folder, of_seeds: Folder, task: tuple[int, tuple[int, ...]]) -> list[ConfusionMatrix]:
    images, seeds = load_index(of_images, "images"), load_index(of_seeds, "seeds")
    shard, positions = task
    fields = [f"s{k}.png" for k in range(len(seeds.extra["seeds"]))]
    matrices = [ConfusionMatrix(len(images.classes)) for _ in fields]
    for position in positions:
        truth, maps = read_truth(images, shard, position), read_fields(seeds, shard, position, fields)
        if truth is None:
            continue
        for matrix, field in zip(matrices, fields, strict=True):
            labels = decode_mask(maps[field], f"{images.key(shard, position)}.{field}")
            matrix.update(resize_labels(labels, (truth.shape[0], truth.shape[1])), truth)
    return matrices


def tuning_keys(config: Config, index: ShardIndex) -> set[str]:
    """The shard keys of `data.tuning_ids`, ids with or without suffix. Raises DataError for ids not in `index`."""
    known = set(index.all().keys())
    keys = {name: key_from_name(stem_of(plain_name(name))) for name in config.data.tuning_ids}
    problems = [f"{name!r} is not the id of an image there" for name, key in keys.items() if key not in known]
    if problems:
        raise DataError(report_problems(f"`data.tuning_ids`: not all in {index.folder}; correct them", problems))
    return set(keys.values())
