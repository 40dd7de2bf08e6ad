"""Whether the masks of a split can be those of its photographs, judged by the tags. Called by `data/prepare.py`.

Masks of another numbering, or of 0 and 255, are well formed and score nonsense; the tags are what they can be held
against. Tags never change because of a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from distwsss.config.data import DataSection
from distwsss.data.check import Checked
from distwsss.data.images import IGNORE
from distwsss.data.sources.listing import Listing
from distwsss.runtime.progress import log

NEARLY_ALL, HALF = 0.9, 0.5  # shares of the masks
FEWEST = 3  # masks that can be held against tags; fewer may be exceptions
Numbering = dict[int, int]  # value in the masks -> class id


class _Pair(NamedTuple):
    """A photograph's tags, and value of its mask -> pixels. `good`: nothing else is wrong with it."""

    name: str
    tags: frozenset[int]
    mask: dict[int, int]
    good: bool

    def holds(self, numbering: Numbering | None = None) -> set[int]:
        """The classes in its mask."""
        ids = (numbering.get(value, value) if numbering else value for value in self.mask)
        return {number for number in ids if number not in (0, IGNORE)}


def masks_against_tags(split: str, listing: Listing, found: list[Checked], data: DataSection) -> str | None:
    """Say how masks and tags agree; why nearly all masks are wrong, if they are. `found`: of each item.

    With `data.contradicting_masks: warn` that is a warning.
    """
    if listing.labels_from == "masks":
        return None
    pairs = [
        _Pair(item.name, frozenset(item.labels), checked.mask, not checked.problems)
        for item, checked in zip(listing.items, found, strict=True)
        if checked.mask is not None and item.labels is not None and not item.problems
    ]
    if not pairs:
        return None
    exact = _exact(pairs)
    none = [pair for pair in pairs if not pair.holds() & pair.tags and (pair.tags or pair.holds())]
    log.info(
        f"prepare: {split}: {len(pairs)} masks: {exact} hold exactly the classes that their photograph is tagged with, "
        f"{len(pairs) - exact - len(none)} some of them or others too, {len(none)} none of them"
    )
    wrong = _contradiction(pairs, none, exact, listing.classes)
    if wrong is None and none:
        log.warning(f"prepare: {split}: {len(none)} of {len(pairs)} masks hold {_none_of(none, listing.classes)}")
    if wrong is not None and data.contradicting_masks == "refuse":
        return f"{wrong}; or set `data.contradicting_masks: warn` to go on with the masks as they are"
    if wrong is not None:
        log.warning(f"prepare: {split}: {wrong}")
    return None


def _contradiction(pairs: list[_Pair], none: list[_Pair], exact: int, classes: list[str]) -> str | None:
    no_class = _no_class(pairs, classes)
    if no_class and len(classes) == 2:
        return no_class
    doubtful = len(pairs) >= FEWEST and exact <= HALF * len(pairs)
    numbering = _other_numbering(pairs, len(classes)) if doubtful else None
    if numbering:
        return (
            f"masks and tags agree exactly on {exact} of {len(pairs)} photographs, with another numbering of the masks "
            f"on {_exact(pairs, numbering)}: set `data.mask_values: {_said(numbering)}` (value in the mask files: "
            "class id)"
        )
    bad, good = [pair for pair in none if pair.good], sum(pair.good for pair in pairs)
    if no_class or good < FEWEST or len(bad) < NEARLY_ALL * good:
        return no_class
    return (
        f"{len(bad)} of {good} masks hold {_none_of(bad, classes)}; the class ids are {_ids(classes)}; number the "
        "masks so (`data.mask_values` maps values), or correct the tags"
    )


def _no_class(pairs: list[_Pair], classes: list[str]) -> str | None:
    """Of masks that hold no class at all but other values, 255 among them commonly; None for others."""
    tagged = [pair for pair in pairs if pair.tags]
    others = [pair for pair in tagged if set(pair.mask) - {0}]
    if len(others) < NEARLY_ALL * len(tagged) or any(n < len(classes) for pair in tagged for n in pair.holds()):
        return None
    totals = sum((np.array([pair.mask.get(value, 0) for value in range(256)]) for pair in tagged), np.zeros(256))
    values = [int(value) for value in np.flatnonzero(totals[1:]) + 1][::-1]
    if not values or (len(pairs) < FEWEST and IGNORE not in values):  # others are a problem of each mask
        return None
    shares = ", ".join(f"{value} on {100 * totals[value] / totals.sum():.0f}%" for value in values[:3])
    one = len(classes) == 2
    text = f"no mask holds {'class 1' if one else 'any class'}, and tagged images have {shares} of their pixels"
    if not one or len(values) > 3:
        return f"{text}; masks must hold class ids ({_ids(classes)}), and {IGNORE} is ignored: save them so"
    numbering = {value: IGNORE for value in values[1:] if value != IGNORE} | {values[0]: 1}
    return f"{text}; if {values[0]} means `{classes[1]}`, set `data.mask_values: {_said(numbering)}`"


def _none_of(pairs: list[_Pair], classes: list[str]) -> str:
    some = [f"{pair.name}: tags {_names(pair.tags, classes)}, mask {_names(pair.holds(), classes)}" for pair in pairs]
    return f"none of their photograph's tags ({'; '.join(some[:3])}{'; ...' * (len(some) > 3)})"


def _names(ids: frozenset[int] | set[int], classes: list[str]) -> str:
    names = [classes[number] if number < len(classes) else str(number) for number in sorted(ids)]
    return " ".join(names[:5]) + " ..." * (len(names) > 5) if names else "background only"


def _ids(classes: list[str]) -> str:
    return ", ".join(f"{number} {name}" for number, name in enumerate(classes[:8])) + ", ..." * (len(classes) > 8)


def _said(numbering: Numbering) -> str:
    return "{" + ", ".join(f"{value}: {number}" for value, number in sorted(numbering.items())) + "}"


# --- another numbering ---


def _exact(pairs: list[_Pair], numbering: Numbering | None = None) -> int:
    """On how many photographs the masks hold exactly the tagged classes."""
    return sum(pair.holds(numbering) == pair.tags for pair in pairs)


def _other_numbering(pairs: list[_Pair], classes: int) -> Numbering | None:
    """What the values would have to mean for nearly all masks to hold exactly the tags; None where it is not obvious.
    Values that keep their meaning are left out."""
    for numbering in _candidates(pairs, classes):
        if _exact(pairs, numbering) >= NEARLY_ALL * len(pairs):
            return {value: number for value, number in numbering.items() if value != number} or None
    return None


def _candidates(pairs: list[_Pair], classes: int) -> Iterator[Numbering]:
    values = sorted({value for pair in pairs for value in pair.mask} - {IGNORE})
    yield {value: value - 1 if value else IGNORE for value in values}  # background is 1, as in tools that count from 1
    found = _by_occurrence(pairs, values, classes)
    if found:
        yield found


def _by_occurrence(pairs: list[_Pair], values: list[int], classes: int) -> Numbering | None:
    """Each value as the class that is tagged where it occurs; of those that occur everywhere, the largest is the
    background. None where two classes fit a value alike, or one class two values."""
    there = {value: np.array([value in pair.mask for pair in pairs]) for value in values}
    tagged = {number: np.array([number in pair.tags for pair in pairs]) for number in range(1, classes)}
    everywhere = [value for value in values if there[value].mean() >= NEARLY_ALL]
    if not everywhere:
        return None
    numbering = {max(everywhere, key=lambda value: sum(pair.mask.get(value, 0) for pair in pairs)): 0}
    for value in values:
        if value not in numbering:
            fits = sorted(((_overlap(there[value], where), number) for number, where in tagged.items()), reverse=True)
            if fits[0][0] < HALF or (len(fits) > 1 and fits[1][0] == fits[0][0]):
                return None
            numbering[value] = fits[0][1]
    return numbering if len(set(numbering.values())) == len(numbering) else None


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else 0.0
