"""What the tests of launchers share: their names, a run of one of them, and the variables that they know."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers.paths import REPOSITORY

ON_RAY = ["ray_job.sh", "slurm_ray.sbatch"]
TRAINING = ["single_gpu.sh", "torchrun_local.sh", "torchrun_multinode.sh", "accelerate.sh", "deepspeed.sh"]
ROOTED = [*ON_RAY, "slurm_torchrun.sbatch"]
LAUNCHERS = [*TRAINING, *ROOTED]
ROOTS = {"ROOT": "/shared/me", "DATA": "/shared/data"}
VARIABLES = {
    "NPROC": "2", "NNODES": "3", "NODE_RANK": "1", "RDZV_ENDPOINT": "head:7", "HOSTFILE": "hosts",
    "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_CPUS_ON_NODE": "4", "HEAD_IP": "192.0.2.9",
    "RAY_ADDRESS": "http://127.0.0.1:1", **ROOTS,
}  # fmt: skip
OPTIONAL = ["GPU", "RDZV_ID", "LOCAL_ADDR", "MAX_RESTARTS", "JOIN_TIMEOUT", "SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS",
            "TORCH_EXTENSIONS_DIR", "ACCELERATE_CONFIG", "ACCELERATE_USE_CPU", "SHARDS", "DRY_RUN"]  # fmt: skip
DEMO = ["--config", "configs/demo/shapes.yaml"]
NEW = "--signals-to-handle --shutdown-timeout"  # in the help of a torchrun that has them
TORCHRUN = "BASH_FUNC_torchrun%%"  # how bash takes functions from the environment: a torchrun that answers at once
VOC = ["--config", "configs/voc_mini/lite.yaml"]


def launch(name: str, *arguments: str, folder: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    command = ["bash", str(folder / "launchers" / name), *arguments]
    environment = {key: value for key, value in kept.items() if key not in [*VARIABLES, *OPTIONAL]}
    environment |= {TORCHRUN: f"() {{ echo '{NEW}'; }}"} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
