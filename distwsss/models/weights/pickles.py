"""Pickle files of arrays, tensors and plain containers, read without running what is in them. Called by `files`.

detectron2 stores its models so (`model_final_*.pkl`: names to numpy arrays), and Mask2Former's converted Swin weights
(names to tensors). A pickle is a small program that calls what it names. Here it can name what `ALLOWED` lists: stand-
ins of ours for numpy's and torch's constructors, which check what they are given and cannot be altered.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distwsss.errors import CheckpointError

NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")  # dtypes: truth values, integers, floats


class _Call:
    """What a pickle gets for a name: it can call it and nothing else."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it alters what it has named")


class _Dict(dict):
    """Stands in for OrderedDict; torch hangs the versions of modules on a state dict, which are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _DType:
    """Stands in for numpy.dtype; a state gives it the byte order."""

    __slots__ = ("_code",)

    def __init__(self, code: str, *options: Any) -> None:
        self._code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._code = str(state[1]) + self._code.lstrip("<>|=")

    @property
    def holds_objects(self) -> bool:
        return self._code.lstrip("<>|=").startswith("O")

    def real(self) -> np.dtype:
        if not NUMBERS.fullmatch(self._code):
            raise pickle.UnpicklingError(f"an array of dtype {self._code!r}")
        return np.dtype(self._code)


class _Array:
    """Stands in for numpy's `_reconstruct`; the state holds shape, dtype, order and bytes."""

    __slots__ = ("array",)

    def __init__(self, *empty: Any) -> None:
        self.array: np.ndarray | dict[Any, Any] = np.empty(0, np.float32)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.holds_objects and shape == () and len(data) == 1 and isinstance(data[0], dict):
            self.array = data[0]  # how numpy saves a dictionary; no other array of objects is read
            return
        self.array = _values(data, dtype, shape, "F" if fortran else "C")


def _values(data: Any, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 has no bytes
    values = np.frombuffer(raw, dtype.real()).reshape(shape, order="F" if order == "F" else "C")
    return np.array(values, values.dtype.newbyteorder("="))  # torch has no other byte order


def _from_buffer(data: Any, dtype: _DType, shape: tuple[int, ...], order: str, axes: Any = None) -> np.ndarray:
    if axes is not None:
        raise pickle.UnpicklingError("an array with permuted axes")
    return _values(data, dtype, shape, order)


def _scalar(dtype: _DType, data: Any) -> Any:
    return _values(data, dtype, (), "C")[()]  # can be a key


def _storage(content: bytes) -> Any:
    """torch's `_load_from_bytes`: a storage inside a pickle is a file of torch's own, read as one."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError(f"a tensor on a {type(storage).__name__}")
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage, offset, size, stride)


ARRAYS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": lambda *nothing: None,  # an argument of `_reconstruct`
    "numpy.dtype": _DType,
    **{f"numpy.{core}.multiarray._reconstruct": _Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
ALLOWED: dict[str, Callable[..., Any]] = {
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.bytes": bytes,
    "builtins.bytearray": bytearray,
    "collections.OrderedDict": _Dict,
    "_codecs.encode": lambda text, _: text.encode("latin1"),  # bytes, where the protocol has none
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch.storage._load_from_bytes": _storage,
    **ARRAYS,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Call:
        """The only way for a pickle to reach anything outside itself."""
        full = f"{module}.{name}".replace("__builtin__.", "builtins.", 1)  # Python 2's, and protocol 2's
        if full not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array, tensor or plain container")
        return _Call(ALLOWED[full])

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside the file")


def read_pickle(path: Path) -> Any:
    """What the pickle at `path` holds, arrays as tensors. Raises CheckpointError for one that names anything outside
    `ALLOWED`, or is damaged."""
    try:
        with path.open("rb") as file:
            return plain(_Reader(file, encoding="latin1").load())
    except Exception as error:  # a damaged pickle may fail in any way
        raise CheckpointError(
            f"{path}: not read ({str(error) or type(error).__name__}); allowed: a pickle of arrays, tensors and plain "
            "containers; nothing else is unpickled"
        ) from error


def read_npy_dict(path: Path) -> dict[Any, Any]:
    """The dictionary that `np.save` put into an .npy file (an array of shape () of objects), its arrays as tensors.
    Raises CheckpointError for any other file; runs nothing that is in it."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
            if shape != () or not dtype.hasobject:
                raise pickle.UnpicklingError(f"an array {list(shape)} of {dtype}, not a dictionary")
            content = plain(_Reader(file, encoding="latin1").load())
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, not a dictionary")
    except Exception as error:  # a damaged file may fail in any way
        raise CheckpointError(
            f"{path}: not read ({str(error) or type(error).__name__}); allowed: one dictionary of arrays"
        ) from error
    return content


def plain(content: Any) -> Any:
    """`content` with tensors for the arrays and scalars in it."""
    if isinstance(content, _Array):
        content = content.array
    if isinstance(content, dict):
        return {name: plain(value) for name, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(plain(value) for value in content)
    return torch.from_numpy(np.asarray(content)) if isinstance(content, np.ndarray | np.generic) else content
