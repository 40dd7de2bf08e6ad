"""Feature extractors shared by the classifier and the segmenters: any timm model and those of `NETS`."""

from __future__ import annotations

import math
from collections.abc import Callable

import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distwsss.config.networks import FROM_FILE, BackboneSection
from distwsss.errors import ConfigError
from distwsss.models.backbones.recompute import recompute, residual_blocks
from distwsss.models.backbones.resnet38 import ResNet38
from distwsss.models.backbones.resnet_caffe import CaffeResNet101
from distwsss.models.weights.backbone import LITES, load_file_into, load_lite
from distwsss.models.weights.published import fetch, published

FIRST_BLOCKS = ["conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"]  # of EfficientNet-Lite0
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class TinyNet(nn.Module):
    """Narrow network trained from scratch in seconds (demo, tests): five 3x3 stages, stride 8, 96 channels."""

    channels = 96

    def __init__(self) -> None:
        super().__init__()
        widths, strides = [3, 24, 48, 72, 96, 96], [2, 2, 2, 1, 1]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True)
                )
                for inside, outside, stride in zip(widths[:-1], widths[1:], strides, strict=True)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)  # B,96,H/8,W/8


class TimmFeatures(nn.Module):
    """The last feature map of a timm model at the asked output stride."""

    def __init__(self, name: str, pretrained: bool, output_stride: int) -> None:
        super().__init__()
        # read from the cache; what timm has elsewhere than on the hub it gets itself
        options = {"pretrained_cfg_overlay": {"file": str(fetch(name))}} if pretrained and published(name) else {}
        try:
            self.net = timm.create_model(
                name, pretrained, features_only=True, out_indices=[-1], output_stride=output_stride, **options
            )
        except Exception as error:
            raise ConfigError(
                f"backbone {name!r}: timm cannot make feature maps at output stride {output_stride} of it "
                f"({type(error).__name__}: {error}); choose another name from timm.list_models() or another stride"
            ) from error
        stride = self.net.feature_info.reduction()[-1]
        if stride != output_stride:
            raise ConfigError(f"backbone {name!r}: output stride is {stride}; asked for {output_stride}")
        self.channels: int = self.net.feature_info.channels()[-1]
        told = getattr(self.net, "pretrained_cfg", None) or {}
        self.mean = list(told.get("mean", IMAGENET_MEAN))
        self.std = list(told.get("std", IMAGENET_STD))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[-1]


class LiteFull(nn.Module):
    """EfficientNet-Lite0 with its head convolution, BatchNorm and ReLU6: 1280 channels, none negative.

    CAMs want such features: the classification layer has no bias, so that only a non-negative mean can say "absent".
    """

    channels = 1280

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        name = LITES["lite_full"]
        self.net = timm.create_model(name, pretrained=False, num_classes=0, global_pool="", output_stride=output_stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.net.forward_features(images)


def _lite(section: BackboneSection) -> nn.Module:
    full = section.name == "lite_full"
    stride = section.output_stride
    features = LiteFull(stride) if full else TimmFeatures(LITES[section.name], False, stride)
    if section.pretrained and not section.weights:
        load_lite(features.net, section.name)
    features.mean, features.std = [0.498] * 3, [0.502] * 3
    return features


def _timm(section: BackboneSection) -> nn.Module:
    return TimmFeatures(section.name, section.pretrained and not section.weights, section.output_stride)


# name -> constructor of a net with `channels` and, unless they are ImageNet's, `mean` and `std`; any other name is a
# timm model's. A net may name as `frozen` the prefixes of what no published run of it trains.
NETS: dict[str, Callable[[BackboneSection], nn.Module]] = {
    "tiny": lambda section: TinyNet(),  # the configuration allows it no published weights and stride 8 only
    "lite": _lite,
    "lite_full": _lite,
    "lite2": _lite,
    "resnet38": lambda section: ResNet38(),
    "resnet101_caffe": lambda section: CaffeResNet101(),
}


class Backbone(nn.Module):
    """images B,3,H,W, normalised by `mean` and `std` (of values in 0..1) -> features B,channels,H/stride,W/stride.

    With `norm: frozen` BatchNorm keeps its statistics and affine terms through `train()`: batches here are small, and
    gradients then do not depend on how a batch was split.
    """

    def __init__(self, section: BackboneSection) -> None:
        super().__init__()
        # a checkpoint describes the network, not the file it started from
        self.section, self.stride = section.model_copy(update={"weights": None}), section.output_stride
        self.net = NETS.get(section.name, _timm)(section)
        self.mean: list[float] = getattr(self.net, "mean", IMAGENET_MEAN)
        self.std: list[float] = getattr(self.net, "std", IMAGENET_STD)
        self.channels: int = self.net.channels
        by_name = section.pretrained and section.name in FROM_FILE
        weights = section.weights or (fetch(section.name) if by_name else None)
        if weights:
            load_file_into(getattr(self.net, "net", self.net), weights, section.name)
        # a layout, not a result: convolutions are 1.3 to 2 times as fast on CPUs, and what tensor cores want
        self.net.to(memory_format=torch.channels_last)
        self._freeze()

    def _freeze(self) -> None:
        fixed = getattr(self.net, "frozen", ()) if self.section.pretrained else ()
        for prefix in (*self._asked(), *fixed):
            matching = [p for name, p in self.net.named_parameters() if name.removeprefix("net.").startswith(prefix)]
            if not matching:
                raise ConfigError(f"backbone {self.section.name!r}: freeze: no parameter starts with {prefix!r}")
            for parameter in matching:
                parameter.requires_grad_(False)
        if self.section.norm == "group":
            group_norms(self.net)
        if self.section.norm == "frozen":
            for norm in self._norms():
                for parameter in norm.parameters(recurse=False):
                    parameter.requires_grad_(False)
                norm.eval()

    def _asked(self) -> list[str]:
        """What `freeze` says, or what it means where it says nothing."""
        if self.section.freeze is not None:
            return self.section.freeze
        return FIRST_BLOCKS if self.section.name in ("lite", "lite_full") and self.section.pretrained else []

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.net.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.section.norm == "frozen":
            for norm in self._norms():
                norm.eval()
        return self

    def checkpoint_activations(self) -> None:
        """Recompute the net's blocks in backward rather than keep what they computed. ConfigError if it has none."""
        blocks = residual_blocks(self.net)
        if not blocks:
            raise ConfigError(
                f"backbone {self.section.name!r} is no chain of blocks that could be recomputed; allowed: "
                "hardware.activation_checkpointing: false, or another backbone"
            )
        recompute(blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


def group_norms(net: nn.Module) -> None:
    """GroupNorm of 32 groups (fewer where the channels do not divide) in place of every BatchNorm, its affine terms
    kept: statistics of one image alone, the same however a batch is split."""
    for module in list(net.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, _BatchNorm):
                group = nn.GroupNorm(math.gcd(32, norm.num_features), norm.num_features, norm.eps)
                group.load_state_dict({key: norm.state_dict()[key] for key in ("weight", "bias")})
                setattr(module, name, _like(norm, group))


def sync_norms(model: nn.Module) -> None:
    """BatchNorm over all ranks in place of every BatchNorm below `model`, parameters and statistics the same tensors.

    By timm: its BatchNorms carry an activation, which torch's own conversion leaves out.
    """
    convert_sync_batchnorm(model)


def _like(norm: nn.Module, group: nn.GroupNorm) -> nn.Module:
    """timm's BatchNorms carry an activation: what follows the normalisation stays."""
    rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
    return nn.Sequential(group, *rest) if rest else group


def normalise(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 or float 0..255 images [...,3,H,W] -> float32, scaled to 0..1, minus `mean`, over `std`."""
    shape = (3, 1, 1)
    offset = torch.tensor(mean, device=images.device).view(shape) * 255
    scale = torch.tensor(std, device=images.device).view(shape) * 255
    return (images.float() - offset) / scale
