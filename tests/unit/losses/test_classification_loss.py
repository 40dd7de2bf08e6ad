"""Eq. 1 against its sum written out."""

import math

import pytest
import torch

from distwsss.losses.classification import multilabel_loss


def reference(scores, targets):
    total = 0.0
    for row, wanted in zip(scores.tolist(), targets.tolist(), strict=True):
        chances = [1 / (1 + math.exp(-score)) for score in row]
        terms = [-math.log(p if target else 1 - p) for p, target in zip(chances, wanted, strict=True)]
        total += sum(terms) / len(terms)
    return total


def test_sum_over_images_of_the_mean_over_classes():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    targets = (torch.rand(6, 4, generator=generator) < 0.4).float()
    value, count = multilabel_loss(scores, targets)
    assert float(value) == pytest.approx(reference(scores, targets), rel=1e-12)
    assert (int(count), count.dtype) == (6, torch.int64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_float32_and_finite_under_autocast(dtype):
    scores = torch.tensor([[6e4, -6e4], [0.0, 1.0]]).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, _ = multilabel_loss(scores, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert scores.grad.isfinite().all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="both B,N"):
        multilabel_loss(torch.zeros(2, 3), torch.zeros(2, 4))
