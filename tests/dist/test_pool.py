"""Worker processes must not outlive the process they work for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

POOL = """
import os, time
from distwsss.runtime.pool import spawn_pool
if __name__ == "__main__":
    with spawn_pool(2) as pool:
        futures = [pool.submit(os.getpid) for _ in range(8)]
        found = sorted(future.result() for future in futures)
        print(found[0], found[-1], sep="\\n", flush=True)
        pool.submit(time.sleep, 600)  # one worker is busy, the other idle
        time.sleep(600)
"""
# both workers are busy loading, where torch's own watch over the parent does not look
LOADER = """
import os, time
from torch.utils.data import Dataset
from distwsss.data.batches.loader import Share
from distwsss.data.batches.workers import read_batches
class Slow(Dataset):
    share = Share(0, 1, 1, 1)
    def __len__(self):
        return 9
    def __getitem__(self, item):
        print(os.getpid(), flush=True)
        time.sleep(600)
list(read_batches(Slow(), 0, 2))
"""


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # a zombie has ended


@pytest.mark.parametrize("text", [POOL, LOADER], ids=["pool", "loader"])
def test_workers_end_when_their_parent_is_killed(text: str, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(text)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        workers = [int(driver.stdout.readline()) for _ in range(2)]
        assert all(_alive(pid) for pid in workers)
        os.kill(driver.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        survivors = [pid for pid in workers if _alive(pid)]
        for pid in survivors:
            os.kill(pid, signal.SIGKILL)
    assert not survivors
