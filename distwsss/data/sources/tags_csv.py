"""Tables of image-level labels: which column names the pictures, which the tags, one column a class or one for all.

`read_tags` is called by `folder` and `voc` for CSV, `rows_of` by `tags_found` for tables of other formats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from distwsss.data.sources.cells import NOTHING, split_cells
from distwsss.data.sources.columns import (
    NO,
    OFF,
    ON,
    PEOPLE,
    PICTURES,
    SPLITS,
    TAGS,
    Finder,
    as_flag,
    difficult,
    flag_columns,
    image_column,
    quoted,
    tag_column,
    without_header,
)
from distwsss.data.sources.listing import BACKGROUND, IMAGE_SUFFIXES, TagRow
from distwsss.data.sources.table import SEPARATORS, Table, read_csv
from distwsss.errors import DataError, report_problems

NO_CLASS = (BACKGROUND, "unlabeled", "unlabelled")  # columns that some exports have beside those of classes


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
    table, bare = without_header(table, find)
    image, others = image_column(table, find)
    place = None if image is None else tag_column(table, image)
    flags = [] if image is None or place is not None else flag_columns(table, image)
    if image is None or (place is None and not flags):
        raise DataError(_header_refused(table))
    problems, joined = _trim(table, place)
    tags = _flagged(table, flags, classes, problems) if place is None else split_cells(table.column(place), classes)
    rows, people = _of_people(table, _rows(table, image, tags, problems), find)
    said = _said_flags(table, image, flags) if place is None else _said_cells(table, place)
    separator = f", separated by {SEPARATORS.get(table.separator, repr(table.separator))}" if table.separator else ""
    column = f"{table.path}: pictures in column `{table.header[image]}`{others}"
    return Tags(rows, f"{column}, {said}{separator}{bare}{joined}{people}")


def _header_refused(table: Table) -> str:
    separator = table.separator or ","
    empty = " (the file is empty)" if not table.header else ""
    return (
        f"{table.path}: found header {separator.join(table.header)!r}{empty}; allowed: a column of picture names ("
        f"{', '.join(sorted(PICTURES))}) and a column of tags ({', '.join(sorted(TAGS))}), or a column of 0 and 1 for "
        "each class; separated by a comma, `;` or tab"
    )


# --- tags ---


def _flagged(
    table: Table, places: list[int], classes: list[str] | None, problems: dict[int, list[str]]
) -> list[list[str]]:
    """Per row the classes whose columns say 1; a column `background` says nothing, unless a class is called so."""
    places = [at for at in places if table.names[at] not in NO_CLASS or table.header[at] in (classes or [])[1:]]
    yes = (*ON, "0", "0.0") if difficult(table, places) else ON
    columns = {table.header[at]: [as_flag(cell) for cell in table.column(at)] for at in places}
    for row, (number, _) in enumerate(table.rows):
        odd = [f"`{name}` {cells[row]!r}" for name, cells in columns.items() if cells[row] not in (*ON, *OFF, *NO)]
        if odd and row not in problems:
            problems[row] = [f"{table.path.name} line {number}: found {', '.join(odd)}; allowed: 0 or 1"]
    return [[name for name, cells in columns.items() if cells[row] in yes] for row in range(len(table.rows))]


def _said_flags(table: Table, image: int, flags: list[int]) -> str:
    rest = [at for at in range(len(table.header)) if at not in (image, *flags) and table.header[at]]
    ignored = [at for at in rest if table.names[at] not in (*SPLITS, *PICTURES)]
    hard = difficult(table, flags)
    said = f"a column for each of {len(flags)} classes" + (f" ({quoted(table, ignored)} ignored)" if ignored else "")
    voc = f" (0 beside 1 and -1, {hard} times: difficult objects alone, as VOC has it, which count)"
    return said + (voc if hard else "")


def _said_cells(table: Table, place: int) -> str:
    silent = sum(str(cell).strip().lower() in NOTHING for cell in table.column(place))
    return f"tags in `{table.header[place]}`" + (f" ({silent} cells have a word for no tags)" if silent else "")


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
    split = next((at for at, name in enumerate(table.names) if name in SPLITS and at != image), None)
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


def _of_people(table: Table, rows: list[TagRow], find: Finder) -> tuple[list[TagRow], str]:
    """A row for each picture, with the tags that any person gave it, where a table names the people."""
    if not any(name in PEOPLE for name in table.names):
        return rows, ""
    first: dict[str, TagRow] = {}
    for row in rows:
        kept = first.setdefault(next(iter(find(row.name)), row.name), row)
        if kept is not row:
            kept.tags = list(dict.fromkeys([*kept.tags, *row.tags]))
            kept.problems = [*kept.problems, *row.problems]
    more = len(rows) - len(first)
    return list(first.values()), f"; {more} rows of further people (all their tags count)" if more else ""


def from_zero(rows: list[TagRow], classes: list[str] | None, path: Path) -> tuple[list[TagRow], str]:
    """Numbers of Hugging Face's ClassLabel, which count from 0, not from 1 as ours, as the names in `classes`; and what
    to say of it. Raises DataError where the numbers can be either."""
    numbers = {tag for row in rows for tag in row.tags}
    if classes is None or not numbers or not all(tag.isdigit() for tag in numbers) or numbers & set(classes):
        return rows, ""
    low, high, last = min(map(int, numbers)), max(map(int, numbers)), len(classes) - 1
    if low > 0 and high == last:
        return rows, "; class numbers count from 1"
    if low > 0 or high >= last:
        found = f"class numbers {low}..{high} for {last} classes"
        raise DataError(f"{path}: found {found}; allowed: 0..{last - 1}, and names where they may count from 1")
    named = [replace(row, tags=[classes[1 + int(tag)] for tag in row.tags]) for row in rows]
    return named, "; class numbers count from 0"
