"""Every row of configs/voc12 and configs/coco14: a step, an evaluation and a checkpoint by the commands of a GPU user.

Each *_smoke.yaml changes sizes and data only; stage 1 (ResNet38, CAM, CRF, vote) is made once and shared, as rows do.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save

from distwsss.config import load_config
from distwsss.models.export import from_pretrained, save_pretrained
from helpers.command import run_distwsss
from helpers.paths import CONFIGS

SMOKE = sorted(path for folder in ("voc12", "coco14") for path in (CONFIGS / folder).glob("*_smoke.yaml"))


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs and shards hold what all rows share."""
    folder = tmp_path_factory.mktemp("rows")
    for verb in ("prepare", "classify", "seeds"):
        done = run_distwsss(verb, "--config", SMOKE[0], "--set", "hardware.executor=local", cwd=folder)
        assert done.returncode == 0, done.stderr
    (last,) = (folder / "runs/smoke/classify/0.10/checkpoints").glob("step-*")
    assert sum(value.numel() for value in load_file(last / "model.safetensors").values()) > 105_000_000  # ResNet38
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", SMOKE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_row_takes_a_step_and_is_evaluated(path: Path, stage_1: Path, tmp_path: Path) -> None:
    for verb in ("train", "evaluate"):
        done = run_distwsss(verb, "--config", path, cwd=stage_1)
        assert done.returncode == 0, done.stderr
    run = stage_1 / "runs" / load_config(path).name
    checkpoint = run / "train/checkpoints" / (run / "train/checkpoints/LAST").read_text().strip()
    assert checkpoint.name == "step-00000001"
    scores = json.loads((run / "evaluate/val.json").read_text())
    assert scores["scored"] == 2
    assert set(scores["miou"]) == {"single", "single_crf", "multi", "multi_crf"}
    assert all(0 <= value <= 1 for value in scores["miou"].values())
    save_pretrained(from_pretrained(checkpoint), tmp_path)
    weights = [load_file(folder / "model.safetensors") for folder in (checkpoint, tmp_path)]
    assert save(weights[0]) == save(weights[1])
    (checkpoint / "model.safetensors").unlink()  # 100 to 400 MB each
    (checkpoint / "optimizer.pt").unlink()


@pytest.mark.parametrize("path", SMOKE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_smoke_twin_changes_sizes_and_data_only(path: Path) -> None:
    """Its model, lineage, head, losses, optimizers, schedules and readings are the row's."""
    row, twin = load_config(path.with_name(path.name.replace("_smoke", ""))), load_config(path)
    same = ["model", "lineage", "head", "loss", "temperature", "noisy", "complement", "complements", "holdout"]
    assert [getattr(row.train, key) for key in same] == [getattr(twin.train, key) for key in same]
    same = ["optimizer", "lr", "momentum", "compat", "weight_decay", "decay_bias", "decay_norm", "schedule", "power"]
    same += ["head_multiplier", "bias_multiplier", "backbone_multiplier", "clip_grad"]
    for stage in ("train", "classify"):
        ours, theirs = getattr(row, stage).optim, getattr(twin, stage).optim
        assert [getattr(ours, key) for key in same] == [getattr(theirs, key) for key in same]
    assert row.classify.backbone.name == twin.classify.backbone.name == "resnet38"
    assert row.evaluate.crf == twin.evaluate.crf
    average = "logits" if row.train.lineage == "codebase" else "probabilities"  # as that code does
    assert row.evaluate.average == twin.evaluate.average == average
    assert row.seeds.crf == twin.seeds.crf
