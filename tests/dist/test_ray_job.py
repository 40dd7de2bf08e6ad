"""`launchers/ray_job.sh` against a real `ray start --head`: a job makes the seeds, is stopped, and goes on."""

from __future__ import annotations
from helpers.paths import REPOSITORY

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from helpers.small import merged, tiny_tree

BIN = Path(sys.executable).parent


@dataclass
class Cluster:
    """A head node on this machine. `environment`: what its clients need."""

    address: str
    environment: dict[str, str]

    def ray(self, *arguments: str, timeout: int = 120) -> subprocess.CompletedProcess[str]:
        return run([str(BIN / "ray"), *arguments], self.environment, timeout)


def run(command: list[str], environment: dict[str, str], timeout: int = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module", params=["disabled", "token"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Both ways of authentication: none, and a token that every process is given by a file."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_AUTH_MODE": request.param, "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    if request.param == "token":
        token = home / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    dashboard, temporary = free_port(), tempfile.mkdtemp(prefix="ray")  # short: Unix sockets have 107 characters
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", f"--port={free_port()}", "--num-cpus=2", f"--temp-dir={temporary}",
         f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", "--include-dashboard=true",
         f"--dashboard-agent-listen-port={free_port()}", f"--object-store-memory={100 << 20}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    found = Cluster(address, environment | {"RAY_ADDRESS": address})
    try:
        until = time.monotonic() + 90
        while found.ray("job", "list").returncode:
            assert time.monotonic() < until, "the head node did not start"
            time.sleep(1)
        yield found
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A tiny run whose seeds the local executor made: its folder, and the bytes of its shards."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree(folder)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for verb in ("prepare", "classify"):
        done = run([sys.executable, "-m", "distwsss", verb, "--config", str(folder / "tiny.yaml")], environment)
        assert done.returncode == 0, done.stderr
    shutil.copytree(folder, folder.with_name("unseeded"))
    command = [sys.executable, "-m", "distwsss", "seeds", "--executor", "local", "--config", str(folder / "tiny.yaml")]
    done = run(command, environment)
    assert done.returncode == 0, done.stderr
    return folder.with_name("unseeded"), shards(folder / "shards")


def tree(folder: Path) -> dict[str, object]:
    """Twenty shards, so that a job can be stopped in the middle."""
    sections = {"data": {"shapes": {"train": 80}}, "hardware": {"workers": 2}}
    return merged(tiny_tree(folder), sections)


def shards(folder: Path) -> dict[str, bytes]:
    files = [path for kind in ("seeds", "pseudo") for path in (folder / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_job_is_stopped_and_goes_on(cluster: Cluster, local: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    unseeded, wanted = local
    root = tmp_path / "root"
    for kind in ("run", "shards"):
        shutil.copytree(unseeded / kind, root / {"run": "runs"}.get(kind, kind) / "tiny")
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tree(tmp_path / "unused")))
    launcher = [str(REPOSITORY / "launchers/ray_job.sh"), "seeds", "--config", str(config)]
    environment = cluster.environment | {"ROOT": str(root)}

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(launcher, env=environment, text=True, **pipes) as job:
        assert job.stdout is not None
        said = ""
        while not (named := re.search(r"raysubmit_\w+", said)):
            line = job.stdout.readline()
            assert line, said
            said += line
        until = time.monotonic() + 150
        while not (root / "shards/tiny/seeds/seeds-00000.tar").is_file():
            assert time.monotonic() < until, "no shard"
            time.sleep(0.05)
        stopped = cluster.ray("job", "stop", named[0])
        assert stopped.returncode == 0, stopped.stderr
        job.communicate(timeout=60)
    finished = [path.with_suffix("") for path in (root / "shards/tiny/seeds").glob("*.tar.json")]
    kept = {path: path.stat().st_mtime_ns for path in finished}
    assert kept
    assert not (root / "shards/tiny/seeds/index.json").exists()

    again = run(launcher, environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert shards(root / "shards/tiny") == wanted
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
