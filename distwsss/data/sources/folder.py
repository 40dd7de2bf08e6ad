"""Anybody's pictures: a folder of images, one CSV of tags, and masks where there are any (for evaluation only).

`list_folder` is called through `datasets.DATASETS`. Under `data.root`:

    IMAGES/          pictures, in sub-folders or not (`data.images`, default `images`)
    TAGS             CSV: `id` | `image` | `file`, `labels` | `tags`, perhaps `split` (`data.tags`, default `tags.csv`)
    MASKS/STEM.png   masks of any of them (`data.masks`, default `masks`)
    classes.txt      class names, line 1 = background; without it and `data.classes`, the sorted names found in TAGS
    SPLIT.txt        the images of a split, one a line; else the column `split`; else all images are the train split
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from distwsss.config.data import DataSection
from distwsss.data.sources.listing import (
    BACKGROUND,
    IMAGE_SUFFIXES,
    Item,
    Listing,
    TagRow,
    check_classes,
    class_names,
    data_root,
    parse_labels,
    plain_name,
    read_lines,
    read_tags,
    split_tags,
    stem_of,
)
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.progress import log


def list_folder(data: DataSection, split: str) -> Listing:
    """The images of `split`; no items where nothing names that split. Raises DataError, or ConfigError for a label
    source that a folder does not have."""
    root = data_root(data)
    if data.labels_from not in ("auto", "csv"):
        raise ConfigError(f"`data.labels_from`: found {data.labels_from!r}; allowed for `folder`: auto or csv")
    pictures = _Pictures(root / data.images)
    rows = _read_rows(root / data.tags, required=split == data.train_split)
    classes = class_names(data, root) or _derive_classes(rows, root / data.tags)
    tagged = _tag_pictures(rows, pictures)
    where, names = _names(data, split, root, rows, pictures)
    if where == str(root / data.tags):
        _log_unused(pictures, tagged, data)
    items = [_item(root / data.masks, name, pictures, tagged, classes) for name in names]
    return Listing(classes, items, "csv" if rows else "none", where)


class _Pictures:
    """The image files below a folder, found by their relative name with or without suffix."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"`data.images`: found no folder {folder}; allowed: a folder of pictures under `data.root`")
        self.folder = folder
        files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        self.names = {path.relative_to(folder).as_posix() for path in files}
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        self.ambiguous: dict[str, str] = {}
        for name in sorted(self.names):
            self.by_stem[stem_of(name)].append(name)

    def resolve(self, name: str) -> str:
        """The relative name of the picture that `name` means; `name` itself where there is none."""
        name = plain_name(name)
        found = [name] if name in self.names else self.by_stem.get(name, [name])
        if len(found) > 1:
            self.ambiguous[found[0]] = f"could be any of {', '.join(found)}; give the name with its suffix"
        return found[0]


def _read_rows(path: Path, required: bool) -> list[TagRow]:
    if path.is_file():
        return read_tags(path)
    if required:
        raise DataError(
            f"`data.tags`: found no file {path}; allowed: a CSV under `data.root` with the header `image,labels`, "
            "a line per picture"
        )
    return []


def _derive_classes(rows: list[TagRow], path: Path) -> list[str]:
    """Background and the sorted names in the tags. Where any cell uses `;` or `|`, spaces are part of the names."""
    if not rows:
        raise DataError(f"{path}: found no tags to take class names from; give `data.classes` or classes.txt")
    spaces = _spaces_separate(rows)
    names = {tag for row in rows for tag in split_tags(row.labels, None, spaces)}
    indices = sorted(name for name in names if name.isdigit())
    if indices:
        raise DataError(
            f"{path}: found class indices ({', '.join(indices[:5])}) without class names; give `data.classes` or "
            "classes.txt (line 1 = background)"
        )
    return check_classes([BACKGROUND, *sorted(names - {BACKGROUND})], str(path))


def _spaces_separate(rows: list[TagRow]) -> bool:
    return not any(mark in row.labels for row in rows for mark in ";|")


def _tag_pictures(rows: list[TagRow], pictures: _Pictures) -> dict[str, TagRow]:
    """Relative picture name -> its row; a second row for the same picture is a problem of the first."""
    tagged: dict[str, TagRow] = {}
    for row in rows:
        name = pictures.resolve(row.name)
        if name in tagged:
            tagged[name].problems.append("duplicate id: more than one line of the tags names it")
        else:
            tagged[name] = row
    return tagged


def _names(data: DataSection, split: str, root: Path, rows: list[TagRow], pictures: _Pictures) -> tuple[str, list[str]]:
    """What lists the split, and its relative picture names in that order."""
    path = root / f"{split}.txt"
    if path.is_file():
        return str(path), [pictures.resolve(name) for name in read_lines(path)]
    resolved = list(dict.fromkeys(pictures.resolve(row.name) for row in rows))
    if any(row.split is not None for row in rows):
        chosen = {pictures.resolve(row.name) for row in rows if row.split == split}
        return f"column `split` of {root / data.tags}", [name for name in resolved if name in chosen]
    if split != data.train_split:
        return f"{path}, or the column `split` of {root / data.tags}", []
    # With a list of the val split alone, training takes the others: an image is never in both unless a list says so.
    val_path = root / f"{data.val_split}.txt"
    kept_out = {pictures.resolve(name) for name in read_lines(val_path)} if val_path.is_file() else set()
    return str(root / data.tags), [name for name in resolved if name not in kept_out]


def _item(masks: Path, name: str, pictures: _Pictures, tagged: dict[str, TagRow], classes: list[str]) -> Item:
    mask = masks / f"{stem_of(name)}.png"
    item = Item(name, pictures.folder / name, None, mask if mask.is_file() else None)
    item.problems += [pictures.ambiguous[name]] if name in pictures.ambiguous else []
    if row := tagged.get(name):
        item.labels, problems = parse_labels(split_tags(row.labels, classes), classes)
        item.problems += row.problems + problems
    return item


def _log_unused(pictures: _Pictures, tagged: dict[str, TagRow], data: DataSection) -> None:
    unused = len(pictures.names - tagged.keys())
    if unused:
        log.info(f"folder: {unused} pictures under {pictures.folder} have no line in {data.tags} and are not used")
