"""What a shard may hold: keys, member names and the record of one shard. Called by writer, index, reader, verify.

A member is `KEY.FIELD`; the field is everything after the first dot, so a key never has one (WebDataset's rule).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote, unquote

from distwsss.errors import DataError, ShardError
from distwsss.runtime.artifacts import sha256_bytes

FORMAT = 1
INDEX = "index.json"
INDEX_DIGEST = "index.json.sha256"
MAX_KEY = 200
SHARD_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")
FIELD = re.compile(r"jpg|json|(truth|label|votes|clean|saliency|[sm](0|[1-9][0-9]{0,3}))\.png")
FIELDS = "jpg, json, truth.png, label.png, votes.png, clean.png, saliency.png, s0.png, ..., m0.png, ..."

# Per kind: the fields every sample has. Seed shards hold s0.png .. s{m-1}.png, m from the index, and m0.png .. alike.
REQUIRED: dict[str, tuple[str, ...]] = {
    "images": ("jpg", "json"),
    "saliency": ("saliency.png",),
    "seeds": ("s0.png",),
    "pseudo": ("jpg", "label.png", "votes.png", "clean.png", "json"),
}
MADE_BY = {
    "images": "distwsss prepare",
    "saliency": "distwsss saliency",
    "seeds": "distwsss seeds",
    "pseudo": "distwsss seeds",
}


def key_from_name(name: str) -> str:
    """The key of an image id: percent-escaped, dots and slashes too, so that different ids give different keys.

    Raises DataError for an empty id, one that is not Unicode, or one longer than 200 characters when escaped.
    """
    try:
        key = quote(name, safe="").replace(".", "%2E")
    except UnicodeEncodeError as error:
        raise DataError(f"image id {name!r}: not valid Unicode; rename the file") from error
    if not 0 < len(key) <= MAX_KEY:
        length = f"{len(key)} characters when escaped"
        raise DataError(f"image id {name!r}: {length}; allowed: 1 to {MAX_KEY}; rename the file")
    return key


def name_from_key(key: str) -> str:
    """The image id; inverse of `key_from_name`."""
    return unquote(key, errors="strict")


def is_key(key: str) -> bool:
    """Whether `key` is what `key_from_name` gives for some id (one spelling per id)."""
    try:
        return key_from_name(name_from_key(key)) == key
    except (DataError, UnicodeDecodeError):
        return False


def member_name(key: str, field: str) -> str:
    """`KEY.FIELD`. Raises ShardError for a key or field that no shard may hold."""
    if not is_key(key):
        raise ShardError(f"key {key!r}: not an escaped image id; make it with key_from_name")
    if not FIELD.fullmatch(field):
        raise ShardError(f"{key}: field {field!r}; allowed: {FIELDS}")
    return f"{key}.{field}"


def split_member(name: str) -> tuple[str, str]:
    """(key, field) of a member name. Raises ShardError for an unsafe name or a field that no shard may hold."""
    key, _, field = name.partition(".")
    member_name(key, field)
    return key, field


def digest_line(index: bytes) -> bytes:
    """The content of index.json.sha256: what `sha256sum index.json` prints."""
    return f"{sha256_bytes(index)}  {INDEX}\n".encode()


@dataclass(frozen=True)
class ShardRecord:
    """One shard as the index knows it. `members[i]`: field -> [offset of the payload in the tar, size] of `keys[i]`."""

    name: str
    bytes: int
    sha256: str
    keys: list[str]
    members: list[dict[str, list[int]]]

    def to_json(self) -> dict[str, Any]:
        return {"samples": len(self.keys), **asdict(self)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> ShardRecord:
        """Checks every value. Raises ShardError naming `where`."""
        try:
            record = cls(**{name: value[name] for name in ("name", "bytes", "sha256", "keys", "members")})
            _check_record(record, value["samples"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShardError(f"{where}: not a record of a shard ({error})") from error
        except ShardError as error:
            raise ShardError(f"{where}: {error}") from error
        return record


def _check_record(record: ShardRecord, samples: int) -> None:
    if not SHARD_NAME.fullmatch(record.name):
        raise ValueError(f"shard name {record.name!r}; allowed: letters, digits, _ and -, then .tar")
    if not re.fullmatch("[0-9a-f]{64}", record.sha256):
        raise ValueError(f"sha256 {record.sha256!r}")
    if not len(record.keys) == len(record.members) == samples:
        raise ValueError(f"{len(record.keys)} keys, {len(record.members)} members, {samples} samples")
    for key, fields in zip(record.keys, record.members, strict=True):
        for field, (offset, size) in fields.items():
            member_name(key, field)
            if not (type(offset) is type(size) is int and 512 <= offset <= offset + size <= record.bytes):
                raise ValueError(f"{key}.{field} lies at {offset} + {size} of {record.bytes} bytes")
