"""The data set, and how it is packed into image shards. Read by `config.schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from distwsss.config.section import LATER, NEUTRAL, Allowed, Section

MASK_VALUES = Allowed("a mapping of values 0..255 to class ids, or 255")


def _whole_keys(found: Any) -> Any:
    """`--set`, and a configuration that was written down, have them as text."""
    if not isinstance(found, dict):
        return found
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: value for key, value in found.items()}


def _bytes(found: dict[int, int]) -> dict[int, int]:
    if not all(0 <= number <= 255 for pair in found.items() for number in pair):
        raise ValueError(f"allowed: {MASK_VALUES.text}")
    return found


MaskValues = Annotated[dict[int, int], BeforeValidator(_whole_keys), AfterValidator(_bytes), MASK_VALUES]


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
    tags: str = Field(
        "tags.csv",
        description="folder: the file of image-level labels under root; without tags.csv, others (docs/data.md)",
    )
    masks: str = Field("masks", description="folder: where masks lie under root, if any")
    mask_values: MaskValues | None = Field(
        None,
        description="voc, folder: what values in mask files mean, where they are not class ids: {255: 1} if 255 is "
        "class 1; values not named keep their meaning, 255 is ignored",
        json_schema_extra=LATER,
    )
    contradicting_masks: Literal["refuse", "warn"] = Field(
        "refuse",
        description="masks that contradict the tags of nearly all photographs: an error, or a warning only",
        json_schema_extra=LATER,
    )
    allow_empty: bool = Field(False, description="an image without labels is background only, not an error")
    max_pixels: int = Field(
        120_000_000, ge=1, description="images of more pixels are refused before decoding (phones have up to 108 M)"
    )
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
    longest_side: int | None = Field(
        512,
        ge=32,
        description="larger photographs are shrunk to this many pixels on their longest side, which the networks' "
        "crops and the published CRF parameters are made for (VOC's have 500); null: as they are",
    )
