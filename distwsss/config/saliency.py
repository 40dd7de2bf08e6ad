"""Saliency maps: where they come from, and EPS's objective for the classifier. Read by `config.schema` and
`config.stages`.

The maps come from networks that were trained with masks, so that what used them says so (`Config.cue`).
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from distwsss.config.section import NEUTRAL, Allowed, Positive, Section

NETWORKS = ("u2netp",)  # known by name; where their files are to be had: `models.weights.saliency`
MODELS = Allowed(f"{', '.join(NETWORKS)}, a file NAME.onnx, or null")


class SaliencySection(Section):
    """Maps of what stands out in each train photograph, by a network or from a folder (docs/saliency.md)."""

    model: Annotated[str | None, MODELS] = Field(
        None,
        description="the network that makes the maps: one known by name, fetched once, or an ONNX file of your own",
        json_schema_extra=NEUTRAL,  # a name or a path; the file's sha256 is what the maps' parameters hold
    )
    folder: str | None = Field(
        None,
        description="instead of a network: a folder with a grey map ID.png of every train photograph, white where "
        "something stands out",
        json_schema_extra=NEUTRAL,
    )
    normalise: Literal["none", "max"] = Field(
        "none", description="a folder's maps: as they are, or each over its own maximum; a network's have both ends"
    )

    @property
    def name(self) -> str | None:
        """What the maps are called: the network, its file's stem, or `folder`; None where none are asked for."""
        if self.folder is not None:
            return "folder"
        return self.model and re.sub(r"[^A-Za-z0-9_-]+", "_", PurePath(self.model).name.removesuffix(".onnx"))

    @model_validator(mode="after")
    def _source(self) -> SaliencySection:
        if self.model is not None and self.folder is not None:
            raise ValueError(f"`model` is {self.model!r} and `folder` {self.folder!r}; allowed: one of them")
        if self.model is not None and self.model not in NETWORKS and not self.model.endswith(".onnx"):
            raise ValueError(f"`model` is {self.model!r}; allowed: {MODELS.text}")
        return self


class SaliencyLossSection(Section):
    """EPS's objective beside the multi-label loss: the classifier's foreground and background against saliency."""

    overlap: float = Field(
        0.4,
        ge=0.0,
        le=1.0,
        description="tau: share of a tagged class's map that must lie on salient pixels for it to count as foreground; "
        "others are grouped with background",
    )
    blend: float = Field(
        0.5, ge=0.0, le=1.0, description="lambda: share of the foreground map, the rest being 1 - the background map"
    )
    weight: Positive = Field(1.0, description="of the objective, beside the multi-label loss")
