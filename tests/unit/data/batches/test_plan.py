"""The plan: every sample once per epoch, whatever the world size, and batches that cross epochs."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distwsss.data.batches.plan import Sample, plan, rank_slice
from distwsss.data.shards.format import ShardRecord
from distwsss.data.shards.index import Selection, ShardIndex
from distwsss.errors import DataError
from distwsss.runtime.seeding import derive_seed

shard_sizes = st.lists(st.integers(0, 7), min_size=1, max_size=12).filter(sum)


def make_index(sizes: list[int]) -> ShardIndex:
    shards = [
        ShardRecord(f"images-{s:05d}.tar", 0, "0" * 64, [f"k{s}_{i}" for i in range(size)], [{}] * size)
        for s, size in enumerate(sizes)
    ]
    return ShardIndex(Path("nowhere"), "images", ["background"], {}, "", shards, {})


def shuffled(items: list, *parts: int | str) -> list:
    """Sorted by the raw Philox stream: the rule of runtime.seeding, written out."""
    raw = np.random.Philox(key=derive_seed(*parts)).random_raw(len(items))
    return [items[place] for place in sorted(range(len(items)), key=lambda place: (int(raw[place]), place))]


def brute_force_epoch(selection: Selection, seed: int, epoch: int, window: int) -> list[Sample]:
    shards = shuffled([s for s, chosen in enumerate(selection.positions) if chosen], seed, "shards", epoch)
    samples = []
    for start in range(0, len(shards), window):
        group = [Sample(epoch, s, i) for s in shards[start : start + window] for i in selection.positions[s]]
        samples += shuffled(group, seed, "samples", epoch, start)
    return samples


@settings(max_examples=60, deadline=None)
@given(shard_sizes, st.integers(0, 5), st.integers(1, 30), st.integers(1, 9))
def test_steps_are_slices_of_the_concatenated_epochs(sizes, seed, batch, window):
    selection = make_index(sizes).all()
    epochs = [sample for epoch in range(4) for sample in brute_force_epoch(selection, seed, epoch, window)]
    for step in range(len(epochs) // batch):
        assert plan(selection, seed, step, batch, window) == epochs[step * batch : (step + 1) * batch]


@settings(max_examples=40, deadline=None)
@given(shard_sizes, st.integers(0, 5), st.integers(1, 9))
def test_each_sample_once_per_epoch(sizes, seed, batch):
    index = make_index(sizes)
    everything = {(s, i) for s, size in enumerate(sizes) for i in range(size)}
    steps = -(-3 * len(index) // batch)
    drawn = [sample for step in range(steps) for sample in plan(index.all(), seed, step, batch)]
    for epoch in range(3):
        found = Counter((s.shard, s.position) for s in drawn if s.epoch == epoch)
        assert found == Counter(everything)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 40))
def test_slices_of_all_ranks_are_the_global_batch(world, accumulation, size):
    batch = list(range(size))
    slices = [rank_slice(batch, r, world, j, accumulation) for r in range(world) for j in range(accumulation)]
    assert [item for part in slices for item in part] == batch
    lengths = [len(part) for part in slices]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_sample_once_per_epoch_for_any_world_size(world, accumulation):
    selection = make_index([5, 3, 0, 7, 2]).all()
    drawn: Counter[Sample] = Counter()
    for step in range(17):  # 17 steps of 8 = 8 epochs of 17
        batch = plan(selection, 3, step, 8)
        for rank in range(world):
            for micro in range(accumulation):
                drawn.update(rank_slice(batch, rank, world, micro, accumulation))
    assert set(drawn.values()) == {1}
    assert len(drawn) == 8 * 17
    assert {sample.epoch for sample in drawn} == set(range(8))


def test_a_batch_crosses_epochs():
    batch = plan(make_index([3, 2]).all(), 0, 1, 4)
    assert [sample.epoch for sample in batch] == [0, 1, 1, 1]


def test_a_batch_may_exceed_an_epoch():
    batch = plan(make_index([3, 2]).all(), 0, 0, 12)
    assert [sample.epoch for sample in batch] == [0] * 5 + [1] * 5 + [2] * 2


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 8))
def test_window_bounds_the_open_shards(shards, size, window):
    """Reads stay near-sequential: the k-th group of `window` shards is done before the next begins."""
    selection = make_index([size] * shards).all()
    order = [sample.shard for sample in plan(selection, 7, 0, shards * size, window)]
    for start in range(0, shards, window):
        group = order[start * size : (start + window) * size]
        assert len(set(group)) == min(window, shards - start)


def test_samples_are_mixed_within_a_window():
    first = plan(make_index([16] * 8).all(), 0, 0, 128)
    assert len({sample.shard for sample in first[:16]}) > 4


def test_the_order_differs_by_epoch_and_seed():
    selection = make_index([16] * 8).all()
    first, second = plan(selection, 0, 0, 128), plan(selection, 0, 1, 128)
    assert [s[1:] for s in first] != [s[1:] for s in second]
    assert first != plan(selection, 1, 0, 128)


def test_order_is_uniform_enough():
    """Over many epochs each of 6 samples comes first about as often (chi-squared, 5 degrees: 20.5 is p = 0.001)."""
    selection = make_index([2, 2, 2]).all()
    counts = Counter(plan(selection, 5, step, 6)[0][1:] for step in range(600))
    assert sum((counts[s, i] - 100) ** 2 / 100 for s in range(3) for i in range(2)) < 20.5


CHOSEN = {"k0_1", "k0_3", "k3_0"}


def test_a_selection_holds_what_was_chosen():
    index = make_index([4, 4, 4, 4])
    selection = index.select(CHOSEN.__contains__)
    assert len(selection) == 3
    assert selection.positions == [[1, 3], [], [], [0]]
    assert set(selection.keys()) == CHOSEN
    assert len(index.all()) == len(index) == 16


def test_only_what_was_chosen_is_drawn():
    selection = make_index([4, 4, 4, 4]).select(CHOSEN.__contains__)
    drawn = plan(selection, 0, 0, 6, window=1)
    assert Counter((s.shard, s.position) for s in drawn) == {(0, 1): 2, (0, 3): 2, (3, 0): 2}


def test_the_plan_depends_on_positions_only():
    """Two loads of one index, or another process, give the same plan."""
    sizes = [5, 6, 7]
    assert plan(make_index(sizes).all(), 2, 3, 4) == plan(make_index(sizes).all(), 2, 3, 4)


def test_the_plan_does_not_change_between_releases():
    selection = make_index([2, 3, 1]).all()
    assert [tuple(sample) for sample in plan(selection, 0, 0, 7, 2)] == GOLDEN


def test_empty_selection_is_an_error():
    with pytest.raises(DataError, match="no sample"):
        plan(make_index([3]).select(lambda key: False), 0, 0, 1)


GOLDEN = [(0, 2, 0), (0, 1, 2), (0, 1, 0), (0, 1, 1), (0, 0, 0), (0, 0, 1), (1, 1, 2)]
