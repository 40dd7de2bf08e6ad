"""Optimizer, parameter groups and the learning rate as a function of the step. Called by `train.loop`."""

from __future__ import annotations

import math

import torch
from torch import nn

from distwsss.config.schema import OptimSection


def parameter_groups(model: nn.Module, section: OptimSection) -> list[dict[str, object]]:
    """Groups by (backbone or head) x (matrices, or biases and norms), each with its `multiplier` and weight decay."""
    heads, vectors = {True: section.head_multiplier, False: 1.0}, {True: section.bias_multiplier, False: 1.0}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_head, is_vector = not name.startswith("backbone."), parameter.ndim <= 1
            groups.setdefault((is_head, is_vector), []).append(parameter)
    return [
        {
            "params": parameters,
            "multiplier": heads[is_head] * vectors[is_vector],
            "weight_decay": 0.0 if is_vector and not section.decay_bias else section.weight_decay,
        }
        for (is_head, is_vector), parameters in sorted(groups.items())
    ]


def build_optimizer(model: nn.Module, section: OptimSection) -> torch.optim.Optimizer:
    """SGD or AdamW over `parameter_groups`.

    `compat: psa_momentum` gives SGD the weight decay as its momentum, as psa's tool/torchutils.py passes it (SEAM issue
    21): SEAM's and EPS's published numbers were made so.
    """
    groups = parameter_groups(model, section)
    if section.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=section.lr)
    momentum = section.weight_decay if section.compat == "psa_momentum" else section.momentum
    return torch.optim.SGD(groups, lr=section.lr, momentum=momentum)


def lr_factor(step: int, total: int, warmup: int, section: OptimSection) -> float:
    """What the base learning rate is multiplied by at `step` (0-based): linear warm-up, then the schedule.

    poly: (1 - step / total) ** power, as in DeepLab; cosine: half a period down to 0. Both count from step 0, so that
    the warm-up replaces the first steps of the schedule, as mmsegmentation does.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if section.schedule == "poly":
        return (1 - step / total) ** section.power
    if section.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / total))
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["multiplier"]
