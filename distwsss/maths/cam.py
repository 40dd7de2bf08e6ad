"""CAM of one image, and the class distribution made of it (METHOD sections 1 and 2). Called by `seeds.chunk`."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

HALF_MAX = 65504.0  # largest float16


def scaled_input(image: np.ndarray, factor: float, classifier: nn.Module) -> Tensor:
    """image uint8[H,W,3] -> float32 1,3,h,w, resized bicubic by `factor` and normalised as the classifier expects."""
    height, width = (max(1, round(factor * side)) for side in image.shape[:2])
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    normalised = (resized / 255 - np.float32(classifier.mean)) / np.float32(classifier.std)
    device = next(classifier.parameters()).device
    return torch.from_numpy(normalised.transpose(2, 0, 1)[None].copy()).to(device)


def compute_cam(
    classifier: nn.Module,
    image: np.ndarray,
    labels: list[int],
    scale: float = 1.0,
    base_size: int | None = None,
    cam_scales: tuple[float, ...] | list[float] = (1.0,),
) -> np.ndarray:
    """`compute_cams` of one image: float16[L,h,w]."""
    return compute_cams(classifier, [image], [labels], scale, base_size, cam_scales)[0]


@torch.inference_mode()
def compute_cams(
    classifier: nn.Module,
    images: list[np.ndarray],
    labels: list[list[int]],
    scale: float = 1.0,
    base_size: int | None = None,
    cam_scales: tuple[float, ...] | list[float] = (1.0,),
    half: torch.dtype | None = None,
    kept: Tensor | None = None,
    reduce: str = "mean",
) -> list[np.ndarray]:
    """ReLU(w_i^T f) of each image plus that of its flip (flipped back), at feature resolution.

    classifier: in eval mode, `maps`, `mean` and `std` as models.classifier; images: uint8[H,W,3] RGB, all of one size;
    labels: the L present classes of each, 1..N -> float16[L,h,w] each, not normalised. `base_size`: longest side at
    scale 1.00 (default: the images' own). With several `cam_scales` (multiplied by `scale`) the CAMs are summed at the
    first one's size. `half`: dtype of autocast (None: float32). `kept`, `reduce`: as `Classifier.maps`, B,P,C of the
    images (a flip keeps its image's channels).
    """
    both = {} if kept is None else {"kept": torch.cat([kept, kept]), "reduce": reduce}
    base = 1.0 if base_size is None else base_size / max(images[0].shape[:2])
    total: Tensor | None = None
    for cam_scale in cam_scales:
        pixels = torch.cat([scaled_input(image, scale * base * cam_scale, classifier) for image in images])
        with torch.autocast(pixels.device.type, half, enabled=half is not None):
            maps = classifier.maps(torch.cat([pixels, pixels.flip(-1)]), **both).float()  # 2B,N,h,w
        cam = maps[: len(images)] + maps[len(images) :].flip(-1)
        if total is None:
            total = cam
        else:
            total = total + interpolate(cam, total.shape[-2:], mode="bilinear", align_corners=False)
    assert total is not None, "cam_scales is empty"
    stored = total.cpu().clamp(max=HALF_MAX).half().numpy()
    return [cams[[label - 1 for label in present]] for cams, present in zip(stored, labels, strict=True)]


def cam_to_full(cam: np.ndarray, height: int, width: int) -> np.ndarray:
    """float16[L,h,w] -> float32[L,height,width] in [0, 1): bilinear, then each class over its own maximum + 1e-5."""
    small = torch.from_numpy(cam.astype(np.float32))[None]
    return to_maximum(interpolate(small, (height, width), mode="bilinear", align_corners=False)[0].numpy())


def to_maximum(cam: np.ndarray) -> np.ndarray:
    """float32[L,H,W] >= 0 -> each class over its own maximum + 1e-5."""
    return cam / (cam.max(axis=(1, 2), keepdims=True) + np.float32(1e-5))


def background(cam: np.ndarray, alpha: float) -> np.ndarray:
    """float32[L,H,W] in [0, 1], L >= 1 -> M_bg = (1 - max_i M_i)^alpha, float32[H,W]."""
    return (1 - cam.max(axis=0)) ** np.float32(alpha)


def probabilities(cam: np.ndarray, alpha: float, normalise: str = "sum") -> np.ndarray:
    """float32[L,H,W] in [0, 1] -> float32[L+1,H,W] over {background, present classes}, summing to 1.

    `normalise`: each over their sum, or softmax of the maps.
    """
    maps = np.concatenate([background(cam, alpha)[None], cam])
    if normalise == "softmax":
        maps = np.exp(maps)
    elif normalise != "sum":
        raise ValueError(f"normalise is {normalise!r}; allowed: softmax, sum")
    return maps / maps.sum(axis=0, keepdims=True)
