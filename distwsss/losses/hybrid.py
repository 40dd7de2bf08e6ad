"""Positive-negative hybrid learning on clean and noisy pixels (METHOD section 4, Eq. 3-10).

Called by `train.terms`; `data.batches.loader` draws the complementary labels, `inference.views` uses the constraint.
Every term is (sum, count); the pixels' losses and the gradient are made by `losses.pixel_losses`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from distwsss.losses.pixel_losses import least_norm, pixel_losses, scales, wide

Term = tuple[Tensor, Tensor]  # sum: float32 scalar with graph; count: int64 scalar
NONE = 255  # in a map of complementary labels beside others: this pixel has no further one


def _positive(temperature: float | None) -> None:
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature is {temperature}; allowed: > 0, or None for no constraint")


def constrained_log_softmax(logits: Tensor, temperature: float | None) -> Tensor:
    """log p*, p* = softmax(z / (tau ||z||)); log softmax(z) for `temperature=None`.

    logits: B,K,... of any float dtype -> float32 (float64 for float64) of the same shape.
    """
    _positive(temperature)
    with torch.autocast(logits.device.type, enabled=False):
        z = wide(logits)
        if temperature is not None:
            z = z * scales((z * z).sum(1, keepdim=True), temperature, least_norm(logits.dtype))[0]
        return torch.log_softmax(z, dim=1)


def _losses(logits: Tensor, targets: Tensor, signs: Tensor, temperature: float | None, weighted: bool = True) -> Tensor:
    """`pixel_losses` of checked arguments; targets are not read where the sign is 0."""
    if logits.ndim != 4 or not (logits.shape[:1] + logits.shape[2:] == targets.shape == signs.shape):
        found = f"logits {list(logits.shape)}, labels {list(targets.shape)}, mask {list(signs.shape)}"
        raise ValueError(f"found {found}; allowed: B,K,H,W with B,H,W of the same B, H, W (upsample the logits first)")
    if logits.shape[1] < 2:
        raise ValueError(f"logits have {logits.shape[1]} class; allowed: at least 2")
    _positive(temperature)
    losses: Tensor = pixel_losses(logits, torch.where(signs == 0, 0, targets).long(), signs, temperature, weighted)[0]
    return losses


def _signs(mask: Tensor, sign: int) -> Tensor:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}; allowed: torch.bool")
    return mask.to(torch.int8) * sign


def cross_entropy_term(logits: Tensor, labels: Tensor, mask: Tensor) -> Term:
    """Eq. 3, -log p_y, summed over the pixels of `mask`. Shapes as in `positive_loss`."""
    return _losses(logits, labels, _signs(mask, 1), None, weighted=False).sum(), mask.sum()


def positive_loss(logits: Tensor, labels: Tensor, mask: Tensor, *, temperature: float | None = 1.0) -> Term:
    """Eq. 8, -W(p_y) log p*_y with the constant weight W, over the pixels of `mask`; Eq. 4 for `temperature=None`.

    logits: float B,K,H,W, any float dtype and layout, K > 1; labels: uint8 or int64 B,H,W; mask: bool B,H,W. Labels
    outside `mask` are never read -> (sum float32 scalar with graph, float64 for float64 logits; count int64 scalar).
    Kept for backward: the logits themselves and a few numbers per pixel. Second derivatives are refused.
    """
    return _losses(logits, labels, _signs(mask, 1), temperature).sum(), mask.sum()


def negative_loss(logits: Tensor, complements: Tensor, mask: Tensor, *, temperature: float | None = 1.0) -> Term:
    """Eq. 9, -(1 - p_c) log(1 - p*_c) with the constant weight 1 - p_c, over the pixels of `mask`.

    complements: uint8 or int64 B,H,W, the class c that the pixel is taught not to be; the rest as in `positive_loss`.
    """
    return _losses(logits, complements, _signs(mask, -1), temperature).sum(), mask.sum()


def sample_complements(labels: Tensor, num_classes: int, *, generator: torch.Generator | None = None) -> Tensor:
    """A class other than the label, uniform over the K - 1 others; any class where the label is not in [0, K).

    labels: integers of any shape -> int64 of that shape on the same device, in [0, num_classes).
    """
    return sample_several(labels, num_classes, 1, generator=generator)[0]


def sample_several(
    labels: Tensor,
    num_classes: int,
    number: int,
    *,
    among: list[int] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`number` different classes other than the label, each set of them equally likely: int64 n,*labels.shape.

    `among`: the classes to draw from, all of them other than any label, instead of the K - 1 others. Where these are
    fewer than `number`, the last maps are 255: no complement. The first map is that of a draw of one.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; allowed: at least 2")
    device = generator.device if generator is not None else labels.device
    there = num_classes - 1 if among is None else len(among)
    taken = [labels.long()] if among is None else []  # ascending at each pixel
    drawn = []
    for i in range(min(number, there)):
        place = torch.randint(there - i, labels.shape, generator=generator, device=device).to(labels.device)
        for other in taken:  # classes 0..there-1-i skip over those taken
            place = place + (place >= other)
        drawn.append(place)
        if i + 1 < number:
            taken = list(torch.stack([*taken, place]).sort(0).values)
    drawn += [torch.full(labels.shape, NONE, device=labels.device)] * (number - len(drawn))
    found = torch.stack(drawn)
    if among is None:
        return found
    return torch.tensor([*among, *[NONE] * (NONE + 1 - len(among))], device=labels.device)[found]


class HybridLoss(NamedTuple):
    """Sum and count of Eq. 8 over clean pixels and of Eq. 9 over noisy ones."""

    positive: Term
    negative: Term

    @property
    def value(self) -> Tensor:
        """Eq. 10 on these tensors: (S_pos + S_neg) / (clean + noisy pixels); 0 without any."""
        (positive, clean), (negative, noisy) = self
        return (positive + negative) / (clean + noisy).clamp(min=1)


def hybrid_loss(
    logits: Tensor,
    labels: Tensor,
    clean: Tensor,
    *,
    complements: Tensor | None = None,
    generator: torch.Generator | None = None,
    temperature: float | None = 1.0,
    ignore_index: int = 255,
) -> HybridLoss:
    """Both terms for pseudo-labels `labels` with clean mask `clean`; noisy = not clean and not `ignore_index`.

    Shapes as in `positive_loss`; one pass over the logits for both. `complements` default to
    `sample_complements(labels, K, generator=generator)`. With several, B,n,H,W, a noisy pixel's loss is the mean over
    its own, those that are not 255; each but the first takes another pass.
    """
    valid = labels != ignore_index
    if complements is None:
        complements = sample_complements(labels, logits.shape[1], generator=generator)
    first = complements if complements.ndim < 4 else complements[:, 0]
    positive, negative = valid & clean, valid & ~clean
    learned = negative if complements.ndim < 4 else negative & (first != NONE)
    signs = _signs(positive, 1) + _signs(learned, -1)
    losses = _losses(logits, torch.where(clean, labels, first), signs, temperature)
    noisy = torch.where(learned, losses, 0.0)
    if complements.ndim == 4:
        noisy = _mean_over(logits, complements, negative, noisy, temperature)
    return HybridLoss((torch.where(positive, losses, 0.0).sum(), positive.sum()), (noisy.sum(), negative.sum()))


def _mean_over(
    logits: Tensor, complements: Tensor, mask: Tensor, first: Tensor, temperature: float | None
) -> Tensor:
    """Eq. 9 of each pixel of `mask`, meaned over its complements B,n,H,W: B,H,W; `first` is that of the first."""
    there, total = complements != NONE, first
    for i in range(1, complements.shape[1]):
        total = total + _losses(logits, complements[:, i], _signs(mask & there[:, i], -1), temperature)
    return total / there.sum(1).clamp(min=1)
