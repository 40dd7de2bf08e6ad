"""DeepLab-V1 and V2 as YudeWang's semantic-segmentation-codebase has them (used by SEAM, and by PPC, `usr922/wseg`).

Heads have BatchNorm; the ASPP concatenates its branches with an image-pooling one; logits are brought to the image's
size with `align_corners=True`. Published: ResNet-101 with a deep stem (timm's `resnet101s`) at stride 8. As released,
its V2 does not build (a configuration is read before it is set): it is taken with the backbone of its V1 and V3.

BatchNorm: no scale or shift is trained anywhere, the published optimizer takes convolutions alone. Running statistics
follow the batches, in the heads by 3e-4 a step and in the backbone by 0.1, unless `backbone.norm: frozen` holds the
backbone's (published: local). The heads' follow then too: they are new and have no others. `group` is GroupNorm in
both, its scales and shifts not trained either. Built through `segmenters`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distwsss.config.networks import BackboneSection
from distwsss.models.backbones.build import group_norms
from distwsss.models.deeplab import ASPP_RATES, DeepLab, Heads

WIDTHS = {"largefov": 512, "aspp": 256}


class Norm(nn.BatchNorm2d):
    """BatchNorm that normalises one value per channel, which has no variance, by the running statistics.

    The image-pooling branch has one value per image, so that micro-batches of one image meet this; published runs have
    ten images on one GPU and would end with an error.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, momentum=3e-4)

    def forward(self, features: Tensor) -> Tensor:
        if self.training and features.numel() == features.shape[1]:
            return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(features)


def _conv_norm(inside: int, width: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inside, width, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, Norm(width), nn.ReLU(inplace=True))


class LargeFOV(nn.Sequential):
    """3x3 of dilation 12, 1x1, each with BatchNorm and ReLU; dropout; classifier."""

    def __init__(self, inside: int, classes: int, width: int, dropout: float) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            fov=_conv_norm(inside, width, 3, 12),
            mix=_conv_norm(width, width),
            dropout=nn.Dropout(dropout),
            classifier=nn.Conv2d(width, classes, 1),
        )
        super().__init__(layers)


class PooledASPP(nn.Module):
    """Four dilated 3x3 and the pooled image, concatenated; 1x1; dropout twice, as published; classifier."""

    def __init__(self, inside: int, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(_conv_norm(inside, width, 3, rate) for rate in ASPP_RATES)
        self.pool = _conv_norm(inside, width)
        self.project = _conv_norm((len(ASPP_RATES) + 1) * width, width)
        self.dropout = nn.Sequential(nn.Dropout(dropout), nn.Dropout(dropout))
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        pooled = self.pool(features.mean((2, 3), keepdim=True)).expand(-1, -1, *features.shape[-2:])
        joined = torch.cat([*(branch(features) for branch in self.branches), pooled], dim=1)
        return self.classifier(self.dropout(self.project(joined)))


def codebase_deeplab(
    backbone: BackboneSection, classes: list[str], head: str, head_channels: int, head_dropout: float
) -> DeepLab:
    """A DeepLab with these heads, no BatchNorm of it trained.

    With `resnet101s`, 21 classes and the published widths 52,336,085 parameters (largefov) or 62,358,741 (aspp).
    """
    heads: Heads = {"largefov": LargeFOV, "aspp": PooledASPP}
    model = DeepLab(
        backbone, classes, head, head_channels, head_dropout, kind="deeplab_codebase", heads=heads, align_corners=True
    )
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if backbone.norm == "group":
        group_norms(model.head)
    for module in model.modules():
        if isinstance(module, _BatchNorm | nn.GroupNorm):
            if not backbone.pretrained:  # timm starts some at 0, where they would now stay
                nn.init.ones_(module.weight)
            module.weight.requires_grad_(False)
            module.bias.requires_grad_(False)
    return model
