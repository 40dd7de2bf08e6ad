"""DeepLab on ResNet-101 a second time, for tests: published names and shapes, torchvision's building blocks, files.

Names and shapes: kazuto1011/deeplab-pytorch libs/models/resnet.py and deeplabv2.py, and its convert.py for Caffe's;
torchvision's resnet101; usr922/wseg segmentation/lib/net/backbone/resnet.py for the deep stem of resnet101s.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

Shapes = dict[str, tuple[int, ...]]
BLOCKS = (3, 4, 23, 3)  # of the four layers of ResNet-101 (arXiv 1512.03385, table 1)
NORM = ("weight", "bias", "running_mean", "running_var")


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.{last}": (width,) for last in NORM}


def torchvision_shapes(deep_stem: bool = False) -> Shapes:
    """Names and shapes of resnet101-5d3b4d8f.pth, or with a deep stem of resnet101s-03a0f310.pth, without `fc`."""
    if deep_stem:
        shapes = {"conv1.0.weight": (64, 3, 3, 3), **_norm("conv1.1", 64), "conv1.3.weight": (64, 64, 3, 3)}
        shapes |= {**_norm("conv1.4", 64), "conv1.6.weight": (128, 64, 3, 3), **_norm("bn1", 128)}
    else:
        shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    inside = 128 if deep_stem else 64
    for level, count in enumerate(BLOCKS, start=1):
        width = 32 * 2**level
        for block in range(count):
            name = f"layer{level}.{block}"
            shapes |= {f"{name}.conv1.weight": (width, inside, 1, 1), **_norm(f"{name}.bn1", width)}
            shapes |= {f"{name}.conv2.weight": (width, width, 3, 3), **_norm(f"{name}.bn2", width)}
            shapes |= {f"{name}.conv3.weight": (4 * width, width, 1, 1), **_norm(f"{name}.bn3", 4 * width)}
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, inside, 1, 1)
                shapes |= _norm(f"{name}.downsample.1", 4 * width)
            inside = 4 * width
    return shapes


def caffe_name(name: str) -> str:
    """deeplab-pytorch's name of what torchvision calls `name`."""
    parts = name.split(".")
    if parts[0] in ("conv1", "bn1"):
        return f"layer1.conv1.{parts[0].rstrip('1')}.{parts[-1]}"
    layer, block = f"layer{int(parts[0][-1]) + 1}", f"block{int(parts[1]) + 1}"
    if parts[2] == "downsample":
        return f"{layer}.{block}.shortcut.{['conv', 'bn'][int(parts[3])]}.{parts[-1]}"
    convolution = ["reduce", "conv3x3", "increase"][int(parts[2][-1]) - 1]
    return f"{layer}.{block}.{convolution}.{parts[2][:-1]}.{parts[-1]}"


def caffe_shapes() -> Shapes:
    """Names and shapes of deeplab-pytorch's files, without heads."""
    return {caffe_name(name): shape for name, shape in torchvision_shapes().items()}


def caffe_layer(name: str) -> tuple[str, int]:
    """Layer and blob in `init.caffemodel` of what torchvision calls `name`."""
    parts = name.split(".")
    layers = {"running_mean": ("bn", 0), "running_var": ("bn", 1), "weight": ("scale", 0), "bias": ("scale", 1)}
    last = layers[parts[-1]]
    if parts[0] == "conv1":
        return "conv1", 0
    if parts[0] == "bn1":
        return f"{last[0]}_conv1", last[1]
    level, block, count = int(parts[0][-1]), int(parts[1]), BLOCKS[int(parts[0][-1]) - 1]
    letter = "abc"[block] if count == 3 else "a" if block == 0 else f"b{block}"
    is_conv = parts[2].startswith("conv") or parts[2:4] == ["downsample", "0"]
    branch = "1" if parts[2] == "downsample" else "2" + "abc"[int(parts[2][-1]) - 1]
    kind, blob = ("res", 0) if is_conv else last
    return f"{kind}{level + 1}{letter}_branch{branch}", blob


def random_weights(shapes: Shapes, seed: int = 3) -> dict[str, Tensor]:
    """Values that keep the signal near 1 and every BatchNorm term visible."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 4:
            values *= (1 / np.prod(shape[1:])) ** 0.5
        elif name.endswith(("running_var", "weight")):
            values = values.abs() * 0.3 + 0.8
        else:
            values *= 0.1
        weights[name] = values
    return weights


def marks(shapes: Shapes) -> dict[str, Tensor]:
    """Another constant for each name, of full shape and no size: what lands elsewhere than it should shows."""
    return {name: torch.tensor(float(i + 1)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


def torchvision_body(weights: dict[str, Tensor], deep_stem: bool = False) -> nn.Sequential:
    """torchvision's ResNet-101 at stride 8 without pooling and classifier, in eval mode. Images as it wants them."""
    net = ResNet(Bottleneck, list(BLOCKS), replace_stride_with_dilation=[False, True, True])
    if deep_stem:
        net.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 128, 3, 1, 1, bias=False),
        )  # fmt: skip
        net.bn1 = nn.BatchNorm2d(128)
        net.layer1[0].conv1 = nn.Conv2d(128, 64, 1, bias=False)
        net.layer1[0].downsample[0] = nn.Conv2d(128, 256, 1, bias=False)
    net.fc = nn.Identity()
    missing = net.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in missing.missing_keys)
    stages = [net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4]
    return nn.Sequential(*stages).eval()


def as_in_caffe(body: nn.Sequential) -> nn.Sequential:
    """The same with Caffe's geometry: strides in the first 1x1, pooling rounded up, first blocks dilated as others."""
    body[3].ceil_mode = True
    body[5][0].conv1.stride, body[5][0].conv2.stride = (2, 2), (1, 1)
    for layer, dilation in ((body[6], 2), (body[7], 4)):
        layer[0].conv2.dilation = layer[0].conv2.padding = (dilation, dilation)
    return body


def _bytes_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def write_caffemodel(path: Path, layers: dict[str, list[np.ndarray]]) -> None:
    """A .caffemodel of float32 blobs as Caffe writes it: NetParameter.layer, BlobProto.shape and packed data."""
    with path.open("wb") as file:
        file.write(_bytes_field(1, b"net"))
        for name, blobs in layers.items():
            body = _bytes_field(1, name.encode()) + _bytes_field(2, b"Any")
            for blob in blobs:
                shape = _bytes_field(1, b"".join(_varint(side) for side in blob.shape))
                data = _bytes_field(5, blob.astype("<f4").tobytes())
                body += _bytes_field(7, data + _bytes_field(7, shape))
            file.write(_bytes_field(100, body))


def first_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    assert found.shape == expected.shape
    assert expected.std() > 0
    return float((found - expected).abs().max() / expected.abs().max())
