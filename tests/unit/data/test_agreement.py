"""Masks held against tags: those of another numbering, of 0 and 255, and a few that are wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from distwsss.config import Config
from distwsss.config.load import load_config
from distwsss.data.images import encode_gray
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_truth
from distwsss.data.sources.datasets import DATASETS
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.layout import images_dir
from helpers.small import data_config, make_config, picture

SIZE = (24, 32)
PETS = ["cat", "dog", "emu"]
TAGS = [[1], [2], [3], [1, 2], [2], [3], [1], [2, 3]]


def mask_of(values: list[int], background: int = 0, border: int | None = None) -> np.ndarray:
    """A block of each value on a background, each inside a border of an ignored value, perhaps."""
    mask = np.full(SIZE, background, np.uint8)
    for number, value in enumerate(values):
        if border is not None:
            mask[2:12, 8 * number : 8 * number + 7] = border
        mask[3:11, 8 * number + 1 : 8 * number + 6] = value
    return mask


def folder(root: Path, masks: list[np.ndarray], tags: list[list[int]] = TAGS, classes: list[str] = PETS) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = ["id,labels"]
    for number, (mask, labels) in enumerate(zip(masks, tags, strict=False)):
        (root / f"images/p{number}.jpg").write_bytes(picture(number, *SIZE))
        (root / f"masks/p{number}.png").write_bytes(encode_gray(mask))
        rows.append(f"p{number},{';'.join(classes[label - 1] for label in labels)}")
    (root / "tags.csv").write_text("\n".join(rows))
    return root


def run(root: Path, classes: list[str] = PETS, on_bad: str = "fail", **data: Any) -> Config:
    config = data_config(root, root.parent, classes=classes, allow_empty=True, **data)
    prepare(config, on_bad)
    return config


def refusal(root: Path, *arguments: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        run(root, *arguments, **options)
    assert not (root.parent / "shards").exists()
    return str(caught.value)


def truths(config: Config) -> dict[str, np.ndarray]:
    index = load_index(images_dir(config, "train"), "images")
    return {index.key(*place): read_truth(index, *place) for place in index.all().places()}  # type: ignore[misc]


# --- of another numbering ---

# value in the mask of: background, cat, dog, emu
NUMBERINGS = {"from 1": [1, 2, 3, 4], "another order": [0, 3, 1, 2], "background among them": [2, 0, 1, 3],
              "far": [7, 40, 11, 90], "two exchanged": [0, 2, 1, 3]}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERINGS)
@pytest.mark.parametrize("on_bad", ["fail", "quarantine"])
def test_masks_of_another_numbering_are_refused_with_the_key_that_reads_them(
    tmp_path: Path, name: str, on_bad: str
) -> None:
    values = NUMBERINGS[name]
    root = folder(tmp_path / "data", [mask_of([values[label] for label in tags], values[0]) for tags in TAGS])
    text = refusal(root, on_bad=on_bad)
    wanted = {value: number for number, value in enumerate(values) if value != number}
    said = "{" + ", ".join(f"{value}: {number}" for value, number in sorted(wanted.items())) + "}"
    assert f"with another numbering of the masks on 8: set `data.mask_values: {said}`" in text
    config = run(root, mask_values=yaml.safe_load(said))
    for key, truth in truths(config).items():
        assert np.array_equal(truth, mask_of(TAGS[int(key[1:])]))


def test_masks_that_fit_no_numbering_are_refused_with_examples(tmp_path: Path) -> None:
    shown = [[2], [3], [1], [3], [1], [2], [3], [1]]
    text = refusal(folder(tmp_path / "data", [mask_of(labels) for labels in shown]))
    assert "train: 8 of 8 masks hold none of their photograph's tags (p0.jpg: tags cat, mask dog;" in text
    assert "0 background, 1 cat, 2 dog, 3 emu" in text
    assert "data.contradicting_masks: warn" in text


def test_masks_of_background_only_are_refused(tmp_path: Path) -> None:
    text = refusal(folder(tmp_path / "data", [mask_of([]) for _ in TAGS]))
    assert "8 of 8 masks hold none of their photograph's tags (p0.jpg: tags cat, mask background only" in text


def test_a_few_contradictions_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distwsss")
    shown = [[2], [1], *TAGS[2:]]
    config = run(folder(tmp_path / "data", [mask_of(labels) for labels in shown]))
    assert len(truths(config)) == 8
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "prepare: train: 2 of 8 masks hold none of their photograph's tags "
        "(p0.jpg: tags cat, mask dog; p1.jpg: tags dog, mask cat)"
    ]
    said = (
        "8 masks: 6 hold exactly the classes that their photograph is tagged with, 0 some of them or others too, 2 none"
    )
    assert said in caplog.text


def test_more_or_less_than_the_tags_is_counted_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "distwsss")
    shown = [[1, 3], [2, 3], [3], [1], *TAGS[4:]]
    run(folder(tmp_path / "data", [mask_of(labels) for labels in shown]))
    assert (
        "5 hold exactly the classes that their photograph is tagged with, 3 some of them or others too, 0 n"
        in caplog.text
    )
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_contradicting_masks_may_be_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path / "data", [mask_of([label % 3 + 1 for label in labels]) for labels in TAGS])
    config = run(root, contradicting_masks="warn")
    assert len(truths(config)) == 8
    assert any("another numbering" in record.getMessage() for record in caplog.records)


def test_tags_that_come_from_the_masks_are_not_compared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """VOC's folders with `labels_from: masks`; the values are read by `data.mask_values` there too."""
    root = tmp_path / "data"
    folder(root, [mask_of([4], 3)] * 3, [[1]] * 3)
    (root / "masks").rename(root / "SegmentationClass")
    (root / "images").rename(root / "JPEGImages")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("p0\np1\np2\n")
    keys = {"labels_from": "masks", "classes": ["cat"], "mask_values": {3: 0, 4: 1}}
    config = data_config(root, tmp_path, "voc", **keys)
    assert [item.labels for item in DATASETS["voc"](config.data, "train").items] == [[1]] * 3
    prepare(config)
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


# --- one class: 0 and 255 ---


@pytest.mark.parametrize(
    ("value", "border", "said", "key"),
    [
        (255, None, "255 on 5%", "{255: 1}"), (255, 128, "255 on 5%, 128 on 4%", "{128: 255, 255: 1}"),
        (128, None, "128 on 5%", "{128: 1}"),
    ],
)  # fmt: skip
def test_binary_masks_of_other_values(tmp_path: Path, value: int, border: int | None, said: str, key: str) -> None:
    masks = [mask_of([value], border=border) for _ in range(4)]
    root = folder(tmp_path / "data", masks, [[1]] * 4, ["pet"])
    text = refusal(root, ["pet"])
    assert f"train: no mask holds class 1, and tagged images have {said} of their pixels" in text
    assert f"if {value} means `pet`, set `data.mask_values: {key}`" in text
    config = run(root, ["pet"], mask_values=yaml.safe_load(key))
    assert all(np.array_equal(truth, mask_of([1], border=border and 255)) for truth in truths(config).values())


def test_even_a_single_mask_of_0_and_255_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", [mask_of([255])], [[1]], ["pet"])
    assert "no mask holds class 1" in refusal(root, ["pet"])


def test_photographs_without_the_class_are_no_excuse(tmp_path: Path) -> None:
    masks = [mask_of([255]) if number % 2 else mask_of([]) for number in range(6)]
    root = folder(tmp_path / "data", masks, [[1] if number % 2 else [] for number in range(6)], ["pet"])
    assert "no mask holds class 1" in refusal(root, ["pet"])


def test_masks_of_several_classes_that_hold_255_alone(tmp_path: Path) -> None:
    text = refusal(folder(tmp_path / "data", [mask_of([255]) for _ in TAGS]))
    assert (
        "no mask holds any class, and tagged images have 255 on 5% of their pixels; masks must hold class ids" in text
    )


def test_a_class_with_an_ignored_border_is_as_it_should_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks = [mask_of([1], border=255) for _ in range(4)]
    config = run(folder(tmp_path / "data", masks, [[1]] * 4, ["pet"]), ["pet"])
    assert all(np.array_equal(truth, mask_of([1], border=255)) for truth in truths(config).values())
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


# --- the key ---


def test_what_values_mean_is_of_masks_alone(tmp_path: Path) -> None:
    root = folder(tmp_path / "data", [mask_of([1]) for _ in range(4)], [[1]] * 4, ["pet"])
    config = run(root, ["pet"])
    before = load_index(images_dir(config, "train"))
    with pytest.raises(ConfigError, match="masks changed"):
        run(root, ["pet"], mask_values={9: 255})
    other = data_config(root, tmp_path / "b", classes=["pet"], allow_empty=True, mask_values={9: 255})
    prepare(other)
    after = load_index(images_dir(other, "train"))
    assert after.fingerprint == before.fingerprint
    assert after.extra["truth"] != before.extra["truth"]


def test_the_key_from_a_file_from_set_and_from_what_was_written_down(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("data: {dataset: folder, root: x, mask_values: {255: 1, 128: 255}}")
    assert load_config(file).data.mask_values == {255: 1, 128: 255}
    assert load_config(file, overrides=["data.mask_values={7: 0}"]).data.mask_values == {255: 1, 128: 255, 7: 0}
    file.write_text(yaml.safe_dump(json.loads(load_config(file).model_dump_json())))
    assert load_config(file).data.mask_values == {255: 1, 128: 255}
    with pytest.raises(ConfigError, match=r"(?s)mask_values.*values 0\.\.255 to class ids"):
        make_config(tmp_path, data={"mask_values": {256: 1}})
