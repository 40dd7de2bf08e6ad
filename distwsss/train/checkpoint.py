"""Checkpoints of a training run: written whole or not at all, verified before they are read. Called by `train.loop`.

`checkpoints/step-00002000/` holds model.safetensors + config.json (`models.export`), optimizer.pt, trainer.json and
MANIFEST.json; `LAST` and `BEST` are pointer files beside it. A folder whose manifest does not verify is no checkpoint.
optimizer.pt is {parameter name: its state}, whole tensors, so any world size and any engine goes on from it.
"""

from __future__ import annotations

import pickle
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from distwsss.config.training import OptimSection
from distwsss.errors import CheckpointError, RunError
from distwsss.models.export import TRAINER, load_weights, save_weights
from distwsss.runtime.artifacts import (
    check_same,
    free_space_check,
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
from distwsss.runtime.layout import BEST, LAST, checkpoint_name
from distwsss.runtime.progress import log

OPTIMIZER = "optimizer.pt"
States = dict[str, dict[str, Tensor]]  # parameter name -> what the optimizer keeps of it


def finished_folders(checkpoints: Path) -> list[Path]:
    """Folders named like checkpoints, oldest first; their manifests are not looked at."""
    return sorted(path for path in checkpoints.glob("step-*") if path.is_dir() and path.suffix != ".tmp")


def remove_unfinished(checkpoints: Path) -> None:
    """Remove what a killed process was writing; no other one writes there."""
    for path in checkpoints.glob("*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_space(checkpoints: Path, model: nn.Module, section: OptimSection) -> None:
    """Raises RunError when the disk has no room for what the run will write."""
    free_space_check(checkpoints, bytes_to_come(checkpoints, model, section), "the checkpoints of a training run")


def bytes_to_come(checkpoints: Path, model: nn.Module, section: OptimSection) -> int:
    """About what the run will write there at most: the newest `keep_last` and the next one, less what is there.

    SGD keeps one state per trained parameter, AdamW two.
    """
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    one = weights + (2 if section.optimizer == "adamw" else 1) * trained
    there = sum(path.stat().st_size for folder in finished_folders(checkpoints) for path in folder.iterdir())
    return max(0, (section.keep_last + 1) * one - there)


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread. `save` returns when everything is copied, into buffers that the next
    save uses again; what goes wrong in the thread is raised by the next `save` or `wait`.
    """

    def __init__(self, checkpoints: Path, keep_last: int) -> None:
        self.checkpoints, self.keep_last = checkpoints, keep_last
        self._seconds, self._began = 0.0, 0.0
        self._buffers: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, weights: dict[str, Tensor], described: dict[str, Any], states: States | None, trainer: dict[str, Any]
    ) -> None:
        """`step-NNNNNNNN` from these tensors (any device), then LAST. Waits for the one before."""
        self.wait()
        self._began = time.monotonic()
        held = {name: self._copy(name, tensor) for name, tensor in weights.items()}
        kept = states and {
            name: {key: self._copy(f"{name} {key}", tensor) for key, tensor in state.items()}
            for name, state in states.items()
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._pending = self._thread.submit(self._write, held, described, kept, trainer)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=True)

    def _write(self, weights: Any, described: Any, states: Any, trainer: dict[str, Any]) -> None:
        write_checkpoint(self.checkpoints, weights, described, states, trainer, self.keep_last)
        self._seconds = max(self._seconds, time.monotonic() - self._began)

    def slowest(self) -> float:
        """Seconds that the slowest one took, copy and writing, and the one being written so far; 0 before the first."""
        pending = self._pending is not None and not self._pending.done()
        return max(self._seconds, time.monotonic() - self._began if pending else 0.0)

    def failed(self) -> BaseException | None:
        """What went wrong in the thread, if it has ended."""
        return self._pending.exception() if self._pending and self._pending.done() else None

    def wait(self) -> None:
        """Until what `save` was given is a checkpoint. Raises RunError where it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        self._thread.shutdown(wait=True)


def write_checkpoint(
    checkpoints: Path,
    weights: dict[str, Tensor],
    described: dict[str, Any],
    states: States | None,
    trainer: dict[str, Any],
    keep_last: int,
) -> Path:
    """Write `step-NNNNNNNN`, move LAST to it, drop all but the newest `keep_last` and what BEST names."""
    final = checkpoints / checkpoint_name(trainer["step"])
    if final.exists() and not manifest_problems(final):
        write_pointer(checkpoints / LAST, final)
        return final
    try:
        temporary = fresh_folder(final.with_name(final.name + ".tmp"))
        save_weights(weights, described, temporary)
        if states is not None:
            torch.save(states, temporary / OPTIMIZER)
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
    write_pointer(checkpoints / LAST, final)
    remove_old(checkpoints, keep_last)
    return final


def remove_old(checkpoints: Path, keep_last: int) -> None:
    named = {read_pointer(checkpoints / name) for name in (LAST, BEST)}
    for folder in finished_folders(checkpoints)[:-keep_last]:
        if folder not in named:
            shutil.rmtree(folder, ignore_errors=True)


def drop_optimizer_states(checkpoints: Path) -> None:
    """A finished run needs its weights only: remove all but LAST and BEST, and their optimizer state."""
    named = {read_pointer(checkpoints / name) for name in (LAST, BEST)}
    for folder in finished_folders(checkpoints):
        if folder not in named:
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder / OPTIMIZER).exists():
            write_manifest(folder, without=OPTIMIZER)  # first, so that the folder verifies at every moment
            (folder / OPTIMIZER).unlink()


def newest_checkpoint(checkpoints: Path) -> Path | None:
    """The newest folder that verifies: LAST, else (with a warning) the newest before it."""
    last = read_pointer(checkpoints / LAST)
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


def load_checkpoint(folder: Path, model: nn.Module, parameters: dict[str, Any]) -> tuple[dict[str, Any], States]:
    """Weights from `folder`; returns trainer.json and the optimizer's states. Raises on damage or other parameters.

    A run at its last step needs no optimizer state: killed before it was recorded as done, it has none.
    """
    problems = manifest_problems(folder)
    if problems:
        raise CheckpointError(f"{folder}: no whole checkpoint: {'; '.join(problems)}; choose another")
    trainer: dict[str, Any] = read_json(folder / TRAINER)
    check_same(trainer["parameters"], parameters, f"the checkpoint {folder}")
    load_weights(model, folder)
    path = folder / OPTIMIZER
    if not path.is_file():
        if trainer["step"] == trainer["total"]:
            return trainer, {}
        raise CheckpointError(
            f"{folder}: has no optimizer state (its run had finished); use --init-from to take its weights only"
        )
    try:
        states: States = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    _check_states(path, states, model)
    return trainer, states


def _check_states(path: Path, states: Any, model: nn.Module) -> None:
    trained = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    fits = isinstance(states, dict) and all(
        isinstance(state, dict)
        and all(value.shape in (trained.get(name), torch.Size([])) for value in state.values() if value is not None)
        for name, state in states.items()
    )
    unknown = sorted(states.keys() - trained.keys())[:3] if fits else []
    if not fits or unknown:
        found = f"states of {', '.join(unknown)}" if unknown else "another layout"
        raise CheckpointError(f"{path}: found {found}; allowed: states of this run's trained parameters, by name")


def optimizer_states(model: nn.Module, optimizer: torch.optim.Optimizer) -> States:
    """Parameter name -> what the optimizer keeps of it (nothing before its first step, nor for plain SGD)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {key: value for key, value in state.items() if isinstance(value, Tensor)}
        for parameter, state in optimizer.state.items()
        if any(isinstance(value, Tensor) for value in state.values())
    }


def load_optimizer_states(model: nn.Module, optimizer: torch.optim.Optimizer, states: States) -> None:
    """The inverse of `optimizer_states`; states as large as their parameter get its memory layout and device."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_number = {
        number: {
            key: torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
            for key, value in states[names[id(parameter)]].items()
        }
        for number, parameter in enumerate(order)
        if names[id(parameter)] in states
    }
    optimizer.load_state_dict({"state": by_number, "param_groups": optimizer.state_dict()["param_groups"]})
