"""The stages `classify` and `train`: tasks, their folders and what makes them complete. Called by `cli`."""

from __future__ import annotations

from pathlib import Path

from distwsss.config import Config
from distwsss.errors import CheckpointError
from distwsss.models.export import WEIGHTS
from distwsss.runtime.artifacts import is_done, manifest_problems, sha256_file
from distwsss.runtime.progress import log
from distwsss.runtime.run_folder import config_text
from distwsss.train.loop import DONE, fit
from distwsss.train.task import Task, classifier_task, segmenter_task


def classify(config: Config, resume: str = "auto") -> None:
    """Train one classifier per dropout probability, into runs/NAME/classify/P."""
    for dropout in config.classify.dropouts:
        folder = config.run_dir / "classify" / f"{dropout:.2f}"
        _run(classifier_task(config, dropout), config, folder, resume)


def train(config: Config, resume: str = "auto", init_from: Path | None = None) -> None:
    """Train the segmenter, into runs/NAME/train."""
    _run(segmenter_task(config), config, config.run_dir / "train", resume, init_from)


def _run(task: Task, config: Config, folder: Path, resume: str, init_from: Path | None = None) -> None:
    if init_from:
        problems = manifest_problems(init_from)
        if problems:
            found = "; ".join(problems)
            raise CheckpointError(
                f"--init-from {init_from}: {found}; allowed: a whole checkpoint folder, step-NNNNNNNN"
            )
        task.parameters["init_from"] = sha256_file(init_from / WEIGHTS)
    if resume != "never" and is_done(folder / DONE, task.parameters, task.name):
        log.info(f"{task.name}: complete, skipped")
        return
    folder.mkdir(parents=True, exist_ok=True)
    fit(task, config.hardware, folder, config.seed, resume, init_from, config_text(config))
