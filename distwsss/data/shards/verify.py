"""Finds every damaged byte, and everything in a shard that has no place there. Called by `distwsss verify`, and with
`verified` by the stages that read shards.

Bytes are compared by sha256, names and offsets with tarfile (an independent reader), contents by decoding.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from distwsss.data.images import IGNORE, decode_clean, decode_image, decode_mask
from distwsss.data.shards.format import INDEX, INDEX_DIGEST, REQUIRED, ShardRecord, split_member
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_json_field
from distwsss.data.shards.scratch import check_copy, damage
from distwsss.errors import DataError, ShardError, report_problems
from distwsss.runtime.artifacts import sha256_file
from distwsss.runtime.storage import Folder


def verify(path: Folder) -> list[str]:
    """Problems of a folder of shards, or of all such folders below `path`; empty when all is well."""
    if not path.is_dir():
        return [f"{path}: no such folder"]
    files = [file for file in path.rglob("*") if file.name.endswith(".tar") or file.name in (INDEX, INDEX_DIGEST)]
    folders = sorted({file.parent for file in files}, key=str)
    if not folders:
        return [f"{path}: holds no {INDEX} and no shards"]
    return [problem for folder in folders for problem in _verify_folder(folder)]


def _verify_folder(folder: Folder) -> list[str]:
    try:
        index = load_index(folder)
    except ShardError as error:
        return [str(error)]
    named = {record.name for record in index.shards}
    found = sorted(tar.name for tar in folder.glob("*.tar"))
    problems = [f"{folder / name}: not named by {INDEX}" for name in found if name not in named]
    for shard in range(len(index.shards)):
        problems += _verify_shard(index, shard)
    return problems


def _verify_shard(index: ShardIndex, shard: int) -> list[str]:
    """Of the stored bytes themselves, never of a copy in `hardware.scratch`."""
    record = index.shards[shard]
    path = index.folder / record.name
    if not path.is_file():
        return [f"{path}: missing"]
    data = path.read_bytes()
    found = damage(data, record)
    problems = [f"{path}: {found}"] if found else []
    problems += _member_problems(data, path, record)
    return problems or _content_problems(index, shard, data)


def digest_problems(index: ShardIndex, shard: int) -> list[str]:
    """Whether the shard's bytes are those the index was written for; enough to notice any damage.

    With `hardware.scratch` those of the local copy, which are the ones that will be read.
    """
    record = index.shards[shard]
    path = index.folder / record.name
    try:
        if isinstance(path, Path):
            return _file_problems(path, record)
        if path.scratch is None:
            found = damage(path.read_bytes(), record)
            return [f"{path}: {found}"] if found else []
        check_copy(path, record)
    except FileNotFoundError:
        return [f"{path}: missing"]
    except ShardError as error:
        return [str(error)]
    return []


def _file_problems(path: Path, record: ShardRecord) -> list[str]:
    if not path.is_file():
        return [f"{path}: missing"]
    size = path.stat().st_size
    if size != record.bytes:
        return [f"{path}: found {size} bytes, {INDEX} says {record.bytes}"]
    if sha256_file(path) != record.sha256:
        return [f"{path}: sha256 differs from {INDEX}"]
    return []


def verified(index: ShardIndex) -> ShardIndex:
    """`index`, after the bytes of all its shards are compared with it. Raises ShardError naming every damaged one."""
    problems = [problem for shard in range(len(index.shards)) for problem in digest_problems(index, shard)]
    if problems:
        raise ShardError(report_problems(f"{index.folder}: damaged", problems))
    return index


def _member_problems(data: bytes, path: Folder, record: ShardRecord) -> list[str]:
    """The tar's members against the index: names, offsets, sizes, nothing twice, only regular files."""
    expected = {
        f"{key}.{field}": place
        for key, fields in zip(record.keys, record.members, strict=True)
        for field, place in fields.items()
    }
    problems: list[str] = []
    found: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                problems += [f"{path}: {text}" for text in _one_member(info, expected, found)]
                found.add(info.name)
    except Exception as error:  # damaged headers raise TarError, OSError, ValueError, OverflowError, ...
        problems.append(f"{path}: not a whole tar ({error})")
    problems += [f"{path}: {name}: in {INDEX}, missing in the shard" for name in expected if name not in found]
    return problems


def _one_member(info: tarfile.TarInfo, expected: dict[str, list[int]], before: set[str]) -> list[str]:
    try:
        split_member(info.name)
    except ShardError as error:
        return [f"unsafe member {info.name!r}: {error}"]
    if info.type != tarfile.REGTYPE or info.issparse():
        return [f"{info.name}: not a regular file (type {info.type!r})"]
    if info.name in before:
        return [f"{info.name}: stands twice"]
    if info.name not in expected:
        return [f"{info.name}: in the shard, not in {INDEX}"]
    if [info.offset_data, info.size] != expected[info.name]:
        return [f"{info.name}: lies at {info.offset_data} + {info.size}, {INDEX} says {expected[info.name]}"]
    return []


def _content_problems(index: ShardIndex, shard: int, data: bytes) -> list[str]:
    record = index.shards[shard]
    problems = []
    for position, key in enumerate(record.keys):
        where = f"{index.folder / record.name}: {key}"
        fields = list(record.members[position])
        needed = REQUIRED[index.kind]
        if index.kind == "seeds":
            needed = tuple(f"s{i}.png" for i in range(len(index.extra.get("seeds", [0]))))
        problems += [f"{where}.{field}: missing" for field in needed if field not in fields]
        sample = {field: data[offset : offset + size] for field, (offset, size) in record.members[position].items()}
        problems += _sample_problems(sample, where, len(index.classes))
    return problems


def _sample_problems(data: dict[str, bytes], where: str, classes: int) -> list[str]:
    """Every field decodes, all sizes agree, class ids and labels exist. Truth has the size of the photograph itself."""
    problems: list[str] = []
    sizes: dict[str, Any] = {}
    original = None
    for field, payload in data.items():
        name = f"{where}.{field}"
        try:
            if field == "json":
                about = read_json_field(payload, name)
                sizes[field] = _check_json(about, name, classes)
                original = _check_size(about, "original", name)
            else:
                sizes[field] = _check_pixels(field, payload, name, classes)
        except (DataError, ShardError) as error:
            problems.append(str(error))
    if original is not None and "truth.png" in sizes:
        truth = sizes.pop("truth.png")
        problems += [f"{where}: truth.png is {truth}, the original {original}"] if truth != original else []
    if len({tuple(size) for size in sizes.values() if size is not None}) > 1:
        problems.append(f"{where}: sizes [H,W] differ: {sizes}")
    return problems


def _check_json(value: dict[str, Any], where: str, classes: int) -> Any:
    """Returns its size [H,W], or None without one."""
    labels = value.get("labels")
    if labels is not None:
        allowed = range(1, classes)
        good = isinstance(labels, list) and all(type(label) is int and label in allowed for label in labels)
        if not good or labels != sorted(set(labels)):
            raise ShardError(f"{where}: found labels {labels!r}; allowed: null or ascending ids of 1..{classes - 1}")
    return _check_size(value, "size", where)


def _check_size(value: dict[str, Any], name: str, where: str) -> Any:
    size = value.get(name)
    if size is not None and not (isinstance(size, list) and [type(side) for side in size] == [int, int]):
        raise ShardError(f"{where}: found {name} {size!r}; allowed: [H, W]")
    return size


def _check_pixels(field: str, data: bytes, where: str, classes: int) -> list[int]:
    """Decodes the field; returns its size [H,W]."""
    if field == "jpg":
        return list(decode_image(data, where).shape[:2])
    if field == "clean.png":
        return list(decode_clean(data, where).shape)
    mask = decode_mask(data, where)
    if field not in ("votes.png", "saliency.png") and field[0] != "m":  # class ids
        values, counts = np.unique(mask, return_counts=True)
        if any(value >= classes and value != IGNORE for value in values):
            histogram = dict(zip(values.tolist(), counts.tolist(), strict=True))
            found = f"found class ids {histogram} (id: pixels)"
            raise ShardError(f"{where}: {found}; allowed: 0..{classes - 1} and {IGNORE}")
    return list(mask.shape)
