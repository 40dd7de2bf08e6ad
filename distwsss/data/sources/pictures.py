"""The photographs below a folder, and which of them a name in a table or list means. Called by `folder` and the readers
of tags.

A name means the file of that name, else the one file of that stem, else the one file that differs in what people and
their machines lose (letter case, Unicode form, the folder's own name in front). Anything further away is
only suggested.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from distwsss.data.sources.listing import IMAGE_SUFFIXES, fold, plain_name, stem_of

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://|/data/", re.IGNORECASE)  # of a server, or of Label Studio's uploads
UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts before the names of uploaded files
MOST_COMPARED = 100_000  # names compared letter by letter for suggestions, in all


def files_below(folder: Path, left_out: Path | None = None) -> Iterator[str]:
    """Relative names of all files below `folder`, linked folders too (none inside itself), hidden ones not."""
    yield from _walk(folder, "", (os.path.realpath(folder),), left_out)


def _walk(folder: Path, prefix: str, inside: tuple[str, ...], left_out: Path | None) -> Iterator[str]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith(".") or Path(entry.path) == left_out:
            continue
        if not entry.is_dir():
            yield prefix + entry.name
        elif (real := os.path.realpath(entry.path)) not in inside:
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*inside, real), left_out)


class Pictures:
    """The image files below `folder` by relative name. `loose`: names that were taken for files of another spelling."""

    def __init__(self, folder: Path, left_out: Path | None = None) -> None:
        self.folder = folder
        self.names = {name for name in files_below(folder, left_out) if name.lower().endswith(IMAGE_SUFFIXES)}
        self.ambiguous: dict[str, str] = {}
        self.loose: dict[str, str] = {}
        self._indices = [_index(self.names, spelt) for spelt in NEAR]
        self._further: list[dict[str, list[str]]] = []
        self._called: dict[str, list[str]] = {}
        self._left = MOST_COMPARED

    def find(self, name: str) -> list[str]:
        """The relative names that `name` can mean; more than one: it is ambiguous."""
        name = plain_name(name)
        for each in (name, *self._inner(name)):
            if each in self.names:
                return [each]
            for index, key in zip(self._indices, (each, fold(each), fold(each)), strict=True):
                if key in index:
                    return index[key]
        return []

    def _inner(self, name: str) -> list[str]:
        """`name` behind parts of it that are called as the folder: `/home/me/images/a.jpg` -> `a.jpg`."""
        parts = name.split("/")
        return ["/".join(parts[at + 1 :]) for at, part in enumerate(parts[:-1]) if part == self.folder.name]

    def resolve(self, name: str) -> str:
        """The relative name of the picture that `name` means; `name` itself where there is none."""
        found = self.find(name) or [plain_name(name)]
        if len(found) > 1:
            self.ambiguous[found[0]] = f"could be any of {', '.join(found)}; give the name with its suffix"
        elif found[0] in self.names and plain_name(name) not in (found[0], stem_of(found[0])):
            self.loose[plain_name(name)] = found[0]
        return found[0]

    def called(self, name: str) -> list[str]:
        """The pictures in whatever folder that are called `name`."""
        if not self._called:
            self._called = _index(self.names, base_name)
        return self._called.get(name, [])

    def missing(self, name: str) -> str:
        """The problem of a name that no picture has, with the file that may be meant."""
        close = self._suggestion(name)
        return f"no image of this name in {self.folder}" + (f"; did you mean `{close}`?" if close else "")

    def _suggestion(self, name: str) -> str | None:
        if not self._further:
            self._further = [_index(self.names, spelt) for spelt in FURTHER]
        for spelt, index in zip(FURTHER, self._further, strict=True):
            if spelt(name) in index:
                return index[spelt(name)][0]
        self._left -= len(self.names)
        close = difflib.get_close_matches(name, self.names, n=1, cutoff=0.8) if self._left > 0 else []
        return close[0] if close else None


def by_address(image: str, pictures: Pictures) -> str:
    """The picture that an address means: the longest end of its path that is a file, with or without the prefix of
    uploaded files; else its last part."""
    address = urlsplit(image)
    local = parse_qs(address.query).get("d")
    path = local[0] if local else unquote(address.path) if address.scheme or address.query else image
    parts = [part for part in path.replace("\\", "/").split("/") if part]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    ends += [UPLOADED.sub("", parts[-1], count=1)] if parts and UPLOADED.match(parts[-1]) else []
    return next((end for end in ends if pictures.find(end)), None) or next(
        (found[0] for end in ends[-2:] if len(found := pictures.called(end.rsplit("/", 1)[-1])) == 1),
        ends[-1] if ends else image,
    )


def without_zeros(name: str) -> str:
    """Equal for stems whose numbers differ in leading zeros: `IMG_0012.jpg` and `img_12`."""
    return re.sub(r"0*(\d+)", r"\1", fold(stem_of(name)))


def base_name(name: str) -> str:
    return plain_name(name).rsplit("/", 1)[-1]


def _folded_stem(name: str) -> str:
    return fold(stem_of(name))


def _base(name: str) -> str:
    return without_zeros(base_name(name))


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", _base(name))


Spelling = Callable[[str], str]
NEAR: tuple[Spelling, ...] = (stem_of, fold, _folded_stem)  # names equal in these are taken for one another
FURTHER: tuple[Spelling, ...] = (_folded_stem, without_zeros, _base, _bare)  # in these, suggested


def _index(names: set[str], spelt: Spelling) -> dict[str, list[str]]:
    index: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        index[spelt(name)].append(name)
    return dict(index)


def loose_line(loose: dict[str, str]) -> str:
    """One line for all names that were taken for files of another spelling."""
    some = ", ".join(f"{given} is {file}" for given, file in list(loose.items())[:3]) + ", ..." * (len(loose) > 3)
    kinds = sorted({_difference(given, file) for given, file in loose.items()})
    return f"{len(loose)} names differ from their files in {', '.join(kinds)} and are taken as meant ({some})"


def _difference(given: str, file: str) -> str:
    if fold(given) not in (fold(file), fold(stem_of(file))):
        return "leading folders"
    same_form = unicodedata.normalize("NFC", given) in map(_nfc, (file, stem_of(file)))
    return "Unicode form" if same_form else "letter case"


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
