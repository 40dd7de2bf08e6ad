"""Several complementary labels of a pixel: how they are drawn, and the loss that is the mean over them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from distwsss.losses.hybrid import NONE, hybrid_loss, sample_complements, sample_several


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_complement_is_the_draw_it_always_was() -> None:
    """Batches of earlier runs hold these bytes."""
    labels = torch.randint(6, (40, 30), generator=generator(1), dtype=torch.uint8)
    drawn = torch.randint(5, labels.shape, generator=generator(7))
    assert torch.equal(sample_complements(labels, 6, generator=generator(7)), drawn + (drawn >= labels))


def test_the_first_of_several_is_the_draw_of_one() -> None:
    labels = torch.randint(6, (40, 30), generator=generator(1))
    several = sample_several(labels, 6, 3, generator=generator(7))
    assert torch.equal(several[0], sample_complements(labels, 6, generator=generator(7)))


@pytest.mark.parametrize("among", [None, [1, 3, 4, 6]])
def test_each_set_of_classes_is_equally_likely(among: list[int] | None) -> None:
    """Chi-square of the unordered pairs, and of the order within them."""
    labels = torch.full((12_000,), 2, dtype=torch.uint8)
    drawn = sample_several(labels, 5, 2, among=among, generator=generator(3))
    pairs = Counter(map(tuple, drawn.T.tolist()))
    classes = among or [0, 1, 3, 4]
    assert set(pairs) == {(a, b) for a in classes for b in classes if a != b}
    expected = len(labels) / 12
    assert sum((count - expected) ** 2 / expected for count in pairs.values()) < 37.4  # 11 degrees, p = 1e-4


def test_all_other_classes_are_drawn_where_as_many_are_asked_for() -> None:
    labels = torch.randint(5, (200,), generator=generator())
    drawn = torch.cat([labels[None], sample_several(labels, 5, 4, generator=generator())])
    assert torch.equal(drawn.sort(0).values, torch.arange(5)[:, None].expand(-1, 200))


def test_where_fewer_are_left_the_last_are_none() -> None:
    drawn = sample_several(torch.zeros(50, dtype=torch.uint8), 9, 4, among=[3, 8], generator=generator())
    assert torch.equal(drawn[:2].sort(0).values, torch.tensor([[3], [8]]).expand(-1, 50))
    assert (drawn[2:] == NONE).all()


def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits float64, labels with ignored ones, clean, four complements a pixel of which up to four are none."""
    labels = torch.randint(6, (2, 4, 5), generator=generator(1))
    complements = sample_several(labels, 6, 4, generator=generator(2)).movedim(0, 1)
    number = torch.randint(5, labels.shape, generator=generator(3))
    complements = torch.where(torch.arange(4)[:, None, None] < number[:, None], complements, NONE)
    labels[0, 0, :2] = 255
    logits = 3 * torch.randn(2, 6, 4, 5, dtype=torch.float64, generator=generator(4))
    return logits, labels, torch.rand(labels.shape, generator=generator(5)) < 0.3, complements.to(torch.uint8)


def plain_negative(logits: Tensor, labels: Tensor, clean: Tensor, complements: Tensor, tau: float | None) -> Tensor:
    """Eq. 9 pixel by pixel, its mean over the complements that are there."""
    total = torch.zeros((), dtype=torch.float64)
    for b, y, x in ((labels != 255) & ~clean).nonzero().tolist():
        z = logits[b, :, y, x]
        p_star = (z if tau is None else z / (tau * z.norm())).softmax(0)
        chosen = [int(c) for c in complements[b, :, y, x] if c != NONE]
        each = [-(1 - z.detach().softmax(0)[c]) * (1 - p_star[c]).log() for c in chosen]
        total = total + sum(each) / max(1, len(each))
    return total


@pytest.mark.parametrize("tau", [None, 1.0, 0.1])
def test_a_pixels_loss_is_the_mean_over_its_complements(tau: float | None) -> None:
    logits, labels, clean, complements = case()
    ours, plain = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    positive, (found, count) = hybrid_loss(ours, labels, clean, complements=complements, temperature=tau)
    expected = plain_negative(plain, labels, clean, complements, tau)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    assert int(count) == int(((labels != 255) & ~clean).sum())  # those without a complement too
    alone = hybrid_loss(logits, labels, clean, complements=complements[:, 0].clamp(max=5), temperature=tau).positive
    assert torch.equal(positive[0], alone[0])


def test_one_in_a_map_of_its_own_is_one() -> None:
    logits, labels, clean, _ = case()
    drawn = sample_complements(labels, 6, generator=generator())
    one = hybrid_loss(logits, labels, clean, complements=drawn)
    several = hybrid_loss(logits, labels, clean, complements=drawn[:, None])
    assert torch.equal(one.negative[0], several.negative[0])


def test_pixels_without_any_complement_are_a_zero_connected_to_the_graph() -> None:
    logits, labels, clean, complements = case()
    leaf = logits.requires_grad_()
    value, _ = hybrid_loss(leaf, labels, clean, complements=torch.full_like(complements, NONE)).negative
    value.backward()
    assert value.item() == 0
    assert (leaf.grad == 0).all()
