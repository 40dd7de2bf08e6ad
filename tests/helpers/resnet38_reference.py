"""ResNet38 a second time, for tests: its published names and shapes, its MXNet names, and a plain functional forward.

Names and shapes: jiwoon-ahn/psa network/resnet38d.py; MXNet names: itijyou/ademxapp util/symbol/resnet_v2.py.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# unit: (its name in MXNet, [(branch, out, in, kernel)]), 2a and 2b on the main path, 1 the projection
PLAIN = {
    "b2": ("2a", [("2a", 128, 64, 3), ("2b1", 128, 128, 3), ("1", 128, 64, 1)]),
    "b2_1": ("2b1", [("2a", 128, 128, 3), ("2b1", 128, 128, 3)]),
    "b2_2": ("2b2", [("2a", 128, 128, 3), ("2b1", 128, 128, 3)]),
    "b3": ("3a", [("2a", 256, 128, 3), ("2b1", 256, 256, 3), ("1", 256, 128, 1)]),
    "b3_1": ("3b1", [("2a", 256, 256, 3), ("2b1", 256, 256, 3)]),
    "b3_2": ("3b2", [("2a", 256, 256, 3), ("2b1", 256, 256, 3)]),
    "b4": ("4a", [("2a", 512, 256, 3), ("2b1", 512, 512, 3), ("1", 512, 256, 1)]),
    "b4_1": ("4b1", [("2a", 512, 512, 3), ("2b1", 512, 512, 3)]),
    "b4_2": ("4b2", [("2a", 512, 512, 3), ("2b1", 512, 512, 3)]),
    "b4_3": ("4b3", [("2a", 512, 512, 3), ("2b1", 512, 512, 3)]),
    "b4_4": ("4b4", [("2a", 512, 512, 3), ("2b1", 512, 512, 3)]),
    "b4_5": ("4b5", [("2a", 512, 512, 3), ("2b1", 512, 512, 3)]),
    "b5": ("5a", [("2a", 512, 512, 3), ("2b1", 1024, 512, 3), ("1", 1024, 512, 1)]),
    "b5_1": ("5b1", [("2a", 512, 1024, 3), ("2b1", 1024, 512, 3)]),
    "b5_2": ("5b2", [("2a", 512, 1024, 3), ("2b1", 1024, 512, 3)]),
    "b6": ("6a", [("2a", 512, 1024, 1), ("2b1", 1024, 512, 3), ("2b2", 2048, 1024, 1), ("1", 2048, 1024, 1)]),
    "b7": ("7a", [("2a", 1024, 2048, 1), ("2b1", 2048, 1024, 3), ("2b2", 4096, 2048, 1), ("1", 4096, 2048, 1)]),
}
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}


def layers() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Published PyTorch name -> (name in the MXNet file, shape), without counters and classification layers."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {"conv1a.weight": ("arg:conv1a_weight", (64, 3, 3, 3))}
    norms = {"bn7": ("bn7", 4096)}
    for unit, (mxnet, convolutions) in PLAIN.items():
        for branch, outside, inside, kernel in convolutions:
            shape = (outside, inside, kernel, kernel)
            found[f"{unit}.conv_branch{branch}.weight"] = (f"arg:res{mxnet}_branch{branch}_weight", shape)
            if branch != "1":
                norms[f"{unit}.bn_branch{branch}"] = (f"bn{mxnet}_branch{branch}", inside)
    for name, (mxnet, width) in norms.items():
        for last, their in NORM.items():
            found[f"{name}.{last}"] = (f"{'aux' if last.startswith('running') else 'arg'}:{mxnet}_{their}", (width,))
    return found


def random_weights() -> dict[str, Tensor]:
    """Values that keep the signal near 1 and every BatchNorm term visible."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, (_, shape) in layers().items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 4:
            values *= (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith(("running_var", "bn_weight")) or (name.endswith("weight") and ".bn" in f".{name}"):
            values = values.abs() * 0.3 + 0.8
        else:
            values *= 0.1
        weights[name] = values
    return weights


def functional_forward(images: Tensor, w: dict[str, Tensor], p6: float = 0.0, p7: float = 0.0) -> Tensor:
    """The network as the papers' code describes it, from its weights alone; dropouts active where p is above 0."""

    def active(x: Tensor, name: str) -> Tensor:
        scale = w[f"{name}.weight"] / (w[f"{name}.running_var"] + 1e-5).sqrt()
        shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
        return (x * scale[:, None, None] + shift[:, None, None]).clamp(min=0)

    def conv(x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        return F.conv2d(x, weight, None, stride, dilation if weight.shape[-1] == 3 else 0, dilation)

    def drop(x: Tensor, p: float) -> Tensor:
        return F.dropout2d(x, p) if p else x

    strides, dilations = {"b2": 2, "b3": 2, "b4": 2}, {"b5": (1, 2), "b5_1": (2, 2), "b5_2": (2, 2)}
    x = conv(images, "conv1a")
    for unit in list(PLAIN)[:15]:
        stride, (first, second) = strides.get(unit, 1), dilations.get(unit, (1, 1))
        y = active(x, f"{unit}.bn_branch2a")
        shortcut = conv(y, f"{unit}.conv_branch1", stride) if f"{unit}.conv_branch1.weight" in w else x
        y = active(conv(y, f"{unit}.conv_branch2a", stride, first), f"{unit}.bn_branch2b1")
        x = shortcut + conv(y, f"{unit}.conv_branch2b1", 1, second)
    for unit, p in (("b6", p6), ("b7", p7)):
        y = active(x, f"{unit}.bn_branch2a")
        shortcut = conv(y, f"{unit}.conv_branch1")
        y = drop(active(conv(y, f"{unit}.conv_branch2a"), f"{unit}.bn_branch2b1"), p)
        y = drop(active(conv(y, f"{unit}.conv_branch2b1", 1, 4), f"{unit}.bn_branch2b2"), p)
        x = shortcut + conv(y, f"{unit}.conv_branch2b2")
    return active(x, "bn7")


def write_mxnet(path: Path, arrays: dict[str, np.ndarray], magic: int | None) -> None:
    """A dense .params file as MXNet writes it; `magic`: None for the layout up to 2016, else that of V1 or V2."""
    flags = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}
    with path.open("wb") as file:
        file.write(struct.pack("<QQQ", 0x112, 0, len(arrays)))
        for array in arrays.values():
            if magic is None:
                file.write(struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape))
            else:
                file.write(struct.pack("<I", magic) + (struct.pack("<i", 0) if magic == 0xF993FAC9 else b""))
                file.write(struct.pack(f"<I{array.ndim}q", array.ndim, *array.shape))
            file.write(struct.pack("<iii", 1, 0, flags[str(array.dtype)]) + array.tobytes())
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            file.write(struct.pack("<Q", len(name)) + name.encode())
