"""The data set, and how it is packed into image shards. Read by `config.schema`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from distwsss.config.section import NEUTRAL, Section


class ShapesSection(Section):
    """The generated data set."""

    train: int = Field(96, ge=1, description="images of the train split")
    val: int = Field(48, ge=0, description="images of the val split")
    size: int = Field(96, ge=32, description="side in pixels")
    seed: int = Field(0, description="of the drawing; an image depends on it, its split, number and size only")


class DataSection(Section):
    """The data set (docs/data.md)."""

    dataset: Literal["voc", "coco", "folder", "shapes"] = Field(
        description="voc: PASCAL VOC 2012; coco: COCO 2014; folder: your own pictures; shapes: generated"
    )
    root: str | None = Field(None, description="data folder (voc, coco, folder)", json_schema_extra=NEUTRAL)
    sbd: str | None = Field(
        None, description="voc: folder of the SBD release, for the split train_aug", json_schema_extra=NEUTRAL
    )
    crowd: Literal["ignore", "paint"] = Field(
        "ignore", description="coco: pixels of crowd annotations in masks: ignored, or of their class"
    )
    train_split: str = Field(
        "train", description="list of the images to train on; voc: train_aug adds SBD's; coco: train is train2014"
    )
    val_split: str = Field("val", description="list of the images to score; without such a list `run` skips `evaluate`")
    labels_from: Literal["auto", "xml", "csv", "npy", "lists", "masks"] = Field(
        "auto",
        description="source of image-level labels; voc: auto = Annotations/*.xml, else cls_labels.csv or .npy, else "
        "the lists ImageSets/Main/CLASS_SPLIT.txt; masks only when named here",
    )
    classes: list[str] | None = Field(
        None, description="foreground class names in order, background is added; null: the data set's own"
    )
    images: str = Field("images", description="folder: where the pictures lie under root")
    tags: str = Field("tags.csv", description="folder: the CSV of image-level labels under root")
    masks: str = Field("masks", description="folder: where masks lie under root, if any")
    allow_empty: bool = Field(False, description="an image without labels is background only, not an error")
    max_pixels: int = Field(40_000_000, ge=1, description="images of more pixels are refused before decoding")
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
    """How images are packed into shards (shards/README.md)."""

    shard_size: int = Field(16, ge=1, description="images per shard, and per piece of work of `seeds`")
