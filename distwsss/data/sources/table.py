"""A table of text or JSON as rows of cells: CSV with its separator, JSON lines, a JSON list of records. Called by
`tags_csv` and `tags_found`."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distwsss.data.sources.listing import read_text
from distwsss.errors import DataError

SEPARATORS = {",": "`,`", ";": "`;`", "\t": "tab", "|": "`|`"}


@dataclass
class Table:
    """`header`: as written; `rows`: (line number, cells), blank lines left out. `separator`: none for JSON."""

    path: Path
    header: list[str]
    rows: list[tuple[int, list[Any]]]
    separator: str | None = None

    @property
    def names(self) -> list[str]:
        """The header as it is compared: `Image ID` -> `image_id`."""
        return [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in self.header]

    def column(self, place: int) -> list[Any]:
        """The cells of a column; "" where a row is too short."""
        return [cells[place] if place < len(cells) else "" for _, cells in self.rows]


def read_csv(path: Path) -> Table:
    """A CSV separated by whatever cuts its header line into most cells (`,` first). Raises DataError."""
    text = read_text(path)
    told = re.match(r"sep=(.)\r?\n", text)  # Excel's own way to say it
    separator = told[1] if told else _separator(text)
    lines = _lines(path, text[told.end() :] if told else text, separator)
    header = lines[0][1] if lines else []
    while header and not header[-1]:  # a spreadsheet's empty columns
        header.pop()
    return Table(path, header, lines[1:], separator)


def _lines(path: Path, text: str, separator: str) -> list[tuple[int, list[Any]]]:
    """Rows that are not blank. Something behind a closing quote is taken as spreadsheets take it; an open quote would
    swallow all that follows."""
    for strict in (True, False):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict, skipinitialspace=True)
        try:
            return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
        except csv.Error as error:
            if not strict or text.count('"') % 2:
                raise DataError(f"{path}: line {reader.line_num}: not valid CSV ({error})") from error
    raise AssertionError("the second way returns or raises")


def _separator(text: str) -> str:
    line = next(filter(str.strip, text.splitlines()), "")
    return max(SEPARATORS, key=lambda each: len(next(csv.reader([line], delimiter=each))))


def read_json_lines(path: Path) -> Table:
    """`metadata.jsonl`: an object a line. Raises DataError."""
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    return as_table(path, [(number, _parsed(path, line, f"line {number}: ")) for number, line in lines])


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises DataError."""
    return _parsed(path, read_text(path), "")


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {where}not valid JSON ({error})") from error


def as_table(path: Path, records: list[tuple[int, Any]]) -> Table:
    """Numbered JSON objects as a table. Raises DataError where one is no object."""
    wrong = [number for number, record in records if not isinstance(record, dict)]
    if wrong:
        raise DataError(f"{path}: record {wrong[0]}: found no JSON object; allowed: an object for each picture")
    records = [(number, _flat(record)) for number, record in records]
    header = list(dict.fromkeys(name for _, record in records for name in record))
    return Table(path, header, [(number, [record.get(name, "") for name in header]) for number, record in records])


def _flat(record: dict[str, Any], before: str = "") -> dict[str, Any]:
    """`{"objects": {"categories": [...]}}` as a column `objects.categories`; `{"choices": [...]}` is a cell."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        inner = isinstance(value, dict) and value.keys() != {"choices"}
        found.update(_flat(value, f"{before}{name}.") if inner else {before + name: value})
    return found
