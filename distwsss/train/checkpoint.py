"""Checkpoints of a training run: written whole or not at all, verified before they are read. Called by `train.loop`.

`checkpoints/step-00002000/` holds model.safetensors + config.json (`models.export`), optimizer.pt, trainer.json and
MANIFEST.json; `LAST` and `BEST` are pointer files beside it. A folder whose manifest does not verify is no checkpoint.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from distwsss.errors import CheckpointError, RunError
from distwsss.models.export import load_weights, save_pretrained
from distwsss.runtime.artifacts import (
    check_same,
    fresh_folder,
    manifest_problems,
    publish_folder,
    read_json,
    read_pointer,
    write_json,
    write_manifest,
    write_pointer,
)
from distwsss.runtime.faults import fault_point
from distwsss.runtime.progress import log

OPTIMIZER, TRAINER = "optimizer.pt", "trainer.json"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def finished_folders(checkpoints: Path) -> list[Path]:
    """Folders named like checkpoints, oldest first; their manifests are not looked at."""
    return sorted(path for path in checkpoints.glob("step-*") if path.is_dir() and path.suffix != ".tmp")


def save_checkpoint(
    checkpoints: Path, model: nn.Module, optimizer_state: dict[str, Any] | None, trainer: dict[str, Any], keep_last: int
) -> Path:
    """Write `step-NNNNNNNN`, move LAST to it, drop all but the newest `keep_last` and what BEST names."""
    final = checkpoints / f"step-{trainer['step']:08d}"
    if final.exists() and not manifest_problems(final):
        write_pointer(checkpoints / "LAST", final)
        return final
    try:
        temporary = fresh_folder(final.with_name(final.name + ".tmp"))
        save_pretrained(model, temporary)
        if optimizer_state is not None:
            torch.save(optimizer_state, temporary / OPTIMIZER)
        write_json(temporary / TRAINER, trainer)
        shutil.rmtree(final, ignore_errors=True)
        fault_point(f"before-publish:{final.name}")
        publish_folder(temporary, final)
        fault_point(f"after-publish:{final.name}")
    except (OSError, RuntimeError, SafetensorError, RunError) as error:
        # a full disk is a RuntimeError of torch.save, a SafetensorError of the weights, a RunError of write_json; the
        # previous checkpoint and LAST are untouched
        shutil.rmtree(final.with_name(final.name + ".tmp"), ignore_errors=True)
        raise RunError(f"{final}: cannot be written ({error}); make room and run the same command again") from error
    write_pointer(checkpoints / "LAST", final)
    remove_old(checkpoints, keep_last)
    return final


def remove_old(checkpoints: Path, keep_last: int) -> None:
    named = {read_pointer(checkpoints / name) for name in ("LAST", "BEST")}
    for folder in finished_folders(checkpoints)[:-keep_last]:
        if folder not in named:
            shutil.rmtree(folder, ignore_errors=True)


def drop_optimizer_states(checkpoints: Path) -> None:
    """A finished run needs its weights only: remove all but LAST and BEST, and their optimizer state."""
    named = {read_pointer(checkpoints / name) for name in ("LAST", "BEST")}
    for folder in finished_folders(checkpoints):
        if folder not in named:
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder / OPTIMIZER).exists():
            write_manifest(folder, without=OPTIMIZER)  # first, so that the folder verifies at every moment
            (folder / OPTIMIZER).unlink()


def newest_checkpoint(checkpoints: Path) -> Path | None:
    """The newest folder that verifies: LAST, else (with a warning) the newest before it."""
    last = read_pointer(checkpoints / "LAST")
    folders = finished_folders(checkpoints)
    candidates = [last] if last else []
    candidates += [folder for folder in reversed(folders) if folder not in candidates]
    for folder in candidates:
        problems = manifest_problems(folder)
        if not problems:
            return folder
        log.warning(f"{folder} is damaged ({problems[0]}); trying an older checkpoint")
    if candidates:
        raise CheckpointError(f"{checkpoints}: no checkpoint there verifies; delete the folder to start anew")
    return None


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, parameters: dict[str, Any]
) -> dict[str, Any]:
    """Weights and optimizer state from `folder`; returns trainer.json. Raises on damage or other parameters.

    A run at its last step needs no optimizer state: killed before it was recorded as done, it has none.
    """
    problems = manifest_problems(folder)
    if problems:
        raise CheckpointError(f"{folder}: no whole checkpoint: {'; '.join(problems)}; choose another")
    trainer: dict[str, Any] = read_json(folder / TRAINER)
    check_same(trainer["parameters"], parameters, f"the checkpoint {folder}")
    load_weights(model, folder)
    if not (folder / OPTIMIZER).is_file():
        if trainer["step"] == trainer["total"]:
            return trainer
        raise CheckpointError(
            f"{folder}: has no optimizer state (its run had finished); use --init-from to take its weights only"
        )
    try:
        optimizer.load_state_dict(torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / OPTIMIZER}: does not fit this run ({error})") from error
    return trainer
