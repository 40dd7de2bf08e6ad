"""The stages' own sections: `classify`, `seeds`, `train`, `evaluate`, `report`. Read by `config.schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from distwsss.config.crf import CRF_PARAMS, NamedCRF
from distwsss.config.networks import BackboneSection, Mask2FormerSection
from distwsss.config.saliency import SaliencyLossSection
from distwsss.config.section import LATER, NEUTRAL, Allowed, Duration, Positive, Probability, Section
from distwsss.config.training import AugmentSection, OptimSection

# what `classify` and `train` learn by where nothing else is said: some dozen photographs on a CPU, and more
RECIPE: dict[str, Any] = {"optimizer": "adamw", "lr": 3e-4, "bias_multiplier": 1.0, "weight_decay": 0.01}
# at the full rate the backbone learns some dozen photographs by heart in 20 steps, and its CAMs spread over what stands
# around the objects (benchmarks/README.md, Own pictures)
CLASSIFIER: dict[str, Any] = {**RECIPE, "backbone_multiplier": 0.1}
SALIENCY_LOSS = Allowed("null, {} or a mapping of overlap (0.4), blend (0.5) and weight (1.0)")


class ClassifySection(Section):
    """One classifier per dropout probability p."""

    dropouts: list[Probability] = Field(
        [0.05, 0.10, 0.20, 0.30],
        min_length=1,
        description="p of each classifier; whole channels are dropped (Dropout2d)",
    )
    dropout_layer: Literal["dropout7", "b7"] = Field(
        "dropout7",
        description="the layer that p applies to: before the classification layer (psa), or, as in EPS, which has none "
        "there, the two inside block b7 of resnet38",
        json_schema_extra=LATER,
    )
    streams: Literal["own", "shared"] = Field(
        "own",
        description="random streams of sample order, augmentation and dropout: each p's own, so that seeds err "
        "differently, or shared by all (the channels dropped at a low p are then dropped at every higher one)",
    )
    holdout: Probability = Field(
        0.1,
        description="share of the train ids kept out of the classifiers' training, for their average precision; from "
        "100 photographs on (they get seeds all the same)",
    )
    saliency: Annotated[SaliencyLossSection | None, SALIENCY_LOSS] = Field(
        None,
        description="EPS's objective: a background channel, and the maps learn saliency too; null: tags only",
        json_schema_extra=LATER,
    )
    backbone: BackboneSection = BackboneSection(name="lite_full", output_stride=32)
    augment: AugmentSection = AugmentSection(crop=240, resize=[224, 400], resize_by="longest_side")
    optim: OptimSection = OptimSection(duration="150 steps", global_batch=16, **CLASSIFIER)

    @model_validator(mode="after")
    def _layer(self) -> ClassifySection:
        if self.dropout_layer == "b7" and self.backbone.name != "resnet38":
            raise ValueError(
                f"`dropout_layer` is 'b7', but `backbone.name` is {self.backbone.name!r}; allowed: dropout7, or "
                "backbone resnet38"
            )
        return self


# the label maps of all (p, scale) together, which a seed shard holds after the seeds
MEANS = ("mean_cam", "mean_marginals")
SALIENCY = "saliency"  # the voter of `seeds.saliency_voter`, the last map
SELECTED = ["selected"]
Voters = Annotated[
    list[str], BeforeValidator(lambda value: SELECTED if value == "selected" else value), Allowed("list of texts")
]


class SeedsSection(Section):
    """CAM, CRF, vote."""

    scales: list[Positive] = Field(
        [1.00, 1.20], min_length=1, description="of the image; a seed is named by p and scale, as 0.05-1.20"
    )
    base_size: int | None = Field(
        512, ge=32, description="longest side at scale 1.00, in pixels; null: the image's own, as in the paper"
    )
    output_stride: Literal[8, 16, 32] | None = Field(
        None,
        description="of the CAMs: the same weights, dilated (a trous), make finer maps; null: the classifier's own, 16 "
        "where a convolutional one has 32",
    )
    cam_scales: list[Positive] = Field(
        [1.0], min_length=1, description="each multiplied by the scale, their CAMs summed"
    )
    dropout_passes: int = Field(
        0,
        ge=0,
        description="CAMs of so many passes with the classifier's dropout active, its channels drawn by photograph and "
        "p; 0: one pass without dropout",
        json_schema_extra=LATER,
    )
    dropout_reduce: Literal["mean", "max"] = Field(
        "mean", description="over `dropout_passes`, pixel by pixel", json_schema_extra=LATER
    )
    alpha: Positive = Field(
        4.0, description="background's map is (1 - the highest CAM) ** alpha: the higher, the more becomes foreground"
    )
    normalise: Literal["softmax", "sum"] = Field(
        "sum", description="maps to the CRF's distribution: each over their sum (psa, SEAM, EPS), or their softmax"
    )
    crf: NamedCRF = Field(CRF_PARAMS["cam_label"], description="from CAMs to seeds (docs/inference.md)")
    saliency_unary: bool = Field(
        False,
        description="background and foreground shares of the CRF's distribution are the saliency map's, a little "
        "helped by the highest CAM (docs/seeds.md); alpha is then not used",
        json_schema_extra=LATER,
    )
    saliency_voter: bool = Field(
        False,
        description="one more seed: the tagged class of the highest CAM where the saliency map is above 0.5, "
        "background elsewhere",
        json_schema_extra=LATER,
    )
    label: Literal["vote", "mean_cam", "mean_marginals"] = Field(
        "mean_cam",
        description="of a pixel: vote: the class of most seeds there (the paper); mean_cam: that of one CRF on the "
        "mean of all normalised CAMs; mean_marginals: of the mean of all CRF marginals. Its votes are the seeds that "
        "agree with it",
    )
    vote_on: Voters | None = Field(
        None,
        description="names of the seeds that vote, in order; null: all; selected: the paper's rule, those that are the "
        "best of at least one class on the train masks (of `data.tuning_ids`, where some are named)",
    )
    threshold: int | None = Field(None, ge=1, description="t: clean where votes >= t; null: all must agree")
    ties: Literal["scores", "first"] = Field(
        "scores",
        description="of classes with equally many votes: scores: the one with the larger sum of its seeds' CRF "
        "marginals; first: that of the first seed",
    )
    threads: int = Field(1, ge=1, description="intra-op threads of a CAM worker: changes float sums, hence a result")
    keep_maps: bool = Field(True, description="keep the seed shards after the vote", json_schema_extra=NEUTRAL)

    def uses_saliency(self) -> bool:
        return self.saliency_unary or self.saliency_voter



class TrainSection(Section):
    """The segmenter and its loss."""

    model: Literal["deeplab", "segformer", "mask2former"] = Field(
        "deeplab", description="deeplab: with a convolutional backbone; segformer: with mit_*; mask2former: with swin_*"
    )
    lineage: Literal["plain", "classic", "codebase"] = Field(
        "plain",
        description="DeepLab as two public codebases have it: classic (deeplab-pytorch: summed ASPP, resnet101_caffe, "
        "4-term loss) or codebase (semantic-segmentation-codebase: BatchNorm heads, image pooling, resnet101s)",
        json_schema_extra=LATER,
    )
    head: Literal["largefov", "aspp"] = Field("aspp", description="deeplab: V1's head (LargeFOV) or V2's (ASPP)")
    head_channels: int | None = Field(
        None,
        ge=1,
        description="width of LargeFOV's hidden layers (default 1024; codebase: 512), of the codebase lineage's ASPP "
        "branches (256) and of SegFormer's decoder (256 for mit_b0 and mit_b1, else 768)",
    )
    head_dropout: Probability = Field(
        0.1, description="p of the head's dropout; published: 0 in classic, 0.1 in SegFormer, else 0.5"
    )
    mask2former: Mask2FormerSection = Field(Mask2FormerSection(), json_schema_extra=LATER)
    backbone: BackboneSection = BackboneSection()
    weights: str | None = Field(
        None,
        description="file or folder with a whole network's weights to start from (docs/weights.md); classification "
        "layers of other classes are left out",
        json_schema_extra=NEUTRAL,  # a path; its sha256 is what the run's parameters hold
    )
    labels: Annotated[str, Allowed("vote, truth or seed:NAME")] = Field(
        "vote",
        description="vote: the pseudo-labels; seed:NAME: one seed, all clean; truth: masks, the fully supervised upper "
        "bound",
    )
    loss: Literal["hybrid", "positive", "cross_entropy"] = Field(
        "hybrid", description="hybrid: Eq. 10; positive: Eq. 8 on every labelled pixel; cross_entropy: Eq. 3 likewise"
    )
    temperature: Positive | None = Field(
        0.1, description="tau of the prediction constraint; 1: the paper as printed; null switches it off"
    )
    temperature_from: Positive | None = Field(
        None,
        description="tau of the first step, above `temperature`, to which it falls in equal ratios; null: it is "
        "`temperature` throughout",
        json_schema_extra=LATER,
    )
    temperature_until: Duration = Field(
        "50%", description="when it has fallen from `temperature_from`; 50%: of `duration`", json_schema_extra=LATER
    )
    noisy: Literal["negative", "ignore"] = Field(
        "negative",
        description="noisy pixels in the hybrid loss; negative: negative learning (Eq. 9); ignore: left out, the loss "
        "is the mean over clean pixels",
        json_schema_extra=LATER,
    )
    complement: Literal["uniform", "assigned", "absent", "assigned_uniform"] = Field(
        "uniform",
        description="class that a noisy pixel is taught not to be (Eq. 9); uniform: drawn from all but its label; "
        "assigned: its label; absent: drawn from the classes without a tag; assigned_uniform: its label and drawn ones",
    )
    complements: int = Field(
        1,
        ge=1,
        description="how many are drawn for a pixel, all different; its loss is the mean over them (and its label, for "
        "assigned_uniform). At most all classes but one",
        json_schema_extra=LATER,
    )
    vote_threshold: int | None = Field(
        None, ge=1, description="another t than the pseudo-label shards were made with; null: that one"
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="of the segmenter's random numbers alone, so that several are trained on the same labels; null: "
        "the configuration's `seed`",
        json_schema_extra=NEUTRAL,  # the one that applies is what the run's parameters hold
    )
    holdout: Probability = Field(
        0.2, description="share of the train ids kept out of training, for BEST and tuning; none without masks"
    )
    augment: AugmentSection = AugmentSection(crop=320, resize=[0.7, 1.6])
    optim: OptimSection = OptimSection(duration="300 steps", global_batch=8, **RECIPE)
    evaluate_every: Duration | None = Field(
        None, description="from one held-out mIoU to the next, and BEST by it; null: none"
    )

    @model_validator(mode="after")
    def _labels(self) -> TrainSection:
        if not (self.labels in ("vote", "truth") or self.labels.startswith("seed:")):
            raise ValueError(f"`labels` is {self.labels!r}; allowed: vote, truth or seed:NAME")
        return self

    @model_validator(mode="after")
    def _temperatures(self) -> TrainSection:
        """Raises ValueError for a temperature that could not fall."""
        first, last = self.temperature_from, self.temperature
        if first is not None and (last is None or first <= last):
            raise ValueError(
                f"`temperature_from` is {first}, `temperature` {'null' if last is None else last}; allowed: a "
                "temperature, and one above it to fall from, or temperature_from: null"
            )
        return self

    @model_validator(mode="after")
    def _complements(self) -> TrainSection:
        if self.complement == "assigned" and self.complements > 1:
            raise ValueError(
                f"`complements` is {self.complements}, but `complement` is 'assigned', which draws none; allowed: 1, "
                "or complement: uniform, absent or assigned_uniform"
            )
        return self

    @property
    def learns_negatively(self) -> bool:
        """Whether batches have complementary labels."""
        return self.loss == "hybrid" and self.noisy == "negative"

    @property
    def complements_each(self) -> int:
        """Complementary labels of a pixel: the drawn ones and, for assigned_uniform, its label."""
        return self.complements + (self.complement == "assigned_uniform")

    def complements_fault(self, classes: int) -> str | None:
        """What is wrong with `complements` for data of so many classes, background included: None if nothing is."""
        if not self.learns_negatively or self.complements < classes:
            return None
        return (
            f"complements: found {self.complements}, but there are {classes} classes, background included, and a pixel "
            f"is one of them; allowed: 1..{classes - 1}"
        )

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
    """How `evaluate`, `predict` and `submit` see an image (docs/inference.md)."""

    scales: list[Positive] = Field(
        [0.75, 1.0, 1.25], min_length=1, description="of multi-scale + flip; single scale is 1.0 without flip"
    )
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
        None,
        ge=1,
        description="slide: pixels from one window to the next, at most `crop_size`",
        json_schema_extra=LATER,
    )
    crf: NamedCRF | None = Field(
        CRF_PARAMS["deeplab_v2"], description="over the segmenter's probabilities; null: no CRF"
    )
    probabilities: Literal["softmax", "constrained"] = Field(
        "softmax", description="of logits z: softmax(z), or softmax(z / (tau ||z||)) with tau = `train.temperature`"
    )
    average: Literal["probabilities", "logits"] = Field(
        "probabilities", description="what is averaged over scales and flips; logits: as semantic-segmentation-codebase"
    )
    checkpoint: Literal["LAST", "BEST"] = Field(
        "LAST", description="the segmenter's last one, or that of the best held-out mIoU (`train.evaluate_every`)"
    )

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
    """The HTML page of a run."""

    images: int = Field(12, ge=0, description="photographs of train shown, and half as many of val")
    ablation: str | None = Field(
        None,
        description="folder of an ablation of this run: its table and six photographs open the page; null: no opening",
        json_schema_extra=NEUTRAL,
    )
