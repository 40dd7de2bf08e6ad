"""Positive-negative hybrid learning on clean and noisy pixels (METHOD section 4, Eq. 3-10).

Called by `train.task`; `data.batches` draws the complementary labels, `evaluate.inference` uses the constraint.
Every term is (sum, count). Only the masked pixels are gathered, as n,K rows: the labels elsewhere are never read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

Term = tuple[Tensor, Tensor]  # sum: float32 scalar with graph; count: int64 scalar


class _UnitRows(torch.autograd.Function):
    """z / ||z||_2 over the last dimension, with METHOD Eq. 7's projection as its gradient.

    Written out because autograd's own chain takes twice the passes over n,K. A row whose norm is at most `least` is
    returned as it is, with gradient 1: at 0 the true gradient does not exist, and near 0 it is as large as 1 / ||z||.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, least: float) -> Tensor:
        norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        divided = norm > least
        norm = torch.where(divided, norm, 1.0)
        unit = z / norm
        ctx.save_for_backward(unit, norm, divided)
        return unit

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        unit, norm, divided = ctx.saved_tensors
        gradient = gradients[0]
        along = torch.einsum("...k,...k->...", gradient, unit).unsqueeze(-1) * divided
        return torch.addcmul(gradient, unit, along, value=-1).div_(norm), None


def _constrain(z: Tensor, temperature: float, least: float = 1e-12) -> Tensor:
    """z / (tau ||z||) over the last dimension; z / tau where ||z|| <= `least`."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; allowed: > 0, or None for no constraint")
    unit: Tensor = _UnitRows.apply(z, least)
    return unit if temperature == 1 else unit / temperature


def _least(dtype: torch.dtype) -> float:
    """Norms up to this are not divided by: the gradient, about 1 / (tau ||z||), must be finite in the logits' dtype."""
    return 1e-3 if dtype == torch.float16 else 1e-12


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def constrained_log_softmax(logits: Tensor, temperature: float | None) -> Tensor:
    """log p*, p* = softmax(z / (tau ||z||)); log softmax(z) for `temperature=None`.

    logits: B,K,... of any float dtype -> float32 (float64 for float64) of the same shape.
    """
    with torch.autocast(logits.device.type, enabled=False):
        z = _wide(logits)
        if temperature is not None:
            z = _constrain(z.movedim(1, -1), temperature, _least(logits.dtype)).movedim(-1, 1)
        return torch.log_softmax(z, dim=1)


def _rows(logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """logits B,K,H,W, labels and mask B,H,W -> the n masked pixels: logits n,K, labels int64 n, and n."""
    if logits.ndim != 4 or not (logits.shape[:1] + logits.shape[2:] == labels.shape == mask.shape):
        found = f"logits {list(logits.shape)}, labels {list(labels.shape)}, mask {list(mask.shape)}"
        raise ValueError(f"found {found}; allowed: B,K,H,W with B,H,W of the same B, H, W (upsample the logits first)")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}; allowed: torch.bool")
    return _wide(logits.permute(0, 2, 3, 1)[mask]), labels[mask].long(), mask.sum()


def _adjustment(p: Tensor) -> Tensor:
    """W(p) of Eq. 4."""
    squared = p * p
    fourth = squared * squared
    return (1 + p) * (1 + squared) * (1 + fourth) * (1 + fourth * fourth)


def _excess(z: Tensor, classes: Tensor) -> Tensor:
    """z_c - log sum_{j != c} exp(z_j) of n,K rows -> n: the logit of p_c, exact where p_c rounds to 0 or 1."""
    column = classes.unsqueeze(1)
    others = z.scatter(1, column, -torch.inf)
    return z.gather(1, column).squeeze(1) - torch.logsumexp(others, dim=1)


def cross_entropy_term(logits: Tensor, labels: Tensor, mask: Tensor) -> Term:
    """Eq. 3, -log p_y, summed over the pixels of `mask`. Shapes as in `positive_loss`."""
    with torch.autocast(logits.device.type, enabled=False):
        z, y, count = _rows(logits, labels, mask)
        return cross_entropy(z, y, reduction="sum"), count


def positive_loss(logits: Tensor, labels: Tensor, mask: Tensor, *, temperature: float | None = 1.0) -> Term:
    """Eq. 8, -W(p_y) log p*_y with the constant weight W, over the pixels of `mask`; Eq. 4 for `temperature=None`.

    logits: float B,K,H,W, any float dtype; labels: uint8 or int64 B,H,W; mask: bool B,H,W. Labels outside `mask` are
    never read -> (sum float32 scalar with graph, float64 for float64 logits; count int64 scalar).
    """
    with torch.autocast(logits.device.type, enabled=False):
        z, y, count = _rows(logits, labels, mask)
        if temperature is None:
            losses = cross_entropy(z, y, reduction="none")
            weights = _adjustment(torch.exp(-losses.detach()))
        else:
            weights = _adjustment(torch.exp(-cross_entropy(z.detach(), y, reduction="none")))
            losses = cross_entropy(_constrain(z, temperature, _least(logits.dtype)), y, reduction="none")
        return (weights * losses).sum(), count


def negative_loss(logits: Tensor, complements: Tensor, mask: Tensor, *, temperature: float | None = 1.0) -> Term:
    """Eq. 9, -(1 - p_c) log(1 - p*_c) with the constant weight 1 - p_c, over the pixels of `mask`.

    complements: uint8 or int64 B,H,W, the class c that the pixel is taught not to be; the rest as in `positive_loss`.
    -log(1 - p*_c) = log(1 + exp(excess)) with the excess of z_c over the log-sum-exp of the other classes.
    """
    if logits.shape[1] < 2:
        raise ValueError(f"logits have {logits.shape[1]} class; allowed: at least 2")
    with torch.autocast(logits.device.type, enabled=False):
        z, c, count = _rows(logits, complements, mask)
        plain = _excess(z if temperature is None else z.detach(), c)
        weights = torch.sigmoid(-plain.detach())  # 1 - p_c
        if temperature is None:
            excess = plain
        else:
            excess = _excess(_constrain(z, temperature, _least(logits.dtype)), c)
        return (weights * -logsigmoid(-excess)).sum(), count


def sample_complements(labels: Tensor, num_classes: int, *, generator: torch.Generator | None = None) -> Tensor:
    """A class other than the label, uniform over the K - 1 others; any class where the label is not in [0, K).

    labels: integers of any shape -> int64 of that shape on the same device, in [0, num_classes).
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; allowed: at least 2")
    device = generator.device if generator is not None else labels.device
    drawn = torch.randint(num_classes - 1, labels.shape, generator=generator, device=device).to(labels.device)
    return drawn + (drawn >= labels)  # classes 0..K-2 skip over the label


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

    Shapes as in `positive_loss`. `complements` default to `sample_complements(labels, K, generator=generator)`.
    """
    valid = labels != ignore_index
    if complements is None:
        complements = sample_complements(labels, logits.shape[1], generator=generator)
    return HybridLoss(
        positive_loss(logits, labels, valid & clean, temperature=temperature),
        negative_loss(logits, complements, valid & ~clean, temperature=temperature),
    )
