"""Image-level labels of a folder data set, in whatever file or folders they are. Called by `folder`.

`data.tags` where it is there; else exactly one of `labels.csv`, `_classes.csv`, `metadata.jsonl` or `metadata.csv`
(Hugging Face image folders), an export of Label Studio, `cls_labels.npy`; else a folder for each class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from distwsss.config.data import DataSection
from distwsss.data.sources.cls_labels import read_cls_labels
from distwsss.data.sources.label_studio import is_label_studio, read_label_studio
from distwsss.data.sources.listing import TagRow
from distwsss.data.sources.pictures import Pictures
from distwsss.data.sources.table import Table, as_table, read_csv, read_json, read_json_lines
from distwsss.data.sources.tags_csv import Tags, rows_of
from distwsss.errors import DataError

TABLES = ("labels.csv", "_classes.csv", "metadata.csv", "metadata.jsonl")
ALONE = ("cls_labels.npy", "cls_labels.csv")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


def find_tags(data: DataSection, root: Path, pictures: Pictures, classes: list[str] | None) -> Tags | None:
    """The tags of all pictures; None where there are none. Raises DataError for files that cannot be read, and where
    more than one could be meant."""
    path = root / data.tags
    if path.is_file():
        return _read([path], pictures, classes, data)
    if data.tags != DataSection.model_fields["tags"].default:
        return None
    sources = _sources(root, pictures, data)
    if len(sources) > 1:
        names = ", ".join(str(files[0].relative_to(root)) for files in sources)
        raise DataError(
            f"{root}: found no {data.tags}, and more than one file that could hold the tags: {names}; name one of them "
            "with --set data.tags=FILE"
        )
    return _read(sources[0], pictures, classes, data) if sources else _class_folders(pictures, data)


def _sources(root: Path, pictures: Pictures, data: DataSection) -> list[list[Path]]:
    """What could hold the tags; files of one name in several folders (`train/metadata.csv`, ...) are one source."""
    places = sorted({root, pictures.folder, *_folders(pictures), *_folders_of_splits(root)})
    tables = [[place / name for place in places if (place / name).is_file()] for name in TABLES]
    exports = [[path] for path in sorted(root.glob("*.json")) if is_label_studio(path)]
    alone = [[root / name] for name in ALONE if (root / name).is_file()]
    return [files for files in (*tables, *exports, *alone) if files]


def _folders(pictures: Pictures) -> set[Path]:
    return {(pictures.folder / name).parent for name in pictures.names}


def _folders_of_splits(root: Path) -> set[Path]:
    return {root / name for names in SPLITS.values() for name in names if (root / name).is_dir()}


def _read(files: list[Path], pictures: Pictures, classes: list[str] | None, data: DataSection) -> Tags:
    """The files of one source as one table of tags."""
    found = [_read_one(path, pictures, classes) for path in files]
    rows = [row for path, tags in zip(files, found, strict=True) for row in _in_split(path, tags.rows, pictures, data)]
    said = found[0].said + (f" (and {len(files) - 1} more files of that name)" if len(files) > 1 else "")
    return replace(found[0], rows=rows, said=said, where=str(files[0]))


def _read_one(path: Path, pictures: Pictures, classes: list[str] | None) -> Tags:
    if path.suffix == ".npy":
        return read_cls_labels(path, pictures.find, classes)
    if path.suffix == ".json" and is_label_studio(path):
        return read_label_studio(path, pictures, classes)
    table = _table(path)
    prefix = _prefix(path.parent, pictures.folder)
    find = lambda name: pictures.find(prefix + name) or pictures.find(name)  # noqa: E731
    tags = rows_of(table, find, classes)
    for row in tags.rows:
        row.name = prefix + row.name if prefix and pictures.find(prefix + row.name) else row.name
    return replace(tags, source="csv" if path.suffix == ".csv" or table.separator else "json")


def _table(path: Path) -> Table:
    readers: dict[str, Callable[[Path], Table]] = {".jsonl": read_json_lines, ".json": _records}
    return readers.get(path.suffix.lower(), read_csv)(path)


def _records(path: Path) -> Table:
    content = read_json(path)
    if not isinstance(content, list):
        raise DataError(f"{path}: found no list of records; allowed: a JSON list of objects, one for each picture")
    return as_table(path, list(enumerate(content, 1)))


def _prefix(folder: Path, pictures: Path) -> str:
    """What names in a table of `folder` lack: they are relative to it."""
    inside = folder.is_relative_to(pictures) and folder != pictures
    return f"{folder.relative_to(pictures).as_posix()}/" if inside else ""


# --- splits and classes by folder ---


def _split_named(name: str, data: DataSection) -> str | None:
    """The split that a folder called `name` holds."""
    names = {"train": data.train_split, "val": data.val_split, "test": "test"}
    return next((names[split] for split, known in SPLITS.items() if name.lower() in known), None)


def _in_split(path: Path, rows: list[TagRow], pictures: Pictures, data: DataSection) -> list[TagRow]:
    """`rows` of a file in a folder of one split (`train/metadata.csv`) belong to that split."""
    inside = path.parent.is_relative_to(pictures.folder) and path.parent != pictures.folder
    split = _split_named(path.parent.relative_to(pictures.folder).parts[0], data) if inside else None
    return [replace(row, split=row.split or split) for row in rows]


def _class_folders(pictures: Pictures, data: DataSection) -> Tags | None:
    """`images/dog/1.jpg` is a dog; `images/train/dog/1.jpg` is one of the train split."""
    paths = [name.split("/") for name in sorted(pictures.names)]
    by_split = bool(paths) and all(len(parts) > 2 and _split_named(parts[0], data) for parts in paths)
    level = 1 if by_split else 0
    if not paths or not all(len(parts) > level + 1 for parts in paths) or len({parts[level] for parts in paths}) < 2:
        return None
    rows = [
        TagRow("/".join(parts), [parts[level]], _split_named(parts[0], data) if by_split else None, [])
        for parts in paths
    ]
    said = f"{pictures.folder}: no file of tags; the folder that a picture lies in is its class"
    return Tags(rows, said + " (below the folders of splits)" * by_split, "folders", str(pictures.folder))
