"""Average precision of a classifier's scores. Called by `train.measure`."""

from __future__ import annotations

import numpy as np


def average_precision(scores: np.ndarray, positives: np.ndarray) -> float:
    """Area under the precision-recall curve as steps, sum over thresholds of (R_k - R_(k-1)) P_k, not interpolated:
    what scikit-learn's `average_precision_score` computes. Equal scores share one threshold.

    scores: float[n]; positives: bool[n] -> 0..1, NaN without any positive.
    """
    if not positives.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positives[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each run of equal scores
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
