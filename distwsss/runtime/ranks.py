"""Rank and world size of this process, as its launcher says: read here only. Imports no torch.

torchrun, `accelerate launch`, `deepspeed` and our launchers set the same variables. Called by `cli`, `pipeline`,
logging, the run folder, `evaluate` and the engine, which checks that Accelerate sees the same.
"""

from __future__ import annotations

import os

from distwsss.errors import LaunchError

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
HOW = "launchers/torchrun_local.sh, accelerate.sh and deepspeed.sh set them all"


def rank() -> int:
    """0 without a launcher, and in the process that writes what all ranks would write alike."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Among the ranks of this machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_launched() -> bool:
    return "RANK" in os.environ


def meeting_point() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def check_launched() -> None:
    """Raises LaunchError for an environment in which a launcher's variables are set in part."""
    missing = [name for name in LAUNCHED if name not in os.environ]
    if missing and len(missing) < len(LAUNCHED):
        found = ", ".join(f"{name}={os.environ[name]}" for name in LAUNCHED if name in os.environ)
        raise LaunchError(f"found {found}, but no {', '.join(missing)}; allowed: all of them or none ({HOW})")


def check_single_process(verb: str) -> None:
    """Raises LaunchError where several ranks would do the same work."""
    if world_size() > 1:
        raise LaunchError(
            f"{verb} was started by torchrun with several ranks; start it plainly. torchrun is for classify, train and "
            "evaluate"
        )
