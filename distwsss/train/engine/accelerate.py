"""Accelerate, the only engine: single process, DDP, DeepSpeed ZeRO, mixed precision. Called by `train.loop`,
`pipeline`.

Closed here: without CUDA a plain `Accelerator()` silently makes every rank a world of one, the DeepSpeed plugin wants
another way to the CPU than DDP, and what a launcher leaves in the environment would override our configuration.
"""

from __future__ import annotations

import importlib.util
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, DistributedType, InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor

from distwsss.config.hardware import HardwareSection
from distwsss.config.load import find_file
from distwsss.errors import ConfigError, LaunchError, report_problems
from distwsss.runtime import ranks
from distwsss.runtime.device import pick_device
from distwsss.runtime.layout import nccl_prefix


def deepspeed_file(hardware: HardwareSection) -> Path | None:
    """hardware.deepspeed: a path, or the NAME of configs/deepspeed/NAME.json. Raises ConfigError for any other."""
    if hardware.deepspeed is None:
        return None
    return find_file("hardware.deepspeed", hardware.deepspeed, "deepspeed", ".json")


def make_accelerator(
    hardware: HardwareSection, accumulation: int = 1, zero: dict[str, Any] | None = None, folder: Path | None = None
) -> Accelerator:
    """The engine of this process. `zero`: DeepSpeed's JSON as `zero_config` fills it; `folder`: for dumps.

    Raises LaunchError when DeepSpeed has no launcher, when the ranks do not come together or when the world is not what
    the launcher started, and ConfigError when CUDA is asked for but absent and for an environment of Accelerate's that
    contradicts the configuration.
    """
    ranks.check_launched()
    rank, world = ranks.rank(), ranks.world_size()
    on_cpu = pick_device(hardware.device).type == "cpu"
    if zero is not None and not ranks.is_launched():
        raise LaunchError(
            f"hardware.deepspeed is {hardware.deepspeed}, but no launcher started this process; start `distwsss train` "
            "or `classify` with launchers/torchrun_local.sh, accelerate.sh or deepspeed.sh (for one GPU: NPROC=1 and "
            "torchrun_local.sh)"
        )
    check_environment(hardware, accumulation, on_cpu)
    _check_trackers(hardware)
    if folder is not None and not on_cpu:
        _record_nccl(folder)
    torch.set_float32_matmul_precision("high" if hardware.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = hardware.tf32
    options: dict[str, Any] = {"cpu": on_cpu, "mixed_precision": hardware.mixed_precision}
    group: dict[str, Any] = {"timeout": timedelta(seconds=hardware.timeout_seconds)}
    if zero is not None:
        # the loop computes under autocast itself: in DeepSpeed's own bf16 all weights and buffers would be bf16
        os.environ.pop("ACCELERATE_USE_CPU", None)  # which would make it DDP
        os.environ.pop("LOCAL_SIZE", None)  # with which DeepSpeed on CPUs leaves 66 MB a rank in /dev/shm, unused
        options = {"deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=zero), "mixed_precision": "no"}
        group |= {"backend": "gloo"} if on_cpu else {}
    try:
        accelerator = Accelerator(
            gradient_accumulation_steps=accumulation,
            kwargs_handlers=[InitProcessGroupKwargs(**group)],
            log_with=list(hardware.trackers) or None,
            project_dir=folder,
            **options,
        )
    except torch.distributed.DistError as error:  # a port in use, a rank that did not come
        raise LaunchError(
            f"rank {rank} of {world} found no process group at {ranks.meeting_point()} "
            f"({str(error).splitlines()[0]}); allowed: an "
            "address of rank 0's machine with a free port, RDZV_ENDPOINT of launchers/"
        ) from error
    if (accelerator.num_processes, accelerator.process_index) != (world, rank):
        raise LaunchError(
            f"the launcher started rank {rank} of {world}, but Accelerate sees rank {accelerator.process_index} of "
            f"{accelerator.num_processes}; start with one of launchers/"
        )
    if zero is not None and accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise LaunchError(
            f"hardware.deepspeed is {hardware.deepspeed}, but Accelerate made it {accelerator.distributed_type.value}; "
            "start with one of launchers/"
        )
    return accelerator


def check_environment(hardware: HardwareSection, accumulation: int, on_cpu: bool) -> None:
    """`accelerate launch` passes its own settings as variables: what contradicts ours is an error, all named.

    `no` and `1` are what it writes when nobody asked. Its DeepSpeed variables are taken away once they agree: the
    plugin is ours.
    """
    problems = []
    wanted = {
        "ACCELERATE_MIXED_PRECISION": ("hardware.mixed_precision", hardware.mixed_precision, "no"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("accumulation from hardware.micro_batch", str(accumulation), "1"),
    }
    for variable, (key, value, unset) in wanted.items():
        found = os.environ.get(variable, unset)
        if found not in (value, unset):
            problems.append(f"{variable}: found {found}, but {key} is {value}")
    if parse_flag_from_env("ACCELERATE_USE_CPU") and not on_cpu:
        problems.append(f"ACCELERATE_USE_CPU: found true, but hardware.device is {hardware.device} and CUDA is there")
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        problems.append("ACCELERATE_USE_FSDP: found true; allowed: DDP, or DeepSpeed by hardware.deepspeed")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        file, ours = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"), deepspeed_file(hardware)
        if ours is None or not os.path.exists(file) or not os.path.samefile(file, ours):
            problems.append(f"ACCELERATE_DEEPSPEED_CONFIG_FILE: found {file}, but hardware.deepspeed is {ours}")
    if problems:
        what = "accelerate launch and the configuration contradict each other; set one of each pair to the other"
        raise ConfigError(report_problems(what, problems))
    _remove_deepspeed_variables()


def _remove_deepspeed_variables() -> None:
    """What the launcher or Accelerate itself has set of DeepSpeed."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") and "DEEPSPEED" in name]:
        del os.environ[name]


def _check_trackers(hardware: HardwareSection) -> None:
    """Accelerate leaves out, with a warning, a tracker that is not installed."""
    missing = [name for name in hardware.trackers if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"hardware.trackers: {', '.join(missing)} is not installed; run `pip install 'distwsss[tracking]'`"
        )


def _record_nccl(folder: Path) -> None:
    """NCCL's flight recorder: the last collectives of each rank, written to `folder` when one times out."""
    renamed = torch.__version__ >= (2, 9)  # torch warns of the old names
    size, file = "TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE"
    if not renamed:
        size, file = "TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"
    os.environ.setdefault(size, "2000")
    os.environ.setdefault(file, nccl_prefix(folder))
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")


def autocast_dtype(hardware: HardwareSection) -> torch.dtype | None:
    """What the forward computes in under DeepSpeed, where the loop does the autocasting; None: float32."""
    return torch.bfloat16 if hardware.deepspeed and hardware.mixed_precision == "bf16" else None


def all_sum(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sum over ranks (a collective of its own when there are several)."""
    if accelerator.num_processes > 1:
        values = values.to(accelerator.device)
        torch.distributed.all_reduce(values)
    return values


def end_accelerator(accelerator: Accelerator) -> None:
    """End the trackers and let go of what was trained, so that this process may train the next (`classify` does):
    Accelerate's own `end_training` would end the process group, and a second DeepSpeed plugin is refused."""
    for tracker in getattr(accelerator, "trackers", []):
        tracker.finish()
    accelerator.free_memory()
    AcceleratorState._reset_state()
    _remove_deepspeed_variables()
