"""Arrays as small inline pictures (data: URIs). Called by `report.gallery`."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

from distwsss.data.images import IGNORE, encode_palette

SIDE = 220  # longest side of a picture on the page, pixels
CLEAN, NOISY, IGNORED = (43, 108, 176), (237, 162, 61), (224, 224, 192)  # blue and amber differ for every eye


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _fit(array: np.ndarray, method: Image.Resampling) -> np.ndarray:
    """uint8[H,W] or [H,W,3] with its longest side at most SIDE."""
    height, width = array.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(array).resize(size, method))


def _png(colours: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(_fit(colours, Image.Resampling.NEAREST)).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def photo(image: np.ndarray) -> str:
    """uint8[H,W,3] RGB."""
    buffer = io.BytesIO()
    Image.fromarray(_fit(image, Image.Resampling.LANCZOS)).save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def label_map(labels: np.ndarray) -> str:
    """uint8[H,W] class ids in VOC colours."""
    return data_uri(encode_palette(_fit(labels, Image.Resampling.NEAREST)), "image/png")


def vote_colours(seeds: int) -> np.ndarray:
    """uint8[seeds + 1, 3]: dark for no vote, light for all."""
    return (matplotlib.colormaps["viridis"](np.linspace(0, 1, seeds + 1))[:, :3] * 255).round().astype(np.uint8)


def votes_map(votes: np.ndarray, seeds: int) -> str:
    """votes uint8[H,W] of 0..seeds as a heat map."""
    return _png(vote_colours(seeds)[np.minimum(votes, seeds)])


def clean_map(clean: np.ndarray, labels: np.ndarray) -> str:
    """clean bool[H,W]: clean, noisy, and ignored (label 255) pixels in three colours."""
    colours = np.array([NOISY, CLEAN], dtype=np.uint8)[clean.astype(np.int64)]
    colours[labels == IGNORE] = IGNORED
    return _png(colours)
