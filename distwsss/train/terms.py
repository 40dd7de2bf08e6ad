"""A segmenter's loss terms: each output against the labels at its size. Called by `train.task`.

Counts come from labels and masks alone, so that the loop can add them over ranks before the first backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distwsss.config.stages import TrainSection
from distwsss.data.batches.loader import Batch
from distwsss.losses.hybrid import cross_entropy_term, hybrid_loss, positive_loss
from distwsss.losses.set_prediction import set_counts, set_sums

Parts = dict[str, tuple[Tensor, Tensor | float]]  # what is logged: name -> (sum, count)
Size = tuple[int, int]


@dataclass(frozen=True)
class Terms:
    """`weights`, `counts` and `sums` of `train.task.Task`."""

    weights: tuple[float, ...]
    counts: Callable[[Batch], list[float]]
    sums: Callable[[Any, Batch], tuple[Tensor, Parts]]


def segmenter_terms(section: TrainSection, model: nn.Module, falls: int = 0) -> Terms:
    """One term of weight 1 per output of `model.training_outputs`, of the loss that `section.loss` names; for
    Mask2Former with `set_loss` above 0 also its own three. falls: steps in which the temperature falls."""

    def counts(batch: Batch) -> list[float]:
        return [int(_learned(batch, size, section).sum()) for size in model.loss_sizes(*batch.labels.shape[-2:])]

    def sums(outputs: list[Tensor], batch: Batch) -> tuple[Tensor, Parts]:
        tau = temperature_at(section, batch.step, falls)
        found = [
            pixel_terms(logits, batch, size, section, model, tau)
            for logits, size in zip(outputs, model.loss_sizes(*batch.labels.shape[-2:]), strict=True)
        ]
        return torch.stack([torch.stack([part for part, _ in parts.values()]).sum() for parts in found]), found[0]

    crop = section.augment.crop
    terms = Terms((1.0,) * len(model.loss_sizes(crop, crop)), counts, sums)
    return with_set_loss(terms, section) if section.model == "mask2former" and section.mask2former.set_loss else terms


def temperature_at(section: TrainSection, step: int, falls: int) -> float | None:
    """tau of a step: from `temperature_from` to `temperature` in equal ratios over `falls` steps, then that."""
    first, last = section.temperature_from, section.temperature
    if first is None or last is None or step >= falls:
        return last
    return float(first * (last / first) ** (step / falls))


def with_set_loss(pixels: Terms, section: TrainSection) -> Terms:
    """`pixels` and Mask2Former's classes, masks and dice, on its clean pixels; outputs are its `SetOutputs`."""
    sizes = section.mask2former

    def clean(batch: Batch) -> Tensor:
        valid = batch.labels != 255
        return valid & batch.clean if section.loss == "hybrid" else valid

    def counts(batch: Batch) -> list[float]:
        classes, masks = set_counts(batch.labels, clean(batch), sizes)
        return [*pixels.counts(batch), classes, masks, masks]

    def sums(outputs: Any, batch: Batch) -> tuple[Tensor, Parts]:
        on_pixels, parts = pixels.sums(outputs.logits, batch)
        on_sets = set_sums(outputs.layers, batch.labels, clean(batch), sizes)
        classes, masks = set_counts(batch.labels, clean(batch), sizes)
        logged = zip(("set_class", "set_mask", "set_dice"), on_sets, (classes, masks, masks), strict=True)
        return torch.cat([on_pixels, on_sets]), parts | {name: (part, count) for name, part, count in logged}

    each = (sizes.class_weight, sizes.mask_weight, sizes.dice_weight)
    return Terms((*pixels.weights, *(sizes.set_loss * weight for weight in each)), counts, sums)


def _at(labels: Tensor, size: Size) -> Tensor:
    """B,H,W or B,n,H,W maps at `size`, nearest (pixel centres, as Pillow resizes)."""
    if labels.shape[-2:] == size:
        return labels
    planes = labels.reshape(-1, 1, *labels.shape[-2:]).float()
    return F.interpolate(planes, size, mode="nearest-exact").reshape(*labels.shape[:-2], *size).to(labels.dtype)


def _learned(batch: Batch, size: Size, section: TrainSection) -> Tensor:
    """bool B,*size: the pixels that the loss is the mean over."""
    valid = _at(batch.labels, size) != 255
    return valid & _at(batch.clean, size) if section.loss == "hybrid" and section.noisy == "ignore" else valid


def pixel_terms(
    logits: Tensor, batch: Batch, size: Size, section: TrainSection, model: nn.Module, tau: float | None
) -> Parts:
    """Sum and count of the parts of `section.loss`: logits B,K,h,w against the batch's maps, both brought to `size`."""
    labels, learned = _at(batch.labels, size), _learned(batch, size, section)
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=model.align_corners)
    if section.loss == "cross_entropy":
        return {"positive": cross_entropy_term(logits, labels, learned)}
    if not section.learns_negatively:
        return {"positive": positive_loss(logits, labels, learned, temperature=tau)}
    assert batch.complements is not None, "the loader draws them for this loss"
    clean, complements = _at(batch.clean, size), _at(batch.complements, size)
    return hybrid_loss(logits, labels, clean, complements=complements, temperature=tau)._asdict()
