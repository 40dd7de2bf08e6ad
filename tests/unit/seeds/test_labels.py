"""`seeds.labels`: which tagged classes got no pixel, by made-up pseudo-labels; without foreground the run ends."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from distwsss.config.schema import Config
from distwsss.data.shards.index import load_index
from distwsss.errors import RunError
from distwsss.report.html import write_report
from distwsss.runtime.artifacts import read_json
from distwsss.runtime.layout import labels_file, pseudo_dir, run_dir
from distwsss.seeds.generate import run_seeds
from distwsss.seeds.labels import check_labels, count_labels, worst_first
from helpers.small import make_config, snapshot, write_classifiers, write_images, write_pseudo

LABELS = [[1], [1, 2], [], [2], [1, 2]]
# of each image: what its pseudo-label holds (255 is no class, 3 none of its tags)
PIXELS = [[0, 1], [0, 1], [0], [0, 255], [0, 3]]
CLASSES = ["background", "cat", "dog", "hat"]


def labelled(folder: Path, pixels: list[list[int]] = PIXELS, **sections: object) -> Config:
    """Five images whose pseudo-labels hold `pixels`, and no masks."""
    config = make_config(folder, **sections)
    write_images(config, "train", 5, CLASSES, truth=False, labels=LABELS)

    def maps(number: int, _: object) -> tuple[np.ndarray, np.ndarray]:
        size = ((24, 32), (32, 32))[number % 2]
        found = np.resize(np.array(pixels[number], np.uint8), size)
        return found, np.full(size, 3, np.uint8)

    write_pseudo(config, maps, threshold=3)
    return config


def test_counts_are_of_tagged_images_only(tmp_path: Path) -> None:
    found = count_labels(load_index(pseudo_dir(labelled(tmp_path)), "pseudo"))
    assert (found["images"], found["with_foreground"]) == (4, 3)
    assert found["classes"] == {
        "cat": {"tagged": 3, "without": 1},
        "dog": {"tagged": 3, "without": 3},
        "hat": {"tagged": 0, "without": 0},
    }
    assert worst_first(found) == [("dog", 3, 3), ("cat", 1, 3)]


def test_it_is_said_kept_and_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = labelled(tmp_path)
    before = snapshot(Path(str(pseudo_dir(config))))
    with caplog.at_level(logging.INFO, "distwsss"):
        record = check_labels(config)
    assert "dog: 3 of 3 tagged photographs have no pixel of it; cat: 1 of 3 tagged" in caplog.text
    warnings = [entry.message for entry in caplog.records if entry.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "dog: no pixel in more than half" in warnings[0]
    assert read_json(labels_file(config)) == record
    assert snapshot(Path(str(pseudo_dir(config)))) == before
    assert "<td>dog</td><td>3</td><td>3</td>" in write_report(config).read_text()


def test_another_vote_is_counted_anew(tmp_path: Path) -> None:
    first = check_labels(labelled(tmp_path))
    config = labelled(tmp_path, [[1], [1, 2], [0], [2], [1, 2]])
    assert check_labels(config)["index"] != first["index"]
    assert worst_first(read_json(labels_file(config))) == [("cat", 0, 3), ("dog", 0, 3)]


def test_no_foreground_ends_the_run_and_says_where_to_look(tmp_path: Path) -> None:
    config = labelled(tmp_path, [[0]] * 5, seeds={"alpha": 8.0})
    for _ in range(2):  # found again in what was kept
        with pytest.raises(RunError, match=r"none of 4 tagged photographs(.|\n)*loss(.|\n)*seeds.alpha: found 8"):
            check_labels(config)


def test_without_any_tags_there_is_nothing_to_miss(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_images(config, "train", 2, CLASSES, truth=False, labels=[[], []], sizes=((24, 32),))
    write_pseudo(config, lambda number, _: (np.zeros((24, 32), np.uint8), np.full((24, 32), 3, np.uint8)))
    assert check_labels(config)["images"] == 0


@pytest.mark.parametrize("keep", [True, False])
def test_the_stage_counts_also_what_was_complete(tmp_path: Path, keep: bool) -> None:
    config = make_config(tmp_path, seeds={"keep_maps": keep, "threshold": 3})
    write_images(config, "train", 2, CLASSES, truth=False, labels=[[1], [1, 2]])
    write_classifiers(config, CLASSES)
    run_seeds(config)
    record = read_json(labels_file(config))
    assert record["images"] == 2
    shutil.rmtree(run_dir(config) / "seeds")
    run_seeds(config)
    assert read_json(labels_file(config)) == record


def test_alpha_near_zero_leaves_no_foreground(tmp_path: Path) -> None:
    """By the stage itself: with a background of 1 everywhere the CRF finds nothing else."""
    config = make_config(tmp_path, seeds={"alpha": 1e-9, "normalise": "sum", "threshold": 3})
    write_images(config, "train", 2, CLASSES, truth=False, labels=[[1], [2]])
    write_classifiers(config, CLASSES)
    for _ in range(2):  # the second time seeds and vote are complete
        with pytest.raises(RunError, match="nothing after `seeds` was run"):
            run_seeds(config)
