"""Anybody's pictures: a folder of images, their tags, and masks where there are any (for evaluation only).

`list_folder` is called through `datasets.DATASETS`. Under `data.root`:

    IMAGES/          pictures, in sub-folders or not (`data.images`, default `images`; without it, `data.root` itself)
    TAGS             CSV (`data.tags`, default `tags.csv`), or what `tags_found` knows
    MASKS/STEM.png   masks of any of them (`data.masks`, default `masks`), or what `masks` knows
    classes.txt      class names, line 1 = background; without it and `data.classes`, the sorted names found in TAGS
    SPLIT.txt        the images of a split, one a line; else the column `split`; else all images are the train split
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from distwsss.config.data import DataSection
from distwsss.data.sources.alike import check_alike
from distwsss.data.sources.listing import (
    BACKGROUND,
    Item,
    Listing,
    TagRow,
    check_classes,
    class_names,
    data_root,
    parse_labels,
)
from distwsss.data.sources.lists import read_ids
from distwsss.data.sources.masks import Masks
from distwsss.data.sources.pictures import Pictures, loose_line
from distwsss.data.sources.tags_csv import Tags
from distwsss.data.sources.tags_found import SPREADSHEETS, find_tags, other_tables
from distwsss.errors import ConfigError, DataError, counted
from distwsss.runtime.progress import log


def list_folder(data: DataSection, split: str) -> Listing:
    """The images of `split`; no items where nothing names that split. Raises DataError, or ConfigError for a label
    source that a folder does not have."""
    root = data_root(data)
    if data.labels_from not in ("auto", "csv"):
        raise ConfigError(f"`data.labels_from`: found {data.labels_from!r}; allowed for `folder`: auto or csv")
    pictures = _pictures(data, root)
    given = class_names(data, root)
    tags = find_tags(data, root, pictures, given) or _no_tags(data, root, required=split == data.train_split)
    classes = given or tags.classes or _derive_classes(tags)
    tagged = _tag_pictures(tags.rows, pictures)
    where, names = _names(data, split, root, tags, pictures)
    masks = Masks(root / data.masks, pictures.names)
    items = [_item(name, pictures, tagged, classes, masks) for name in names]
    masks.log(items, split)
    if split == data.train_split:
        _log_tags(tags, pictures, tagged if where == tags.where else None)
    return Listing(classes, items, tags.source if tags.rows else "none", where)


def _pictures(data: DataSection, root: Path) -> Pictures:
    """Those below `data.images`; where that is not named and not there, those of the root itself."""
    folder = root / data.images
    if not folder.is_dir():
        pictures = Pictures(root, root / data.masks)
        if data.images == DataSection.model_fields["images"].default and pictures.names:
            return pictures
        raise DataError(f"`data.images`: found no folder {folder}; allowed: a folder of pictures under `data.root`")
    return Pictures(folder, root / data.masks)


def _no_tags(data: DataSection, root: Path, required: bool) -> Tags:
    path = root / data.tags
    if required:
        others = other_tables(root)
        sheets = [name for name in others if name.lower().endswith(SPREADSHEETS)]
        tables = [name for name in others if name not in sheets]
        there = [f"{name} is a spreadsheet: save it as `CSV UTF-8`, as {path.name}" for name in sheets[:5]]
        there += [f"{name} is there: call it {path.name}, or name it by `data.tags`" for name in tables[:5]]
        raise DataError(
            f"`data.tags`: found no file {path}{''.join(f'; {text}' for text in there)}; allowed: a header and a line "
            "per picture, as `id,labels` and `dog.jpg,dog;sofa`; or labels.csv, _classes.csv, metadata.csv or .jsonl, "
            "an export of Label Studio, cls_labels.npy, lists in ImageSets/Main, or a folder for each class"
        )
    return Tags([], "", where=str(path))


def _derive_classes(tags: Tags) -> list[str]:
    """Background and the sorted names in the tags. Raises DataError for indices, and for names that look like one."""
    if not tags.rows:
        raise DataError(f"{tags.where}: found no tags to take class names from; give `data.classes` or classes.txt")
    tagged: dict[str, list[str]] = defaultdict(list)
    for row in tags.rows:
        for tag in row.tags:
            tagged[tag].append(row.name)
    indices = sorted(name for name in tagged if name.isdigit())
    if indices:
        raise DataError(
            f"{tags.where}: found class indices ({', '.join(indices[:5])}) without class names; give `data.classes` or "
            "classes.txt (line 1 = background); numbers that are names belong there, too"
        )
    check_alike(tagged, tags.where)
    return check_classes([BACKGROUND, *sorted(tagged.keys() - {BACKGROUND})], tags.where)


def _tag_pictures(rows: list[TagRow], pictures: Pictures) -> dict[str, TagRow]:
    """Relative picture name -> its row; a second row for the same picture is a problem of the first."""
    tagged: dict[str, TagRow] = {}
    for row in rows:
        name = pictures.resolve(row.name)
        if name in tagged:
            tagged[name].problems.append("duplicate id: more than one line of the tags names it")
        else:
            tagged[name] = row
    return tagged


def _names(data: DataSection, split: str, root: Path, tags: Tags, pictures: Pictures) -> tuple[str, list[str]]:
    """What lists the split, and its relative picture names in that order."""
    path = root / f"{split}.txt"
    if path.is_file():
        return str(path), _read_list(path, pictures)
    resolved = list(dict.fromkeys(pictures.resolve(row.name) for row in tags.rows))
    if any(row.split is not None for row in tags.rows):
        chosen = {pictures.resolve(row.name) for row in tags.rows if row.split == split}
        return f"column `split` of {tags.where}", [name for name in resolved if name in chosen]
    if split != data.train_split:
        return f"{path}, or the column `split` of {tags.where}", []
    # With a list of the val split alone, training takes the others: an image is never in both unless a list says so.
    val_path = root / f"{data.val_split}.txt"
    kept_out = set(_read_list(val_path, pictures)) if val_path.is_file() else set()
    return tags.where, [name for name in resolved if name not in kept_out]


def _read_list(path: Path, pictures: Pictures) -> list[str]:
    return [pictures.resolve(name) for name in read_ids(path, lambda name: bool(pictures.find(name)))]


def _item(name: str, pictures: Pictures, tagged: dict[str, TagRow], classes: list[str], masks: Masks) -> Item:
    item = Item(name, pictures.folder / name, None)
    if name not in pictures.names:
        item.problems.append(pictures.missing(name))
    item.problems += [pictures.ambiguous[name]] if name in pictures.ambiguous else []
    masks.give(item)
    if row := tagged.get(name):
        item.labels, problems = parse_labels(row.tags, classes)
        item.problems += row.problems + problems
    return item


def _log_tags(tags: Tags, pictures: Pictures, tagged: dict[str, TagRow] | None) -> None:
    """What was read and inferred. `tagged`: where the tags list the split, so that other pictures are not used."""
    if tags.said:
        log.info(f"tags: {tags.said}")
    if pictures.loose:
        log.info(f"tags: {loose_line(pictures.loose)}")
    unused = sorted(pictures.names - tagged.keys()) if tagged is not None else []
    if unused:
        some = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
        log.info(f"folder: {counted(len(unused), 'picture')} without a line in {tags.where}, not used: {some}")
