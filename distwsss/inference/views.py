"""A segmenter's class probabilities for one image, over scales and flips. Called by `inference.segmenter`, `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, softmax

from distwsss.config.stages import EvaluateSection
from distwsss.inference.enlarge import enlarged_labels
from distwsss.inference.upsample import Part, add_view, bands, window_starts
from distwsss.losses.hybrid import constrained_log_softmax
from distwsss.models.backbones.build import normalise


@dataclass(frozen=True)
class Views:
    """How a network looks at an image: the `evaluate` section's keys of the same names, and the flip. With a
    `crop_size` a larger scaled image goes through the network in windows of that side, `stride` apart (default: side by
    side)."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    average: str = "probabilities"
    probabilities: str = "softmax"
    crop_size: int | None = None
    stride: int | None = None


def views_of(section: EvaluateSection, multi_scale: bool) -> Views:
    """As the section asks: one scale, or its scales and the flip."""
    scales = tuple(section.scales) if multi_scale else (1.0,)
    return Views(scales, multi_scale, section.average, section.probabilities, section.crop_size, section.stride)


def _scaled(model: nn.Module, image: Tensor, scale: float) -> Tensor:
    """image 1,3,H,W in 0..255 -> 1,3,h,w, normalised for the network."""
    size = [max(1, round(scale * side)) for side in image.shape[-2:]]
    scaled = interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
    return normalise(scaled, model.mean, model.std)


def _parts(model: nn.Module, scaled: Tensor, flip: bool, crop_size: int | None, stride: int | None) -> list[Part]:
    """scaled 1,3,h,w -> logits of it or, flipped back, of its flip: whole, or of windows where it is larger."""
    height, width = scaled.shape[-2:]
    crop_size = crop_size or max(height, width)
    seen = scaled.flip(-1) if flip else scaled
    parts = []
    for top in window_starts(height, crop_size, stride or crop_size):
        for left in window_starts(width, crop_size, stride or crop_size):
            window = seen[:, :, top : top + crop_size, left : left + crop_size]
            high, wide = window.shape[-2:]
            if flip:
                parts.append(Part(top, width - left - wide, high, wide, model(window).flip(-1)))
            else:
                parts.append(Part(top, left, high, wide, model(window)))
    return parts


def to_probabilities(logits: Tensor, probabilities: str = "softmax", temperature: float | None = None) -> Tensor:
    """logits B,K,H,W -> class distributions: softmax(z), or softmax(z / (tau ||z||)) for `constrained`.

    Without a temperature the network was trained without the constraint, so both are softmax(z).
    """
    logits = logits.float()
    if probabilities == "constrained" and temperature is not None:
        return constrained_log_softmax(logits, temperature).exp()
    return softmax(logits, dim=1)


@torch.inference_mode()
def predict_probabilities(
    model: nn.Module, image: np.ndarray, views: Views, device: str | torch.device = "cpu"
) -> Tensor:
    """Class probabilities of `image` (uint8[H,W,3] RGB) -> float32[K,H,W] on `device`, summing to 1 over K.

    The image is resized bilinear (antialiased) to round(scale * H), round(scale * W), never padded. Logits are brought
    to H,W bilinear, with the network's `align_corners`; their probabilities, or with `average="logits"` they themselves
    before one softmax, are averaged over scales and flips (METHOD section 4; DeepLab-V2 fuses scales likewise). The
    probabilities `constrained` have the network's own `temperature`.

    Beside the result and the network's own memory it takes the logits of one view at the network's resolution and some
    bands of rows, whatever the number of scales.
    """
    size = (image.shape[0], image.shape[1])
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(device).permute(2, 0, 1)[None].float()
    temperature = model.temperature if views.probabilities == "constrained" else None

    def distribution(logits: Tensor) -> Tensor:
        return to_probabilities(logits, views.probabilities, temperature)

    convert = distribution if views.average == "probabilities" else Tensor.float
    total: Tensor | None = None
    for scale in views.scales:
        scaled = _scaled(model, pixels, scale)
        within = (scaled.shape[2], scaled.shape[3])
        for flipped in (False, True) if views.flip else (False,):
            parts = _parts(model, scaled, flipped, views.crop_size, views.stride)
            total = add_view(total, parts, within, size, model.align_corners, convert)
            del parts  # before the next forward
        del scaled
    mean = cast(Tensor, total).div_(len(views.scales) * (2 if views.flip else 1))
    if views.average != "probabilities":
        for band in bands(size[0], mean.shape[0] * size[1]):
            mean[:, band] = distribution(mean[None, :, band])[0]
    return mean


def labels_at(probabilities: Tensor, size: tuple[int, int]) -> np.ndarray:
    """probabilities K,h,w -> the most probable class ids [H,W] of `size`, bilinear where that is another."""
    if probabilities.shape[1:] == size:
        return probabilities.argmax(dim=0).cpu().numpy()
    return enlarged_labels(probabilities.cpu().numpy(), size)


def crf_planes(probabilities: Tensor, clip: float) -> tuple[np.ndarray, np.ndarray]:
    """probabilities K,H,W -> what `postprocess.crf_labels` needs of them: float16[k,H,W], and the k classes.

    Classes below `clip` everywhere are left out, as there; class by class, so that no copy of all K is made.
    """
    highest = probabilities.amax(dim=(1, 2)).half().cpu().numpy()
    classes = np.flatnonzero(highest >= clip)
    planes = np.empty((len(classes), *probabilities.shape[1:]), np.float16)
    for plane, number in zip(planes, classes, strict=True):
        plane[...] = probabilities[number].half().cpu().numpy()
    return planes, classes
