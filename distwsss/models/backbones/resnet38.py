"""ResNet38, the wide ResNet-38 "A1" of Wu et al. (arXiv 1611.10080) as psa, SEAM and EPS use it. Built by `backbones`.

Parameters carry the names of the published state dicts (`conv1a.weight`, `b2_1.bn_branch2a.bias`, ..., `bn7.weight`),
so that those files load by name; `models.weights` renames the MXNet file's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# name -> inside, middle, outside, stride, dilation of the first and of the second 3x3 convolution
UNITS: dict[str, tuple[int, int, int, int, int, int]] = {
    "b2": (64, 128, 128, 2, 1, 1), **{f"b2_{i}": (128, 128, 128, 1, 1, 1) for i in (1, 2)},
    "b3": (128, 256, 256, 2, 1, 1), **{f"b3_{i}": (256, 256, 256, 1, 1, 1) for i in (1, 2)},
    "b4": (256, 512, 512, 2, 1, 1), **{f"b4_{i}": (512, 512, 512, 1, 1, 1) for i in (1, 2, 3, 4, 5)},
    "b5": (512, 512, 1024, 1, 1, 2), **{f"b5_{i}": (1024, 512, 1024, 1, 2, 2) for i in (1, 2)},
}  # fmt: skip


def _conv(inside: int, outside: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(inside, outside, kernel, stride, padding, dilation, bias=False)


class Unit(nn.Module):
    """Two times BN, ReLU, 3x3; added to the input, or to a 1x1 projection of BN-ReLU of it where the shape changes."""

    def __init__(self, inside: int, middle: int, outside: int, stride: int, first: int, second: int) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inside)
        self.conv_branch2a = _conv(inside, middle, 3, stride, first)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = _conv(middle, outside, 3, 1, second)
        self.conv_branch1 = _conv(inside, outside, 1, stride) if inside != outside or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn_branch2a(x))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(active)
        middle = F.relu(self.bn_branch2b1(self.conv_branch2a(active)))
        return shortcut + self.conv_branch2b1(middle)


class Bottleneck(nn.Module):
    """BN-ReLU-1x1 (outside / 4), BN-ReLU-drop-3x3 dilated by 4 (outside / 2), BN-ReLU-drop-1x1; always a projection."""

    def __init__(self, inside: int, outside: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inside)
        self.conv_branch2a = _conv(inside, outside // 4, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(outside // 4)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = _conv(outside // 4, outside // 2, 3, dilation=4)
        self.bn_branch2b2 = nn.BatchNorm2d(outside // 2)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = _conv(outside // 2, outside, 1)
        self.conv_branch1 = _conv(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn_branch2a(x))
        branch = self.dropout_2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(active))))
        branch = self.dropout_2b2(F.relu(self.bn_branch2b2(self.conv_branch2b1(branch))))
        return self.conv_branch1(active) + self.conv_branch2b2(branch)


class ResNet38(nn.Module):
    """images B,3,H,W (RGB, ImageNet mean and std) -> "conv6", B,4096,H/8,W/8, none negative. 105,070,912
    parameters.

    Dropout2d is 0.3 in b6 and 0.5 in b7, as published; `set_b7_dropout` gives the latter another probability.
    """

    channels = 4096
    frozen = ("conv1a", "b2")  # prefixes of what no published run trains: the stem, b2, b2_1, b2_2

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = _conv(3, 64, 3)
        for name, shape in UNITS.items():
            self.add_module(name, Unit(*shape))
        self.b6 = Bottleneck(1024, 2048, 0.3)
        self.b7 = Bottleneck(2048, 4096, 0.5)
        self.bn7 = nn.BatchNorm2d(4096)

    def set_b7_dropout(self, probability: float) -> None:
        """`probability` for both dropouts of b7, the last ones before the features."""
        self.b7.dropout_2b1.p = self.b7.dropout_2b2.p = probability

    def blocks(self) -> list[nn.Module]:
        """What lies between the stem and the last BatchNorm, in order."""
        return [getattr(self, name) for name in (*UNITS, "b6", "b7")]

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1a(images)
        for block in self.blocks():
            x = block(x)
        return F.relu(self.bn7(x))
