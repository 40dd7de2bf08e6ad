"""Files of weights as {name: tensor}, whatever wrote them; no code in them is ever run. Called by `weights`.

Formats go by the file's suffix, those of torch by their content: see `FORMATS`. A folder is one of the Hugging Face
hub's: see `FOLDER_FILES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distwsss.errors import CheckpointError
from distwsss.models.weights.caffemodel import read_caffemodel
from distwsss.models.weights.looks import by_content, check_looks
from distwsss.models.weights.mxnet_params import read_mxnet
from distwsss.models.weights.pickles import ARRAYS, plain, read_pickle
from distwsss.runtime.progress import log

# keys under which training scripts store the weights, the first one found
WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "params", "weights"),
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict", "params_ema", "teacher", "student", "module"),
)
PREFIXES = ("module.", "_orig_mod.", "model.")  # before every name: of DataParallel, torch.compile, Lightning
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # what a folder of the hub holds, the first one found


def weights_file(path: str | Path) -> Path:
    """The file that holds the weights, absolute: `path` itself, or that of the folder `path`. Raises CheckpointError
    without."""
    path = Path(path).absolute()
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path}: a folder without {' or '.join(FOLDER_FILES)}; allowed: one as the hub has them")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Raises CheckpointError where it is missing, unknown, damaged or holds no tensors.

    What is around the weights (`WRAPPERS`) and before every name (`PREFIXES`) is taken off.
    """
    path = weights_file(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; allowed: a file of weights ({', '.join(FORMATS)}) or a folder")
    check_looks(path)
    suffix = path.suffix.lower()
    if suffix not in FORMATS or FORMATS[suffix] is _read_torch:  # such files are called anything
        suffix = by_content(path) or suffix
    if suffix not in FORMATS:
        raise CheckpointError(f"{path}: found suffix {path.suffix!r}; allowed: {', '.join(FORMATS)}")
    tensors = _tensors(_unwrapped(FORMATS[suffix](path), path), path)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _unwrapped(content: Any, path: Path) -> Any:
    """The weights inside what a training script stored; the log says which, where there is a choice."""
    while isinstance(content, dict):
        wrapped = [name for name, value in content.items() if isinstance(value, dict) and value]
        with_tensors = [name for name in wrapped if _holds_tensors(content[name])]
        known = [name for name in WRAPPERS if name in wrapped]
        if not known and not _holds_tensors(content):
            known = next((names for names in (with_tensors, wrapped) if len(names) == 1), [])
        if not known:
            break
        chosen = known[0]
        if others := [str(name) for name in with_tensors if name != chosen]:
            log.info(f"{path}: takes the weights under {chosen!r}; those under {', '.join(others)} are left")
        content = content[chosen]
    return content


def _holds_tensors(content: Any) -> bool:
    """Whether most of it are tensors: a script may keep one beside the weights (its best score)."""
    values = list(content.values()) if isinstance(content, dict) else []
    return 2 * sum(isinstance(value, Tensor) for value in values) > len(values)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; allowed: a mapping of names to tensors")
    others = [f"{name!r}: {type(value).__name__}" for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path}: found {', '.join(others[:5])}; allowed: a mapping of names to tensors")
    return {str(name): tensor for name, tensor in content.items()}


def _read_torch(path: Path) -> Any:
    """Tensors, arrays and plain containers."""
    with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in ARRAYS.items()]):
        try:
            return plain(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a damaged file may fail in any way
            raise CheckpointError(f"{path}: {_reason(path, error)}; nothing of it was run") from error


def _reason(path: Path, error: Exception) -> str:
    """Why torch does not read a file: the names in it that are not allowed, all of them where the file lists them."""
    with suppress(Exception):
        if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
            return _names(sorted(names))
    text = str(error)
    if found := re.search(r"an array of dtype \S+", text):
        return f"holds {found[0]}; allowed: arrays of numbers"
    if found := re.search(r"(?:GLOBAL|Unsupported (?:class|global):?) ([\w.]+\.\w+)", text):
        return _names([found[1]])
    first = text.splitlines()[0] if text else type(error).__name__
    return f"not a PyTorch file of tensors, arrays and plain containers, or damaged ({first})"


def _names(names: list[str]) -> str:
    return (
        f"holds {', '.join(names[:8])}; allowed: tensors, arrays, numbers, text and plain containers. Where you trust "
        "the file, save its weights alone: torch.save(torch.load(FILE, weights_only=False)[KEY], 'weights.pth')"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file, or damaged ({error})") from error


# suffix -> reader
FORMATS: dict[str, Callable[[Path], Any]] = {
    ".caffemodel": read_caffemodel,
    ".params": read_mxnet,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".tar": _read_torch,  # NAME.pth.tar, which is no archive
    ".ckpt": _read_torch,
    ".bin": _read_torch,
    ".pkl": read_pickle,
    ".safetensors": _read_safetensors,
}
