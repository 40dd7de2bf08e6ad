"""MXNet `.params` files read without mxnet (its `NDArray::Load`, src/ndarray/ndarray.cc). Called by `files`.

File: uint64 0x112, uint64 0, the arrays (uint64 count), their names (uint64 count, each a uint64 length and bytes).
Array: uint32 magic; V2 and V3: int32 storage type; shape as uint32 ndim and int64 sides (before V1, in files up to
2016, the "magic" is ndim itself and sides are uint32); int32 device type and id; int32 dtype; the values. All little
endian. V3 alone (numpy shapes) can hold scalars: elsewhere ndim 0 means "no array".
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distwsss.errors import CheckpointError

LIST_MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
MAX_DIMS = 32
DTYPES = ["<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8"]  # mshadow's type flags 0..6


class _Cursor:
    """A position in the file's bytes; every read is checked against what is left."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, path.read_bytes(), 0

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: byte {self.at}: {problem}; allowed: a whole MXNet .params file")

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise self.error(f"{count} bytes should follow, {len(self.data) - self.at} are left")
        self.at += count
        return memoryview(self.data)[self.at - count : self.at]

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def count(self) -> int:
        """How many arrays or names follow; each takes 4 bytes or more."""
        (number,) = self.unpack("Q")
        if number > len(self.data) // 4:
            raise self.error(f"{number} entries should follow in a file of {len(self.data)} bytes")
        return number


def read_mxnet(path: Path) -> dict[str, Tensor]:
    """name -> tensor in the file's dtype, names without `arg:` and `aux:`. Dense arrays only.

    Raises CheckpointError where the file is cut, is of another format, or holds a sparse array or a name twice.
    """
    cursor = _Cursor(path)
    if cursor.unpack("QQ")[0] != LIST_MAGIC:
        raise CheckpointError(f"{path}: not an MXNet .params file (it does not start with 0x112)")
    arrays = [_array(cursor) for _ in range(cursor.count())]
    names = [_name(cursor) for _ in range(cursor.count())]
    if len(names) != len(arrays) or len(set(names)) != len(names):
        raise cursor.error(f"{len(arrays)} arrays with {len(set(names))} different names")
    if cursor.at != len(cursor.data):
        raise cursor.error(f"{len(cursor.data) - cursor.at} bytes too many")
    return dict(zip(names, arrays, strict=True))


def _array(cursor: _Cursor) -> Tensor:
    (magic,) = cursor.unpack("I")
    if magic in (V2, V3):
        (storage,) = cursor.unpack("i")
        if storage != 0:
            raise cursor.error(f"a sparse array (storage type {storage}), only dense ones are read")
    shape = _shape(cursor, magic)
    if not shape and magic != V3:
        return torch.empty(0)
    _, _, flag = cursor.unpack("iii")
    if not 0 <= flag < len(DTYPES):
        raise cursor.error(f"dtype {flag}, known are 0 to {len(DTYPES) - 1}")
    dtype = np.dtype(DTYPES[flag])
    values = cursor.take(math.prod(shape) * dtype.itemsize)
    return torch.from_numpy(np.frombuffer(values, dtype).reshape(shape).copy())


def _shape(cursor: _Cursor, magic: int) -> tuple[int, ...]:
    has_magic = magic in (V1, V2, V3)
    ndim = cursor.unpack("i")[0] if has_magic else magic
    if not 0 <= ndim <= MAX_DIMS:
        raise cursor.error(f"an array of {ndim} dimensions")
    shape = cursor.unpack(f"{ndim}{'q' if has_magic else 'I'}")
    if min(shape, default=0) < 0:
        raise cursor.error(f"an array of shape {shape}")
    return shape


def _name(cursor: _Cursor) -> str:
    (length,) = cursor.unpack("Q")
    try:
        return str(cursor.take(length), "utf-8").removeprefix("arg:").removeprefix("aux:")
    except UnicodeDecodeError as error:
        raise cursor.error("a name that is not UTF-8") from error
