"""Learning rate, multipliers and the split of a batch, against the published formulas."""

from __future__ import annotations

import math

import pytest
import torch

from distwsss.config.networks import BackboneSection
from distwsss.config.stages import TrainSection
from distwsss.config.training import OptimSection
from distwsss.data.batches.loader import share_batch
from distwsss.models.segmenters import build_segmenter
from distwsss.train.optim import build_optimizer, lr_factor, set_lr


def test_poly_is_deeplabs() -> None:
    section = OptimSection(schedule="poly", power=0.9)
    assert [lr_factor(step, 20000, 0, section) for step in (0, 10000, 19999)] == pytest.approx(
        [1.0, 0.5**0.9, (1 / 20000) ** 0.9]
    )


def test_cosine_against_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert lr_factor(step, 50, 0, OptimSection(schedule="cosine")) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_warmup_rises_linearly_and_never_starts_at_zero() -> None:
    factors = [lr_factor(step, 100, 9, OptimSection(schedule="constant")) for step in range(10)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def test_multipliers_and_decay_reach_each_parameter_once() -> None:
    backbone = BackboneSection(name="tiny", pretrained=False, output_stride=8, norm="local")
    model = build_segmenter(TrainSection(backbone=backbone), ["background", "cat"])
    section = OptimSection(lr=0.1, head_multiplier=10.0, bias_multiplier=2.0, weight_decay=0.5)
    optimizer = build_optimizer(model, section)
    set_lr(optimizer, 0.01)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    named = dict(model.named_parameters())
    assert found[id(named["backbone.net.stages.0.0.weight"])] == pytest.approx((0.01, 0.5))
    assert found[id(named["backbone.net.stages.0.1.weight"])] == pytest.approx((0.02, 0.0))
    assert found[id(named["head.branches.0.weight"])] == pytest.approx((0.1, 0.5))
    assert found[id(named["head.branches.0.bias"])] == pytest.approx((0.2, 0.0))


@pytest.mark.parametrize("global_batch", [1, 2, 5, 8, 10])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [None, 1, 2, 3])
def test_split_needs_as_few_micro_batches_as_fit(global_batch: int, world: int, micro: int | None) -> None:
    if global_batch < world:
        return
    split = share_batch(global_batch, micro, 0, world)
    assert split.micro_batch <= (micro or math.inf)
    assert world * split.accumulation * split.micro_batch >= global_batch
    assert world * (split.accumulation - 1) * split.micro_batch < global_batch


def test_decay_and_multipliers_of_transformers() -> None:
    """SegFormer's and Mask2Former's published settings: biases decay, norms, embeddings and position tables do not."""
    model = torch.nn.Module()
    model.backbone = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    model.backbone.relative_position_bias_table = torch.nn.Parameter(torch.zeros(3, 2))
    model.queries, model.head = torch.nn.Embedding(2, 2), torch.nn.Linear(2, 2)
    section = OptimSection(
        weight_decay=0.05, decay_bias=True, backbone_multiplier=0.1, head_multiplier=1.0, bias_multiplier=1.0
    )
    groups = build_optimizer(model, section).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["multiplier"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "backbone.0.weight": (0.1, 0.05),
        "backbone.0.bias": (0.1, 0.05),
        "backbone.1.weight": (0.1, 0.0),
        "backbone.1.bias": (0.1, 0.0),
        "backbone.relative_position_bias_table": (0.1, 0.0),
        "queries.weight": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.05),
    }
