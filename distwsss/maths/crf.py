"""Dense CRF of Kraehenbuehl and Koltun (2011) over several class distributions of one image at once.

Called by `seeds.chunk` (all seeds of an image) and `inference.postprocess`. Imports no torch: CRF workers stay small.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.eigen import MatrixXf, matrixXf

from distwsss.config.crf import CRFParams

__all__ = ["CRFParams", "refine"]

BLOCK = 8192  # pixels of one softmax, whose temporaries then stay in the cache


def refine(image: np.ndarray, probabilities: np.ndarray, params: CRFParams | None = None) -> np.ndarray:
    """Marginals of m independent dense CRFs of L labels each on one image.

    image: uint8[H,W,3] RGB; probabilities: float32[m,L,H,W] summing to 1 over L; params: default `CRFParams()` ->
    float32[m,L,H,W]. Inputs are unchanged. Raises ValueError for other shapes.

    One distribution is pydensecrf's own inference. Several are stacked as one CRF (`_stacked`), so that the lattice is
    built once and filters all of them together.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype}{list(image.shape)}; allowed: uint8[H,W,3]")
    if probabilities.ndim != 4 or probabilities.shape[2:] != image.shape[:2] or 0 in probabilities.shape:
        raise ValueError(f"probabilities are {list(probabilities.shape)}; allowed: m,L,H,W with {image.shape[:2]}")
    seeds, labels, height, width = probabilities.shape
    if labels == 1:
        return np.ones(probabilities.shape, np.float32)
    params = params or CRFParams()
    unary = -np.log(np.clip(probabilities, params.clip, 1.0, dtype=np.float32)).reshape(seeds, labels, height * width)
    found = _single(image, unary[0], params) if seeds == 1 else _stacked(image, unary, params)
    return found.reshape(probabilities.shape)


def _crf(image: np.ndarray, unary: np.ndarray, params: CRFParams) -> DenseCRF2D:
    """unary: float32[labels,H*W]."""
    crf = DenseCRF2D(image.shape[1], image.shape[0], len(unary))
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    crf.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
    pixels = np.require(image, requirements=["C", "W"])  # pydensecrf takes no read-only buffer
    crf.addPairwiseBilateral(
        sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=pixels, compat=params.bilateral_compat
    )
    return crf


def _single(image: np.ndarray, unary: np.ndarray, params: CRFParams) -> np.ndarray:
    """unary L,H*W -> marginals L,H*W."""
    return np.array(_crf(image, unary, params).inference(params.iterations), order="C")


def _stacked(image: np.ndarray, unary: np.ndarray, params: CRFParams) -> np.ndarray:
    """unary m,L,H*W -> marginals m,L,H*W, of one CRF of m * (L - 1) labels.

    A Potts energy of one label needs only that label's own marginal, and only the softmax ties labels together: after
    every step it is taken anew over each seed's own labels, which is what m separate CRFs compute. It ignores a number
    added to all labels of a seed, so everything is centred over them: the unary, and the marginals, as q - 1/L. Then
    the L exponents sum to zero (the filter is linear), and label 0 need not be filtered: its exponent is minus the sum
    of the others. For L = 2 that halves the work.
    """
    seeds, labels, pixels = unary.shape
    centred = np.ascontiguousarray((unary - unary.mean(axis=1, keepdims=True))[:, 1:]).reshape(-1, pixels)
    used = len(centred)
    if used > 2:  # pydensecrf filters four at a time, faster where none is left over
        centred = np.concatenate([centred, np.zeros((-used % 4, pixels), np.float32)])
    crf = _crf(image, centred, params)
    joint, energies, scratch = matrixXf(centred), matrixXf(-centred), MatrixXf()  # joint: filled below
    shape = (pixels, seeds, labels - 1)
    q, exponents = (np.asarray(matrix).T[:, :used].reshape(shape) for matrix in (joint, energies))  # views
    assert np.shares_memory(q, np.asarray(joint)), "Q must be written in place"
    for _ in range(params.iterations):
        for block, marginals in _softmax(exponents):
            for label in range(1, labels):
                np.subtract(marginals[label], np.float32(1 / labels), out=q[block][..., label - 1])
        crf.stepInference(joint, energies, scratch)  # its own softmax, over all seeds, is not used
    found = np.empty(unary.shape, np.float32)
    for block, marginals in _softmax(exponents):
        found[..., block] = marginals.transpose(2, 0, 1)
    return found


def _softmax(exponents: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """n,m,L-1 of the labels after the first -> per block of pixels: its slice, marginals L,block,m.

    Labels come first, and are copied one by one: numpy is slow over a short last axis.
    """
    pixels, others = exponents.shape[0], exponents.shape[-1]
    for start in range(0, pixels, BLOCK):
        block = slice(start, start + BLOCK)
        values = np.empty((others + 1, *exponents[block].shape[:2]), np.float32)
        for label in range(others):
            values[label + 1] = exponents[block][..., label]
        np.negative(values[1:].sum(axis=0), out=values[0])
        values -= values.max(axis=0)
        np.exp(values, out=values)
        values *= np.reciprocal(values.sum(axis=0))
        yield block, values
