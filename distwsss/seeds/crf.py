"""Dense CRF of Kraehenbuehl and Koltun (2011) over several class distributions of one image at once.

Called by `seeds.generate` (all seeds of an image) and `evaluate.postprocess`. Imports no torch: CRF workers stay small.
"""

from __future__ import annotations

import numpy as np
from pydensecrf.densecrf import DenseCRF2D

from distwsss.config.schema import CRFParams

__all__ = ["CRFParams", "refine"]


def refine(image: np.ndarray, probabilities: np.ndarray, params: CRFParams | None = None) -> np.ndarray:
    """Marginals of m independent dense CRFs of L labels each on one image.

    image: uint8[H,W,3] RGB; probabilities: float32[m,L,H,W] summing to 1 over L; params: default `CRFParams()` ->
    float32[m,L,H,W]. Inputs are unchanged. Raises ValueError for other shapes.

    The m CRFs are stacked as one with m * L labels, so that the lattice is built once: a Potts energy of one label
    needs only that label's own marginal, and only the softmax ties labels together. After every step it is taken anew
    over each seed's own labels, which is what m separate CRFs compute. (Dividing Q by its sums does the same in exact
    arithmetic; in float32 it loses a digit, and everything where a seed's share of the joint softmax underflows.)
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.dtype}{list(image.shape)}; allowed: uint8[H,W,3]")
    if probabilities.ndim != 4 or probabilities.shape[2:] != image.shape[:2] or 0 in probabilities.shape:
        raise ValueError(f"probabilities are {list(probabilities.shape)}; allowed: m,L,H,W with {image.shape[:2]}")
    seeds, labels, height, width = probabilities.shape
    if labels == 1:
        return np.ones(probabilities.shape, np.float32)
    marginals = _infer(image, probabilities, params or CRFParams())
    return np.ascontiguousarray(marginals.reshape(height, width, seeds, labels).transpose(2, 3, 0, 1))


def _infer(image: np.ndarray, probabilities: np.ndarray, params: CRFParams) -> np.ndarray:
    """probabilities m,L,H,W -> marginals H*W,m,L."""
    seeds, labels, height, width = probabilities.shape
    unary = -np.log(np.clip(probabilities, params.clip, 1.0, dtype=np.float32))
    crf = DenseCRF2D(width, height, seeds * labels)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(seeds * labels, height * width)))
    crf.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
    pixels = np.require(image, requirements=["C", "W"])  # pydensecrf takes no read-only buffer
    crf.addPairwiseBilateral(
        sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=pixels, compat=params.bilateral_compat
    )
    joint, _, scratch = crf.startInference()
    energies, _, _ = crf.startInference()  # any matrix of this shape: each step leaves the exponents in it
    shape = (height * width, seeds, labels)
    q, exponents = (np.asarray(matrix).T.reshape(shape) for matrix in (joint, energies))  # views: labels lie together
    assert np.shares_memory(q, np.asarray(joint)), "Q must be written in place"
    _softmax(-unary.reshape(seeds, labels, -1).transpose(2, 0, 1), out=q)
    for _ in range(params.iterations):
        crf.stepInference(joint, energies, scratch)
        _softmax(exponents, out=q)
    return q


def _softmax(exponents: np.ndarray, out: np.ndarray) -> None:
    """Softmax over the last axis of n,m,L. Loops over the short axis: numpy's own reduction over it is far slower."""
    labels = range(exponents.shape[-1])
    highest = exponents[..., 0].copy()
    for label in labels[1:]:
        np.maximum(highest, exponents[..., label], out=highest)
    np.subtract(exponents, highest[..., None], out=out)
    np.exp(out, out=out)
    total = out[..., 0].copy()
    for label in labels[1:]:
        total += out[..., label]
    out /= total[..., None]
