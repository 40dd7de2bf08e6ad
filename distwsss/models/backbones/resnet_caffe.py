"""The ResNet-101 that DeepLab's authors trained in Caffe (arXiv 1606.00915), dilated to stride 8. Built by `backbones`.

Parameters carry the names of kazuto1011/deeplab-pytorch (libs/models/resnet.py): `layer1.conv1.conv.weight`,
`layer2.block1.reduce.bn.bias`, ..., so that its files load by name; `caffe_names` renames those of a `.caffemodel`. It
differs from torchvision's in more than names: a bottleneck strides in its first 1x1 convolution, the max-pooling rounds
up, the first block of a dilated layer is dilated as the others are, and images are BGR, 0..255, with a mean but no
deviation.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

# layer -> blocks, inside, outside, stride of the first block, dilation of every 3x3 convolution
LAYERS: dict[str, tuple[int, int, int, int, int]] = {
    "layer2": (3, 64, 256, 1, 1),
    "layer3": (4, 256, 512, 2, 1),
    "layer4": (23, 512, 1024, 1, 2),
    "layer5": (3, 1024, 2048, 1, 4),
}
BGR_MEAN = (104.008, 116.669, 122.675)


def _conv_norm(
    inside: int, outside: int, kernel: int = 1, stride: int = 1, dilation: int = 1, relu: bool = True
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(inside, outside, kernel, stride, padding, dilation, bias=False),
        bn=nn.BatchNorm2d(outside, eps=1e-5, momentum=1e-3),
    )
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


class Bottleneck(nn.Module):
    """1x1 (outside / 4, strided), 3x3 dilated, 1x1; added to the input, or to a 1x1 projection of it."""

    def __init__(self, inside: int, outside: int, stride: int, dilation: int, project: bool) -> None:
        super().__init__()
        self.reduce = _conv_norm(inside, outside // 4, stride=stride)
        self.conv3x3 = _conv_norm(outside // 4, outside // 4, 3, dilation=dilation)
        self.increase = _conv_norm(outside // 4, outside, relu=False)
        self.shortcut = _conv_norm(inside, outside, stride=stride, relu=False) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.increase(self.conv3x3(self.reduce(x))) + self.shortcut(x), inplace=True)


class CaffeResNet101(nn.Module):
    """images B,3,H,W (RGB, `mean` and `std`) -> B,2048,h,w, `output_side` of H and W, none negative. 42,500,160
    parameters."""

    channels = 2048

    def __init__(self) -> None:
        super().__init__()
        # of RGB in 0..1, as everywhere here: the published mean taken off values 0..255, which are not scaled
        self.mean, self.std = [value / 255 for value in reversed(BGR_MEAN)], [1 / 255] * 3
        self.layer1 = nn.Sequential(
            OrderedDict(conv1=_conv_norm(3, 64, 7, stride=2), pool=nn.MaxPool2d(3, 2, 1, ceil_mode=True))
        )
        for name, (count, inside, outside, stride, dilation) in LAYERS.items():
            first = Bottleneck(inside, outside, stride, dilation, project=True)
            others = [Bottleneck(outside, outside, 1, dilation, project=False) for _ in range(count - 1)]
            blocks = {f"block{i}": block for i, block in enumerate([first, *others], start=1)}
            self.add_module(name, nn.Sequential(OrderedDict(blocks)))

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer1(images.flip(1))  # the published weights want BGR
        for name in LAYERS:
            x = getattr(self, name)(x)
        return x


def output_side(side: int) -> int:
    """Height or width of the features of an image of that height or width."""
    side = (side - 1) // 2 + 1  # 7x7, stride 2, padding 3
    side = side // 2 + 1  # max-pooling 3, stride 2, padding 1, rounded up
    return (side - 1) // 2 + 1  # 1x1, stride 2
