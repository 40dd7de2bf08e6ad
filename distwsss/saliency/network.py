"""What stands out in a photograph, by a salient-object network. Called by `saliency.maps`.

In and out are those of U2-Net, which other networks given as an ONNX file are expected to share: the photograph resized
to the network's input by Lanczos' filter, over its maximum, minus ImageNet's means, over its deviations; the first
output's first channel, brought to 0..1 by its own minimum and maximum, resized to the photograph bilinearly.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from distwsss.data.images import resize_grey
from distwsss.errors import CheckpointError
from distwsss.runtime.onnx import OnnxNetwork

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def network_input(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """image uint8[H,W,3] RGB -> float32[1,3,height,width]."""
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS), np.float32)
    return ((resized / max(resized.max(), 1e-6) - MEAN) / STD).transpose(2, 0, 1)[None].copy()


def saliency_map(network: OnnxNetwork, image: np.ndarray) -> np.ndarray:
    """image uint8[H,W,3] RGB -> uint8[H,W], from 0 to 255; all 0 where the network answers the same everywhere.

    Raises CheckpointError for an output that is no map.
    """
    output = network(network_input(image, network.height, network.width))
    if not 2 <= output.ndim <= 4 or (output.ndim == 4 and len(output) != 1) or not np.isfinite(output).all():
        raise CheckpointError(
            f"saliency.model: its first output is {output.dtype}{list(output.shape)}"
            f"{'' if np.isfinite(output).all() else ' and not finite'}; allowed: numbers [1,1,h,w], high where "
            "something stands out"
        )
    plane = output.reshape(-1, *output.shape[-2:])[0].astype(np.float32)
    low, high = plane.min(), plane.max()
    if high <= low:
        return np.zeros(image.shape[:2], np.uint8)
    full = resize_grey((plane - low) / (high - low), (image.shape[0], image.shape[1]))
    return np.rint(255 * full).astype(np.uint8)
