"""What one rank meets ends all of them, with one message that names it; what was saved stays.

A loss that is not finite, a damaged shard, an exception, a rank that hangs, a disk without room.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.launching import Run, Start, make_shared, runs_in
from helpers.paths import only
from safetensors.torch import load_file

from distwsss.runtime.artifacts import manifest_problems

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TRAIN = {
    "holdout": 0.0,
    "head_dropout": 0.3,
    "optim": {
        "duration": "6 steps",
        "save_every": "1 steps",
        "optimizer": "adamw",
        "lr": 0.001,
        "keep_optimizer": True,
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """run(name, **settings) -> a run on shards that all share."""
    return runs_in(make_shared(tmp_path_factory.mktemp("shared"), train=TRAIN, hardware={"loader_workers": 1}))


@pytest.fixture(scope="module")
def undisturbed(run: Callable[..., Run]) -> Run:
    found = run("undisturbed")
    assert found(Start()) == 0, found.log
    return found


def check_completes(found: Run, undisturbed: Run) -> None:
    assert found(Start()) == 0, found.log
    assert found.weights() == undisturbed.weights()


@pytest.mark.parametrize("zero", [None, "zero2"])
def test_a_loss_that_is_not_finite_on_one_rank(run: Callable[..., Run], undisturbed: Run, zero: str | None) -> None:
    """No rank steps: both end with the weights of the last checkpoint."""
    found = run(f"nan-{zero}")
    settings = {"hardware.deepspeed": zero} if zero else {}
    assert found(Start(hooks=[{"after-step:2:rank1": "next: nan"}]), **settings) == 1, found.log
    found_exit = found.exit()
    assert found_exit["code"] == 1
    assert "train: the loss is not finite at step 3; images of the ranks concerned: " in found_exit["message"]
    named = found_exit["message"].partition("concerned: ")[2].partition(";")[0].split(", ")
    mine, other = ([key for key, _ in part] for part in (undisturbed.order()[2][2:], undisturbed.order()[2][:2]))
    assert named == mine
    assert not set(named) & set(other)
    assert found.log.count(found_exit["message"]) == 2  # each rank says so
    assert "]: Traceback" not in found.log  # torchrun's own has no [rankN]
    assert found.last() == "step-00000002"
    last = found.train / "checkpoints/step-00000002"
    assert not manifest_problems(last)
    saved = load_file(last / "model.safetensors")
    for rank in range(2):
        kept = load_file(found.record / f"weights-rank{rank}.safetensors")
        assert kept.keys() == saved.keys()
        assert all(kept[name].equal(value) for name, value in saved.items())
    if zero is None:
        check_completes(found, undisturbed)


def test_a_damaged_shard_of_one_rank(run: Callable[..., Run], tmp_path: Path) -> None:
    """Rank 1 has shards of its own, as on another machine's disk; one is cut after they were verified."""
    found = run("shard", **{"train.optim.duration": "40 steps"})
    shutil.copytree(found.folder / "shards", tmp_path / "shards")
    damaged = only(tmp_path / "shards/pseudo") / "pseudo-00001.tar"
    hooks = [{"after-step:1:rank1": f"truncate: {damaged}"}]
    assert found(Start(hooks=hooks, rank1=["--set", f"paths.shards={tmp_path}/shards"])) == 1, found.log
    found_exit = found.exit()
    assert found_exit["code"] == 3
    assert str(damaged) in found_exit["message"]
    assert " bytes" in found_exit["message"]  # found and expected
    assert found.log.count(found_exit["message"]) == 2
    assert "]: Traceback" not in found.log  # torchrun's own has no [rankN]
    assert not manifest_problems(found.train / f"checkpoints/{found.last()}")


def test_an_exception_in_one_ranks_forward(run: Callable[..., Run], undisturbed: Run) -> None:
    """The others are in a collective that it does not reach; they say whose fault it is, long before their timeout."""
    found = run("raised", **{"hardware.timeout_seconds": 600})
    assert found(Start(hooks=[{"after-step:2:rank1": "next: raise"}])) == 1, found.log
    message = "train: another rank ended the run: rank 1: ValueError: no forward today"
    assert (found.exit()["code"], found.exit()["message"]) == (1, message)
    assert f"distwsss train: {message}\n" in found.log
    check_completes(found, undisturbed)


def test_an_exception_in_a_single_process_ends_its_loaders(run: Callable[..., Run]) -> None:
    """They do not hear SIGTERM, with which Python would end them, and wait."""
    found = run("alone")
    assert found(Start("single_gpu", 1, hooks=[{"after-step:2:rank0": "next: raise"}])) == 1, found.log
    assert "ValueError: no forward today" in found.log


def test_hung_ranks_leave_stacks_and_the_restarted_run_completes(run: Callable[..., Run], undisturbed: Run) -> None:
    """Rank 1 is stopped in the first attempt and sleeps in the second: whoever runs writes where it is, and torchrun
    starts all again."""
    found = run("hung", **{"hardware.timeout_seconds": 8})
    hooks = [{"in-step:3:rank1": "stop"}, {"in-step:5:rank1": "sleep: 16"}]
    assert found(Start(hooks=hooks, restarts=2, shutdown=3, timeout=150)) == 0, found.log
    assert found.log.count("the other ranks do not answer (") == 3  # once rank 1 is awake it says so too
    stacks = {path.name: path.read_text() for path in found.record.glob("stacks-*")}
    assert sorted(stacks) == ["stacks-0-rank0.txt", "stacks-0-rank1.txt", "stacks-1-rank0.txt", "stacks-1-rank1.txt"]
    assert stacks["stacks-0-rank0.txt"].startswith("rank 0, step 3: no end after 7 s\n")
    assert "in _check_finite" in stacks["stacks-0-rank0.txt"]
    assert stacks["stacks-0-rank1.txt"].splitlines() == ["rank 1, step 3: no end after 7 s"]  # stopped, it writes none
    assert stacks["stacks-1-rank0.txt"].startswith("rank 0, step 5: no end after 7 s\n")
    assert stacks["stacks-1-rank1.txt"].startswith("rank 1, step 5: no end after 7 s\n")
    assert "hooked_rank.py" in stacks["stacks-1-rank1.txt"]
    assert not list(found.train.glob("stacks-*"))  # nothing hung in the last attempt
    assert found.weights() == undisturbed.weights()


@pytest.mark.parametrize("zero", [None, "zero3"])
def test_no_room_for_the_checkpoints_ends_all_ranks_before_the_first_step(
    run: Callable[..., Run], zero: str | None
) -> None:
    """Rank 0 alone looks, while the others wait for it in a collective."""
    settings = {"hardware.deepspeed": zero} if zero else {}
    found = run(f"room-{zero}", **{"train.optim.keep_last": 10**9, "hardware.timeout_seconds": 600, **settings})
    assert found(Start()) == 1, found.log
    message = found.exit()["message"]
    assert found.exit()["code"] == 1
    assert message.startswith("the checkpoints of a training run: needs about "), message
    assert "]: Traceback" not in found.log  # torchrun's own has no [rankN]
    assert f"another rank ended the run: rank 0: {message}" in found.log
    assert not list(found.train.glob("checkpoints/*"))


def test_a_disk_without_room_for_a_checkpoint(run: Callable[..., Run], undisturbed: Run) -> None:
    """Files may grow no further than some bytes, first fewer than the optimizer's states, then than the weights."""
    sizes = {path.name: path.stat().st_size for path in (undisturbed.train / "checkpoints/step-00000006").iterdir()}
    found = run("full")
    for step, name in ((2, "optimizer.pt"), (4, "model.safetensors")):
        hooks = {f"in-step:{step + 1}:rank0": f"sleep: 2; largest file: {sizes[name] - 1}"}
        assert found(Start(hooks=[hooks])) == 1, found.log
        message = found.exit()["message"]
        assert f"checkpoints/step-{step + 1:08d}: cannot be written (" in message
        assert message.endswith("; make room and run the same command again")
        assert found.log.count(message) == 2
        assert "]: Traceback" not in found.log  # torchrun's own has no [rankN]
        assert found.last() == f"step-{step:08d}"
        assert not manifest_problems(found.train / f"checkpoints/step-{step:08d}")
        assert not list((found.train / "checkpoints").glob("*.tmp"))
    check_completes(found, undisturbed)
