"""Two torchrun agents, each a machine of its own: they train together, and one of them is killed and started again.

A machine is a network namespace with an address of its own (`ip netns`), where the system lets us make one; else both
are this machine, by its loopback. Which it was is printed. Killing a machine kills everything in it at once.
"""

from __future__ import annotations
from helpers.paths import REPOSITORY

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from helpers.small import last_weights
from helpers.launching import make_shared
from safetensors.torch import save

pytestmark = pytest.mark.slow
STEPS = 60
TRAIN = {"holdout": 0.0, "head_dropout": 0.3, "optim": {"duration": f"{STEPS} steps", "save_every": "10 steps"}}
ADDRESSES = ["10.213.7.1", "10.213.7.2"]


@dataclass
class Machine:
    """Where an agent runs: `enter` is what a command there starts with."""

    address: str
    enter: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    agent: subprocess.Popen[str] | None = None

    def start(self, command: list[str], variables: dict[str, str], log: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, **variables, **self.variables, "LOCAL_ADDR": self.address}
        with log.open("a") as out:
            self.agent = subprocess.Popen(
                [*self.enter, *command], cwd=REPOSITORY, env=environment, stdout=out, stderr=out, text=True
            )
        return self.agent

    def kill(self) -> None:
        """The agent and its ranks, as a machine dies: they are stopped first, so that none sees another one's end."""
        if self.agent is None or self.agent.poll() is not None:
            return
        agent = psutil.Process(self.agent.pid)
        everyone = [agent, *agent.children(recursive=True)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in everyone:
                process.send_signal(number)
        self.agent.wait(timeout=20)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


def connected_namespaces(names: list[str]) -> None:
    """Network namespaces with a cable between them."""
    for name in names:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
    for name, address in zip(names, ADDRESSES, strict=True):
        ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
        ip("-n", name, "link", "set", "cable", "up")


@pytest.fixture
def machines(capsys: pytest.CaptureFixture[str]) -> Iterator[list[Machine]]:
    names = [f"distwsss-{os.getpid()}-{number}" for number in range(2)]
    try:
        connected_namespaces(names)
        made = [
            Machine(address, ["ip", "netns", "exec", name], {"GLOO_SOCKET_IFNAME": "cable"})
            for name, address in zip(names, ADDRESSES, strict=True)
        ]
    except (OSError, subprocess.CalledProcessError) as error:
        made = [Machine("127.0.0.1"), Machine("127.0.0.1")]
        with capsys.disabled():
            print(f"\ntwo agents on loopback, as network namespaces are not permitted: {error}")
    else:
        with capsys.disabled():
            print("\ntwo agents in two network namespaces")
    yield made
    for machine in made:
        machine.kill()
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=20)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.yaml and the shards to train on."""
    return make_shared(tmp_path_factory.mktemp("shared"), train=TRAIN)


def train(shared: Path, run: Path) -> list[str]:
    """The arguments of a launcher for a run into the folder `run`."""
    return ["train", "--config", str(shared / "tiny.yaml"), "--set", f"paths.run={run}"]


VARIABLES = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "NPROC": "1",
    "NNODES": "2",
    "MAX_RESTARTS": "3",
    "JOIN_TIMEOUT": "60",
}


@pytest.fixture(scope="module")
def undisturbed(shared: Path) -> bytes:
    """The weights of two ranks of one agent that nothing disturbs."""
    command = ["launchers/torchrun_local.sh", *train(shared, shared / "undisturbed")]
    environment = {**os.environ, **VARIABLES, "NPROC": "2"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return save(last_weights(shared / "undisturbed"))


@pytest.fixture
def start(machines: list[Machine], shared: Path, tmp_path: Path) -> Callable[[int], None]:
    """start(number): the agent of that machine, always by the same command; its output in tmp_path/NUMBER.log."""
    port = 20000 + os.getpid() % 12000
    variables = VARIABLES | {"RDZV_ENDPOINT": f"{machines[0].address}:{port}"}
    command = ["launchers/torchrun_multinode.sh", *train(shared, tmp_path / "run")]

    def one(number: int) -> None:
        machines[number].start(command, variables | {"NODE_RANK": str(number)}, tmp_path / f"{number}.log")

    return one


def wait_for(machines: list[Machine], tmp_path: Path) -> None:
    for number, machine in enumerate(machines):
        assert machine.agent is not None
        assert machine.agent.wait(timeout=90) == 0, (tmp_path / f"{number}.log").read_text()


@pytest.mark.timeout(280)
@pytest.mark.parametrize("killed", [1, 0])
def test_a_killed_machine_is_started_again_and_the_run_goes_on(
    machines: list[Machine], start: Callable[[int], None], undisturbed: bytes, tmp_path: Path, killed: int
) -> None:
    """The other agent waits for machine 1; without machine 0, where they meet, it ends, and is started again too."""
    for number in range(2):
        start(number)
    checkpoints, end = tmp_path / "run/train/checkpoints", time.monotonic() + 90
    while not (checkpoints / "LAST").is_file():
        assert time.monotonic() < end, (tmp_path / "0.log").read_text()
        time.sleep(0.02)
    machines[killed].kill()
    assert not (tmp_path / "run/train/done.json").exists()
    if killed == 0:
        agent = machines[1].agent
        assert agent is not None
        assert agent.wait(timeout=90) == 1
        start(1)
    start(killed)
    wait_for(machines, tmp_path)
    assert "2 rank(s)" in "".join((tmp_path / f"{number}.log").read_text() for number in range(2))
    lines = [json.loads(line) for line in (tmp_path / "run/train/metrics.jsonl").read_text().splitlines()]
    first, second = ([line["step"] for line in lines if line["attempt"] == attempt] for attempt in range(2))
    assert 1 < second[0] <= first[-1] + 1 < STEPS
    assert second == list(range(second[0], STEPS + 1))
    assert save(last_weights(tmp_path / "run")) == undisturbed
