"""Evaluation of a split: matrices against counting by hand, skipping, other checkpoints and data, what is printed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distwsss.config.crf import CRFParams
from distwsss.config.schema import Config
from distwsss.data.images import decode_image
from distwsss.data.prepare import prepare
from distwsss.data.scoring import read_image_counts
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_fields
from distwsss.data.sources.shapes import CLASSES as SHAPES_CLASSES
from distwsss.errors import ConfigError, DataError, RunError, ShardError
from distwsss.evaluate.evaluate import evaluate
from distwsss.evaluate.scores import describe_checkpoint, table_rows
from distwsss.inference.postprocess import bounded_pool, crf_labels
from distwsss.inference.segmenter import Segmenter, open_segmenter
from distwsss.inference.views import Views, crf_planes, predict_probabilities
from distwsss.maths.miou import miou_of
from distwsss.models.export import from_pretrained
from distwsss.runtime.layout import images_dir, run_dir, segmenter_dir
from distwsss.train.task import segmenter_task
from helpers.crf_reference import crf_inference
from helpers.small import CLASSES, flip_a_bit, make_config, picture, write_folder, write_images, write_segmenter


def count_by_hand(predictions: list[np.ndarray], truths: list[np.ndarray], classes: int) -> list[list[int]]:
    matrix = [[0] * (classes + 1) for _ in range(classes)]
    for prediction, truth in zip(predictions, truths, strict=True):
        for said, true in zip(prediction.flat, truth.flat, strict=True):
            if true != 255:
                matrix[true][said] += 1
    return matrix


def predictions(config: Config, folder: Path, multi_scale: bool) -> list[np.ndarray]:
    return all_predictions(open_segmenter(config, folder), load_index(images_dir(config, "val"), "images"), multi_scale)


def all_predictions(segmenter: Segmenter, index: ShardIndex, multi_scale: bool) -> list[np.ndarray]:
    found = []
    for shard, count in enumerate(index.counts):
        for position in range(count):
            image = decode_image(read_fields(index, shard, position, ["jpg"])["jpg"], "image")
            found.append(segmenter.probabilities(image, multi_scale).argmax(0).numpy())
    return found


@dataclass(frozen=True)
class Scored:
    """A segmenter evaluated on five images: where, the masks, its checkpoint, the record, what was printed."""

    root: Path
    config: Config
    masks: list[np.ndarray]
    checkpoint: Path
    record: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    root = tmp_path_factory.mktemp("scored")
    config = make_config(root, hardware={"workers": 2})
    masks, checkpoint = write_images(config, "val", 5), write_segmenter(config)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        record = evaluate(config)
    assert record is not None
    return Scored(root, config, masks, checkpoint, record, printed.getvalue())


@pytest.mark.parametrize(("name", "multi_scale"), [("single", False), ("multi", True)])
def test_matrices_equal_counting_by_hand(scored: Scored, name: str, multi_scale: bool) -> None:
    predicted = predictions(scored.config, scored.checkpoint, multi_scale)
    assert scored.record["confusion"][name] == count_by_hand(predicted, scored.masks, 3)


@pytest.mark.parametrize(("name", "multi_scale"), [("single", False), ("multi", True)])
def test_counts_of_each_image_equal_counting_by_hand(scored: Scored, name: str, multi_scale: bool) -> None:
    found = read_image_counts(run_dir(scored.config) / "evaluate" / scored.record["per_image"])
    assert found.keys == load_index(images_dir(scored.config, "val"), "images").all().keys()
    predicted = predictions(scored.config, scored.checkpoint, multi_scale)
    for counts, prediction, truth in zip(found.columns[name], predicted, scored.masks, strict=True):
        matrix = np.array(count_by_hand([prediction], [truth], 3))
        assert counts.tolist() == [np.diag(matrix).tolist(), matrix[:, :3].sum(0).tolist(), matrix.sum(1).tolist()]


def test_counts_of_the_images_add_up_to_every_figure(scored: Scored) -> None:
    found = read_image_counts(run_dir(scored.config) / "evaluate" / scored.record["per_image"])
    assert found.columns.keys() == scored.record["miou"].keys()
    for name, counts in found.columns.items():
        assert miou_of(counts.sum(axis=0)) == pytest.approx(scored.record["miou"][name])


def test_every_matrix_counts_the_labelled_pixels(scored: Scored) -> None:
    pixels = sum(int((mask != 255).sum()) for mask in scored.masks)
    assert {name: np.sum(matrix) for name, matrix in scored.record["confusion"].items()} == dict.fromkeys(
        ["single", "single_crf", "multi", "multi_crf"], pixels
    )


def test_iou_is_that_of_the_matrix(scored: Scored) -> None:
    for name, matrix in scored.record["confusion"].items():
        matrix = np.array(matrix)
        square = matrix[:, :3]
        union = matrix.sum(1) + square.sum(0) - np.diag(square)
        assert np.allclose(scored.record["iou"][name], np.diag(square) / union)
        assert scored.record["miou"][name] == pytest.approx(np.mean(np.diag(square) / union))


def test_what_is_printed(scored: Scored) -> None:
    assert "list val: 5 of 5 images scored" in scored.printed
    assert "step-00000010 (step 10): labels vote, t = 3, loss hybrid, temperature 0.1" in scored.printed
    for name in CLASSES:
        assert name in scored.printed
    assert scored.printed.count("+ CRF") == 2


def test_the_record_is_written(scored: Scored) -> None:
    written = json.loads((run_dir(scored.config) / "evaluate" / "val.json").read_text())
    assert written == json.loads(json.dumps(scored.record))


def test_sliding_windows_are_those_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path, evaluate={"mode": "slide", "crop_size": 16, "stride": 12, "crf": "toco"})
    masks, folder = write_images(config, "val", 3), write_segmenter(config)
    record = evaluate(config)
    assert record is not None
    model, index = from_pretrained(folder), load_index(images_dir(config, "val"), "images")
    slid = []
    for shard, position in [(0, 0), (0, 1), (1, 0)]:
        image = decode_image(read_fields(index, shard, position, ["jpg"])["jpg"], "image")
        slid.append(predict_probabilities(model, image, Views(crop_size=16, stride=12)).argmax(0).numpy())
    assert record["confusion"]["single"] == count_by_hand(slid, masks, 3)
    whole = predictions(make_config(tmp_path), folder, False)
    assert any((one != other).any() for one, other in zip(slid, whole, strict=True))
    printed = capsys.readouterr().out
    assert "windows of 16 every 12; CRF toco 10 iterations, gaussian 1/1, bilateral 121/5/4" in printed


def test_workers_do_not_change_the_figures(tmp_path: Path) -> None:
    records = []
    for workers in (0, 1):
        config = make_config(tmp_path / str(workers), hardware={"workers": workers})
        write_images(config, "val", 3)
        write_segmenter(config)
        records.append(evaluate(config))
    assert records[0]["confusion"] == records[1]["confusion"]


def test_crf_over_all_classes_equals_pydensecrf() -> None:
    """Classes absent everywhere are left out: the labels are still those of the CRF over all of them."""
    rng = np.random.default_rng(1)
    image = decode_image(picture(1, 40, 48), "image")
    probabilities = rng.random((8, 40, 48)).astype(np.float32) ** 3
    probabilities[[2, 5, 6]] = 1e-7
    probabilities /= probabilities.sum(0)
    params = CRFParams(iterations=5)
    found = crf_labels(image, probabilities, params)
    assert found.dtype == np.uint8
    assert (found == crf_inference(image, probabilities, params).argmax(axis=0)).mean() >= 0.999
    assert (found == probabilities.argmax(0)).mean() < 0.999  # the CRF did something
    half = crf_labels(image, probabilities.astype(np.float16), params)
    assert (half == found).mean() >= 0.99


def test_a_crf_gets_only_the_planes_it_uses_and_says_the_same() -> None:
    image = decode_image(picture(1, 40, 48), "image")
    probabilities = np.random.default_rng(1).random((8, 40, 48)).astype(np.float32) ** 3
    probabilities[[0, 2, 5, 6]] = 0
    probabilities /= probabilities.sum(0)
    probabilities[[0, 2, 5, 6]] = 1e-7
    probabilities[5, 3, 4] = 2e-5  # one pixel is enough
    params = CRFParams(iterations=5)
    planes, classes = crf_planes(torch.from_numpy(probabilities), params.clip)
    assert classes.tolist() == [1, 3, 4, 5, 7]
    assert planes.dtype == np.float16
    assert np.array_equal(planes, probabilities[[1, 3, 4, 5, 7]].astype(np.float16))
    found = crf_labels(image, planes, params, classes)
    assert np.array_equal(found, crf_labels(image, probabilities.astype(np.float16), params))
    assert (found == crf_inference(image, probabilities, params).argmax(axis=0)).mean() >= 0.99


def test_a_bounded_pool_keeps_the_order() -> None:
    seen: list[int] = []
    with bounded_pool(2) as submit:
        for number in range(9):
            submit(seen.append, abs, -number)
    assert seen == list(range(9))


def test_a_bounded_pool_reports_a_killed_worker() -> None:
    def run_killed() -> None:
        with bounded_pool(1) as submit:
            submit(print, _die)

    with pytest.raises(RunError, match="child process was killed"):
        run_killed()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_train_ids_held_out_are_scored_and_no_other(tmp_path: Path) -> None:
    config = make_config(tmp_path, evaluate={"crf": None}, train={"labels": "truth", "holdout": 0.5})
    masks, checkpoint = write_images(config, "train", 6), write_segmenter(config)
    index = load_index(images_dir(config, "train"), "images")
    kept_out = sorted(set(index.all().keys()) - set(segmenter_task(config).selection.keys()))
    record = evaluate(config, held_out=True)
    assert record is not None
    found = read_image_counts(run_dir(config) / "evaluate/held_out.counts.npz")
    assert sorted(found.keys) == kept_out
    assert (record["split"], record["images"], record["scored"]) == ("train, held out", 3, 3)
    numbers = [number for number, key in enumerate(index.all().keys()) if key in kept_out]
    predicted = all_predictions(open_segmenter(config, checkpoint), index, False)
    expected = count_by_hand([predicted[n] for n in numbers], [masks[n] for n in numbers], 3)
    assert record["confusion"]["single"] == expected


def test_nothing_held_out_is_said(tmp_path: Path) -> None:
    config = make_config(tmp_path, train={"labels": "truth", "holdout": 0.0})
    write_images(config, "train", 2)
    write_segmenter(config)
    with pytest.raises(ConfigError, match=r"nothing is held out of training \(train\.holdout is 0, 2 train images"):
        evaluate(config, held_out=True)
    with pytest.raises(ConfigError, match="--held-out and --split val"):
        evaluate(config, "val", held_out=True)


def test_what_is_complete_is_skipped_and_printed_again(
    scored: Scored, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = run_dir(scored.config) / "evaluate" / "val.json"
    written = path.stat().st_mtime_ns
    with caplog.at_level("INFO", "distwsss"):
        assert evaluate(scored.config) == json.loads(json.dumps(scored.record))
    assert "evaluate: complete, skipped" in caplog.text
    assert capsys.readouterr().out == scored.printed
    assert path.stat().st_mtime_ns == written


def test_other_parameters_are_refused(scored: Scored) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.scales"):
        evaluate(make_config(scored.root, evaluate={"scales": [1.0]}))


def test_an_explicit_checkpoint_has_a_record_of_its_own(scored: Scored) -> None:
    assert evaluate(scored.config, checkpoint=scored.checkpoint) is not None
    assert len(list((run_dir(scored.config) / "evaluate").glob("val-step-00000010-*.json"))) == 1


def test_without_crf_there_are_no_crf_columns(tmp_path: Path) -> None:
    config = make_config(tmp_path, evaluate={"crf": None})
    write_images(config, "val", 2)
    write_segmenter(config)
    record = evaluate(config)
    assert record is not None
    assert list(record["miou"]) == ["single", "multi"]
    assert table_rows(record)[0] == ["IoU (%)", "single scale", "multi-scale + flip"]


def test_no_masks_nothing_to_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(tmp_path)
    write_images(config, "val", 2, truth=False)
    write_segmenter(config)
    with caplog.at_level("INFO", "distwsss"):
        assert evaluate(config) is None
    assert "no masks: nothing to score" in caplog.text
    assert not (run_dir(config) / "evaluate").exists()


def test_an_absent_class_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path, evaluate={"crf": None})
    classes = ["background", "cat", "dog", "unseen"]
    write_images(config, "val", 2, classes=classes)
    folder = write_segmenter(config, classes)
    model = from_pretrained(folder)
    record = evaluate(config)
    assert record is not None
    said = {int(value) for image in predictions(config, folder, False) for value in np.unique(image)}
    true = {3} if any(3 in np.unique(mask) for mask in write_images(config, "val", 2, classes=classes)) else set()
    assert (record["iou"]["single"][3] is None) == (3 not in said | true)
    assert len(model.classes) == 4


def test_other_classes_are_refused_naming_both(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_images(config, "val", 2, classes=["background", "cow", "dog"])
    write_segmenter(config)
    with pytest.raises(DataError, match=r"(?s)background, cow, dog.*background, cat, dog"):
        evaluate(config)


def test_damaged_images_are_not_scored(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_images(config, "val", 3)
    write_segmenter(config)
    for number in range(2):
        flip_a_bit(images_dir(config, "val") / f"images-{number:05d}.tar")
    with pytest.raises(ShardError, match=r"(?s)2 problems.*images-00000\.tar: sha256.*images-00001\.tar: sha256"):
        evaluate(config)
    assert not (run_dir(config) / "evaluate").exists()


def test_notes_say_where_labels_come_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config(tmp_path, evaluate={"crf": None}, data={"dataset": "voc", "root": str(tmp_path / "photos")})
    write_images(config, "val", 2, labels_from="masks")
    write_segmenter(config)
    evaluate(config)
    printed = capsys.readouterr().out
    assert "evaluate: photos, list val" in printed
    assert "image-level labels from: masks" in printed
    assert "not comparable with published VOC figures" in printed


def test_other_data_is_prepared_beside_the_run_once(tmp_path: Path) -> None:
    config = make_config(tmp_path, evaluate={"crf": None})
    write_segmenter(config)
    for root, count in ((tmp_path / "a", 2), (tmp_path / "b", 4)):
        write_folder(root, count, splits=lambda number: "test")
        data = {"dataset": "folder", "root": str(root), "classes": ["cat", "dog"], "val_split": "nothing"}
        record = evaluate(make_config(tmp_path, evaluate={"crf": None}, data=data), "test")
        assert record is not None
        assert (record["data"], record["split"], record["scored"]) == (root.name, "test", count // 2)  # masks of these
    made = sorted(path.name for path in (run_dir(config) / "evaluate").iterdir())
    assert len([name for name in made if name.startswith("images-test-")]) == 2
    assert len([name for name in made if name.startswith("test-") and name.endswith(".json")]) == 2


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Config]:
    """own(run, **data) -> a configuration on the shards of the folder data set tmp_path/own, which `prepare` made."""
    write_folder(tmp_path / "own", 6, splits=lambda number: ["train", "train", "test"][number % 3])
    data = {"dataset": "folder", "root": str(tmp_path / "own"), "classes": ["cat", "dog"], "val_split": "test"}
    paths = {"shards": str(tmp_path / "shards")}

    def make(run: str = "run", **keys: Any) -> Config:
        here = {**paths, "run": str(tmp_path / run)}
        config = make_config(tmp_path, evaluate={"crf": None}, data={**data, **keys}, paths=here)
        if not segmenter_dir(config).exists():
            write_segmenter(config)
        return config

    prepare(make())
    return make


def evaluated(config: Config, split: str | None = None) -> list[str]:
    """What an evaluation leaves beside what was there; the counts of images lie beside each record."""
    assert evaluate(config, split) is not None
    names = {path.name for path in (run_dir(config) / "evaluate").iterdir()}
    counts = {name.replace(".json", ".counts.npz") for name in names if name.endswith(".json")}
    assert counts <= names
    return sorted(names - counts)


def test_naming_the_runs_own_data_uses_its_shards(own: Callable[..., Config]) -> None:
    """--set data.root=PATH is also how a run's own data is found: nothing is prepared twice."""
    assert evaluated(own()) == ["val.json"]
    assert evaluated(own(), "test") == ["val.json"]


def test_another_list_of_the_runs_own_data_is_its_other_shards(own: Callable[..., Config]) -> None:
    """Named by the option or in the configuration."""
    assert evaluated(own(), "train") == ["train.json"]
    assert evaluated(own("other", val_split="train")) == ["train.json"]


def test_moved_data_are_the_same_data(own: Callable[..., Config], tmp_path: Path) -> None:
    shutil.move(tmp_path / "own", tmp_path / "moved")
    assert evaluated(own(root=str(tmp_path / "moved"))) == ["val.json"]


@pytest.mark.parametrize("run", ["run", "one that shares the shards"])
def test_shards_are_scored_where_their_data_are_gone(own: Callable[..., Config], tmp_path: Path, run: str) -> None:
    config = own(run.replace(" ", "_"))
    shutil.rmtree(tmp_path / "own")
    assert evaluated(config) == ["val.json"]


def test_a_root_that_is_not_there_is_no_other_name_for_the_runs_own(own: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"found no folder {tmp_path}/onw"):
        evaluate(own(root=str(tmp_path / "onw")))


def test_images_that_were_left_out_do_not_make_it_other_data(own: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "own/images/p5.jpg").write_bytes(b"no picture")
    config = own().model_copy(update={"paths": own().paths.model_copy(update={"shards": str(tmp_path / "less")})})
    prepare(config, "quarantine")
    assert evaluated(config) == ["val.json"]


def test_val_is_scored_as_val_where_both_roles_have_one_list(tmp_path: Path) -> None:
    data = {"dataset": "shapes", "val_split": "train", "shapes": {"train": 4, "val": 4, "size": 64}}
    config = make_config(tmp_path, evaluate={"crf": None}, data=data)
    prepare(config)
    write_segmenter(config, SHAPES_CLASSES)
    assert evaluated(config) == ["val.json"]


def trainer(**train: object) -> str:
    return json.dumps({"step": 7, "parameters": {"train": train}})


@pytest.mark.parametrize(
    ("written", "described"),
    [
        (None, {}),
        (
            trainer(labels="vote", loss="positive", temperature=0.5, vote_threshold=4),
            {"step": 7, "labels": "vote", "loss": "positive", "temperature": 0.5, "t": 4},
        ),
        ("{ cut", {}),
    ],
    ids=["no trainer.json", "trainer.json", "damaged"],
)
def test_what_a_foreign_checkpoint_was_trained_with_is_read_from_it(
    tmp_path: Path, written: str | None, described: dict[str, Any]
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    if written is not None:
        (folder / "trainer.json").write_text(written)
    assert describe_checkpoint(make_config(tmp_path), folder) == {"folder": "elsewhere", **described}
