"""Launchers with real processes: the same weights whoever starts the ranks, and signals."""

from __future__ import annotations
from helpers.paths import REPOSITORY

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.small import last_weights
from helpers.launching import make_shared
from safetensors.torch import save

pytestmark = pytest.mark.slow
TRAIN = {"holdout": 0.0, "head_dropout": 0.3, "optim": {"duration": "200 steps", "save_every": "20 steps"}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and the shards to train on."""
    return make_shared(tmp_path_factory.mktemp("shared"), train=TRAIN)


@pytest.fixture
def launch(shared: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """launch(launcher, run, **variables) -> the launcher's process, in a group of its own, output in RUN.log."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, run: Path, **variables: str) -> subprocess.Popen[str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "NPROC": "2", **variables}
        command = [f"launchers/{name}", "train", "--config", shared / "tiny.yaml", "--set", f"paths.run={run}"]
        with run.with_suffix(".log").open("a") as log:
            started.append(
                subprocess.Popen(
                    command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
                )
            )
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def undisturbed(launch: Callable[..., subprocess.Popen[str]], shared: Path) -> bytes:
    """The weights of a run by torchrun_local.sh that nothing disturbs, made once."""
    run = shared / "undisturbed"
    if not run.is_dir():
        assert launch("torchrun_local.sh", run).wait(timeout=120) == 0
    return save(last_weights(run))


def attempts(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "train/metrics.jsonl").read_text().splitlines()]
    return sorted({line["attempt"] for line in lines})


def free_port() -> str:
    return str(20000 + os.getpid() % 12000)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("torchrun_local.sh", signal.SIGINT),
        ("torchrun_local.sh", signal.SIGUSR1),
        ("accelerate.sh", signal.SIGUSR1),
        ("deepspeed.sh", signal.SIGTERM),
    ],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    launch: Callable[..., subprocess.Popen[str]], undisturbed: bytes, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    """SIGINT goes to the whole group, as Ctrl-C does; the others to the launcher alone."""
    variables = {"ACCELERATE_USE_CPU": "true", "RDZV_ENDPOINT": f"localhost:{free_port()}"}
    run, log = tmp_path / "run", tmp_path / "run.log"
    launcher, end = launch(name, run, **variables), time.monotonic() + 90
    while not (run / "train/checkpoints/LAST").is_file():
        assert launcher.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    os.killpg(launcher.pid, number) if number == signal.SIGINT else launcher.send_signal(number)
    assert launcher.wait(timeout=60) != 0
    assert json.loads((run / "exit.json").read_text())["code"] == 130, log.read_text()
    assert not (run / "train/done.json").exists()
    assert launch(name, run, **variables).wait(timeout=120) == 0, log.read_text()
    assert log.read_text().count("= 2 rank(s)") == 2
    assert attempts(run) == [0, 1]
    assert save(last_weights(run)) == undisturbed


@pytest.mark.parametrize("name", ["accelerate.sh", "deepspeed.sh"])
def test_two_launchers_start_one_world(
    launch: Callable[..., subprocess.Popen[str]], undisturbed: bytes, tmp_path: Path, name: str
) -> None:
    """As on two machines, both of which are this one."""
    (tmp_path / "hosts").write_text("first slots=1\nsecond slots=1\n")
    variables = {"NPROC": "1", "NNODES": "2", "HOSTFILE": str(tmp_path / "hosts"), "ACCELERATE_USE_CPU": "true"}
    variables["RDZV_ENDPOINT"] = f"127.0.0.1:{free_port()}"
    run = tmp_path / "run"
    launchers = [launch(name, run, **variables, NODE_RANK=str(rank)) for rank in range(2)]
    assert [launcher.wait(timeout=120) for launcher in launchers] == [0, 0], (tmp_path / "run.log").read_text()
    assert "= 2 rank(s)" in (tmp_path / "run.log").read_text()
    assert save(last_weights(run)) == undisturbed
