"""Labels over a photograph, and which colour is which class. Called by `inference.segmenter`."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distwsss.data.images import voc_palette

LEGEND_ROW = 16  # pixels
ROWS = 256  # blended at a time


def overlay(image: np.ndarray, labels: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """image uint8[H,W,3] with the colours of the labels uint8[H,W] blended in; background stays as it is."""
    found, palette = image.copy(), voc_palette().astype(np.float32)
    for start in range(0, len(image), ROWS):
        band = slice(start, start + ROWS)
        there = labels[band] > 0
        mixed = (1 - strength) * image[band][there] + strength * palette[labels[band][there]]
        found[band][there] = mixed.round().astype(np.uint8)
    return found


def with_legend(image: np.ndarray, labels: np.ndarray, classes: list[str]) -> Image.Image:
    """`image` with the names and colours of the classes in `labels` written below it."""
    present = [int(value) for value in np.unique(labels) if 0 < value < len(classes)]
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width, height + LEGEND_ROW * len(present)), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    draw, font, palette = ImageDraw.Draw(canvas), ImageFont.load_default(size=11), voc_palette()
    for row, value in enumerate(present):
        top = height + LEGEND_ROW * row
        draw.rectangle((3, top + 3, 13, top + 13), fill=tuple(map(int, palette[value])))
        draw.text((18, top + 2), classes[value], fill="black", font=font)
    return canvas
