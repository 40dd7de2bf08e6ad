"""The stacked CRF against one DenseCRF2D per seed, and against mean field in float64."""

import numpy as np
import pytest
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.eigen import matrixXf

from distwsss.config.crf import CRF_PARAMS
from distwsss.maths.crf import BLOCK, CRFParams, refine
from helpers.crf_reference import crf_inference


def separate(image, probabilities, params):
    """float32[S,K,H,W], one seed after the other."""
    return np.stack([crf_inference(image, seed, params) for seed in probabilities])


def mean_field(image, probabilities, params):
    """Equation 7 of Kraehenbuehl and Koltun in float64, with pydensecrf's filter as a matrix: what it makes of ones."""
    height, width = image.shape[:2]
    crf = DenseCRF2D(width, height, height * width)
    crf.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=image, compat=params.bilateral_compat
    )
    ones, filtered, scratch = (matrixXf(np.eye(height * width, dtype=np.float32)) for _ in range(3))
    crf.stepInference(ones, filtered, scratch)
    kernel = np.array(filtered, np.float64)
    log = np.log(np.clip(probabilities, params.clip, 1.0, dtype=np.float32).astype(np.float64))
    log = log.reshape(*probabilities.shape[:2], -1)
    exponents = log
    for _ in range(params.iterations + 1):
        q = np.exp(exponents - exponents.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
        exponents = log + q @ kernel
    return q.reshape(probabilities.shape)


def photograph(seed, height, width):
    """Smooth regions with edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 3) ** 2
    base = np.where(inside[..., None], rng.integers(256, size=3), rng.integers(256, size=3))
    return np.clip(base + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def distributions(seed, shape, sharpness, cell=8):
    """Blobs of about `cell` pixels, as CAMs are; `cell` 1: noise."""
    m, labels, height, width = shape
    coarse = np.random.default_rng(seed).normal(size=(m, labels, -(-height // cell), -(-width // cell)))
    logits = sharpness * np.kron(coarse, np.ones((cell, cell)))[..., :height, :width].astype(np.float32)
    logits += np.linspace(0, 0.1, width, dtype=np.float32) * np.arange(labels, dtype=np.float32)[:, None, None]
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def same(found, expected):
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 5e-5  # the two sum in different order
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize(("m", "labels"), [(1, 2), (1, 3), (2, 2), (3, 4), (6, 3), (8, 2), (5, 7)])
@pytest.mark.parametrize("sharpness", [0.5, 3.0, 50.0])
def test_against_one_crf_per_seed(m, labels, sharpness):
    image = photograph(m, 40, 53)
    probabilities = distributions(labels, (m, labels, 40, 53), sharpness)
    same(refine(image, probabilities, CRFParams()), separate(image, probabilities, CRFParams()))


@pytest.mark.parametrize(("m", "labels"), [(1, 3), (2, 2), (3, 4), (6, 3), (5, 7)])
@pytest.mark.parametrize("params", CRF_PARAMS.values())
def test_against_float64(m, labels, params):
    image, probabilities = photograph(m, 24, 31), distributions(labels, (m, labels, 24, 31), 2.0)
    expected = mean_field(image, probabilities, params)
    found = refine(image, probabilities, params)
    assert np.abs(found - expected).max() < 1e-4
    np.testing.assert_array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def test_more_pixels_than_a_block():
    image, probabilities = photograph(7, 95, 101), distributions(8, (2, 3, 95, 101), 2.0)
    assert BLOCK < 95 * 101
    same(refine(image, probabilities, CRFParams()), separate(image, probabilities, CRFParams()))


@pytest.mark.parametrize("params", CRF_PARAMS.values())
def test_noise(params):
    """Undecided pixels amplify the last bit of every step (the two sum in different order): wider, but no wider."""
    image, probabilities = photograph(5, 40, 53), distributions(6, (8, 2, 40, 53), 3.0, cell=1)
    found, expected = refine(image, probabilities, params), separate(image, probabilities, params)
    assert np.abs(found - expected).max() < 2e-4
    decided = np.abs(expected[:, 0] - expected[:, 1]) > 4e-4
    np.testing.assert_array_equal(found.argmax(axis=1)[decided], expected.argmax(axis=1)[decided])


@pytest.mark.parametrize("params", [*CRF_PARAMS.values(), CRFParams(iterations=1), CRFParams(clip=0.01)])
def test_every_named_set_of_parameters(params):
    image, probabilities = photograph(1, 33, 30), distributions(2, (4, 3, 33, 30), 2.0)
    same(refine(image, probabilities, params), separate(image, probabilities, params))


def test_seeds_that_are_certain_of_different_things():
    """One-hot seeds beside undecided ones: the joint softmax gives some seeds almost nothing."""
    image = photograph(3, 32, 32)
    probabilities = np.zeros((3, 2, 32, 32), np.float32)
    probabilities[0, 0] = 1
    probabilities[1, 1] = 1
    probabilities[2] = 0.5
    same(refine(image, probabilities, CRFParams()), separate(image, probabilities, CRFParams()))


@pytest.mark.parametrize("compat", [100.0, 1000.0])
def test_energies_so_far_apart_that_a_seed_underflows(compat):
    params = CRFParams(bilateral_compat=compat, iterations=3)
    image = photograph(4, 24, 24)
    probabilities = np.full((2, 6, 24, 24), 1 / 6, np.float32)
    probabilities[0] = 0
    probabilities[0, 0] = 1
    found, expected = refine(image, probabilities, params), separate(image, probabilities, params)
    assert np.isfinite(found).all()
    same(found[:1], expected[:1])
    # Undecided seeds are an unstable equilibrium that any rounding tips, at these compatibilities at once.
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_marginals_sum_to_one():
    found = refine(photograph(0, 20, 31), distributions(0, (3, 3, 20, 31), 2.0), CRFParams())
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_inputs_are_unchanged():
    image, probabilities = photograph(0, 20, 31), distributions(0, (3, 3, 20, 31), 2.0)
    image.flags.writeable = probabilities.flags.writeable = False
    before = image.copy(), probabilities.copy()
    found = refine(image, probabilities, CRFParams())
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(probabilities, before[1])
    assert not np.shares_memory(found, probabilities)


def test_views_are_read_as_what_they_show():
    image = photograph(0, 20, 24)[:, ::-1].transpose(1, 0, 2)
    probabilities = distributions(0, (2, 3, 20, 24), 2.0)[:, :, :, ::-1].transpose(0, 1, 3, 2)
    copies = np.ascontiguousarray(image), np.ascontiguousarray(probabilities)
    np.testing.assert_array_equal(refine(image, probabilities, CRFParams()), refine(*copies, CRFParams()))


def test_one_label_is_certain():
    assert (refine(photograph(0, 5, 6), np.ones((2, 1, 5, 6), np.float32), CRFParams()) == 1).all()


def test_one_pixel():
    image, probabilities = np.zeros((1, 1, 3), np.uint8), np.full((2, 2, 1, 1), 0.5, np.float32)
    same(refine(image, probabilities, CRFParams()), separate(image, probabilities, CRFParams()))


def test_probabilities_of_another_size_are_refused():
    with pytest.raises(ValueError, match="probabilities"):
        refine(photograph(0, 5, 6), np.ones((2, 2, 6, 5), np.float32), CRFParams())


def test_an_image_without_colours_is_refused():
    with pytest.raises(ValueError, match="image"):
        refine(np.zeros((5, 6), np.uint8), np.ones((2, 2, 5, 6), np.float32), CRFParams())
