"""`distwsss` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_distwsss(
    *arguments: object, ranks: int = 1, fault: str | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished process `distwsss ARGUMENTS` (under torchrun for several ranks), its output as text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if fault:
        environment |= {"DISTWSSS_ENABLE_FAULTS": "1", "DISTWSSS_FAULT": fault}
    launch = [sys.executable, "-m"]
    if ranks > 1:
        launch += ["torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
        launch += ["--rdzv-endpoint=localhost:0", "-m"]
    command = [*launch, "distwsss", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False, cwd=cwd)
