"""The stages `classify` and `train`: tasks, their folders and what makes them complete. Called by `pipeline`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distwsss.config import Config
from distwsss.data.shards.format import INDEX
from distwsss.errors import CheckpointError, ConfigError, RunError
from distwsss.inference.segmenter import locate_checkpoint
from distwsss.models.export import WEIGHTS
from distwsss.runtime import ranks, ray_pool
from distwsss.runtime.artifacts import is_done, sha256_file
from distwsss.runtime.layout import (
    check_absolute_roots,
    classifier_dir,
    done_file,
    evaluate_dir,
    images_dir,
    metrics_file,
    report_file,
    segmenter_dir,
    training_lock,
)
from distwsss.runtime.metrics import read_metrics
from distwsss.runtime.progress import log
from distwsss.runtime.ray_schedule import Wanted, schedule
from distwsss.runtime.run_folder import check_training_folder, config_text
from distwsss.train.earlier import start_classifier
from distwsss.train.loop import fit
from distwsss.train.measure import measure, tell
from distwsss.train.remake import drop_retired, is_other, retire, retire_records, start_again
from distwsss.train.task import Task, classifier_task, segmenter_task

ORPHAN_SECONDS = 120.0  # how long the workers of a killed driver may live on


def classify(
    config: Config,
    resume: str = "auto",
    init_from: Path | None = None,
    remake: bool = False,
    warm: bool = False,
) -> None:
    """Train one classifier per dropout probability, into runs/NAME/classify/P: one after the other, or with
    `hardware.executor: ray` as many at once as the cluster has GPUs (without any: CPUs). Then say how good they are on
    the photographs held out, and which tags they contradict.

    `init_from`: a folder of earlier classifiers, P below it, each of which goes on from the one of its p there.
    `remake`: those of other images or parameters are trained anew; `warm`: from the weights of those they replace.
    """
    jobs = [ClassifierJob(config, dropout, resume, init_from, remake, warm) for dropout in config.classify.dropouts]
    if config.hardware.executor == "ray":
        if ranks.world_size() > 1:
            raise ConfigError("classify: found executor ray under torchrun; allowed: one of them")
        _classify_on_ray(config, jobs)
    else:
        for job in jobs:
            train_classifier(job)
    if ranks.rank() == 0:
        tell(config)


@dataclass(frozen=True)
class ClassifierJob:
    """What a Ray actor needs to train one classifier."""

    config: Config
    dropout: float
    resume: str
    init_from: Path | None = None
    remake: bool = False
    warm: bool = False


def train_classifier(job: ClassifierJob) -> None:
    """Train one classifier in this process and measure it. A lock, held by rank 0, keeps out other runs that share the
    classifiers and the worker of a driver that was killed a moment ago."""
    folder = classifier_dir(job.config, job.dropout)
    check_training_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(training_lock(folder), timeout=ORPHAN_SECONDS) if ranks.rank() == 0 else nullcontext()
    try:
        with lock:
            task = classifier_task(job.config, job.dropout)
            start_classifier(task, folder, job.init_from and job.init_from / folder.name)
            if job.remake and not job.init_from:
                start_again(task, folder, job.warm)
            _run(task, job.config, folder, job.resume, remake=job.remake)
            measure(job.config, job.dropout)
    except Timeout:
        raise RunError(f"{folder}: locked, another process trains this classifier; wait for it or end it") from None


def _classify_on_ray(config: Config, jobs: list[ClassifierJob]) -> None:
    """Trains the classifiers on Ray's actors; a killed actor's classifier goes on from its last checkpoint."""
    if ray_pool.is_cluster():
        check_absolute_roots(config)
    section = config.hardware.ray.model_copy(update={"item_minutes": float("inf")})
    chunks = [ray_pool.Chunk(f"p = {job.dropout:.2f}", job, label=f"classify[{job.dropout:.2f}]") for job in jobs]
    with ray_pool.connect(section, max(1, config.hardware.workers)):
        ray_pool.check_visible([images_dir(config, "train") / INDEX])
        wanted = [Wanted(train_classifier, len(chunks), gpus=1.0, all_cpus=True)]
        steps = schedule(wanted, config.hardware.device, *ray_pool.resources())
        log.info(f"classify: Ray, {len(chunks)} classifiers, {steps[0].actors} at once")
        for chunk, _, _ in ray_pool.run_chunks(chunks, steps, section, ray_pool.Load(), _reporter(config)):
            log.info(f"classify {chunk.task.dropout:.2f}: done")


def _reporter(config: Config, every: float = 20.0) -> Callable[[], None]:
    """Logs the newest step of each classifier in training, every so often: actors' own lines go to Ray's log files."""
    folders = [classifier_dir(config, dropout) for dropout in config.classify.dropouts]
    last = time.monotonic()

    def tick() -> None:
        nonlocal last
        if time.monotonic() - last < every:
            return
        last = time.monotonic()
        for folder in folders:
            lines = [] if done_file(folder).exists() else read_metrics(metrics_file(folder))
            if lines:
                log.info(f"classify {folder.name}: step {lines[-1]['step']}, loss {lines[-1]['loss']:.4f}")

    return tick


def train(config: Config, resume: str = "auto", init_from: Path | None = None, remake: bool = False) -> None:
    """Train the segmenter, into runs/NAME/train. `remake`: anew, where it was trained with other parameters."""
    _run(segmenter_task(config), config, segmenter_dir(config), resume, init_from, remake)


def _run(
    task: Task,
    config: Config,
    folder: Path,
    resume: str,
    init_from: Path | None = None,
    remake: bool = False,
) -> None:
    if init_from:
        task.origin["init_from"] = str(init_from)
        try:
            init_from = locate_checkpoint(init_from)
        except CheckpointError as error:
            raise CheckpointError(f"--init-from {error}") from error
        task.parameters["init_from"] = sha256_file(init_from / WEIGHTS)
    if resume != "never" and is_done(done_file(folder), task.parameters, task.name, remake):
        log.info(f"{task.name}: complete, skipped")
        _clear(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    clear = partial(_replace, config, folder, task.parameters) if remake else None
    fit(task, config.hardware, folder, task.seed, resume, init_from, config_text(config), clear)
    _clear(folder)


def _replace(config: Config, folder: Path, parameters: dict[str, Any]) -> None:
    """What was trained there with other parameters makes way, with all that tells of it."""
    if is_other(folder, parameters):
        report_file(config).unlink(missing_ok=True)
        if folder == segmenter_dir(config):
            retire_records(folder, evaluate_dir(config))
        retire(folder, parameters)


def _clear(folder: Path) -> None:
    if ranks.rank() == 0:
        drop_retired(folder)
