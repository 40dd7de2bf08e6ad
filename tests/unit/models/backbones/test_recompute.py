"""Activations recomputed in backward: the same gradients and statistics as kept ones, and fewer tensors held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distwsss.config.networks import BackboneSection
from distwsss.config.stages import TrainSection
from distwsss.errors import ConfigError
from distwsss.models.backbones.build import Backbone
from distwsss.models.classifier import Classifier
from distwsss.models.segmenters import build_segmenter

CLASSES = ["background", "cat", "dog"]


def section(name: str, stride: int = 8, norm: str = "frozen") -> BackboneSection:
    return BackboneSection(name=name, pretrained=False, output_stride=stride, norm=norm)


def segmenter(backbone: BackboneSection, **options: object) -> nn.Module:
    return build_segmenter(TrainSection(backbone=backbone, head_channels=8, **options), CLASSES)


BUILD = {
    "classic": lambda: segmenter(section("resnet101_caffe"), lineage="classic"),
    "codebase on resnet18, statistics follow": lambda: segmenter(section("resnet18", norm="local"), lineage="codebase"),
    "plain on lite": lambda: segmenter(section("lite", 16, "local")),
    "plain on convnext": lambda: segmenter(section("convnext_atto", 16)),
    "plain on regnet": lambda: segmenter(section("regnety_002", 16, "group")),
    "classifier on resnet38, dropout inside": lambda: Classifier(section("resnet38"), CLASSES, 0.3),
}


def step(model: nn.Module, images: Tensor) -> tuple[list[Tensor], list[Tensor], int]:
    """Gradients, running statistics after, and the bytes that forward keeps for backward."""
    held = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    model.zero_grad()
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = sum(output.square().mean() for output in model.training_outputs(images))
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return gradients, [buffer.clone() for buffer in model.buffers()], held


@pytest.mark.parametrize("name", BUILD)
def test_gradients_and_statistics_are_the_same_and_less_is_held(name: str) -> None:
    torch.manual_seed(0)
    model = BUILD[name]().train()
    start = [buffer.clone() for buffer in model.buffers()]
    images = torch.randn(1, 3, 24, 24) if "resnet38" in name or name == "classic" else torch.randn(2, 3, 40, 32)
    kept, statistics, before = step(model, images)
    for buffer, value in zip(model.buffers(), start, strict=True):
        buffer.copy_(value)
    model.checkpoint_activations()
    recomputed, again, after = step(model, images)
    assert any(gradient.any() for gradient in kept)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(recomputed, kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again, statistics, strict=True))
    assert after < 0.75 * before, (after, before)
    with torch.no_grad():
        if "dropout inside" in name:
            assert not torch.equal(model(images), model(images))  # it was active in what was compared
        model.eval()(images)


def test_asking_twice_recomputes_once() -> None:
    model = BUILD["codebase on resnet18, statistics follow"]()
    model.checkpoint_activations()
    forward = model.backbone.net.net.layer1[0].forward
    model.checkpoint_activations()
    assert model.backbone.net.net.layer1[0].forward is forward


def test_a_net_without_blocks_says_so() -> None:
    with pytest.raises(ConfigError, match=r"backbone 'tiny' .*allowed: hardware\.activation_checkpointing: false"):
        Backbone(section("tiny")).checkpoint_activations()
