"""launchers/slurm_ray.sbatch with stand-ins for srun and scontrol: two Ray nodes on this machine, stopped as before the
time limit, started again."""

from __future__ import annotations
from helpers.paths import REPOSITORY

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do
    case $1 in --nodes | --ntasks | --cpus-per-task) shift 2 ;; *) shift ;; esac
done
exec "$@"
"""
SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*"\n'


@pytest.fixture
def node_folder() -> Iterator[Path]:
    """Ray's folder on the nodes: a short path, as names of sockets are at most 107 bytes long."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    yield folder
    shutil.rmtree(folder)


def environment(folder: Path, node_folder: Path) -> dict[str, str]:
    programs = folder / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    slurm = {"JOB_ID": str(os.getpid()), "JOB_NUM_NODES": "2", "CPUS_ON_NODE": "1", "MEM_PER_NODE": "1000"}
    return kept | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{kept['PATH']}",
        "HOME": str(folder),
        "RAY_worker_niceness": "0",
        "ROOT": str(folder / "root"),
        "RAY_TEMP": str(node_folder),
        "SLURMD_NODENAME": socket.gethostname(),
        **{f"SLURM_{key}": value for key, value in slurm.items()},
    }


@pytest.fixture
def submit(tmp_path: Path, node_folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """submit(*arguments) -> the script's process, its output in tmp_path/log; what still runs is asked to end."""
    variables, jobs = environment(tmp_path, node_folder), []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = ["bash", "launchers/slurm_ray.sbatch", *arguments]
        with (tmp_path / "log").open("a") as log:
            jobs.append(subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=log, stderr=log, text=True))
        return jobs[-1]

    yield start
    for job in jobs:
        job.terminate()
        job.wait(timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_is_stopped_requeued_and_goes_on(
    tiny_file, tmp_path: Path, node_folder: Path, distwsss, submit: Callable[..., subprocess.Popen[str]]
) -> None:
    root, log = tmp_path / "root", tmp_path / "log"
    config = str(tiny_file(classify={"optim": {"duration": "1000 steps", "save_every": "50 steps"}}))
    roots = ["--set", f"paths.run={root}/runs/tiny", "--set", f"paths.shards={root}/shards/tiny"]
    assert distwsss("prepare", "--config", config, *roots).returncode == 0
    job = submit("classify", "--config", config)
    trained, end = root / "runs/tiny/classify/0.10", time.monotonic() + 300
    while not (trained / "checkpoints/LAST").is_file() and job.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    assert [path.stat().st_mode & 0o777 for path in root.glob(".ray-*/token")] == [0o600], log.read_text()
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=300) == 130, log.read_text()
    assert f"scontrol requeue {os.getpid()}" in log.read_text()
    assert json.loads((root / "runs/tiny/exit.json").read_text())["code"] == 130
    assert submit("classify", "--config", config).wait(timeout=500) == 0, log.read_text()
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert min(line["step"] for line in lines if line["attempt"] == 1) > 50
    assert (root / "runs/tiny/classify/0.30/done.json").is_file()
    assert not list(root.glob(".ray-*"))  # the tokens
    assert not list(node_folder.iterdir())
    assert not (tmp_path / ".ray").exists()
