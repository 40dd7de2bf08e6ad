"""Each pixel's Eq. 3, 8 or 9 (METHOD section 4) from the logits where they lie, a few rows of an image at a time.

Called by `losses.hybrid`. Every loss is weight * softplus(-sign * e), e = q_t - log sum_{j != t} exp(q_j) being the
logit of p*_t, t the target class and q = z / (tau ||z||); q = z without a temperature. Positive: sign 1, t the label,
weight W(p_y). Negative: sign -1, t the complementary label, weight 1 - p_c. With r the softmax of q over the other
classes (r_t = 0), u = z / ||z|| and the weights constant, Eq. 7 reads

    dL/dq_j = sign * weight * sigmoid(-sign * e) * (r_j - [j = t]),    dL/dz = (dL/dq - u (u . dL/dq)) / (tau ||z||)

and nothing cancels where p rounds to 0 or 1. Exponentials are computed anew in backward: beside the logits, an input,
only maps of a few numbers per pixel are kept. Both directions are operators, which torch.compile takes as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# Logits at a time. On the CPU two float32 buffers of that size stay in the last cache, and threads, which meet after
# each operation, do not meet too often; elsewhere few kernels count, and a fraction of the logits at paper scale.
CHUNK = {"cpu": 1 << 20}
LARGE_CHUNK = 1 << 23
LOG2E = math.log2(math.e)  # exp(x) as exp2(x log2 e): ATen's exp2 takes a third of the time of its exp on the CPU

Part = tuple[slice, slice]  # images, rows


def least_norm(dtype: torch.dtype) -> float:
    """Norms up to this are not divided by: the gradient, about 1 / (tau ||z||), must be finite in the logits' dtype."""
    return 1e-3 if dtype == torch.float16 else 1e-12


def wide(tensor: Tensor) -> Tensor:
    """float32, or float64 as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def scales(square: Tensor, temperature: float, least: float) -> tuple[Tensor, Tensor]:
    """From ||z||^2: 1 / (tau ||z||) and 1 / ||z||^2; but 1 / tau and 0, no division, where ||z|| <= `least`."""
    divided = square > least * least
    inverse = torch.where(divided, square, 1.0).rsqrt()
    return inverse / temperature, torch.where(divided, inverse * inverse, 0.0)


def adjustment(p: Tensor) -> Tensor:
    """W(p) of Eq. 4."""
    squared = p * p
    fourth = squared * squared
    return (1 + p) * (1 + squared) * (1 + fourth) * (1 + fourth * fourth)


def _chunks(logits: Tensor) -> Iterator[tuple[Part, Tensor, Tensor, Tensor]]:
    """Where in B,H,W; those logits 1,K,h,W, wide; two buffers of their shape and layout, whatever they hold."""
    _, classes, height, width = logits.shape
    rows = max(1, min(height, CHUNK.get(logits.device.type, LARGE_CHUNK) // max(1, classes * width)))
    buffers = [torch.empty_like(logits[:1, :, :rows], dtype=wide(logits[:0]).dtype) for _ in range(2)]
    for image in range(len(logits)):
        for top in range(0, height, rows):
            part = slice(image, image + 1), slice(top, min(top + rows, height))
            first, second = (buffer[:, :, : part[1].stop - top] for buffer in buffers)
            yield part, wide(logits[part[0], :, part[1]]), first, second


def _over_others(logits: Tensor, targets: Tensor, temperature: float | None) -> dict[str, Tensor]:
    """Maps B,H,W over the classes j != t: top = max z_j; plain = sum of exp(z_j - top); above = z_t - top.

    With a temperature also square = ||z||^2 and constrained = sum of exp(q_j - max q_j).
    """
    names = ("above", "top", "plain", "constrained", "square")
    maps = {name: torch.empty_like(targets, dtype=wide(logits[:0]).dtype) for name in names}
    least = least_norm(logits.dtype)
    for part, z, others, product in _chunks(logits):
        target, top = targets[part].unsqueeze(1), maps["top"][part]
        others.copy_(z).scatter_(1, target, -torch.inf)
        torch.amax(others, 1, out=top)
        torch.sub(z.gather(1, target)[:, 0], top, out=maps["above"][part])
        others.sub_(top.unsqueeze(1))
        if temperature is not None:
            torch.sum(torch.mul(z, z, out=product), 1, out=maps["square"][part])
            scale = scales(maps["square"][part], temperature, least)[0].mul_(LOG2E).unsqueeze(1)
            torch.sum(torch.mul(others, scale, out=product).exp2_(), 1, out=maps["constrained"][part])
        torch.sum(others.mul_(LOG2E).exp2_(), 1, out=maps["plain"][part])
    return maps


@torch.library.custom_op("distwsss::pixel_losses", mutates_args=())
def pixel_losses(
    logits: Tensor, targets: Tensor, signs: Tensor, temperature: float | None, weighted: bool
) -> tuple[Tensor, Tensor]:
    """logits: float B,K,H,W of any layout, K > 1; targets: int64 B,H,W in [0, K); signs: B,H,W, 1, -1 or 0 (ignored).

    -> losses B,H,W, float32 (float64 for float64), 0 where ignored, weight 1 unless `weighted`; what backward needs.
    """
    maps = _over_others(logits, targets, temperature)
    excess = maps["above"] - maps["plain"].log()
    total, sign, weight = maps["plain"], signs.to(excess.dtype), torch.ones_like(excess)
    if weighted:
        weight = torch.where(sign > 0, adjustment(torch.sigmoid(excess)), torch.sigmoid(-excess))
    if temperature is not None:
        scale, _ = scales(maps["square"], temperature, least_norm(logits.dtype))
        total = maps["constrained"]
        excess = maps["above"] * scale - total.log()
    losses = torch.where(sign == 0, 0.0, -weight * logsigmoid(sign * excess))
    slope = sign * weight * torch.sigmoid(-sign * excess) / total
    kept = [maps["top"], total, slope] + ([] if temperature is None else [maps["square"]])
    return losses, torch.stack(kept)


@torch.library.custom_op("distwsss::pixel_losses_backward", mutates_args=())
def pixel_losses_backward(
    gradient: Tensor, logits: Tensor, targets: Tensor, kept: Tensor, temperature: float | None
) -> Tensor:
    """The gradient B,K,H,W, in the logits' dtype and layout, from that of the losses."""
    found = torch.empty_like(logits)
    top, total, factor = kept[0], kept[1], kept[2] * gradient
    scale = torch.ones_like(top)
    if temperature is not None:
        scale, inverse_square = scales(kept[3], temperature, least_norm(logits.dtype))
        factor.mul_(scale)
    scale = scale * LOG2E
    for part, z, r, product in _chunks(logits):
        torch.sub(z, top[part].unsqueeze(1), out=r).mul_(scale[part].unsqueeze(1)).exp2_()
        r.scatter_(1, targets[part].unsqueeze(1), -total[part].unsqueeze(1))
        r.mul_(factor[part].unsqueeze(1))  # dL/dq / (tau ||z||)
        into = found[part[0], :, part[1]]
        if temperature is None:
            into.copy_(r)
        else:
            along = torch.sum(torch.mul(r, z, out=product), 1).mul_(inverse_square[part])
            torch.addcmul(r, z, along.unsqueeze(1), value=-1, out=into)
    return found


@pixel_losses.register_fake
def _(logits: Tensor, targets: Tensor, signs: Tensor, temperature: float | None, weighted: bool) -> Any:
    losses = torch.empty_like(targets, dtype=wide(logits[:0]).dtype)
    return losses, losses.new_empty(3 if temperature is None else 4, *targets.shape)


@pixel_losses_backward.register_fake
def _(gradient: Tensor, logits: Tensor, targets: Tensor, kept: Tensor, temperature: float | None) -> Tensor:
    return torch.empty_like(logits)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    logits, targets, _, ctx.temperature, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, targets, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
    return pixel_losses_backward(gradient, *ctx.saved_tensors, ctx.temperature), None, None, None, None


def _refuse(ctx: Any, gradient: Tensor) -> Any:
    raise RuntimeError("second derivatives of the hybrid losses are not implemented; leave out create_graph=True")


pixel_losses.register_autograd(_backward, setup_context=_setup)
pixel_losses_backward.register_autograd(_refuse)
