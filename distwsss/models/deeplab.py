"""DeepLab heads on any backbone: LargeFOV (DeepLab-V1) and summed ASPP (DeepLab-V2). Built through `segmenters`.

This is the lineage `plain`; `deeplab_classic` and `deeplab_codebase` are DeepLab as two public codebases have it, the
latter this network with heads of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from distwsss.config.networks import BackboneSection
from distwsss.models.backbones.build import Backbone

ASPP_RATES = (6, 12, 18, 24)


class LargeFOV(nn.Sequential):
    """DeepLab-V1's head (Chen et al. 2015, arXiv 1412.7062): 3x3 dilation 12, 1x1, classifier."""

    def __init__(self, inside: int, classes: int, width: int, dropout: float) -> None:
        super().__init__(
            nn.Conv2d(inside, width, 3, padding=12, dilation=12),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(width, width, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Conv2d(width, classes, 1),
        )


class ASPP(nn.Module):
    """DeepLab-V2's head (Chen et al. 2018, arXiv 1606.00915): the sum of four dilated 3x3 classifiers."""

    def __init__(self, inside: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.branches = nn.ModuleList(nn.Conv2d(inside, classes, 3, padding=r, dilation=r) for r in ASPP_RATES)
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, features: Tensor) -> Tensor:
        features = self.dropout(features)
        return sum(branch(features) for branch in self.branches)


# name -> constructor, called as heads[name](channels of the features, classes, width, dropout)
Heads: TypeAlias = dict[str, Callable[[int, int, int, float], nn.Module]]
HEADS: Heads = {
    "largefov": LargeFOV,
    "aspp": lambda inside, classes, width, dropout: ASPP(inside, classes, dropout),  # nothing hidden in it
}


class DeepLab(nn.Module):
    """images B,3,H,W (normalised) -> logits B,K,H/stride,W/stride; K counts background.

    A lineage that differs in its heads gives its `kind` of `SEGMENTERS`, the heads and how its logits are resized.
    """

    def __init__(
        self,
        backbone: BackboneSection,
        classes: list[str],
        head: str,
        head_channels: int,
        head_dropout: float,
        kind: str = "deeplab",
        heads: Heads = HEADS,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone)
        self.classes = list(classes)
        self.options = {"head": head, "head_channels": head_channels, "head_dropout": head_dropout}
        self.head = heads[head](self.backbone.channels, len(classes), head_channels, head_dropout)
        self.mean, self.std, self.stride = self.backbone.mean, self.backbone.std, self.backbone.stride
        self.kind, self.align_corners = kind, align_corners

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """Logits the loss is summed over (one here)."""
        return [self(images)]

    def loss_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The size at which each of them meets the labels: the labels' own."""
        return [(height, width)]

    def checkpoint_activations(self) -> None:
        """Recompute the backbone's blocks in backward rather than keep what they computed."""
        self.backbone.checkpoint_activations()

    def architecture(self) -> dict[str, Any]:
        """What `models.export` needs to build this network again."""
        section = self.backbone.section.model_dump()
        return {"kind": self.kind, "backbone": section, "classes": self.classes, **self.options}
