"""What is said of classifiers: who is held out, average precision, doubtful tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distwsss.config import Config
from distwsss.data.doubtful import Doubt, read_doubts, write_doubts
from distwsss.data.holdout import classifier_held_out_keys, held_out_keys, image_tags
from distwsss.data.shards.format import name_from_key
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.runtime.layout import images_dir
from distwsss.train.measure import doubtful_tags, precision_line, precision_record
from distwsss.train.task import classifier_task
from helpers.small import make_config, write_images


def images(folder: Path, labels: list[list[int]], **sections: object) -> tuple[Config, ShardIndex]:
    config = make_config(folder, **sections)
    write_images(config, "train", len(labels), labels=labels, truth=False, sizes=[(8, 8)])
    return config, load_index(images_dir(config, "train"), "images")


def test_from_100_photographs_on_a_tenth_is_held_out_by_a_hash_of_its_id(tmp_path: Path) -> None:
    config, index = images(tmp_path, [[1 + number % 2] for number in range(100)])
    kept_out = classifier_held_out_keys(index, 0.1)
    assert kept_out == held_out_keys(index, 0.1)
    assert len(kept_out) == 10
    assert set(classifier_task(config, 0.1).selection.keys()) == set(index.all().keys()) - kept_out


def test_of_fewer_none_is(tmp_path: Path) -> None:
    config, index = images(tmp_path, [[1 + number % 2] for number in range(99)])
    assert classifier_held_out_keys(index, 0.1) == set()
    assert len(classifier_task(config, 0.1).selection) == 99


def test_a_rare_class_keeps_what_it_is_learnt_from(tmp_path: Path) -> None:
    _, index = images(tmp_path, [[1, 2] if number < 5 else [1] for number in range(120)])
    tags, kept_out = image_tags(index), classifier_held_out_keys(index, 0.9)
    assert sum(tags[key] == [1, 2] for key in kept_out) == 1
    assert len(kept_out) == 108


def test_precision_of_each_class_and_of_one_that_nobody_has() -> None:
    scores = np.array([[0.9, 0.2, 0.1], [0.8, 0.9, 0.1], [0.1, 0.8, 0.1]])
    targets = np.array([[True, False, False], [False, True, False], [True, False, False]])
    record = precision_record(["cat", "dog", "cow"], scores, targets)
    assert record["classes"]["cat"] == {"average_precision": pytest.approx(0.5 + 0.5 * 2 / 3), "positives": 2}
    assert record["classes"]["dog"] == {"average_precision": 1.0, "positives": 1}
    assert record["classes"]["cow"] == {"average_precision": None, "positives": 0}
    assert record["mean"] == pytest.approx((5 / 6 + 1) / 2)
    line = precision_line(record)
    assert "on 3 photographs held out: mean 91.7 (cat 83.3, dog 100.0; no photograph with cow)" in line


def test_what_was_not_measured_is_said() -> None:
    record = precision_record(["cat"], np.zeros((0, 1)), np.zeros((0, 1), bool))
    assert "was not measured" in precision_line(record)


def test_doubtful_tags_of_both_kinds_in_order(tmp_path: Path) -> None:
    _, index = images(tmp_path, [[1], [2], [1, 2]])
    names = list(map(name_from_key, index.all().keys()))
    scores = np.array([[0.9, 0.7], [0.1, 0.05], [0.8, 0.6]])  # the last agrees with its tags
    found = write_doubts(tmp_path / "doubts.jsonl", doubtful_tags(index, scores, {names[0]}))
    print_of = index.fingerprint
    assert found == [
        Doubt(names[1], "dog", True, 0.05, False, print_of),
        Doubt(names[0], "dog", False, 0.7, True, print_of),
    ]
    assert read_doubts(tmp_path / "doubts.jsonl", print_of) == found
    assert str(found[1]) == f"{names[0]}: not tagged dog, score 0.70 (held out)"


def test_doubts_of_other_images_are_not_read_back(tmp_path: Path) -> None:
    write_doubts(tmp_path / "doubts.jsonl", [Doubt("a", "cat", True, 0.1, False, "others")])
    assert read_doubts(tmp_path / "doubts.jsonl", "these") == []
    (tmp_path / "doubts.jsonl").write_text("not ours\n")
    assert read_doubts(tmp_path / "doubts.jsonl", "these") == []
