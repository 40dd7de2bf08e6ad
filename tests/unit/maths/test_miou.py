"""The confusion matrix against counting pixel by pixel, and Eq. 11."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distwsss.maths.miou import ConfusionMatrix

K = 4
ids = st.sampled_from([0, 1, 2, 3, 255])


def reference(prediction, target):
    """IoU of each class as |both| / |either|, over the labelled pixels."""
    pairs = [(p, t) for p, t in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True) if t != 255]
    values = []
    for c in range(K):
        either = sum(p == c or t == c for p, t in pairs)
        values.append(sum(p == c and t == c for p, t in pairs) / either if either else math.nan)
    return values


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 30).flatmap(lambda n: st.tuples(*[arrays(np.uint8, (2, n), elements=ids)] * 4)))
def test_against_counting_and_streaming(images):
    matrix, part = ConfusionMatrix(K), ConfusionMatrix(K)
    matrix.update(images[0], images[1])
    part.update(torch.from_numpy(images[2]), torch.from_numpy(images[3].astype(np.int64)))
    matrix.merge(part)
    expected = reference(np.stack([images[0], images[2]]), np.stack([images[1], images[3]]))
    found = matrix.iou()
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    known = [value for value in expected if not math.isnan(value)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        miou = matrix.miou()
    assert miou == pytest.approx(sum(known) / len(known), nan_ok=True) if known else math.isnan(miou)


def test_a_prediction_of_ignore_is_a_miss_of_the_true_class():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([1, 255, 255, 2]), np.array([1, 1, 255, 255]))
    np.testing.assert_array_equal(matrix.iou(), [math.nan, 0.5, math.nan])
    assert matrix.miou() == 0.5
    assert np.asarray(matrix.matrix)[1].tolist() == [0, 1, 0, 1]


def test_eq_11_by_hand():
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]]))
    np.testing.assert_allclose(matrix.iou(), [1 / 2, 2 / 3])
    assert matrix.miou() == pytest.approx(7 / 12)


def test_another_ignore_index():
    matrix = ConfusionMatrix(2, ignore_index=-1)
    matrix.update(torch.tensor([0, 1, -1]), torch.tensor([0, -1, 1]))
    np.testing.assert_array_equal(matrix.iou(), [1.0, 0.0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_inputs_are_unchanged(dtype):
    prediction, target = np.array([0, 255, 1], dtype), np.array([0, 1, 255], dtype)
    copies = prediction.copy(), target.copy()
    ConfusionMatrix(2).update(prediction, target)
    np.testing.assert_array_equal(prediction, copies[0])
    np.testing.assert_array_equal(target, copies[1])


def test_two_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        ConfusionMatrix(3).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


def test_a_target_that_is_no_class_is_refused():
    with pytest.raises(ValueError, match="target"):
        ConfusionMatrix(3).update(np.array([0]), np.array([3]))


@pytest.mark.parametrize("value", [7, -1, 3])  # 3 is K, not to be taken for ignore
def test_a_prediction_that_is_no_class_is_refused(value):
    with pytest.raises(ValueError, match="prediction"):
        ConfusionMatrix(3).update(np.array([value]), np.array([0]))
