"""Probabilities over scales and flips, against a plain loop and against networks whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distwsss.config.load import check_config
from distwsss.config.networks import BackboneSection
from distwsss.errors import CheckpointError, ConfigError
from distwsss.inference.segmenter import Segmenter, checkpoint_folder
from distwsss.inference.views import Views, predict_probabilities
from distwsss.models.classifier import Classifier
from distwsss.models.export import save_pretrained
from distwsss.runtime.device import pick_device
from helpers.small import flip_a_bit, make_config, write_segmenter

CLASSES = ["background", "cat", "dog"]


class Toy(nn.Module):
    """A convolution with stride 2: its answer depends on the scale and, unless `symmetric`, on the flip."""

    mean, std, stride, align_corners, temperature = [0.2, 0.4, 0.6], [0.5, 0.25, 0.3], 2, False, None

    def __init__(self, symmetric: bool = False, classes: int = 4) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 3, 2, 1)
        torch.manual_seed(0)
        nn.init.normal_(self.layer.weight, std=0.5)
        if symmetric:
            self.layer.weight.data = (self.layer.weight.data + self.layer.weight.data.flip(-1)) / 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images)


def picture(height: int = 31, width: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain_loop(
    model: Toy, image: np.ndarray, scales: list[float], flip: bool, average: str, temperature: float | None
) -> torch.Tensor:
    """Written out: whole-image upsampling before the flip back, mean before scaling, tau by definition."""
    height, width = image.shape[:2]
    pixels = torch.tensor(image, dtype=torch.float64).permute(2, 0, 1) / 255
    for channel in range(3):
        pixels[channel] = (pixels[channel] - model.mean[channel]) / model.std[channel]

    def distribution(z: torch.Tensor) -> torch.Tensor:
        if temperature is None:
            return z.exp() / z.exp().sum(0)
        norm = z.pow(2).sum(0).sqrt()
        weights = (z / (temperature * norm)).exp()
        return weights / weights.sum(0)

    views = []
    model = model.double()
    for scale in scales:
        size = (math.floor(scale * height + 0.5), math.floor(scale * width + 0.5))
        scaled = nn.functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)
        for mirrored in [False, True] if flip else [False]:
            z = model(scaled.flip(3) if mirrored else scaled)
            z = nn.functional.interpolate(z, (height, width), mode="bilinear")[0]
            views.append(z.flip(2) if mirrored else z)
    model.float()
    if average == "logits":
        return distribution(torch.stack(views).mean(0)).detach()
    return torch.stack([distribution(z) for z in views]).mean(0).detach()


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize(("scales", "flip"), [([1.0], False), ([0.75, 1.0, 1.3], True)])
def test_equals_a_plain_loop(average: str, temperature: float | None, scales: list[float], flip: bool) -> None:
    model, image = Toy().eval(), picture()
    kind = "softmax" if temperature is None else "constrained"
    model.temperature = temperature
    found = predict_probabilities(model, image, Views(tuple(scales), flip, average, kind))
    wanted = plain_loop(model, image, scales, flip, average, temperature)
    assert found.shape == (4, 31, 24)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.sum(0), torch.ones(31, 24), atol=1e-5, rtol=0)


def test_flip_changes_nothing_for_a_mirror_symmetric_network() -> None:
    """33 columns and stride 2: the feature grid is mirror symmetric too."""
    model, image = Toy(symmetric=True).eval(), picture(33, 33)
    once = predict_probabilities(model, image, Views())
    torch.testing.assert_close(predict_probabilities(model, image, Views(flip=True)), once, atol=1e-5, rtol=0)
    mirrored = predict_probabilities(model, image[:, ::-1], Views(flip=True))
    torch.testing.assert_close(mirrored.flip(2), once, atol=1e-5, rtol=0)


def test_averaging_logits_differs_from_averaging_probabilities() -> None:
    model, image = Toy().eval(), picture()
    logits = predict_probabilities(model, image, Views((0.75, 1.25), True, "logits"))
    assert (logits - predict_probabilities(model, image, Views((0.75, 1.25), True))).abs().max() > 1e-3


def test_constrained_without_a_temperature_is_softmax() -> None:
    model, image = Toy().eval(), picture()
    found = predict_probabilities(model, image, Views(probabilities="constrained"))
    assert torch.equal(found, predict_probabilities(model, image, Views()))


def test_one_pixel_image_and_tiny_scale() -> None:
    found = predict_probabilities(Toy().eval(), picture(1, 2), Views((0.1, 1.0), True))
    assert found.shape == (4, 1, 2)
    assert torch.isfinite(found).all()


def test_checkpoint_folder_follows_the_pointer(tmp_path: Path) -> None:
    tree = {"name": "x", "data": {"dataset": "shapes"}, "paths": {"run": str(tmp_path)}}
    config = check_config({**tree, "evaluate": {"checkpoint": "BEST"}, "train": {"evaluate_every": "50%"}})
    with pytest.raises(CheckpointError, match=r"BEST.*distwsss train"):
        checkpoint_folder(config)
    folder = write_segmenter(config)
    (folder.parent / "BEST").write_text("step-00000010\n")
    assert checkpoint_folder(config) == folder
    assert checkpoint_folder(make_config(tmp_path / "other"), folder) == folder


@pytest.mark.parametrize("given", [True, False], ids=["--checkpoint", "LAST"])
def test_a_checkpoint_that_does_not_verify_is_refused(given: bool, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    folder = write_segmenter(config)
    flip_a_bit(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: sha256 differs"):
        checkpoint_folder(config, folder if given else None)
    (folder / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json: missing"):
        checkpoint_folder(config, folder if given else None)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    weights = write_segmenter(config) / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"model\.safetensors: a file; allowed: .* a checkpoint folder"):
        checkpoint_folder(config, weights)
    with pytest.raises(CheckpointError, match=r"absent: no such folder; allowed: .* a checkpoint folder"):
        checkpoint_folder(config, tmp_path / "absent")


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    backbone = BackboneSection(name="tiny", pretrained=False, output_stride=8)
    save_pretrained(Classifier(backbone, CLASSES, 0.1), tmp_path)
    with pytest.raises(CheckpointError, match="holds a classifier; allowed: a segmenter"):
        Segmenter.from_pretrained(tmp_path)


def test_cuda_asked_for_but_absent() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ConfigError, match=r"hardware\.device"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"
