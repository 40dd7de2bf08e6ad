"""Which column of a table names the pictures, which holds the tags, or which ones say 0 or 1 for a class. Called by
`tags_csv`.

What a column holds decides before what it is called: the pictures are in the column whose values are files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from distwsss.data.sources.listing import IMAGE_SUFFIXES, stem_of
from distwsss.data.sources.table import Table
from distwsss.errors import DataError

PICTURES = (
    *("image", "file_name", "filename", "file", "filepath", "file_path", "path", "image_path", "image_file"),
    *("image_name", "image_id", "imageid", "img", "picture", "photo", "name", "key", "id"),
)
TAGS = (
    *("labels", "label", "tags", "tag", "classes", "class", "categories", "category", "keywords", "keyword"),
    *("choices", "choice", "class_name", "class_names", "classname", "label_name", "labelname", "category_name"),
)
TAG_WORDS = {"labels", "label", "tags", "tag", "classes", "class", "categories", "category"}  # Finding Labels
ABOUT = {"id", "ids", "index", "count", "score", "confidence", "source", "file", "path", "image"}  # label_id
SPLITS = ("split", "subset", "partition")
PEOPLE = ("annotator", "annotation_id", "completion_id")  # a table of theirs has a row per person and picture
OF_TOOLS = (*PEOPLE, "created_at", "updated_at", "lead_time", "width", "height", "index")
ON, OFF, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", ""), ("-1", "-1.0")
Finder = Callable[[str], list[str]]  # a name -> the pictures that it can mean


def image_column(table: Table, find: Finder) -> tuple[int | None, str]:
    """The place of the column of picture names, and what to say about others that could be.

    A name with its suffix outweighs one without, and a row number (`1`, `2`, ...) anything else. Raises DataError where
    two columns name different pictures.
    """
    names = table.names
    places = [at for at, name in enumerate(names) if name in PICTURES or _may_be_pictures(table, at)]
    places.sort(key=lambda at: PICTURES.index(names[at]) if names[at] in PICTURES else len(PICTURES))
    found = {place: [_meant(str(cell), find) for cell in table.column(place)] for place in places}
    hits = {place: sum(weight > 0 for _, weight in found[place]) for place in places}
    strength = {place: max((weight for _, weight in found[place]), default=0) for place in places}
    best = [at for at in places if strength[at] == max(strength.values()) and 2 * hits[at] >= max(hits.values()) > 0]
    best = [place for place in best if not _counts_rows(table, place)] or best
    named = [place for place in places if names[place] in PICTURES]
    chosen = max(best, key=lambda at: hits[at], default=named[0] if named else None)
    if chosen is None:
        return None, ""
    rivals = [place for place in best if _differ(found[chosen], found[place])]
    if rivals:
        raise DataError(
            f"{table.path}: found pictures in several columns ({quoted(table, [chosen, *rivals])}) that differ; delete "
            "the one that is not the picture"
        )
    ignored = [place for place in places if place != chosen and (hits[place] or place in named)]
    return chosen, f" ({quoted(table, ignored)} ignored)" if ignored else ""


def _may_be_pictures(table: Table, place: int) -> bool:
    """Whether to look for pictures in a column that is not called so."""
    name = table.names[place]
    return name not in (*TAGS, *SPLITS, *OF_TOOLS) and not _mostly_flags(table.column(place))


def _meant(cell: str, find: Finder) -> tuple[list[str], int]:
    """The pictures that a cell means; 2: named with a suffix, 1: without, 0: it means none."""
    found = find(cell) if cell else []
    return found, (2 if stem_of(cell) != cell else 1) if found else 0


def _counts_rows(table: Table, place: int) -> bool:
    cells = [str(cell) for cell in table.column(place)]
    return any(cells == [str(start + row) for row in range(len(cells))] for start in (0, 1))


def _differ(chosen: list[tuple[list[str], int]], other: list[tuple[list[str], int]]) -> bool:
    return any(a != b and a and b for (a, _), (b, _) in zip(chosen, other, strict=True))


def quoted(table: Table, places: list[int]) -> str:
    return ", ".join(f"`{table.header[place]}`" for place in places)


# --- tags ---


def tag_column(table: Table, image: int) -> int | None:
    """The place of the column of tags; None where there is none, or a column for each class.

    Raises DataError for several that differ.
    """
    names, flags = table.names, flag_columns(table, image)
    places = [at for at, name in enumerate(names) if name in TAGS and at != image]
    places = places or [at for at, name in enumerate(names) if at != image and _speaks_of_tags(name)]
    if len(flags) > 1 and set(places) <= set(flags):  # a class may be called `label`
        return None
    words = [at for at in places if not all(str(cell).isdigit() for cell in table.column(at))]
    places = words or places  # `label` 3 beside `label_name` dog
    if any(table.column(place) != table.column(places[0]) for place in places):
        raise DataError(
            f"{table.path}: found several columns of tags ({quoted(table, places)}) that differ; rename or delete all "
            "but one"
        )
    if not places and not flags and any(name in PEOPLE for name in names):  # the control is called as its maker liked
        rest = [at for at in range(len(names)) if at != image and names[at] not in ("", *PICTURES, *SPLITS, *OF_TOOLS)]
        places = rest if len(rest) == 1 else []
    return places[0] if places else None


def _speaks_of_tags(name: str) -> bool:
    words = set(re.split(r"[_.]", name))
    return bool(words & TAG_WORDS) and not words & ABOUT


def flag_columns(table: Table, image: int) -> list[int]:
    """Places of the columns that say 0 or 1 for a class, but for a slip here and there."""
    reserved = ("", *PICTURES, *SPLITS, *OF_TOOLS)
    places = [at for at, name in enumerate(table.names) if at != image and name not in reserved]
    return [at for at in places if _mostly_flags(table.column(at))]


def _mostly_flags(cells: list[Any]) -> bool:
    known = sum(as_flag(cell) in (*ON, *OFF, *NO) for cell in cells)
    return any(map(as_flag, cells)) and 2 * known > len(cells)


def as_flag(cell: Any) -> str:
    return "" if cell is None else str(cell).strip().lower()


def difficult(table: Table, places: list[int]) -> int:
    """How often 0 stands among 1 and -1, where it is VOC's `difficult objects alone` and counts as 1; 0: it means no.

    Raises DataError where -1 is not the common word for no: it may mean `not known` there, and 0 no.
    """
    counts = Counter(as_flag(cell) for place in places for cell in table.column(place))
    minus, zero = sum(counts[each] for each in NO), counts["0"] + counts["0.0"]
    if minus and zero >= minus:
        raise DataError(
            f"{table.path}: found {zero} times 0 and {minus} times -1 in the columns of classes, of which either may "
            "mean no; allowed: 1 and 0, or 1 and -1"
        )
    return zero if minus else 0


def without_header(table: Table, find: Finder) -> tuple[Table, str]:
    """`table` with a header of ours where its first line names a picture, and what to say of it.

    Raises DataError where the columns cannot be told apart.
    """
    first = table.header
    if not any(cell.lower().endswith(IMAGE_SUFFIXES) for cell in first if isinstance(cell, str)):
        return table, ""
    rows = [(1, list(first)), *table.rows]
    hits = [sum(bool(find(str(cells[at]))) for _, cells in rows if len(cells) > at) for at in range(2)]
    if hits[0] > hits[1] and len(first) > 1:
        header = ["image", "labels"]
    elif hits[1] > hits[0] and len(first) == 2:
        header = ["labels", "image"]
    else:
        raise DataError(
            f"{table.path}: found no header ({','.join(first)!r} is the first line); allowed: a header such as "
            "`image,labels` above the rows"
        )
    return Table(table.path, header, rows, table.separator), ", without a header"
