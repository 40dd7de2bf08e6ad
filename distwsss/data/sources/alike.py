"""Class names that are one name written twice: another case, Unicode form, punctuation, a letter, a plural. Called by
`folder` for names that were found in tags; names that the user listed are taken as they are."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from itertools import combinations

from distwsss.errors import DataError, counted, report_problems

LONG = 4  # letters from which names that differ in one of them are taken for one


def check_alike(tagged: dict[str, list[str]], where: str) -> None:
    """Raises DataError for names that may be the same. tagged: class name -> the photographs tagged with it."""

    def about(name: str) -> str:
        return f"`{name}` ({counted(len(tagged[name]), 'photograph')}, {tagged[name][0]})"

    pairs = alike(sorted(tagged))
    problems = [f"{about(a)} and {about(b)} differ only in {why}" for a, b, why in pairs]
    if problems:
        remedy = "write them alike in the tags, or list all classes in `data.classes` if these are different ones"
        raise DataError(report_problems(f"{where}: class names that look like one; {remedy}", problems))


def alike(names: list[str]) -> list[tuple[str, str, str]]:
    """Pairs of names that may be one, and in what they differ."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_plain(name)].append(name)
    same = [(a, b, _difference(a, b)) for group in groups.values() for a, b in combinations(group, 2)]
    near = [(groups[a][0], groups[b][0]) for a, b in combinations(sorted(groups), 2) if _near(a, b)]
    return [*same, *((a, b, "one letter or a plural") for a, b in near if not (_lettered(a) and _lettered(b)))]


def _plain(name: str) -> str:
    """Equal for names that differ in case, Unicode form, punctuation around them, and in what joins their words."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_-]+", "", re.sub(r"^[\W_]+|[\W_]+$", "", text)) or text


def _difference(a: str, b: str) -> str:
    steps = {
        "Unicode form": lambda text: unicodedata.normalize("NFKC", text),
        "letter case": lambda text: unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()),
        "punctuation": lambda text: re.sub(r"^[\W_]+|[\W_]+$", "", text),
    }
    for what, step in steps.items():
        a, b = step(a), step(b)
        if a == b:
            return what
    return "spaces, `_` or `-`"


def _near(a: str, b: str) -> bool:
    """One letter more, less or other in names of LONG letters, or a plural. Numbers make names different."""
    short, long = sorted((a, b), key=len)
    if len(short) > 2 and long in (short + "s", short + "es"):
        return True
    if len(short) < LONG:
        return False
    start = len(_common(short, long))
    end = min(len(_common(short[::-1], long[::-1])), len(short) - start)
    differ = short[start : len(short) - end] + long[start : len(long) - end]
    return len(long) - start - end == 1 and differ.isalpha()


def _lettered(name: str) -> bool:
    """`type A`, `grade_b`: kinds that are told apart by a letter."""
    return re.search(r"[\s_-]\w$", name) is not None


def _common(a: str, b: str) -> str:
    """What both begin with."""
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return a[:same]
