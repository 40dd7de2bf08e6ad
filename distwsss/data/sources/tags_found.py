"""Image-level labels of a folder data set, in whatever file or folders they are. Called by `folder`.

`data.tags` where it is there; else exactly one of `labels.csv`, `_classes.csv`, `metadata.jsonl` or `metadata.csv`
(Hugging Face image folders), an export of Label Studio, `cls_labels.npy`, VOC's lists of each class; else a folder for
each class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from distwsss.config.data import DataSection
from distwsss.data.sources.cls_labels import read_cls_labels
from distwsss.data.sources.label_studio import is_json_min, is_label_studio, read_label_studio
from distwsss.data.sources.listing import TagRow
from distwsss.data.sources.main_lists import main_files, read_main
from distwsss.data.sources.pictures import ADDRESS, Pictures, by_address
from distwsss.data.sources.table import Table, as_table, read_csv, read_json, read_json_lines
from distwsss.data.sources.tags_csv import Tags, from_zero, rows_of
from distwsss.errors import DataError

TABLES = ("labels.csv", "_classes.csv", "metadata.csv", "metadata.jsonl")
IN_ROOT = ("tags.csv", "tags.tsv", "labels.tsv", "tags.json", "labels.json", "tags.jsonl", "labels.jsonl", *TABLES)
SPREADSHEETS = (".xlsx", ".xls", ".ods")  # not read
ANY_TABLE = (".csv", ".tsv", ".jsonl", *SPREADSHEETS)
MAIN = Path("ImageSets", "Main")
ALONE = ("cls_labels.npy", "cls_labels.csv")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


def find_tags(data: DataSection, root: Path, pictures: Pictures, classes: list[str] | None) -> Tags | None:
    """The tags of all pictures; None where there are none. Raises DataError for files that cannot be read, and where
    more than one could be meant."""
    path = root / data.tags
    if path.is_file() or path == root / MAIN:
        return _read([path], pictures, classes, data)
    if path.is_dir() and path == pictures.folder:
        return _class_folders(pictures, data)
    if data.tags != DataSection.model_fields["tags"].default:
        return None
    sources = _sources(root, pictures, data)
    if len(sources) > 1:
        names = ", ".join(str(files[0].relative_to(root)) for files in sources)
        raise DataError(
            f"{root}: found no {data.tags}, and more than one file that could hold the tags: {names}; name one of them "
            "with --set data.tags=FILE"
        )
    if sources:
        return _read(sources[0], pictures, classes, data)
    found = _class_folders(pictures, data)
    if found and (others := other_tables(root)):
        raise DataError(
            f"{root}: found no {data.tags}; there is a folder for each class, and {', '.join(others)}; name which "
            f"holds the tags: --set data.tags={pictures.folder.name} or --set data.tags={others[0]}"
        )
    return found


def other_tables(root: Path) -> list[str]:
    """The files in `root` that may be tables of tags under a name of the user's own."""
    return sorted(path.name for path in root.iterdir() if path.suffix.lower() in ANY_TABLE and path.is_file())


def _sources(root: Path, pictures: Pictures, data: DataSection) -> list[list[Path]]:
    """What could hold the tags; files of one name in several folders (`train/metadata.csv`, ...) are one source."""
    places = sorted({root, pictures.folder, *_folders(pictures), *_folders_of_splits(root)})
    tables = [[place / name for place in places if (place / name).is_file()] for name in TABLES]
    known = {path for files in tables for path in files}
    own = [path for path in sorted(root.iterdir()) if path.name.lower() in IN_ROOT and path not in known]
    exports = [path for path in sorted(root.glob("*.json")) if is_label_studio(path) or is_json_min(path)]
    alone = [root / name for name in ALONE if (root / name).is_file()] + [root / MAIN] * bool(main_files(root, None))
    return [files for files in (*tables, *([path] for path in dict.fromkeys([*own, *exports, *alone]))) if files]


def _folders(pictures: Pictures) -> set[Path]:
    return {(pictures.folder / name).parent for name in pictures.names}


def _folders_of_splits(root: Path) -> set[Path]:
    return {root / name for names in SPLITS.values() for name in names if (root / name).is_dir()}


def _read(files: list[Path], pictures: Pictures, classes: list[str] | None, data: DataSection) -> Tags:
    """The files of one source as one table of tags."""
    found = [_read_one(path, pictures, classes, data) for path in files]
    rows = [row for path, tags in zip(files, found, strict=True) for row in _in_split(path, tags.rows, pictures, data)]
    said = found[0].said + (f" (and {len(files) - 1} more files of that name)" if len(files) > 1 else "")
    return replace(found[0], rows=rows, said=said, where=str(files[0]))


def _read_one(path: Path, pictures: Pictures, classes: list[str] | None, data: DataSection) -> Tags:
    if path.is_dir():
        return read_main(path.parent.parent, classes, lambda splits: _wanted(splits, data))
    if path.suffix == ".npy":
        return read_cls_labels(path, pictures.find, classes)
    if path.suffix == ".json" and is_label_studio(path):
        return read_label_studio(path, pictures, classes)
    table = _table(path)
    prefix = _prefix(path.parent, pictures.folder)
    tags = rows_of(table, lambda name: pictures.find(_located(name, prefix, pictures)), classes)
    rows = [replace(row, name=_located(row.name, prefix, pictures)) for row in tags.rows]
    if path.stem.lower() == "metadata":
        rows, counted = from_zero(rows, classes, path)
        tags.said += counted
    ends = sum(bool(ADDRESS.match(row.name)) for row in tags.rows)
    said = tags.said + (f"; {ends} names are addresses, of which the end counts" if ends else "")
    return replace(tags, rows=rows, said=said, source="csv" if table.separator else "json")


def _located(name: str, prefix: str, pictures: Pictures) -> str:
    """`name` as the picture is found: behind the table's own folder, as it is, or as the end of an address."""
    if prefix and pictures.find(prefix + name):
        return prefix + name
    return by_address(name, pictures) if ADDRESS.match(name) and not pictures.find(name) else name


def _table(path: Path) -> Table:
    readers: dict[str, Callable[[Path], Table]] = {".jsonl": read_json_lines, ".json": _records}
    return readers.get(path.suffix.lower(), read_csv)(path)


def _records(path: Path) -> Table:
    content = read_json(path)
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        raise DataError(f"{path}: found a COCO file; use `data.dataset: coco`")
    if isinstance(content, dict) and content and all(isinstance(tags, list | str) for tags in content.values()):
        content = [{"image": name, "labels": tags} for name, tags in content.items()]
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
    """`rows` with the splits as `data` calls them; a file in a folder of a split (`train/metadata.csv`) is of it."""
    inside = path.parent.is_relative_to(pictures.folder) and path.parent != pictures.folder
    split = _split_named(path.parent.relative_to(pictures.folder).parts[0], data) if inside else None
    return [replace(row, split=_as_called(row.split, data) or split) for row in rows]


def _as_called(split: str | None, data: DataSection) -> str | None:
    """`validation` in a column `split` is `val`, unless `data` calls a split so."""
    if split is None or split in (data.train_split, data.val_split):
        return split
    return next((name for name, known in SPLITS.items() if split.lower() in known), split)


def _wanted(splits: set[str], data: DataSection) -> str | None:
    """Of the splits that an image is in, the one that it is for."""
    return next((name for name in (data.train_split, data.val_split, *sorted(splits)) if name in splits), None)


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
