"""Complementary labels in a segmenter's batches: of which classes, how many, and the same however they are loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distwsss.data.batches.loader import MicroBatches, Share
from distwsss.data.batches.plan import Sample
from distwsss.data.batches.workers import make_loader
from distwsss.errors import ConfigError
from distwsss.losses.hybrid import NONE
from distwsss.runtime.seeding import torch_generator
from distwsss.train.task import Task, segmenter_task
from helpers.small import make_config, write_images, write_pseudo

CLASSES = ["background", "bird", "cat", "cow", "dog", "fox"]
TAGS = [[1, 3], [2], [1, 2, 3, 4, 5], [4]]  # of the four images; the last one's labels name class 1 all the same


def labels_of(number: int, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of background and of each tag, of ignored ones, no vote at all on half of them."""
    named = np.array([0, *TAGS[number], 255, *([1] if number == 3 else [])], np.uint8)
    labels = np.random.default_rng(number).choice(named, truth.shape)
    return labels, np.where(labels == 255, 0, np.arange(truth.size).reshape(truth.shape) % 2 + 1).astype(np.uint8)


@pytest.fixture
def loaded(tmp_path: Path):
    """loaded(number, **train) -> the maps of an image in epoch 2."""

    def task(**train: object) -> Task:
        config = make_config(tmp_path, train={"holdout": 0.0, **train})
        if not (tmp_path / "shards").exists():
            write_images(config, "train", 4, classes=CLASSES, labels=TAGS)
            write_pseudo(config, labels_of)
        return segmenter_task(config)

    def maps(number: int, **train: object) -> dict[str, Tensor]:
        made = task(**train)
        place = divmod(number, 2)
        return made.samples(Sample(2, *place), made.selection.index.key(*place))

    maps.task = task
    return maps


def classes_at(maps: dict[str, Tensor]) -> set[int]:
    return set(maps["complements"][..., maps["labels"] != 255].unique().tolist())


def test_one_complement_is_drawn_as_before_there_were_others(loaded) -> None:
    maps = loaded(1)
    labels = maps["labels"]
    drawn = torch.randint(5, labels.shape, generator=torch_generator(0, 2, "train-1", "complements"))
    assert torch.equal(maps["complements"], (drawn + (drawn >= labels)).to(torch.uint8))
    assert classes_at(maps) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(("number", "absent"), [(0, {2, 4, 5}), (1, {1, 3, 4, 5}), (3, {2, 3, 5})])
def test_absent_classes_have_no_tag_and_no_pixel(number: int, absent: set[int], loaded) -> None:
    assert classes_at(loaded(number, complement="absent")) == absent


def test_of_an_image_with_all_classes_any_other_is_drawn(loaded) -> None:
    assert torch.equal(loaded(2, complement="absent")["complements"], loaded(2)["complements"])


def test_several_are_all_different_and_not_the_label(loaded) -> None:
    maps = loaded(0, complements=3)
    valid = maps["labels"] != 255
    found = torch.cat([maps["labels"][None], maps["complements"]])[:, valid].sort(0).values
    assert maps["complements"].shape == (3, *valid.shape)
    assert maps["complements"].dtype == torch.uint8
    assert (found[1:] > found[:-1]).all()


def test_fewer_absent_classes_than_asked_for_leave_none(loaded) -> None:
    complements = loaded(0, complement="absent", complements=4)["complements"]
    assert set(complements[:3].unique().tolist()) == {2, 4, 5}
    assert (complements[3] == NONE).all()


def test_assigned_and_uniform_are_the_label_and_a_drawn_one(loaded) -> None:
    both, uniform = loaded(1, complement="assigned_uniform"), loaded(1)
    assert torch.equal(both["complements"], torch.stack([uniform["labels"], uniform["complements"]]))


def test_where_noisy_pixels_are_ignored_none_are_drawn(loaded) -> None:
    assert "complements" not in loaded(0, noisy="ignore")


def test_more_than_there_are_other_classes_is_refused(loaded) -> None:
    assert loaded.task(complements=5)
    with pytest.raises(ConfigError, match=r"train\.complements: found 6, .* 6 classes, .*allowed: 1\.\.5"):
        loaded.task(complements=6)


def test_micro_batches_hold_the_step_and_equal_maps_however_they_are_cut(loaded) -> None:
    made = loaded.task(complement="absent", complements=2)

    def steps(micro_batch: int) -> list[list]:
        share = Share(0, 1, micro_batch, 4 // micro_batch)
        batches = MicroBatches(made.selection, made.samples, 0, 4, share, 2)
        cut = [batches[i] for i in range(len(batches))]
        return [[batch for batch in cut if batch.step == step] for step in range(2)]

    for whole, parts in zip(steps(4), steps(2), strict=True):
        assert len(parts) == 2
        assert torch.equal(whole[0].complements, torch.cat([part.complements for part in parts]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_is_at_its_step(workers: int, loaded) -> None:
    """What falls with the step goes on from where it was."""
    made = loaded.task()
    batches = MicroBatches(made.selection, made.samples, 0, 4, Share(0, 1, 2, 2), 5)
    assert [batch.step for batch in make_loader(batches, 3, workers)] == [3, 3, 4, 4]
