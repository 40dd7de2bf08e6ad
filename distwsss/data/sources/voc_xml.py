"""The annotation XML of PASCAL VOC, in whatever encoding it was written. Called by `voc`.

The text is decoded here, by the byte order mark or the declaration, and not by expat, which knows few encodings and
expands entities.
"""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ElementTree

from distwsss.errors import DataError

DECLARATION = re.compile(r"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([^"']+)["']""")
MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
UNREADABLE = "\ufffd"  # what `errors="replace"` puts in the place of bytes that are not of the encoding


def object_names(data: bytes) -> list[str]:
    """The `name` of every object of the annotation, stripped; not those of an object's parts.

    Bytes that are not of the declared encoding matter only where they stand in such a name. Raises DataError for what
    is not XML, an encoding that Python does not know, such a name, and a document with entities of its own.
    """
    text, encoding = _decoded(data)
    if "<!ENTITY" in text:
        raise DataError("found a DTD with entities, which are not expanded; allowed: XML without them")
    try:
        objects = ElementTree.fromstring(text.lstrip()).findall("object")
    except (ElementTree.ParseError, ValueError) as error:
        found = "an empty file" if not text.strip() else f"not readable XML ({error})"
        raise DataError(f"{found}; replace the file") from error
    names = [(thing.findtext("name") or "").strip() for thing in objects]
    garbled = [name for name in names if UNREADABLE in name]
    if garbled:
        raise DataError(f"the name of an object is not {encoding}, as the file says it is; declare its real encoding")
    return names


def _decoded(data: bytes) -> tuple[str, str]:
    """The text, and the encoding it was read in."""
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    if marked is None and data[:4] in (b"<\0?\0", b"\0<\0?"):
        marked = "utf-16-le" if data[:1] == b"<" else "utf-16-be"
    declared = DECLARATION.match(data[:200].decode("ascii", errors="replace"))
    encoding = marked or (declared[1].strip() if declared else "utf-8")
    if marked is None and encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32", "ucs-2")):
        encoding = "utf-8"  # the declaration itself could be read byte by byte
    try:
        return data.decode(encoding, errors="replace"), encoding
    except (LookupError, ValueError) as error:
        raise DataError(f"found encoding {encoding!r} ({error}); allowed: one that Python knows; use utf-8") from error
