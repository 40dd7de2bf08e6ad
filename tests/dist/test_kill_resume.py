"""kill -9 and SIGTERM at every kind of moment: the resumed run ends with the bits of one that nothing disturbed.

Real processes, killed at a step or a file, not after some seconds. Dropout and momentum are on, so that optimizer state
and random numbers count; `metrics.jsonl` shows that the second attempt went on instead of starting anew.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import merged, tiny_tree
from dist_run import last_weights, make_shards
from safetensors.torch import save

from distwsss.config.load import check_config

TRAIN = {"holdout": 0.0, "head_dropout": 0.3, "optim": {"duration": "6 steps", "save_every": "2 steps"}}

# `train` in which SIGTERM comes from inside, after a step of a rank: to itself, or to torchrun, which sends it to all
SCRIPT = """
import os, signal, sys, time
from distwsss.cli import main
from distwsss.train import steps

def terminate(name):
    if name == os.environ["TERMINATE_AT"]:
        os.kill(os.getppid() if os.environ.get("TERMINATE_PARENT") else os.getpid(), signal.SIGTERM)
        time.sleep(3 if os.environ.get("TERMINATE_PARENT") else 0)

steps.fault_point = terminate
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and the shards to train on."""
    folder = tmp_path_factory.mktemp("shared")
    tree = merged(tiny_tree(folder), {"train": TRAIN})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    make_shards(check_config(tree))
    return folder


@pytest.fixture
def train(distwsss, shared: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """train(run, workers=0, **options of distwsss): `distwsss train` on the shared shards into the folder `run`."""

    def start(run: Path, workers: int = 0, **options) -> subprocess.CompletedProcess[str]:
        overrides = ["--set", f"paths.run={run}", "--set", f"hardware.loader_workers={workers}"]
        return distwsss("train", "--config", shared / "tiny.yaml", *overrides, **options)

    return start


@pytest.fixture
def undisturbed(train, shared: Path) -> Callable[[int], Path]:
    """undisturbed(ranks) -> the folder of a run from start to end, made once."""

    def run(ranks: int) -> Path:
        folder = shared / f"undisturbed-{ranks}"
        if not folder.is_dir():
            done = train(folder, ranks=ranks)
            assert done.returncode == 0, done.stderr
        return folder

    return run


def losses(run: Path, attempt: int) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "train/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["attempt"] == attempt}


def check_same(run: Path, reference: Path, first: int) -> None:
    """`run` was resumed at step `first` and ended as `reference`: weights bit for bit, and every loss on the way."""
    assert save(last_weights(run)) == save(last_weights(reference))
    again, wanted = losses(run, 1), losses(reference, 0)
    assert list(again) == list(range(first, 7))
    before = losses(run, 0)
    assert before == {step: wanted[step] for step in before}
    assert again == {step: wanted[step] for step in again}
    assert not list((run / "train/checkpoints").glob("*.tmp"))


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("ranks", "fault", "last", "workers"),
    [
        (1, "after-step:3:rank0", 2, 0),
        pytest.param(1, "after-step:5:rank0", 4, 2, marks=slow),  # the loader's processes must not keep the lock
        pytest.param(1, "after-step:1:rank0", None, 0, marks=slow),
        pytest.param(1, "before-publish:step-00000004", 2, 0, marks=slow),
        pytest.param(1, "after-publish:step-00000004", 2, 0, marks=slow),
        pytest.param(1, "after-publish:step-00000006", 4, 0, marks=slow),
        pytest.param(2, "after-step:3:rank1", 2, 0, marks=slow),
        pytest.param(2, "after-step:3:rank0", 2, 0, marks=slow),
        pytest.param(2, "before-publish:step-00000004", 2, 0, marks=slow),
    ],
)
def test_killed_and_resumed_equals_undisturbed(
    train, undisturbed, tmp_path: Path, ranks: int, fault: str, last: int | None, workers: int
) -> None:
    """`last`: the step of the checkpoint that LAST names after the kill, or where checkpoints are written in the
    background and the kill came soon after, of the one before."""
    killed = train(tmp_path / "run", workers, ranks=ranks, fault=fault)
    assert killed.returncode == (-signal.SIGKILL if ranks == 1 else 1), killed.stderr
    pointer = tmp_path / "run/train/checkpoints/LAST"
    found = int(pointer.read_text().strip().removeprefix("step-")) if pointer.is_file() else None
    assert found == last or (fault.startswith("after-step") and found == ((last or 0) - 2 or None))
    resumed = train(tmp_path / "run", workers, ranks=ranks)
    assert resumed.returncode == 0, resumed.stderr
    if found:
        check_same(tmp_path / "run", undisturbed(ranks), first=found + 1)
    else:  # nothing was saved: it starts anew
        assert save(last_weights(tmp_path / "run")) == save(last_weights(undisturbed(ranks)))


@slow
@pytest.mark.parametrize(("ranks", "parent"), [(1, False), (2, False), (2, True)])
def test_sigterm_saves_and_resumes(shared: Path, train, undisturbed, tmp_path: Path, ranks: int, parent: bool) -> None:
    """One process; one rank of two, which both agree to stop for; and torchrun itself."""
    (tmp_path / "train.py").write_text(SCRIPT)
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
        launch += ["--rdzv-endpoint=localhost:0"]
    verb = ["train", "--config", shared / "tiny.yaml", "--set", f"paths.run={tmp_path}/run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERMINATE_AT": f"after-step:3:rank{ranks - 1}"}
    environment["TERMINATE_PARENT"] = "1" if parent else ""
    command = [*launch, tmp_path / "train.py", *verb]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (130 if ranks == 1 else 1), done.stderr
    assert "interrupted; run the same command to go on" in done.stderr
    assert json.loads((tmp_path / "run/exit.json").read_text())["code"] == 130
    assert (tmp_path / "run/train/checkpoints/LAST").read_text() == "step-00000003\n"
    resumed = train(tmp_path / "run", ranks=ranks)
    assert resumed.returncode == 0, resumed.stderr
    check_same(tmp_path / "run", undisturbed(ranks), first=4)
