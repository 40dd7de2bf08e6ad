"""The classifier's loss (METHOD section 1, Eq. 1). Called by `train.task`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def multilabel_loss(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Multi-label sigmoid cross-entropy: mean over the N classes, summed over the images.

    scores: float B,N before the sigmoid; targets: B,N, 1 where the class is present -> (sum float32 scalar with
    graph, count int64 scalar = B). float32 also under autocast (float64 stays float64).
    """
    if scores.shape != targets.shape or scores.ndim != 2:
        raise ValueError(f"scores are {list(scores.shape)}, targets {list(targets.shape)}; allowed: both B,N")
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores if scores.dtype == torch.float64 else scores.float()
        losses = binary_cross_entropy_with_logits(scores, targets.to(scores), reduction="none")  # B,N
        return losses.mean(dim=1).sum(), torch.tensor(len(scores), device=scores.device)
