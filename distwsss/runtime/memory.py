"""Memory of this machine and of this run's processes. Called by `seeds.progress` and `planning.checks`."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from pathlib import Path

GB = 1e9


def peak_memory() -> list[float]:
    """The most memory, in GB, that this process and each of its worker processes has held (resident set); without
    /proc only this process."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    found = [_field(Path(f"/proc/{pid}/status"), "VmHWM") for pid in pids]
    known = [size for size in found if size is not None]
    if known:
        return known
    unit = 1 if sys.platform == "darwin" else 1024
    return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB]


def available_memory() -> float | None:
    """GB that new processes can take without swapping; None where the system does not say."""
    return _field(Path("/proc/meminfo"), "MemAvailable")


def _field(path: Path, name: str) -> float | None:
    """A line `NAME: 123 kB` of a file of /proc, in GB."""
    try:
        lines = path.read_text().splitlines()
    except OSError:  # a process that has just ended, or a system without /proc
        return None
    return next((int(line.split()[1]) * 1024 / GB for line in lines if line.startswith(f"{name}:")), None)
