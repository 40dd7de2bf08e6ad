"""Accelerate, the only engine: single process, DDP under torchrun, mixed precision. Called by `train.loop`.

Two traps are closed here: without CUDA a plain `Accelerator()` silently makes every torchrun rank a world of one, and
asking it for a second time must not change the first's settings.
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from distwsss.config.schema import HardwareSection
from distwsss.errors import LaunchError


def launched_world_size() -> int:
    """WORLD_SIZE as torchrun set it; 1 outside."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """RANK as torchrun set it; 0 outside."""
    return int(os.environ.get("RANK", "0"))


def make_accelerator(hardware: HardwareSection, accumulation: int) -> Accelerator:
    """Raises LaunchError when CUDA is asked for but absent, or when the world is not what the launcher started."""
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise LaunchError("hardware.device is cuda, but no CUDA device was found; set hardware.device=auto")
    on_cpu = hardware.device == "cpu" or not torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=hardware.mixed_precision,
        gradient_accumulation_steps=accumulation,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=hardware.timeout_seconds))],
    )
    world, rank = launched_world_size(), launched_rank()
    if (accelerator.num_processes, accelerator.process_index) != (world, rank):
        raise LaunchError(
            f"the launcher started rank {rank} of {world}, but Accelerate sees rank {accelerator.process_index} of "
            f"{accelerator.num_processes}; start with torchrun (see launchers/torchrun.sh)"
        )
    return accelerator


def all_sum(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sum over ranks (a collective of its own when there are several)."""
    if accelerator.num_processes > 1:
        values = values.to(accelerator.device)
        torch.distributed.all_reduce(values)
    return values
