"""Label maps scored against the true masks: shards in, counts of pixels out. Called by `evaluate` and `seeds`; the
arithmetic lies in `maths.miou`. Nothing here reaches a training label.

All figures come from two histograms over the labelled pixels (truth is not 255), counted shard by shard: truth x
prediction for every seed, votes x truth x prediction for the vote. Beside them `ImageCounts` keeps three numbers a
class of each image, of which the mIoU of any choice of images is made (`maths.bootstrap`).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distwsss.data.images import IGNORE, decode_mask, resize_labels
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.errors import DataError
from distwsss.maths.miou import class_counts
from distwsss.runtime.artifacts import write_bytes
from distwsss.runtime.storage import Folder

KEYS = "keys"  # in the file of `ImageCounts`; no column may be called so
AGGREGATE, CLEAN = "aggregate", "clean"  # columns beside the seeds' names


@dataclass(frozen=True)
class ImageCounts:
    """Of the images `keys`: column (`single`, `aggregate`, a seed's name, ...) -> uint32[I,3,K], hits, predicted and
    true pixels of each class (`maths.miou.class_counts`)."""

    keys: list[str]
    columns: dict[str, np.ndarray]


def write_image_counts(path: Path, counts: ImageCounts) -> None:
    """As a compressed .npz, atomically: `keys`, and an array for each column."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {KEYS: np.array(counts.keys, dtype=np.str_), **counts.columns}
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_image_counts(path: Path) -> ImageCounts:
    """What `write_image_counts` wrote; nothing is unpickled. Raises DataError for a file that it did not write."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        keys = [str(key) for key in found.pop(KEYS)]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: found no counts of images ({error}); delete it and score anew") from None
    wrong = [name for name, array in found.items() if array.shape[:2] != (len(keys), 3) or array.ndim != 3]
    if wrong:
        raise DataError(f"{path}: {', '.join(wrong)}: not of {len(keys)} images; delete it and score anew")
    return ImageCounts(keys, found)


@dataclass(frozen=True)
class CountTask:
    """Images of one shard, by position. `pseudo`, `seeds`: None where there are none or they do not matter."""

    images: Folder
    pseudo: Folder | None
    seeds: Folder | None
    shard: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Counts:
    """`seeds`: int64[m,K,K+1]; `votes`: int64[V+1,K,K+1], V seeds voting, None without pseudo-labels; the last column
    is "no label" (255). `each`: of every image, the seeds' names, `aggregate`, and `clean`: the pixels clean at the
    pseudo-labels' own threshold."""

    seeds: np.ndarray
    votes: np.ndarray | None
    each: ImageCounts


def count_tasks(
    images: ShardIndex, pseudo: ShardIndex | None, seeds: ShardIndex | None, keys: set[str]
) -> list[CountTask]:
    """A task for each shard with images among `keys`. Raises ShardError where shards do not hold the same images."""
    for other in (pseudo, seeds):
        if other is not None:
            images.check_same_images(other)
    folders = (pseudo.folder if pseudo else None, seeds.folder if seeds else None)
    chosen = images.select(keys.__contains__).positions
    return [CountTask(images.folder, *folders, shard, tuple(found)) for shard, found in enumerate(chosen) if found]


def shard_counts(task: CountTask) -> Counts:
    """The counts of one shard's images that have a mask; plain and picklable, like the other per-shard work."""
    images = load_index(task.images, "images")
    pseudo = load_index(task.pseudo, "pseudo") if task.pseudo else None
    seeds = load_index(task.seeds, "seeds") if task.seeds else None
    classes, names = len(images.classes), list(seeds.extra["seeds"]) if seeds else []
    per_seed = np.zeros((len(names), classes, classes + 1), np.int64)
    per_vote = np.zeros((len(pseudo.extra["seeds"]) + 1 if pseudo else 0, classes, classes + 1), np.int64)
    keys, each = [], []
    for position in task.positions:
        truth = read_truth(images, task.shard, position)
        if truth is None:
            continue
        matrices = []
        if seeds:
            matrices += list(of_seeds := _of_seeds(seeds, task.shard, position, truth, per_seed.shape))
            per_seed += of_seeds
        if pseudo:
            of_votes = _of_votes(pseudo, task.shard, position, truth, per_vote.shape)
            matrices += [of_votes.sum(axis=0), of_votes[own_threshold(pseudo) :].sum(axis=0)]
            per_vote += of_votes
        keys.append(images.key(task.shard, position))
        each.append([class_counts(matrix) for matrix in matrices])
    columns = [*names, *((AGGREGATE, CLEAN) if pseudo else ())]
    stacked = np.array(each, np.uint32).reshape(len(keys), len(columns), 3, classes)
    by_column = {name: stacked[:, number] for number, name in enumerate(columns)}
    return Counts(per_seed, per_vote if pseudo else None, ImageCounts(keys, by_column))


def own_threshold(pseudo: ShardIndex) -> int:
    """t of the pseudo-labels' clean mask; an index from before the seeds that vote could be selected has it among its
    parameters."""
    return int(pseudo.extra.get("t", pseudo.parameters["threshold"]))


def add_counts(parts: Sequence[Counts]) -> Counts:
    """Those of several shards as one. Raises ValueError without any."""
    if not parts:
        raise ValueError("no counts to add")
    votes: Any = None if parts[0].votes is None else sum(part.votes for part in parts if part.votes is not None)
    seeds: Any = sum(part.seeds for part in parts)
    keys = [key for part in parts for key in part.each.keys]
    columns = {name: np.concatenate([part.each.columns[name] for part in parts]) for name in parts[0].each.columns}
    return Counts(seeds, votes, ImageCounts(keys, columns))


def _of_seeds(seeds: ShardIndex, shard: int, position: int, truth: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """int64[m,K,K+1] of one image."""
    fields = [f"s{k}.png" for k in range(shape[0])]
    maps = read_fields(seeds, shard, position, fields)
    found = [
        histogram(truth, _at(truth, maps, field, seeds.key(shard, position)), None, 0, shape[1]) for field in fields
    ]
    return np.stack([one[0] for one in found])


def _of_votes(pseudo: ShardIndex, shard: int, position: int, truth: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """int64[V+1,K,K+1] of one image."""
    maps, key = read_fields(pseudo, shard, position, ["label.png", "votes.png"]), pseudo.key(shard, position)
    labels, votes = (_at(truth, maps, field, key) for field in ("label.png", "votes.png"))
    return histogram(truth, labels, votes, shape[0] - 1, shape[1])


def histogram(truth: np.ndarray, labels: np.ndarray, votes: np.ndarray | None, most: int, classes: int) -> np.ndarray:
    """int64[most+1,K,K+1] of votes (0 where None), truth and labels, uint8[H,W] each, over the labelled pixels."""
    known = truth != IGNORE
    columns = np.where(labels == IGNORE, classes, labels)[known].astype(np.int64)
    rows = truth[known].astype(np.int64)
    if votes is not None:
        rows += votes[known].astype(np.int64) * classes
    shape = (most + 1, classes, classes + 1)
    counts = np.bincount(rows * (classes + 1) + columns, minlength=int(np.prod(shape)))
    return counts.reshape(shape)


def _at(truth: np.ndarray, maps: dict[str, bytes], field: str, key: str) -> np.ndarray:
    """A map at the size of the truth, which is larger where the photograph was shrunk."""
    return resize_labels(decode_mask(maps[field], f"{key}.{field}"), (truth.shape[0], truth.shape[1]))
