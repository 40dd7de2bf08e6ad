"""Files of weights as {name: tensor}, whatever wrote them; no code in them is ever run. Called by `weights`.

Formats go by the file's suffix: see `FORMATS`. A folder is one of the Hugging Face hub's: see `FOLDER_FILES`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from distwsss.errors import CheckpointError
from distwsss.models.weights.caffemodel import read_caffemodel
from distwsss.models.weights.mxnet_params import read_mxnet
from distwsss.models.weights.pickles import read_pickle

WRAPPERS = ("state_dict", "model")  # keys under which training scripts store the weights
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

    A wrapping `state_dict` or `model` and DataParallel's `module.` before every name are taken off.
    """
    path = weights_file(path)
    if path.suffix not in FORMATS:
        raise CheckpointError(f"{path}: found suffix {path.suffix!r}; allowed: {', '.join(FORMATS)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; allowed: a file of weights ({', '.join(FORMATS)}) or a folder")
    content = FORMATS[path.suffix](path)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = _tensors(content, path)
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; allowed: a mapping of names to tensors")
    others = [f"{name!r}: {type(value).__name__}" for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path}: found {', '.join(others[:5])}; allowed: a mapping of names to tensors")
    return {str(name): tensor for name, tensor in content.items()}


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a PyTorch file of tensors and plain containers, or damaged ({reason}); nothing else is "
            "unpickled"
        ) from error


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
    ".bin": _read_torch,
    ".pkl": read_pickle,
    ".safetensors": _read_safetensors,
}
