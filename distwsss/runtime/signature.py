"""Files that tell themselves that this package wrote them: they may be written anew, any other is left alone. Called by
`runtime.run_folder` and `inference.segmenter`.

A mark inside the file holds the sha256 of the rest: a comment in text, a `tEXt` chunk in a PNG, a comment in a JPEG. A
file that somebody changed is his, as one that never had a mark.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path

from distwsss.runtime.artifacts import sha256_bytes

DIGEST = re.compile(rb"written by distwsss ([0-9a-f]{64})")


def signed(data: bytes) -> bytes:
    """`data` (a PNG, a JPEG, or text with comments that start with #) with the mark."""
    at, wrap = _place(data)
    return data[:at] + wrap(_words(sha256_bytes(data).encode())) + data[at:]


def is_signed(data: bytes) -> bool:
    """Whether `data` is what `signed` made, to the last byte."""
    found = DIGEST.search(data)
    if not found:
        return False
    at, wrap = _place(data)
    mark = wrap(_words(found[1]))
    rest = data[:at] + data[at + len(mark) :]
    return data[at : at + len(mark)] == mark and sha256_bytes(rest).encode() == found[1]


def not_ours(path: Path) -> bool:
    """Whether something lies at `path` that is no file of ours as it was written: not to be written over."""
    try:
        return not is_signed(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return path.is_symlink()  # a link that leads nowhere is somebody's too
    except OSError:
        return True


def _words(digest: bytes) -> bytes:
    return b"written by distwsss " + digest


def _place(data: bytes) -> tuple[int, Callable[[bytes], bytes]]:
    """Where the mark stands, and what it looks like there."""
    if data.startswith(b"\x89PNG"):
        return 33, _png_chunk  # behind the signature (8 bytes) and the header (25)
    if data.startswith(b"\xff\xd8"):
        return 2, lambda text: b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text
    return 0, lambda text: b"# " + text + b"\n"


def _png_chunk(text: bytes) -> bytes:
    body = b"tEXt" + b"Comment\0" + text
    return (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
