"""`.caffemodel` files read without Caffe and without protobuf. Called by `files`.

Such a file is one protobuf message (caffe.proto, NetParameter): fields, each a varint `number << 3 | wire type` and a
value. Of these only names and weights are looked at: `layer` 100 (name 1, blobs 7) or, before 2015, `layers` 2 (name 4,
blobs 6); in a blob, shape 7 or num, channels, height, width 1 to 4, and float data 5 or double data 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distwsss.errors import CheckpointError

LAYERS = {100: (1, 7), 2: (4, 6)}  # field of NetParameter -> fields of the layer's name and blobs
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
NUMBERS = {5: "<f4", 8: "<f8"}
Value = int | memoryview


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """`LAYER/i` -> blob i of that layer, float32 or float64, in the file's shape.

    Raises CheckpointError where the file is cut or damaged, is of another format, or names a layer twice.
    """
    found: dict[str, Tensor] = {}
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            if number in LAYERS:
                blobs = _layer(_message(value), *LAYERS[number])
                if not blobs.keys().isdisjoint(found):
                    raise ValueError(f"{next(iter(blobs))}: its layer is there twice")
                found.update(blobs)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; allowed: a whole .caffemodel file") from error
    if not found:
        raise CheckpointError(f"{path}: holds no layer with weights; allowed: a whole .caffemodel file")
    return found


def _layer(data: memoryview, name_field: int, blobs_field: int) -> dict[str, Tensor]:
    fields = list(_fields(data))
    names = [bytes(_message(value)) for number, value in fields if number == name_field]
    blobs = [_message(value) for number, value in fields if number == blobs_field]
    name = (names or [b""])[-1].decode()  # one that is not UTF-8 is a ValueError
    return {f"{name}/{i}": _blob(blob, f"{name}/{i}") for i, blob in enumerate(blobs)}


def _blob(data: memoryview, name: str) -> Tensor:
    sides: dict[int, int] = {}
    shape: list[int] | None = None
    chunks: dict[int, list[memoryview]] = {number: [] for number in NUMBERS}
    for number, value in _fields(data):
        if number in chunks:
            chunks[number].append(_message(value))
        elif number == 7:
            shape = [side for field, packed in _fields(_message(value)) if field == 1 for side in _varints(packed)]
        elif number in (1, 2, 3, 4) and isinstance(value, int):
            sides[number] = value
    kind = 8 if chunks[8] else 5
    values = np.frombuffer(b"".join(chunks[kind]), NUMBERS[kind])  # a length that does not fit is a ValueError
    if shape is None:
        shape = [sides.get(number, 0) for number in (1, 2, 3, 4)] if sides else [len(values)]
    if math.prod(shape) != len(values):
        raise ValueError(f"{name}: {len(values)} values for the shape {tuple(shape)}")
    return torch.from_numpy(values.reshape(shape).copy())


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field: the bytes of what has bytes, the number of a varint."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire, size = key & 7, 0
        if wire == VARINT:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"byte {at}: a field of wire type {wire}")
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes, of which {len(data) - at} are there")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends inside a number")
        number |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return number, at
    raise ValueError("a number of more than 64 bits")


def _varints(value: Value) -> Iterator[int]:
    """One number, or all of a packed list."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value
