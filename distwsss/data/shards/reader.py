"""Reads samples by the index, without unpacking or scanning the tar. Called by data pipelines, seeds, evaluation.

A local shard is read in place; of one on an object store the bytes wanted are asked for, or its copy in
`hardware.scratch` is read. Only bytes come out; what they mean is decoded by `data.images` and `read_json_field`.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from distwsss.data.images import decode_mask
from distwsss.data.shards.format import ShardRecord
from distwsss.data.shards.index import ShardIndex
from distwsss.data.shards.scratch import open_copy
from distwsss.errors import ShardError
from distwsss.runtime.storage import Remote

OPEN_SHARDS = 32  # per process
NEAR = 1 << 16  # bytes between two fields that are sooner fetched than asked around
Places = dict[str, list[int]]  # field -> [offset, size]


class _Handle:
    """An open shard. Closed when the last user lets go of it, so eviction from the cache harms no thread."""

    def __init__(self, path: str, size: int) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"{path}: cannot be opened ({error.strerror}); run distwsss verify") from error
        found = os.fstat(self.descriptor).st_size
        if found != size:
            raise ShardError(f"{path}: found {found} bytes, the index says {size}; run distwsss verify")

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@lru_cache(maxsize=OPEN_SHARDS)
def _open(path: str, size: int, sha256: str) -> _Handle:
    """Cached by content too: a shard written anew at the same path is opened anew. pread keeps no position,
    so a forked process may use its parent's handles."""
    return _Handle(path, size)


def read_fields(index: ShardIndex, shard: int, position: int, fields: Sequence[str]) -> dict[str, bytes]:
    """The bytes of those `fields` that the sample has. Raises ShardError for a missing or short shard."""
    record = index.shards[shard]
    path, members = index.folder / record.name, record.members[position]
    places = {field: members[field] for field in fields if field in members}
    if not isinstance(path, Remote):
        handle = _open(str(path), record.bytes, record.sha256)  # held: another thread's may have taken its place
        found = _read_places(handle.descriptor, places)
    elif path.scratch is None:
        found = _read_ranges(path, places)
    else:
        found = _read_copy(path, record, places)
    for field, (_, size) in places.items():
        if len(found[field]) != size:
            where = f"{path}: {record.keys[position]}.{field}"
            raise ShardError(f"{where}: found {len(found[field])} of {size} bytes; run distwsss verify")
    return found


def _read_places(descriptor: int, places: Places) -> dict[str, bytes]:
    return {field: os.pread(descriptor, size, offset) for field, (offset, size) in places.items()}


def _read_copy(shard: Remote, record: ShardRecord, places: Places) -> dict[str, bytes]:
    """From the local copy, which is not held open: a removed one would go on taking its space."""
    descriptor = open_copy(shard, record)
    try:
        return _read_places(descriptor, places)
    finally:
        os.close(descriptor)


def _read_ranges(shard: Remote, places: Places) -> dict[str, bytes]:
    """By one request for each run of neighbours: for a whole sample, or most of it, that is one."""
    found = {}
    for fields in neighbours(places):
        start = places[fields[0]][0]
        try:
            data = shard.read_range(start, sum(places[fields[-1]]) - start)
        except FileNotFoundError as error:
            raise ShardError(f"{shard}: cannot be opened ({error.strerror}); run distwsss verify") from error
        for field in fields:
            offset, size = places[field]
            found[field] = data[offset - start : offset - start + size]
    return {field: found[field] for field in places}


def neighbours(places: Places) -> list[list[str]]:
    """The fields in the order of the shard, in groups with at most NEAR bytes between one and the next."""
    groups: list[list[str]] = []
    for field in sorted(places, key=lambda field: places[field]):
        if groups and places[field][0] - sum(places[groups[-1][-1]]) <= NEAR:
            groups[-1].append(field)
        else:
            groups.append([field])
    return groups


def iter_shard(index: ShardIndex, shard: int, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {field: bytes}) of every sample of a shard in order; a field that a sample lacks is absent."""
    for position, key in enumerate(index.shards[shard].keys):
        yield key, read_fields(index, shard, position, fields)


def read_json_field(data: bytes, where: str) -> dict[str, Any]:
    """The `json` field as a dictionary. Raises ShardError naming `where`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ShardError(f"{where}: found {type(value).__name__}; allowed: an object")
    return value


def read_truth(index: ShardIndex, shard: int, position: int) -> np.ndarray | None:
    """uint8[H,W] true class ids, 255 = ignore; None where the data set has no mask.

    The one function through which truth is decoded (DESIGN, Image shard).
    """
    found = read_fields(index, shard, position, ["truth.png"])
    if not found:
        return None
    return decode_mask(found["truth.png"], f"{index.folder}: {index.key(shard, position)}.truth.png")
