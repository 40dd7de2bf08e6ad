"""Writes one shard, and the index beside all of them. Called by `prepare` and `seeds`.

Python's tarfile writes them rather than webdataset.TarWriter, which sorts the members of a sample.
"""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from distwsss.data.shards.format import (
    FORMAT,
    INDEX,
    INDEX_DIGEST,
    REQUIRED,
    SHARD_NAME,
    ShardRecord,
    digest_line,
    member_name,
)
from distwsss.errors import ShardError
from distwsss.runtime.artifacts import fingerprint, sha256_bytes, to_json, write_bytes
from distwsss.runtime.storage import Folder


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append one member; returns the offset of its payload. TarInfo's defaults: mtime, uid, gid 0, mode 0644."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.fileobj.tell() - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def shard_bytes(name: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> tuple[ShardRecord, bytes]:
    """(key, {field: bytes}) samples as the tar called `name`, members in the order given; equal samples, equal bytes.

    Plain USTAR (a pax header only where a member name exceeds 100 bytes).
    Raises ShardError for a doubled, unsafe or empty sample and a name that is not NAME.tar.
    """
    if not SHARD_NAME.fullmatch(name):
        raise ShardError(f"{name}: allowed as a shard's file name: letters, digits, _ and -, then .tar")
    members: dict[str, dict[str, list[int]]] = {}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for key, fields in samples:
            if key in members or not fields:
                raise ShardError(f"{name}: {key}: {'stands twice' if key in members else 'has no fields'}")
            members[key] = {
                field: [_add(tar, member_name(key, field), data), len(data)] for field, data in fields.items()
            }
    data = buffer.getvalue()
    return ShardRecord(name, len(data), sha256_bytes(data), list(members), list(members.values())), data


def publish_shard(folder: Folder, record: ShardRecord, data: bytes) -> None:
    """`data`, the shard of `record`, in `folder` under its name, visible only whole: by a rename, or by one PUT."""
    write_bytes(folder / record.name, data)


def write_shard(path: Folder, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> ShardRecord:
    """Both of the above: `shard_bytes` of the samples, published at `path`. Raises what they raise."""
    record, data = shard_bytes(path.name, samples)
    publish_shard(path.parent, record, data)
    return record


def write_index(
    folder: Folder,
    records: list[ShardRecord],
    parameters: dict[str, Any],
    classes: list[str],
    kind: str,
    extra: dict[str, Any] | None = None,
) -> None:
    """`index.json.sha256`, then `index.json`: the folder counts as complete once the second exists.

    `classes` starts with background. Raises ShardError for an unknown kind or a key in two shards.
    """
    if kind not in REQUIRED:
        raise ShardError(f"{folder}: kind {kind!r}; allowed: {', '.join(REQUIRED)}")
    keys = [key for record in records for key in record.keys]
    if len(set(keys)) != len(keys):
        doubled = sorted(key for key, count in Counter(keys).items() if count > 1)
        raise ShardError(f"{folder}: keys in two shards: {', '.join(doubled[:10])}")
    index = {
        **(extra or {}),
        "format": FORMAT,
        "kind": kind,
        "classes": classes,
        "parameters": parameters,
        "fingerprint": fingerprint(parameters),
        "shards": [record.to_json() for record in records],
    }
    data = to_json(index)
    (folder / INDEX).unlink(missing_ok=True)  # a kill between the two files leaves no index, never a wrong pair
    write_bytes(folder / INDEX_DIGEST, digest_line(data))
    write_bytes(folder / INDEX, data)
