"""The multi-label classifier whose activations give CAMs (METHOD section 1). Trained by `train`, used by `seeds`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distwsss.config.networks import BackboneSection
from distwsss.models.backbones.build import Backbone


class Classifier(nn.Module):
    """Backbone, Dropout2d(p), 1x1 convolution without bias, global average pooling.

    `classes` are all classes, background first; the network scores the N foreground classes, channel i - 1 for class i.
    With `dropout_layer` b7 (resnet38 only) p is that of the two dropouts inside block b7, and there is none before the
    convolution, as in EPS.
    """

    def __init__(
        self, backbone: BackboneSection, classes: list[str], dropout: float, dropout_layer: str = "dropout7"
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone)
        self.classes, self.dropout_p, self.dropout_layer = list(classes), dropout, dropout_layer
        if dropout_layer == "b7":
            self.backbone.net.set_b7_dropout(dropout)
        self.dropout = nn.Dropout2d(0.0 if dropout_layer == "b7" else dropout)
        self.head = nn.Conv2d(self.backbone.channels, len(classes) - 1, 1, bias=False)
        nn.init.xavier_uniform_(self.head.weight)
        self.mean, self.std, self.stride = self.backbone.mean, self.backbone.std, self.backbone.stride

    def forward(self, images: Tensor) -> Tensor:
        """images B,3,H,W (normalised) -> scores B,N before the sigmoid."""
        return self.head(self.dropout(self.backbone(images))).mean(dim=(2, 3))

    def training_outputs(self, images: Tensor) -> list[Tensor]:
        """Scores the loss is summed over (one here)."""
        return [self(images)]

    def maps(self, images: Tensor, kept: Tensor | None = None, reduce: str = "mean") -> Tensor:
        """images B,3,H,W -> B,N,h,w: ReLU(w_i^T f), Eq. 2 before its normalisation.

        kept: float B,P,C, what each channel is multiplied by in each of P passes of the last dropout (C channels before
        the convolution), whose maps are reduced by their `mean` or `max`; None: one pass, in eval mode without dropout.
        """
        features = self.backbone(images)
        if kept is None:
            return torch.relu(self.head(self.dropout(features)))
        passes = [torch.relu(self.head(features * one[..., None, None])) for one in kept.unbind(1)]
        return torch.stack(passes).amax(0) if reduce == "max" else torch.stack(passes).mean(0)

    def checkpoint_activations(self) -> None:
        """Recompute the backbone's blocks in backward rather than keep what they computed."""
        self.backbone.checkpoint_activations()

    def architecture(self) -> dict[str, Any]:
        """What `models.export` needs to build this network again."""
        return {
            "kind": "classifier",
            "backbone": self.backbone.section.model_dump(),
            "classes": self.classes,
            "dropout": self.dropout_p,
            "dropout_layer": self.dropout_layer,
        }
