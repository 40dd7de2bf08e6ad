"""Memory of multi-scale inference: tensors alive at the peak, in units of one float32[K,H,W].

    python benchmarks/inference_memory.py --classes 81 --size 1024

The network is one convolution of the given stride, so that what is counted is what inference adds to one. `all at
once` is the formula: every view brought to full size, its softmax, the sum, the mean. Counted by torch's profiler on
the CPU; the results are compared too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, softmax

from distwsss.inference.views import Views, predict_probabilities
from distwsss.models.backbones.build import normalise

SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


class Convolution(nn.Module):
    """images B,3,H,W -> logits B,K,H/stride,W/stride."""

    mean, std, align_corners = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], False

    def __init__(self, classes: int, stride: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stride, self.layer = stride, nn.Conv2d(3, classes, stride, stride)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return 5 * self.layer(pad(images, (0, -width % self.stride, 0, -height % self.stride)))


@torch.inference_mode()
def all_at_once(model: nn.Module, image: np.ndarray, scales: list[float]) -> Tensor:
    """uint8[H,W,3] -> float32[K,H,W]."""
    size = image.shape[:2]
    pixels, total = torch.from_numpy(image).permute(2, 0, 1)[None].float(), None
    for scale in scales:
        scaled = interpolate(pixels, [round(scale * side) for side in size], mode="bilinear", antialias=True)
        scaled = normalise(scaled, model.mean, model.std)
        for logits in [model(scaled), model(scaled.flip(-1)).flip(-1)]:
            full = softmax(interpolate(logits, size, mode="bilinear", align_corners=False), dim=1)
            total = full if total is None else total.add_(full)
    return (total / (2 * len(scales)))[0]


def peak(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Bytes of tensors alive at the peak, over those of the result; the result."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        result = function()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return np.cumsum([count for _, count in changes]).max() / result.nbytes, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=81)
    parser.add_argument("--size", type=int, default=1024)
    arguments = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (arguments.size, arguments.size, 3), dtype=np.uint8)
    copy = arguments.classes * arguments.size**2 * 4 / 2**20
    print(
        f"{arguments.classes} classes, {arguments.size} x {arguments.size} pixels; 1.00 is {copy:.0f} MiB; with flips"
    )
    for stride in (8, 4):
        model = Convolution(arguments.classes, stride).eval()
        before, wanted = peak(lambda: all_at_once(model, image, SCALES))  # noqa: B023
        for scales in ([1.0], [1.75], SCALES):
            views = Views(tuple(scales), flip=True)
            ratio, found = peak(lambda: predict_probabilities(model, image, views))  # noqa: B023
            print(f"stride {stride}, in bands, scales {scales}: {ratio:.2f}")
        print(f"stride {stride}, all at once: {before:.2f}; largest difference {(found - wanted).abs().max():.1e}")
        views = Views(tuple(SCALES), flip=True, crop_size=512, stride=341)
        ratio, _ = peak(lambda: predict_probabilities(model, image, views))  # noqa: B023
        print(f"stride {stride}, in bands, windows of 512 every 341: {ratio:.2f}")


if __name__ == "__main__":
    main()
