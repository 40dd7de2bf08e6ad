"""Mask2Former's set loss: transformers' where all pixels are clean, a brute force of every assignment where not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from distwsss.config.networks import BackboneSection, Mask2FormerSection
from distwsss.config.stages import TrainSection
from distwsss.data.batches.loader import Batch
from distwsss.losses.set_prediction import set_counts, set_sums, uncertain_points
from distwsss.models.mask2former import MaskLayer, SetOutputs
from distwsss.train.terms import segmenter_terms

CLASSES = 4
SIZES = Mask2FormerSection(queries=6, points=10_000)  # more than an image here has pixels
Layers = list[MaskLayer]


def random_layers(batch: int, size: int, layers: int = 3, seed: int = 0, queries: int = 6) -> Layers:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        values = 3 * torch.randn(batch, queries, *shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    return [MaskLayer(draw(CLASSES + 1), draw(size, size)) for _ in range(layers)]


def random_labels(batch: int, size: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Blocks of classes, not all in every image; a clean mask of two thirds."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.stack([torch.randint(0, 2 + i % 3, (3, 3), generator=generator) for i in range(batch)])
    labels = coarse.repeat_interleave(size // 3 + 1, 1).repeat_interleave(size // 3 + 1, 2)[:, :size, :size]
    return labels.contiguous(), torch.rand(batch, size, size, generator=generator) < 2 / 3


def test_is_transformers_loss_where_all_pixels_are_clean(monkeypatch) -> None:
    """Both on the centres of all pixels, masks at a quarter of the labels' size: sums over counts, and gradients."""
    labels, _ = random_labels(3, 16)
    layers, again = random_layers(3, 4), random_layers(3, 4)
    axis = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    centres = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, -1, 2)
    monkeypatch.setattr(torch, "rand", lambda masks, points, two, **_: centres.repeat(masks, 1, 1))
    ratios = {"oversample_ratio": 1.0, "importance_sample_ratio": 1.0}
    config = Mask2FormerConfig(num_labels=CLASSES, train_num_points=256, **ratios)
    reference = Mask2FormerLoss(config, {}).double()
    present = [image.unique() for image in labels]
    masks = [(image == classes[:, None, None]).double() for image, classes in zip(labels, present, strict=True)]
    auxiliary = [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in again[:-1]]
    found = reference(again[-1].masks, again[-1].classes, masks, present, auxiliary)
    kinds = ("loss_cross_entropy", "loss_mask", "loss_dice")
    expected = torch.stack([sum(value for name, value in found.items() if name.startswith(kind)) for kind in kinds])

    clean = torch.ones_like(labels, dtype=torch.bool)
    classes, matched = set_counts(labels, clean, SIZES)
    sums = set_sums(layers, labels, clean, SIZES)
    assert sums.dtype == torch.float64
    value = sums / torch.tensor([classes, matched, matched])
    assert torch.allclose(value, expected, rtol=1e-7)
    weights = torch.tensor([2.0, 5.0, 5.0], dtype=torch.float64)
    (value * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(layers, again, strict=True):
        assert torch.allclose(mine.classes.grad, theirs.classes.grad, atol=1e-7)
        assert torch.allclose(mine.masks.grad, theirs.masks.grad, atol=1e-7)
        assert theirs.masks.grad.abs().max() > 1e-3


def brute_force(layers: Layers, labels: Tensor, clean: Tensor, sizes: Mask2FormerSection) -> np.ndarray:
    """The three sums pixel by pixel, the best of all assignments; masks have the labels' size: a pixel is a point."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def pair(mask: np.ndarray, target: np.ndarray) -> tuple[float, float]:
        inside = [sigmoid(x) for x in mask]
        entropy = [-math.log(p if t else 1 - p) for p, t in zip(inside, target, strict=True)]
        both = sum(p * t for p, t in zip(inside, target, strict=True))
        return sum(entropy) / len(entropy), 1 - (2 * both + 1) / (sum(inside) + sum(target) + 1)

    total = np.zeros(3)
    for layer in layers:
        for b in range(len(labels)):
            pixels, scores = clean[b].numpy(), layer.classes[b].detach().numpy()
            if not pixels.any():
                continue
            present = sorted(set(labels[b].numpy()[pixels].tolist()))
            masks = layer.masks[b].detach().numpy()[:, pixels]
            pairs = [[pair(m, labels[b].numpy()[pixels] == c) for c in present] for m in masks]
            share = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            on_masks = np.array(pairs) @ [sizes.mask_weight, sizes.dice_weight]
            cost = on_masks - sizes.class_weight * share[:, present]
            if len(present) <= len(masks):
                ways = [list(zip(w, range(len(present)), strict=True))
                        for w in itertools.permutations(range(len(masks)), len(present))]  # fmt: skip
            else:
                ways = [list(zip(range(len(masks)), w, strict=True))
                        for w in itertools.permutations(range(len(present)), len(masks))]  # fmt: skip
            best = dict(min(ways, key=lambda way: sum(cost[q, t] for q, t in way)))
            for q in range(len(masks)):
                wanted = present[best[q]] if q in best else CLASSES
                total[0] -= (1.0 if q in best else sizes.no_object) * math.log(share[q, wanted])
            total[1:] += np.sum([pairs[q][t] for q, t in best.items()], axis=0)
    return total


@pytest.mark.parametrize("queries", [5, 2])  # more than an image has classes, and fewer
def test_is_the_best_assignment_on_clean_pixels(queries: int) -> None:
    sizes = SIZES.model_copy(update={"queries": queries, "class_weight": 3.0, "no_object": 0.25})
    labels, clean = random_labels(3, 6)
    clean[0] = False
    layers = random_layers(3, 6, layers=2, queries=queries)
    expected = brute_force(layers, labels, clean, sizes)
    assert np.allclose(set_sums(layers, labels, clean, sizes).detach().numpy(), expected, rtol=1e-9)
    targets = [len(labels[b][clean[b]].unique()) for b in (1, 2)]
    assert max(targets) > 2
    matched = [min(t, queries) for t in targets]
    found = set_counts(labels, clean, sizes)
    assert found == (pytest.approx(sum(m + 0.25 * (queries - m) for m in matched)), sum(matched))


@pytest.mark.parametrize("points", [10_000, 20])  # all of them, and some at random
def test_noisy_and_ignored_pixels_say_nothing(points: int) -> None:
    sizes = SIZES.model_copy(update={"points": points})
    labels, clean = random_labels(2, 16)  # a power of 2: centres are exact, so bilinear reads one pixel
    other, layers, changed = labels.clone(), random_layers(2, 16), random_layers(2, 16)
    noise = torch.Generator().manual_seed(5)
    other[~clean] = torch.randint(0, 256, labels.shape, generator=noise)[~clean]
    with torch.no_grad():
        for _, masks in changed:
            masks += 9 * torch.randn(masks.shape, generator=noise, dtype=torch.float64) * ~clean[:, None]
    values = []
    for target, given in ((labels, layers), (other, changed)):
        torch.manual_seed(0)
        sums = set_sums(given, target, clean, sizes)
        sums.sum().backward()
        values.append(sums)
        assert all((layer.masks.grad[~clean[:, None].expand_as(layer.masks)] == 0).all() for layer in given)
        assert all(layer.masks.grad.abs().max() > 0 for layer in given)
    assert torch.equal(values[0], values[1])
    assert set_counts(labels, clean, sizes) == set_counts(other, clean, sizes)
    for mine, theirs in zip(layers, changed, strict=True):
        assert torch.equal(mine.masks.grad, theirs.masks.grad)
        assert torch.equal(mine.classes.grad, theirs.classes.grad)


def test_images_without_clean_pixels_are_a_connected_zero() -> None:
    labels, clean = random_labels(2, 6)
    layers = random_layers(2, 6)
    nowhere = torch.zeros_like(clean)
    sums = set_sums(layers, labels, nowhere, SIZES)
    sums.sum().backward()
    assert sums.tolist() == [0, 0, 0]
    assert set_counts(labels, nowhere, SIZES) == (0, 0)
    assert all((tensor.grad == 0).all() for layer in layers for tensor in layer)


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    """With every clean pixel taken once there is no chance in it: what makes gradients independent of the split."""
    labels, clean = random_labels(4, 9)
    layers = random_layers(4, 9)
    whole = set_sums(layers, labels, clean, SIZES)
    parts = [set_sums([MaskLayer(c[s], m[s]) for c, m in layers], labels[s], clean[s], SIZES)
             for s in (slice(0, 1), slice(1, 4))]  # fmt: skip
    assert torch.allclose(whole, parts[0] + parts[1], rtol=1e-12)


def test_half_precision_is_summed_in_float32() -> None:
    labels, clean = random_labels(2, 6)
    exact = random_layers(2, 6)
    rounded = [MaskLayer(c.bfloat16(), m.bfloat16()) for c, m in exact]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = set_sums(rounded, labels, clean, SIZES)
    assert sums.dtype == torch.float32
    assert torch.allclose(sums.double(), set_sums([MaskLayer(c.double(), m.double()) for c, m in rounded],
                                                  labels, clean, SIZES), rtol=1e-5)  # fmt: skip


class TestPoints:
    """200 pixels, 40 points: with all pixels drawn, 30 are those nearest to 0; the other 10 fall anywhere else."""

    @pytest.fixture
    def masks(self) -> Tensor:
        torch.manual_seed(0)
        return torch.randn(300, 1, 200)

    def points(self, masks: Tensor, oversample: float = 5.0, importance: float = 0.75) -> Tensor:
        grid = torch.stack([2 * (torch.arange(200) + 0.5) / 200 - 1, torch.zeros(200)], -1)
        sizes = Mask2FormerSection(points=40, oversample=oversample, importance=importance)
        return uncertain_points(masks, grid, sizes)

    def test_none_is_taken_twice(self, masks: Tensor) -> None:
        points = self.points(masks)
        assert points.shape == (300, 40)
        assert all(len(row.unique()) == 40 for row in points)

    def test_the_uncertain_ones_are_among_them(self, masks: Tensor) -> None:
        nearest = masks[:, 0].abs().argsort(dim=1)[:, :30]
        pairs = zip(nearest, self.points(masks), strict=True)
        assert all(set(row.tolist()) <= set(taken.tolist()) for row, taken in pairs)

    def test_the_others_are_drawn_uniformly(self, masks: Tensor) -> None:
        rank = masks[:, 0].abs().argsort(dim=1).argsort(dim=1).gather(1, self.points(masks))
        others = rank[rank >= 30].double()
        assert len(others) == 300 * 10
        assert abs(float(others.mean()) - 114.5) < 4  # uniform over ranks 30..199: standard error 0.9

    def test_without_importance_all_are_drawn_uniformly(self, masks: Tensor) -> None:
        few = self.points(masks, oversample=1.0, importance=0.0)
        assert abs(float(few.double().mean()) - 99.5) < 3


def with_sets(loss: str = "hybrid", **sizes: float) -> TrainSection:
    backbone = BackboneSection(name="swin_tiny", pretrained=False)
    return TrainSection(model="mask2former", backbone=backbone, mask2former=Mask2FormerSection(**sizes), loss=loss)


@pytest.fixture
def bare() -> torch.nn.Module:
    """What `segmenter_terms` asks of a network."""
    model = torch.nn.Module()
    model.loss_sizes, model.align_corners = lambda height, width: [(height, width)], False
    return model


@pytest.mark.parametrize(("loss", "clean_only"), [("hybrid", True), ("positive", False), ("cross_entropy", False)])
def test_terms_are_the_pixels_then_the_sets(loss: str, clean_only: bool, bare: torch.nn.Module) -> None:
    """Weights, counts and sums in the loop's order; clean pixels only for the hybrid loss."""
    section = with_sets(loss, queries=6, set_loss=0.5, class_weight=3.0)
    sizes = section.mask2former
    labels, clean = random_labels(2, 8)
    labels[0, 0] = 255
    batch = Batch([], torch.empty(0), labels=labels, clean=clean, complements=torch.zeros_like(labels))
    logits, layers = torch.randn(2, CLASSES, 8, 8), random_layers(2, 8)
    valid = labels != 255
    mask = valid & clean if clean_only else valid
    terms = segmenter_terms(section, bare)
    assert terms.weights == (1.0, 1.5, 2.5, 2.5)
    classes, masks = set_counts(labels, mask, sizes)
    assert terms.counts(batch) == [int(valid.sum()), classes, masks, masks]
    sums, parts = terms.sums(SetOutputs([logits], layers), batch)
    assert torch.equal(sums[1:], set_sums(layers, labels, mask, sizes))
    on_sets = {name: parts.pop(name) for name in ("set_class", "set_mask", "set_dice")}
    assert [float(part.detach()) for part, _ in on_sets.values()] == sums[1:].tolist()
    assert [count for _, count in on_sets.values()] == terms.counts(batch)[1:]
    assert torch.allclose(sums[0], sum(part for part, _ in parts.values()).to(sums))


def test_a_set_loss_of_0_leaves_the_pixels_alone(bare: torch.nn.Module) -> None:
    assert segmenter_terms(with_sets(set_loss=0.0), bare).weights == (1.0,)
