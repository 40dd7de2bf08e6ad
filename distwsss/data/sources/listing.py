"""What a data set offers to `prepare` (Listing, Item), and the text formats that data sets share.

Called by the modules of `datasets`, which make listings, and by `data/prepare.py`, `data/image_shards.py` and
`data/check.py`, which read them. Faults of one image are collected in `Item.problems`, so that all of them are reported
at once; only what makes the whole data set unreadable is raised here.
"""

from __future__ import annotations

import difflib
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distwsss.config.data import DataSection
from distwsss.data.images import decode_mask
from distwsss.data.shards.format import key_from_name
from distwsss.errors import DataError, relative_to
from distwsss.runtime.artifacts import sha256_bytes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff")
BACKGROUND = "background"
MOST_CLASSES = 255  # masks are uint8 and 255 means ignore


class MaskSource(Protocol):
    """A mask that is made when it is wanted (`sbd`, `coco_mask`); picklable, and small until then."""

    def draw(self) -> np.ndarray:
        """uint8[H,W] class ids, 255 = ignore. Raises DataError, or OSError of the file it is read from."""
        ...

    def digest(self) -> str:
        """Equal where `draw` gives the same, and cheaper."""
        ...


@dataclass
class Item:
    """One image. `image` and `mask`: a file, or the encoded bytes themselves; a mask may also be drawn on demand."""

    name: str  # as the data set calls it; what messages and KEY.json say
    image: Path | bytes
    labels: list[int] | None  # sorted class ids 1..N; None: unlabelled (outside the train split only)
    mask: Path | bytes | MaskSource | None = None
    problems: list[str] = field(default_factory=list)


@dataclass
class Listing:
    """The images of one split."""

    classes: list[str]  # background first
    items: list[Item]
    labels_from: str  # xml | csv | json | npy | lists | folders | masks | generated | none; index and reports say it
    where: str = ""  # what lists the images, for messages about an empty split
    extra: dict[str, Any] = field(default_factory=dict)  # what else the index records of this data set


@dataclass
class TagRow:
    """The image-level labels of one picture, as a table or another file of tags gives them."""

    name: str
    tags: list[str]  # class names or indices
    split: str | None
    problems: list[str]


def stem_of(name: str) -> str:
    """`name` without its image suffix, if it has one: `a/b.c.jpg` -> `a/b.c`, `img.v2` -> `img.v2`."""
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def item_key(item: Item) -> str:
    """The shard key of an image: its name without suffix, escaped. Raises DataError for a name that is too long."""
    return key_from_name(stem_of(item.name))


def plain_name(name: str) -> str:
    """A relative picture name as people write it (`.\\a\\b.jpg`, `./a/b.jpg`) with slashes alone: `a/b.jpg`."""
    return name.replace("\\", "/").removeprefix("./")


def fold(name: str) -> str:
    """Equal for names that differ in letter case and Unicode form only."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def read_source(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def read_mask(source: Path | bytes | MaskSource, where: str, max_pixels: int) -> np.ndarray:
    """The mask uint8[H,W] of an item. Raises DataError, or OSError of its file."""
    if isinstance(source, (bytes, Path)):
        return decode_mask(read_source(source), where, max_pixels)
    return source.draw()


def mask_digest(source: Path | bytes | MaskSource) -> str:
    """The sha256 of what a mask is made from."""
    return sha256_bytes(read_source(source)) if isinstance(source, (bytes, Path)) else source.digest()


def data_root(data: DataSection) -> Path:
    """`data.root` as an existing folder, else DataError."""
    if data.root is None:
        raise DataError(f"`data.root` is not set, and dataset `{data.dataset}` needs it; use --set data.root=PATH")
    root = Path(data.root).absolute()
    if not root.is_dir():
        raise DataError(
            f"`data.root`: found no folder {root}{relative_to(data.root)}; use --set data.root=PATH with an "
            "existing one"
        )
    return root


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without byte order mark, or UTF-16 with one (Excel's). Raises DataError."""
    try:
        data = path.read_bytes()
        if data.startswith(b"PK\3\4"):
            raise DataError(f"{path}: found an Excel workbook or another archive; save it as text (Excel: `CSV UTF-8`)")
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        if "\0" in text:
            raise DataError(f"{path}: found zero bytes, so it is no UTF-8 text; save it as such (Excel: `CSV UTF-8`)")
        return text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: line {data[: error.start].count(10) + 1}: found bytes that are not UTF-8; save the file as UTF-8 "
            "(Excel: `CSV UTF-8`)"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def read_lines(path: Path) -> list[str]:
    """The non-empty lines of a text file, stripped."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def class_names(data: DataSection, root: Path) -> list[str] | None:
    """Background and foreground names: `data.classes`, else root/classes.txt (line 1 = background), else None."""
    path = root / "classes.txt"
    if data.classes is not None:
        names, where = [BACKGROUND, *data.classes], "`data.classes`"
    elif path.is_file():
        names, where = read_lines(path), str(path)
    else:
        return None
    return check_classes(names, where)


def check_classes(names: list[str], where: str) -> list[str]:
    """`names` if they can be the classes of a data set, background first; else DataError."""
    if not names or names[0].lower() != BACKGROUND:
        raise DataError(f"{where}: found {names[:1]} first; allowed: `{BACKGROUND}` as line 1, then the class names")
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(f"{where}: found {len(names) - 1} foreground classes; allowed: 1..{MOST_CLASSES - 1}")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"{where}: found {', '.join(doubled)} more than once; allowed: distinct names")
    return names


def parse_labels(tags: list[str], classes: list[str]) -> tuple[list[int], list[str]]:
    """Class ids (sorted, each once) of names or indices 1..N, and a problem for each tag that is neither."""
    labels, problems = set(), []
    for tag in tags:
        index = classes.index(tag) if tag in classes else int(tag) if _is_index(tag, classes) else None
        if index is not None and 1 <= index < len(classes):
            labels.add(index)
        else:
            problems.append(_unknown_class(tag, index, classes))
    return sorted(labels), problems


def _is_index(tag: str, classes: list[str]) -> bool:
    """Numbers are indices unless classes are called by numbers."""
    return tag.isascii() and tag.isdigit() and not any(name.isdigit() for name in classes)


def _unknown_class(tag: str, index: int | None, classes: list[str]) -> str:
    if index == 0:
        return f"label {tag!r} is the background, which is not a label; allowed: foreground classes, or no label"
    if index is not None:
        return f"unknown class index {tag}; allowed: 1..{len(classes) - 1}"
    folded = {fold(name): name for name in classes[1:]}
    close = [folded[each] for each in difflib.get_close_matches(fold(tag), folded, n=1)]
    names = ", ".join(classes[1:21]) + (", ..." if len(classes) > 21 else "")
    return f"unknown class {tag!r}; " + (f"did you mean `{close[0]}`?" if close else f"allowed: {names}")
