"""Bands of rows against the formula over whole tensors, sliding windows against loops, and the memory they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from distwsss.inference import upsample
from distwsss.inference.upsample import bands, resized_rows, whole_rows, window_starts
from distwsss.inference.views import Views, predict_probabilities

SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


class Strided(nn.Module):
    """A convolution without padding: what a window's logits are depends on the window."""

    mean, std = [0.2, 0.4, 0.6], [0.5, 0.25, 0.3]

    def __init__(self, align_corners: bool = False, classes: int = 4, stride: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, classes, stride, stride)
        self.align_corners, self.temperature = align_corners, None

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        stride = self.layer.stride[0]
        return 3 * self.layer(nn.functional.pad(images, (0, -width % stride, 0, -height % stride)))


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def views(model: Strided, image: np.ndarray, scales: list[float]) -> list[tuple[Tensor, bool]]:
    """The normalised image at each scale, and its flip."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
    found = []
    for scale in scales:
        size = [round(scale * side) for side in image.shape[:2]]
        scaled = interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        scaled = (scaled / 255 - mean) / std
        found += [(scaled, False), (scaled.flip(-1), True)]
    return found


def distribution(logits: Tensor, temperature: float | None) -> Tensor:
    if temperature is not None:
        logits = logits / (temperature * logits.norm(dim=1, keepdim=True))
    return torch.softmax(logits, dim=1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("band", [1, 700, 2**20], ids=["row by row", "some rows", "all rows"])
def test_bands_equal_the_formula(
    align_corners: bool, average: str, temperature: float | None, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = Strided(align_corners).eval(), picture(37, 51)
    every = []
    for pixels, flipped in views(model, image, SCALES):
        logits = model(pixels).detach()
        full = interpolate(logits, (37, 51), mode="bilinear", align_corners=align_corners)
        every.append(full.flip(-1) if flipped else full)
    if average == "logits":
        wanted = distribution(torch.stack(every).mean(0), temperature)[0]
    else:
        wanted = torch.stack([distribution(full, temperature) for full in every]).mean(0)[0]
    monkeypatch.setattr(upsample, "BAND", band)
    kind = "softmax" if temperature is None else "constrained"
    model.temperature = temperature
    found = predict_probabilities(model, image, Views(tuple(SCALES), True, average, kind))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    other = interpolate(model(views(model, image, [1.0])[0][0]), (37, 51), mode="bilinear", align_corners=True)
    assert (other[0] - every[4][0]).abs().max() > 0.1 or align_corners  # the two ways to align differ


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((1, 1), (1, 1)),
        ((1, 3), (7, 1)),
        ((5, 4), (1, 9)),
        ((64, 5), (64, 5)),
        ((47, 63), (375, 500)),
        ((131, 7), (60, 3)),
    ],
)
@pytest.mark.parametrize("classes", [2, 3, 21])
def test_rows_are_those_of_interpolate(
    source: tuple[int, int], size: tuple[int, int], align_corners: bool, classes: int
) -> None:
    logits = torch.rand(1, classes, *source, generator=torch.Generator().manual_seed(1))
    wanted = interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    rows = resized_rows(whole_rows(logits), classes, source[0], size, align_corners, torch.device("cpu"))
    for step in (1, 3, size[0]):
        found = [rows(start, min(start + step, size[0])) for start in range(0, size[0], step)]
        torch.testing.assert_close(torch.cat(found, dim=2), wanted, atol=2e-7, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
def test_rows_of_any_two_heights(align_corners: bool) -> None:
    """257 to 865 and to 1021, as some others, have a row whose coordinate is a whole number but for its last bit."""
    drawn = np.random.default_rng(0).integers(1, [300, 1100], (150, 2)).tolist()
    for height, size in [[257, 865], [257, 1021], [65, 231], *drawn]:
        logits = torch.rand(1, 1, height, 1, generator=torch.Generator().manual_seed(height))
        wanted = interpolate(logits, (size, 1), mode="bilinear", align_corners=align_corners)
        found = resized_rows(whole_rows(logits), 1, height, (size, 1), align_corners, torch.device("cpu"))(0, size)
        torch.testing.assert_close(found, wanted, atol=2e-7, rtol=0, msg=f"{height} to {size}")


def test_bands_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsample, "BAND", 100)
    for height in range(1, 12):
        for per_row in (1, 17, 30, 100, 5000):
            found = bands(height, per_row)
            assert [row for band in found for row in range(height)[band]] == list(range(height))
            assert all((band.stop - band.start) * per_row <= max(100, per_row) for band in found)


def test_windows_cover_every_pixel_and_end_with_the_image() -> None:
    for length in range(1, 40):
        for crop_size in (1, 5, 12, 16):
            for stride in range(1, crop_size + 1):
                starts = window_starts(length, crop_size, stride)
                side = min(crop_size, length)
                covered = {pixel for start in starts for pixel in range(start, start + side)}
                assert covered == set(range(length))
                assert starts == sorted(set(starts))
                assert len(starts) == 1 or starts[-2] + crop_size < length  # none without a pixel of its own


def test_windows_of_well_known_settings() -> None:
    assert window_starts(1024, 512, 341) == [0, 341, 512]
    assert window_starts(2048, 769, 513) == [0, 513, 1026, 1279]
    assert window_starts(500, 512, 341) == [0]
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(513, 512, 341) == [0, 1]


def slid(model: Strided, image: np.ndarray, scales: list[float], crop_size: int, stride: int) -> Tensor:
    """Mean of the distributions of every view, whose logits are summed pixel by pixel of the scaled image and divided
    by the number of windows there; a view that one window holds is not brought to its own size first."""
    align, size = bool(getattr(model, "align_corners", False)), image.shape[:2]
    every = []
    for pixels, flipped in views(model, image, scales):
        height, width = pixels.shape[2:]
        total, count = torch.zeros(4, height, width, dtype=torch.float64), torch.zeros(height, width)
        y, last_y = 0, False
        while not last_y:
            last_y = y + crop_size >= height
            bottom = min(y + crop_size, height)
            top = max(bottom - crop_size, 0)
            x, last_x = 0, False
            while not last_x:
                last_x = x + crop_size >= width
                right = min(x + crop_size, width)
                left = max(right - crop_size, 0)
                logits = model(pixels[:, :, top:bottom, left:right]).detach()
                logits = interpolate(logits, (bottom - top, right - left), mode="bilinear", align_corners=align)
                total[:, top:bottom, left:right] += logits[0]
                count[top:bottom, left:right] += 1
                x += stride
            y += stride
        mean = model(pixels).detach() if max(height, width) <= crop_size else (total / count).float()[None]
        full = interpolate(mean, size, mode="bilinear", align_corners=align)
        every.append(torch.softmax(full.flip(-1) if flipped else full, dim=1))
    return torch.stack(every).mean(0)[0]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(45, 61), (61, 20), (25, 26)], ids=["both sides", "one side", "at some scales"])
@pytest.mark.parametrize("band", [1, 700, 2**20], ids=["row by row", "some rows", "all rows"])
def test_slide_equals_a_loop(
    align_corners: bool, size: tuple[int, int], band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = Strided(align_corners).eval(), picture(*size)
    monkeypatch.setattr(upsample, "BAND", band)
    found = predict_probabilities(model, image, Views((0.75, 1.0, 1.5), True, crop_size=24, stride=17))
    wanted = slid(model, image, [0.75, 1.0, 1.5], 24, 17)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)
    assert (found - predict_probabilities(model, image, Views((0.75, 1.0, 1.5), True))).abs().max() > 0.01


def test_an_image_no_larger_than_a_window_is_whole() -> None:
    model, image = Strided().eval(), picture(23, 30)
    found = predict_probabilities(model, image, Views((0.5, 1.0), True, crop_size=30, stride=10))
    assert torch.equal(found, predict_probabilities(model, image, Views((0.5, 1.0), True)))


def test_windows_side_by_side_without_a_stride() -> None:
    model, image = Strided().eval(), picture(48, 48)
    found = predict_probabilities(model, image, Views(crop_size=24))
    quarters = [[image[y : y + 24, x : x + 24] for x in (0, 24)] for y in (0, 24)]
    wanted = [[predict_probabilities(model, part, Views()) for part in row] for row in quarters]
    torch.testing.assert_close(found, torch.cat([torch.cat(row, dim=2) for row in wanted], dim=1), atol=1e-6, rtol=0)


def peak(function: Callable[[], Tensor]) -> tuple[int, int]:
    """The most bytes of tensors alive at once while `function` runs, and those of its result."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = function()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    alive = np.cumsum([count for _, count in changes])
    assert alive[-1] >= result.nbytes  # the profiler saw the allocations
    return int(alive.max()), result.nbytes


@pytest.mark.parametrize(
    "keys",
    [{}, {"average": "logits"}, {"probabilities": "constrained"}, {"crop_size": 96, "stride": 64}],
    ids=["probabilities", "logits", "constrained", "slide"],
)
def test_memory_is_the_sum_and_little_more_for_any_number_of_scales(
    keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = Strided(classes=81, stride=8).eval(), picture(160, 160)
    model.temperature = 0.5
    monkeypatch.setattr(upsample, "BAND", 2**16)  # 1/32 of K,H,W

    def run(scales: list[float]) -> tuple[int, int]:
        return peak(lambda: predict_probabilities(model, image, Views(tuple(scales), True, **keys)))

    scales = [0.5, 0.75, 1.0, 1.25, 1.5]
    (alone, *_), (size, *_) = zip(*sorted((run([scale]) for scale in scales), reverse=True), strict=True)
    together, _ = run(scales)
    assert size == 81 * 160 * 160 * 4
    assert together <= alone + 4096  # the scale that takes most decides
    assert together < 1.5 * size
