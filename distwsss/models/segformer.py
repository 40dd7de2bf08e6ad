"""SegFormer: the Mix Transformer and its all-MLP head (Xie et al. 2021, arXiv 2105.15203). Built through `segmenters`.

The network is transformers'. Two things are set as NVlabs trained it: the LayerNorms of blocks and stages have an
epsilon of 1e-6 (transformers: 1e-5), and stochastic depth grows from block to block to `backbone.drop_path`.

The backbone has no BatchNorm, the head one, new like the head and so never frozen: `backbone.norm` is about that one.
By default each micro-batch is normalised by its own statistics, of H/4 x W/4 places per image, and a gradient depends a
little on how the global batch is split. `sync` is what published runs have, over the ranks of a micro-batch; `group`
depends on no split.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from distwsss.config.networks import BackboneSection
from distwsss.models.backbones.build import IMAGENET_MEAN, IMAGENET_STD, group_norms
from distwsss.models.backbones.transformers import checkpoint_blocks, described, prepare

DEPTHS = {
    "mit_b0": [2, 2, 2, 2], "mit_b1": [2, 2, 2, 2], "mit_b2": [3, 4, 6, 3], "mit_b3": [3, 4, 18, 3],
    "mit_b4": [3, 8, 27, 3], "mit_b5": [3, 6, 40, 3],
}  # fmt: skip
SMALL = ("mit_b0", "mit_b1")  # their head is 256 wide, that of the others 768


class SegFormer(nn.Module):
    """images B,3,H,W (RGB, ImageNet mean and std) -> logits B,K,H/4,W/4; K counts background."""

    def __init__(
        self, backbone: BackboneSection, classes: list[str], head_channels: int | None, head_dropout: float
    ) -> None:
        super().__init__()
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        self.section, self.classes = backbone, list(classes)
        self.options = {"head_channels": head_channels, "head_dropout": head_dropout}
        config = SegformerConfig(
            num_labels=len(classes),
            depths=DEPTHS[backbone.name],
            hidden_sizes=[32, 64, 160, 256] if backbone.name == "mit_b0" else [64, 128, 320, 512],
            decoder_hidden_size=head_channels or (256 if backbone.name in SMALL else 768),
            drop_path_rate=backbone.drop_path,
            classifier_dropout_prob=head_dropout,
        )
        whole = SegformerForSemanticSegmentation(config)
        self.backbone, self.head = whole.segformer, whole.decode_head
        for stage in self.backbone.stages:
            norms = [stage.layer_norm, *(n for block in stage.blocks for n in _norms(block))]
            for norm in norms:
                norm.eps = 1e-6
        if backbone.norm == "group":
            group_norms(self.head)
        prepare(self.backbone, backbone)

    mean, std, stride = IMAGENET_MEAN, IMAGENET_STD, 4
    align_corners = False

    def forward(self, images: Tensor) -> Tensor:
        features = []
        for stage in self.backbone.stages:
            images = stage(images)
            features.append(images)  # B,C,H/4,W/4 to B,C,H/32,W/32
        return self.head(features)

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """Logits the loss is summed over (one here)."""
        return [self(images)]

    def loss_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The size at which each of them meets the labels: the labels' own."""
        return [(height, width)]

    def checkpoint_activations(self) -> None:
        """Recompute the Mix Transformer's blocks in backward."""
        checkpoint_blocks(self.backbone, [block for stage in self.backbone.stages for block in stage.blocks])

    def architecture(self) -> dict[str, Any]:
        """What `models.export` needs to build this network again."""
        return {"kind": "segformer", "backbone": described(self.section), "classes": self.classes, **self.options}


def _norms(block: nn.Module) -> tuple[nn.LayerNorm, nn.LayerNorm]:
    return block.layernorm_before, block.layernorm_after
