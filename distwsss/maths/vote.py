"""The vote over seeds (METHOD section 3). Called by `seeds.votes`. Imports no torch."""

from __future__ import annotations

import numpy as np

ABSTAIN = 255


def vote(seeds: np.ndarray, scores: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The class assigned most often to each pixel, and how often.

    seeds: uint8[m,H,W] class ids, 255 = abstention, m in 1..254; scores: float32[m,H,W], seed k's marginal of the class
    it chose -> labels uint8[H,W] (255 where nobody voted), votes uint8[H,W].

    Among tied classes the one with the largest sum of scores wins (added in seed order, in the scores' dtype); without
    scores, or where they are equal too, the class of the first-listed seed. Never by class index.
    """
    if seeds.ndim != 3 or seeds.dtype != np.uint8 or not 0 < len(seeds) < ABSTAIN:
        raise ValueError(f"seeds are {seeds.dtype}{list(seeds.shape)}; allowed: uint8[m,H,W] with m in 1..254")
    if scores is not None and scores.shape != seeds.shape:
        raise ValueError(f"scores are {list(scores.shape)}; allowed: {list(seeds.shape)}, as the seeds")
    labels = np.full(seeds.shape[1:], ABSTAIN, np.uint8)
    votes = np.zeros(seeds.shape[1:], np.uint8)
    best = None if scores is None else np.zeros(seeds.shape[1:], scores.dtype)
    for candidate in seeds:  # in seed order: a later candidate must be strictly better
        agree = (seeds == candidate) & (candidate != ABSTAIN)
        count = agree.sum(axis=0, dtype=np.uint8)
        better = count > votes
        if scores is not None and best is not None:
            total = np.zeros_like(best)
            for agrees, score in zip(agree, scores, strict=True):
                total += np.where(agrees, score, 0)
            better |= (count == votes) & (count > 0) & (total > best)
            best[better] = total[better]
        labels[better] = candidate[better]
        votes[better] = count[better]
    return labels, votes


def agreement(seeds: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many of the seeds uint8[m,H,W] have the label uint8[H,W] at each pixel, uint8[H,W]; 0 where it is 255."""
    return ((seeds == labels) & (labels != ABSTAIN)).sum(axis=0, dtype=np.uint8)
