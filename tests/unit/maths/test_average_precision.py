"""Average precision against its definition, written out threshold by threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distwsss.maths.average_precision import average_precision


def by_definition(scores: list[float], positives: list[bool]) -> float:
    """Sum over the thresholds, from the highest, of (gain in recall) x precision of what scores at least that."""
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [positive for score, positive in zip(scores, positives, strict=True) if score >= threshold]
        recall = sum(taken) / sum(positives)
        area += (recall - before) * sum(taken) / len(taken)
        before = recall
    return area


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_definitions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    scores = rng.integers(0, 8, count) / 8 if seed % 2 else rng.random(count)  # with and without equal ones
    positives = rng.random(count) < 0.4
    positives[rng.integers(count)] = True
    assert average_precision(scores, positives) == pytest.approx(by_definition(scores.tolist(), positives.tolist()))


def test_the_example_of_scikit_learns_manual() -> None:
    scores, positives = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert average_precision(scores, positives) == pytest.approx(0.8333333333)


def test_in_order_is_1_and_all_alike_is_their_share() -> None:
    positives = np.array([True, True, False, False, False])
    assert average_precision(np.array([0.9, 0.8, 0.3, 0.2, 0.1]), positives) == 1.0
    assert average_precision(np.full(5, 0.5), positives) == pytest.approx(0.4)


def test_without_a_positive_there_is_none() -> None:
    assert math.isnan(average_precision(np.array([0.3, 0.2]), np.array([False, False])))
