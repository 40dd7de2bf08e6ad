"""A segmenter sees photographs as it was trained on them, and answers at their own size."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from distwsss.config import Config
from distwsss.evaluate.predict import predict
from distwsss.inference.postprocess import crf_marginals
from distwsss.inference.segmenter import Segmenter
from distwsss.inference.views import Views, predict_probabilities
from distwsss.models.export import from_pretrained, save_pretrained
from helpers.small import make_config, write_segmenter

LONGEST = 40
SIZE = (96, 128)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return make_config(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def checkpoint(config: Config) -> Path:
    """A segmenter trained on photographs of at most 40 pixels, exported; only the folder says so."""
    model = from_pretrained(write_segmenter(config))
    model.longest_side = LONGEST  # type: ignore[assignment]
    folder = Path(str(config.paths.run)) / "exported"
    folder.mkdir()
    save_pretrained(model, folder)
    assert json.loads((folder / "config.json").read_text())["inference"]["longest_side"] == LONGEST
    return folder


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> Segmenter:
    return Segmenter.from_pretrained(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = [128 + 90 * np.sin(rows / a) * np.cos(columns / b) for a, b in ((9, 13), (17, 8), (11, 29))]
    return np.stack(waves, -1).astype(np.uint8)


def shrunk(photo: np.ndarray, height: int = 30, width: int = 40) -> np.ndarray:
    return np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS))


def by_hand(checkpoint: Path, photo: np.ndarray) -> np.ndarray:
    """float32[K,H,W]: shrunk by PIL, the network's probabilities there, brought back by torch."""
    seen = predict_probabilities(from_pretrained(checkpoint), shrunk(photo), Views())
    return interpolate(seen[None], photo.shape[:2], mode="bilinear", align_corners=False)[0].numpy()


@pytest.mark.parametrize("kind", ["array", "picture", "file"])
def test_a_large_photograph(
    checkpoint: Path, segmenter: Segmenter, photo: np.ndarray, kind: str, tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "p.png")
    given = {"array": photo, "picture": Image.fromarray(photo), "file": tmp_path / "p.png"}[kind]
    found, wanted = segmenter.predict(given), by_hand(checkpoint, photo)
    assert (found.labels.shape, found.probabilities.shape) == (SIZE, (3, *SIZE))
    np.testing.assert_array_equal(found.image, photo)
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-4)
    np.testing.assert_array_equal(found.labels, found.probabilities.argmax(axis=0))
    assert len(np.unique(found.labels)) > 1
    whole = predict_probabilities(from_pretrained(checkpoint), photo, Views()).argmax(0).numpy()
    assert (found.labels != whole).mean() > 0.01  # at its own size it would be another answer


def test_a_turned_jpeg_is_seen_as_prepare_stores_it(checkpoint: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    rows, columns = np.mgrid[:480, :640]
    photo = np.stack([128 + 90 * np.sin(rows / a) * np.cos(columns / a) for a in (45, 63, 80)], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / "p.jpg", quality=95, exif=exif)
    found = segmenter.predict(tmp_path / "p.jpg")
    assert found.labels.shape == (640, 480)
    assert found.seen.shape == (3, 40, 30)
    wanted = np.ascontiguousarray(np.rot90(photo, -1))
    seen = predict_probabilities(from_pretrained(checkpoint), shrunk(wanted, 40, 30), Views()).numpy()
    assert np.abs(found.image.astype(int) - wanted).mean() < 3
    assert (found.seen.argmax(0) == seen.argmax(0)).mean() > 0.95


def test_a_photograph_that_is_not_larger_is_seen_as_it_is(
    checkpoint: Path, segmenter: Segmenter, photo: np.ndarray
) -> None:
    small = shrunk(photo)
    wanted = predict_probabilities(from_pretrained(checkpoint), small, Views()).numpy()
    np.testing.assert_array_equal(segmenter.predict(small).probabilities, wanted)


@pytest.mark.parametrize("said", [None, "nothing"])
def test_a_checkpoint_that_says_nothing_sees_photographs_as_they_are(
    checkpoint: Path, photo: np.ndarray, said: str | None, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    for file in checkpoint.iterdir():
        (tmp_path / "old" / file.name).write_bytes(file.read_bytes())
    described = json.loads((checkpoint / "config.json").read_text())
    described["inference"]["longest_side"] = None
    if said:
        del described["inference"]["longest_side"]
    (tmp_path / "old/config.json").write_text(json.dumps(described))
    found = Segmenter.from_pretrained(tmp_path / "old", device="cpu")
    assert found.longest_side is None
    wanted = predict_probabilities(from_pretrained(checkpoint), photo, Views()).numpy()
    np.testing.assert_array_equal(found.predict(photo).probabilities, wanted)


def test_the_crf_refines_what_was_seen(checkpoint: Path, segmenter: Segmenter, photo: np.ndarray) -> None:
    assert segmenter.section.crf is not None
    seen = predict_probabilities(from_pretrained(checkpoint), shrunk(photo), Views()).numpy()
    marginals = torch.from_numpy(crf_marginals(shrunk(photo), seen, segmenter.section.crf))
    wanted = interpolate(marginals[None], SIZE, mode="bilinear", align_corners=False)[0].numpy()
    found = segmenter.predict(photo, crf=True)
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-4)
    assert found.labels.shape == SIZE


def test_the_verb_writes_pictures_of_the_photographs_size(
    segmenter: Segmenter, photo: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "p.jpg")
    (png,) = predict(segmenter, [tmp_path / "p.jpg"], tmp_path / "out")
    assert Image.open(png).size == SIZE[::-1]
    overlay = Image.open(tmp_path / "out/p.overlay.jpg")
    assert overlay.width == SIZE[1]
    assert overlay.height >= SIZE[0]


def test_twelve_megapixels_take_no_gigabytes(tmp_path: Path) -> None:
    """21 classes: all their probabilities at that size alone would be 1 GB."""
    folder = write_segmenter(make_config(tmp_path), ["background", *map(str, range(20))])
    described = json.loads((folder / "config.json").read_text())
    described["inference"]["longest_side"] = 512
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "config.json").write_text(json.dumps(described))
    (exported / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (75, 100, 3), np.uint8))
    noise.resize((4000, 3000), Image.Resampling.BICUBIC).save(tmp_path / "p.jpg")
    code = (
        "import resource, torch, distwsss; torch.set_num_threads(1)\n"
        f"segmenter = distwsss.Segmenter.from_pretrained({str(exported)!r}, device='cpu')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"found = segmenter.predict({str(tmp_path / 'p.jpg')!r})\n"
        f"found.save({str(tmp_path / 'out')!r}, 'p')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *found.labels.shape)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert answer[1:] == ["3000", "4000"]
    assert int(answer[0]) < 900_000  # KiB beside the network and the imports; one float32[21,3000,4000] has 984,375
    assert Image.open(io.BytesIO((tmp_path / "out/p.png").read_bytes())).size == (4000, 3000)
