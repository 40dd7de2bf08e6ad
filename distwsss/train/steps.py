"""The steps of a training run: agree, forward, backward, log, save, evaluate. Called by `train.loop`.

A step's loss is the sum of w S / C over its terms, S and C over the whole global batch (DESIGN, Loss). The
micro-batches of a step are read first and their counts, the wish to stop and errors added up over the ranks in one
collective; then each micro-batch backpropagates its `w S / C * world * accumulation`: Accelerate and DeepSpeed divide
by accumulation, the gradient reduction by the world.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from distwsss.config.hardware import HardwareSection
from distwsss.config.section import duration_to_steps
from distwsss.data.batches.loader import Batch
from distwsss.errors import DistwsssError, RunError
from distwsss.models.export import description, from_pretrained
from distwsss.runtime.artifacts import write_pointer
from distwsss.runtime.faults import fault_point
from distwsss.runtime.layout import BEST, checkpoint_dir, checkpoints_dir, metrics_file, pointer
from distwsss.runtime.metrics import append_metrics, read_metrics
from distwsss.runtime.progress import duration, expect, log, step_bar
from distwsss.runtime.seeding import derive_seed
from distwsss.runtime.stop import StopSignal
from distwsss.train.checkpoint import CheckpointWriter, States, optimizer_states
from distwsss.train.engine.accelerate import all_sum
from distwsss.train.engine.watch import HangWatch
from distwsss.train.engine.zero import whole_states, whole_weights
from distwsss.train.growth import Growth
from distwsss.train.heldout import held_out_miou
from distwsss.train.meter import FIRST, Meter
from distwsss.train.optim import lr_factor, set_lr
from distwsss.train.task import Task

PATIENCE = 10.0  # seconds for a batch to come after a signal; a worker that hangs must not keep the process


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
    hardware: HardwareSection
    attempt: int
    writer: CheckpointWriter
    watch: HangWatch
    meter: Meter = field(default_factory=Meter)
    growth: Growth = field(init=False)

    def __post_init__(self) -> None:
        self.growth = Growth(self.task.optim.growth, floor=max(1.0, sum(self.task.weights)))

    @property
    def checkpoints(self) -> Path:
        return checkpoints_dir(self.folder)

    @property
    def metrics(self) -> Path:
        return metrics_file(self.folder)

    @property
    def zero(self) -> bool:
        """Whether DeepSpeed partitions what is trained."""
        return self.hardware.deepspeed is not None

    def checkpoint(self, step: int) -> Path:
        return checkpoint_dir(self.folder, step)

    def main(self) -> bool:
        return self.accelerator.is_main_process


def train_steps(run: Run, loader: Iterator[Batch], start: int, stop: StopSignal) -> None:
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
    if start:
        run.growth.first(*_best_so_far(run, start))
    began = last_line = time.monotonic()
    bar = step_bar(start, total, run.task.name)
    for step in bar:
        run.watch.step(step)
        with stop.waiting(PATIENCE):
            batches, error = _read(loader, run.accelerator.gradient_accumulation_steps)
        agreed = _agree(run, batches, stop, error or run.writer.failed())
        if agreed.stopping:
            _stop(run, step, agreed.may_save)
        set_lr(run.optimizer, section.lr * lr_factor(step, total, warmup, section))
        _train_step(run, step, batches, agreed.scales)
        if step == start:
            run.meter.add(FIRST, run.meter.sums["loss"])
        fault_point(f"after-step:{step + 1}:rank{run.accelerator.process_index}")
        if (step + 1) % section.log_every == 0 or step + 1 == total:
            line = _log_metrics(run, step + 1)
            bar.set_postfix_str(line)
            if step + 1 == total or time.monotonic() - last_line > 20:
                each = (time.monotonic() - began) / (step + 1 - start)
                left = each * (total - step - 1)
                expect(run.task.name, left, each * total)
                if step + 1 == total or bar.disable:
                    log.info(f"{run.task.name}: step {step + 1}/{total}, {line}, {duration(left)} left")
                last_line = time.monotonic()
        if evaluates(step + 1) or (step + 1) % max(1, save_every) == 0:
            _save(run, step + 1)
        if evaluates(step + 1):
            _evaluate(run, step + 1)


def _read(loader: Iterator[Batch], count: int) -> tuple[list[Batch], Exception | None]:
    """The micro-batches of a step, or the error of the data that the ranks must hear of first."""
    try:
        return [next(loader) for _ in range(count)], None
    except (DistwsssError, OSError) as error:
        return [], error


class Agreed(NamedTuple):
    """What the ranks know of a step before its first backward. scales: float32[terms], w / C (0 where C is 0)."""

    scales: Tensor
    stopping: bool
    may_save: bool


def _agree(run: Run, batches: list[Batch], stop: StopSignal, error: BaseException | None) -> Agreed:
    """One collective: C of each term, whether a rank was asked to stop or has failed, whether rank 0 has time to save.

    Raises the error of the first rank that has one, on every rank.
    """
    local = [run.task.counts(batch) for batch in batches if not batch.empty]
    sums = [sum(term) for term in zip(*local, strict=True)] or [0.0] * len(run.task.weights)
    flags = [float(stop.asked), float(error is not None), float(run.main() and not _fits(run))]
    agreed = all_sum(run.accelerator, torch.tensor([*sums, *flags], dtype=torch.float64)).cpu()
    stopping, failed, late = agreed[-3:].tolist()
    if failed:
        errors = [error]
        if run.accelerator.num_processes > 1:
            errors = gather_object(errors)
        raise next(error for error in errors if error is not None)
    counts, weights = agreed[:-3], torch.tensor(run.task.weights, dtype=torch.float64)
    scales = torch.where(counts > 0, weights / counts, 0.0).float()
    return Agreed(scales.to(run.accelerator.device), bool(stopping), not late)


def _fits(run: Run) -> bool:
    """Whether a checkpoint, by what the slowest took so far, is written before the launcher kills this process."""
    return run.writer.slowest() < 0.8 * run.hardware.shutdown_seconds


def _stop(run: Run, step: int, may_save: bool) -> None:
    """Save, if there is time, and end."""
    if may_save:
        _save(run, step)
        run.writer.wait()
    elif run.main():
        log.warning(
            f"{run.task.name}: asked to stop; a checkpoint takes up to {run.writer.slowest():.0f} s, "
            f"hardware.shutdown_seconds is {run.hardware.shutdown_seconds}: the last one stays"
        )
    raise KeyboardInterrupt


def _train_step(run: Run, step: int, batches: list[Batch], scales: Tensor) -> None:
    """Forward and backward of every micro-batch, then the optimizer. scales: float32[terms], w / C of each."""
    accelerator, last = run.accelerator, len(batches) - 1
    finite = torch.ones((), dtype=torch.bool, device=accelerator.device)
    for micro, batch in enumerate(batches):
        # dropout and drop-path depend on these names only, so nothing about the generator needs saving
        torch.manual_seed(derive_seed(run.seed, step, accelerator.process_index, micro))
        on_device = batch.to(accelerator.device)
        accelerator.gradient_state._set_sync_gradients(micro == last)  # DeepSpeed steps inside backward where it is set
        with nullcontext() if micro == last or run.zero else accelerator.no_sync(run.model):
            with accelerator.autocast():
                outputs = run.model(on_device.image)
            sums, parts = run.task.sums(outputs, on_device)
            if batch.empty:  # a slice without samples: its graph takes part, with nothing to say
                sums, parts = sums * 0, {}
            loss = (sums * scales).sum()
            finite = finite & torch.isfinite(loss)
            if micro == last:
                fault_point(f"in-step:{step + 1}:rank{accelerator.process_index}")
                _check_finite(run, step, batches, finite)
            accelerator.backward(loss * (accelerator.num_processes * accelerator.gradient_accumulation_steps))
        run.meter.add("loss", loss)
        run.meter.add_parts(parts)
        run.meter.images += 0 if batch.empty else len(batch.keys)
    if run.task.optim.clip_grad:  # DeepSpeed has clipped; this asks for the norm
        norm = accelerator.clip_grad_norm_(run.model.parameters(), run.task.optim.clip_grad)
        run.meter.add("grad_norm", norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.meter.steps += 1


def _check_finite(run: Run, step: int, batches: list[Batch], finite: Tensor) -> None:
    """After the last forward and before the last backward, so that no rank steps on a bad gradient."""
    if all_sum(run.accelerator, (~finite).long()):
        keys = [] if finite else [key for batch in batches for key in batch.keys]
        if run.accelerator.num_processes > 1:
            keys = gather_object(keys)
        raise RunError(
            f"{run.task.name}: the loss is not finite at step {step + 1}; images of the ranks concerned: "
            f"{', '.join(keys)}; lower the learning rate or look at these images. The last checkpoint is untouched"
        )


def _log_metrics(run: Run, step: int) -> str:
    """One line of metrics.jsonl: means over the steps since the last one, over all ranks."""
    steps, metrics, run.meter = run.meter.steps, run.meter.means(run.accelerator), Meter()
    if FIRST in metrics:
        run.growth.first(step - steps + 1, metrics[FIRST])
    lr = run.optimizer.param_groups[0]["lr"] / run.optimizer.param_groups[0]["multiplier"]
    if run.main():
        append_metrics(run.metrics, {"attempt": run.attempt, "step": step, "lr": lr, **metrics})
    if run.hardware.trackers:
        run.accelerator.log({"lr": lr, "attempt": run.attempt, **metrics}, step=step)
    if run.growth.grows(step, metrics["loss"], steps, last=step == run.total):
        raise RunError(_growth_message(run, step))
    return f"loss {metrics['loss']:.4f}, lr {lr:.2e}, {metrics['images_per_second']:.1f} images/s"


def _best_so_far(run: Run, start: int) -> tuple[int, float]:
    """Step and loss of the best line up to `start`, so that a run whose loss had grown when it was stopped is still
    measured by what it was; infinite where nothing was written. Rank 0 looks."""
    lines = read_metrics(run.metrics) if run.main() else []
    known = [line for line in lines if "loss" in line and line["step"] <= start]
    losses = [(min(line["loss"], line.get(FIRST, math.inf)), line["step"]) for line in known]
    best, step = min(losses, default=(math.inf, start)) if run.main() else (0.0, 0)
    best, step = all_sum(run.accelerator, torch.tensor([best, step], dtype=torch.float64)).tolist()
    return int(step), best


def _growth_message(run: Run, step: int) -> str:
    """The loss is a mean over all ranks, so that each raises it."""
    section, growth, key = run.task.optim, run.growth, f"{run.task.name.split()[0]}.optim"
    return (
        f"{run.task.name}: the loss grows: {growth.smoothed:.3g} (smoothed) at step {step}, {growth.best:.3g} at its "
        f"best, step {growth.best_step}. Lower `{key}.lr` (found {section.lr:g}; the new layers learn "
        f"{section.head_multiplier:g} times as fast, `{key}.head_multiplier`), or set `{key}.warmup` (found "
        f"{section.warmup}) or `{key}.clip_grad` (found {section.clip_grad}); `{key}.growth: null` lets it go on. "
        f"The last checkpoint is untouched"
    )


def _save(run: Run, step: int) -> None:
    """Rank 0 writes a checkpoint in the background; the finished run keeps no optimizer state."""
    run.watch.pause()
    done = step == run.total and not run.task.optim.keep_optimizer
    states: States | None = None
    if run.zero:
        weights = whole_weights(run.task.model, run.main())
        states = None if done else whole_states(run.task.model, run.optimizer.optimizer, run.main())
    elif run.main():
        weights = run.task.model.state_dict()
        states = None if done else optimizer_states(run.task.model, run.optimizer.optimizer)
    if run.main():
        trainer = {"step": step, "total": run.total, "attempt": run.attempt, "origin": run.task.origin}
        trainer["parameters"] = run.task.parameters
        run.writer.save(weights, description(run.task.model), states, trainer)


def _evaluate(run: Run, step: int) -> None:
    """Held-out mIoU of the checkpoint of `step`; BEST points to the highest. Training does not depend on it."""
    if run.task.held_out is None:
        return
    run.watch.pause()
    model = run.task.model
    if run.zero:  # all ranks must ask a partitioned network at once, but they hold unequal numbers of images
        run.writer.wait()
        run.accelerator.wait_for_everyone()
        model = from_pretrained(run.checkpoint(step), run.accelerator.device)
    miou = held_out_miou(model, run.task.held_out, run.accelerator)
    run.task.model.train()
    run.writer.wait()
    if run.main() and not math.isnan(miou):
        log.info(f"{run.task.name}: step {step}, held-out mIoU {100 * miou:.2f}")
        if miou >= max({**_held_out(run), step: miou}.values()):
            write_pointer(pointer(run.folder, BEST), run.checkpoint(step))
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
