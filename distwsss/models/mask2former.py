"""Mask2Former on Swin (Cheng et al. 2022, arXiv 2112.01527; Liu et al. 2021, 2103.14030). Built through `segmenters`.

The network is transformers', deformable attention in plain PyTorch. It predicts masks with classes; its logits here are
the log of the normalised semantic map, centred over the classes (METHOD section 4, last point). As in the published
code the pixel decoder runs in float32 under autocast, and stochastic depth is on both branches of a Swin block.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distwsss.config.networks import BackboneSection, Mask2FormerSection
from distwsss.models.backbones.build import IMAGENET_MEAN, IMAGENET_STD
from distwsss.models.backbones.transformers import checkpoint_blocks, described, drop_both_branches, prepare

# width of the first stage, blocks and heads per stage, side of a window
SWIN: dict[str, tuple[int, list[int], list[int], int]] = {
    "swin_tiny": (96, [2, 2, 6, 2], [3, 6, 12, 24], 7),
    "swin_small": (96, [2, 2, 18, 2], [3, 6, 12, 24], 7),
    "swin_base": (128, [2, 2, 18, 2], [4, 8, 16, 32], 12),
    "swin_large": (192, [2, 2, 18, 2], [6, 12, 24, 48], 12),
}
FLOOR = 1e-6  # added to the semantic map before its log


class MaskLayer(NamedTuple):
    """What one decoder layer predicts: classes B,Q,K+1 (no-object last) and masks B,Q,H/4,W/4, both before softmax
    and sigmoid."""

    classes: Tensor
    masks: Tensor


class SetOutputs(NamedTuple):
    """What training with the set loss needs: the contract's list of logits, and the layers, the last one last."""

    logits: list[Tensor]
    layers: list[MaskLayer]


def semantic_map(classes: Tensor, masks: Tensor) -> Tensor:
    """S_c = sum_q softmax(class_q)_c sigmoid(mask_q): B,Q,K+1 and B,Q,h,w -> float32 B,K,h,w (float64 for float64).

    The softmax is over K + 1 entries; no-object is then dropped. float32 also under autocast.
    """
    with _no_autocast(masks.device):
        if masks.dtype != torch.float64:
            classes, masks = classes.float(), masks.float()
        return torch.einsum("bqk,bqhw->bkhw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())


def semantic_logits(classes: Tensor, masks: Tensor) -> Tensor:
    """z = log(S + 1e-6) less its mean over the classes, S the semantic map: softmax(z) is the normalised map.

    The prediction constraint divides z by its norm, and a constant in all classes would be most of it: of log-
    probabilities, all of them at most 0, a perfect pixel's p* is 0.32 of 21 classes and 0.04 of 81 at tau 0.1; centred
    it is 0.9993 and 0.9966, the most that any logits reach. Upsampling and averages over views keep z centred.
    """
    scores = semantic_map(classes, masks) + FLOOR
    with _no_autocast(masks.device):
        z = scores.log()
        return z - z.mean(dim=1, keepdim=True)


class Mask2Former(nn.Module):
    """images B,3,H,W (RGB, ImageNet mean and std) -> logits B,K,H/4,W/4; K counts background."""

    def __init__(
        self, backbone: BackboneSection, classes: list[str], mask2former: Mask2FormerSection | dict[str, Any]
    ) -> None:
        super().__init__()
        from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

        if isinstance(mask2former, dict):
            mask2former = Mask2FormerSection(**mask2former)
        self.section, self.sizes, self.classes = backbone, mask2former, list(classes)
        width, depths, heads, window = SWIN[backbone.name]
        swin = SwinConfig(
            embed_dim=width,
            depths=depths,
            num_heads=heads,
            window_size=window,
            drop_path_rate=backbone.drop_path,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = Mask2FormerConfig(
            backbone_config=swin,
            num_labels=len(classes),
            num_queries=mask2former.queries,
            hidden_dim=mask2former.hidden,
            feature_size=mask2former.hidden,
            mask_feature_size=mask2former.hidden,
            dim_feedforward=mask2former.feedforward,
            encoder_feedforward_dim=mask2former.feedforward // 2,
            num_attention_heads=mask2former.heads,
            encoder_layers=mask2former.encoder_layers,
            decoder_layers=mask2former.decoder_layers + 1,  # transformers counts the prediction from the queries alone
        )
        whole = Mask2FormerForUniversalSegmentation(config)
        pixels = whole.model.pixel_level_module
        self.backbone, self.pixel_decoder = pixels.encoder, pixels.decoder
        self.decoder, self.class_predictor = whole.model.transformer_module, whole.class_predictor
        self.backbone.swin.layernorm = nn.Identity()  # the classifier's, of which nothing here reads the output
        for block in self._blocks():
            drop_both_branches(block)
        _adapt(self.pixel_decoder, self.decoder, self.class_predictor.weight.device)
        prepare(self.backbone, backbone)
        self.train()

    mean, std, stride = IMAGENET_MEAN, IMAGENET_STD, 4
    align_corners = False

    def train(self, mode: bool = True) -> Mask2Former:
        super().train(mode)
        # their dropout is 0; in training they would ask the device after each layer whether all values are finite, and
        # in older releases of transformers whether to drop it
        self.pixel_decoder.eval()
        self.decoder.eval()
        return self

    def _blocks(self) -> list[nn.Module]:
        return [block for stage in self.backbone.swin.encoder.layers for block in stage.blocks]

    def predict(self, images: Tensor) -> list[MaskLayer]:
        """What each decoder layer predicts, from the queries alone to the last one."""
        return self.from_features(self.backbone(images).feature_maps)

    def from_features(self, features: Sequence[Tensor]) -> list[MaskLayer]:
        """`predict` from the backbone's features, B,C,H/4,W/4 to B,8C,H/32,W/32."""
        with _no_autocast(features[0].device):  # deformable attention loses its positions in half precision
            dtype = self.pixel_decoder.mask_projection.weight.dtype
            pixels = self.pixel_decoder([feature.to(dtype) for feature in features])
        decoded = self.decoder(pixels.multi_scale_features, pixels.mask_features)
        return [
            MaskLayer(self.class_predictor(queries.transpose(0, 1)), masks)
            for queries, masks in zip(decoded.intermediate_hidden_states, decoded.masks_queries_logits, strict=True)
        ]

    def forward(self, images: Tensor) -> Tensor:
        return semantic_logits(*self.predict(images)[-1])

    def training_outputs(self, images: Tensor) -> list[Tensor] | SetOutputs:
        """Logits the loss is summed over (one here); with `set_loss` above 0 the layers too."""
        layers = self.predict(images)
        logits = [semantic_logits(*layers[-1])]
        return SetOutputs(logits, layers) if self.sizes.set_loss else logits

    def loss_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The size at which each of them meets the labels: the labels' own."""
        return [(height, width)]

    def checkpoint_activations(self) -> None:
        """Recompute Swin's blocks in backward."""
        checkpoint_blocks(self.backbone, self._blocks())

    def architecture(self) -> dict[str, Any]:
        """What `models.export` needs to build this network again."""
        described_here = {"classes": self.classes, "mask2former": self.sizes.model_dump()}
        return {"kind": "mask2former", "backbone": described(self.section), **described_here}


def _adapt(pixel_decoder: nn.Module, decoder: nn.Module, device: torch.device) -> None:
    """What keeps transformers' modules from being built and run on meta and fake tensors, in place."""
    if pixel_decoder.level_embed.device != device:  # torch.Tensor(...) does not ask `with torch.device("meta")`
        pixel_decoder.level_embed = nn.Parameter(pixel_decoder.level_embed.to(device))
    for positions in (pixel_decoder.position_embedding, decoder.position_embedder):
        # a cache of one entry for three sizes; it would hand a fake tensor to a real run, or one without gradients
        cached = positions.build_sine_position_embedding
        positions.build_sine_position_embedding = getattr(cached, "__wrapped__", cached)


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """float32 stays float32 inside (torch has no autocast for meta tensors)."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
