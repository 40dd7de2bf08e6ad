"""DeepSpeed ZeRO: its partitions as whole tensors, and back. Called by `train.loop` and `train.steps`.

Checkpoints hold whole float32 tensors by name and no file of DeepSpeed's, so any world size and any engine goes on from
them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distwsss.runtime import ranks
from distwsss.train.engine.zero_config import import_deepspeed

STATES = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # of SGD and AdamW, each as large as its parameter


def whole_weights(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state dict with every partitioned parameter gathered, on the CPU; empty where not `keep`. A collective."""
    deepspeed = import_deepspeed()
    weights = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        parts = [tensor] if hasattr(tensor, "ds_id") else []
        with deepspeed.zero.GatheredParameters(parts):
            if keep:
                weights[name] = tensor.detach().cpu().clone()
    return {name: weights[name] for name in model.state_dict() if name in weights}


def whole_states(model: nn.Module, optimizer: Any, keep: bool) -> dict[str, dict[str, Tensor]]:
    """Parameter name -> its optimizer state as torch would hold it, gathered to the CPU. A collective."""
    whole_state = import_deepspeed().utils.safe_get_full_optimizer_state
    flat: dict[str, Tensor] = next(iter(optimizer.optimizer.state.values()), {})
    names = [name for name in STATES if isinstance(flat.get(name), Tensor)]
    if names:
        _link(optimizer)
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        states = {key: whole_state(parameter, key) for key in names}
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
    if not states:
        return
    utils = import_deepspeed().utils
    sample = next(iter(states.values()))
    stage3 = hasattr(optimizer, "fp32_partitioned_groups_flat")
    for flat in optimizer.fp32_partitioned_groups_flat if stage3 else optimizer.single_partition_of_fp32_groups:
        state = {key: torch.zeros_like(flat) for key in sample if key != "step"}
        optimizer.optimizer.state[flat] = state | ({"step": sample["step"].clone()} if "step" in sample else {})
    _link(optimizer)
    for name, parameter in model.named_parameters():
        for key, value in states.get(name, {}).items():
            if key != "step" and stage3:
                utils.safe_set_local_optimizer_state(parameter, _part(value, parameter), key)
            elif key != "step":
                utils.safe_set_full_optimizer_state(parameter, value, key)


def _link(optimizer: Any) -> None:
    """Have ZeRO-1 and 2's parameters find their part of the flat states; DeepSpeed itself does so after the step of the
    first parameter group, when the other groups have no state yet."""
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _part(value: Tensor, parameter: Any) -> Tensor:
    """This rank's slice of a whole tensor, as ZeRO-3 cuts it: equal parts, the last one padded with zeros."""
    size = parameter.ds_tensor.numel()
    padded = F.pad(value.flatten(), (0, size * ranks.world_size() - value.numel()))
    return padded.narrow(0, size * ranks.rank(), size)
