"""The device that `hardware.device` means here: one choice for training, CAMs, evaluation and prediction."""

from __future__ import annotations

import torch

from distwsss.errors import ConfigError, no_cuda
from distwsss.runtime import ranks

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, this rank's own GPU. Raises ConfigError for `cuda` without one, and for
    another name."""
    if name not in DEVICES:
        raise ConfigError(f"device: found {name!r}; allowed: {', '.join(DEVICES)}")
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise no_cuda("this machine")
    return torch.device("cuda", ranks.local_rank()) if found and name != "cpu" else torch.device("cpu")
