"""Saliency maps that lie in a folder: all of them checked before anything is written, then read. Called by
`saliency.maps` and `saliency.chunk`.

What people have differs: some draw the background white, some made their maps for photographs of another size, some
saved colours. Such maps would spoil every label without a word, so what is wrong with any of them is said at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distwsss.data.images import decode_grey, resize_grey
from distwsss.errors import DataError

SHOWN = 20  # ids that are named of each kind of problem
INVERTED = 0.7  # a mean of all maps above it looks inverted: what stands out takes less than half, commonly
# kinds of problems: what of a photograph is wrong
MISSING = "have no map; allowed: ID.png (or .jpg) of every train photograph"
SEVERAL = "have several files that may be the map; leave one of them"
UNREADABLE = "have a map that is not 8-bit grey, as L, LA, RGB of equal channels or P of greys"
OTHER_SIZE = "have a map of another size; allowed: the photograph's own, before `prepare` shrinks it"
BLACK = "have a map that is 0 everywhere, in which nothing stands out"
WHITE = "have a map that is 255 everywhere, in which all stands out"


@dataclass(frozen=True)
class MapFile:
    """The map of one photograph. files: which may be it; size: (H, W) of the whole photograph, upright; turned: whether
    EXIF turned it."""

    name: str
    files: tuple[Path, ...]
    size: tuple[int, int]
    turned: bool = False


@dataclass
class Found:
    """What was found in some maps. problems: kind -> ids, each with what was found; means: the sum of the means of the
    good maps, each of 0 to 1."""

    problems: dict[str, list[str]] = field(default_factory=dict)
    means: float = 0.0

    def add(self, other: Found) -> None:
        self.means += other.means
        for kind, names in other.problems.items():
            self.problems.setdefault(kind, []).extend(names)


class _MapError(Exception):
    """A map that cannot be used."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


def map_file(name: str, files: Sequence[Path], about: dict[str, Any]) -> MapFile:
    """about: the `json` of the photograph's sample, in which `size` is that of the shrunk one."""
    height, width = about.get("original", about["size"])
    return MapFile(name, tuple(files), (height, width), "turned" in about)


def check_maps(max_pixels: int, maps: Sequence[MapFile]) -> Found:
    """Every problem of `maps`, all of which are decoded; a plain function for worker processes."""
    found = Found()
    for each in maps:
        try:
            found.means += float(_read(each, max_pixels).mean()) / 255
        except _MapError as error:
            detail = f": {error.detail}" if error.detail else ""
            found.problems.setdefault(error.kind, []).append(f"{each.name}{detail}")
    return found


def refuse(problems: dict[str, list[str]], photographs: int, where: str) -> None:
    """Raises DataError with every kind of problem, how many photographs have it, and which."""
    if not problems:
        return
    lines = [f"{where}: these saliency maps cannot be used; nothing was written. Of {photographs} photographs"]
    for kind, names in problems.items():
        some = sorted(names)[:SHOWN]
        lines += [f"  {len(names)} {kind}:", *(f"    {name}" for name in some)]
        lines += [f"    ... and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    raise DataError("\n".join(lines))


def read_map(each: MapFile, stored: tuple[int, int], normalise: str, max_pixels: int) -> np.ndarray:
    """uint8[h,w] at the `stored` size of the photograph, which may have been shrunk. normalise: `saliency.normalise`.

    Raises DataError for a map that is not what it was when all were checked.
    """
    try:
        values = _read(each, max_pixels)
    except _MapError as error:
        raise DataError(f"{each.name}: its saliency map changed: {error.kind} ({error.detail})") from error
    if normalise == "max":
        values = np.rint(values * (255 / values.max())).astype(np.uint8)
    return resize_grey(values, stored)


def _read(each: MapFile, max_pixels: int) -> np.ndarray:
    """uint8[H,W] at the size of the whole photograph, neither all 0 nor all 255."""
    if len(each.files) != 1:
        raise _MapError(SEVERAL if each.files else MISSING, ", ".join(str(path) for path in each.files))
    try:
        values = decode_grey(each.files[0].read_bytes(), str(each.files[0]), max_pixels)
    except (DataError, OSError) as error:
        raise _MapError(UNREADABLE, str(error)) from error
    if values.shape != each.size:
        raise _MapError(OTHER_SIZE, _sizes(values, each))
    if not values.any() or values.min() == 255:
        raise _MapError(WHITE if values.any() else BLACK, str(each.files[0]))
    return values


def _sizes(values: np.ndarray, each: MapFile) -> str:
    (height, width), (rows, columns) = each.size, values.shape
    turned = "; EXIF turns the photograph upright, turn the map likewise" if each.turned else ""
    return f"map {columns} x {rows}, photograph {width} x {height}{turned}"
