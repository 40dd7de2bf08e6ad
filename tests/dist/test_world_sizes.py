"""The same samples in the same order, and the same losses, for every number of ranks, engine and launcher.

What each rank reads is recorded where the loop takes its micro-batches, with a digest of the augmented image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.launching import Run, Start, make_shared, runs_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS, BATCH, IMAGES = 20, 10, 12
TOLERANCE = 1e-5
SHARED_MEMORY = Path("/dev/shm")
TRAIN = {
    "holdout": 0.0,
    "head_dropout": 0.0,
    "optim": {"duration": f"{STEPS} steps", "global_batch": BATCH, "lr": 0.001, "save_every": "3 steps"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """run(name, **settings) -> a run on shards that all share."""
    return runs_in(make_shared(tmp_path_factory.mktemp("shared"), train=TRAIN))


@pytest.fixture(scope="module")
def alone(run: Callable[..., Run]) -> Run:
    """The run of one process. Each image once an epoch, and new augmentation every time."""
    found = run("alone")
    assert found(Start("single_gpu", 1)) == 0, found.log
    steps = found.order()
    assert [len(step) for step in steps] == [BATCH] * STEPS
    samples = [sample for step in steps for sample in step]
    for first in range(0, len(samples) - IMAGES, IMAGES):
        assert len({key for key, _ in samples[first : first + IMAGES]}) == IMAGES
    assert len(set(samples)) == STEPS * BATCH
    assert list(found.losses()) == list(range(1, STEPS + 1))
    return found


def check_losses(found: Run, alone: Run, steps: int = STEPS) -> None:
    wanted = alone.losses()
    assert {line["step"] for line in found.lines()} == set(range(1, steps + 1))
    for line in found.lines():
        assert line["loss"] == pytest.approx(wanted[line["step"]], rel=TOLERANCE), (line["step"], line["attempt"])


@pytest.mark.parametrize(
    ("launcher", "ranks", "zero"),
    [
        ("torchrun_local", 2, None),
        ("torchrun_local", 3, None),
        ("torchrun_local", 4, None),
        ("torchrun_local", 1, "zero1"),
        ("torchrun_local", 4, "zero1"),
        ("torchrun_local", 1, "zero2"),
        ("torchrun_local", 2, "zero2"),
        ("torchrun_local", 3, "zero2"),
        ("torchrun_local", 2, "zero3"),
        ("torchrun_local", 3, "zero3"),
        ("accelerate", 2, None),
        ("accelerate", 3, "zero1"),
        ("accelerate", 4, "zero3"),
        ("deepspeed", 1, "zero3"),
        ("deepspeed", 2, "zero1"),
        ("deepspeed", 3, None),
        ("deepspeed", 4, "zero2"),
    ],
)
def test_order_and_losses_are_those_of_one_process(
    run: Callable[..., Run], alone: Run, launcher: str, ranks: int, zero: str | None
) -> None:
    found = run(f"{launcher}-{ranks}-{zero}", **({"hardware.deepspeed": zero} if zero else {}))
    before = set(SHARED_MEMORY.glob("deepspeed_*"))
    assert found(Start(launcher, ranks)) == 0, found.log
    assert set(SHARED_MEMORY.glob("deepspeed_*")) <= before
    assert f"= {ranks} rank(s) x 1 micro-batch(es)" in found.log
    assert found.order() == alone.order()
    check_losses(found, alone)


def test_resumed_at_other_world_sizes_and_by_other_engines(run: Callable[..., Run], alone: Run) -> None:
    """Killed in steps 7, 11 and 16: 2 ranks under DDP, then 3 under ZeRO-3, 2 under ZeRO-2, and at last one process."""
    found = run("moved")
    for ranks, step, zero in ((2, 7, None), (3, 11, "zero3"), (2, 16, "zero2")):
        settings = {"hardware.deepspeed": zero} if zero else {}
        hooks = {f"in-step:{step}:rank{ranks - 1}": "sleep: 2; kill"}  # rank 0 writes the last checkpoint meanwhile
        assert found(Start("torchrun_local", ranks, hooks=[hooks]), **settings) == 1, found.log
        assert f"{ranks} rank(s)" in found.log
    assert found(Start("single_gpu", 1)) == 0, found.log
    assert [min(found.losses(attempt)) for attempt in range(4)] == [1, 7, 10, 16]
    assert found.order() == alone.order()
    check_losses(found, alone)


def test_a_global_batch_of_ten_on_eight_ranks(run: Callable[..., Run], alone: Run) -> None:
    found = run("eight", **{"train.optim.duration": "1 steps"})
    assert found(Start("torchrun_local", 8, timeout=200)) == 0, found.log
    assert found.order() == alone.order()[:1]
    check_losses(found, alone, steps=1)
