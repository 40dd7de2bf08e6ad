"""The training loop: from a `Task` to checkpoints. Called by the `classify` and `train` stages (`train.stages`).

Here a run is set up, resumed and ended; `train.steps` does what lies between.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distwsss.config.hardware import HardwareSection
from distwsss.config.section import duration_to_steps
from distwsss.data.batches.loader import MicroBatches, Share, share_batch
from distwsss.data.batches.workers import death_of_worker, read_batches
from distwsss.errors import CheckpointError, ConfigError, RunError
from distwsss.models.backbones.build import sync_norms
from distwsss.models.export import WEIGHTS, load_weights
from distwsss.runtime import ranks
from distwsss.runtime.artifacts import fingerprint, sha256_file, write_bytes, write_json, write_pointer
from distwsss.runtime.layout import checkpoints_dir, done_file, pointer, training_config_file
from distwsss.runtime.progress import log
from distwsss.runtime.stop import StopSignal
from distwsss.train.checkpoint import (
    CheckpointWriter,
    States,
    check_space,
    drop_optimizer_states,
    load_checkpoint,
    load_optimizer_states,
    newest_checkpoint,
    remove_unfinished,
)
from distwsss.train.engine.accelerate import all_sum, autocast_dtype, end_accelerator, make_accelerator
from distwsss.train.engine.oom import oom_advice
from distwsss.train.engine.watch import FirstError, HangWatch, is_collective_failure, no_answer
from distwsss.train.engine.zero import load_states
from distwsss.train.engine.zero_config import deepspeed_config
from distwsss.train.optim import build_optimizer
from distwsss.train.steps import Run, train_steps
from distwsss.train.task import Task


class Outputs(nn.Module):
    """Sends `training_outputs` through forward(), the only call that DDP and DeepSpeed see.

    `dtype`: what to compute in where the engine does not autocast itself (DeepSpeed).
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> Any:
        with torch.autocast(images.device.type, self.dtype) if self.dtype else nullcontext():
            return self.model.training_outputs(images)


def fit(
    task: Task,
    hardware: HardwareSection,
    folder: Path,
    seed: int,
    resume: str = "auto",
    init_from: Path | None = None,
    described: bytes = b"",
    clear: Callable[[], None] | None = None,
) -> Path:
    """Train `task` to its end in `folder` and return the last checkpoint (the same path on every rank).

    `resume`: auto (own LAST if there is one), must, never, or a checkpoint folder to start from when there is no own
    one. `described`: the configuration, written to config.yaml once nothing refuses. `clear`: what rank 0 does before
    the folder is looked into, once every rank is there. Raises KeyboardInterrupt when
    SIGINT, SIGTERM or SIGUSR1 came, after saving or after the end; RunError for a loss that is not finite, and on every
    rank for an error of one.
    """
    ranks.check_launched()
    rank, world = ranks.rank(), ranks.world_size()
    first, stop = FirstError(folder, rank, world), StopSignal()
    first.clear()
    try:
        return _fit(task, hardware, folder, seed, resume, init_from, described, clear, stop)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        with stop:  # the launcher's SIGTERM to those that a dead rank leaves must not pass for a wish to stop
            if world > 1 and is_collective_failure(error):
                reason = first.of_another(stop)
                raise RunError(f"{task.name}: {reason or no_answer(error)}") from error
            first.tell(error)
        raise


def _fit(
    task: Task,
    hardware: HardwareSection,
    folder: Path,
    seed: int,
    resume: str,
    init_from: Path | None,
    described: bytes,
    clear: Callable[[], None] | None,
    stop: StopSignal,
) -> Path:
    share, batch = _share(task, hardware), task.optim.global_batch
    zero = deepspeed_config(hardware, share, task.optim.clip_grad)
    accelerator = make_accelerator(hardware, share.accumulation, zero, folder)
    if clear:
        if accelerator.is_main_process:
            clear()
        accelerator.wait_for_everyone()
    total = duration_to_steps(task.optim.duration, len(task.selection), batch)
    wrapped, optimizer, start, attempt = _set_up(
        task, hardware, accelerator, checkpoints_dir(folder), resume, init_from
    )
    log.info(
        f"{task.name}: {len(task.selection)} images, {total} steps of {batch} = {share.world} rank(s) x "
        f"{share.accumulation} micro-batch(es) of {share.micro_batch}, on {accelerator.device}"
        + (f", from step {start}" if start else "")
    )
    if accelerator.is_main_process and described:
        write_bytes(training_config_file(folder), described)
    if hardware.trackers:
        accelerator.init_trackers("distwsss", config={"task": task.name, "attempt": attempt})
    batches = MicroBatches(task.selection, task.samples, seed, batch, share, total)
    with (
        stop,
        HangWatch(folder, share.rank, 0.9 * hardware.timeout_seconds) as watch,
        closing(CheckpointWriter(checkpoints_dir(folder), task.optim.keep_last)) as writer,
        closing(read_batches(batches, start, hardware.loader_workers)) as loader,
    ):
        run = Run(task, accelerator, wrapped, optimizer, folder, seed, total, hardware, attempt, writer, watch)
        try:
            train_steps(run, loader, start, stop)
        except torch.OutOfMemoryError as error:
            raise oom_advice(error, task.name, hardware, share, task.augment.crop) from error
        except RuntimeError as error:
            if (said := death_of_worker(error)) is None:
                raise
            raise said from error
        writer.wait()
        accelerator.wait_for_everyone()
        if run.main():
            _finish(run)
        stopping = bool(all_sum(accelerator, torch.tensor([int(stop.asked)])))
    end_accelerator(accelerator)
    if stopping:  # during the last step or after it: this run is complete, what would follow is not wanted
        raise KeyboardInterrupt
    return run.checkpoint(total)


def _share(task: Task, hardware: HardwareSection) -> Share:
    """This rank's share of a global batch. Raises ConfigError where some would get no image."""
    batch, world = task.optim.global_batch, ranks.world_size()
    if batch < world:
        raise ConfigError(
            f"{task.name}: global_batch is {batch}, so that some of {world} ranks would get no image; allowed: "
            f"global_batch {world} or more, or at most {batch} ranks"
        )
    return share_batch(batch, hardware.micro_batch, ranks.rank(), world)


def _set_up(
    task: Task,
    hardware: HardwareSection,
    accelerator: Accelerator,
    checkpoints: Path,
    resume: str,
    init_from: Path | None,
) -> tuple[nn.Module, Any, int, int]:
    """Network and optimizer with the weights and states to go on from, prepared by the engine; the next step and the
    number of this attempt. What an earlier attempt left half written goes, and there is room for what will be written.
    """
    optimizer = build_optimizer(task.model, task.optim)
    task.model.train()
    if hardware.activation_checkpointing:
        task.model.checkpoint_activations()
    if init_from:
        load_weights(task.model, init_from)
    start, attempt, states = _resume(task, checkpoints, resume)
    total = duration_to_steps(task.optim.duration, len(task.selection), task.optim.global_batch)
    if accelerator.is_main_process and start < total:
        remove_unfinished(checkpoints)
        check_space(checkpoints, task.model, task.optim)
    _synchronise_norms(task, accelerator)
    if hardware.deepspeed:  # which flattens weights and cannot take channels-last ones
        task.model.to(memory_format=torch.contiguous_format)
    wrapped, optimizer = accelerator.prepare(Outputs(task.model, autocast_dtype(hardware)), optimizer)
    load = load_states if hardware.deepspeed else load_optimizer_states
    load(task.model, optimizer.optimizer, states)
    return wrapped, optimizer, start, attempt


def _synchronise_norms(task: Task, accelerator: Accelerator) -> None:
    """`backbone.norm: sync`: BatchNorm over all ranks. Raises ConfigError on the CPU, where torch has none."""
    if task.model.architecture()["backbone"]["norm"] != "sync":
        return
    if accelerator.device.type != "cuda":
        raise ConfigError(
            f"{task.name}: backbone.norm is sync, on {accelerator.device}; allowed there: frozen, local, group"
        )
    if accelerator.num_processes > 1:
        sync_norms(task.model)


def _finish(run: Run) -> None:
    """Drop what only training needs, then record that the run is complete."""
    write_pointer(pointer(run.folder), run.checkpoint(run.total))  # a kill may have come just before it
    if not run.task.optim.keep_optimizer:
        drop_optimizer_states(run.checkpoints)
    last, parameters = run.checkpoint(run.total), run.task.parameters
    digests = {"fingerprint": fingerprint(parameters), "sha256": sha256_file(last / WEIGHTS)}
    record = {"parameters": parameters, "origin": run.task.origin, "checkpoint": last.name, **digests}
    write_json(done_file(run.folder), record)


def _resume(task: Task, checkpoints: Path, resume: str) -> tuple[int, int, States]:
    """Load the weights where to go on from; returns the next step, the number of this attempt and the optimizer's
    states."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    own = newest_checkpoint(checkpoints)
    if own and resume == "never":
        raise ConfigError(f"--resume never: {checkpoints} already holds a run; choose another name or delete it")
    if not own and resume == "must":
        raise ConfigError(f"--resume must: {checkpoints} holds no checkpoint")
    source = own or (Path(resume).absolute() if resume not in ("auto", "must", "never") else None)
    if source is None:
        return 0, 0, {}
    trainer, states = load_checkpoint(source, task.model, task.parameters)
    if not own and trainer["step"] == trainer["total"]:
        raise CheckpointError(f"--resume {source}: its run had finished; use --init-from to take its weights only")
    return trainer["step"], trainer["attempt"] + 1, states
