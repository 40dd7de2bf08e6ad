"""DeepSpeed ZeRO: its JSON filled from our configuration, its partitions as whole tensors. Called by `train.loop` and
`train.checkpoint`; the only file that imports deepspeed.

No "auto" is left to Accelerate, whose own values differ (clipping 1.0). Weights, gradients and optimizer states are
float32: the loop autocasts the forward, so the master weights are the weights. Checkpoints hold whole tensors by name
and no file of DeepSpeed's, so any world size and any engine goes on from them.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distwsss.config.schema import HardwareSection
from distwsss.data.batches import Split
from distwsss.errors import ConfigError, report_problems

OURS = "the configuration's: leave it out"
REFUSED = {
    "optimizer": f"the optimizer is {OURS}",
    "scheduler": f"the schedule is {OURS}",
    "amp": "set hardware.mixed_precision instead",
    "torch_autocast": "set hardware.mixed_precision instead",
}
KNOWN = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("bf16", "fp16", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "communication_data_type"),
    *("comms_logger", "aio", "activation_checkpointing", "flops_profiler"),
)
STATES = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # of SGD and AdamW, each as large as its parameter


def deepspeed_config(hardware: HardwareSection, split: Split, clip: float | None) -> dict[str, Any] | None:
    """hardware.deepspeed's JSON with batch, accumulation, clipping and precision as the configuration has them.

    None without one. Raises ConfigError naming every key that contradicts it, is unknown, or is left "auto".
    """
    if hardware.deepspeed is None:
        return None
    path = Path(hardware.deepspeed)
    tree = _read(path)
    problems = _problems(tree) + _fill(tree, split, clip)
    if hardware.mixed_precision == "fp16":
        problems.append("hardware.mixed_precision: found fp16; allowed with DeepSpeed: bf16 or no")
    if problems:
        raise ConfigError(report_problems(f"{path} does not fit the configuration", problems))
    _import()
    return tree


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"hardware.deepspeed: {path}: cannot be read ({error.strerror}); see configs/deepspeed/"
        ) from error
    except ValueError as error:
        raise ConfigError(f"hardware.deepspeed: {path}: not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"hardware.deepspeed: {path}: found {type(tree).__name__}; allowed: an object")
    return tree


def _problems(tree: dict[str, Any]) -> list[str]:
    problems = []
    for key in tree:
        if key in REFUSED:
            problems.append(f"{key}: {REFUSED[key]}")
        elif key not in KNOWN:
            close = difflib.get_close_matches(key, KNOWN, n=1)
            problems.append(f"{key}: unknown key; " + (f"did you mean {close[0]}?" if close else f"allowed: {KNOWN}"))
    stage = (tree.get("zero_optimization") or {}).get("stage")
    if stage not in (1, 2, 3):
        problems.append(f"zero_optimization.stage: found {stage!r}; allowed: 1, 2 or 3")
    return problems


def _fill(tree: dict[str, Any], split: Split, clip: float | None) -> list[str]:
    """Set what is missing or "auto" in place; returns what contradicts and what is "auto" without a value of ours.

    train_batch_size is DeepSpeed's product of the other two; slices of ranks may hold a sample less.
    """
    ours = {
        "train_micro_batch_size_per_gpu": split.micro_batch,
        "gradient_accumulation_steps": split.accumulation,
        "train_batch_size": split.micro_batch * split.accumulation * split.world,
        "gradient_clipping": clip or 0.0,
    }
    problems = []
    for key, value in ours.items():
        found = tree.get(key, "auto")
        if found not in ("auto", value):
            problems.append(f"{key}: found {found}, but the configuration says {value}; allowed: auto or {value}")
        tree[key] = value
    for key in ("bf16", "fp16"):
        section = tree.setdefault(key, {})
        if section.get("enabled", "auto") not in ("auto", False):
            problems.append(
                f"{key}.enabled: found {section['enabled']}; allowed: auto or false: weights stay float32, "
                "hardware.mixed_precision is what the forward computes in"
            )
        section["enabled"] = False
    tree.setdefault("steps_per_print", 10**9)
    tree.setdefault("zero_force_ds_cpu_optimizer", False)  # the configuration's optimizer, not DeepSpeed's
    tree["zero_allow_untested_optimizer"] = True
    zero = tree.get("zero_optimization")
    if isinstance(zero, dict) and zero.get("stage3_gather_16bit_weights_on_model_save") == "auto":
        zero["stage3_gather_16bit_weights_on_model_save"] = False  # checkpoints gather float32
    problems += [f"{key}: found auto; allowed: a value, or leave it out" for key in _autos(tree)]
    return problems


def _autos(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _autos(value, f"{prefix}{key}.")
        elif value == "auto":
            yield f"{prefix}{key}"


def _import() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            "hardware.deepspeed is set, but deepspeed is not installed; run `pip install 'distwsss[deepspeed]'`"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state dict with every partitioned parameter gathered, on the CPU; empty where not `keep`. A collective."""
    deepspeed = _import()
    weights = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        parts = [tensor] if hasattr(tensor, "ds_id") else []
        with deepspeed.zero.GatheredParameters(parts):
            if keep:
                weights[name] = tensor.detach().cpu().clone()
    return {name: weights[name] for name in model.state_dict() if name in weights}


def whole_states(model: nn.Module, optimizer: Any, keep: bool) -> dict[str, dict[str, Tensor]]:
    """Parameter name -> its optimizer state as torch would hold it, gathered to the CPU. A collective."""
    from deepspeed.utils import safe_get_full_optimizer_state

    flat: dict[str, Tensor] = next(iter(optimizer.optimizer.state.values()), {})
    names = [name for name in STATES if isinstance(flat.get(name), Tensor)]
    if names:
        _link(optimizer)
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        states = {key: safe_get_full_optimizer_state(parameter, key) for key in names}
        if keep:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            found[name] = {key: value.detach().cpu().reshape(shape).clone() for key, value in states.items()}
            if "step" in flat:
                found[name]["step"] = flat["step"].detach().cpu().clone()
    return {name: state for name, state in found.items() if state}


def load_states(model: nn.Module, optimizer: Any, states: dict[str, dict[str, Tensor]]) -> None:
    """The inverse of `whole_states`: each rank takes its part.

    torch's optimizers make their state in the first step; here it is made beforehand, empty, on DeepSpeed's flat
    partitions, and linked to the parameters as DeepSpeed does after a step.
    """
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not states:
        return
    sample = next(iter(states.values()))
    stage3 = hasattr(optimizer, "fp32_partitioned_groups_flat")
    for flat in optimizer.fp32_partitioned_groups_flat if stage3 else optimizer.single_partition_of_fp32_groups:
        state = {key: torch.zeros_like(flat) for key in sample if key != "step"}
        optimizer.optimizer.state[flat] = state | ({"step": sample["step"].clone()} if "step" in sample else {})
    _link(optimizer)
    for name, parameter in model.named_parameters():
        for key, value in states.get(name, {}).items():
            if key != "step" and stage3:
                safe_set_local_optimizer_state(parameter, _part(value, parameter), key)
            elif key != "step":
                safe_set_full_optimizer_state(parameter, value, key)


def _link(optimizer: Any) -> None:
    """Have ZeRO-1 and 2's parameters find their part of the flat states; DeepSpeed itself does so after the step of the
    first parameter group, when the other groups have no state yet."""
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _part(value: Tensor, parameter: Any) -> Tensor:
    """This rank's slice of a whole tensor, as ZeRO-3 cuts it: equal parts, the last one padded with zeros."""
    size = parameter.ds_tensor.numel()
    padded = F.pad(value.flatten(), (0, size * torch.distributed.get_world_size() - value.numel()))
    return padded.narrow(0, size * torch.distributed.get_rank(), size)
