"""Class probabilities of a shrunk photograph brought to the size of the photograph itself, and the labels there.

Called by `segmenter`, `postprocess` and `views`. Imports no torch, as `postprocess` does not. float32[K,H,W] of 21
classes and 12 megapixels is 1 GB, so labels are made without it.
"""

from __future__ import annotations

import numpy as np

ROWS = 64  # of the enlarged picture at a time
SURE = 1e-5  # a lead that no rounding makes up for


def enlarged(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float[K,h,w] -> float32[K,H,W], bilinear, as `interpolate(..., align_corners=False)`."""
    if probabilities.shape[1:] == size:
        return probabilities
    top, bottom, down = _places(probabilities.shape[1], size[0])
    left, right, across = _places(probabilities.shape[2], size[1])
    found = np.empty((len(probabilities), *size), np.float32)
    for plane, target in zip(probabilities.astype(np.float32, copy=False), found, strict=True):
        wide = _between(plane[:, left], plane[:, right], across)
        target[...] = _between(wide[top], wide[bottom], down[:, None])
    return found


def enlarged_labels(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float[K,h,w] -> uint8[H,W]: the argmax of `enlarged`, which is computed only where it is in doubt.

    A pixel lies between four of the small picture; where all four have the same label, it has it too.
    """
    if probabilities.shape[1:] == size:
        return probabilities.argmax(axis=0).astype(np.uint8)
    planes = probabilities.astype(np.float32, copy=False)
    top, bottom, down = _places(planes.shape[1], size[0])
    left, right, across = _places(planes.shape[2], size[1])
    small = planes.argmax(axis=0).astype(np.uint8)
    doubt, found = _doubtful(planes, small), small[top][:, left]
    for start in range(0, size[0], ROWS):
        rows, columns = np.nonzero(doubt[top[start : start + ROWS]][:, left])
        rows += start
        above = _between(planes[:, top[rows], left[columns]], planes[:, top[rows], right[columns]], across[columns])
        lowest = bottom[rows]
        below = _between(planes[:, lowest, left[columns]], planes[:, lowest, right[columns]], across[columns])
        found[rows, columns] = _between(above, below, down[rows]).argmax(axis=0)
    return found


def _doubtful(planes: np.ndarray, small: np.ndarray) -> np.ndarray:
    """bool[h,w]: whether between a pixel and those right of and below it the label may change."""
    highest = np.partition(planes, len(planes) - 2, axis=0)[-2:] if len(planes) > 1 else None
    unsure = np.zeros(small.shape, bool) if highest is None else highest[1] - highest[0] < SURE
    right, below = (np.minimum(np.arange(length) + 1, length - 1) for length in small.shape[::-1])
    doubt = unsure.copy()
    for other in ((slice(None), right), (below, slice(None)), np.ix_(below, right)):
        doubt |= unsure[other] | (small[other] != small)
    return doubt


def _places(small: int, large: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of `large` pixels along a side: the two of `small` between which it lies, and the second one's weight."""
    places = np.maximum((np.arange(large) + 0.5) * (small / large) - 0.5, 0.0)
    lower = np.minimum(places.astype(np.int64), small - 1)
    return lower, np.minimum(lower + 1, small - 1), (places - lower).astype(np.float32)


def _between(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return one + (other - one) * weight
