"""kill -9 and signals at every kind of moment: the resumed run ends with the bits of one that nothing disturbed.

Real processes, killed at a step or a file, not after some seconds. Dropout, augmentation, momentum and BatchNorm's
statistics are on; `metrics.jsonl` shows that the later attempts went on instead of starting anew.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest
from helpers.launching import Run, Start, make_shared, runs_in

TRAIN = {
    "holdout": 0.0, "head_dropout": 0.3, "backbone": {"norm": "local"},
    "optim": {"duration": "6 steps", "save_every": "2 steps"},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """run(name, **settings) -> a run on shards that all share; loaders are processes of their own."""
    return runs_in(make_shared(tmp_path_factory.mktemp("shared"), train=TRAIN, hardware={"loader_workers": 1}))


@pytest.fixture(scope="module")
def undisturbed(run: Callable[..., Run]) -> Callable[[int], Run]:
    """undisturbed(ranks) -> a run from start to end, made once."""

    def find(ranks: int) -> Run:
        found = run(f"undisturbed-{ranks}")
        if not found.train.is_dir():
            assert found(start(ranks)) == 0, found.log
        return found

    return find


def start(ranks: int, **options) -> Start:
    return Start("single_gpu" if ranks == 1 else "torchrun_local", ranks, **options)


def check_same(found: Run, reference: Run) -> None:
    """The weights bit for bit, and every loss on the way as often as it was computed."""
    assert found.weights() == reference.weights()
    wanted = reference.losses()
    assert list(wanted) == [1, 2, 3, 4, 5, 6]
    assert {line["step"]: line["loss"] for line in found.lines()} == wanted
    assert all(line["loss"] == wanted[line["step"]] for line in found.lines())
    assert not list((found.train / "checkpoints").glob("*.tmp"))


def test_killed_and_resumed_equals_undisturbed(run: Callable[..., Run], undisturbed: Callable[[int], Run]) -> None:
    found = run("killed")
    assert found(start(1, hooks=[{"in-step:5:rank0": "kill"}])) == -signal.SIGKILL
    before = found.last()
    assert before in ("step-00000002", "step-00000004")  # written in the background, so the kill may be faster
    assert found(start(1)) == 0, found.log
    assert min(found.losses(1)) == int(before[5:]) + 1
    check_same(found, undisturbed(1))


@pytest.mark.slow
def test_killed_again_and_again(run: Callable[..., Run], undisturbed: Callable[[int], Run]) -> None:
    """Before anything is saved, between two checkpoints, around the rename of one; and the step each attempt begins at:
    a folder that LAST does not name yet counts."""
    found, began = run("again"), []
    points = [
        "in-step:1:rank0",
        "before-publish:step-00000002",
        "after-publish:step-00000002",
        "after-step:3:rank0",
        "before-publish:step-00000004",
        "after-publish:step-00000004",
        "after-publish:step-00000006",
    ]
    for point in [*points, None]:
        hooks = [{point: "kill"}] if point else []
        assert found(start(1, hooks=hooks)) == (-signal.SIGKILL if point else 0), (point, found.log)
        began.append(re.search(r"6 steps of 4.* on cpu(?:, from step (\d))?\n", found.log).group(1))
    assert began == [None, None, None, "2", "2", "2", "4", "6"]
    check_same(found, undisturbed(1))


KILLS = [
    "in-step:1:rank1",
    "in-step:4:rank1",
    "before-publish:step-00000004",
    "after-publish:step-00000004",
    "in-step:5:rank0",
    "after-step:5:rank1",
]


@pytest.mark.slow
def test_torchrun_restarts_after_every_kill_of_one_rank(
    run: Callable[..., Run], undisturbed: Callable[[int], Run]
) -> None:
    """Six times of six: one launch, in which a restarted group that hangs or reads old addresses would end the run."""
    found = run("restarted")
    hooks = [{point: "kill"} for point in KILLS]
    assert found(start(2, hooks=hooks, restarts=len(KILLS), timeout=240)) == 0, found.log
    assert found.log.count("6 steps of 4 = 2 rank(s)") == 1 + len(KILLS)
    assert found.log.count(", from step 2") >= 2  # after the kills around step 4's rename
    check_same(found, undisturbed(2))


@pytest.mark.slow
def test_signals_to_ranks_and_agent_and_a_kill_of_all(
    run: Callable[..., Run], undisturbed: Callable[[int], Run]
) -> None:
    found = run("signalled")

    def stopped(last: str, hooks: dict[str, str], **settings: object) -> None:
        assert found(start(2, hooks=[hooks]), **settings) == 1, found.log
        assert "interrupted; run the same command to go on" in found.log
        assert "]: Traceback" not in found.log  # torchrun's own has no [rankN]
        record = found.exit()
        assert (record["code"], record["message"]) == (130, "interrupted")
        assert found.last() == last

    # a checkpoint takes 3 s, the launcher would give 2: there is no time to save
    late = {"before-publish:step-00000002": "sleep: 3", "after-step:3:rank0": "sleep: 4"}
    stopped("step-00000002", {**late, "after-step:3:rank1": "signal: SIGTERM"}, **{"hardware.shutdown_seconds": 2})
    assert found.log.count("a checkpoint takes up to 3 s, hardware.shutdown_seconds is 2: the last one stays") == 1
    # one rank is asked, and both agree; then the agent, which asks both, the loaders too
    stopped("step-00000003", {"after-step:3:rank1": "signal: SIGUSR1"})
    stopped("step-00000004", {"after-step:4:rank0": "signal agent: SIGTERM"})
    stopped("step-00000005", {"after-step:5:rank1": "signal agent: SIGUSR1"})
    assert found(start(2, hooks=[{"in-step:6:rank0": "kill all"}])) == -signal.SIGKILL, found.log
    assert found.last() == "step-00000005"
    assert found(start(2)) == 0, found.log
    assert [min(found.losses(attempt)) for attempt in range(5)] == [1, 3, 4, 5, 6]
    check_same(found, undisturbed(2))


@pytest.mark.slow
def test_signals_to_a_single_process(run: Callable[..., Run], undisturbed: Callable[[int], Run]) -> None:
    found = run("one")
    for step, name in enumerate(("SIGINT", "SIGTERM", "SIGUSR1"), 2):
        assert found(start(1, hooks=[{f"after-step:{step}:rank0": f"signal: {name}"}])) == 130, found.log
        assert found.last() == f"step-{step:08d}"
        assert found.exit()["code"] == 130
    assert found(start(1)) == 0, found.log
    check_same(found, undisturbed(1))
