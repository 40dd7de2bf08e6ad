"""Mask2Former's own loss on clean pixels (Cheng et al. 2022, arXiv 2112.01527, section 3.3). Called by `train.terms`.

Per image the targets are the classes present on clean pixels, background like any other, each with its mask over them.
Every decoder layer's queries are matched to them at least cost; then come three sums: the cross-entropy of all queries'
classes, and of the matched masks the binary cross-entropy (mean over points) and the dice loss, both on points where
the prediction is uncertain.

All points are centres of clean pixels, none taken twice (published: anywhere in the image, bilinear in the target). So
noisy and ignored pixels enter neither costs nor losses, and where `points` is at least their number no chance is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, grid_sample, softplus

from distwsss.config.networks import Mask2FormerSection

UNUSABLE = 1e10  # cost in place of one that is not finite: the loss will not be either, which the loop reports


def set_counts(labels: Tensor, clean: Tensor, section: Mask2FormerSection) -> tuple[float, int]:
    """What the sums of `set_sums` are to be divided by, from labels alone: the weights of the classification targets,
    and the matched masks, of one layer.

    labels: integers B,H,W; clean: bool B,H,W. An image without clean pixels adds nothing.
    """
    weights, masks = 0.0, 0
    for image, mask in zip(labels, clean, strict=True):
        matched = min(int(image[mask].long().bincount().count_nonzero()), section.queries)
        masks += matched
        weights += matched + section.no_object * (section.queries - matched) if matched else 0
    return weights, masks


def set_sums(
    layers: Sequence[tuple[Tensor, Tensor]], labels: Tensor, clean: Tensor, section: Mask2FormerSection
) -> Tensor:
    """Sums over the images and the layers: classes, masks, dice -> float32[3] with graph (float64 for float64).

    layers: per decoder layer the logits of classes B,Q,K+1 (no-object last) and of masks B,Q,h,w; labels: integers
    B,H,W, below K where `clean`, bool B,H,W, holds. float32 also under autocast. Points come from torch's global RNG.
    """
    with torch.autocast(labels.device.type, enabled=False):
        wide = [(_wide(classes), _wide(masks)) for classes, masks in layers]
        # nothing of no element: a zero that is connected to the graph
        total = torch.stack([sum(classes[:0].sum() + masks[:0].sum() for classes, masks in wide)] * 3)
        for i in range(len(labels)):
            if clean[i].any():
                total = total + _image_sums([(c[i], m[i]) for c, m in wide], labels[i], clean[i], section)
        return total


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _image_sums(
    layers: list[tuple[Tensor, Tensor]], labels: Tensor, clean: Tensor, section: Mask2FormerSection
) -> Tensor:
    """layers: classes Q,K+1 and masks Q,h,w; labels and clean H,W, with a clean pixel at least."""
    present, targets = labels[clean].long().unique(return_inverse=True)  # T, and for each of n clean pixels 0..T-1
    grid = _centres(clean, layers[0][1].dtype)
    total = []
    for (classes, masks), (rows, columns) in zip(
        layers, _matches(layers, present, targets, grid, section), strict=True
    ):
        wanted = torch.full((len(classes),), classes.shape[1] - 1, device=classes.device)
        wanted[rows] = present[columns]
        weights = torch.ones_like(classes[0])
        weights[-1] = section.no_object
        on_classes = cross_entropy(classes, wanted, weights, reduction="sum")
        total.append(torch.stack([on_classes, *_mask_sums(masks[rows], columns, targets, grid, section)]))
    return torch.stack(total).sum(dim=0)


def _centres(clean: Tensor, dtype: torch.dtype) -> Tensor:
    """clean H,W -> n,2: x and y of the clean pixels' centres as grid_sample takes them, -1 and 1 the image's edges."""
    places = clean.nonzero().flip(1).to(dtype) + 0.5
    return 2 * places / torch.tensor(clean.shape[::-1], dtype=dtype, device=clean.device) - 1


def _at_points(masks: Tensor, points: Tensor) -> Tensor:
    """masks R,h,w at points R,P,2 or P,2, bilinear -> R,P."""
    if points.ndim == 2:  # the same for all
        return grid_sample(masks[None], points[None, None], align_corners=False)[0, :, 0]
    return grid_sample(masks[:, None], points[:, None], align_corners=False)[:, 0, 0]


@torch.no_grad()
def _matches(
    layers: list[tuple[Tensor, Tensor]], present: Tensor, targets: Tensor, grid: Tensor, section: Mask2FormerSection
) -> list[tuple[Tensor, Tensor]]:
    """Per layer the matched queries and their targets, min(Q, T) of each. All layers see the same points."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and for this loss only

    if len(grid) > section.points:
        chosen = torch.randperm(len(grid), device=grid.device)[: section.points]
        grid, targets = grid[chosen], targets[chosen]
    masks_wanted = (targets == torch.arange(len(present), device=targets.device)[:, None]).to(grid)  # T,P
    costs = torch.stack([_costs(c, m, present, masks_wanted, grid, section) for c, m in layers])
    costs = costs.nan_to_num(UNUSABLE, UNUSABLE, UNUSABLE)
    found = [linear_sum_assignment(cost) for cost in costs.cpu().numpy()]
    return [(torch.as_tensor(r).to(grid.device), torch.as_tensor(c).to(grid.device)) for r, c in found]


def _costs(
    classes: Tensor, masks: Tensor, present: Tensor, wanted: Tensor, grid: Tensor, section: Mask2FormerSection
) -> Tensor:
    """Q,T: what it costs to match a query with a target, of classes Q,K+1, masks Q,h,w and target masks T,P."""
    logits = _at_points(masks, grid)  # Q,P
    on_class = -classes.softmax(dim=-1)[:, present]
    on_mask = (softplus(-logits) @ wanted.T + softplus(logits) @ (1 - wanted).T) / len(grid)
    inside = logits.sigmoid()
    together = inside.sum(dim=1)[:, None] + wanted.sum(dim=1)
    on_dice = 1 - (2 * inside @ wanted.T + 1) / (together + 1)
    return section.class_weight * on_class + section.mask_weight * on_mask + section.dice_weight * on_dice


def _mask_sums(
    masks: Tensor, columns: Tensor, targets: Tensor, grid: Tensor, section: Mask2FormerSection
) -> tuple[Tensor, Tensor]:
    """Sums over the matched masks R,h,w of binary cross-entropy (mean over points) and dice loss."""
    points = uncertain_points(masks, grid, section)
    logits = _at_points(masks, grid[points])  # R,P
    wanted = (targets[points] == columns[:, None]).to(logits)
    on_mask = binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1).sum()
    inside = logits.sigmoid()
    together = (inside + wanted).sum(dim=1)
    return on_mask, (1 - (2 * (inside * wanted).sum(dim=1) + 1) / (together + 1)).sum()


@torch.no_grad()
def uncertain_points(masks: Tensor, grid: Tensor, section: Mask2FormerSection) -> Tensor:
    """R,P: which of the n clean pixels each of R masks is compared on, P = min(points, n), none twice.

    The share `importance` of them are those nearest to a logit of 0 among oversample x P drawn; the others are drawn
    from all that are left.
    """
    number = min(section.points, len(grid))
    if number == len(grid):
        return torch.arange(number, device=grid.device).expand(len(masks), -1)
    keys = torch.rand(len(masks), len(grid), device=grid.device)
    drawn = keys.topk(min(len(grid), int(number * section.oversample))).indices
    uncertain = int(number * section.importance)
    nearest = (-_at_points(masks, grid[drawn]).abs()).topk(uncertain).indices
    chosen = drawn.gather(1, nearest)
    others = torch.rand_like(keys).scatter_(1, chosen, -1.0).topk(number - uncertain).indices
    return torch.cat([chosen, others], dim=1)
