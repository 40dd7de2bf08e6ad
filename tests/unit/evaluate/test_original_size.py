"""Scores where photographs were shrunk: counted at the size of the truth, against counting by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch.nn.functional import interpolate

from distwsss.config import Config
from distwsss.data.batches.loader import SegmenterSamples
from distwsss.data.batches.plan import Sample
from distwsss.data.images import decode_image, encode_palette
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.evaluate.evaluate import evaluate
from distwsss.evaluate.stats import seed_quality
from distwsss.inference.postprocess import crf_marginals
from distwsss.inference.views import Views, predict_probabilities
from distwsss.models.export import from_pretrained
from distwsss.runtime.layout import images_dir
from distwsss.train.heldout import held_out_miou
from helpers.small import make_config, make_truth, picture, write_pseudo, write_seeds, write_segmenter

SIZES = [(60, 80), (75, 50), (40, 40), (20, 24)]  # the last two are not larger than what is allowed
LONGEST = 40


def write_data(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = ["id,labels,split"]
    for number, size in enumerate(SIZES):
        (root / f"images/p{number}.jpg").write_bytes(picture(number, *size))
        (root / f"masks/p{number}.png").write_bytes(encode_palette(make_truth(number, *size)))
        rows.append(f"p{number},cat;dog,train")
    (root / "tags.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Prepared, train and val being one list; with a segmenter."""
    folder = tmp_path_factory.mktemp("run")
    data = {"dataset": "folder", "root": str(write_data(folder / "data")), "val_split": "train"}
    seeds = {"scales": [1.0], "threshold": 2}
    config = make_config(folder, data=data, prepare={"longest_side": LONGEST}, seeds=seeds)
    prepare(config)
    write_segmenter(config)
    return config


def photographs(config: Config) -> list[tuple[np.ndarray, np.ndarray]]:
    """The stored pixels and the truth of each, in the order of the shards."""
    index = load_index(images_dir(config, "train"), "images")
    found = []
    for place in index.all().places():
        truth = read_truth(index, *place)
        assert truth is not None
        found.append((decode_image(read_fields(index, *place, ["jpg"])["jpg"], "photo"), truth))
    assert sorted(photo.shape[:2] for photo, _ in found) == [(20, 24), (30, 40), (40, 27), (40, 40)]
    assert sorted(truth.shape for _, truth in found) == sorted(SIZES)
    return found


def counted(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    matrix = np.zeros((3, 4), np.int64)
    np.add.at(matrix, (truth[truth != 255], labels[truth != 255]), 1)
    return matrix


def as_large(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    given = torch.from_numpy(probabilities)[None]
    return interpolate(given, truth.shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()


def by_hand(config: Config, crf: bool = False) -> np.ndarray:
    model = from_pretrained(Path(str(config.paths.run)) / "train/checkpoints/step-00000010")
    total = np.zeros((3, 4), np.int64)
    for photo, truth in photographs(config):
        probabilities = predict_probabilities(model, photo, Views()).numpy()
        if crf and config.evaluate.crf:
            half = probabilities.astype(np.float16).astype(np.float32)
            probabilities = crf_marginals(photo, half, config.evaluate.crf)
        total += counted(as_large(probabilities, truth), truth)
    return total


def near(found: np.ndarray, wanted: np.ndarray) -> bool:
    """But for a pixel or two between two classes, by rounding."""
    return found.shape == wanted.shape and found.sum() == wanted.sum() and int(np.abs(found - wanted).sum()) <= 4


@pytest.mark.parametrize("name", ["single", "single_crf"])
def test_evaluation_counts_at_the_size_of_the_truth(config: Config, name: str) -> None:
    record = evaluate(config)
    assert record is not None
    assert near(np.array(record["confusion"][name]), by_hand(config, name.endswith("crf")))


def test_held_out_scores_likewise(config: Config) -> None:
    model = from_pretrained(Path(str(config.paths.run)) / "train/checkpoints/step-00000010")
    selection = load_index(images_dir(config, "train"), "images").all()
    found = held_out_miou(model, selection, Accelerator(cpu=True))
    matrix = by_hand(config)
    union = matrix.sum(1) + matrix[:, :3].sum(0) - np.diag(matrix)
    assert found == pytest.approx(float((np.diag(matrix) / union).mean()), abs=1e-3)


def test_seeds_and_votes_are_compared_with_the_truth_at_its_size(config: Config) -> None:
    given = [
        np.random.default_rng(n).integers(0, 3, photo.shape[:2], np.uint8)
        for n, (photo, _) in enumerate(photographs(config))
    ]
    write_seeds(config, lambda number: [given[number], given[number]])
    votes = [np.where(labels == 1, 1, 2).astype(np.uint8) for labels in given]
    write_pseudo(config, lambda number, _: (given[number], votes[number]), config.seed_names(), threshold=2)
    quality = seed_quality(config)
    assert quality is not None
    total, clean = np.zeros((3, 4), np.int64), np.zeros((3, 4), np.int64)
    for (_, truth), labels, chosen in zip(photographs(config), given, votes, strict=True):
        size = truth.shape[::-1]
        large, agreed = (np.array(Image.fromarray(m).resize(size, Image.Resampling.NEAREST)) for m in (labels, chosen))
        total += counted(large, truth)
        clean += counted(large, np.where(agreed == 2, truth, 255).astype(np.uint8))
    assert quality["aggregate"]["agreement"] == np.trace(total) / total.sum()
    assert quality["seeds"][config.seed_names()[0]]["agreement"] == np.trace(total) / total.sum()
    assert quality["thresholds"][1]["coverage"] == clean.sum() / total.sum()


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_training_on_truth_brings_it_to_the_photograph(config: Config, number: int) -> None:
    augment = {"crop": 40, "resize": [1.0, 1.0], "resize_by": "factor", "flip": False, "color_jitter": [0.0] * 4}
    section = make_config(Path("nowhere"), train={"labels": "truth", "augment": augment}).train
    index = load_index(images_dir(config, "train"), "images")
    shard, position = index.all().places()[number]
    loaded = SegmenterSamples(index, None, section, [0.5] * 3, [0.25] * 3, 0)(Sample(0, shard, position), "k")
    photo, truth = photographs(config)[number]
    height, width = photo.shape[:2]
    wanted = np.array(Image.fromarray(truth).resize((width, height), Image.Resampling.NEAREST))
    rows, columns = np.nonzero((loaded["image"] != 0).any(0).numpy())
    place = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    assert np.array_equal(loaded["labels"].numpy()[place], wanted)


def test_the_index_says_how_photographs_were_shrunk(config: Config) -> None:
    index: ShardIndex = load_index(images_dir(config, "train"), "images")
    assert index.parameters["prepare"]["longest_side"] == LONGEST
