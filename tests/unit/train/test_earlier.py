"""Classifiers that go on from earlier ones: rows by name, what is recorded, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distwsss.config import Config
from distwsss.config.networks import BackboneSection
from distwsss.errors import CheckpointError, ConfigError
from distwsss.models.classifier import Classifier
from distwsss.models.export import from_pretrained
from distwsss.runtime.artifacts import sha256_file
from distwsss.runtime.layout import classifier_dir, run_dir
from distwsss.train.earlier import load_earlier
from distwsss.train.stages import classify
from helpers.small import CLASSES, TINY_BACKBONE, make_config, publish, write_classifiers, write_images, write_segmenter


def tiny(classes: list[str], seed: int) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(BackboneSection(**TINY_BACKBONE), classes, 0.1)


def test_rows_are_matched_by_the_classes_names(tmp_path: Path) -> None:
    old, new = tiny(["background", "cat", "dog", "cow"], 1), tiny(["background", "bird", "cow", "cat"], 2)
    fresh = new.head.weight.detach().clone()
    added, dropped = load_earlier(new, publish(old, tmp_path / "step-00000001"))
    assert (added, dropped) == (["bird"], ["dog"])
    assert torch.equal(new.head.weight[0], fresh[0])
    assert torch.equal(new.head.weight[1], old.head.weight[2])
    assert torch.equal(new.head.weight[2], old.head.weight[0])
    for name, tensor in old.backbone.state_dict().items():
        assert torch.equal(new.backbone.state_dict()[name], tensor), name


def test_a_segmenter_is_no_classifier(tmp_path: Path) -> None:
    folder = write_segmenter(make_config(tmp_path))
    with pytest.raises(CheckpointError, match="allowed: a classifier"):
        load_earlier(tiny(CLASSES, 1), folder)


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """One classifier of two goes on from an earlier one; the learning rate moves nothing."""
    folder = tmp_path_factory.mktemp("gone-on")
    earlier = make_config(folder / "earlier", classify={"dropouts": [0.1]}, seeds={"threshold": 2})
    write_classifiers(earlier, seed=7)
    config = make_config(folder, classify={"optim": {"lr": 1e-12, "weight_decay": 0.0, "duration": "1 steps"}})
    write_images(config, "train", 4)
    classify(config, init_from=run_dir(earlier) / "classify")
    return config, run_dir(earlier) / "classify/0.10/checkpoints/step-00000001"


def test_it_starts_from_the_earlier_weights(gone_on: tuple[Config, Path]) -> None:
    config, earlier = gone_on
    found = from_pretrained(classifier_dir(config, 0.1) / "checkpoints/step-00000001").state_dict()
    for name, tensor in from_pretrained(earlier).state_dict().items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


def test_what_it_started_from_is_recorded_and_a_p_without_one_starts_anew(gone_on: tuple[Config, Path]) -> None:
    config, earlier = gone_on
    records = [json.loads((classifier_dir(config, p) / "done.json").read_text()) for p in (0.1, 0.3)]
    assert records[0]["parameters"]["init_from"] == sha256_file(earlier / "model.safetensors")
    assert records[0]["origin"]["init_from"] == str(earlier)
    assert "init_from" not in records[1]["parameters"]


def test_called_again_without_it_the_classifiers_are_complete(gone_on: tuple[Config, Path], caplog) -> None:
    with caplog.at_level("INFO", "distwsss"):
        classify(gone_on[0])
    assert "classify 0.10: complete, skipped" in caplog.text


def test_other_earlier_weights_are_refused(gone_on: tuple[Config, Path], tmp_path: Path) -> None:
    other = make_config(tmp_path, classify={"dropouts": [0.1]}, seeds={"threshold": 2})
    write_classifiers(other, seed=8)
    with pytest.raises(ConfigError, match="init_from: was"):
        classify(gone_on[0], init_from=run_dir(other) / "classify")
