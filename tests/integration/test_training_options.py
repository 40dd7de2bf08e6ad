"""Short trainings: activations recomputed instead of kept, the file of weights that a run starts from, and seeds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch

from distwsss.config import Config
from distwsss.config.networks import BackboneSection
from distwsss.data.prepare import prepare
from distwsss.errors import ConfigError
from distwsss.runtime.artifacts import read_pointer
from distwsss.runtime.layout import classifier_dir, pointer, segmenter_dir
from distwsss.train.loop import fit
from distwsss.train.stages import classify, train
from distwsss.train.task import classifier_task, segmenter_task
from helpers.small import weights, write_images, write_pseudo


def test_recomputed_activations_train_to_the_same_weights(prepared: Config, tmp_path: Path) -> None:
    write_pseudo(prepared)
    backbone = BackboneSection(name="resnet18", pretrained=False, output_stride=8, norm="local")
    changes = {"backbone": backbone, "lineage": "codebase", "head_dropout": 0.5}
    optim = prepared.train.optim.model_copy(update={"duration": "2 steps"})
    config = prepared.model_copy(update={"train": prepared.train.model_copy(update={**changes, "optim": optim})})
    results, recomputing = [], config.hardware.model_copy(update={"activation_checkpointing": True})
    for hardware in (config.hardware, recomputing):
        folder = tmp_path / str(hardware.activation_checkpointing)
        results.append(weights(fit(segmenter_task(config), hardware, folder, seed=0)))
    assert results[0] == results[1]


def test_a_classifier_without_blocks_to_recompute_says_so(prepared: Config, tmp_path: Path) -> None:
    recomputing = prepared.hardware.model_copy(update={"activation_checkpointing": True})
    with pytest.raises(ConfigError, match="backbone 'tiny'"):
        fit(classifier_task(prepared, 0.1), recomputing, tmp_path, seed=0)


def test_a_run_records_its_weights_and_refuses_others(tiny, tmp_path: Path) -> None:
    source = tmp_path / "resnet18.pth"
    torch.manual_seed(0)
    net = timm.create_model("resnet18")
    torch.save(net.state_dict(), source)
    optim = {"duration": "1 steps", "global_batch": 2}
    backbone = {"name": "resnet18", "pretrained": True, "weights": str(source), "output_stride": 32}
    config = tiny(classify={"dropouts": [0.1], "backbone": backbone, "optim": optim}, seeds={"threshold": None})
    prepare(config)
    classify(config)
    folder = classifier_dir(config, 0.1)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    trainer = json.loads((folder / "checkpoints/step-00000001/trainer.json").read_text())
    done = json.loads((folder / "done.json").read_text())
    for record in (trainer, done):
        assert record["parameters"]["inputs"]["weights"] == digest
        assert record["origin"] == {"weights": str(source)}
    assert str(source) not in json.dumps(trainer["parameters"])  # a moved file is no other run
    moved = tmp_path / "elsewhere.pth"
    source.rename(moved)
    again = tiny(
        classify={"dropouts": [0.1], "backbone": {**backbone, "weights": str(moved)}, "optim": optim},
        seeds={"threshold": None},
    )
    classify(again)  # complete, skipped
    torch.save({**net.state_dict(), "bn1.bias": torch.ones(64)}, moved)
    with pytest.raises(ConfigError, match=rf"inputs\.weights: was '{digest}', now "):
        classify(again)
    (folder / "done.json").unlink()  # as one that was killed: it would go on from its checkpoint
    with pytest.raises(ConfigError, match=r"inputs\.weights: was"):
        classify(again)


def test_a_segmenter_of_its_own_seed_is_that_of_a_run_with_it(tiny, tmp_path: Path) -> None:
    """Initial weights, order of the photographs and augmentation: the same bytes."""
    found = []
    for name, seed, own in (("own", 0, 5), ("run", 5, None), ("other", 0, None)):
        section = {"holdout": 0.0, "labels": "truth", "seed": own}
        config = tiny(tmp_path / name, seed=seed, train=section)
        write_images(config, "train", 4)
        train(config)
        found.append(weights(read_pointer(pointer(segmenter_dir(config)))))
    assert found[0] == found[1] != found[2]
