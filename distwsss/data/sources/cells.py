"""The class names in one cell of a table of tags: separators, JSON and Python lists, spaces. Called by `tags_csv`.

A cell is read by itself: what another row holds never changes where this one is split, with one exception: spaces
separate where every word is a class that stands alone somewhere, or that `data.classes` or classes.txt names.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from typing import Any

SEPARATORS = re.compile(r"[;,|\r\n]")
NOTHING = ("-", "--", "none", "null", "nan", "n/a", "nil")  # no tag, unless a class is called so
QUOTES = ("''", '""', "``", "\u2018\u2019", "\u201c\u201d")


def split_cells(cells: list[Any], classes: list[str] | None) -> list[list[str]]:
    """The tags of each cell. `cells`: text, or what JSON holds (lists, numbers, null).

    `classes`: known names, background included; None: those are known that stand alone in a cell or between separators.
    """
    parts = [_parts(cell, classes) for cell in cells]
    known = set(classes) if classes is not None else {part for cell in parts for part in cell if not _has_space(part)}
    found = [_without_repeats(tag for part in cell for tag in _words(part, known, classes)) for cell in parts]
    return [[tag for tag in cell if tag.lower() not in NOTHING or tag in (classes or ())] for cell in found]


def _parts(cell: Any, classes: list[str] | None) -> list[str]:
    """A cell cut at separators; a cell that is a known name as a whole is one part."""
    if isinstance(cell, str):
        text = cell.strip()
        if classes is not None and text in classes:
            return [text]
        found = _as_list(text)
        return _cut(text) if found is None else found
    return _flat(cell)


def _cut(text: str) -> list[str]:
    return [part for part in map(_unquoted, SEPARATORS.split(text)) if part]


def _unquoted(part: str) -> str:
    part = " ".join(part.split())
    return part[1:-1].strip() if len(part) > 1 and part[0] + part[-1] in QUOTES else part


def _as_list(text: str) -> list[str] | None:
    """The names of a JSON or Python list, tuple, set or Label Studio's `{"choices": [...]}`; None: it is none."""
    if not text or text[0] + text[-1] not in ("[]", "()", "{}"):
        return None
    try:
        return _flat(json.loads(text))
    except ValueError:
        pass
    try:  # numpy prints ['a' 'b'] without commas, which Python would join to one word
        return _flat(ast.literal_eval(re.sub(r"(['\"])\s+(?=['\"])", r"\1, ", text)))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _cut(text[1:-1]) if text[0] == "[" else None  # [dog, sofa]


def _flat(value: Any) -> list[str]:
    if isinstance(value, dict):
        return _flat(value["choices"]) if "choices" in value else [str(value)]
    if isinstance(value, list | tuple | set | frozenset):
        return [name for each in (sorted(value, key=str) if isinstance(value, set) else value) for name in _flat(each)]
    text = "" if value is None else " ".join(str(value).split())
    return [text] if text else []


def _words(part: str, known: set[str], classes: list[str] | None) -> list[str]:
    """`part`, or its words. Where the classes are given, one known word is enough: the others are problems then."""
    if part in known or not _has_space(part):
        return [part]
    words = part.split()
    indices = classes is not None or all(map(str.isdigit, words))
    are_known = [word in known or (indices and word.isdigit()) for word in words]
    return words if all(are_known) or (classes is not None and any(are_known)) else [part]


def _has_space(part: str) -> bool:
    return " " in part


def _without_repeats(tags: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(tags))
