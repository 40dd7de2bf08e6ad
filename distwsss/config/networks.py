"""Backbones and the sizes of networks. Read by `config.stages`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from distwsss.config.section import LATER, NEUTRAL, Probability, Section

# backbones of one stride whose weights no package brings and no server gives -> a file that has them
FROM_FILE = {
    "resnet38": "ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
    "resnet101_caffe": "deeplabv1_resnet101-coco.pth",
}


class BackboneSection(Section):
    """The network that makes features, and the weights it starts from."""

    name: str = Field(
        "lite",
        description="any timm model with feature maps; `lite`: EfficientNet-Lite0 (320 channels); `lite_full`: with "
        "its head convolution (1280 channels, for classifiers); `lite2`: EfficientNet-Lite2 (352); `resnet38`: "
        "the wide ResNet-38 of psa, SEAM and EPS (4096 channels); `resnet101_caffe`: DeepLab's own (deeplab-pytorch); "
        "`mit_b0` to `mit_b5` (SegFormer); `swin_tiny`, `swin_small`, `swin_base`, `swin_large` (Mask2Former); `tiny`: "
        "from scratch, for demo and tests",
    )
    pretrained: bool = Field(
        True, description="start from the published weights of `name`; `tiny` has none", validate_default=True
    )
    weights: str | None = Field(
        None,
        description="file with the weights to start from (docs/weights.md); null: the published ones of `name`",
        json_schema_extra=NEUTRAL,  # a path; its sha256 is what the run's parameters hold
    )
    output_stride: Literal[8, 16, 32] = Field(
        16, description="pixels per feature; `tiny`, `resnet38` and `resnet101_caffe`: 8 only", validate_default=True
    )
    freeze: list[str] | None = Field(
        None,
        description="parameter-name prefixes of the backbone that are not trained; null: the first blocks of lite and "
        "lite_full, which few photographs would only spoil, nothing of others",
    )
    norm: Literal["frozen", "local", "sync", "group"] = Field(
        "frozen",
        description="BatchNorm; frozen: it keeps its statistics and affine terms; local: each micro-batch's statistics "
        "(as published for lineage codebase); sync: those of all ranks (GPUs only); group: GroupNorm in its place. "
        "mit_*: the one in SegFormer's head, frozen is local there, sync as published",
    )
    drop_path: Probability = Field(
        0.0, description="stochastic depth of mit_* and swin_*: the last block's rate", json_schema_extra=LATER
    )

    @field_validator("pretrained", "output_stride")
    @classmethod
    def _tiny(cls, value: int, info: ValidationInfo) -> int:
        allowed = {"pretrained": False, "output_stride": 8}[str(info.field_name)]
        if info.data.get("name") == "tiny" and value != allowed:
            raise ValueError(f"allowed for backbone `tiny`, which has no published weights and one stride: {allowed}")
        if info.field_name == "output_stride" and info.data.get("name") in FROM_FILE and value != 8:
            raise ValueError(f"allowed for backbone `{info.data['name']}`, which has one stride: 8")
        return value

    @model_validator(mode="after")
    def _weights(self) -> BackboneSection:
        if self.weights is not None and not self.pretrained:
            raise ValueError("`weights` is a file, but `pretrained` is false; allowed: pretrained: true, or no file")
        return self

    @model_validator(mode="after")
    def _transformer(self) -> BackboneSection:
        """Raises ValueError for what means nothing to mit_* and swin_*: features at 4 to 32, Swin without BatchNorm."""
        if self.name.startswith(("mit_", "swin_")) and self.output_stride == 8:
            raise ValueError(f"`output_stride` is 8; allowed for {self.name}, which has strides 4 to 32: no such key")
        if self.name.startswith("swin_") and self.norm != "frozen":
            raise ValueError(f"`norm` is {self.norm!r}; allowed for {self.name}, which has no BatchNorm: no such key")
        return self


class Mask2FormerSection(Section):
    """Sizes and set loss of Mask2Former; the defaults are those published for Swin-L (REFERENCE 4.7)."""

    queries: int = Field(100, ge=1, description="masks predicted per image")
    hidden: int = Field(256, ge=8, description="width of pixel decoder, transformer decoder and mask embedding")
    feedforward: int = Field(2048, ge=8, description="hidden width of the transformer decoder's MLPs; encoder: half")
    heads: int = Field(8, ge=1, description="of attention, in both decoders")
    encoder_layers: int = Field(6, ge=1, description="of the pixel decoder (deformable attention)")
    decoder_layers: int = Field(9, ge=1, description="of the transformer decoder")
    set_loss: float = Field(1.0, ge=0.0, description="weight of its own set loss on clean pixels; 0: hybrid loss only")
    points: int = Field(12544, ge=1, description="clean pixels sampled per mask, for matching and for the set loss")
    oversample: float = Field(3.0, ge=1.0, description="candidates drawn per point of the set loss")
    importance: float = Field(0.75, ge=0.0, le=1.0, description="share of the points that are the most uncertain ones")
    class_weight: float = Field(2.0, ge=0.0, description="of classes, in matching and in the set loss")
    mask_weight: float = Field(5.0, ge=0.0, description="of masks' binary cross-entropy, likewise")
    dice_weight: float = Field(5.0, ge=0.0, description="of masks' dice loss, likewise")
    no_object: float = Field(0.1, gt=0.0, description="weight of the class no-object in the set loss")

    @model_validator(mode="after")
    def _widths(self) -> Mask2FormerSection:
        """Raises ValueError for a width that groups of 32 channels, attention heads or half of it do not divide."""
        if self.hidden % 32 or self.hidden % self.heads or self.feedforward % 2:
            raise ValueError(
                f"`hidden` is {self.hidden}, `heads` {self.heads}, `feedforward` {self.feedforward}; allowed: a hidden "
                "that is a multiple of 32 and of heads, an even feedforward"
            )
        return self
