"""What a saliency map says beside CAMs, against plain loops in float64."""

import math

import numpy as np
import pytest

from distwsss.maths.saliency import salient_label, with_saliency


def random_maps(classes, seed=0):
    rng = np.random.default_rng(seed)
    cam = rng.random((classes, 5, 7), np.float32)
    cam[:, 0] = 0  # where no CAM says anything
    saliency = rng.random((5, 7), np.float32)
    saliency[:, 0], saliency[:, 1], saliency[:, 2] = 0, 1, 0.5
    return cam, saliency


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_foreground_is_what_stands_out_and_classes_share_it(classes):
    cam, saliency = random_maps(classes)
    found = with_saliency(cam, saliency)
    assert (found.dtype, found.shape) == (np.float32, (classes + 1, 5, 7))
    for y in range(5):
        for x in range(7):
            values = [float(value) for value in cam[:, y, x]]
            found_there = 0.7 * float(saliency[y, x]) + 0.3 * max(values)
            salient, shares = 1 / (1 + math.exp(-16 * (found_there - 0.4))), [value + 1e-3 for value in values]
            wanted = [1 - salient, *(salient * share / sum(shares) for share in shares)]
            np.testing.assert_allclose(found[:, y, x], wanted, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0, dtype=np.float64), 1, atol=1e-6)
    np.testing.assert_allclose(found[1:, 0], np.tile(found[1, 0], (classes, 1)), atol=1e-6)  # no CAM: alike


@pytest.mark.parametrize("labels", [[3], [2, 7], [5, 1, 20]])
def test_a_salient_pixel_has_the_class_of_the_highest_cam(labels):
    cam, saliency = random_maps(len(labels), seed=1)
    found = salient_label(cam, labels, saliency)
    assert found.dtype == np.uint8
    for y in range(5):
        for x in range(7):
            values = [float(value) for value in cam[:, y, x]]
            best = labels[values.index(max(values))]
            assert found[y, x] == (best if float(saliency[y, x]) > 0.5 else 0)
    assert (found[:, 2] == 0).all()  # half is not above half
