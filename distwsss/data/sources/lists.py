"""Lists of images: an id a line, or `image mask` pairs (psa, SEAM, EPS), or `id 1|-1|0` (VOC's Main). Called by
`folder`, `voc` and `sbd`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from distwsss.data.sources.listing import IMAGE_SUFFIXES, plain_name, read_lines, stem_of
from distwsss.runtime.progress import log

SECOND = re.compile(rf"(.+?)[\s,;]+((?:-?[01])|(?:\S*({'|'.join(map(re.escape, IMAGE_SUFFIXES))})))", re.IGNORECASE)


def read_ids(path: Path, known: Callable[[str], bool]) -> list[str]:
    """The ids of a list; of a line that is no id as a whole (`known`) and has a mask or a flag behind it, the first
    column. One line of the log says so. Raises DataError."""
    lines = read_lines(path)
    ids = [_first(line, known) for line in lines]
    cut = [line for line, name in zip(lines, ids, strict=True) if line != name]
    if cut:
        log.info(f"{path}: {len(cut)} lines have a second column ({cut[0]!r}), which is not read: the first is the id")
    return ids


def _first(line: str, known: Callable[[str], bool]) -> str:
    parts = re.fullmatch(SECOND, line)
    if parts is None or known(line):
        return line
    return line if _is_one_file(parts[1], parts[2]) else parts[1].strip("'\"")


def _is_one_file(first: str, second: str) -> bool:
    """`my photo.jpg` is one name: its second half is called as an image, its first has neither suffix nor folder."""
    return stem_of(second) != second and stem_of(first) == first and "/" not in first and "/" not in second


def voc_id(name: str) -> str:
    """The id that `/JPEGImages/2007_000032.jpg` means; an id stays as it is."""
    return stem_of(plain_name(name).rpartition("JPEGImages/")[2])
