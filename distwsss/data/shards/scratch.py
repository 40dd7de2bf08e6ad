"""Whole shards of an object store kept on a local disk (`hardware.scratch`). Called by `reader` and `verify`.

A file is called by the sha256 that the index gives its shard, so runs and processes share a folder, and what has that
name is right: it is compared before it is renamed. `SHA.lock` is held while a shard is fetched, so a machine fetches it
once; `lock` while anything is written or removed, so a temporary file seen under it is a dead process's.
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from distwsss.data.shards.format import INDEX, ShardRecord
from distwsss.errors import ShardError
from distwsss.runtime.artifacts import sha256_bytes, sha256_file, write_bytes
from distwsss.runtime.storage import Remote, Scratch


def open_copy(shard: Remote, record: ShardRecord) -> int:
    """A descriptor, the caller's to close, of the local copy of a shard; fetched where there is none.

    Raises ShardError where the object is missing or other bytes than the index says.
    """
    assert shard.scratch is not None
    path = shard.scratch.folder / f"{record.sha256}.tar"
    found = _open(path, record.bytes)
    if found is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = _open(path, record.bytes)
            if found is None:  # not fetched by another process meanwhile
                found = _fetch(shard, record, path, shard.scratch)
    return found


def check_copy(shard: Remote, record: ShardRecord) -> None:
    """Compares the local copy with the index, and fetches it anew if its disk damaged it. Raises like `open_copy`."""
    assert shard.scratch is not None
    path = shard.scratch.folder / f"{record.sha256}.tar"
    if path.is_file() and sha256_file(path) != record.sha256:
        path.unlink(missing_ok=True)
    os.close(open_copy(shard, record))


def damage(data: bytes, record: ShardRecord) -> str | None:
    """How the bytes of a shard differ from what the index says; None where they do not."""
    if len(data) != record.bytes:
        return f"found {len(data)} bytes, {INDEX} says {record.bytes}"
    return None if sha256_bytes(data) == record.sha256 else f"sha256 differs from {INDEX}"


def _open(path: Path, size: int) -> int | None:
    """Opened, and marked as used now; None where there is no such file of that size."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        return None
    os.utime(descriptor)
    return descriptor


def _fetch(shard: Remote, record: ShardRecord, path: Path, scratch: Scratch) -> int:
    try:
        data = shard.read_bytes()
    except FileNotFoundError as error:
        raise ShardError(f"{shard}: missing; run distwsss verify") from error
    if found := damage(data, record):
        raise ShardError(f"{shard}: {found}; run distwsss verify")
    with FileLock(scratch.folder / "lock"):
        _make_room(scratch, record.bytes)
        write_bytes(path, data)
        return os.open(path, os.O_RDONLY)


def _make_room(scratch: Scratch, size: int) -> None:
    """Leftovers of dead processes go, then the least recently used shards, until `size` more bytes fit."""
    for stale in scratch.folder.glob(".*.tmp"):
        stale.unlink(missing_ok=True)
    shards = sorted(scratch.folder.glob("*.tar"), key=lambda path: path.stat().st_mtime_ns)
    total = size + sum(path.stat().st_size for path in shards)
    for path in shards:
        if total <= scratch.limit:
            break
        total -= path.stat().st_size
        path.unlink()
        path.with_suffix(".lock").unlink(missing_ok=True)  # at worst a shard is fetched twice
