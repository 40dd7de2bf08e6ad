"""EPS's objective for the classifier: its maps, foreground and background, together explain a saliency map. Called by
`train.task` where `classify.saliency` is set.

Lee, Lee, Lee, Shim: Railroad is not a Train: Saliency as Pseudo-pixel Supervision for Weakly Supervised Semantic
Segmentation. CVPR 2021, arXiv 2105.08965, section 3. Where the paper leaves a choice, this is ours:

- The maps M are the softmax over the N + 1 channels at each position (as the authors' inference has it), without ReLU
  or division by a maximum, so that M_fg and 1 - M_bg lie in 0..1.
- The saliency map comes to the maps' size by averaging over each position's area, padding left out; a position weighs
  as much as it has of the photograph.
- Overlap is |B(M_i) and B(M_s)| / |B(M_i)|, B being "above 0.5"; a map that is nowhere above 0.5 has overlap 0. The
  grouping by it is a decision: no gradient flows through it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

ABOVE = 0.5  # B(M): where a map, of a class or of saliency, is taken as set
OUTSIDE = -1  # of a saliency map: padding, outside the photograph


def saliency_loss(
    maps: Tensor, targets: Tensor, saliency: Tensor, overlap: float = 0.4, blend: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Mean over each photograph's positions of (blend M_fg + (1 - blend)(1 - M_bg) - M_s)^2, summed over photographs.

    maps: float B,N+1,h,w before the softmax, background last; targets: B,N, 1 where the class is tagged; saliency: int
    B,H,W, 0..255, OUTSIDE in padding -> (sum float32 scalar with graph, count int64 scalar = B). float32 also under
    autocast (float64 stays float64). overlap: tau; blend: lambda.
    """
    if maps.ndim != 4 or targets.shape != (maps.shape[0], maps.shape[1] - 1):
        raise ValueError(f"maps are {list(maps.shape)}, targets {list(targets.shape)}; allowed: B,N+1,h,w and B,N")
    with torch.autocast(maps.device.type, enabled=False):
        shares = (maps if maps.dtype == torch.float64 else maps.float()).softmax(dim=1)
        wanted, weights = at_positions(saliency, shares)
        foreground, background = grouped(shares, targets, wanted, weights, overlap)
        estimated = blend * foreground + (1 - blend) * (1 - background)
        errors = (weights * (estimated - wanted) ** 2).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp(min=1e-6)
        return errors.sum(), torch.tensor(len(maps), device=maps.device)


def at_positions(saliency: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """saliency int B,H,W at the size of `like` B,K,h,w: its mean of 0..1 over what each position has of the photograph
    (0 where that is nothing), and the share of the position that is inside; both B,h,w of like's dtype."""
    inside = (saliency != OUTSIDE).to(like.dtype)
    size = (like.shape[-2], like.shape[-1])
    weights = adaptive_avg_pool2d(inside, size)
    means = adaptive_avg_pool2d(inside * saliency.to(like.dtype) / 255, size)
    return means / weights.clamp(min=1e-6), weights


def grouped(
    shares: Tensor, targets: Tensor, wanted: Tensor, weights: Tensor, overlap: float
) -> tuple[Tensor, Tensor]:
    """M_fg and M_bg, B,h,w: the tagged classes whose maps lie on what is salient, and the others with the background
    channel. shares: B,N+1,h,w of sum 1; wanted, weights: as of `at_positions`."""
    classes, tagged = shares[:, :-1], targets.bool()
    with torch.no_grad():
        claimed = (classes > ABOVE) * weights[:, None]
        salient = claimed * (wanted > ABOVE)[:, None]
        share = salient.sum(dim=(2, 3)) / claimed.sum(dim=(2, 3)).clamp(min=1e-6)
        front = tagged & (share > overlap)  # B,N
    foreground = (classes * front[..., None, None]).sum(dim=1)
    return foreground, shares[:, -1] + (classes * (tagged & ~front)[..., None, None]).sum(dim=1)
