"""Semantic masks of COCO's instances, drawn by pycocotools (the only file that imports it). Called by `coco`.

What pycocotools would answer with garbage, or with a crash, is refused here first: odd or huge polygons, and run
lengths that do not cover the image.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from distwsss.data.images import IGNORE
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.artifacts import to_json


class Region(NamedTuple):
    """One annotation: its class, whether its pixels are ignored, and COCO's `segmentation` (polygons as arrays)."""

    label: int
    ignored: bool
    segmentation: Any


@dataclass(frozen=True)
class CocoMask:
    """The annotations of one image, as `listing.MaskSource`."""

    height: int
    width: int
    regions: tuple[Region, ...]

    def draw(self) -> np.ndarray:
        """uint8[H,W]: larger regions first, so that smaller ones lie on top; of equal ones the later.

        Raises DataError for a segmentation that is not COCO's, or not of this size.
        """
        tools, mask = _pycocotools(), np.zeros((self.height, self.width), np.uint8)
        encoded = [self._encode(tools, region.segmentation) for region in self.regions]
        areas = [int(tools.area(one)) for one in encoded]
        for number in sorted(range(len(areas)), key=lambda number: -areas[number]):
            region = self.regions[number]
            mask[tools.decode(encoded[number]) == 1] = IGNORE if region.ignored else region.label
        return mask

    def digest(self) -> str:
        """sha256 of everything that `draw` reads."""
        digest = hashlib.sha256(f"{self.height} {self.width}".encode())
        for label, ignored, segmentation in self.regions:
            digest.update(f"\n{label} {ignored} ".encode())
            for polygon in segmentation if isinstance(segmentation, list) else [segmentation]:
                plain = polygon.tobytes() if isinstance(polygon, array) else to_json(polygon)
                digest.update(f"{len(plain)} ".encode() + plain)
        return digest.hexdigest()

    def _encode(self, tools: Any, segmentation: Any) -> Any:
        """As pycocotools' compressed RLE."""
        if isinstance(segmentation, dict):
            counts = self._counts(segmentation)
            return tools.frPyObjects({"size": [self.height, self.width], "counts": counts}, self.height, self.width)
        if not isinstance(segmentation, list) or not segmentation or not all(map(self._drawable, segmentation)):
            found = json.dumps(segmentation, default=list)[:80]
            raise DataError(f"found segmentation {found}; allowed: RLE, or polygons of 3 or more points in the image")
        return tools.merge(tools.frPyObjects([polygon.tolist() for polygon in segmentation], self.height, self.width))

    def _drawable(self, polygon: Any) -> bool:
        """Some points of real polygons lie a little outside; far ones would take the memory of a huge picture."""
        side = max(self.height, self.width)
        even = isinstance(polygon, array) and len(polygon) >= 6 and len(polygon) % 2 == 0
        return even and all(math.isfinite(value) and -side <= value <= 2 * side for value in polygon)

    def _counts(self, rle: dict[str, Any]) -> list[int]:
        """Run lengths of an RLE, compressed or not, that cover the image."""
        size, counts = rle.get("size"), rle.get("counts")
        counts = run_lengths(counts) if isinstance(counts, str) else counts
        if size != [self.height, self.width]:
            raise DataError(f"found RLE of size {size!r}; allowed: [{self.height}, {self.width}], the image's")
        if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
            raise DataError(f"found RLE counts {str(counts)[:40]}; allowed: whole numbers, or COCO's compressed string")
        if sum(counts) != self.height * self.width:
            raise DataError(f"found RLE of {sum(counts)} pixels; allowed: {self.height * self.width}, the image's")
        return counts


def run_lengths(text: str) -> list[int]:
    """The run lengths in COCO's compressed string (cocoapi, maskApi.c, `rleFrString`); [-1] where it is cut off.

    5 bits a character, low ones first, 0x20 marks that more follow; from the third length on, the difference to the one
    two before.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts if not shift else [-1]


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ConfigError("COCO's masks need pycocotools; install it: pip install 'distwsss[coco]'") from error
    return mask
