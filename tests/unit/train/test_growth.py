"""When a growing loss ends a run: curves that diverge, and curves of real training that must not."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from distwsss.train.growth import Growth


def ends_at(losses: Iterable[float], every: int = 10, factor: float | None = 10.0, floor: float = 1.0) -> int | None:
    """The step at which a run with these losses per step ends, logged `every` so many; None: it goes on."""
    growth, seen = Growth(factor, floor), list(losses)
    for start in range(0, len(seen), every):
        line = seen[start : start + every]
        if start == 0:
            growth.first(1, line[0])
        end = start + len(line)
        if growth.grows(end, float(np.mean(line)), len(line), last=end == len(seen)):
            return end
    return None


def lines(*means: float, steps: int = 10) -> list[float]:
    """Ten steps of each mean, after a first one at chance."""
    return [math.log(2), *np.repeat(means, steps)[1:]]


def noise(steps: int, spread: float, seed: int = 0) -> np.ndarray:
    """Factors of log-normal noise, mean 1."""
    return np.exp(np.random.default_rng(seed).normal(-(spread**2) / 2, spread, steps))


def test_the_divergence_that_was_seen_ends_at_the_first_judgement() -> None:
    assert ends_at(lines(4.8, 15, 66, 179, 1067)) == 50


def test_it_ends_however_often_is_logged() -> None:
    grown = np.geomspace(0.7, 1000, 120)
    found = [ends_at(grown, every) for every in (1, 5, 10, 50)]
    assert all(step is not None and 50 <= step <= 110 for step in found), found


def test_a_loss_that_grew_at_once_and_stays_up_ends() -> None:
    assert ends_at(lines(60, 70, 55, 80, 62, 75, 66, 71)) in range(50, 81)


def test_a_late_divergence_ends() -> None:
    assert ends_at([*np.geomspace(0.7, 0.05, 400), *np.geomspace(0.05, 300, 100)]) in range(400, 501)


def test_what_comes_down_too_late_ends_at_the_last_step() -> None:
    assert ends_at([0.7, *np.geomspace(1e9, 1e3, 199)]) == 200


def test_null_never_ends() -> None:
    assert ends_at(np.geomspace(0.7, 1e6, 200), factor=None) is None


def test_nothing_is_judged_before_there_is_a_history() -> None:
    assert ends_at(lines(40, 400, 4000, 40000)) is None  # the run is over at step 40


@pytest.mark.parametrize("every", [1, 10, 50])
@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(np.geomspace(0.7, 0.01, 2000) * noise(2000, 1.5), id="tiny batches"),
        pytest.param(np.full(2000, 0.69) * noise(2000, 0.5), id="plateau"),
        pytest.param([0.0] * 30 + [0.7] * 300, id="starts at 0"),
        pytest.param([0.0] * 100 + list(np.linspace(0, 3.04, 300)), id="to chance level from 0"),
        pytest.param(np.concatenate([np.linspace(0.7, 4.0, 40), np.geomspace(4.0, 0.1, 500)]), id="warm-up hump"),
        pytest.param(np.geomspace(2.0, 0.02, 500) + np.linspace(0, 0.8, 500), id="a part that rises"),
        pytest.param(np.concatenate([np.geomspace(60, 20, 100), np.full(300, 20.0)]), id="a large loss"),
        pytest.param(np.tile(np.geomspace(1.5, 0.05, 100), 5), id="restarts"),
        pytest.param(np.concatenate([[0.7], np.geomspace(200, 0.5, 100), np.full(50, 0.4)]), id="recovers"),
    ],
)
def test_training_that_learns_goes_on(losses: Iterable[float], every: int) -> None:
    assert ends_at(losses, every) is None


@pytest.mark.parametrize("every", [1, 10])
def test_one_step_a_thousand_times_too_high_ends_nothing(every: int) -> None:
    losses = np.geomspace(0.7, 0.05, 400)
    losses[200] = 1000.0
    assert ends_at(losses, every) is None


def test_the_floor_grows_with_the_terms_of_the_loss() -> None:
    losses = [*np.full(100, 0.05), *np.full(100, 12.2)]  # four outputs fall back to chance, 4 log 21
    assert ends_at(losses, floor=4.0) is None
