"""VOC's lists of one class each, `ImageSets/Main/CLASS_SPLIT.txt`: `ID 1`, `ID -1` or `ID 0` a line. Called by `voc`.

0 says that all objects of the class are difficult ones. They count, as they do in the annotations; in lists without any
-1 it says that there is none.
"""

from __future__ import annotations

from pathlib import Path

from distwsss.data.sources.listing import TagRow, read_lines
from distwsss.data.sources.tags_csv import Tags
from distwsss.errors import DataError, report_problems

FLAGS = ("1", "0", "-1")


def main_files(root: Path, classes: list[str]) -> dict[Path, str]:
    """The lists of `classes` and the class of each."""
    found = {path: path.stem.rpartition("_")[0] for path in sorted((root / "ImageSets" / "Main").glob("*_*.txt"))}
    return {path: name for path, name in found.items() if name in classes[1:]}


def read_main(root: Path, classes: list[str]) -> Tags:
    """The classes of every id that the lists name. Raises DataError for lines of another form, and where two lists of a
    class disagree."""
    files, problems = main_files(root, classes), []
    flags: dict[str, dict[str, str]] = {}  # id -> class -> flag
    for path, name in files.items():
        for line in read_lines(path):
            parts = line.split()
            if len(parts) != 2 or parts[1] not in FLAGS:
                problems.append(f"{path.name}: found {line!r}; allowed: an id and 1, 0 or -1")
            elif flags.setdefault(parts[0], {}).setdefault(name, parts[1]) != parts[1]:
                problems.append(f"{path.name}: {parts[0]}: found {parts[1]}; another list of that class says otherwise")
    if problems:
        raise DataError(report_problems(str(root / "ImageSets" / "Main"), problems))
    wanted = ("1", "0") if any("-1" in each.values() for each in flags.values()) else ("1",)
    rows = [TagRow(key, [name for name in found if found[name] in wanted], None, []) for key, found in flags.items()]
    where = str(root / "ImageSets" / "Main")
    return Tags(rows, f"{where}: {len(files)} lists of {len(set(files.values()))} classes", "lists", where)
