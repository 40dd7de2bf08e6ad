"""`save_pretrained` / `from_pretrained`: a folder with `model.safetensors` and `config.json`.

Written by `train.checkpoint`; read by `seeds`, `inference` and users. Nothing is unpickled. The stages read a
checkpoint only after `verified_checkpoint` has compared it with its manifest. `config.json` says how to build the
network and, under `inference`, what whoever uses it must know: mean, std, and of a segmenter align_corners,
temperature, the longest side of the photographs it was trained on (null: as they were) and the cue that its labels were
made of (tags, tags + saliency, masks).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distwsss.config.networks import BackboneSection
from distwsss.errors import CheckpointError, report_problems
from distwsss.models.classifier import Classifier
from distwsss.models.segmenters import SEGMENTERS, rebuild_segmenter
from distwsss.models.weights.backbone import load_exactly
from distwsss.runtime.artifacts import MANIFEST, manifest_problems, read_json, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TRAINER = "trainer.json"  # beside them in a checkpoint, not in what `save_pretrained` writes
# attributes of networks; a classifier has the first two
INFERENCE = ("mean", "std", "align_corners", "temperature", "longest_side", "cue")


def save_pretrained(model: nn.Module, folder: Path) -> None:
    """Weights and what is needed to build the network again, into an existing `folder`."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_weights(weights, description(model), folder)


def save_weights(weights: dict[str, Tensor], described: dict[str, Any], folder: Path) -> None:
    """`save_pretrained` of tensors that are on the CPU and contiguous already, and a network's `description`."""
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, described)


def description(model: nn.Module) -> dict[str, Any]:
    """What config.json says of a network."""
    known = {name: getattr(model, name) for name in INFERENCE if hasattr(model, name)}
    return {**model.architecture(), "inference": known}


def verified_checkpoint(folder: Path, exported: bool = False) -> Path:
    """`folder`, if it is a checkpoint whose files are those its manifest names; else CheckpointError.

    exported: so is what `save_pretrained` wrote, which has no manifest and no record of a training.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        found = "is a file" if folder.is_file() else "no such folder"
        raise CheckpointError(f"{folder}: {found}; allowed: a checkpoint folder, step-NNNNNNNN")
    names = {path.name for path in folder.iterdir()}
    if exported and {WEIGHTS, CONFIG} <= names and not {MANIFEST, TRAINER} & names:
        return folder
    problems = manifest_problems(folder)
    if problems:
        raise CheckpointError(report_problems(f"{folder}: damaged, or not a checkpoint; use another one", problems))
    return folder


def _build(folder: Path, output_stride: int | None) -> nn.Module:
    path = folder / CONFIG
    try:
        architecture = read_json(path)
        inference = architecture.pop("inference", {})  # checkpoints from before it was there: their network's own
        if output_stride:
            architecture["backbone"]["output_stride"] = output_stride
        if architecture["kind"] == "classifier":
            section = BackboneSection(**{**architecture["backbone"], "pretrained": False})
            layer = architecture.get("dropout_layer", "dropout7")  # checkpoints from before it was a key
            background = architecture.get("background", False)  # likewise
            model: nn.Module = Classifier(section, architecture["classes"], architecture["dropout"], layer, background)
        elif architecture["kind"] in SEGMENTERS:
            model = rebuild_segmenter(architecture)
        else:
            known = ", ".join(SEGMENTERS)
            raise CheckpointError(f"{path}: kind {architecture['kind']!r}; allowed: classifier, {known}")
        for name in INFERENCE:
            if name in inference:
                setattr(model, name, inference[name])
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
        raise CheckpointError(f"{path}: {found}; allowed: a checkpoint folder, step-NNNNNNNN") from error
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise CheckpointError(f"{path}: does not describe a network of this version ({error})") from error
    return model


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load `folder`'s weights into `model`. Raises CheckpointError listing missing, unexpected and misfit keys."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    load_exactly(model, weights, path)


def from_pretrained(
    folder: str | Path, device: str | torch.device = "cpu", output_stride: int | None = None
) -> nn.Module:
    """The classifier or segmenter stored in a checkpoint folder, in eval mode on `device`.

    With another `output_stride` than it was trained with the same weights are applied dilated (a trous).
    """
    folder = Path(folder).absolute()
    model = _build(folder, output_stride)
    load_weights(model, folder)
    return model.to(device).eval()
