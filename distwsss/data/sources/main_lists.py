"""VOC's lists of one class each, `ImageSets/Main/CLASS_SPLIT.txt`: `ID 1`, `ID -1` or `ID 0` a line. Called by `voc`
and `tags_found`.

0 says that all objects of the class are difficult ones. They count, as they do in the annotations; in lists without any
-1 it says that there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from distwsss.data.sources.listing import BACKGROUND, TagRow, read_lines
from distwsss.data.sources.tags_csv import Tags
from distwsss.errors import DataError, report_problems

FLAGS = ("1", "0", "-1")
SPLITS = ("train", "val", "trainval", "test")


def main_files(root: Path, classes: list[str] | None) -> dict[Path, str]:
    """The lists of `classes` (None: of any) and the class of each."""
    found = {path: path.stem.rpartition("_") for path in sorted((root / "ImageSets" / "Main").glob("*_*.txt"))}
    lists = {path: name for path, (name, _, split) in found.items() if name and (classes or split in SPLITS)}
    return {path: name for path, name in lists.items() if classes is None or name in classes[1:]}


def read_main(root: Path, classes: list[str] | None, split_of: Callable[[set[str]], str | None] | None = None) -> Tags:
    """The classes of every id that the lists name. `split_of`: of the splits that list an image, the one it is for.

    Raises DataError for lines of another form, and where two lists of a class disagree.
    """
    files, problems = main_files(root, classes), []
    flags: dict[str, dict[str, str]] = {}  # id -> class -> flag
    splits: dict[str, set[str]] = {}
    for path, name in files.items():
        for line in read_lines(path):
            parts = line.split()
            if len(parts) != 2 or parts[1] not in FLAGS:
                problems.append(f"{path.name}: found {line!r}; allowed: an id and 1, 0 or -1")
            elif flags.setdefault(parts[0], {}).setdefault(name, parts[1]) != parts[1]:
                problems.append(f"{path.name}: {parts[0]}: found {parts[1]}; another list of that class says otherwise")
            else:
                splits.setdefault(parts[0], set()).add(path.stem.rpartition("_")[2])
    if problems:
        raise DataError(report_problems(str(root / "ImageSets" / "Main"), problems))
    return _tags(root, flags, {key: split_of(found) for key, found in splits.items()} if split_of else {}, files)


def _tags(root: Path, flags: dict[str, dict[str, str]], splits: dict[str, str | None], files: dict[Path, str]) -> Tags:
    values = [flag for found in flags.values() for flag in found.values()]
    wanted = ("1", "0") if "-1" in values else ("1",)
    rows = [
        TagRow(key, [name for name in found if found[name] in wanted], splits.get(key), [])
        for key, found in flags.items()
    ]
    names = sorted(set(files.values()))
    where = str(root / "ImageSets" / "Main")
    said = f"{where}: {len(files)} lists of {len(names)} classes"
    hard = values.count("0") if "0" in wanted else 0
    said += f" (0, {hard} times: difficult objects alone, which count)" if hard else ""
    return Tags(rows, said, "lists", where, [BACKGROUND, *names])
