"""What a saliency map says beside CAMs: how much is background, and where objects lie. Called by `seeds.maps`. Imports
no torch.

A saliency map float32[H,W] in 0..1 is high where something stands out; which class it is only CAMs can say.
"""

from __future__ import annotations

import numpy as np

SALIENT = 0.5  # above it a pixel belongs to an object, as EPS rounds
# chosen on train ids of voc_mini (benchmarks/README.md): the map's share beside the highest CAM's, where an object
# begins, and how sharply
SHARE, MIDDLE, SHARPNESS = np.float32(0.7), np.float32(0.4), np.float32(16)
EVEN = np.float32(1e-3)  # where no CAM says anything the classes share alike


def with_saliency(cam: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """float32[L,H,W] in [0, 1], L >= 1 -> float32[L+1,H,W] over {background, present classes}, summing to 1.

    Foreground is sigmoid(16 (0.7 saliency + 0.3 the highest CAM - 0.4)): small and plain objects, which a saliency
    network passes over, are found by their CAMs. The classes share it as their CAMs stand to each other.
    """
    found = SHARE * saliency + (1 - SHARE) * cam.max(axis=0)
    foreground = 1 / (1 + np.exp(-SHARPNESS * (found - MIDDLE)))
    shares = cam + EVEN
    return np.concatenate([(1 - foreground)[None], foreground * shares / shares.sum(axis=0)]).astype(np.float32)


def salient_label(cam: np.ndarray, labels: list[int], saliency: np.ndarray) -> np.ndarray:
    """uint8[H,W]: the class of `labels` (one for each of the CAMs float32[L,H,W]) with the highest CAM where the map is
    above 0.5, background elsewhere."""
    return np.where(saliency > SALIENT, np.array(labels, np.uint8)[cam.argmax(axis=0)], 0).astype(np.uint8)
