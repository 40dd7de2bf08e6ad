"""From the CAMs of one image to its label maps: a seed for each (p, scale), and the two of all of them together.

Called by `seeds.chunk`, and by sweeps. Pure functions of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distwsss.config.stages import SeedsSection
from distwsss.maths.cam import cam_to_full, probabilities
from distwsss.maths.crf import refine
from distwsss.maths.vote import ABSTAIN


@dataclass(frozen=True)
class LabelMaps:
    """`labels`: uint8[n,H,W] class ids, 255 = abstention; `scores`: uint8[n,H,W], round(255 x marginal of the class
    chosen), 0 where the map abstains."""

    labels: np.ndarray
    scores: np.ndarray


def refine_cams(image: np.ndarray, labels: list[int], cams: list[np.ndarray], section: SeedsSection) -> LabelMaps:
    """m CAMs float16[L,h,w] of one image -> its m seeds, then `mean_cam` and `mean_marginals` (`config.stages.MEANS`).

    A seed: the CAM to full size, normalised, the alpha background, a CRF, its argmax. `mean_cam`: one CRF on the mean
    of the m normalised CAMs; `mean_marginals`: the argmax of the mean of the m CRFs' marginals. One CRF call for all.
    An image without labels is background only.
    """
    height, width = image.shape[:2]
    if not labels:
        shape = (len(cams) + 2, height, width)
        return LabelMaps(np.zeros(shape, np.uint8), np.full(shape, ABSTAIN, np.uint8))
    full = np.stack([cam_to_full(cam, height, width) for cam in cams])
    unaries = [probabilities(cam, section.alpha, section.normalise) for cam in (*full, full.mean(axis=0))]
    marginals = refine(image, np.stack(unaries), section.crf)
    return chosen(np.concatenate([marginals, marginals[:-1].mean(axis=0, keepdims=True)]), labels)


def chosen(marginals: np.ndarray, labels: list[int]) -> LabelMaps:
    """The class of the largest marginal, and that marginal: float32[n,L+1,H,W] over background and `labels`."""
    best = marginals.argmax(axis=1)
    scores = np.take_along_axis(marginals, best[:, None], axis=1)[:, 0]
    return LabelMaps(np.array([0, *labels], np.uint8)[best], np.rint(255 * scores).astype(np.uint8))


def abstaining(count: int, height: int, width: int) -> LabelMaps:
    """`count` maps of an image without seeds."""
    shape = (count, height, width)
    return LabelMaps(np.full(shape, ABSTAIN, np.uint8), np.zeros(shape, np.uint8))
