"""A segmenter's class probabilities for one image, over scales and flips. Called by `evaluate`, `predict`, `report`."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, softmax

from distwsss.config.schema import Config
from distwsss.errors import CheckpointError, ConfigError
from distwsss.losses.hybrid import constrained_log_softmax
from distwsss.models.backbones import normalise
from distwsss.models.export import from_pretrained, verified_checkpoint
from distwsss.models.segmenters import SEGMENTERS
from distwsss.runtime.artifacts import read_pointer


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """`hardware.device` as a device; `auto` is CUDA where there is one. Raises ConfigError for CUDA without one."""
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ConfigError("hardware.device is 'cuda', but this machine offers none; set it to auto or cpu")
    return torch.device("cuda", local_rank) if found and name != "cpu" else torch.device("cpu")


def _views(model: nn.Module, image: Tensor, scale: float, flip: bool) -> list[Tensor]:
    """image 1,3,H,W in 0..255 -> logits 1,K,h,w of the scaled image and of its flip (flipped back)."""
    size = [max(1, round(scale * side)) for side in image.shape[-2:]]
    scaled = interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)
    scaled = normalise(scaled, model.mean, model.std)
    views = [model(scaled)]
    if flip:
        views.append(model(scaled.flip(-1)).flip(-1))
    return views


def to_probabilities(logits: Tensor, probabilities: str = "softmax", temperature: float | None = None) -> Tensor:
    """logits B,K,H,W -> class distributions: softmax(z), or softmax(z / (tau ||z||)) for `constrained`.

    Without a temperature the network was trained without the constraint, so both are softmax(z).
    """
    logits = logits.float()
    if probabilities == "constrained" and temperature is not None:
        return constrained_log_softmax(logits, temperature).exp()
    return softmax(logits, dim=1)


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    image: np.ndarray,
    scales: list[float],
    flip: bool,
    device: str | torch.device = "cpu",
    average: str = "probabilities",
    probabilities: str = "softmax",
    temperature: float | None = None,
) -> Tensor:
    """Class probabilities of `image` (uint8[H,W,3] RGB) -> float32[K,H,W] on `device`, summing to 1 over K.

    The image is resized bilinear (antialiased) to round(scale * H), round(scale * W), never padded. Logits are brought
    to H,W bilinear (`align_corners=False`); their probabilities, or with `average="logits"` they themselves before one
    softmax, are averaged over scales and flips (METHOD section 4; DeepLab-V2 fuses scales likewise).
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1)[None].float()
    total: Tensor | None = None
    count = 0
    for scale in scales:
        for logits in _views(model, pixels, scale, flip):
            full = interpolate(logits.float(), (height, width), mode="bilinear", align_corners=False)
            if average == "probabilities":
                full = to_probabilities(full, probabilities, temperature)
            total = full if total is None else total.add_(full)
            count += 1
    mean = cast(Tensor, total) / count
    return (mean if average == "probabilities" else to_probabilities(mean, probabilities, temperature))[0]


def predict_probabilities(
    model: nn.Module, image: np.ndarray, config: Config, multi_scale: bool, device: str | torch.device
) -> Tensor:
    """`predict_logits` as the configuration's `evaluate` section asks: one scale, or its scales and the flip."""
    section = config.evaluate
    scales = list(section.scales) if multi_scale else [1.0]
    return predict_logits(
        model, image, scales, multi_scale, device, section.average, section.probabilities, config.train.temperature
    )


def checkpoint_folder(config: Config, checkpoint: Path | None = None) -> Path:
    """`checkpoint`, or the one `evaluate.checkpoint` (LAST, BEST) of this run names. Raises CheckpointError where it is
    missing or does not verify."""
    if checkpoint is not None:
        return verified_checkpoint(checkpoint)
    name = config.evaluate.checkpoint
    pointer = config.run_dir / "train" / "checkpoints" / name
    folder = read_pointer(pointer)
    if folder is None:
        hint = " (BEST needs masks of held-out images; LAST does not)" if name == "BEST" else ""
        raise CheckpointError(f"{pointer}: not found{hint}; run `distwsss train` first, or give --checkpoint FOLDER")
    return verified_checkpoint(folder)


def load_segmenter(folder: Path, device: str | torch.device) -> nn.Module:
    """The segmenter of a checkpoint folder, in eval mode. Raises CheckpointError for a classifier's checkpoint."""
    model = from_pretrained(folder, device)
    kind = model.architecture()["kind"]
    if kind not in SEGMENTERS:
        raise CheckpointError(f"{folder}: holds a {kind}; allowed: a segmenter ({', '.join(SEGMENTERS)})")
    return model
