"""launchers/slurm_torchrun.sbatch with stand-ins for srun, scancel and scontrol: two agents on this machine, stopped as
before the time limit, started again as after the requeue."""

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
from helpers.launching import make_shards

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
# As srun: a task on each node. As scancel: the signal to the tasks, not to the script.
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do
    case $1 in --nodes) nodes=$2; shift 2 ;; --ntasks | --cpus-per-task) shift 2 ;; *) shift ;; esac
done
for ((node = 0; node < nodes; node++)); do
    SLURM_NODEID=$node "$@" &
    echo $! >>"$TASKS"
done
code=0
for task in $(cat "$TASKS"); do wait "$task" || code=$?; done
rm "$TASKS"
exit "$code"
"""
SCANCEL = '#!/usr/bin/env bash\necho "scancel $*"\nkill "-${1#--signal=}" $(cat "$TASKS")\n'
SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*"\n'
# A torchrun from before --signals-to-handle
OLD_TORCHRUN = f"""#!/usr/bin/env bash
[ "$1" != --help ] || {{ echo usage; exit; }}
[[ " $*" != *signals-to-handle* ]] || {{ echo "unrecognized arguments" >&2; exit 2; }}
exec {BIN}/torchrun "$@"
"""


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """submit(config, **programs) -> the script's process, output in tmp_path/log; what still runs is asked to end."""
    programs, jobs = tmp_path / "bin", []
    programs.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    variables = kept | {
        "PATH": f"{programs}:{BIN}:{kept['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HEAD_IP": "127.0.0.1",
        "MAX_RESTARTS": "0",
        "ROOT": str(tmp_path / "root"),
        "TASKS": str(tmp_path / "tasks"),
        **{"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "1"},
    }

    def start(config: Path, **added: str) -> subprocess.Popen[str]:
        for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL, **added}.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        command = ["bash", "launchers/slurm_torchrun.sbatch", "train", "--config", str(config)]
        with (tmp_path / "log").open("a") as log:
            jobs.append(subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=log, stderr=log, text=True))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.poll() is None:
            job.send_signal(signal.SIGUSR1)
            job.wait(timeout=60)


@pytest.mark.parametrize("forwarded", ["USR1", "TERM"])
def test_a_job_saves_before_the_limit_is_requeued_once_and_finishes(
    submit: Callable[..., subprocess.Popen[str]], tiny, tiny_file, tmp_path: Path, forwarded: str
) -> None:
    root, log = tmp_path / "root", tmp_path / "log"
    paths = {"run": str(root / "runs/tiny"), "shards": str(root / "shards/tiny")}
    sections = {"paths": paths, "train": {"optim": {"duration": "300 steps", "save_every": "50 steps"}}}
    make_shards(tiny(**sections))
    config, programs = tiny_file(**sections), {"torchrun": OLD_TORCHRUN} if forwarded == "TERM" else {}
    job = submit(config, **programs)
    trained, end = root / "runs/tiny/train", time.monotonic() + 90
    while not (trained / "checkpoints/LAST").is_file():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=90) != 0, log.read_text()
    assert json.loads((root / "runs/tiny/exit.json").read_text())["code"] == 130, log.read_text()
    assert not (trained / "done.json").exists()
    saved = (trained / "checkpoints/LAST").read_text().strip()
    assert submit(config, **programs).wait(timeout=120) == 0, log.read_text()
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert min(line["step"] for line in lines if line["attempt"] == 1) == int(saved.removeprefix("step-")) + 1
    assert (trained / "done.json").is_file()
    asked = [line for line in log.read_text().splitlines() if line.startswith(("scancel", "scontrol"))]
    assert asked == [f"scancel --signal={forwarded} {os.getpid()}", f"scontrol requeue {os.getpid()}"]


def test_a_run_that_fails_is_not_requeued(
    submit: Callable[..., subprocess.Popen[str]], tiny_file, tmp_path: Path
) -> None:
    """There are no shards to train on; an earlier attempt was interrupted."""
    record = tmp_path / "root/runs/tiny/exit.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"code": 130, "message": "interrupted", "time": "earlier"}')
    waiting = SRUN.replace("exit", "sleep 5\nexit")  # the signal comes after the ranks have failed
    job = submit(tiny_file(), srun=waiting, scancel=SCONTROL.replace("scontrol", "scancel"))
    end = time.monotonic() + 90
    while json.loads(record.read_text())["time"] == "earlier":
        assert time.monotonic() < end, (tmp_path / "log").read_text()
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 1
    assert json.loads(record.read_text())["code"] == 3
    assert "scancel" in (tmp_path / "log").read_text()
    assert "scontrol" not in (tmp_path / "log").read_text()
