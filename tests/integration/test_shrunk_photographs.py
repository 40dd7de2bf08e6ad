"""All stages on photographs that are larger than `prepare.longest_side`, one of them turned, with truth at its own
size."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
import yaml
from PIL import Image

from distwsss.cli import main
from distwsss.data.images import encode_palette
from distwsss.data.shards.verify import verify
from helpers.small import make_truth, merged, tiny_tree

SIZE, LONGEST = (96, 128), 64


def write_photographs(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = ["id,labels,split"]
    for number in range(8):
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 2 else 1
        pixels = np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8)
        photo = Image.fromarray(pixels).resize(SIZE[::-1], Image.Resampling.BICUBIC)
        photo.save(root / f"images/p{number}.jpg", quality=95, exif=exif)
        truth = make_truth(number, *(SIZE[::-1] if number % 2 else SIZE))
        (root / f"masks/p{number}.png").write_bytes(encode_palette(truth))
        rows.append(f"p{number},cat;dog,{'val' if number < 2 else 'train'}")
    (root / "tags.csv").write_text("\n".join(rows))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_photographs(folder / "data")
    tree = merged(
        tiny_tree(folder),
        {
            "data": {"dataset": "folder", "root": str(folder / "data")},
            "prepare": {"longest_side": LONGEST, "shard_size": 3},
            "evaluate": {"scales": [1.0]},
            "train": {"evaluate_every": "50%", "holdout": 0.4},
        },
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    assert main(["run", "--config", str(folder / "tiny.yaml")]) == 0
    return folder


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """As a stock reader has them."""
    tars = [str(path) for path in sorted(folder.rglob("*.tar"))]
    return {sample["__key__"]: sample for sample in wds.WebDataset(tars, shardshuffle=False)}


def test_pseudo_labels_fit_the_photograph_beside_them(finished: Path) -> None:
    assert verify(finished / "shards") == []
    images, pseudo = samples(finished / "shards/images/train"), samples(finished / "shards/pseudo")
    assert len(pseudo) == 6
    for key, sample in pseudo.items():
        assert sample["jpg"] == images[key]["jpg"]
        label, photo = (Image.open(io.BytesIO(sample[field])) for field in ("label.png", "jpg"))
        assert label.size == photo.size == ((48, 64) if int(key[1:]) % 2 else (64, 48))
        truth = Image.open(io.BytesIO(images[key]["truth.png"]))
        assert list(truth.size[::-1]) == json.loads(images[key]["json"])["original"]


def test_scores_are_of_every_pixel_of_the_truth(finished: Path) -> None:
    pixels = [(make_truth(n, *(SIZE[::-1] if n % 2 else SIZE)) != 255).sum() for n in range(2)]
    record = json.loads((finished / "run/evaluate/val.json").read_text())
    assert {name: np.sum(matrix) for name, matrix in record["confusion"].items()} == dict.fromkeys(
        record["confusion"], sum(pixels)
    )
    assert json.loads((finished / "run/seeds/quality.json").read_text())["images"] == 6


def test_the_checkpoint_says_how_large_photographs_were(finished: Path) -> None:
    checkpoints = finished / "run/train/checkpoints"
    described = json.loads((checkpoints / (checkpoints / "LAST").read_text().strip() / "config.json").read_text())
    assert described["inference"]["longest_side"] == LONGEST


def test_predictions_have_the_photographs_size(finished: Path) -> None:
    out = finished / "out"
    photo = finished / "data/images/p1.jpg"
    assert main(["predict", "--config", str(finished / "tiny.yaml"), str(photo), "-o", str(out)]) == 0
    assert Image.open(out / "p1.png").size == SIZE


def test_another_longest_side_is_refused_by_name(finished: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--config", str(finished / "tiny.yaml"), "--set", "prepare.longest_side=32"]
    assert main(arguments) == 2
    assert "prepare.longest_side: was 64, now 32" in capfd.readouterr().err
