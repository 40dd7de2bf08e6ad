"""Which candidate seeds are kept (METHOD section 2). Called by `evaluate.stats`. Imports no torch."""

from __future__ import annotations

import math


def select_seeds(iou: dict[str, list[float]]) -> list[str]:
    """The seeds with the highest IoU in at least one class, in the order given.

    iou: seed name -> IoU of each class, all of one length; NaN (class absent) is skipped. Ties go to the first-listed.
    """
    lengths = {name: len(values) for name, values in iou.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"found {lengths} values; allowed: one value per class for every seed")
    kept = set()
    for values in zip(*iou.values(), strict=True):
        known = [(value, name) for name, value in zip(iou, values, strict=True) if not math.isnan(value)]
        if known:
            kept.add(max(known, key=lambda pair: pair[0])[1])  # max keeps the first of equals
    return [name for name in iou if name in kept]
