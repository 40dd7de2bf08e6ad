"""Masks whose values are not our class ids, read as `data.mask_values` says. Called by `datasets` and `voc`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distwsss.config.data import DataSection
from distwsss.data.images import decode_mask
from distwsss.data.sources.listing import Listing, MaskSource
from distwsss.runtime.artifacts import sha256_bytes


@dataclass(frozen=True)
class RenumberedMask:
    """A mask file, as `listing.MaskSource`. `values`: (value in the file, what it means), the others keep theirs."""

    path: Path
    values: tuple[tuple[int, int], ...]
    max_pixels: int

    def draw(self) -> np.ndarray:
        """uint8[H,W]. Raises DataError, or OSError of the file."""
        meaning = np.arange(256, dtype=np.uint8)
        for value, number in self.values:
            meaning[value] = number
        return meaning[decode_mask(self.path.read_bytes(), self.path.name, self.max_pixels)]

    def digest(self) -> str:
        return sha256_bytes(f"{self.values}\n".encode() + self.path.read_bytes())


def mask_source(path: Path, data: DataSection) -> Path | MaskSource:
    """What reads the mask file `path` as the configuration says."""
    if not data.mask_values:
        return path
    return RenumberedMask(path, tuple(sorted(data.mask_values.items())), data.max_pixels)


def renumbered(listing: Listing, data: DataSection) -> Listing:
    """`listing`, its mask files read as the configuration says."""
    for item in listing.items:
        if isinstance(item.mask, Path):
            item.mask = mask_source(item.mask, data)
    return listing
