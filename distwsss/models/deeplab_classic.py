"""DeepLab-V2 as kazuto1011/deeplab-pytorch has it (arXiv 1606.00915): the segmenter of ReCAM, AdvCAM, RIB, CLIP-ES.

The same network looks at the image at scales 1, 0.5 and 0.75; training sums a loss at each one's own size and one on
their element-wise maximum, which is also what it predicts. Published: ResNet-101 as in Caffe, its BatchNorm frozen, no
dropout. Built through `segmenters`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distwsss.config.networks import BackboneSection
from distwsss.models.backbones.build import Backbone
from distwsss.models.backbones.resnet_caffe import output_side
from distwsss.models.deeplab import ASPP

SCALES = (0.5, 0.75)  # beside 1


class ClassicDeepLab(nn.Module):
    """images B,3,H,W (normalised) -> logits B,K,h,w, the maximum over the scales; K counts background.

    h and w are `output_side` of H and W, H/8 and W/8 rounded up, or one more. 44,048,532 parameters for 21 classes.
    """

    align_corners = False

    def __init__(self, backbone: BackboneSection, classes: list[str], head_dropout: float) -> None:
        super().__init__()
        self.backbone = Backbone(backbone)
        self.classes = list(classes)
        self.options = {"head_dropout": head_dropout}
        self.head = ASPP(self.backbone.channels, len(classes), head_dropout)
        self.mean, self.std, self.stride = self.backbone.mean, self.backbone.std, self.backbone.stride

    def forward(self, images: Tensor) -> Tensor:
        return self.training_outputs(images)[-1]

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """Logits at scales 1, 0.5 and 0.75, each at its own size, then their maximum at the size of scale 1."""
        outputs = [self.head(self.backbone(images))]
        for scale in SCALES:
            small = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
            outputs.append(self.head(self.backbone(small)))
        size = outputs[0].shape[-2:]
        enlarged = [F.interpolate(logits, size, mode="bilinear", align_corners=False) for logits in outputs[1:]]
        return [*outputs, torch.stack([outputs[0], *enlarged]).amax(0)]

    def loss_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Where each of them meets the labels: at its own size, to which these are resized."""
        sides = [[math.floor(side * scale) for side in (height, width)] for scale in (1, *SCALES)]
        sizes = [(output_side(h), output_side(w)) for h, w in sides]
        return [*sizes, sizes[0]]

    def checkpoint_activations(self) -> None:
        """Recompute the backbone's blocks in backward rather than keep what they computed."""
        self.backbone.checkpoint_activations()

    def architecture(self) -> dict[str, Any]:
        """What `models.export` needs to build this network again."""
        section = self.backbone.section.model_dump()
        return {"kind": "deeplab_classic", "backbone": section, "classes": self.classes, **self.options}
