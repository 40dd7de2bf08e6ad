"""Data that changes after a run: `run` names what, `run --remake` ends with the bytes of a fresh run and leaves alone
what does not depend on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from distwsss.cli import main
from distwsss.config import load_config
from distwsss.data.images import encode_palette
from distwsss.planning.remake import remake_lines
from distwsss.runtime.artifacts import read_json, write_json
from helpers.small import picture, snapshot, write_config, write_folder

SIZE = (40, 48)
CHANGED = """  photographs added: 1 (new.jpg)
  tags changed: 2 (p4.jpg: dog -> cat; p5.jpg: dog -> cat, dog)
  classes added: 1 (hat)
"""


def config_of(folder: Path) -> Path:
    return write_config(folder, data={"dataset": "folder", "root": str(folder / "data")}, evaluate={"scales": [1.0]})


def run(folder: Path, *options: str, verb: str = "run") -> int:
    return main([verb, "--config", str(config_of(folder)), *options])


def correct(root: Path) -> None:
    """Tags of two photographs, one photograph more, of a class that is new."""
    text = (root / "tags.csv").read_text()
    text = text.replace("p4,dog", "p4,cat").replace("p5,dog", "p5,cat;dog")
    (root / "tags.csv").write_text(text + "\nnew,hat,train")
    (root / "images/new.jpg").write_bytes(picture(99, *SIZE))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on ten photographs, two of them val, every other one with a mask."""
    folder = tmp_path_factory.mktemp("finished")
    write_folder(folder / "data", size=SIZE)
    assert run(folder) == 0
    return folder


@pytest.fixture(scope="module")
def fresh(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the corrected data from nothing."""
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copytree(finished / "data", folder / "data")
    correct(folder / "data")
    assert run(folder) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "copy", copy_function=shutil.copy2))


def results(folder: Path) -> dict[str, bytes]:
    """Shards, weights and scores."""
    run = snapshot(folder / "run")
    kept = {name: data for name, data in run.items() if name.endswith((".safetensors", "val.json", "quality.json"))}
    return {**snapshot(folder / "shards"), **kept}


def times(folder: Path, *patterns: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for pattern in patterns for path in sorted(folder.glob(pattern))}


def test_run_names_what_changed_and_touches_nothing(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    correct(copy / "data")
    before = results(copy)
    assert run(copy) == 2
    error = capfd.readouterr().err
    assert CHANGED in error
    assert "--remake" in error
    assert results(copy) == before


def test_a_remake_ends_with_the_bytes_of_a_fresh_run(
    copy: Path, fresh: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    correct(copy / "data")
    (copy / "run/evaluate/val-step-00000004-abc.json").write_bytes((copy / "run/evaluate/val.json").read_bytes())
    assert run(copy, "--remake") == 0
    said = capfd.readouterr().err
    for line in CHANGED.splitlines():
        assert line.strip() in said.partition("== prepare")[0]
    for stage in ("classify", "seeds", "train", "evaluate"):
        assert f"remake: {stage}: " in said.partition("== prepare")[0]
    assert results(copy) == results(fresh)
    assert not list(copy.rglob("old*"))
    assert sorted(path.name for path in (copy / "run/evaluate").iterdir()) == ["val.counts.npz", "val.json"]
    page = (copy / "run/report/index.html").read_text()
    assert "hat" in page
    assert "not run" not in page
    before = times(copy, "**/*.tar", "**/*.safetensors", "**/val.json")
    assert run(copy) == 0
    assert run(copy, "--remake") == 0
    assert times(copy, "**/*.tar", "**/*.safetensors", "**/val.json") == before


def test_other_masks_concern_only_what_scores(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("p0", "p4"):
        (copy / f"data/masks/{name}.png").write_bytes(encode_palette(np.full(SIZE, 2, np.uint8)))
    before = times(copy, "shards/[sp]*/*.tar", "**/*.safetensors", "shards/images/train/*.tar")
    scores = [(copy / f"run/{name}").read_bytes() for name in ("evaluate/val.json", "seeds/quality.json")]
    assert run(copy) == 2
    error = capfd.readouterr().err
    assert "masks changed, come or gone: 1 (p0.jpg)" in error
    assert "masks changed, come or gone: 1 (p4.jpg)" in error
    assert run(copy, "--remake") == 0
    said = capfd.readouterr().err
    for stage in ("classify", "seeds", "train"):
        assert f"remake: {stage}: kept" in said
    after = times(copy, "shards/[sp]*/*.tar", "**/*.safetensors", "shards/images/train/*.tar")
    assert len([path for path in before if before[path] != after[path]]) == 1  # the image shard with p4
    assert scores != [(copy / f"run/{name}").read_bytes() for name in ("evaluate/val.json", "seeds/quality.json")]


def test_scores_of_replaced_shards_are_not_on_the_page(copy: Path) -> None:
    shutil.rmtree(copy / "data/masks")
    assert run(copy, "--remake", verb="prepare") == 0
    assert not (copy / "run/report/index.html").exists()
    assert run(copy, verb="report") == 0
    page = (copy / "run/report/index.html").read_text()
    assert "val mIoU" not in page
    assert "mIoU of the labels" not in page


def test_classifiers_go_on_from_the_weights_of_those_before(copy: Path, fresh: Path) -> None:
    """Rows by class name: without a step, the old ones are there, and the new class has its fresh row."""
    folder = copy / "run/classify/0.10"
    old = load_file(folder / "checkpoints" / read_last(folder) / "model.safetensors")
    digest = read_json(folder / "done.json")["sha256"]
    correct(copy / "data")
    assert run(copy, "--remake", "--set", "classify.optim.lr=1e-12", verb="prepare") == 0
    options = ["--set", "classify.optim.lr=1e-12", "--set", "classify.optim.weight_decay=0.0"]
    assert run(copy, "--remake", "--warm-start", *options, verb="classify") == 0
    new = load_file(folder / "checkpoints" / read_last(folder) / "model.safetensors")
    assert read_json(folder / "done.json")["parameters"]["init_from"] == digest
    assert new["head.weight"].shape[0] == 3
    np.testing.assert_allclose(new["head.weight"][:2], old["head.weight"], atol=1e-6)
    assert abs(new["head.weight"][2]).max() > 0.01
    names = [name for name in old if name.endswith("weight") and name != "head.weight"]
    for name in names:
        np.testing.assert_allclose(new[name], old[name], atol=1e-6)
    before = times(copy, "run/classify/**/*.safetensors")
    for again in ([], ["--remake"], ["--remake", "--warm-start"]):  # how it began need not be said again
        assert run(copy, *again, *options, verb="classify") == 0
    assert times(copy, "run/classify/**/*.safetensors") == before


def read_last(folder: Path) -> str:
    return (folder / "checkpoints/LAST").read_text().strip()


def test_a_warm_start_is_of_what_is_remade(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(copy, "--warm-start") == 2
    assert "--warm-start: found without --remake" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "seeds.threshold=2",
            {"prepare": "kept", "classify": "kept", "seeds": "the vote to be made",
             "stats": "anew, as seeds or vote changed", "train": "anew, as pseudo-labels changed",
             "evaluate": "anew, as the segmenter changed"},
        ),
        ("train.optim.lr=0.02", {"seeds": "kept", "stats": "kept", "train": "anew, as train.optim.lr changed"}),
        ("evaluate.scales=[1.0,1.25]", {"train": "kept", "evaluate": "anew, as evaluate.scales changed"}),
        ("classify.optim.lr=0.02", {"prepare": "kept", "seeds": "anew, as classifiers changed; the vote anew, as seeds "
                                    "changed"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_other_keys_will_make_anew_is_said(finished: Path, override: str, said: dict[str, str]) -> None:
    lines = remake_lines(load_config(config_of(finished), None, [override]), warm_start=False)
    assert {stage: lines[stage] for stage in said} == said


def lose(path: Path, change: Callable[[dict], object]) -> None:
    record = json.loads(path.read_text())
    change(record)
    write_json(path, record)


def test_a_key_that_is_recorded_by_now_is_named_and_its_stage_redone(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run from before a default was changed: what it did is not known."""
    before = results(copy)
    lose(copy / "run/classify/0.10/done.json", lambda record: record["parameters"]["classify"].pop("augment"))
    lose(copy / "run/train/done.json", lambda record: record["parameters"]["train"].pop("temperature"))
    lose(copy / "run/evaluate/val.json", lambda record: record["parameters"]["evaluate"].pop("average"))
    for verb, line in (
        ("classify", "classify.augment.crop: was not recorded, now 48"),
        ("train", "train.temperature: was not recorded, now 0.1"),
        ("evaluate", "evaluate.average: was not recorded, now 'probabilities'"),
    ):
        assert run(copy, verb=verb) == 2
        assert line in capfd.readouterr().err
    assert run(copy, "--remake") == 0
    assert results(copy) == before
