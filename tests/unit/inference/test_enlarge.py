"""Labels and probabilities at another size than the network saw, against `interpolate` on the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, softmax

from distwsss.inference.enlarge import enlarged, enlarged_labels

SIZES = [
    ((6, 8), (45, 60)),
    ((6, 8), (47, 61)),
    ((5, 9), (5, 90)),
    ((1, 1), (7, 3)),
    ((3, 4), (3, 4)),
    ((40, 30), (130, 97)),
]


def probabilities(size: tuple[int, int], classes: int = 4, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return softmax(4 * torch.randn((classes, *size), generator=generator), dim=0).numpy()


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize("classes", [1, 2, 4, 21])
def test_as_interpolate(small: tuple[int, int], large: tuple[int, int], classes: int) -> None:
    given = probabilities(small, classes)
    wanted = interpolate(torch.from_numpy(given)[None], large, mode="bilinear", align_corners=False)[0].numpy()
    found = enlarged(given, large)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_array_equal(enlarged_labels(given, large), found.argmax(axis=0))


def test_labels_of_a_smooth_picture_with_ties() -> None:
    """Large regions, edges, a row in which two classes are equal, and rounding between them."""
    given = interpolate(torch.from_numpy(probabilities((4, 5)))[None], (32, 40), mode="bilinear")[0].numpy()
    given[:2, 10] = 0.5
    given[2:, 10] = 0
    given[1, 11] = np.nextafter(given[0, 11], np.float32(1))
    found = enlarged_labels(given, (333, 417))
    np.testing.assert_array_equal(found, enlarged(given, (333, 417)).argmax(axis=0))
    assert len(np.unique(found)) == 4


def test_half_precision_is_enlarged_as_single() -> None:
    given = probabilities((6, 8)).astype(np.float16)
    np.testing.assert_array_equal(enlarged(given, (20, 20)), enlarged(given.astype(np.float32), (20, 20)))
    np.testing.assert_array_equal(enlarged_labels(given, (20, 20)), enlarged_labels(given.astype(np.float32), (20, 20)))
