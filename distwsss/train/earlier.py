"""A classifier that goes on from an earlier one of the same p, whose classes may have been others. Called by
`train.stages`.

Rows of the classification layer are matched by the class's name: a class that is new gets fresh ones, those of a class
that is gone are dropped. The sha256 of the earlier weights is among the run's parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from distwsss.errors import CheckpointError
from distwsss.models.classifier import Classifier
from distwsss.models.export import TRAINER, WEIGHTS, from_pretrained, verified_checkpoint
from distwsss.models.weights.backbone import load_exactly
from distwsss.runtime.artifacts import read_json, read_pointer, recorded_sha256
from distwsss.runtime.layout import checkpoints_dir, done_file, pointer
from distwsss.runtime.progress import log
from distwsss.train.checkpoint import finished_folders
from distwsss.train.task import Task

INIT_FROM = "init_from"


def start_classifier(task: Task, folder: Path, earlier: Path | None) -> None:
    """Weights of the classifier in the training folder `earlier` into `task`, before its first step in `folder`.

    Without `earlier` a run in `folder` that was begun from one goes on as what it is. A p that has none there starts
    from its backbone, and the log says so. Raises CheckpointError for a damaged one or another backbone.
    """
    if earlier is None:
        begun = (recorded(folder) or {}).get(INIT_FROM)
        task.parameters |= {INIT_FROM: begun} if begun else {}
        return
    checkpoint = read_pointer(pointer(earlier))
    if checkpoint is None:
        log.info(f"{task.name}: no earlier classifier in {earlier}, starts anew")
        return
    checkpoint = verified_checkpoint(checkpoint)
    added, dropped = load_earlier(task.model, checkpoint)
    task.parameters[INIT_FROM] = recorded_sha256(checkpoint, WEIGHTS)
    task.origin[INIT_FROM] = str(checkpoint)
    changes = [f"{what} {', '.join(names)}" for what, names in (("new", added), ("gone", dropped)) if names]
    log.info(f"{task.name}: goes on from {checkpoint}" + (f" (classes: {'; '.join(changes)})" if changes else ""))


def recorded(training: Path) -> dict[str, Any] | None:
    """The parameters of the training that lies in a folder, complete or not; None without one."""
    if done_file(training).is_file():
        return dict(read_json(done_file(training)).get("parameters", {}))
    last = read_pointer(pointer(training)) or next(reversed(finished_folders(checkpoints_dir(training))), None)
    return dict(read_json(last / TRAINER)["parameters"]) if last and (last / TRAINER).is_file() else None


def load_earlier(model: nn.Module, checkpoint: Path) -> tuple[list[str], list[str]]:
    """The weights of `checkpoint` into a classifier; returns the classes that it adds and those that it drops."""
    earlier = from_pretrained(checkpoint)
    if not isinstance(earlier, Classifier):
        raise CheckpointError(f"{checkpoint}: found a {type(earlier).__name__}; allowed: a classifier")
    before, now = earlier.classes[1:], list(model.classes)[1:]
    tensors, own = earlier.state_dict(), model.head.weight.detach()
    old = tensors["head.weight"]
    if old.shape[1:] == own.shape[1:]:  # else `load_exactly` says that it does not fit
        known = dict(zip(_rows(earlier), old, strict=True))
        rows = [known.get(name, fresh) for name, fresh in zip(_rows(model), own, strict=True)]
        tensors["head.weight"] = torch.stack(rows)
    load_exactly(model, tensors, checkpoint)
    return [name for name in now if name not in before], [name for name in before if name not in now]


def _rows(classifier: Any) -> list[str]:
    """What each row of its classification layer scores; no other class is called background."""
    return [*classifier.classes[1:], *(["background"] if classifier.background else [])]
