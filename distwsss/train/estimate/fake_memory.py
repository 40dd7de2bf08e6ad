"""What code would hold in memory, by a run of it on fake tensors: shapes, no data. Called by `fake_step`.

Fake tensors are on the device "cpu": on "cuda" autograd's engine asks the driver, which a machine without a GPU lacks.
`cuda_autocast_rules` makes dtypes under autocast those of CUDA. What still differs is said in docs/estimate.md.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.library import _scoped_library
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

CPU = torch.device("cpu")
# what CUDA's autocast computes in float32 and the CPU's does not (PyTorch documentation, Autocast Op Reference)
FLOAT32 = (
    *("layer_norm", "native_layer_norm", "group_norm", "softmax.int", "log_softmax.int", "softplus", "logsumexp"),
    *("exp", "log", "rsqrt", "reciprocal", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "cumsum", "prod"),
    *("sum", "sum.dim_IntList", "linalg_vector_norm", "binary_cross_entropy_with_logits", "nll_loss"),
    *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest2d", "_upsample_nearest_exact2d"),
)


def _convolution_backward(gradient: Tensor, images: Tensor, weight: Tensor, *rest: Any, out_val: Any) -> int:
    """Of the gradients asked for, of images and weights, each as much as forward."""
    _, _, _, _, transposed, _, _, (of_images, of_weight, _) = rest
    places = math.prod((images if transposed else gradient).shape[2:])
    return 2 * weight.numel() * len(images) * places * (of_images + of_weight)


# operator -> its floating-point operations. torch's table counts every group of a convolution against all others in
# backward, and leaves out the CPU's attention
ATEN = torch.ops.aten
OPERATIONS = {
    **flop_registry,
    ATEN.convolution_backward: _convolution_backward,
    ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[ATEN._scaled_dot_product_flash_attention],
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        ATEN._scaled_dot_product_flash_attention_backward
    ],
}


def fake_module(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """`module`, built on the device "meta", with fake tensors for its parameters and buffers."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = FakeTensor(mode, parameter.detach(), CPU)
                part._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = FakeTensor(mode, buffer, CPU)
    return module


class PeakMemory(TorchDispatchMode):
    """Bytes of the storages that operators under it make, by kind, now (`held`) and at the peak (`at_peak`); and their
    floating-point operations, those of products and convolutions (`flops`).

    block: what the allocator rounds up to, in bytes. Storages are `activations` unless `mark` says otherwise. Operators
    whose tensors all have data (labels, and what is computed of them) run on it; what the host reads of a fake tensor
    is 0. (torch's FlopCounterMode keeps what checkpoints recompute in memory, so that it cannot run beside.)
    """

    def __init__(self, block: int = 1) -> None:
        super().__init__()
        self.block, self.held, self.at_peak, self.flops = block, Counter[str](), Counter[str](), 0
        self._kinds: dict[int, tuple[str, int, weakref.ref[Any]]] = {}

    def mark(self, tensor: Tensor, kind: str) -> None:
        """Count the storage of `tensor` as `kind` from now on."""
        storage = tensor.untyped_storage()
        key, size = id(storage), -(-storage.nbytes() // self.block) * self.block
        if key in self._kinds:
            self.held[self._kinds[key][0]] -= self._kinds[key][1]
        self.held[kind] += size
        self._kinds[key] = (kind, size, weakref.ref(storage, lambda _: self._drop(key)))

    def _drop(self, key: int) -> None:
        kind, size, _ = self._kinds.pop(key)
        self.held[kind] -= size

    def reset(self) -> None:
        """Begin anew with peak and operations."""
        self.at_peak, self.flops = self.held.copy(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if fake and func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if tensors[0].is_floating_point() else False if tensors[0].dtype == torch.bool else 0
        if fake and func is torch.ops.aten.index.Tensor:
            args = (args[0], [part for index in args[1] for part in _places(index)])
        if tensors and not fake:
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
        if func.overloadpacket in OPERATIONS:
            self.flops += OPERATIONS[func.overloadpacket](*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self._kinds:
                self.mark(tensor, "activations")
        if self.held.total() > self.at_peak.total():
            self.at_peak = self.held.copy()
        return out


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask that has data as the indices it means, whose number a fake mask would not tell."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return (index,)
    with unset_fake_temporarily():
        return index.nonzero(as_tuple=True)


class HostReads(TorchFunctionMode):
    """A fake tensor read as a NumPy array is zeros: a matching of masks (Mask2Former) becomes a fixed one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):
            return np.zeros(args[0].shape, np.float32)
        return func(*args, **(kwargs or {}))


def _in_float32(operator: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            wide = [arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
            return operator(*wide, **kwargs)

    return run


@contextmanager
def cuda_autocast_rules() -> Iterator[None]:
    """Let autocast treat tensors on "cpu" as it does those on CUDA. The rules that differ are in place inside only."""
    with _scoped_library("aten", "IMPL") as library:
        for name in FLOAT32:
            packet, _, overload = name.partition(".")
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA"):
                operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
                library.impl(name, _in_float32(operator), "AutocastCPU")
        yield
