"""Augmentation, optimizer and schedule: what `classify` and `train` are alike in. Read by `config.stages`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from distwsss.config.section import LATER, NEUTRAL, Duration, Length, Positive, Probability, Section


def _jitter(strengths: list[float]) -> list[float]:
    if min(strengths) < 0 or strengths[3] > 0.5:  # a hue is an angle: torchvision takes half a turn each way
        raise ValueError("allowed: [brightness, contrast, saturation, hue], each 0 or more, hue at most 0.5")
    return strengths


Jitter = Annotated[list[float], Field(min_length=4, max_length=4), AfterValidator(_jitter)]


class AugmentSection(Section):
    """Random scale, flip, colour jitter and crop. `resize` is the range drawn from: of factors of the image's size, or
    of its longest side in pixels, as `resize_by` says."""

    crop: int = Field(448, ge=16)
    resize: list[float] = Field([0.5, 1.5], min_length=2, max_length=2)
    resize_by: Literal["factor", "longest_side"] = "factor"
    flip: bool = True
    color_jitter: Jitter = Field([0.3, 0.3, 0.3, 0.1])

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
