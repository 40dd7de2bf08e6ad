"""Activations recomputed in backward instead of kept: a second forward for memory. Called by `backbones`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def residual_blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks that `net` is a chain of: members of a sequence with two convolutions or more, the smallest such.

    A net that is no such sequence itself may name them by its method `blocks`.
    """
    if hasattr(net, "blocks"):
        return net.blocks()
    members = [child for sequence in net.modules() if _is_sequence(sequence) for child in sequence.children()]
    blocks = [child for child in members if not _is_sequence(child) and _convolutions(child) > 1]
    found = {id(block) for block in blocks}
    return [block for block in blocks if sum(id(part) in found for part in block.modules()) == 1]


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d | nn.Linear) for part in module.modules())


def recompute(blocks: list[nn.Module]) -> None:
    """Let backward recompute what `blocks` compute, dropout alike. BatchNorm counts each batch once."""
    for block in blocks:
        if "forward" not in vars(block):
            block.forward = partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Callable[..., Tensor], *inputs: Any, **named: Any) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """BatchNorm in training normalises by the batch, but leaves its running statistics as they are."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
