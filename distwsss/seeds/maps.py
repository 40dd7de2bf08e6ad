"""From the CAMs of one image to its label maps: a seed for each (p, scale), and the two of all of them together.

Called by `seeds.chunk` and `seeds.sweep_chunk`. Pure functions of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distwsss.config.stages import MEANS, SeedsSection
from distwsss.maths.cam import cam_to_full, probabilities, to_maximum
from distwsss.maths.crf import refine
from distwsss.maths.saliency import salient_label, with_saliency
from distwsss.maths.vote import ABSTAIN


@dataclass(frozen=True)
class LabelMaps:
    """`labels`: uint8[n,H,W] class ids, 255 = abstention; `scores`: uint8[n,H,W], round(255 x marginal of the class
    chosen), 0 where the map abstains."""

    labels: np.ndarray
    scores: np.ndarray


def refine_cams(
    image: np.ndarray,
    labels: list[int],
    cams: list[np.ndarray],
    section: SeedsSection,
    saliency: np.ndarray | None = None,
) -> LabelMaps:
    """m CAMs float16[L,h,w] of one image -> its m seeds, then `mean_cam` and `mean_marginals` (`config.stages.MEANS`),
    and with `seeds.saliency_voter` what the saliency map says.

    A seed: the CAM to full size, normalised, the alpha background (with `seeds.saliency_unary` that of the saliency map
    uint8[H,W]), a CRF, its argmax. `mean_cam`: one CRF on the mean of the m normalised CAMs, normalised again, so
    that alpha means the same; `mean_marginals`: the argmax of the mean of the m CRFs' marginals. One CRF call for all.
    An image without labels is background only.
    """
    return refine_settings(image, labels, cams, [section], saliency)[0]


def refine_settings(
    image: np.ndarray,
    labels: list[int],
    cams: list[np.ndarray],
    sections: list[SeedsSection],
    saliency: np.ndarray | None = None,
) -> list[LabelMaps]:
    """`refine_cams` under each of `sections`, which differ in nothing but `alpha` and `normalise`: one CRF call for
    all of them."""
    height, width = image.shape[:2]
    if not labels:
        shape = (map_count(sections[0], len(cams)), height, width)
        return [LabelMaps(np.zeros(shape, np.uint8), np.full(shape, ABSTAIN, np.uint8)) for _ in sections]
    full = np.stack([cam_to_full(cam, height, width) for cam in cams])
    mean = to_maximum(full.mean(axis=0))
    salient = None if saliency is None else saliency.astype(np.float32) / 255
    unaries = [_unary(cam, section, salient) for section in sections for cam in (*full, mean)]
    marginals = refine(image, np.stack(unaries), sections[0].crf)
    each = marginals.reshape(len(sections), len(cams) + 1, *marginals.shape[1:])
    return [_maps(found, mean, labels, sections[0], salient) for found in each]


def _maps(
    marginals: np.ndarray, mean: np.ndarray, labels: list[int], section: SeedsSection, salient: np.ndarray | None
) -> LabelMaps:
    """Of the marginals float32[m+1,L+1,H,W] of the seeds and of the mean CAM `mean`, float32[L,H,W]."""
    maps = chosen(np.concatenate([marginals, marginals[:-1].mean(axis=0, keepdims=True)]), labels)
    if not section.saliency_voter or salient is None:
        return maps
    sure = np.rint(255 * np.maximum(salient, 1 - salient)).astype(np.uint8)
    voter = salient_label(mean, labels, salient)
    return LabelMaps(np.concatenate([maps.labels, voter[None]]), np.concatenate([maps.scores, sure[None]]))


def _unary(cam: np.ndarray, section: SeedsSection, saliency: np.ndarray | None) -> np.ndarray:
    """The CRF's distribution float32[L+1,H,W] of one normalised CAM."""
    if section.saliency_unary and saliency is not None:
        return with_saliency(cam, saliency)
    return probabilities(cam, section.alpha, section.normalise)


def map_count(section: SeedsSection, seeds: int) -> int:
    """Label maps of an image with so many seeds."""
    return seeds + len(MEANS) + section.saliency_voter


def chosen(marginals: np.ndarray, labels: list[int]) -> LabelMaps:
    """The class of the largest marginal, and that marginal: float32[n,L+1,H,W] over background and `labels`."""
    best = marginals.argmax(axis=1)
    scores = np.take_along_axis(marginals, best[:, None], axis=1)[:, 0]
    return LabelMaps(np.array([0, *labels], np.uint8)[best], np.rint(255 * scores).astype(np.uint8))


def abstaining(count: int, height: int, width: int) -> LabelMaps:
    """`count` maps of an image without seeds."""
    shape = (count, height, width)
    return LabelMaps(np.full(shape, ABSTAIN, np.uint8), np.zeros(shape, np.uint8))
