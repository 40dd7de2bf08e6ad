"""Logits brought to an image's size a few rows at a time, whole or from sliding windows. Called by `inference`.

At 81 classes one float32[K,H,W] of a 1024 x 1024 image is 340 MB. Only the sum over scales and flips has that size:
what is added to it is computed in bands of rows, which have the numbers that `interpolate` gives for the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Rows = Callable[[int, int], Tensor]  # first, last (exclusive) -> 1,K,last-first,W: those rows of some 1,K,H,W
BAND = 2**20  # numbers in a band: 4 MiB of float32


class Part(NamedTuple):
    """The network's logits for a window of the scaled image, whose place is in pixels of that image."""

    top: int
    left: int
    height: int
    width: int
    logits: Tensor  # 1,K,h,w


def window_starts(length: int, crop_size: int, stride: int) -> list[int]:
    """Where windows begin along a side: every `stride`, the last one moved back to end with the image.

    A side no longer than a window has one, of its own length (mmsegmentation's `mode: slide`; nothing is padded).
    """
    if length <= crop_size:
        return [0]
    count = -(-(length - crop_size) // stride) + 1
    return [min(number * stride, length - crop_size) for number in range(count)]


def add_view(
    total: Tensor | None,
    parts: list[Part],
    scaled: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    convert: Callable[[Tensor], Tensor],
) -> Tensor:
    """`total` (float32[K,H,W]; None: zeros) plus `convert(logits)` of one view of the image, in place.

    parts: the logits of the windows of a `scaled` (h, w) image, or one Part with the whole of it, which goes straight
    to `size` (H, W). Windows go to their own size first; their mean, of h,w, goes to H,W (as in mmsegmentation).
    convert: of 1,K,rows,W, pixel by pixel.
    """
    source, height = parts[0].logits, parts[0].logits.shape[2]
    rows, per_row = whole_rows(source), size[1]
    if len(parts) > 1:
        rows, height = mean_rows(parts, scaled[1], align_corners), scaled[0]
        per_row = max(
            per_row, scaled[0] * scaled[1] // size[0]
        )  # the windows' mean is the larger one at scales above 1
    classes = source.shape[1]
    rows = resized_rows(rows, classes, height, size, align_corners, source.device)
    if total is None:
        total = torch.zeros((classes, *size), device=source.device)
    for band in bands(size[0], classes * per_row):
        total[:, band] += convert(rows(band.start, band.stop))[0]
    return total


def bands(height: int, per_row: int) -> list[slice]:
    """Rows 0..height in slices of about `BAND` numbers, `per_row` being those of a row; at least one row each."""
    step = max(1, BAND // per_row)
    return [slice(start, min(start + step, height)) for start in range(0, height, step)]


def whole_rows(logits: Tensor) -> Rows:
    """1,K,h,w of any float dtype, as float32."""
    return lambda first, last: logits[:, :, first:last].float()


def resized_rows(
    rows: Rows, classes: int, height: int, size: tuple[int, int], align_corners: bool, device: torch.device
) -> Rows:
    """Rows of `interpolate(X, size, mode="bilinear", align_corners=align_corners)`, `rows` being those of X, `height`
    of them: along the rows by `interpolate`, then between the two rows that a row of the result lies between."""
    lower, upper, weight = _neighbours(classes, height, size[0], align_corners, device)
    first_of, last_of = lower.tolist(), upper.tolist()

    def resized(start: int, stop: int) -> Tensor:
        first, last = first_of[start], last_of[stop - 1] + 1
        wide = interpolate(rows(first, last), (last - first, size[1]), mode="bilinear", align_corners=align_corners)
        below = wide.index_select(2, upper[start:stop] - first)
        return wide.index_select(2, lower[start:stop] - first).lerp_(below, weight[start:stop, None])

    return resized


def _neighbours(
    classes: int, height: int, size: int, align_corners: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of `size` rows: the two of `height` rows between which it lies, and the weight of the second.

    Both are `interpolate`'s own, roundings included, read off what it makes of rows whose number leaves 0, 1 or 2 when
    divided by 3: its weights, in float32, hang on the last bits of its coordinates. So many `classes` as X has: on one
    thread of a CPU three channels, as those of a picture, have other roundings than any other number.
    """
    thirds = torch.eye(3, device=device)[:, torch.arange(height, device=device) % 3]
    channels = thirds[:, None, :, None].repeat(1, classes, 1, 1)
    seen = interpolate(channels, (size, 1), mode="bilinear", align_corners=align_corners)[:, 0, :, 0]
    places = torch.arange(size, device=device, dtype=torch.float32)
    if align_corners:
        places = places * ((height - 1) / max(size - 1, 1))
    else:
        places = ((places + 0.5) * (height / size) - 0.5).clamp(min=0)
    lower = places.long()  # exact, or one off where the coordinate is a whole number but for its last bit
    before, after = (seen.gather(0, ((lower + step) % 3)[None])[0] for step in (-1, 1))
    lower = torch.where(before == 0, lower, torch.where(after == 0, lower - 1, lower + 1)).clamp(0, height - 1)
    return lower, (lower + 1).clamp(max=height - 1), seen.gather(0, ((lower + 1) % 3)[None])[0]


def mean_rows(parts: list[Part], width: int, align_corners: bool) -> Rows:
    """Rows of the scaled image's logits: each window's at its own size, summed, divided by how many cover a pixel."""
    strips = [
        resized_rows(
            whole_rows(logits), logits.shape[1], logits.shape[2], (height, across), align_corners, logits.device
        )
        for _, _, height, across, logits in parts
    ]

    def mean(first: int, last: int) -> Tensor:
        logits = parts[0].logits
        total = torch.zeros((1, logits.shape[1], last - first, width), device=logits.device)
        count = torch.zeros((last - first, width), device=logits.device)
        for part, strip in zip(parts, strips, strict=True):
            start, stop = max(first, part.top), min(last, part.top + part.height)
            if start < stop:
                place = (..., slice(start - first, stop - first), slice(part.left, part.left + part.width))
                total[place] += strip(start - part.top, stop - part.top)
                count[place] += 1
        return total.div_(count)

    return mean
