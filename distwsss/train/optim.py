"""Optimizer, parameter groups and the learning rate as a function of the step. Called by `train.loop`."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distwsss.config.training import OptimSection

# modules whose parameters, and tables whose names, are positions and scales rather than weights: norms, embeddings
NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
TABLES = ("relative_position_bias_table", "position_embeddings", "level_embed")


def _kinds(model: nn.Module) -> dict[str, str]:
    """Parameter name -> `matrix`, `vector` (biases) or `norm` (normalisation layers, embeddings, position tables)."""
    kinds = {}
    for prefix, module in model.named_modules():
        for last, parameter in module.named_parameters(prefix, recurse=False):
            if isinstance(module, NORMS) or last.endswith(TABLES):
                kinds[last] = "norm"
            else:
                kinds[last] = "vector" if parameter.ndim <= 1 else "matrix"
    return kinds


def parameter_groups(model: nn.Module, section: OptimSection) -> list[dict[str, object]]:
    """Groups by (backbone or head) x kind, each with its `multiplier` (of the learning rate) and weight decay."""
    decays = {"matrix": True, "vector": section.decay_bias, "norm": section.decay_norm}
    places = {True: section.head_multiplier, False: section.backbone_multiplier}
    kinds = _kinds(model)
    groups: dict[tuple[bool, str], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((not name.startswith("backbone."), kinds[name]), []).append(parameter)
    return [
        {
            "params": parameters,
            "multiplier": places[is_head] * (1.0 if kind == "matrix" else section.bias_multiplier),
            "weight_decay": section.weight_decay if decays[kind] else 0.0,
        }
        for (is_head, kind), parameters in sorted(groups.items())
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
