"""The data sets by name: `DATASETS[config.data.dataset](config.data, split)` lists the images of a split.

Called by `data/prepare.py`. A new data set is a function with this signature and a line here.
"""

from __future__ import annotations

from collections.abc import Callable

from distwsss.config.data import DataSection
from distwsss.data.sources.coco import list_coco
from distwsss.data.sources.folder import list_folder
from distwsss.data.sources.listing import Item, Listing
from distwsss.data.sources.renumbered import renumbered
from distwsss.data.sources.shapes import list_shapes
from distwsss.data.sources.voc import list_voc

__all__ = ["DATASETS", "Item", "Listing"]

DATASETS: dict[str, Callable[[DataSection, str], Listing]] = {
    "voc": lambda data, split: renumbered(list_voc(data, split), data),
    "coco": list_coco,
    "folder": lambda data, split: renumbered(list_folder(data, split), data),
    "shapes": list_shapes,
}
