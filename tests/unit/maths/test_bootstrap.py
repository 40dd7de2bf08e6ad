"""The bootstrap over images against a plain loop that sums and divides image by image."""

from __future__ import annotations

import numpy as np
import pytest

from distwsss.maths import bootstrap
from distwsss.maths.bootstrap import drawn_images, paired_bootstrap
from distwsss.maths.miou import ConfusionMatrix, class_counts

IMAGES, CLASSES, RESAMPLES = 7, 4, 60


def maps(seed: int, right: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prediction, truth) of each image; the last class is nowhere, the one before in one image only."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(IMAGES):
        truth = np.random.default_rng(number).integers(0, 3 if number == 0 else 2, 50)
        prediction = np.where(rng.random(50) < right, truth, rng.integers(0, 2, 50))
        truth[:5], prediction[5:8] = 255, 255
        found.append((prediction, truth))
    return found


def counts(images: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    found = []
    for prediction, truth in images:
        matrix = ConfusionMatrix(CLASSES)
        matrix.update(prediction, truth)
        found.append(class_counts(matrix.matrix))
    return np.stack(found)


def miou(images: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Pixel sets, class by class."""
    values = []
    for c in range(CLASSES):
        both = sum(int(((p == c) & (t == c)).sum()) for p, t in images)
        either = sum(int((((p == c) | (t == c)) & (t != 255)).sum()) for p, t in images)
        if either:
            values.append(both / either)
    return sum(values) / len(values)


def draws(seed: int) -> list[np.ndarray]:
    return [row for block in drawn_images(IMAGES, RESAMPLES, seed) for row in block]


def test_one_variant_equals_a_loop() -> None:
    images = maps(1, 0.6)
    expected = [miou([images[i] for i in row]) for row in draws(5)]
    found = bootstrap.bootstrap(counts(images), RESAMPLES, seed=5)
    assert found.value == pytest.approx(miou(images))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))


def test_a_difference_equals_a_loop_over_the_same_images() -> None:
    ours, theirs = maps(1, 0.6), maps(2, 0.6)
    expected = [miou([ours[i] for i in row]) - miou([theirs[i] for i in row]) for row in draws(3)]
    found = paired_bootstrap(counts(ours), counts(theirs), RESAMPLES, seed=3)
    assert found.value == pytest.approx(miou(ours) - miou(theirs))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))
    assert found.share_below == np.mean([value <= 0 for value in expected])
    assert 0 < found.share_below < 1


def test_trainings_are_averaged_in_every_resample() -> None:
    trainings, single = [maps(1, 0.8), maps(2, 0.5), maps(3, 0.6)], maps(4, 0.6)
    expected = [
        np.mean([miou([images[i] for i in row]) for images in trainings]) - miou([single[i] for i in row])
        for row in draws(0)
    ]
    found = paired_bootstrap(np.stack([counts(images) for images in trainings]), counts(single), RESAMPLES)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = counts(maps(1, 0.7)), counts(maps(2, 0.6))
    whole = paired_bootstrap(ours, theirs, RESAMPLES)
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 8 * IMAGES * 7)
    assert paired_bootstrap(ours, theirs, RESAMPLES) == whole
    assert paired_bootstrap(ours, theirs, RESAMPLES, seed=1) != whole


def test_other_images_are_no_pair() -> None:
    with pytest.raises(ValueError, match="differ in images or classes"):
        paired_bootstrap(counts(maps(1, 0.7)), counts(maps(1, 0.7)[:5]))
