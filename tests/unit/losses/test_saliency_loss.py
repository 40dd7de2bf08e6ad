"""EPS's objective against its description written out with loops in float64, and where its gradient goes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distwsss.losses.saliency import saliency_loss

OUTSIDE = -1


def reference(maps: Tensor, targets: Tensor, saliency: Tensor, tau: float, lam: float) -> float:
    """The mean squared error of each photograph, summed; a position is a block of pixels."""
    total, (images, channels, height, width) = 0.0, maps.shape
    rows, columns = saliency.shape[1] // height, saliency.shape[2] // width
    for b in range(images):
        places = [(y, x) for y in range(height) for x in range(width)]
        shares, wanted, weight = {}, {}, {}
        for y, x in places:
            powers = [math.exp(float(maps[b, k, y, x])) for k in range(channels)]
            shares[y, x] = [power / sum(powers) for power in powers]
            block = saliency[b, y * rows : (y + 1) * rows, x * columns : (x + 1) * columns].flatten().tolist()
            inside = [value / 255 for value in block if value != OUTSIDE]
            weight[y, x] = len(inside) / len(block)
            wanted[y, x] = sum(inside) / len(inside) if inside else 0.0
        front, back = [], [channels - 1]
        for k in range(channels - 1):
            if not targets[b, k]:
                continue
            claimed = sum(weight[p] for p in places if shares[p][k] > 0.5)
            covered = sum(weight[p] for p in places if shares[p][k] > 0.5 and wanted[p] > 0.5)
            (front if claimed and covered / claimed > tau else back).append(k)
        errors = 0.0
        for p in places:
            foreground, background = sum(shares[p][k] for k in front), sum(shares[p][k] for k in back)
            errors += weight[p] * (lam * foreground + (1 - lam) * (1 - background) - wanted[p]) ** 2
        total += errors / sum(weight.values())
    return total


def example(seed: int = 0, images: int = 4, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Maps of 4 x 5 positions in which some class is above 0.5 here and there, saliency of 8 x 15 pixels, padded."""
    generator = torch.Generator().manual_seed(seed)
    maps = 4 * torch.randn(images, classes + 1, 4, 5, generator=generator, dtype=torch.float64)
    targets = (torch.rand(images, classes, generator=generator) < 0.7).float()
    saliency = torch.randint(0, 256, (images, 8, 15), generator=generator).to(torch.int16)
    saliency[:, :3] = OUTSIDE  # one row of positions wholly, the next one half
    saliency[0, :, 10:] = 255
    return maps, targets, saliency


@pytest.mark.parametrize(("tau", "lam"), [(0.4, 0.5), (0.7, 0.5), (0.0, 0.3), (1.0, 0.9)])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_the_paper_says(seed: int, tau: float, lam: float) -> None:
    maps, targets, saliency = example(seed)
    total, count = saliency_loss(maps, targets, saliency, tau, lam)
    assert float(total) == pytest.approx(reference(maps, targets, saliency, tau, lam), rel=1e-12)
    assert (int(count), count.dtype) == (4, torch.int64)


def test_the_threshold_matters_in_these_examples() -> None:
    values = {tau: float(saliency_loss(*example(), tau, 0.5)[0]) for tau in (0.0, 0.4, 0.7)}
    assert len(set(values.values())) == 3


def test_gradients_are_those_of_finite_differences() -> None:
    maps, targets, saliency = example(images=2)
    assert torch.autograd.gradcheck(lambda m: saliency_loss(m, targets, saliency)[0], maps.requires_grad_())


def block(class_channel: float, background: float, salient: int) -> tuple[Tensor, Tensor, Tensor]:
    """One photograph of 2 x 2 positions, all alike: class 1 tagged, class 2 not."""
    maps = torch.tensor([class_channel, 0.0, background], dtype=torch.float64).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    return maps.requires_grad_(), torch.tensor([[1.0, 0.0]]), torch.full((1, 4, 4), salient, dtype=torch.int16)


def test_on_salient_pixels_a_class_that_covers_them_grows_and_background_shrinks() -> None:
    maps, targets, saliency = block(2.0, 1.0, 255)
    saliency_loss(maps, targets, saliency)[0].backward()
    assert (maps.grad[:, 0] < 0).all()
    assert (maps.grad[:, 2] > 0).all()


def test_off_salient_pixels_the_class_is_grouped_with_background() -> None:
    maps, targets, saliency = block(2.0, 1.0, 0)
    saliency_loss(maps, targets, saliency)[0].backward()
    assert (maps.grad[:, 1] > 0).all()  # of neither group: all it holds looks like foreground
    assert torch.equal(maps.grad[:, 0].sign(), maps.grad[:, 2].sign())


def test_padding_has_no_gradient() -> None:
    maps, targets, saliency = block(2.0, 1.0, 255)
    saliency[:, :, 2:] = OUTSIDE
    saliency_loss(maps, targets, saliency)[0].backward()
    assert (maps.grad[..., 1] == 0).all()
    assert (maps.grad[:, 0, :, 0] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_float32_and_finite_under_autocast(dtype: torch.dtype) -> None:
    maps, targets, saliency = example()
    maps = (3e3 * maps).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, _ = saliency_loss(maps, targets, saliency)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert maps.grad.isfinite().all()


def test_other_shapes_are_refused() -> None:
    maps, _, saliency = example()
    with pytest.raises(ValueError, match=r"allowed: B,N\+1,h,w and B,N"):
        saliency_loss(maps, torch.zeros(4, 4), saliency)
