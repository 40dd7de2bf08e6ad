"""SegFormer against segmentation-models-pytorch's encoder and a head written here; sizes, dropout, its BatchNorm."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import batch_norm, conv2d, interpolate, linear

from distwsss.config.networks import BackboneSection
from distwsss.config.stages import TrainSection
from distwsss.errors import ConfigError
from distwsss.models.segmenters import build_segmenter
from distwsss.models.weights.transformer_names import mit_tensors
from helpers.kept_bytes import kept_storages

# Xie et al. 2021 (arXiv 2105.15203), Table 1: parameters for ADE20K's 150 classes, in millions
PUBLISHED = {"mit_b0": 3.8, "mit_b1": 13.7, "mit_b2": 27.5, "mit_b3": 47.3, "mit_b4": 64.1, "mit_b5": 84.7}
DEPTHS = {
    "mit_b0": (2, 2, 2, 2), "mit_b1": (2, 2, 2, 2), "mit_b2": (3, 4, 6, 3), "mit_b3": (3, 4, 18, 3),
    "mit_b4": (3, 8, 27, 3), "mit_b5": (3, 6, 40, 3),
}  # fmt: skip


def section(name: str = "mit_b0", drop_path: float = 0.0, norm: str = "frozen", **options: Any) -> TrainSection:
    backbone = BackboneSection(name=name, pretrained=False, drop_path=drop_path, norm=norm)
    head_dropout = options.pop("head_dropout", 0.0)
    return TrainSection(model="segformer", backbone=backbone, head_dropout=head_dropout, **options)


def build(classes: int = 3, **options: Any) -> nn.Module:
    return build_segmenter(section(**options), [str(i) for i in range(classes)])


def encoder_size(name: str) -> int:
    """Parameters of a Mix Transformer, layer by layer as the paper describes it (section 3.1 and Table 6)."""
    widths = (32, 64, 160, 256) if name == "mit_b0" else (64, 128, 320, 512)
    total, inside = 0, 3
    for c, depth, reduction, kernel in zip(widths, DEPTHS[name], (8, 4, 2, 1), (7, 3, 3, 3), strict=True):
        total += kernel**2 * inside * c + c + 2 * c  # overlapping patches, and their norm
        attention = 4 * (c * c + c) + (reduction**2 * c * c + c + 2 * c if reduction > 1 else 0)
        mlp = (4 * c * c + 4 * c) + (9 * 4 * c + 4 * c) + (4 * c * c + c)
        total += depth * (attention + mlp + 2 * 2 * c) + 2 * c
        inside = c
    return total


@functools.cache
def published(name: str) -> nn.Module:
    """The network for 150 classes, on the meta device."""
    with torch.device("meta"):
        return build(classes=150, name=name)


@functools.cache
def reference_encoder(name: str) -> nn.Module:
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))  # its values are read
        return smp.encoders.get_encoder(name, weights=None)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_encoders_have_the_size_the_paper_describes(name: str) -> None:
    assert parameters(published(name).backbone) == encoder_size(name) == parameters(reference_encoder(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_size(name: str) -> None:
    assert round(parameters(published(name)) / 1e6, 1) == PUBLISHED[name]


def test_mit_b2_is_counted_to_the_last_parameter() -> None:
    model = published("mit_b2")
    assert (parameters(model.backbone), parameters(model)) == (24_196_288, 27_461_974)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    own = {key: tensor.shape for key, tensor in published(name).backbone.state_dict().items()}
    assert own == {key: t.shape for key, t in mit_tensors(reference_encoder(name).state_dict()).items()}


def reference_head(head: nn.Module, features: list[Tensor]) -> Tensor:
    """All-MLP: each level to one width, to the finest level's size, deepest first; 1x1, BatchNorm, ReLU, classes."""
    state, levels = head.state_dict(), []
    for i, feature in enumerate(features):
        weight, bias = state[f"linear_projections.{i}.proj.weight"], state[f"linear_projections.{i}.proj.bias"]
        level = linear(feature.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
        levels.insert(0, interpolate(level, features[0].shape[-2:], mode="bilinear", align_corners=False))
    fused = conv2d(torch.cat(levels, 1), state["linear_fuse.weight"])
    mean, var = state["batch_norm.running_mean"], state["batch_norm.running_var"]
    fused = batch_norm(fused, mean, var, state["batch_norm.weight"], state["batch_norm.bias"], training=False)
    return conv2d(fused.relu(), state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize(("name", "width"), [("mit_b2", None), ("mit_b0", 48)])
def test_forward_is_that_of_another_library(name: str, width: int | None) -> None:
    torch.manual_seed(0)
    reference = smp.encoders.get_encoder(name, weights=None).eval()
    model = build(classes=21, name=name, head_channels=width).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.1)
    nn.init.uniform_(model.head.batch_norm.running_var, 0.5, 2)
    nn.init.normal_(model.head.batch_norm.running_mean)
    model.backbone.load_state_dict(mit_tensors(reference.state_dict()))
    images = torch.randn(1, 3, 64, 96)
    expected = reference_head(model.head, reference(images)[2:])
    logits = model(images)
    assert model.head.linear_fuse.out_channels == (width or 768)
    assert logits.shape == (1, 21, 16, 24)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert expected.std() > 0.05


def test_features_lie_at_strides_4_to_32() -> None:
    images, shapes = torch.randn(1, 3, 128, 64), []
    for stage in build().eval().backbone.stages:
        images = stage(images)
        shapes.append(tuple(images.shape[1:]))
    assert shapes == [(32, 32, 16), (64, 16, 8), (160, 8, 4), (256, 4, 2)]


def test_patches_overlap_and_keys_are_reduced_as_published() -> None:
    stages = published("mit_b0").backbone.stages
    kernels = [stage.patch_embeddings.proj.kernel_size[0] for stage in stages]
    reductions = [stage.blocks[0].attention.sequence_reduction.sequence_reduction.stride[0] for stage in stages[:3]]
    assert (kernels, reductions) == ([7, 3, 3, 3], [8, 4, 2])


def test_logits_of_any_size_are_a_quarter_rounded_up() -> None:
    assert build().eval()(torch.zeros(1, 3, 101, 67)).shape[-2:] == (math.ceil(101 / 4), math.ceil(67 / 4))


def test_stochastic_depth_grows_to_the_configured_rate() -> None:
    with torch.device("meta"):
        model = build(name="mit_b2", drop_path=0.3)
    blocks = [block for stage in model.backbone.stages for block in stage.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.3 * i / 15 for i in range(16)])


def test_stochastic_depth_is_on_both_branches() -> None:
    nearly_all = build(drop_path=1 - 1e-9).train()
    tokens = torch.randn(2, 8, 256)
    assert torch.equal(nearly_all.backbone.stages[3].blocks[1](tokens, 2, 4), tokens)


def test_dropout_is_the_heads_alone() -> None:
    model = build(head_dropout=0.2)
    assert model.head.dropout.p == 0.2
    assert {m.p for m in model.backbone.modules() if isinstance(m, nn.Dropout)} == {0.0}


def test_only_the_heads_norm_makes_a_gradient_depend_on_the_split() -> None:
    torch.manual_seed(0)
    model, images = build().double().train(), torch.randn(4, 3, 64, 64, dtype=torch.float64)
    weights = torch.randn(4, 3, 16, 16, dtype=torch.float64)

    def gradient(parts: int) -> Tensor:
        model.zero_grad()
        for some, w in zip(images.chunk(parts), weights.chunk(parts), strict=True):
            (model(some) * w).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    live = (gradient(1) - gradient(2)).norm() / gradient(1).norm()
    model.head.batch_norm.eval()
    still = (gradient(1) - gradient(2)).norm() / gradient(1).norm()
    model = build(norm="group").double().train()
    group = (gradient(1) - gradient(2)).norm() / gradient(1).norm()
    assert max(still, group) < 1e-9 < 1e-3 < live
    assert isinstance(model.head.batch_norm, nn.GroupNorm)


def kept(model: nn.Module, images: Tensor) -> tuple[int, Tensor]:
    """Bytes that autograd keeps for backward, and the gradient, with a fixed seed for stochastic depth."""
    model.zero_grad()
    torch.manual_seed(0)
    with kept_storages() as stored:
        logits = model(images)
    logits.square().sum().backward()
    return sum(stored.values()), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_checkpointing_keeps_less_and_changes_nothing() -> None:
    torch.manual_seed(1)
    model, images = build(drop_path=0.3).train(), torch.randn(2, 3, 128, 128)
    model.head.batch_norm.eval()
    before, expected = kept(model, images)
    model.checkpoint_activations()
    after, found = kept(model, images)
    assert torch.equal(found, expected)
    assert after < before / 2


def test_runs_on_meta_and_fake_tensors() -> None:
    with torch.device("meta"):
        assert build().train()(torch.empty(2, 3, 64, 96)).shape == (2, 3, 16, 24)
    with FakeTensorMode():
        model = build().train()
        model(torch.randn(2, 3, 64, 96)).sum().backward()
        assert model.head.classifier.weight.grad.shape == (3, 256, 1, 1)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"output_stride": 8}, "`output_stride` is 8"),
        ({"name": "mit_b9"}, "allowed for model segformer: mit_b0, .*, mit_b5"),
        ({"name": "swin_tiny"}, "allowed for model segformer"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        TrainSection(model="segformer", backbone=BackboneSection(**{"name": "mit_b0", "pretrained": False, **options}))


def test_freeze_names_parameters_of_the_backbone() -> None:
    backbone = BackboneSection(name="mit_b0", pretrained=False, freeze=["stages.0."])
    model = build_segmenter(TrainSection(model="segformer", backbone=backbone), ["a", "b"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("backbone.stages.0.")}


def test_freeze_of_nothing_is_refused() -> None:
    backbone = BackboneSection(name="mit_b0", pretrained=False, freeze=["layers"])
    with pytest.raises(ConfigError, match="no parameter starts with 'layers'"):
        build_segmenter(TrainSection(model="segformer", backbone=backbone), ["a", "b"])
