"""How far an mIoU, or the difference of two, depends on which images were scored: the bootstrap over images. Called by
`ablate`.

The images are drawn anew with replacement, as many as there are; the mIoU is that of the summed counts, and of two
variants the same images are drawn (paired). Intervals are the percentiles of what comes out. They say nothing of other
random seeds of a training: that spread is another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distwsss.maths.miou import miou_of

RESAMPLES = 10_000
LEVEL = 0.95
BLOCK_BYTES = 1 << 26  # of the weights held at once


@dataclass(frozen=True)
class Interval:
    """A figure of all images, the percentile interval of LEVEL around it, and the share of resamples in which it is 0
    or less."""

    value: float
    low: float
    high: float
    share_below: float


def bootstrap(counts: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mIoU of one variant. counts: integers [I,3,K], hits, predicted and true pixels of each class in each image
    (`maths.miou.class_counts`), or [S,I,3,K] of S trainings, whose mIoUs are averaged in every resample."""
    sets = _sets(counts)
    return _interval(_mean_miou(sets.sum(axis=1)), _resampled(sets, resamples, seed))


def paired_bootstrap(counts: np.ndarray, baseline: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """mIoU of `counts` minus that of `baseline`, both as `bootstrap` takes them, of the same images in the same order
    (S may differ). Raises ValueError for other numbers of images or classes."""
    ours, theirs = _sets(counts), _sets(baseline)
    if ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(f"counts {ours.shape[1:]} and baseline {theirs.shape[1:]} differ in images or classes")
    value = _mean_miou(ours.sum(axis=1)) - _mean_miou(theirs.sum(axis=1))
    return _interval(value, _resampled(ours, resamples, seed) - _resampled(theirs, resamples, seed))


def drawn_images(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """int64[b,I] blocks, `resamples` rows in all: the images of each resample. A function of the arguments alone."""
    rng, rows = np.random.default_rng(seed), max(1, BLOCK_BYTES // (8 * images))
    for start in range(0, resamples, rows):
        yield np.stack([rng.integers(0, images, images) for _ in range(min(rows, resamples - start))])


def _sets(counts: np.ndarray) -> np.ndarray:
    """float64[S,I,3,K]: sums of pixels are exact below 2^53."""
    array = np.asarray(counts, np.float64)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[2] != 3 or not array.shape[1]:
        raise ValueError(f"counts have shape {np.shape(counts)}; allowed: [I,3,K] or [S,I,3,K] with I > 0")
    return array


def _mean_miou(summed: np.ndarray) -> float:
    """Over the trainings. summed: [S,3,K]."""
    return float(miou_of(summed).mean())


def _resampled(sets: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """float64[resamples]: the mIoU of each resample, averaged over the S trainings."""
    images, found = sets.shape[1], []
    for drawn in drawn_images(images, resamples, seed):
        weights = np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.float64)
        each = [miou_of((weights @ one.reshape(images, -1)).reshape(-1, *one.shape[1:])) for one in sets]
        found.append(np.mean(each, axis=0))
    return np.concatenate(found)


def _interval(value: float, found: np.ndarray) -> Interval:
    """NaN where a resample has no class at all: then nothing is said."""
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return Interval(value, float(low), float(high), float((found <= 0).mean()))
