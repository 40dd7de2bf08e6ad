"""What the segmenter task checks before the first step: damaged shards, masks that are missing, what it depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from distwsss.config import Config
from distwsss.data.images import encode_clean, encode_gray, encode_palette
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard, read_truth
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.errors import DataError, ShardError
from distwsss.runtime.layout import images_dir, pseudo_dir
from distwsss.train.task import classifier_task, segmenter_task
from helpers.evaluation_run import CLASSES, flip_a_bit, make_config, write_images

TINY = {"name": "tiny", "pretrained": False, "output_stride": 8}


def made(folder: Path, **train: object) -> Config:
    """Four images in two shards, named `p.0` ... `p.3`, and pseudo-labels that are their masks."""
    config = make_config(
        folder, classify={"backbone": TINY}, train={"backbone": TINY, "holdout": 0.0, "head_channels": 8, **train}
    )
    if not images_dir(config, "train").exists():
        write_images(config, "train", 4, names=[f"p.{number}" for number in range(4)])
        write_pseudo(config)
    return config


def write_pseudo(config: Config) -> None:
    images, records = load_index(images_dir(config, "train")), []
    for shard in range(len(images.shards)):
        samples = []
        for position, (key, members) in enumerate(iter_shard(images, shard, ["jpg", "json"])):
            truth = read_truth(images, shard, position)
            assert truth is not None
            maps = {"label.png": encode_palette(truth), "votes.png": encode_gray(truth * 0 + 2)}
            samples.append((key, {**members, **maps, "clean.png": encode_clean(truth != 255)}))
        records.append(write_shard(pseudo_dir(config) / f"pseudo-{shard:05d}.tar", samples))
    write_index(pseudo_dir(config), records, {}, CLASSES, "pseudo", {"seeds": ["0.10-1.00", "0.20-1.00"]})


def drop_truth(config: Config, keys: set[str], digest: str | None = "digest") -> None:
    """The image shards anew, without the masks of `keys`."""
    index, records = load_index(images_dir(config, "train")), []
    for shard, record in enumerate(index.shards):
        samples = [
            (key, {name: data for name, data in members.items() if name != "truth.png" or key not in keys})
            for key, members in iter_shard(index, shard, ["jpg", "json", "truth.png"])
        ]
        records.append(write_shard(index.folder / record.name, samples))
    write_index(index.folder, records, index.parameters, index.classes, "images", {**index.extra, "truth": digest})


def test_missing_masks_are_named_before_training_on_truth(tmp_path: Path) -> None:
    config = made(tmp_path, labels="truth")
    drop_truth(config, {"p%2E0", "p%2E3"})
    with pytest.raises(DataError, match=r"(?s)train\.labels is 'truth'.*2 problems.*  p\.0: no mask.*  p\.3: no mask"):
        segmenter_task(config)
    assert segmenter_task(made(tmp_path)).parameters  # the vote needs none


def test_masks_of_held_out_images_are_not_needed_to_train_on_truth(tmp_path: Path) -> None:
    config = made(tmp_path, labels="truth", holdout=0.5)
    kept = set(segmenter_task(config).selection.keys())
    drop_truth(config, set(load_index(pseudo_dir(config)).all().keys()) - kept)
    assert set(segmenter_task(config).selection.keys()) == kept


def test_masks_are_an_input_of_training_on_truth_alone(tmp_path: Path) -> None:
    truth, vote = made(tmp_path, labels="truth"), made(tmp_path)
    images, pseudo = (load_index(folder).fingerprint for folder in (images_dir(truth, "train"), pseudo_dir(truth)))
    assert segmenter_task(truth).parameters["inputs"] == {"images": images, "truth": "digest"}
    drop_truth(truth, set(), "another")
    assert segmenter_task(truth).parameters["inputs"] == {"images": images, "truth": "another"}
    assert segmenter_task(vote).parameters["inputs"] == {"pseudo": pseudo}


def test_nothing_is_trained_on_damaged_shards(tmp_path: Path) -> None:
    config = made(tmp_path)
    flip_a_bit(images_dir(config, "train") / "images-00001.tar")
    with pytest.raises(ShardError, match=r"images-00001\.tar: sha256 differs"):
        classifier_task(config, 0.1)
    assert segmenter_task(config).held_out is None  # reads no image shard
    for options in ({"labels": "truth"}, {"holdout": 0.5, "evaluate_every": "50%"}):
        with pytest.raises(ShardError, match=r"images-00001\.tar: sha256 differs"):
            segmenter_task(made(tmp_path, **options))
    flip_a_bit(pseudo_dir(config) / "pseudo-00000.tar")
    with pytest.raises(ShardError, match=r"pseudo-00000\.tar: sha256 differs"):
        segmenter_task(config)
