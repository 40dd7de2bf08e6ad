"""Segmenters by name. Contract (DESIGN, Segmenter), held by `tests/unit/models/test_segmenters.py`:

`forward(images: B,3,H,W) -> logits: B,K,h,w` with softmax(logits) the class distribution; attributes `mean`, `std`,
`stride`, `classes` (background first), `align_corners` (how logits are brought to another size, bilinear),
`temperature` (tau of the constraint it was trained with, None without; set by who builds it);
`training_outputs(images)` a list of logits the loss is summed over (Mask2Former's set loss needs more: `SetOutputs`),
and `loss_sizes(H, W)` the size at which each of them meets the labels: (H, W) itself, or the logits' own, to which the
labels are then resized; `checkpoint_activations()` trades a second forward of the backbone's blocks for their
activations; `architecture()` for `models.export`; the backbone's parameters are named `backbone.*`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from distwsss.config.networks import BackboneSection
from distwsss.config.stages import TrainSection
from distwsss.models.deeplab import DeepLab
from distwsss.models.deeplab_classic import ClassicDeepLab
from distwsss.models.deeplab_codebase import WIDTHS, codebase_deeplab
from distwsss.models.mask2former import Mask2Former
from distwsss.models.segformer import SegFormer
from distwsss.models.weights.network import load_network

# kind -> constructor, called as SEGMENTERS[kind](backbone=..., classes=..., **options)
SEGMENTERS: dict[str, Callable[..., nn.Module]] = {
    "deeplab": DeepLab,
    "deeplab_classic": ClassicDeepLab,
    "deeplab_codebase": codebase_deeplab,
    "segformer": SegFormer,
    "mask2former": Mask2Former,
}


def build_segmenter(section: TrainSection, classes: list[str]) -> nn.Module:
    """The segmenter that `train` asks for, from published weights, its backbone's or all of it, where it says so."""
    backbone = section.backbone
    if section.weights:  # they are the backbone's too
        backbone = backbone.model_copy(update={"pretrained": False, "weights": None})
    kind = section.model if section.lineage == "plain" else f"{section.model}_{section.lineage}"
    model = SEGMENTERS[kind](backbone=backbone, classes=classes, **_options(section))
    # no constraint is on plain cross-entropy, whatever the key says
    model.temperature = None if section.loss == "cross_entropy" else section.temperature
    if section.weights:
        load_network(model, section.weights, kind)
    return model


def _options(section: TrainSection) -> dict[str, Any]:
    if section.model == "mask2former":
        return {"mask2former": section.mask2former}
    if section.model == "segformer":
        return {"head_channels": section.head_channels, "head_dropout": section.head_dropout}
    if section.lineage == "classic":
        return {"head_dropout": section.head_dropout}
    width = WIDTHS[section.head] if section.lineage == "codebase" else 1024
    return {
        "head": section.head,
        "head_channels": section.head_channels or width,
        "head_dropout": section.head_dropout,
    }


def rebuild_segmenter(architecture: dict[str, Any]) -> nn.Module:
    """The network that `architecture()` describes, without published weights."""
    options = dict(architecture)
    backbone = BackboneSection(**{**options.pop("backbone"), "pretrained": False})
    return SEGMENTERS[options.pop("kind")](backbone=backbone, **options)
