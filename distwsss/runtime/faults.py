"""Points where tests kill a process: at a step or file, not after some seconds.

DISTWSSS_ENABLE_FAULTS=1 and DISTWSSS_FAULT=NAME make the process that reaches `fault_point(NAME)` kill itself with
SIGKILL; nothing happens unless both are set.
"""

from __future__ import annotations

import os
import signal


def fault_point(name: str) -> None:
    if os.environ.get("DISTWSSS_ENABLE_FAULTS") == "1" and os.environ.get("DISTWSSS_FAULT") == name:
        os.kill(os.getpid(), signal.SIGKILL)
