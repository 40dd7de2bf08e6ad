"""Augmentation, optimizer and schedule: what `classify` and `train` are alike in. Read by `config.stages`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from distwsss.config.section import LATER, NEUTRAL, Allowed, Duration, Length, Positive, Probability, Section

STRENGTHS = Allowed("[brightness, contrast, saturation, hue], each 0 or more, hue at most 0.5")


def _jitter(strengths: list[float]) -> list[float]:
    if min(strengths) < 0 or strengths[3] > 0.5:  # a hue is an angle: torchvision takes half a turn each way
        raise ValueError(f"allowed: {STRENGTHS.text}")
    return strengths


Jitter = Annotated[list[float], Field(min_length=4, max_length=4), AfterValidator(_jitter), STRENGTHS]


class AugmentSection(Section):
    """Random scale, flip, colour jitter and crop, in psa's order."""

    crop: int = Field(
        448, ge=16, description="side in pixels of the square cut out, padded with the mean colour and ignored labels"
    )
    resize: list[float] = Field(
        [0.5, 1.5], min_length=2, max_length=2, description="[low, high] that the scale is drawn from, see `resize_by`"
    )
    resize_by: Literal["factor", "longest_side"] = Field(
        "factor", description="`resize` holds factors of the image's size, or pixels of its longest side"
    )
    flip: bool = Field(True, description="mirror half of the images, at random")
    color_jitter: Jitter = Field([0.3, 0.3, 0.3, 0.1], description="as torchvision's ColorJitter; 0: unchanged")

    @model_validator(mode="after")
    def _range(self) -> AugmentSection:
        if not 0 < self.resize[0] <= self.resize[1]:
            raise ValueError(f"`resize` is {self.resize}; allowed: [low, high] with 0 < low <= high")
        return self


class OptimSection(Section):
    """Optimizer and schedule; the learning rate is a function of the step."""

    duration: Length = Field("20 epochs", description="length of the training; an epoch is every image once")
    global_batch: int = Field(8, ge=1, description="images of one step, over all ranks and micro-batches")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="torch's, in float32")
    lr: Positive = Field(0.01, description="base learning rate: what the schedule and the multipliers multiply")
    momentum: Probability = Field(0.9, description="of sgd")
    compat: Literal["none", "psa_momentum"] = Field(
        "none",
        description="psa_momentum: SGD as psa, SEAM and EPS ran it, whose optimizer takes the weight decay for its "
        "momentum too (SEAM issue 21); `momentum` is not used then",
        json_schema_extra=LATER,
    )
    weight_decay: float = Field(5e-4, ge=0.0, description="of the weights; see `decay_bias`, `decay_norm`")
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
    schedule: Literal["poly", "cosine", "constant"] = Field(
        "poly", description="poly: (1 - step / total) ** power, as in DeepLab; cosine: half a period down to 0"
    )
    power: Positive = Field(0.9, description="of poly")
    warmup: Duration = Field(
        "0 steps",
        description="linear, in place of the schedule's first steps, as mmsegmentation; 10%: of `duration`",
    )
    clip_grad: float | None = Field(
        None, gt=0.0, description="largest L2 norm of the whole gradient; null: no clipping"
    )
    growth: float | None = Field(
        10.0,
        gt=1.0,
        description="the run ends when its smoothed loss, after 50 steps, is so many times its best and still rises; "
        "null: it goes on",
        json_schema_extra=NEUTRAL,
    )
    save_every: Duration = Field(
        "25%", description="from one checkpoint to the next; 25%: of `duration`", json_schema_extra=NEUTRAL
    )
    keep_last: int = Field(
        2, ge=1, description="checkpoints kept, the newest ones; BEST stays too", json_schema_extra=NEUTRAL
    )
    keep_optimizer: bool = Field(
        False, description="keep the optimizer's states of a finished run", json_schema_extra=NEUTRAL
    )
    log_every: int = Field(
        10, ge=1, description="steps from one line of metrics.jsonl to the next", json_schema_extra=NEUTRAL
    )

    @model_validator(mode="after")
    def _compat(self) -> OptimSection:
        if self.compat != "none" and (self.optimizer != "sgd" or self.weight_decay >= 1):
            raise ValueError(
                f"`compat` is {self.compat!r}, but `optimizer` is {self.optimizer!r} and `weight_decay` "
                f"{self.weight_decay}; allowed: sgd with a weight decay below 1, or compat: none"
            )
        return self
