"""Which samples a step trains on, as a pure function of (seed, step). Called by the training loop's data pipeline.

Epochs are concatenated: step s takes items [s B, (s + 1) B), so nothing is dropped or padded and neither world size
nor worker count changes the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np

from distwsss.data.shards.index import Selection
from distwsss.errors import DataError
from distwsss.runtime.seeding import permutation

Item = TypeVar("Item")


class Sample(NamedTuple):
    """A sample of a selection, and the epoch in which it is drawn."""

    epoch: int
    shard: int
    position: int


@lru_cache(maxsize=4)
def _epoch_order(selection: Selection, seed: int, window: int, epoch: int) -> np.ndarray:
    """int64[n,2] (shard, position): shards permuted, then samples shuffled inside each `window` of them, so that
    reads stay near-sequential. Shards without a selected sample take no place."""
    shards = [shard for shard, positions in enumerate(selection.positions) if positions]
    order = [shards[i] for i in permutation(len(shards), seed, "shards", epoch)]
    parts = []
    for start in range(0, len(order), window):
        samples = [(s, i) for s in order[start : start + window] for i in selection.positions[s]]
        parts.append(np.array(samples, dtype=np.int64)[permutation(len(samples), seed, "samples", epoch, start)])
    return np.concatenate(parts)


def plan(selection: Selection, seed: int, step: int, global_batch: int, window: int = 8) -> list[Sample]:
    """The `global_batch` samples of a step; each sample of the selection comes once per epoch.

    Raises DataError when the selection is empty.
    """
    total = len(selection)
    if total == 0:
        raise DataError(f"{selection.index.folder}: no sample is selected; a training needs at least one")
    samples = []
    for item in range(step * global_batch, (step + 1) * global_batch):
        epoch, place = divmod(item, total)
        shard, position = _epoch_order(selection, seed, window, epoch)[place]
        samples.append(Sample(epoch, int(shard), int(position)))
    return samples


def rank_slice(samples: Sequence[Item], rank: int, world: int, micro: int, accumulation: int) -> Sequence[Item]:
    """Micro-batch number `micro` of `rank`: contiguous; all slices together, rank by rank, are the global batch.

    Sizes differ by at most one over all ranks and micro-batches.
    """
    part, parts = rank * accumulation + micro, world * accumulation
    return samples[len(samples) * part // parts : len(samples) * (part + 1) // parts]
