"""PASCAL VOC devkit folders: JPEGImages, ImageSets/Segmentation, Annotations or cls_labels.csv, SegmentationClass.

`list_voc` is called through `datasets.DATASETS`. Image-level labels come from the XML annotations, else from
`cls_labels.csv`; masks become labels only where `data.labels_from: masks` says so. The split `train_aug` adds the
images of SBD (`data/sources/sbd.py`), of which a devkit has the photographs and annotations, but not the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from distwsss.config.data import DataSection
from distwsss.data.sources.cls_labels import read_cls_labels
from distwsss.data.sources.listing import (
    Item,
    Listing,
    class_names,
    data_root,
    parse_labels,
    read_mask,
)
from distwsss.data.sources.lists import read_ids, voc_id
from distwsss.data.sources.main_lists import read_main
from distwsss.data.sources.pictures import Pictures
from distwsss.data.sources.renumbered import mask_source
from distwsss.data.sources.sbd import TRAIN_AUG, MatMask, list_files, sbd_folder, train_aug_names
from distwsss.data.sources.tags_csv import Tags, read_tags
from distwsss.data.sources.voc_classes import VOC_CLASSES
from distwsss.data.sources.voc_xml import object_names
from distwsss.errors import DataError
from distwsss.runtime.progress import log

LabelReader = Callable[[str], tuple[list[int] | None, list[str]]]  # id -> labels (None: it has none), problems
MaskFinder = Callable[[str], Path | MatMask | None]


def list_voc(data: DataSection, split: str) -> Listing:
    """The images of ImageSets/Segmentation/SPLIT.txt; no items where that file does not exist. With `data.sbd`, or
    without such a file, `train_aug` is derived from the lists of VOC and SBD.

    Raises DataError when `data.root` is no devkit folder, or holds no image-level labels for the train split, or when
    `train_aug` cannot be derived.
    """
    root = data_root(data)
    if not (root / "JPEGImages").is_dir():
        raise DataError(f"{root}: found no folder JPEGImages; allowed: a VOC devkit folder such as VOCdevkit/VOC2012")
    classes = class_names(data, root) or VOC_CLASSES
    where, names, find_mask = _split(data, root, split)
    labels_from = _labels_from(data, root, required=split == data.train_split)
    read_labels = _label_reader(labels_from, root, classes, data, say=split == data.train_split)
    items = [_item(root, name, read_labels, find_mask) for name in names]
    _find_near(items, root / "JPEGImages")
    return Listing(classes, items, labels_from, where)


def _split(data: DataSection, root: Path, split: str) -> tuple[str, list[str], MaskFinder]:
    """What lists the split, its ids, and where their masks are."""
    lists = root / "ImageSets" / "Segmentation"
    file = lists / f"{split}.txt"
    if split == TRAIN_AUG and (data.sbd is not None or not file.is_file()):
        sbd = sbd_folder(data)
        files = list_files(lists, sbd)
        return ", ".join(map(str, files.values())), train_aug_names(files), lambda name: _find_mask(root, name, sbd)
    return str(file), _read_ids(file, root) if file.is_file() else [], lambda name: _find_mask(root, name, None)


def _read_ids(file: Path, root: Path) -> list[str]:
    return [voc_id(name) for name in read_ids(file, lambda name: bool(_find(root, name)))]


def _find(root: Path, name: str) -> list[str]:
    """The id that `name` means, if it has a photograph."""
    found = voc_id(name)
    return [found] if (root / "JPEGImages" / f"{found}.jpg").is_file() else []


def _find_mask(root: Path, name: str, sbd: Path | None) -> Path | MatMask | None:
    """VOC's own mask where there is one (it marks outlines as ignored), else SBD's."""
    own = root / "SegmentationClass" / f"{name}.png"
    if own.is_file():
        return own
    other = sbd / "cls" / f"{name}.mat" if sbd is not None else None
    return MatMask(other) if other is not None and other.is_file() else None


def _item(root: Path, name: str, read_labels: LabelReader, find_mask: MaskFinder) -> Item:
    image = root / "JPEGImages" / f"{name}.jpg"
    if name.startswith("/") or ".." in name.split("/"):
        return Item(name, image, None, None, ["the id leads out of the data folder; allowed: ids below JPEGImages"])
    labels, problems = read_labels(name)
    return Item(name, image, labels, find_mask(name), problems)


def _find_near(items: list[Item], folder: Path) -> None:
    """The photographs of ids that their file spells otherwise (.JPG, .png, Unicode form); for others what is near."""
    lost = [item for item in items if not item.problems and isinstance(item.image, Path) and not item.image.is_file()]
    if not lost:
        return
    pictures = Pictures(folder)
    for item in lost:
        found = pictures.find(item.name)
        if len(found) == 1:
            item.image = folder / found[0]
        else:
            item.problems.append(pictures.missing(item.name))
    near = [item for item in lost if not item.problems]
    if near:
        some = ", ".join(f"{item.name} is {Path(str(item.image)).name}" for item in near[:3])
        some += ", ..." * (len(near) > 3)
        log.info(f"voc: {len(near)} photographs are not called ID.jpg and are taken as meant ({some})")


def _labels_from(data: DataSection, root: Path, required: bool) -> str:
    sources = {
        "xml": "Annotations/**/*.xml",
        "csv": "cls_labels.csv",
        "npy": "cls_labels.npy",
        "lists": "ImageSets/Main/*_*.txt",
        "masks": "SegmentationClass",
    }
    wanted = ["xml", "csv", "npy", "lists"] if data.labels_from == "auto" else [data.labels_from]
    for name in wanted:
        if any(root.glob(sources[name])):  # an empty Annotations/ does not hide cls_labels.csv
            return name
    if required:
        raise DataError(
            f"{root}: found no image-level labels (`data.labels_from: {data.labels_from}`). Allowed: "
            "Annotations/ID.xml (xml), cls_labels.csv with the header `id,labels` (csv), cls_labels.npy (npy), "
            "ImageSets/Main/CLASS_SPLIT.txt (lists), or `data.labels_from: masks`, "
            "which derives the labels from SegmentationClass/ID.png and says so in every report"
        )
    return "none"


def _label_reader(labels_from: str, root: Path, classes: list[str], data: DataSection, say: bool) -> LabelReader:
    if labels_from == "xml":
        return lambda name: _xml_labels(root / "Annotations" / f"{name}.xml", classes)
    if labels_from == "masks":
        return lambda name: _mask_labels(root / "SegmentationClass" / f"{name}.png", classes, data)
    if labels_from == "csv":
        return _table_reader(read_tags(root / "cls_labels.csv", lambda name: _find(root, name), classes), classes, say)
    if labels_from == "npy":
        path = root / "cls_labels.npy"
        return _table_reader(read_cls_labels(path, lambda name: _find(root, name), classes), classes, say)
    if labels_from == "lists":
        return _table_reader(read_main(root, classes), classes, say)
    return lambda name: (None, [])


def _xml_labels(path: Path, classes: list[str]) -> tuple[list[int] | None, list[str]]:
    """Classes of all objects, difficult ones included; the `name` of an object's parts (head, hand) is not a class."""
    if not path.is_file():
        return None, []
    try:
        return parse_labels(object_names(path.read_bytes()), classes)
    except DataError as error:
        return None, [f"Annotations/{path.name}: {error}"]
    except OSError as error:
        return None, [f"Annotations/{path.name}: cannot be read ({error.strerror})"]


def _mask_labels(path: Path, classes: list[str], data: DataSection) -> tuple[list[int] | None, list[str]]:
    try:
        values = np.unique(read_mask(mask_source(path, data), str(path), data.max_pixels))
    except (DataError, OSError):  # `prepare` reports the mask itself
        return None, []
    return [int(value) for value in values if 1 <= value < len(classes)], []


def _table_reader(tags: Tags, classes: list[str], say: bool) -> LabelReader:
    table: dict[str, tuple[list[int] | None, list[str]]] = {}
    for row in tags.rows:
        name = voc_id(row.name)
        labels, problems = parse_labels(row.tags, classes)
        doubled = ["stands more than once in the image-level labels"] if name in table else []
        table[name] = (labels, [*row.problems, *problems, *doubled])
    if say:
        log.info(f"tags: {tags.said}")
    return lambda name: table.get(name, (None, []))
