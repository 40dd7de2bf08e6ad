"""The training loop: from a `Task` to checkpoints. Called by the `classify` and `train` stages (`train.stages`).

A step's loss is S / C over the whole global batch (DESIGN, Loss). The loop reads the micro-batches of a step first,
adds up their counts and the stop flag over the ranks in one collective, then backpropagates each micro-batch's
`S_local * world * accumulation / C`: Accelerate divides by accumulation and the gradient reduction by the world.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from distwsss.config.schema import HardwareSection, duration_to_steps
from distwsss.data.batches import Batch, MicroBatches, read_batches, split_batch
from distwsss.errors import CheckpointError, ConfigError, RunError
from distwsss.models.export import WEIGHTS, load_weights
from distwsss.runtime.artifacts import fingerprint, sha256_file, write_bytes, write_json, write_pointer
from distwsss.runtime.faults import fault_point
from distwsss.runtime.metrics import append_metrics, read_metrics
from distwsss.runtime.progress import duration, log, step_bar
from distwsss.runtime.seeding import derive_seed
from distwsss.runtime.stop import StopSignal
from distwsss.train.checkpoint import drop_optimizer_states, load_checkpoint, newest_checkpoint, save_checkpoint
from distwsss.train.engine import all_sum, launched_rank, launched_world_size, make_accelerator
from distwsss.train.heldout import held_out_miou
from distwsss.train.optim import build_optimizer, lr_factor, set_lr
from distwsss.train.task import Parts, Task

DONE = "done.json"


class Outputs(nn.Module):
    """Sends `training_outputs` through forward(), the only call that DDP and DeepSpeed see."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.training_outputs(images)


@dataclass
class Meter:
    """Sums over the steps since the last log line, over this rank's micro-batches."""

    sums: dict[str, float] = field(default_factory=dict)
    images: int = 0
    steps: int = 0
    start: float = field(default_factory=time.monotonic)

    def add(self, name: str, value: Tensor | float) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def add_parts(self, parts: Parts) -> None:
        for name, (total, count) in parts.items():
            self.add(f"{name}.sum", total.detach())
            self.add(f"{name}.count", count)


@dataclass
class Run:
    """What a step needs."""

    task: Task
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    folder: Path
    seed: int
    total: int
    attempt: int = 0
    meter: Meter = field(default_factory=Meter)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def main(self) -> bool:
        return self.accelerator.is_main_process


def fit(
    task: Task,
    hardware: HardwareSection,
    folder: Path,
    seed: int,
    resume: str = "auto",
    init_from: Path | None = None,
    described: bytes = b"",
) -> Path:
    """Train `task` to its end in `folder` and return the last checkpoint (the same path on every rank).

    `resume`: auto (own LAST if there is one), must, never, or a checkpoint folder to start from when there is no own
    one. `described`: the configuration, written to config.yaml once nothing refuses. Raises KeyboardInterrupt when
    SIGINT or SIGTERM came, after saving or after the end; RunError for a loss that is not finite.
    """
    section, world = task.optim, launched_world_size()
    if section.global_batch < world:
        raise ConfigError(f"{task.name}: global_batch is {section.global_batch}; allowed: {world} or more, one a rank")
    split = split_batch(section.global_batch, hardware.micro_batch, launched_rank(), world)
    accelerator = make_accelerator(hardware, split.accumulation)
    total = duration_to_steps(section.duration, len(task.selection), section.global_batch)
    optimizer = build_optimizer(task.model, section)
    task.model.train()
    if init_from:
        load_weights(task.model, init_from)
    start, attempt = _resume(task, optimizer, folder / "checkpoints", resume)
    wrapped = Outputs(task.model)
    wrapped, optimizer = accelerator.prepare(wrapped, optimizer)
    run = Run(task, accelerator, wrapped, optimizer, folder, seed, total, attempt)
    log.info(
        f"{task.name}: {len(task.selection)} images, {total} steps of {section.global_batch} = {world} rank(s) x "
        f"{split.accumulation} micro-batch(es) of {split.micro_batch}, on {accelerator.device}"
        + (f", from step {start}" if start else "")
    )
    if run.main() and described:
        write_bytes(folder / "config.yaml", described)
    batches = MicroBatches(task.selection, task.samples, seed, section.global_batch, split, total)
    with StopSignal() as stop:
        _steps(run, read_batches(batches, start, hardware.loader_workers), start, stop)
        accelerator.wait_for_everyone()
        if run.main():
            _finish(run)
        stopping = bool(all_sum(accelerator, torch.tensor([int(stop.asked)])))
    if stopping:  # during the last step or after it: this run is complete, what would follow is not wanted
        raise KeyboardInterrupt
    return run.checkpoint(total)


def _finish(run: Run) -> None:
    """Drop what only training needs, then record that the run is complete."""
    if not run.task.optim.keep_optimizer:
        drop_optimizer_states(run.checkpoints)
    last, parameters = run.checkpoint(run.total), run.task.parameters
    digests = {"fingerprint": fingerprint(parameters), "sha256": sha256_file(last / WEIGHTS)}
    write_json(run.folder / DONE, {"parameters": parameters, "checkpoint": last.name, **digests})


def _resume(task: Task, optimizer: torch.optim.Optimizer, checkpoints: Path, resume: str) -> tuple[int, int]:
    """Load where to go on from; returns the next step and the number of this attempt."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    own = newest_checkpoint(checkpoints)
    if own and resume == "never":
        raise ConfigError(f"--resume never: {checkpoints} already holds a run; choose another name or delete it")
    if not own and resume == "must":
        raise ConfigError(f"--resume must: {checkpoints} holds no checkpoint")
    source = own or (Path(resume) if resume not in ("auto", "must", "never") else None)
    if source is None:
        return 0, 0
    trainer = load_checkpoint(source, task.model, optimizer, task.parameters)
    if not own and trainer["step"] == trainer["total"]:
        raise CheckpointError(f"--resume {source}: its run had finished; use --init-from to take its weights only")
    return trainer["step"], trainer["attempt"] + 1


def _steps(run: Run, loader: Iterator[Batch], start: int, stop: StopSignal) -> None:
    """Steps `start` .. total - 1, with logging, checkpoints, held-out evaluation and the agreed stop."""
    section, total = run.task.optim, run.total
    warmup, save_every, evaluate_every = (
        duration_to_steps(text or "100%", len(run.task.selection), section.global_batch, total)
        for text in (section.warmup, section.save_every, run.task.evaluate_every)
    )

    def evaluates(step: int) -> bool:
        return step == total or step % max(1, evaluate_every) == 0

    if start and evaluates(start) and _evaluation_missed(run, start):
        _evaluate(run, start)
    began = last_line = time.monotonic()
    bar = step_bar(start, total, run.task.name)
    for step in bar:
        batches = [next(loader) for _ in range(run.accelerator.gradient_accumulation_steps)]
        scales, stopping = _agree(run, batches, stop)
        if stopping:
            _save(run, step)
            raise KeyboardInterrupt
        set_lr(run.optimizer, section.lr * lr_factor(step, total, warmup, section))
        _train_step(run, step, batches, scales)
        fault_point(f"after-step:{step + 1}:rank{run.accelerator.process_index}")
        if (step + 1) % section.log_every == 0 or step + 1 == total:
            line = _log_metrics(run, step + 1)
            bar.set_postfix_str(line)
            if step + 1 == total or (bar.disable and time.monotonic() - last_line > 20):
                left = (time.monotonic() - began) / (step + 1 - start) * (total - step - 1)
                log.info(f"{run.task.name}: step {step + 1}/{total}, {line}, {duration(left)} left")
                last_line = time.monotonic()
        if evaluates(step + 1) or (step + 1) % max(1, save_every) == 0:
            _save(run, step + 1)
        if evaluates(step + 1):
            _evaluate(run, step + 1)


def _agree(run: Run, batches: list[Batch], stop: StopSignal) -> tuple[Tensor, bool]:
    """w / C of each term of the step over all ranks (0 where C is 0), on the device, and whether a rank was asked to
    stop: one collective, before the first backward."""
    local = [run.task.counts(batch) for batch in batches if not batch["empty"]]
    sums = [sum(term) for term in zip(*local, strict=True)] or [0.0] * len(run.task.weights)
    agreed = all_sum(run.accelerator, torch.tensor([*sums, float(stop.asked)], dtype=torch.float64))
    counts, weights = agreed[:-1], torch.tensor(run.task.weights, dtype=torch.float64, device=agreed.device)
    scales = torch.where(counts > 0, weights / counts, 0.0).float()
    return scales.to(run.accelerator.device), bool(agreed[-1])


def _train_step(run: Run, step: int, batches: list[Batch], scales: Tensor) -> None:
    """Forward and backward of every micro-batch, then the optimizer. scales: float32[terms], w / C of each."""
    accelerator, last = run.accelerator, len(batches) - 1
    finite = True
    for micro, batch in enumerate(batches):
        # dropout and drop-path depend on these names only, so nothing about the generator needs saving
        torch.manual_seed(derive_seed(run.seed, step, accelerator.process_index, micro))
        on_device = {k: v.to(accelerator.device, non_blocking=True) for k, v in batch.items() if isinstance(v, Tensor)}
        with nullcontext() if micro == last else accelerator.no_sync(run.model):
            with accelerator.autocast():
                outputs = run.model(on_device["image"])
            sums, parts = run.task.sums(outputs, on_device)
            if batch["empty"]:  # a slice without samples: its graph takes part, with nothing to say
                sums, parts = sums * 0, {}
            loss = (sums * scales).sum()
            finite = finite and bool(torch.isfinite(loss))
            if micro == last:
                _check_finite(run, step, batches, finite)
            accelerator.backward(loss * (accelerator.num_processes * accelerator.gradient_accumulation_steps))
        run.meter.add("loss", loss.detach())
        run.meter.add_parts(parts)
        run.meter.images += 0 if batch["empty"] else len(batch["keys"])
    if run.task.optim.clip_grad:
        norm = accelerator.clip_grad_norm_(run.model.parameters(), run.task.optim.clip_grad)
        run.meter.add("grad_norm", norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.meter.steps += 1


def _check_finite(run: Run, step: int, batches: list[Batch], finite: bool) -> None:
    """After the last forward and before the last backward, so that no rank steps on a bad gradient."""
    bad = all_sum(run.accelerator, torch.tensor([int(not finite)]))
    if int(bad):
        keys = [] if finite else [key for batch in batches for key in batch["keys"]]
        if run.accelerator.num_processes > 1:
            keys = gather_object(keys)
        raise RunError(
            f"{run.task.name}: the loss is not finite at step {step + 1}; images of the ranks concerned: "
            f"{', '.join(keys)}; lower the learning rate or look at these images. The last checkpoint is untouched"
        )


def _log_metrics(run: Run, step: int) -> str:
    """One line of metrics.jsonl: means over the steps since the last one, over all ranks."""
    meter, run.meter = run.meter, Meter()
    names = sorted(meter.sums)
    values = torch.tensor([*(meter.sums[name] for name in names), meter.images], dtype=torch.float64)
    *sums, images = all_sum(run.accelerator, values).tolist()
    mean = dict(zip(names, sums, strict=True))
    metrics: dict[str, float] = {"loss": mean.pop("loss") / meter.steps}
    if "grad_norm" in mean:
        metrics["grad_norm"] = mean.pop("grad_norm") / meter.steps / run.accelerator.num_processes
    pixels = sum(value for name, value in mean.items() if name.endswith(".count"))
    for name in [name.removesuffix(".sum") for name in mean if name.endswith(".sum")]:
        part_count = mean[f"{name}.count"]
        metrics[name] = mean[f"{name}.sum"] / max(part_count, 1)
        metrics[f"{name}_share"] = part_count / max(pixels, 1)
    lr = run.optimizer.param_groups[0]["lr"] / run.optimizer.param_groups[0]["multiplier"]
    speed = images / max(time.monotonic() - meter.start, 1e-9)
    if run.main():
        entry = {"attempt": run.attempt, "step": step, "lr": lr, **metrics, "images_per_second": round(speed, 3)}
        append_metrics(run.metrics, entry)
    return f"loss {metrics['loss']:.4f}, lr {lr:.2e}, {speed:.1f} images/s"


def _save(run: Run, step: int) -> None:
    """A checkpoint by the main process; all ranks wait for it. The finished run keeps no optimizer state."""
    if run.main():
        done = step == run.total and not run.task.optim.keep_optimizer
        trainer = {"step": step, "total": run.total, "attempt": run.attempt, "parameters": run.task.parameters}
        state = None if done else run.optimizer.state_dict()
        save_checkpoint(run.checkpoints, run.task.model, state, trainer, run.task.optim.keep_last)
    run.accelerator.wait_for_everyone()


def _evaluate(run: Run, step: int) -> None:
    """Held-out mIoU of the checkpoint of `step`; BEST points to the highest. Training does not depend on it."""
    if run.task.held_out is None:
        return
    miou = held_out_miou(run.task.model, run.task.held_out, run.accelerator)
    run.task.model.train()
    if run.main() and not math.isnan(miou):
        log.info(f"{run.task.name}: step {step}, held-out mIoU {100 * miou:.2f}")
        if miou >= max({**_held_out(run), step: miou}.values()):
            write_pointer(run.checkpoints / "BEST", run.checkpoint(step))
        # last: the line says that all of this was done
        append_metrics(run.metrics, {"attempt": run.attempt, "step": step, "heldout_miou": miou})
    run.accelerator.wait_for_everyone()


def _evaluation_missed(run: Run, step: int) -> bool:
    """Whether a kill came after this run's checkpoint of `step`, before its evaluation was written; rank 0 looks."""
    missed = run.main() and run.checkpoint(step).is_dir() and step not in _held_out(run)
    return bool(all_sum(run.accelerator, torch.tensor([int(missed)])))


def _held_out(run: Run) -> dict[int, float]:
    """The held-out mIoU written so far, by step."""
    return {line["step"]: line["heldout_miou"] for line in read_metrics(run.metrics) if "heldout_miou" in line}
