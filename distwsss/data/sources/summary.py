"""What `prepare` says of a listing before it works: classes with counts, and problems in lines. Called by it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

from distwsss.data.sources.listing import Listing, stem_of

OF_TAGS = ("unknown class", "duplicate id", "empty label list", "no image-level labels", "label ")
FEW = 3  # problems of a kind that get a line each


def classes_line(listing: Listing) -> str:
    """The photographs, how many have no tags, and the classes with the photographs of each."""
    counts = Counter(label for item in listing.items for label in item.labels or [])
    classes = ", ".join(f"{name} {counts[number]}" for number, name in enumerate(listing.classes) if number)
    untagged = sum(not item.labels for item in listing.items)
    return f"{len(listing.items)} photographs, {untagged} without tags; classes: {classes}"


def holding_others(classes: list[str]) -> list[str]:
    """Names of several words of which one is another class: tags that were separated by spaces, perhaps."""
    return [name for name in classes[1:] if " " in name and any(word in classes for word in name.split())]


def problem_lines(bad: list[tuple[str, list[str]]]) -> list[str]:
    """Problems by image as lines; more than FEW pictures that are not there, or tags with the same fault,
    are one line with the first of them."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, texts in bad:
        for text in texts:
            kinds[_kind(name, text)].append(f"{name}: {text}")
    lines = []
    for found in kinds.values():
        lines += found if len(found) <= FEW else [f"{len(found)} images, such as " + "; ".join(found[:FEW]) + "; ..."]
    return lines


def _kind(name: str, text: str) -> str:
    """Equal for missing pictures, with a similar name or without, and for the same fault of tags; of any other problem
    the image's own."""
    if text.startswith(OF_TAGS):
        return text
    if not text.startswith("no image of"):
        return f"{name}: {text}"
    for own in (name, stem_of(name)):
        text = text.replace(own, "")
    return re.sub(r"`[^`]*`|'[^']*'|\d+(, \d+)*", "", text)
