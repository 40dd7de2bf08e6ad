"""A training whose parameters are others now, replaced (`--remake`): it is moved aside, into old/, and removed once the
new one is complete. Called by `train.stages`.

Whatever moment a kill comes at, the same command goes on: what is moved last are the checkpoints, which say by
themselves which parameters they are of.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from distwsss.models.export import WEIGHTS
from distwsss.runtime.artifacts import (
    MANIFEST,
    differences,
    fresh_folder,
    fsync_path,
    read_json,
    read_pointer,
    recorded_sha256,
)
from distwsss.runtime.faults import fault_point
from distwsss.runtime.layout import checkpoints_dir, counts_file, done_file, pointer, retired_dir, training_lock
from distwsss.runtime.progress import log
from distwsss.train.checkpoint import finished_folders
from distwsss.train.earlier import INIT_FROM, recorded, start_classifier
from distwsss.train.task import Task


def is_other(training: Path, parameters: dict[str, Any]) -> bool:
    """Whether a training of other parameters lies there."""
    found = recorded(training)
    return found is not None and bool(differences(found, parameters))


def retire(training: Path, parameters: dict[str, Any]) -> None:
    """Move a training of other parameters aside. One that was not complete goes, where one before it is kept."""
    if not is_other(training, parameters):
        return
    old, replaced = retired_dir(training), training / "old.tmp"
    if not checkpoints_dir(old).is_dir():
        _move(training, old)  # begins, or goes on with what a kill ended
    elif done_file(training).is_file():
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(old, replaced)
        _move(training, old)
    else:
        _move(training, fresh_folder(replaced))
    shutil.rmtree(replaced, ignore_errors=True)


def _move(training: Path, target: Path) -> None:
    """Everything but the lock; done.json first, checkpoints last."""
    target.mkdir(exist_ok=True)
    staying = {training_lock(training), retired_dir(training), training / "old.tmp"}
    last, first = checkpoints_dir(training), done_file(training)
    for path in sorted(set(training.iterdir()) - staying, key=lambda path: (path == last, path != first)):
        fault_point(f"retiring:{path.name}")
        os.replace(path, target / path.name)
    fsync_path(target)
    fsync_path(training)


def retire_records(training: Path, evaluations: Path) -> None:
    """Move aside the scores of the checkpoints that lie there, before these are."""
    folders = [folder for folder in finished_folders(checkpoints_dir(training)) if (folder / MANIFEST).is_file()]
    weights = {recorded_sha256(folder, WEIGHTS) for folder in folders}
    for path in evaluations.glob("*.json"):
        if read_json(path).get("parameters", {}).get("inputs", {}).get("checkpoint") in weights:
            retired_dir(training).mkdir(exist_ok=True)
            for file in filter(Path.is_file, (path, counts_file(path))):
                os.replace(file, retired_dir(training) / file.name)


def drop_retired(training: Path) -> None:
    """What was moved aside, once the training that replaces it is complete."""
    for name in ("old.tmp", retired_dir(training).name):
        shutil.rmtree(training / name, ignore_errors=True)


def start_again(task: Task, training: Path, warm: bool) -> None:
    """What a classifier's training starts from that replaces another one: `warm`, the last weights of that one; else
    nothing of it. One that is under way, or complete, goes on as it began."""
    if recorded(training) is not None and not is_other(training, task.parameters):
        return
    task.parameters.pop(INIT_FROM, None)
    before = _predecessor(training) if warm else None
    if before:
        start_classifier(task, training, before)
    elif warm:
        log.info(f"{task.name}: no classifier before it to go on from")


def _predecessor(training: Path) -> Path | None:
    """The folder of the training that is replaced, moved aside already or not; None without one."""
    old, complete = retired_dir(training), done_file(training).is_file()
    found = old if checkpoints_dir(old).is_dir() and not complete else training
    return found if read_pointer(pointer(found)) else None
