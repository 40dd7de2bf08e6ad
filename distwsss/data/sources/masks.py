"""Masks in a folder: which file belongs to which photograph, and why none does. Called by `folder`.

`STEM.png` is a photograph's mask; other spellings (`x.PNG`, `x_mask.png`, `x.jpg.png`, `x.bmp`) are read where exactly
one file fits, and so are names that leave out the folders or join them, where one photograph is called so.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from distwsss.data.sources.listing import Item, fold, stem_of
from distwsss.data.sources.pictures import base_name, files_below
from distwsss.runtime.progress import log

WORDS = ("mask", "masks", "label", "labels", "gt", "seg", "segmentation")
ENDS = ("", *(join + word for word in WORDS for join in "_-"))
SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # without loss, one value a pixel; writers of GIF renumber the values
ALLOWED = (
    "STEM.png, also in other case, as STEM_mask.png or mask_STEM.png (label, gt, seg) or STEM.jpg.png, or as .bmp, "
    ".tif; 8 bit, one value a pixel"
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
        left = [file for file in self.files if file not in self._owned]
        self._folded = _grouped(left, fold)
        self._called = _grouped([file for file in left if "/" in file], lambda file: fold(base_name(file)))
        self._bases = {_base(name) for name in names}
        self._alone = {base for base, found in _grouped(sorted(names), _base).items() if len(found) == 1}

    def give(self, item: Item) -> None:
        """Sets the mask of `item`, or adds a problem where several files may be it."""
        stem = stem_of(item.name)
        if f"{stem}.png" in self._owned:
            item.mask = self._take(f"{stem}.png")
            return
        found = self._fitting(item.name, self._folded) or self._elsewhere(item.name)
        if len(found) > 1:
            item.problems.append(f"its mask could be any of {', '.join(file for file, _ in found)}; leave one of them")
        elif found:
            file, pattern = found[0]
            item.mask = self._take(file)
            self.odd[pattern if file.endswith(pattern.partition("STEM")[2]) else f"{pattern} in other case"] += 1

    def _fitting(self, name: str, files: dict[str, list[str]]) -> list[tuple[str, str]]:
        """Files that may be the mask of `name`, each with its pattern."""
        return [(file, called) for base, called in _patterns(name) for file in files.get(fold(base), [])]

    def _elsewhere(self, name: str) -> list[tuple[str, str]]:
        """The same in other folders than the photograph's, where no other photograph is called so."""
        if "/" in name:
            joined = self._fitting(name.replace("/", "_"), self._folded)
            return joined or (self._fitting(base_name(name), self._folded) if _base(name) in self._alone else [])
        return self._fitting(name, self._called) if _base(name) in self._alone else []

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
            other = self._others()
            if patterns or other or count < len(items):
                said = f" ({patterns})" if patterns else ""
                log.info(f"masks: {count} of {len(items)} photographs of `{split}` have one{said}{other}")
            return
        some = ", ".join(self.files[:3]) + ", ..." * (len(self.files) > 3)
        log.warning(
            f"masks: {len(self.files)} files lie in {self.folder} ({some}), and none is the mask of a photograph of "
            f"`{split}`, such as {items[0].name}; allowed: {ALLOWED}"
        )

    def _others(self) -> str:
        """The files that are called like no photograph at all, of whatever split."""
        odd = [file for file in self.files if file not in self.used and not _may_be_of(file) & self._bases]
        some = ", ".join(odd[:3]) + ", ..." * (len(odd) > 3)
        return f"; {len(odd)} of {len(self.files)} files are no photograph's ({some})" if odd else ""


def _base(name: str) -> str:
    """What a photograph is called, without its folder: `sub/X.jpg` -> `x`."""
    return fold(stem_of(base_name(name)))


def _may_be_of(file: str) -> set[str]:
    """What the photographs may be called whose mask a file is."""
    base = fold(base_name(file).rpartition(".")[0])
    bare = re.sub(rf"^({'|'.join(WORDS)})[_-]|[_-]({'|'.join(WORDS)})$", "", base)
    return {base, bare, stem_of(base), bare.rpartition("_")[2], base.rpartition("_")[2]}


def _grouped(names: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[key(name)].append(name)
    return found


def _patterns(name: str) -> list[tuple[str, str]]:
    """Files that may be the mask of the photograph `name`, each with what to call the pattern."""
    stem = stem_of(name)
    folder, base = stem[: -len(base_name(stem))], base_name(stem)
    bases = [(f"{stem}{end}", f"STEM{end}") for end in ENDS]
    bases += [(f"{folder}{word}{join}{base}", f"{word}{join}STEM") for word in WORDS for join in "_-"]
    if name != stem:
        bases.append((name, f"STEM{name[len(stem) :]}"))
    return [(base + suffix, called + suffix) for base, called in bases for suffix in SUFFIXES if base + suffix != name]
