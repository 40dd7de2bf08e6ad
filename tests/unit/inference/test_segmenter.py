"""Opening a segmenter from any of its folders, what a checkpoint says of itself, pictures in and predictions out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, softmax

from distwsss.config import Config
from distwsss.config.load import check_config
from distwsss.config.networks import BackboneSection
from distwsss.data.images import decode_image, decode_mask
from distwsss.errors import CheckpointError, ConfigError, DataError
from distwsss.inference.postprocess import crf_labels
from distwsss.inference.segmenter import Prediction, Segmenter, checkpoint_folder, open_segmenter
from distwsss.models.classifier import Classifier
from distwsss.models.export import from_pretrained, save_pretrained
from distwsss.runtime.artifacts import write_pointer
from helpers.small import CLASSES, flip_a_bit, make_config, picture, write_segmenter

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and std, the class's own


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a run with two checkpoints: BEST is step 10, LAST step 20. Tests leave it as it is."""
    config = make_config(tmp_path_factory.mktemp("run"))
    best = write_segmenter(config, step=10)
    write_segmenter(config, step=20)
    write_pointer(best.parent / "BEST", best)
    return config


@pytest.fixture(scope="module")
def checkpoints(config: Config) -> Path:
    return Path(config.paths.run or "") / "train" / "checkpoints"


@pytest.fixture(scope="module")
def segmenter(checkpoints: Path) -> Segmenter:
    return Segmenter.from_pretrained(checkpoints, device="cpu")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """24 x 32 pixels."""
    return decode_image(picture(3), "picture")


def export(checkpoints: Path, folder: Path, **inference: Any) -> Path:
    """The two files that `save_pretrained` wrote, other values under `inference`."""
    folder.mkdir()
    shutil.copy(checkpoints / "step-00000020" / "model.safetensors", folder)
    described = json.loads((checkpoints / "step-00000020" / "config.json").read_text())
    described["inference"] |= inference
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def logits(folder: Path, image: np.ndarray, mean: list[float], std: list[float], align_corners: bool) -> Tensor:
    """K,H,W at the image's size, in float64: pixels normalised by hand, the network's answer enlarged."""
    pixels = (torch.from_numpy(image).double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    with torch.no_grad():
        coarse = from_pretrained(folder).double()(pixels.permute(2, 0, 1)[None])
    return interpolate(coarse, image.shape[:2], mode="bilinear", align_corners=align_corners)[0]


def same(found: np.ndarray, expected: Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ("", "step-00000020"),
        ("train", "step-00000020"),
        ("train/checkpoints", "step-00000020"),
        ("train/checkpoints/step-00000010", "step-00000010"),
        ("train/checkpoints/LAST", "step-00000020"),
        ("train/checkpoints/BEST", "step-00000010"),
    ],
    ids=["run", "training", "checkpoints", "checkpoint", "LAST", "BEST"],
)
def test_from_pretrained_opens_what_lies_in_a_run(given: str, opened: str, config: Config, checkpoints: Path) -> None:
    found = Segmenter.from_pretrained(f"{config.paths.run}/{given}", device="cpu")
    assert (found.folder, found.classes) == (checkpoints / opened, CLASSES)
    assert not found.model.training


def test_from_pretrained_opens_an_export(
    segmenter: Segmenter, image: np.ndarray, checkpoints: Path, tmp_path: Path
) -> None:
    (tmp_path / "exported").mkdir()
    save_pretrained(segmenter.model, tmp_path / "exported")
    found = Segmenter.from_pretrained(tmp_path / "exported", device="cpu")
    assert found.folder == tmp_path / "exported"
    np.testing.assert_array_equal(found.predict(image).probabilities, segmenter.predict(image).probabilities)


def test_a_checkpoint_that_lost_its_manifest_is_no_export(checkpoints: Path, tmp_path: Path) -> None:
    folder = export(checkpoints, tmp_path / "step-00000020")
    shutil.copy(checkpoints / "step-00000020" / "trainer.json", folder)
    with pytest.raises(CheckpointError, match=r"step-00000020/MANIFEST\.json: missing"):
        Segmenter.from_pretrained(folder)


def test_a_damaged_checkpoint_is_refused_also_through_its_pointer(tmp_path: Path) -> None:
    folder = write_segmenter(make_config(tmp_path))
    flip_a_bit(folder / "model.safetensors")
    for path in (folder, folder.parent / "LAST", tmp_path / "run"):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: sha256 differs"):
            Segmenter.from_pretrained(path)


def test_another_file_is_refused(checkpoints: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a file; allowed: .* a checkpoint folder"):
        Segmenter.from_pretrained(checkpoints / "step-00000020" / "model.safetensors")


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent: no such folder; allowed: .* a checkpoint folder"):
        Segmenter.from_pretrained(tmp_path / "absent")


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    backbone = BackboneSection(name="tiny", pretrained=False, output_stride=8)
    save_pretrained(Classifier(backbone, CLASSES, 0.1), tmp_path)
    with pytest.raises(CheckpointError, match="holds a classifier; allowed: a segmenter"):
        Segmenter.from_pretrained(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
class TestWithoutCuda:
    def test_auto_is_the_cpu(self, checkpoints: Path) -> None:
        assert Segmenter.from_pretrained(checkpoints, device="auto").device == torch.device("cpu")

    def test_asking_for_it_names_the_key(self, checkpoints: Path) -> None:
        with pytest.raises(ConfigError, match=r"hardware\.device"):
            Segmenter.from_pretrained(checkpoints, device="cuda")


class TestCheckpointOfARun:
    """`checkpoint_folder`: what `evaluate.checkpoint` names, or what is given."""

    def test_it_is_the_pointers(self, config: Config, checkpoints: Path) -> None:
        assert checkpoint_folder(config) == checkpoints / "step-00000020"
        best = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"checkpoint": "BEST"})})
        assert checkpoint_folder(best) == checkpoints / "step-00000010"

    def test_what_is_given_comes_first(self, config: Config, checkpoints: Path) -> None:
        assert checkpoint_folder(config, checkpoints / "BEST") == checkpoints / "step-00000010"

    def test_without_a_training_the_error_says_what_to_do(self, tmp_path: Path) -> None:
        tree = {"name": "x", "data": {"dataset": "shapes"}, "paths": {"run": str(tmp_path)}}
        config = check_config({**tree, "evaluate": {"checkpoint": "BEST"}, "train": {"evaluate_every": "50%"}})
        with pytest.raises(CheckpointError, match=r"BEST.*distwsss train"):
            checkpoint_folder(config)

    def test_a_damaged_one_is_refused(self, tmp_path: Path) -> None:
        config = make_config(tmp_path)
        flip_a_bit(write_segmenter(config) / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"model\.safetensors: sha256 differs"):
            checkpoint_folder(config)

    def test_one_without_a_manifest_is_refused(self, tmp_path: Path) -> None:
        config = make_config(tmp_path)
        (write_segmenter(config) / "MANIFEST.json").unlink()
        with pytest.raises(CheckpointError, match=r"MANIFEST\.json: missing"):
            checkpoint_folder(config)


@pytest.mark.parametrize(
    "stored",
    [{}, {"mean": [0.1, 0.5, 0.9]}, {"std": [0.5, 0.4, 0.3]}, {"align_corners": True}],
    ids=["the class's own", "mean", "std", "align_corners"],
)
def test_pictures_are_looked_at_as_the_checkpoint_says(
    stored: dict[str, Any], segmenter: Segmenter, image: np.ndarray, checkpoints: Path, tmp_path: Path
) -> None:
    folder = export(checkpoints, tmp_path / "exported", **stored)
    found = Segmenter.from_pretrained(folder, device="cpu").predict(image).probabilities
    used = {"mean": IMAGENET[0], "std": IMAGENET[1], "align_corners": False, **stored}
    same(found, softmax(logits(folder, image, **used), dim=0))
    if stored:
        assert np.abs(found - segmenter.predict(image).probabilities).max() > 0.01


class TestTemperature:
    def constrained(self, folder: Path, **sections: Any) -> Config:
        return make_config(folder, evaluate={"probabilities": "constrained"}, **sections)

    @pytest.mark.parametrize("running", [0.7, 5.0, None])
    def test_is_the_checkpoints_own_not_that_of_the_running_configuration(
        self, running: float | None, image: np.ndarray, checkpoints: Path, tmp_path: Path
    ) -> None:
        folder = export(checkpoints, tmp_path / "exported", temperature=0.25)
        config = self.constrained(tmp_path, train={"temperature": running})
        opened = open_segmenter(config, folder)
        assert opened.model.temperature == 0.25
        z = logits(folder, image, *IMAGENET, align_corners=False)
        same(opened.predict(image).probabilities, softmax(z / (0.25 * z.norm(dim=0)), dim=0))

    def test_null_was_trained_without_the_constraint(
        self, segmenter: Segmenter, image: np.ndarray, checkpoints: Path, tmp_path: Path
    ) -> None:
        opened = open_segmenter(self.constrained(tmp_path), export(checkpoints, tmp_path / "e", temperature=None))
        np.testing.assert_array_equal(opened.predict(image).probabilities, segmenter.predict(image).probabilities)

    def test_a_checkpoint_that_does_not_say_it_is_refused(self, checkpoints: Path, tmp_path: Path) -> None:
        folder = export(checkpoints, tmp_path / "exported")
        assert "temperature" not in json.loads((folder / "config.json").read_text())["inference"]
        with pytest.raises(
            CheckpointError, match=r"does not say with which temperature .* evaluate\.probabilities: softmax"
        ):
            open_segmenter(self.constrained(tmp_path), folder)


class TestPictures:
    def test_a_path_and_what_it_holds_are_the_same(self, segmenter: Segmenter, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        path.write_bytes(picture(3))
        opened = Image.open(path)
        expected = segmenter.predict(np.array(opened))
        for given in (path, str(path), opened):
            found = segmenter.predict(given)
            np.testing.assert_array_equal(found.image, expected.image)
            np.testing.assert_array_equal(found.probabilities, expected.probabilities)

    @pytest.mark.parametrize("opened", [False, True], ids=["path", "PIL image"])
    def test_exif_orientation_is_applied(
        self, opened: bool, segmenter: Segmenter, image: np.ndarray, tmp_path: Path
    ) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was held on its side: turn it clockwise
        Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
        found = segmenter.predict(Image.open(tmp_path / "a.png") if opened else tmp_path / "a.png")
        np.testing.assert_array_equal(found.image, np.rot90(image, k=-1))
        assert found.labels.shape == (32, 24)

    def test_an_array_of_floats_is_refused(self, segmenter: Segmenter, image: np.ndarray) -> None:
        with pytest.raises(DataError, match=r"found an array float32\[24, 32, 3\]; allowed: uint8\[H,W,3\] RGB"):
            segmenter.predict(image.astype(np.float32) / 255)

    @pytest.mark.parametrize("content", [None, b"not a picture"], ids=["absent", "no picture"])
    def test_a_file_that_cannot_be_read_is_named_in_full(
        self, content: bytes | None, segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if content:
            (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(DataError) as caught:
            segmenter.predict("a.jpg")
        assert str(caught.value).startswith(f"{tmp_path}/a.jpg: ")


def test_labels_are_the_most_probable_classes(segmenter: Segmenter, image: np.ndarray) -> None:
    found = segmenter.predict(image)
    assert (found.labels.dtype, found.probabilities.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(found.labels, found.probabilities.argmax(axis=0))
    assert len(np.unique(found.labels)) > 1  # else any labels would do


def test_crf_refines_labels_and_probabilities_alike(segmenter: Segmenter, image: np.ndarray) -> None:
    before, found = segmenter.predict(image), segmenter.predict(image, crf=True)
    params = segmenter.section.crf
    assert params is not None
    np.testing.assert_array_equal(found.labels, crf_labels(image, before.probabilities, params))
    np.testing.assert_array_equal(found.labels, found.probabilities.argmax(axis=0))
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-5)
    assert (found.labels != before.labels).any()


def test_a_saved_prediction_is_its_labels_and_its_overlay(image: np.ndarray, tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, image.shape[:2], dtype=np.uint8)
    prediction = Prediction(labels, np.eye(3, dtype=np.float32)[labels].transpose(2, 0, 1), CLASSES, image)
    png = prediction.save(tmp_path / "out", "a.b")
    assert sorted((tmp_path / "out").iterdir()) == [tmp_path / "out/a.b.overlay.jpg", tmp_path / "out/a.b.png"]
    assert png == tmp_path / "out/a.b.png"
    np.testing.assert_array_equal(decode_mask(png.read_bytes(), "labels"), labels)
    saved, shown = Image.open(tmp_path / "out/a.b.overlay.jpg"), prediction.overlay()
    assert (saved.format, saved.size) == ("JPEG", shown.size)
    difference = np.asarray(saved, np.float64) - np.asarray(shown)
    assert np.abs(difference).mean() < 25  # JPEG halves the resolution of colours, and these labels are noise
