"""Names of DeepLab's ResNet-101 in the files users have -> those of `resnet_caffe`. Called by `weights`.

The files: `init.caffemodel` (COCO) and `train2_iter_20000.caffemodel` (VOC) of DeepLab's authors, what
deeplab-pytorch's convert.py makes of them (`deeplabv1_resnet101-coco.pth`), and the networks it trained
(`deeplabv2_resnet101_msc-vocaug-20000.pth`).
"""

from __future__ import annotations

import re
from itertools import groupby

from torch import Tensor

from distwsss.runtime.progress import log

Tensors = dict[str, Tensor]

BASE = "base."  # deeplab-pytorch's multi-scale wrapper puts it before every name
COPIES = ("res075", "res05")  # layers of the branches at scales 0.75 and 0.5, which share the weights of scale 1
BLOCK = re.compile(r"(res|bn|scale)([2-5])([abc]|b\d+)_branch(1|2a|2b|2c)")
STEM = {"conv1": "res", "bn_conv1": "bn", "scale_conv1": "scale"}
BRANCHES = {"1": "shortcut", "2a": "reduce", "2b": "conv3x3", "2c": "increase"}
ASPP_BRANCH = re.compile(r"aspp\.c(\d)\.")
ASPP = re.compile(r"fc\d*_\w+_(c[0-3])")


def deeplab_names(tensors: Tensors) -> Tensors:
    """`tensors` under the names of `resnet_caffe.CaffeResNet101`; heads are `fc.*` or `aspp.c0.*` to `aspp.c3.*`.

    Raises ValueError for layers of another make than DeepLab's. Unknown names stay, for `load_exactly` to refuse.
    """
    if any("/" in name for name in tensors):
        return _from_caffe(tensors)
    if all(name.startswith(BASE) for name in tensors):
        return {name.removeprefix(BASE): tensor for name, tensor in tensors.items()}
    return tensors


def network_names(tensors: Tensors) -> Tensors:
    """`tensors` of a whole DeepLab-V2 under the names of `deeplab_classic.ClassicDeepLab`."""
    if any(name.startswith("backbone.") for name in tensors):
        return tensors  # one of ours
    named = deeplab_names(tensors)
    return {ASPP_BRANCH.sub(r"head.branches.\1.", _in_backbone(name)): tensor for name, tensor in named.items()}


def _in_backbone(name: str) -> str:
    return f"backbone.net.{name}" if name.startswith("layer") else name


def _from_caffe(tensors: Tensors) -> Tensors:
    """`LAYER/i` -> PyTorch's parameters. What Caffe's BatchNorm stores is its sums and how much was summed."""
    named: Tensors = {}
    copies = []
    for layer, names in groupby(tensors, lambda name: name.rpartition("/")[0]):
        blobs = [tensors[name] for name in names]
        if any(mark in layer for mark in COPIES):
            copies.append(layer)
            continue
        named.update(_layer(layer, blobs))
    if copies:
        log.info(f"left out {len(copies)} layers that repeat the weights of scale 1: {copies[0]}, ...")
    return named


def _layer(layer: str, blobs: list[Tensor]) -> Tensors:
    kind, place = _place(layer)
    if kind == "":
        return {f"{layer}/{i}": blob for i, blob in enumerate(blobs)}
    if kind == "head":
        return {f"{place}.{last}": blob for last, blob in zip(("weight", "bias"), blobs, strict=False)}
    wanted = {"res": 1, "bn": 3, "scale": 2}[kind]
    if len(blobs) != wanted:
        raise ValueError(f"layer {layer} has {len(blobs)} blobs; allowed: {wanted}, as in DeepLab's ResNet-101")
    if kind == "res":
        return {f"{place}.conv.weight": blobs[0]}
    if kind == "scale":
        return {f"{place}.bn.weight": blobs[0].flatten(), f"{place}.bn.bias": blobs[1].flatten()}
    mean, variance = (blob.flatten().double() / _factor(layer, blobs[2]) for blob in blobs[:2])
    return {f"{place}.bn.running_mean": mean.float(), f"{place}.bn.running_var": variance.float()}


def _place(layer: str) -> tuple[str, str]:
    """What a layer holds (`res`, `bn`, `scale`, `head` or nothing known) and the module it belongs to."""
    if layer in STEM:
        return STEM[layer], "layer1.conv1"
    block = BLOCK.fullmatch(layer)
    if block:
        kind, level, number, branch = block.groups()
        index = "abc".index(number) + 1 if len(number) == 1 else int(number[1:]) + 1  # a, b1, b2, ... or a, b, c
        return kind, f"layer{level}.block{index}.{BRANCHES[branch]}"
    aspp = ASPP.fullmatch(layer)
    if aspp or layer.startswith("fc"):
        return "head", f"aspp.{aspp.group(1)}" if aspp else "fc"
    return "", ""


def _factor(layer: str, blob: Tensor) -> float:
    if blob.numel() != 1 or blob.item() == 0:
        raise ValueError(f"layer {layer}: it is scaled by {blob.flatten()[:3].tolist()}; allowed: one number, not 0")
    return blob.item()
