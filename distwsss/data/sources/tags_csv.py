"""Tables of image-level labels: which column names the pictures, which the tags, one column a class or one for all.

`read_tags` is called by `folder` and `voc` for CSV, `rows_of` by `tags_found` for tables of other formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distwsss.data.sources.cells import split_cells
from distwsss.data.sources.listing import BACKGROUND, IMAGE_SUFFIXES, TagRow, stem_of
from distwsss.data.sources.table import SEPARATORS, Table, read_csv
from distwsss.errors import DataError, report_problems

PICTURES = (
    *("image", "file_name", "filename", "file", "filepath", "file_path", "path", "image_path", "image_file"),
    *("image_name", "image_id", "img", "picture", "photo", "name", "id"),
)
TAGS = (
    *("labels", "label", "tags", "tag", "classes", "class", "categories", "category"),
    *("choices", "choice", "class_name", "class_names", "label_name", "category_name"),
)
ON, OFF = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "", "-1", "-1.0")
Finder = Callable[[str], list[str]]  # a name -> the pictures that it can mean


@dataclass
class Tags:
    """Image-level labels as read. `said`: what was inferred, for one line of the log."""

    rows: list[TagRow]
    said: str
    source: str = "csv"  # Listing.labels_from
    where: str = ""
    classes: list[str] | None = None  # background first, where the file's format implies them


def read_tags(path: Path, find: Finder, classes: list[str] | None) -> Tags:
    """A CSV with header: a column of picture names and one of tags, or one column of 0 and 1 for each class.

    `find`: pictures that a name can mean; it decides between several columns of names. `classes`: known names.
    Raises DataError for another header, a line without a picture, or a file that is no CSV. A line with too many or
    too few cells is a problem of its row.
    """
    return rows_of(read_csv(path), find, classes)


def rows_of(table: Table, find: Finder, classes: list[str] | None) -> Tags:
    """The tags in a table. Raises DataError."""
    image, others = _image_column(table, find)
    places = [place for place, name in enumerate(table.names) if name in TAGS and place != image]
    if image is None or (not places and not _flags(table, image)):
        raise DataError(_header_refused(table))
    if places and not _equal(table, places):
        raise DataError(
            f"{table.path}: found several columns of tags ({_named(table, places)}) that differ; rename or delete all "
            "but one"
        )
    problems, joined = _trim(table, places[0] if places else None)
    tags = split_cells(table.column(places[0]), classes) if places else _flagged(table, image)
    rows = _rows(table, image, tags, problems)
    said = f"{table.path}: pictures in column `{table.header[image]}`{others}, {_said_tags(table, image, places)}"
    separator = f", separated by {SEPARATORS.get(table.separator, repr(table.separator))}" if table.separator else ""
    return Tags(rows, said + separator + joined)


def _header_refused(table: Table) -> str:
    separator = table.separator or ","
    return (
        f"{table.path}: found header {separator.join(table.header)!r}; allowed: a column of picture names ("
        f"{', '.join(sorted(PICTURES))}) and a column of tags ({', '.join(sorted(TAGS))}), or a column of 0 and 1 for "
        "each class; separated by a comma, `;` or tab"
    )


# --- which column names the pictures ---


def _image_column(table: Table, find: Finder) -> tuple[int | None, str]:
    """The place of the column of picture names, and what to say about others that could be.

    A name with its suffix outweighs one without: `1` beside `3.jpg` is the table's own row number.
    """
    names = table.names
    places = sorted((place for place, name in enumerate(names) if name in PICTURES), key=lambda at: _rank(names[at]))
    if len(places) < 2:
        return (places[0] if places else None), ""
    found = {place: [_meant(str(cell), find) for cell in table.column(place)] for place in places}
    strength = {place: max((weight for _, weight in cells), default=0) for place, cells in found.items()}
    best = [place for place in places if strength[place] == max(strength.values()) and strength[place]]
    chosen = max(best, key=lambda place: sum(weight > 0 for _, weight in found[place]), default=places[0])
    rivals = [place for place in best if _differ(found[chosen], found[place])]
    if rivals:
        raise DataError(
            f"{table.path}: found pictures in several columns ({_named(table, [chosen, *rivals])}) that differ; rename "
            "or delete the one that is not the picture"
        )
    ignored = [place for place in places if place != chosen]
    return chosen, f" ({_named(table, ignored)} ignored)"


def _rank(name: str) -> int:
    return PICTURES.index(name)


def _meant(cell: str, find: Finder) -> tuple[list[str], int]:
    """The pictures that a cell means; 2: named with a suffix, 1: without, 0: it means none."""
    found = find(cell) if cell else []
    return found, (2 if stem_of(cell) != cell else 1) if found else 0


def _differ(chosen: list[tuple[list[str], int]], other: list[tuple[list[str], int]]) -> bool:
    return any(a != b and a and b for (a, _), (b, _) in zip(chosen, other, strict=True))


def _named(table: Table, places: list[int]) -> str:
    return ", ".join(f"`{table.header[place]}`" for place in places)


# --- tags ---


def _equal(table: Table, places: list[int]) -> bool:
    return all(table.column(place) == table.column(places[0]) for place in places)


def _flags(table: Table, image: int) -> list[int]:
    """Places of the columns that say 0 or 1 for a class."""
    reserved = {image, *(place for place, name in enumerate(table.names) if name in ("", "split", *PICTURES))}
    places = [place for place in range(len(table.header)) if place not in reserved]
    return [place for place in places if table.rows and all(_is_flag(cell) for cell in table.column(place))]


def _is_flag(cell: Any) -> bool:
    return _flag(cell) in (*ON, *OFF)


def _flag(cell: Any) -> str:
    return "" if cell is None else str(cell).strip().lower()


def _flagged(table: Table, image: int) -> list[list[str]]:
    """Per row the classes whose columns say 1; a column `background` says nothing."""
    places = [place for place in _flags(table, image) if table.names[place] != BACKGROUND]
    columns = {table.header[place]: table.column(place) for place in places}
    return [[name for name, cells in columns.items() if _flag(cells[row]) in ON] for row in range(len(table.rows))]


def _said_tags(table: Table, image: int, places: list[int]) -> str:
    if places:
        return f"tags in `{table.header[places[0]]}`"
    flags = _flags(table, image)
    rest = [place for place in range(len(table.header)) if place not in (image, *flags) and table.header[place]]
    ignored = [place for place in rest if table.names[place] not in ("split", *PICTURES)]
    return f"a column for each of {len(flags)} classes" + (f" ({_named(table, ignored)} ignored)" if ignored else "")


# --- rows ---


def _trim(table: Table, tags: int | None) -> tuple[dict[int, list[str]], str]:
    """Brings every row to the header's length: unquoted separators in a last column of tags are put together again.

    Returns the problems by row, and what to say about rows put together.
    """
    wanted, joined, problems = len(table.header), [], {}
    for row, (number, cells) in enumerate(table.rows):
        found = len(cells)
        while len(cells) > wanted and cells[-1] == "":
            cells.pop()
        if len(cells) > wanted and tags == wanted - 1 and not any(map(_is_file, cells[wanted - 1 :])):
            cells[wanted - 1 :] = [";".join(cells[wanted - 1 :])]
            joined.append(number)
        elif not wanted <= found or len(cells) > wanted:
            allowed = f"{wanted}, as in the header (quote cells that hold {table.separator!r})"
            problems[row] = [f"{table.path.name} line {number}: found {found} cells; allowed: {allowed}"]
            cells += [""] * (wanted - len(cells))
    if not joined:
        return problems, ""
    return problems, f"; {len(joined)} lines with unquoted separators between their tags (first: line {joined[0]})"


def _is_file(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_SUFFIXES)


def _rows(table: Table, image: int, tags: list[list[str]], problems: dict[int, list[str]]) -> list[TagRow]:
    split = table.names.index("split") if "split" in table.names else None
    rows, nameless = [], []
    for row, (number, cells) in enumerate(table.rows):
        name = str(cells[image]).strip()
        which = str(cells[split]) if split is not None else None
        rows.append(TagRow(name, tags[row], which, problems.get(row, [])))
        if not name:
            nameless.append(f"line {number}: no {table.header[image]}")
    if nameless:
        raise DataError(report_problems(f"{table.path}", nameless))
    return rows
