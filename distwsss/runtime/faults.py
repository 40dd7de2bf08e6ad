"""Points where tests kill a process: at a step, file or image, not after some seconds.

DISTWSSS_ENABLE_FAULTS=1 and DISTWSSS_FAULT=NAME make the process that reaches `fault_point(NAME)` kill itself with
SIGKILL; nothing happens unless both are set. DISTWSSS_FAULT_LOG=FILE gets a line each time, and with
DISTWSSS_FAULT_TIMES=N only the first N kill.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def fault_point(name: str) -> None:
    if os.environ.get("DISTWSSS_ENABLE_FAULTS") == "1" and os.environ.get("DISTWSSS_FAULT") == name and _due(name):
        os.kill(os.getpid(), signal.SIGKILL)


def _due(name: str) -> bool:
    if log := os.environ.get("DISTWSSS_FAULT_LOG"):
        with Path(log).open("a+", encoding="utf-8") as file:
            file.write(f"{name} {os.getpid()}\n")
            file.flush()
            file.seek(0)
            count = sum(line.startswith(f"{name} ") for line in file)
        return count <= int(os.environ.get("DISTWSSS_FAULT_TIMES", count))
    return True
