"""pydensecrf as its documentation shows it: what the CRF is tested against."""

from __future__ import annotations

import numpy as np
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import unary_from_softmax

from distwsss.maths.crf import CRFParams


def crf_inference(image: np.ndarray, probabilities: np.ndarray, params: CRFParams) -> np.ndarray:
    """Marginals float32[K,H,W] of one seed; psa, SEAM and EPS have it under this name."""
    crf = DenseCRF2D(image.shape[1], image.shape[0], len(probabilities))
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities, clip=params.clip)))
    crf.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=params.bilateral_sxy,
        srgb=params.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=params.bilateral_compat,
    )
    return np.array(crf.inference(params.iterations)).reshape(probabilities.shape)
