"""Guards of training as a user meets them: a loss that grows ends the run; what classifiers are measured by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from distwsss.cli import main
from distwsss.config import Config
from distwsss.config.load import load_config
from distwsss.data.doubtful import read_doubts
from distwsss.data.holdout import image_tags
from distwsss.data.images import decode_image
from distwsss.data.prepare import prepare
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_fields
from distwsss.errors import RunError
from distwsss.maths.average_precision import average_precision
from distwsss.maths.cam import scaled_input
from distwsss.models.export import from_pretrained
from distwsss.runtime.layout import classifier_dir, doubtful_tags_file, images_dir
from distwsss.train.stages import classify
from helpers.small import TINY_BACKBONE, make_config, write_config, write_images

GROWS = {"lr": 1000.0, "duration": "80 steps", "log_every": 10}


def growing(folder: Path, **optim: object) -> Config:
    """Only the new layer learns, at a rate that throws it from side to side."""
    backbone = {**TINY_BACKBONE, "freeze": [""]}
    section = {"dropouts": [0.1], "backbone": backbone, "optim": {**GROWS, **optim}}
    config = make_config(folder, classify=section, seeds={"threshold": 2})
    write_images(config, "train", 6, labels=[[1], [2], [1, 2]] * 2)
    return config


def test_a_loss_that_grows_ends_the_run_with_what_to_change(tmp_path: Path) -> None:
    config = growing(tmp_path)
    with pytest.raises(RunError, match=r"classify 0\.10: the loss grows: .* at step 50, .* step 1\. Lower") as caught:
        classify(config)
    for key in ("`classify.optim.lr` (found 1000", "classify.optim.warmup", "classify.optim.clip_grad"):
        assert key in str(caught.value)
    assert caught.value.exit_code == 1
    checkpoints = classifier_dir(config, 0.1) / "checkpoints"
    assert (checkpoints / "LAST").read_text().strip() == "step-00000040"
    assert from_pretrained(checkpoints / "step-00000040")
    assert not (classifier_dir(config, 0.1) / "done.json").exists()


def test_a_resumed_run_has_a_history_of_its_own_and_the_best_of_before(tmp_path: Path) -> None:
    config = growing(tmp_path, duration="200 steps", save_every="40 steps")
    with pytest.raises(RunError, match="at step 50"):
        classify(config)
    with pytest.raises(RunError, match=r"the loss grows: .* at step \d+, 0\.69\d* at its best") as caught:
        classify(config)  # goes on from step 40
    assert 90 <= int(str(caught.value).partition("at step ")[2].partition(",")[0]) <= 200


def test_null_lets_it_go_on(tmp_path: Path) -> None:
    config = growing(tmp_path, growth=None)
    classify(config)
    assert (classifier_dir(config, 0.1) / "done.json").is_file()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.yaml of 100 generated photographs, and its classifiers."""
    folder = tmp_path_factory.mktemp("measured")
    shapes = {"dataset": "shapes", "shapes": {"train": 100, "val": 0, "size": 32}}
    path = write_config(folder, data=shapes, prepare={"shard_size": 40}, seeds={"base_size": 48})
    prepare(load_config(str(path)))
    classify(load_config(str(path)))
    return path


def test_average_precision_is_that_of_the_photographs_held_out(measured: Path) -> None:
    """Looked at again, one after the other, as for a CAM at scale 1.00."""
    config = load_config(str(measured))
    index, folder = load_index(images_dir(config, "train")), classifier_dir(config, 0.3)
    record, model = json.loads((folder / "average_precision.json").read_text()), from_pretrained(last(folder))
    tags, places = image_tags(index), dict(zip(index.all().keys(), index.all().places(), strict=True))
    assert record["photographs"] == len(record["ids"]) == 10
    scores, targets = [], []
    for key in map(key_from_name, record["ids"]):
        image = decode_image(read_fields(index, *places[key], ["jpg"])["jpg"], key)
        scores.append(model(scaled_input(image, 48 / 32, model))[0].sigmoid().tolist())
        targets.append([label in tags[key] for label in range(1, len(index.classes))])
    wanted = [average_precision(*columns) for columns in zip(np.array(scores).T, np.array(targets).T, strict=True)]
    found = [each["average_precision"] for each in record["classes"].values()]
    assert [np.nan if value is None else value for value in found] == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    assert record["mean"] == pytest.approx(np.nanmean(wanted))


def last(folder: Path) -> Path:
    return folder / "checkpoints" / (folder / "checkpoints/LAST").read_text().strip()


def test_what_the_classifiers_contradict_is_written_in_order_and_shown_again(measured: Path, capfd) -> None:
    config = load_config(str(measured))
    path = doubtful_tags_file(config)
    doubts = read_doubts(path, load_index(images_dir(config, "train")).fingerprint)
    assert len(doubts) == len(path.read_text().splitlines()) > 10
    assert [each.doubt for each in doubts] == sorted((each.doubt for each in doubts), reverse=True)
    assert any(each.held_out for each in doubts)
    assert main(["prepare", "--config", str(measured)]) == 0
    said = capfd.readouterr().err
    assert "tags that the classifiers contradict most" in said
    assert said.count(", score 0.") == 10
    assert main(["report", "--config", str(measured)]) == 0
    page = (measured.parent / "run/report/index.html").read_text()
    assert f"{doubts[0]}" in page
    assert "On 10 photographs held out" in page


def test_called_again_classify_measures_nothing_anew(measured: Path, capfd) -> None:
    files = list(measured.parent.glob("run/classify/*/scores.npy"))
    before = [path.stat().st_mtime_ns for path in files]
    assert main(["classify", "--config", str(measured)]) == 0
    assert [path.stat().st_mtime_ns for path in files] == before
    assert "average precision on 10 photographs held out: mean" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("verb", "key", "value"),
    [
        ("classify", "data.allow_empty", "true"),
        ("classify", "classify.holdout", "0.2"),
        ("seeds", "classify.optim.lr", "0.02"),
        ("seeds", "prepare.shard_size", "10"),
        ("stats", "prepare.shard_size", "10"),
        ("train", "data.allow_empty", "true"),
        ("report", "prepare.shard_size", "10"),
    ],
)
def test_a_stage_alone_refuses_to_mix(verb: str, key: str, value: str, measured: Path, capfd) -> None:
    assert main([verb, "--config", str(measured), "--set", f"{key}={value}"]) == 2
    assert f"{key}: was" in capfd.readouterr().err
