"""A training that makes way for another: moved aside whole, whatever a kill left, and never the newer for the older."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distwsss.config.networks import BackboneSection
from distwsss.models.classifier import Classifier
from distwsss.runtime.artifacts import sha256_file, write_json
from distwsss.train import remake
from distwsss.train.remake import drop_retired, is_other, retire, start_again
from distwsss.train.task import Task
from helpers.small import TINY_BACKBONE, publish, snapshot

OLD, NEW, NEWER = {"data": "old"}, {"data": "new"}, {"data": "newer"}


def classifier(classes: list[str], seed: int = 0, **backbone: object) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(BackboneSection(**{**TINY_BACKBONE, **backbone}), ["background", *classes], 0.1)


def training(folder: Path, parameters: dict[str, str], seed: int, done: bool) -> dict[str, bytes]:
    """A training of one checkpoint; returns its files."""
    publish(classifier(["cat", "dog"], seed), folder / "checkpoints/step-00000002", step=2, parameters=parameters)
    (folder / "metrics.jsonl").write_text(f"{parameters}\n")
    if done:
        write_json(folder / "done.json", {"parameters": parameters})
    return snapshot(folder)


def started_from(folder: Path, parameters: dict[str, str], warm: bool = True) -> str | None:
    """The sha256 of the weights that a classifier of `parameters` in `folder` would start from."""
    model = classifier(["ant", "dog", "cat"], seed=9)
    task = Task("classify", model, None, None, None, None, 0, dict(parameters), None, None)  # type: ignore[arg-type]
    start_again(task, folder, warm)
    return task.parameters.get("init_from")


def weights_of(folder: Path) -> str:
    return sha256_file(folder / "checkpoints/step-00000002/model.safetensors")


def below(folder: Path, name: str) -> dict[str, bytes]:
    return {
        path.removeprefix(f"{name}/"): data for path, data in snapshot(folder).items() if path.startswith(f"{name}/")
    }


def test_a_training_of_other_parameters_is_moved_aside_until_the_new_one_is_complete(tmp_path: Path) -> None:
    files = training(tmp_path, OLD, 1, done=True)
    (tmp_path / "lock").touch()
    retire(tmp_path, OLD)
    assert {**snapshot(tmp_path)} == {**files, "lock": b""}
    retire(tmp_path, NEW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "old"]
    assert below(tmp_path, "old") == files
    new = {name: data for name, data in training(tmp_path, NEW, 2, done=True).items() if not name.startswith("old/")}
    drop_retired(tmp_path)
    assert snapshot(tmp_path) == new


@pytest.mark.parametrize("kill", ["done.json", "metrics.jsonl", "checkpoints"])
def test_killed_while_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: str) -> None:
    files = training(tmp_path, OLD, 1, done=True)

    def interrupt(name: str) -> None:
        if name == f"retiring:{kill}":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(remake, "fault_point", interrupt)
        with pytest.raises(KeyboardInterrupt):
            retire(tmp_path, NEW)
    assert is_other(tmp_path, NEW)
    retire(tmp_path, NEW)
    assert below(tmp_path, "old") == files
    assert started_from(tmp_path, NEW) == weights_of(tmp_path / "old")


def test_data_that_change_again_while_a_remake_is_under_way(tmp_path: Path) -> None:
    """The complete training before stays; the one that was not complete goes."""
    files = training(tmp_path, OLD, 1, done=True)
    retire(tmp_path, NEW)
    training(tmp_path, NEW, 2, done=False)
    assert started_from(tmp_path, NEWER) == weights_of(tmp_path / "old")
    retire(tmp_path, NEWER)
    assert below(tmp_path, "old") == files
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_data_that_change_again_after_the_new_one_was_complete(tmp_path: Path) -> None:
    """Killed before what was moved aside had gone: the newer complete one takes its place."""
    training(tmp_path, OLD, 1, done=True)
    retire(tmp_path, NEW)
    files = {name: data for name, data in training(tmp_path, NEW, 2, done=True).items() if not name.startswith("old/")}
    assert started_from(tmp_path, NEWER) == weights_of(tmp_path)
    retire(tmp_path, NEWER)
    assert below(tmp_path, "old") == files
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_only_what_replaces_another_starts_from_it(tmp_path: Path) -> None:
    assert started_from(tmp_path, OLD) is None
    training(tmp_path, OLD, 1, done=True)
    assert started_from(tmp_path, OLD) is None
    assert started_from(tmp_path, NEW, warm=False) is None
    assert started_from(tmp_path, NEW) == weights_of(tmp_path)


def test_how_the_one_before_began_is_not_taken_over(tmp_path: Path) -> None:
    training(tmp_path, {**OLD, "init_from": "abc"}, 1, done=True)
    assert started_from(tmp_path, {**OLD, "init_from": "abc"}) == "abc"
    assert started_from(tmp_path, {**NEW, "init_from": "abc"}, warm=False) is None
