"""The configuration as strict pydantic models, one per section; every default is METHOD's reading.

Read by every stage; built only by `config.load`. Torch-free, so `distwsss config validate` answers at once.
A field marked `neutral` cannot change a result (how often to log or save) and, like the sections `paths` and
`hardware`, is left out of fingerprints (`parameters`). One marked `later` is left out at its default: runs from before
it was there keep their fingerprints.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from distwsss.runtime.storage import Folder, Scratch, folder_at

NEUTRAL: dict[str, Any] = {"neutral": True}
LATER: dict[str, Any] = {"later": True}
DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)\s*$")


class Section(BaseModel):
    """Strict (no silent conversion), closed (unknown keys are errors) and frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def parameters(self) -> dict[str, Any]:
        """The fields that can change a result, nested, JSON-ready: what a fingerprint covers."""
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            value = getattr(self, name)
            if marks.get("neutral") or (marks.get("later") and value == field.default):
                continue
            kept[name] = value.parameters() if isinstance(value, Section) else value
        return kept


def _duration(text: str) -> str:
    if not DURATION.match(text):
        raise ValueError("allowed: a number with a unit, `20000 steps`, `20 epochs` or `10%`")
    return text


def _length(text: str) -> str:
    """A training's own length: at least one step, and not a share of itself."""
    if not DURATION.match(text) or "%" in text or duration_to_steps(text, samples=1, global_batch=1) < 1:
        raise ValueError("allowed: a number of steps or epochs above 0, `20000 steps` or `20 epochs`")
    return text


def _jitter(strengths: list[float]) -> list[float]:
    if min(strengths) < 0 or strengths[3] > 0.5:  # a hue is an angle: torchvision takes half a turn each way
        raise ValueError("allowed: [brightness, contrast, saturation, hue], each 0 or more, hue at most 0.5")
    return strengths


Duration = Annotated[str, AfterValidator(_duration)]
Length = Annotated[str, AfterValidator(_length)]
Jitter = Annotated[list[float], Field(min_length=4, max_length=4), AfterValidator(_jitter)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


def duration_to_steps(text: str, samples: int, global_batch: int, total_steps: int | None = None) -> int:
    """`20000 steps`, `20 epochs` (of `samples`, rounded) or `10%` (of `total_steps`) as a number of steps."""
    number, unit = DURATION.match(text).groups()  # type: ignore[union-attr]
    if unit == "%":
        if total_steps is None:
            raise ValueError("a share of the training makes no sense as its own length; give steps or epochs")
        return round(float(number) / 100 * total_steps)
    if unit.startswith("epoch"):
        return max(1, round(float(number) * samples / global_batch)) if float(number) else 0
    return int(float(number))


class CRFParams(Section):
    """Dense CRF of Kraehenbuehl and Koltun (2011) as pydensecrf takes it. Defaults: psa/SEAM/EPS `cam_label`."""

    iterations: int = Field(10, ge=1)
    gaussian_sxy: Positive = 3.0
    gaussian_compat: float = 3.0
    bilateral_sxy: Positive = 80.0
    bilateral_srgb: Positive = 13.0
    bilateral_compat: float = 10.0
    clip: float = Field(1e-5, gt=0.0, lt=0.5, description="probabilities below this are raised to it in the unary")


def _crf(gaussian: tuple[float, float], bilateral: tuple[float, float, float], iterations: int = 10) -> CRFParams:
    """(sxy, compat), (sxy, srgb, compat), as REFERENCE 4.5 writes them."""
    return CRFParams(
        iterations=iterations,
        gaussian_sxy=gaussian[0],
        gaussian_compat=gaussian[1],
        bilateral_sxy=bilateral[0],
        bilateral_srgb=bilateral[1],
        bilateral_compat=bilateral[2],
    )


CRF_PARAMS: dict[str, CRFParams] = {
    "cam_label": CRFParams(),  # CAM to label: psa, SEAM, EPS, RCA, OC-CSE
    "irn": _crf((3, 3), (50, 5, 10)),  # labels: IRN, ReCAM, AdvCAM, W-OoD, RIB, SIPE, FPR, AFA
    "puzzlecam": _crf((3, 3), (50, 5, 10), iterations=1),  # labels: PuzzleCAM
    "toco_coco": _crf((3, 3), (36, 3, 4)),  # CAM to label on COCO: ToCo
    "deeplab_v2": _crf((1, 3), (67, 3, 4)),  # segmenters: deeplab-pytorch, BECO, L2G, OAA; EPS; CLIP-ES's labels
    "codebase": _crf((3, 3), (32, 13, 10), iterations=1),  # segmenters: semantic-segmentation-codebase (SEAM), ADELE
    "afa": _crf((3, 3), (64, 5, 4)),  # segmenters: AFA, WeCLIP
    "toco": _crf((1, 1), (121, 5, 4)),  # segmenters: ToCo, DuPL, SeCo
    "mctformer": _crf((4, 3), (83, 5, 3)),  # segmenters: MCTformer
}


def _crf_by_name(value: Any) -> Any:
    if isinstance(value, str):
        if value not in CRF_PARAMS:
            raise ValueError(f"allowed: one of {', '.join(CRF_PARAMS)}, or a mapping of CRF parameters")
        return CRF_PARAMS[value]
    return value


NamedCRF = Annotated[CRFParams, BeforeValidator(_crf_by_name)]


class PathsSection(Section):
    """Where results go. Left out of fingerprints."""

    run: str | None = Field(None, description="run folder; default runs/NAME")
    classifiers: str | None = Field(
        None,
        description="folder of the classifiers, shared by runs that differ later; default: classify in the run folder",
    )
    shards: str | None = Field(None, description="shard folder, or a URL as s3://BUCKET/PREFIX; default shards/NAME")

    @field_validator("run", "classifiers")
    @classmethod
    def _local(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError("allowed: a folder on a file system (lock, checkpoints); only `shards` may be a URL")
        return value


class RaySection(Section):
    """Ray, for the executor `ray`: the cluster that RAY_ADDRESS names, else one on this machine (a local Ray)."""

    temp_dir: str | None = Field(None, description="a local Ray's logs and sockets; default: Ray's own folder")
    spill_dir: str | None = Field(None, description="where a local Ray's object store spills; default: temp_dir")
    object_store_mb: int | None = Field(None, ge=75, description="memory of a local Ray's object store; default Ray's")
    cam_gpus: float = Field(1.0, gt=0.0, le=1.0, description="share of a GPU that one CAM actor takes")
    cam_actors: int | None = Field(None, ge=1, description="default: as many as the GPUs allow, else one a CPU")
    crf_workers: int | None = Field(None, ge=1, description="default: one a CPU that CAM actors on GPUs leave")
    attempts: int = Field(3, ge=1, description="times one piece of work is tried when the process doing it dies")
    item_minutes: Positive = Field(60.0, description="one piece of work that takes longer counts as a failed attempt")


class HardwareSection(Section):
    """What the machine offers. Left out of fingerprints; `--profile` overlays it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    executor: Literal["auto", "ray", "local"] = Field(
        "auto", description="auto: Ray for seeds, where it is installed and workers > 0; classify: only if named"
    )
    ray: RaySection = RaySection()
    cam_batch: int = Field(1, ge=1, description="images of equal size that one forward of the CAM stage takes")
    workers: int = Field(2, ge=0, description="processes of prepare, seeds and the CRF in evaluation; 0: this one")
    loader_workers: int = Field(2, ge=0, description="data loading processes per rank")
    scratch: str | None = Field(None, description="folder on a local disk that keeps shards read from a URL")
    scratch_gb: Positive = Field(20.0, description="its size; the least recently used shards go, one always stays")
    card: Literal["rtx3090", "a100", "h100"] | None = Field(
        None, description="the GPU that `estimate` reckons with; nothing else reads it"
    )
    cards: int = Field(1, ge=1, description="how many of `card`, for `estimate`; launchers start the ranks")
    micro_batch: int | None = Field(None, ge=1, description="images per rank and forward; default global batch / ranks")
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    activation_checkpointing: bool = Field(
        False, description="recompute the backbone's blocks in backward rather than keep what they computed"
    )
    tf32: bool = Field(True, description="TensorFloat-32 in float32 products on GPUs that have it")
    deepspeed: str | None = Field(None, description="DeepSpeed's JSON, or its NAME in configs/deepspeed/; default: DDP")
    timeout_seconds: int = Field(600, ge=1, description="collectives that take longer end the run")
    shutdown_seconds: int = Field(
        30, ge=0, description="what the launcher leaves a process to save after SIGTERM, SIGUSR1 or Ctrl-C"
    )
    trackers: list[Literal["tensorboard", "wandb"]] = Field([], description="where metrics go beside metrics.jsonl")


class ShapesSection(Section):
    """The generated data set."""

    train: int = Field(96, ge=1)
    val: int = Field(48, ge=0)
    size: int = Field(96, ge=32, description="side in pixels")
    seed: int = 0


class DataSection(Section):
    dataset: Literal["voc", "coco", "folder", "shapes"]
    root: str | None = Field(None, description="data folder (voc, coco, folder)", json_schema_extra=NEUTRAL)
    sbd: str | None = Field(None, description="voc: the SBD release, for train_aug", json_schema_extra=NEUTRAL)
    crowd: Literal["ignore", "paint"] = Field("ignore", description="coco: pixels of crowd annotations in masks")
    train_split: str = "train"
    val_split: str = "val"
    labels_from: Literal["auto", "xml", "csv", "masks"] = Field(
        "auto", description="voc: auto = Annotations/*.xml, else cls_labels.csv; masks only when named here"
    )
    classes: list[str] | None = Field(None, description="foreground class names in order; background is added")
    images: str = Field("images", description="folder: where the pictures lie under root")
    tags: str = Field("tags.csv", description="folder: the CSV of image-level labels under root")
    masks: str = Field("masks", description="folder: where masks lie under root, if any")
    allow_empty: bool = Field(False, description="an image without labels is background only, not an error")
    max_pixels: int = Field(40_000_000, ge=1, description="larger images are refused before decoding")
    shapes: ShapesSection = ShapesSection()
    tuning_ids: list[str] = Field(
        [], description="train ids on which keys were chosen: `stats` scores the others", json_schema_extra=NEUTRAL
    )

    @model_validator(mode="after")
    def _root(self) -> DataSection:
        if self.classes is not None:
            if len(set(self.classes)) != len(self.classes):
                raise ValueError("`classes` lists a name twice; allowed: distinct names")
            if "background" in self.classes:
                raise ValueError("`classes` lists `background`; allowed: foreground names only, background is class 0")
        return self


class PrepareSection(Section):
    shard_size: int = Field(64, ge=1, description="images per shard")


class AugmentSection(Section):
    """Random scale, flip, colour jitter and crop. `resize` is the range drawn from: of factors of the image's size, or
    of its longest side in pixels, as `resize_by` says."""

    crop: int = Field(448, ge=16)
    resize: list[float] = Field([0.5, 1.5], min_length=2, max_length=2)
    resize_by: Literal["factor", "longest_side"] = "factor"
    flip: bool = True
    color_jitter: Jitter = [0.3, 0.3, 0.3, 0.1]

    @model_validator(mode="after")
    def _range(self) -> AugmentSection:
        if not 0 < self.resize[0] <= self.resize[1]:
            raise ValueError(f"`resize` is {self.resize}; allowed: [low, high] with 0 < low <= high")
        return self


class OptimSection(Section):
    """Optimizer and schedule; the learning rate is a function of the step."""

    duration: Length = "20 epochs"
    global_batch: int = Field(8, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.01
    momentum: Probability = 0.9
    compat: Literal["none", "psa_momentum"] = Field(
        "none",
        description="psa_momentum: SGD as psa, SEAM and EPS ran it, whose optimizer takes the weight decay for its "
        "momentum too (SEAM issue 21); `momentum` is not used then",
        json_schema_extra=LATER,
    )
    weight_decay: float = Field(5e-4, ge=0.0)
    decay_bias: bool = Field(False, description="weight decay on biases too")
    decay_norm: bool = Field(
        False,
        description="weight decay on normalisation layers, embeddings and position tables too",
        json_schema_extra=LATER,
    )
    backbone_multiplier: Positive = Field(
        1.0, description="learning rate of the backbone relative to `lr`", json_schema_extra=LATER
    )
    head_multiplier: Positive = Field(10.0, description="learning rate of the new layers relative to `lr`")
    bias_multiplier: Positive = Field(2.0, description="learning rate of biases relative to their layer's weights")
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    power: Positive = 0.9
    warmup: Duration = "0 steps"
    clip_grad: float | None = Field(None, gt=0.0)
    save_every: Duration = Field("25%", json_schema_extra=NEUTRAL)
    keep_last: int = Field(2, ge=1, json_schema_extra=NEUTRAL)
    keep_optimizer: bool = Field(False, description="keep optimizer state of a finished run", json_schema_extra=NEUTRAL)
    log_every: int = Field(10, ge=1, json_schema_extra=NEUTRAL)

    @model_validator(mode="after")
    def _compat(self) -> OptimSection:
        if self.compat != "none" and (self.optimizer != "sgd" or self.weight_decay >= 1):
            raise ValueError(
                f"`compat` is {self.compat!r}, but `optimizer` is {self.optimizer!r} and `weight_decay` "
                f"{self.weight_decay}; allowed: sgd with a weight decay below 1, or compat: none"
            )
        return self


# backbones of one stride whose weights no package brings -> a file that has them
FROM_FILE = {
    "resnet38": "ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
    "resnet101_caffe": "deeplabv1_resnet101-coco.pth",
}


class BackboneSection(Section):
    name: str = Field(
        "lite",
        description="any timm model with feature maps; `lite`: EfficientNet-Lite0 (320 channels); `lite_full`: with "
        "its head convolution (1280 channels, for classifiers); `resnet38`: the wide ResNet-38 of psa, SEAM and EPS "
        "(4096 channels), from a file `weights`; `resnet101_caffe`: DeepLab's own (deeplab-pytorch), likewise; "
        "`mit_b0` to `mit_b5` (SegFormer); `swin_tiny`, `swin_small`, `swin_base`, `swin_large` (Mask2Former); `tiny`: "
        "from scratch, for demo and tests",
    )
    pretrained: bool = Field(
        True, description="start from the published weights of `name`; `tiny` has none", validate_default=True
    )
    weights: str | None = Field(
        None,
        description="file with the weights to start from (docs/weights.md); default: those that `name` comes with",
        json_schema_extra=NEUTRAL,  # a path; its sha256 is what the run's parameters hold
    )
    output_stride: Literal[8, 16, 32] = Field(
        16, description="`tiny`, `resnet38` and `resnet101_caffe`: 8 only", validate_default=True
    )
    freeze: list[str] = Field([], description="parameter-name prefixes of the backbone that are not trained")
    norm: Literal["frozen", "local", "sync", "group"] = Field(
        "frozen",
        description="frozen: BatchNorm keeps its statistics and affine terms; local: each micro-batch's statistics (as "
        "published for lineage codebase); sync: those of all ranks (GPUs only); group: GroupNorm in its place. mit_*: "
        "the one in SegFormer's head, frozen is local there, sync as published",
    )
    drop_path: Probability = Field(
        0.0, description="stochastic depth of mit_* and swin_*: the last block's", json_schema_extra=LATER
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
        if self.name in FROM_FILE and self.pretrained and self.weights is None:
            raise ValueError(
                f"`weights` is missing: {self.name} comes with none; allowed: a file, as {FROM_FILE[self.name]} "
                "(docs/weights.md), or pretrained: false"
            )
        return self

    @model_validator(mode="after")
    def _transformer(self) -> BackboneSection:
        """Raises ValueError for what means nothing to mit_* and swin_*: features at 4 to 32, Swin without BatchNorm."""
        if self.name.startswith(("mit_", "swin_")) and self.output_stride == 8:
            raise ValueError(f"`output_stride` is 8; allowed for {self.name}, which has strides 4 to 32: no such key")
        if self.name.startswith("swin_") and self.norm != "frozen":
            raise ValueError(f"`norm` is {self.norm!r}; allowed for {self.name}, which has no BatchNorm: no such key")
        return self


class ClassifySection(Section):
    """One classifier per dropout probability p (METHOD section 1)."""

    dropouts: list[Probability] = Field([0.05, 0.10, 0.20, 0.30], min_length=1)
    dropout_layer: Literal["dropout7", "b7"] = Field(
        "dropout7",
        description="the layer that p applies to: before the classification layer (psa), or, as in EPS, which has none "
        "there, the two inside block b7 of resnet38",
        json_schema_extra=LATER,
    )
    backbone: BackboneSection = BackboneSection()
    augment: AugmentSection = AugmentSection(resize=[256, 512], resize_by="longest_side")
    optim: OptimSection = OptimSection()

    @model_validator(mode="after")
    def _layer(self) -> ClassifySection:
        if self.dropout_layer == "b7" and self.backbone.name != "resnet38":
            raise ValueError(
                f"`dropout_layer` is 'b7', but `backbone.name` is {self.backbone.name!r}; allowed: dropout7, or "
                "backbone resnet38"
            )
        return self


class SeedsSection(Section):
    """CAM, CRF, vote (METHOD sections 1-3)."""

    scales: list[Positive] = Field([1.00, 1.20], min_length=1)
    base_size: int | None = Field(None, ge=32, description="longest side scaled by 1.00; default: the image's own")
    output_stride: Literal[8, 16, 32] | None = Field(
        None, description="of the CAMs; default: the classifier's own. The same weights, dilated (a trous), finer maps"
    )
    cam_scales: list[Positive] = Field([1.0], min_length=1, description="multiplied by the scale, CAMs summed")
    alpha: Positive = 8.0
    normalise: Literal["softmax", "sum"] = "softmax"
    crf: NamedCRF = CRF_PARAMS["cam_label"]
    vote_on: list[str] | None = Field(None, description="names of the seeds that vote, in order; default: all")
    threshold: int | None = Field(None, ge=1, description="t: clean where votes >= t; default: all must agree")
    threads: int = Field(1, ge=1, description="intra-op threads of a CAM worker: changes float sums, hence a result")
    keep_maps: bool = Field(True, description="keep the seed shards after the vote", json_schema_extra=NEUTRAL)


class Mask2FormerSection(Section):
    """Sizes and set loss of Mask2Former; the defaults are those published for Swin-L (REFERENCE 4.7)."""

    queries: int = Field(100, ge=1)
    hidden: int = Field(256, ge=8, description="width of pixel decoder, transformer decoder and mask embedding")
    feedforward: int = Field(2048, ge=8, description="hidden width of the transformer decoder's MLPs; encoder: half")
    heads: int = Field(8, ge=1)
    encoder_layers: int = Field(6, ge=1)
    decoder_layers: int = Field(9, ge=1)
    set_loss: float = Field(1.0, ge=0.0, description="weight of its own set loss on clean pixels; 0: hybrid loss only")
    points: int = Field(12544, ge=1, description="clean pixels sampled per mask, for matching and for the set loss")
    oversample: float = Field(3.0, ge=1.0, description="candidates per point of the set loss")
    importance: float = Field(0.75, ge=0.0, le=1.0, description="share of the points that are the most uncertain ones")
    class_weight: float = Field(2.0, ge=0.0)
    mask_weight: float = Field(5.0, ge=0.0)
    dice_weight: float = Field(5.0, ge=0.0)
    no_object: float = Field(0.1, gt=0.0, description="weight of the class no-object")

    @model_validator(mode="after")
    def _widths(self) -> Mask2FormerSection:
        """Raises ValueError for a width that groups of 32 channels, attention heads or half of it do not divide."""
        if self.hidden % 32 or self.hidden % self.heads or self.feedforward % 2:
            raise ValueError(
                f"`hidden` is {self.hidden}, `heads` {self.heads}, `feedforward` {self.feedforward}; allowed: a hidden "
                "that is a multiple of 32 and of heads, an even feedforward"
            )
        return self


class TrainSection(Section):
    """The segmenter and its loss (METHOD sections 4 and 5)."""

    model: Literal["deeplab", "segformer", "mask2former"] = "deeplab"
    lineage: Literal["plain", "classic", "codebase"] = Field(
        "plain",
        description="DeepLab as two public codebases have it: classic (deeplab-pytorch: summed ASPP, resnet101_caffe, "
        "4-term loss) or codebase (semantic-segmentation-codebase: BatchNorm heads, image pooling, resnet101s)",
        json_schema_extra=LATER,
    )
    head: Literal["largefov", "aspp"] = Field("aspp", description="deeplab: V1's or V2's head")
    head_channels: int | None = Field(
        None,
        ge=1,
        description="width of LargeFOV's hidden layers (default 1024; codebase: 512), of the codebase lineage's ASPP "
        "branches (256) and of SegFormer's decoder (256 for mit_b0 and mit_b1, else 768)",
    )
    head_dropout: Probability = Field(0.5, description="as published: 0 in classic, 0.1 in SegFormer, else 0.5")
    mask2former: Mask2FormerSection = Field(Mask2FormerSection(), json_schema_extra=LATER)
    backbone: BackboneSection = BackboneSection()
    weights: str | None = Field(
        None,
        description="file or folder with a whole network's weights to start from (docs/weights.md); classification "
        "layers of other classes are left out",
        json_schema_extra=NEUTRAL,  # a path; its sha256 is what the run's parameters hold
    )
    labels: str = Field(
        "vote", description="vote | seed:NAME (one seed, all clean) | truth (fully supervised upper bound)"
    )
    loss: Literal["hybrid", "positive", "cross_entropy"] = Field(
        "hybrid", description="hybrid: Eq. 10; positive: Eq. 8 on every labelled pixel; cross_entropy: Eq. 3 likewise"
    )
    temperature: Positive | None = Field(1.0, description="tau of the prediction constraint; null switches it off")
    complement: Literal["uniform", "assigned"] = "uniform"
    vote_threshold: int | None = Field(None, ge=1, description="another t than the pseudo-label shards were made with")
    holdout: Probability = Field(0.2, description="share of the train ids kept out of training, for BEST and tuning")
    augment: AugmentSection = AugmentSection()
    optim: OptimSection = OptimSection(duration="20000 steps", global_batch=10, lr=0.001)
    evaluate_every: Duration | None = Field(None, description="held-out mIoU at these steps, and BEST by it")

    @model_validator(mode="after")
    def _labels(self) -> TrainSection:
        if not (self.labels in ("vote", "truth") or self.labels.startswith("seed:")):
            raise ValueError(f"`labels` is {self.labels!r}; allowed: vote, truth or seed:NAME")
        return self

    @model_validator(mode="after")
    def _network(self) -> TrainSection:
        """Raises ValueError where model, lineage and backbone do not go together."""
        name = self.backbone.name
        wanted = {
            "segformer": [f"mit_b{number}" for number in range(6)],
            "mask2former": ["swin_tiny", "swin_small", "swin_base", "swin_large"],
        }.get(self.model)
        if wanted and name not in wanted:
            raise ValueError(f"`backbone.name` is {name!r}; allowed for model {self.model}: {', '.join(wanted)}")
        if self.model == "deeplab" and name.startswith(("mit_", "resnet38")):
            raise ValueError(f"`backbone.name` is {name!r}; allowed for model deeplab: a convolutional network")
        if self.head_channels is not None and self.model == "mask2former":
            raise ValueError("`head_channels` is set; allowed for model mask2former: `mask2former.hidden`")
        if self.lineage != "plain" and self.model != "deeplab":
            raise ValueError(f"`lineage` is {self.lineage!r}; allowed for model {self.model}: plain")
        if (self.lineage == "classic") != (name == "resnet101_caffe"):
            raise ValueError(
                f"`lineage` is {self.lineage!r}, `backbone.name` {name!r}; allowed: classic with resnet101_caffe, "
                "another lineage with another backbone"
            )
        if self.lineage == "classic" and self.head != "aspp":
            raise ValueError("`head` is 'largefov'; allowed for lineage classic: aspp")
        return self


class EvaluateSection(Section):
    scales: list[Positive] = Field([0.75, 1.0, 1.25], min_length=1, description="of multi-scale + flip")
    mode: Literal["whole", "slide"] = Field(
        "whole",
        description="slide: a scaled image larger than `crop_size` goes through the network window by window, and "
        "their logits are averaged where they overlap; whole: in one piece",
        json_schema_extra=LATER,
    )
    crop_size: int | None = Field(
        None,
        ge=16,
        description="slide: side of the square window, in pixels of the scaled image",
        json_schema_extra=LATER,
    )
    stride: int | None = Field(
        None, ge=1, description="slide: from one window to the next, at most `crop_size`", json_schema_extra=LATER
    )
    crf: NamedCRF | None = Field(
        CRF_PARAMS["deeplab_v2"], description="a name (docs/inference.md), a mapping of CRF parameters, or null: no CRF"
    )
    probabilities: Literal["softmax", "constrained"] = "softmax"
    average: Literal["probabilities", "logits"] = "probabilities"
    checkpoint: Literal["LAST", "BEST"] = "LAST"

    @model_validator(mode="after")
    def _windows(self) -> EvaluateSection:
        sizes = {"crop_size": self.crop_size, "stride": self.stride}
        for name, value in sizes.items():
            if self.mode == "slide" and value is None:
                raise ValueError(f"`{name}` is missing; allowed for mode slide: a number of pixels, or mode: whole")
            if self.mode == "whole" and value is not None:
                raise ValueError(f"`{name}` is {value}, but `mode` is 'whole'; allowed: null, or mode: slide")
        if self.crop_size is not None and self.stride is not None and self.stride > self.crop_size:
            raise ValueError(
                f"`stride` is {self.stride}, beyond `crop_size` {self.crop_size}: pixels between windows would be seen "
                f"by none; allowed: 1..{self.crop_size}"
            )
        return self


class ReportSection(Section):
    images: int = Field(12, ge=0, description="photographs shown")


class Config(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    seed: int = Field(0, ge=0)
    paths: PathsSection = PathsSection()
    hardware: HardwareSection = HardwareSection()
    data: DataSection
    prepare: PrepareSection = PrepareSection()
    classify: ClassifySection = ClassifySection()
    seeds: SeedsSection = SeedsSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    report: ReportSection = ReportSection()

    @property
    def run_dir(self) -> Path:
        return Path(self.paths.run or f"runs/{self.name}")

    def classifier_dir(self, dropout: float) -> Path:
        """Where the classifier of dropout probability `dropout` lies."""
        folder = Path(self.paths.classifiers) if self.paths.classifiers else self.run_dir / "classify"
        return folder / f"{dropout:.2f}"

    @property
    def shard_dir(self) -> Folder:
        scratch = self.hardware.scratch and Scratch(Path(self.hardware.scratch), int(self.hardware.scratch_gb * 1e9))
        return folder_at(self.paths.shards or f"shards/{self.name}", scratch or None)

    def seed_names(self) -> list[str]:
        """All candidate seeds in order, p outermost: `0.05-1.00`, `0.05-1.20`, ..."""
        return [f"{p:.2f}-{scale:.2f}" for p in self.classify.dropouts for scale in self.seeds.scales]

    def voting_seeds(self) -> list[str]:
        return self.seeds.vote_on or self.seed_names()

    def vote_threshold(self) -> int:
        """t of the pseudo-label shards."""
        return self.seeds.threshold or len(self.voting_seeds())

    @model_validator(mode="after")
    def _sections_agree(self) -> Config:
        """Raises ValueError with a line `key: problem` for everything in which two sections do not fit."""
        faults = [*self._seed_faults(), *self._vote_faults(), *self._later_faults()]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _seed_faults(self) -> list[str]:
        faults = []
        for key, values in (("classify.dropouts", self.classify.dropouts), ("seeds.scales", self.seeds.scales)):
            if len({f"{value:.2f}" for value in values}) != len(values):
                faults.append(f"{key}: found {values}, names of seeds collide; allowed: values differing in 2 decimals")
        stride = self.seeds.output_stride
        backbone = self.classify.backbone.name
        if backbone in ("tiny", *FROM_FILE) and stride not in (None, 8):
            faults.append(f"seeds.output_stride: found {stride}; allowed for backbone `{backbone}`: null or 8")
        return faults

    def _vote_faults(self) -> list[str]:
        names, voters = self.seed_names(), self.voting_seeds()
        faults = []
        for name in dict.fromkeys(self.seeds.vote_on or []):
            if name not in names:
                faults.append(f"seeds.vote_on: found {name!r}; allowed: {', '.join(names)}")
            elif voters.count(name) > 1:
                faults.append(f"seeds.vote_on: found {name!r} {voters.count(name)} times; allowed: each once")
        for key, t in (("seeds.threshold", self.seeds.threshold), ("train.vote_threshold", self.train.vote_threshold)):
            if t is not None and t > len(voters):
                faults.append(f"{key}: found {t}, but only {len(voters)} seeds vote; allowed: 1..{len(voters)}")
        return faults

    def _later_faults(self) -> list[str]:
        """What a stage would find only after those before it have run."""
        train, names, faults = self.train, self.seed_names(), []
        if train.labels.startswith("seed:"):
            if train.labels[5:] not in names:
                faults.append(f"train.labels: found seed {train.labels[5:]!r}; allowed: {', '.join(names)}")
            if not self.seeds.keep_maps:
                faults.append(
                    f"seeds.keep_maps: found False, but train.labels is {train.labels!r}, read from the seed shards; "
                    "allowed: true, or train.labels: vote"
                )
        if self.evaluate.checkpoint == "BEST" and (train.evaluate_every is None or not train.holdout):
            faults.append(
                f"evaluate.checkpoint: found 'BEST', but train.evaluate_every is {train.evaluate_every!r} and "
                f"train.holdout is {train.holdout}, so that there will be none; allowed: LAST, or set both"
            )
        return faults
