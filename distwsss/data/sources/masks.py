"""Masks in a folder: which file belongs to which photograph, and why none does. Called by `folder`.

`STEM.png` is a photograph's mask; other spellings (`x.PNG`, `x_mask.png`, `x.jpg.png`, `x.bmp`) are read where exactly
one file fits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from distwsss.data.sources.listing import Item, fold, stem_of
from distwsss.data.sources.pictures import files_below
from distwsss.runtime.progress import log

WORDS = ("mask", "masks", "label", "labels", "gt", "seg", "segmentation")
ENDS = ("", *(join + word for word in WORDS for join in "_-"))
SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # without loss, one value a pixel
ALLOWED = (
    "STEM.png, also in other case, as STEM_mask.png (_label, _gt, _seg) or STEM.jpg.png, or as .bmp, .tif; 8 bit, one "
    "value a pixel"
)


class Masks:
    """The files of a folder of masks. `names`: the photographs. `odd`: pattern -> how many were taken that are so."""

    def __init__(self, folder: Path, names: set[str]) -> None:
        self.folder = folder
        self.files = list(files_below(folder)) if folder.is_dir() else []
        self.odd: Counter[str] = Counter()
        self.used: set[str] = set()
        self._exact = set(self.files)
        self._owned = {f"{stem_of(name)}.png" for name in names} & self._exact
        self._folded: dict[str, list[str]] = defaultdict(list)
        for file in self.files:
            if file not in self._owned:
                self._folded[fold(file)].append(file)

    def give(self, item: Item) -> None:
        """Sets the mask of `item`, or adds a problem where several files may be it."""
        stem = stem_of(item.name)
        if f"{stem}.png" in self._owned:
            item.mask = self._take(f"{stem}.png")
            return
        found = [(file, called) for base, called in _patterns(item.name) for file in self._folded.get(fold(base), [])]
        if len(found) > 1:
            item.problems.append(f"its mask could be any of {', '.join(file for file, _ in found)}; leave one of them")
        elif found:
            file, pattern = found[0]
            item.mask = self._take(file)
            self.odd[pattern if file.endswith(pattern.partition("STEM")[2]) else f"{pattern} in other case"] += 1

    def _take(self, file: str) -> Path:
        self.used.add(file)
        return self.folder / file

    def log(self, items: list[Item], split: str) -> None:
        """What was found, in a line; a warning where files lie there and none fits."""
        count = sum(item.mask is not None for item in items)
        patterns = ", ".join(f"{number} called {pattern}" for pattern, number in sorted(self.odd.items()))
        if not self.files or not items:
            return
        if count:
            if patterns or count < len(items):
                said = f" ({patterns})" if patterns else ""
                log.info(f"masks: {count} of {len(items)} photographs of `{split}` have one{said}")
            return
        some = ", ".join(self.files[:3]) + ", ..." * (len(self.files) > 3)
        log.warning(
            f"masks: {len(self.files)} files lie in {self.folder} ({some}), and none is the mask of a photograph of "
            f"`{split}`, such as {items[0].name}; allowed: {ALLOWED}"
        )


def _patterns(name: str) -> list[tuple[str, str]]:
    """Files that may be the mask of the photograph `name`, each with what to call the pattern."""
    stem = stem_of(name)
    bases = [(f"{stem}{end}", f"STEM{end}") for end in ENDS]
    if name != stem:
        bases.append((name, f"STEM{name[len(stem) :]}"))
    return [(base + suffix, called + suffix) for base, called in bases for suffix in SUFFIXES if base + suffix != name]
