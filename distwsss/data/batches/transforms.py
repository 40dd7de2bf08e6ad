"""Augmentation, drawn per image from (seed, epoch, key). Called by `data.batches` in loader processes.

The order is psa's, which the peers share: resize, flip, colour jitter, normalise, random crop with zero padding (the
mean colour).
Images are resized bilinear (bicubic for the classifier), label maps nearest; padding is label 255, clean False.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tf

from distwsss.config.training import AugmentSection
from distwsss.data.images import IGNORE


def target_size(height: int, width: int, augment: AugmentSection, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width after the random scale."""
    factor = rng.uniform(augment.resize[0], augment.resize[1])
    if augment.resize_by == "longest_side":
        factor /= max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def jitter(image: Image.Image, strengths: list[float], rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue by factors within the strengths (torchvision's ColorJitter)."""
    brightness, contrast, saturation, hue = strengths
    for strength, adjust in (
        (brightness, tf.adjust_brightness),
        (contrast, tf.adjust_contrast),
        (saturation, tf.adjust_saturation),
    ):
        if strength:
            image = adjust(image, rng.uniform(max(0.0, 1 - strength), 1 + strength))
    return tf.adjust_hue(image, rng.uniform(-hue, hue)) if hue else image


def _window(size: int, crop: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Where a crop reads from the source and writes to the target along one axis."""
    if size >= crop:
        start = int(rng.integers(size - crop + 1))
        return slice(start, start + crop), slice(0, crop)
    start = int(rng.integers(crop - size + 1))
    return slice(0, size), slice(start, start + size)


def augment_sample(
    image: np.ndarray,
    maps: dict[str, np.ndarray],
    augment: AugmentSection,
    mean: list[float],
    std: list[float],
    rng: np.random.Generator,
    bicubic: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """image uint8[H,W,3], maps uint8 or bool[H,W] -> float32[3,crop,crop] normalised, maps [crop,crop] likewise."""
    height, width = target_size(image.shape[0], image.shape[1], augment, rng)
    flip = augment.flip and bool(rng.integers(2))
    method = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    picture = jitter(Image.fromarray(image).resize((width, height), method), augment.color_jitter, rng)
    pixels = (np.asarray(picture, np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    rows, into_rows = _window(height, augment.crop, rng)
    columns, into_columns = _window(width, augment.crop, rng)

    def place(source: np.ndarray, padding: float) -> np.ndarray:
        source = source[:, ::-1] if flip else source
        target = np.full((augment.crop, augment.crop, *source.shape[2:]), padding, source.dtype)
        target[into_rows, into_columns] = source[rows, columns]
        return target

    placed = {}
    for name, values in maps.items():
        resized = Image.fromarray(values.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
        cropped = place(np.asarray(resized), 0 if values.dtype == bool else IGNORE)
        placed[name] = torch.from_numpy(cropped.astype(bool) if values.dtype == bool else cropped)
    return torch.from_numpy(place(pixels, 0.0).transpose(2, 0, 1).copy()), placed
