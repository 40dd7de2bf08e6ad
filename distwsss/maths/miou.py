"""Streaming confusion matrix and mIoU (Eq. 11). Called by `evaluate` and the training loop.

IoU takes three numbers a class: *hits* (predicted where true), *predicted* and *true* pixels. They add up over images,
so those of each image are enough for the mIoU of any choice of images (`maths.bootstrap`).
"""

from __future__ import annotations

from typing import Any

import numpy as np


def _array(values: Any) -> np.ndarray:
    """A numpy array of a tensor on any device, or of an array."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


class ConfusionMatrix:
    """One matrix over a whole set: `matrix[i, j]` counts pixels of true class i predicted as j, int64[K, K + 1].

    The last column counts predictions of `ignore_index` at labelled pixels: a miss of the true class.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.matrix = np.zeros((num_classes, num_classes + 1), dtype=np.int64)

    def update(self, prediction: Any, target: Any) -> None:
        """Add integers of equal shape (torch or numpy). Raises ValueError for other shapes or class ids."""
        predicted, true = _array(prediction), _array(target)
        if predicted.shape != true.shape:
            raise ValueError(f"prediction {predicted.shape} and target {true.shape} differ in shape")
        labelled = true != self.ignore_index
        predicted, true = predicted[labelled].astype(np.int64), true[labelled].astype(np.int64)
        for name, values in (("target", true), ("prediction", predicted[predicted != self.ignore_index])):
            if values.size and not (values.min() >= 0 and values.max() < self.num_classes):
                raise ValueError(
                    f"{name} holds class ids {values.min()}..{values.max()}; "
                    f"allowed: 0..{self.num_classes - 1} and {self.ignore_index}"
                )
        predicted[predicted == self.ignore_index] = self.num_classes
        width = self.num_classes + 1
        counts = np.bincount(true * width + predicted, minlength=self.num_classes * width)
        self.matrix += counts.reshape(self.matrix.shape)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another part of the set."""
        self.matrix = self.matrix + other.matrix

    def iou(self) -> np.ndarray:
        """float64[K] in 0..1; NaN for a class in neither prediction nor target."""
        return iou_of(class_counts(self.matrix))

    def miou(self) -> float:
        """Mean over the classes that occur; NaN when none does."""
        return float(miou_of(class_counts(self.matrix)))


def class_counts(matrix: np.ndarray) -> np.ndarray:
    """int64[...,3,K], hits, predicted and true pixels of each class, of confusion matrices int64[...,K,K+1]."""
    matrix = np.asarray(matrix)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return np.stack([hits, matrix[..., :-1].sum(-2), matrix.sum(-1)], axis=-2)


def iou_of(counts: np.ndarray) -> np.ndarray:
    """float64[...,K] in 0..1 of `class_counts` [...,3,K]; NaN for a class in neither prediction nor target."""
    hits, predicted, true = (np.asarray(counts, np.float64)[..., row, :] for row in range(3))
    union = predicted + true - hits
    return np.where(union > 0, hits / np.where(union > 0, union, 1), np.nan)


def miou_of(counts: np.ndarray) -> np.ndarray:
    """float64[...] in 0..1 of `class_counts` [...,3,K]: the mean over the classes that occur; NaN where none does."""
    iou = iou_of(counts)
    known = ~np.isnan(iou)
    number = known.sum(-1)
    return np.where(number > 0, np.where(known, iou, 0.0).sum(-1) / np.where(number > 0, number, 1), np.nan)
