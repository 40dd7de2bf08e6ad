"""A segmenter's loss terms under the controls of `train`: noisy pixels, complements, the falling temperature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from distwsss.config.stages import TrainSection
from distwsss.data.batches.loader import Batch
from distwsss.train.terms import segmenter_terms, temperature_at


def network(stride: int = 1) -> nn.Module:
    """What `segmenter_terms` asks of a network whose logits meet the labels at 1 / stride of their size."""
    model = nn.Module()
    model.loss_sizes, model.align_corners = lambda height, width: [(height // stride, width // stride)], False
    return model


def batch(clean_share: float = 0.5, images: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (images, 8, 8), generator=generator, dtype=torch.uint8)
    complements = (labels[:, None] + torch.tensor([1, 3])[:, None, None]) % 5
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    clean = torch.rand(labels.shape, generator=generator) < clean_share
    return Batch([], torch.empty(images, 0), labels=labels, clean=clean, complements=complements.to(torch.uint8))


def logits(images: int = 3, side: int = 8) -> Tensor:
    shape = (images, 5, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def positive(z: Tensor, label: int, tau: float) -> Tensor:
    """Eq. 8 of a pixel's logits."""
    p = z.detach().softmax(0)[label]
    weight = (1 + p) * (1 + p**2) * (1 + p**4) * (1 + p**8)
    return -weight * (z / (tau * z.norm())).log_softmax(0)[label]


def test_ignored_noisy_pixels_are_neither_in_the_sum_nor_in_the_count() -> None:
    """A pixel at a time in float64: the mean of Eq. 8 over clean pixels; no complement is needed."""
    given, section = batch(), TrainSection(noisy="ignore")
    given.complements = None
    terms, ours = segmenter_terms(section, network()), logits()
    sums, parts = terms.sums([ours], given)
    places = ((given.labels != 255) & given.clean).nonzero().tolist()
    plain = logits()
    expected = sum(positive(plain[b, :, y, x], int(given.labels[b, y, x]), 0.1) for b, y, x in places)
    assert terms.counts(given) == [len(places)]
    assert set(parts) == {"positive"}
    torch.testing.assert_close(sums[0], expected)
    sums[0].backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_without_clean_pixels_the_loss_is_a_zero_connected_to_the_graph() -> None:
    given, ours = batch(clean_share=0.0), logits()
    terms = segmenter_terms(TrainSection(noisy="ignore"), network())
    sums, _ = terms.sums([ours], given)
    sums[0].backward()
    assert terms.counts(given) == [0]
    assert sums[0].item() == 0
    assert (ours.grad == 0).all()


@pytest.mark.parametrize("loss", ["positive", "cross_entropy"])
def test_other_losses_have_no_noisy_pixels(loss: str) -> None:
    terms, given = segmenter_terms(TrainSection(loss=loss, noisy="ignore"), network()), batch()
    assert terms.counts(given) == [int((given.labels != 255).sum())]


@pytest.mark.parametrize("options", [{"noisy": "ignore"}, {"complements": 2}])
def test_the_gradient_does_not_depend_on_the_split(options: dict[str, Any]) -> None:
    terms, whole, given = segmenter_terms(TrainSection(**options), network()), logits(), batch()
    (terms.sums([whole], given)[0] / terms.counts(given)[0]).backward()
    split, count = logits(), 0.0
    for i in range(3):
        part = given.map(lambda tensor, i=i: tensor[i : i + 1])
        terms.sums([split[i : i + 1]], part)[0].backward()
        count += terms.counts(part)[0]
    torch.testing.assert_close(split.grad / count, whole.grad, rtol=1e-12, atol=1e-15)


def test_several_complements_are_brought_to_the_size_of_the_logits() -> None:
    """Nearest, as labels are: of blocks of 2 x 2 that are alike nothing is lost."""
    small = batch()
    large = small.map(lambda maps: maps.repeat_interleave(2, -1).repeat_interleave(2, -2) if maps.ndim > 2 else maps)
    section = TrainSection(complements=2)
    found, _ = segmenter_terms(section, network(stride=2)).sums([logits()], large)
    expected, _ = segmenter_terms(section, network()).sums([logits()], small)
    assert torch.equal(found, expected)


def test_the_temperature_falls_in_equal_ratios() -> None:
    section = TrainSection(temperature=0.01, temperature_from=1.0)
    taus = [temperature_at(section, step, 4) for step in range(7)]
    assert taus == pytest.approx([10 ** (-step / 2) for step in (0, 1, 2, 3, 4, 4, 4)])
    assert taus[-1] == 0.01  # to the last bit


def test_without_steps_to_fall_in_the_temperature_is_the_last_one() -> None:
    assert temperature_at(TrainSection(temperature_from=1.0), 0, 0) == 0.1
    assert temperature_at(TrainSection(), 0, 4) == 0.1


def test_a_steps_loss_has_that_steps_temperature() -> None:
    section = TrainSection(temperature=0.25, temperature_from=1.0)
    terms, given = segmenter_terms(section, network(), falls=2), batch()
    for step, tau in enumerate((1.0, 0.5, 0.25, 0.25)):
        given.step = step
        constant = segmenter_terms(TrainSection(temperature=tau), network())
        torch.testing.assert_close(terms.sums([logits()], given)[0], constant.sums([logits()], given)[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": None, "temperature_from": 1.0}, "`temperature_from` is 1.0, `temperature` null"),
        ({"temperature": 1.0, "temperature_from": 1.0}, "allowed: a temperature, and one above it"),
        ({"complement": "assigned", "complements": 2}, "`complements` is 2, but `complement` is 'assigned'"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainSection(**options)
