"""Real loader processes: for every world size and worker count the ranks together read the plan, in its order."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distwsss.data.batches.loader import Batch, MicroBatches, share_batch
from distwsss.data.batches.plan import Sample, plan
from distwsss.data.batches.workers import make_loader
from distwsss.data.shards.format import ShardRecord
from distwsss.data.shards.index import Selection, ShardIndex

SIZES = [5, 3, 0, 7, 2]  # samples of each shard
TOTAL = sum(SIZES)
SEED = 3

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than CPUs


def make_selection() -> Selection:
    shards = [
        ShardRecord(f"pseudo-{s:05d}.tar", 0, "0" * 64, [f"k{s}_{i}" for i in range(size)], [{}] * size)
        for s, size in enumerate(SIZES)
    ]
    return ShardIndex(Path("nowhere"), "pseudo", ["background"], {}, "", shards, {}).all()


def load(sample: Sample, key: str) -> dict[str, Tensor]:
    """No image and no targets: which sample this is, and which process read it."""
    assert key == f"k{sample.shard}_{sample.position}"
    return {"image": torch.tensor(sample), "targets": torch.tensor(os.getpid())}


def loaders(world: int, workers: int, global_batch: int, micro_batch: int, steps: int, start: int = 0) -> list:
    """One loader a rank."""
    splits = [share_batch(global_batch, micro_batch, rank, world) for rank in range(world)]
    selection = make_selection()
    return [
        make_loader(MicroBatches(selection, load, SEED, global_batch, split, steps), start, workers) for split in splits
    ]


def read_steps(ranks: list[list[Batch]], accumulation: int) -> list[list[Sample]]:
    """The samples of each step, rank by rank; placeholders of empty slices left out."""
    assert len({len(batches) for batches in ranks}) == 1  # no rank waits for another one's step
    steps = []
    for first in range(0, len(ranks[0]), accumulation):
        parts = [batch for batches in ranks for batch in batches[first : first + accumulation] if not batch.empty]
        steps.append([Sample(*row) for part in parts for row in part.image.tolist()])
    return steps


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_sample_of_each_epoch_once_in_the_plans_order(world: int, workers: int) -> None:
    """17 steps of 5 are 5 epochs of 17. On 4 ranks x 2 micro-batches of 1 three of a step's eight slices are empty."""
    accumulation = share_batch(5, 1, 0, world).accumulation
    ranks = [list(loader) for loader in loaders(world, workers, 5, 1, TOTAL)]
    found = read_steps(ranks, accumulation)
    everything = {(epoch, s, i) for epoch in range(5) for s, size in enumerate(SIZES) for i in range(size)}
    assert Counter(tuple(sample) for step in found for sample in step) == Counter(everything)
    assert found == [plan(make_selection(), SEED, step, 5) for step in range(TOTAL)]
    empty = [batch.empty for batches in ranks for batch in batches]
    assert sum(empty) == TOTAL * (world * accumulation - 5)
    for batches in ranks:
        assert {len(batch.image) for batch in batches} == {1}
        processes = {int(process) for batch in batches for process in batch.targets}
        assert len(processes) == max(1, workers)
        assert (os.getpid() in processes) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_resumed_from_a_step_goes_on_where_it_stopped(world: int, workers: int) -> None:
    """Stopped after 4 of 17 steps of 7, inside epoch 1, and resumed on another world size with other workers."""
    before, after = share_batch(7, 2, 0, world).accumulation, share_batch(7, 2, 0, 5 - world).accumulation
    ranks = [list(islice(loader, 4 * before)) for loader in loaders(world, workers, 7, 2, TOTAL)]
    resumed = [list(loader) for loader in loaders(5 - world, 3 - workers, 7, 2, TOTAL, start=4)]
    found = read_steps(ranks, before) + read_steps(resumed, after)
    assert found == [plan(make_selection(), SEED, step, 7) for step in range(TOTAL)]
    assert found[4][0].epoch == 1
    assert set(Counter(sample for step in found for sample in step).values()) == {1}


def test_no_more_workers_than_batches() -> None:
    (loader,) = loaders(1, 3, 4, 4, steps=6, start=4)
    assert loader.num_workers == 2
    assert read_steps([list(loader)], 1) == [plan(make_selection(), SEED, step, 4) for step in (4, 5)]


def test_of_a_finished_training_nothing_is_read() -> None:
    (finished,) = loaders(1, 3, 4, 4, steps=6, start=6)
    assert list(finished) == []
