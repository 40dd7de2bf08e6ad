"""What the segmenter task checks before the first step: damaged shards, masks that are missing, what it depends on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distwsss.config import Config
from distwsss.data.batches.loader import MicroBatches, Share
from distwsss.data.batches.plan import plan
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.errors import ConfigError, DataError, ShardError
from distwsss.losses.hybrid import hybrid_loss
from distwsss.runtime.artifacts import check_same
from distwsss.runtime.layout import images_dir, pseudo_dir
from distwsss.train.task import classifier_task, segmenter_task
from helpers.small import Samples, flip_a_bit, make_config, write_images, write_pseudo, write_shards


def made(folder: Path, **train: object) -> Config:
    """Four images in two shards, named `p.0` ... `p.3`, and pseudo-labels from their masks."""
    config = make_config(folder, train={"holdout": 0.0, **train})
    if not images_dir(config, "train").exists():
        write_images(config, "train", 4, names=[f"p.{number}" for number in range(4)])
        write_pseudo(config)
    return config


def drop_truth(config: Config, keys: set[str], digest: str | None = "digest") -> None:
    """The image shards anew, without the masks of `keys`."""
    index = load_index(images_dir(config, "train"))
    shards: list[Samples] = []
    for shard in range(len(index.shards)):
        samples = iter_shard(index, shard, ["jpg", "json", "truth.png"])
        shards.append(
            [(key, {k: v for k, v in each.items() if k != "truth.png" or key not in keys}) for key, each in samples]
        )
    write_shards(index.folder, "images", shards, index.classes, index.parameters, **{**index.extra, "truth": digest})


def test_missing_masks_are_named_before_training_on_truth(tmp_path: Path) -> None:
    config = made(tmp_path, labels="truth")
    drop_truth(config, {"p%2E0", "p%2E3"})
    with pytest.raises(DataError, match=r"(?s)train\.labels is 'truth'.*2 problems.*  p\.0: no mask.*  p\.3: no mask"):
        segmenter_task(config)


def test_the_vote_needs_no_masks(tmp_path: Path) -> None:
    config = made(tmp_path)
    drop_truth(config, {"p%2E0", "p%2E3"})
    assert segmenter_task(config).parameters


def test_masks_of_held_out_images_are_not_needed_to_train_on_truth(tmp_path: Path) -> None:
    config = made(tmp_path, labels="truth", holdout=0.5)
    kept = set(segmenter_task(config).selection.keys())
    drop_truth(config, set(load_index(pseudo_dir(config)).all().keys()) - kept)
    assert set(segmenter_task(config).selection.keys()) == kept


def test_masks_are_an_input_of_training_on_truth(tmp_path: Path) -> None:
    config = made(tmp_path, labels="truth")
    images = load_index(images_dir(config, "train")).fingerprint
    assert segmenter_task(config).parameters["inputs"] == {"images": images, "truth": "digest"}
    drop_truth(config, set(), "another")
    assert segmenter_task(config).parameters["inputs"] == {"images": images, "truth": "another"}


def test_masks_are_no_input_of_training_on_the_vote(tmp_path: Path) -> None:
    config = made(tmp_path)
    pseudo = load_index(pseudo_dir(config)).fingerprint
    drop_truth(config, set(), "another")
    assert segmenter_task(config).parameters["inputs"] == {"pseudo": pseudo}


def test_no_classifier_is_trained_on_damaged_images(tmp_path: Path) -> None:
    config = made(tmp_path)
    flip_a_bit(images_dir(config, "train") / "images-00001.tar")
    with pytest.raises(ShardError, match=r"images-00001\.tar: sha256 differs"):
        classifier_task(config, 0.1)


@pytest.mark.parametrize("options", [{"labels": "truth"}, {"holdout": 0.5, "evaluate_every": "50%"}])
def test_no_segmenter_that_reads_images_is_trained_on_damaged_ones(tmp_path: Path, options: dict[str, object]) -> None:
    config = made(tmp_path, **options)
    flip_a_bit(images_dir(config, "train") / "images-00001.tar")
    with pytest.raises(ShardError, match=r"images-00001\.tar: sha256 differs"):
        segmenter_task(config)


def test_the_vote_reads_no_image_shard(tmp_path: Path) -> None:
    config = made(tmp_path)
    flip_a_bit(images_dir(config, "train") / "images-00001.tar")
    assert segmenter_task(config).held_out is None


def test_no_segmenter_is_trained_on_damaged_pseudo_labels(tmp_path: Path) -> None:
    config = made(tmp_path)
    flip_a_bit(pseudo_dir(config) / "pseudo-00000.tar")
    with pytest.raises(ShardError, match=r"pseudo-00000\.tar: sha256 differs"):
        segmenter_task(config)


def test_without_masks_nothing_is_held_out_and_the_run_is_another(tmp_path: Path) -> None:
    config = made(tmp_path, holdout=0.5, evaluate_every="50%")
    before = segmenter_task(config)
    assert before.parameters["train"]["holdout"] == 0.5
    drop_truth(config, {f"p%2E{number}" for number in range(4)}, None)
    task = segmenter_task(config)
    assert len(before.selection) == 2
    assert len(task.selection) == 4
    assert task.held_out is None
    with pytest.raises(ConfigError, match=r"train\.holdout: was 0\.5, now 0\.0"):
        check_same(before.parameters, task.parameters, "train")


def test_without_masks_there_will_be_no_best(tmp_path: Path) -> None:
    config = made(tmp_path, holdout=0.5, evaluate_every="50%")
    drop_truth(config, {f"p%2E{number}" for number in range(4)}, None)
    best = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"checkpoint": "BEST"})})
    with pytest.raises(ConfigError, match=r"evaluate\.checkpoint: found 'BEST', but there is no mask"):
        segmenter_task(best)


def test_a_seed_of_its_own_is_the_segmenters_alone(tmp_path: Path) -> None:
    """The one that applies is what the run depends on; classifiers keep the configuration's."""
    as_configured, own, same = made(tmp_path), made(tmp_path, seed=5), made(tmp_path, seed=0)
    tasks = [segmenter_task(config) for config in (as_configured, own, same)]
    assert [task.parameters["seed"] for task in tasks] == [0, 5, 0]
    assert tasks[0].parameters == tasks[2].parameters
    assert tasks[1].parameters == {**tasks[0].parameters, "seed": 5}
    heads = [next(task.model.head.parameters()) for task in tasks]
    assert heads[0].equal(heads[2])
    assert not heads[0].equal(heads[1])
    assert classifier_task(own, 0.1).parameters == classifier_task(as_configured, 0.1).parameters


@pytest.mark.parametrize(("until", "steps"), [("50%", 2), ("3 steps", 3), ("2 epochs", 2)])
def test_the_temperature_falls_over_a_share_of_the_duration(tmp_path: Path, until: str, steps: int) -> None:
    """Four steps of four images: the loss of each step's batch is that of a constant temperature."""
    task = segmenter_task(made(tmp_path, temperature_from=1.0, temperature_until=until, temperature=0.25))
    batches = MicroBatches(task.selection, task.samples, 0, 4, Share(0, 1, 4, 1), 4)
    torch.manual_seed(0)
    for step in range(4):
        batch, logits = batches[step], torch.randn(4, 3, 48, 48)
        tau = 0.25 ** min(1.0, step / steps)
        found = hybrid_loss(logits, batch.labels, batch.clean, complements=batch.complements, temperature=tau)
        expected = found.positive[0] + found.negative[0]
        torch.testing.assert_close(task.sums([logits], batch)[0][0], expected)


@pytest.mark.parametrize(("streams", "same"), [("own", False), ("shared", True)])
def test_streams_of_two_classifiers(tmp_path: Path, streams: str, same: bool) -> None:
    """Sample order, augmentation and dropout follow from the task's seed: each p its own, or all the same."""
    config = make_config(tmp_path, classify={"streams": streams, "holdout": 0.0})
    write_images(config, "train", 12)
    tasks = [classifier_task(config, p) for p in (0.1, 0.3)]
    one, other = ([plan(task.selection, task.seed, step, 6) for step in range(2)] for task in tasks)
    orders = [[(sample.shard, sample.position) for batch in batches for sample in batch] for batches in (one, other)]
    assert (orders[0] == orders[1]) == same
    assert sorted(orders[0]) == sorted(orders[1])
    sample = one[0][0]
    key = tasks[0].selection.index.key(sample.shard, sample.position)
    images = [task.samples(sample, key)["image"] for task in tasks]
    assert torch.equal(*images) == same
    assert (tasks[0].seed == tasks[1].seed) == same  # what seeds dropout in every step
    again = classifier_task(config, 0.1)
    assert plan(again.selection, again.seed, 0, 6) == one[0]
