"""A classifier that learns saliency beside its tags: what it reads, what its losses touch, what its CAMs are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distwsss.config import Config
from distwsss.config.load import check_config
from distwsss.config.networks import BackboneSection
from distwsss.data.batches.loader import Batch
from distwsss.data.batches.plan import plan
from distwsss.data.images import encode_gray, encode_jpeg
from distwsss.data.saliency import saliency_parameters, source_digest
from distwsss.data.shards.index import load_index
from distwsss.errors import ConfigError, ShardError
from distwsss.maths.cam import compute_cam
from distwsss.models.classifier import Classifier
from distwsss.models.export import from_pretrained
from distwsss.runtime.layout import classifier_dir, images_dir, saliency_dir
from distwsss.runtime.metrics import read_metrics
from distwsss.train.earlier import load_earlier
from distwsss.train.estimate.fake_step import Way, classifier_stage, step_cost
from distwsss.train.stages import classify
from distwsss.train.task import classifier_task
from helpers.small import CLASSES, TINY_BACKBONE, beside_images, make_config, publish, write_images, write_shards

SIZE = (40, 56)


def saliency_of(number: int) -> np.ndarray:
    """uint8[H,W]: columns of their own value on the left, nothing on the right."""
    columns = np.r_[np.arange(1, 29) * 8, np.zeros(28)] + number
    return np.broadcast_to(columns, SIZE).astype(np.uint8)


def settings(folder: Path, **classify: object) -> Config:
    """Four photographs with saliency maps of their own, and two classifiers that learn them."""
    (folder / "maps").mkdir(parents=True, exist_ok=True)
    section = {"saliency": {}, **classify}
    config = make_config(folder, saliency={"folder": str(folder / "maps")}, classify=section)
    if not images_dir(config, "train").exists():
        write_images(config, "train", 4, sizes=[SIZE])
        images = load_index(images_dir(config, "train"), "images")
        shards, classes = beside_images(config, lambda n, *_: {"saliency.png": encode_gray(saliency_of(n))})
        parameters = saliency_parameters(config, images, source_digest(config, images) or "")
        write_shards(saliency_dir(config), "saliency", shards, classes, parameters)
    return config


def replace(folder: Any, config: Config, fields: Callable[[int, dict[str, bytes]], dict[str, bytes]]) -> None:
    """The shards in `folder` anew: fields(number of the photograph, the fields of its image shard)."""
    shards, classes = beside_images(config, lambda number, found, _: fields(number, found))
    index = load_index(folder)
    write_shards(folder, index.kind, shards, classes, index.parameters, **index.extra)


def loaded(config: Config, step: int = 0) -> Batch:
    """A batch of all photographs."""
    task = classifier_task(config, 0.1)
    samples = plan(task.selection, 0, step, 4)
    found = [task.samples(sample, f"key {number}") for number, sample in enumerate(samples)]
    return Batch([], **{name: torch.stack([each[name] for each in found]) for name in found[0]})


def test_the_map_is_resized_flipped_and_cropped_with_its_photograph(tmp_path: Path) -> None:
    """Each map is its photograph's red channel, which rises to the right and down."""
    config = settings(tmp_path, augment={"crop": 64, "resize": [0.6, 1.5], "color_jitter": [0.0] * 4})
    rows, columns = np.indices(SIZE)
    red = [(10 * number + 2 * columns + 2 * rows).astype(np.uint8) for number in range(4)]
    photographs = [np.stack([each, 255 - each, each // 2], axis=2) for each in red]
    replace(images_dir(config, "train"), config, lambda n, found: {**found, "jpg": encode_jpeg(photographs[n])})
    replace(saliency_dir(config), config, lambda n, _: {"saliency.png": encode_gray(red[n])})
    task = classifier_task(config, 0.1)
    padded = set()
    for step in range(6):
        batch = loaded(config, step)
        inside = batch.saliency >= 0
        pixels = 255 * (batch.image[:, 0] * task.samples.std[0] + task.samples.mean[0])
        assert (batch.image[:, 0][~inside] == 0).all()  # padding is the mean colour
        assert (pixels - batch.saliency)[inside].abs().mean() < 3
        padded |= {int(each.sum()) for each in inside}
    assert len(padded) > 4  # scales differed


def test_without_the_objective_nothing_of_it_is_there(tmp_path: Path) -> None:
    config = settings(tmp_path, saliency=None)
    batch = loaded(config)
    task = classifier_task(config, 0.1)
    assert batch.saliency is None
    assert "saliency" not in task.parameters["inputs"]
    assert "saliency" not in task.parameters["classify"]  # runs from before keep their fingerprints
    assert (task.weights, len(task.model.head.weight)) == ((1.0,), 2)


def test_the_losses_are_the_two_and_each_has_its_gradient(tmp_path: Path) -> None:
    config = settings(tmp_path, saliency={"weight": 0.7})
    task, batch = classifier_task(config, 0.1), loaded(config)
    sums, parts = task.sums(task.model.training_outputs(batch.image), batch)
    assert (task.weights, task.counts(batch)) == ((1.0, 0.7), [4, 4])
    assert torch.equal(torch.stack([part for part, _ in parts.values()]), sums)
    tags, cue = (torch.autograd.grad(each, task.model.head.weight, retain_graph=True)[0][..., 0, 0] for each in sums)
    assert (tags[-1] == 0).all()  # the background channel learns from saliency alone
    assert (tags[:-1] != 0).any(dim=1).all()
    assert (cue != 0).any(dim=1).all()


def test_training_keeps_its_cams_and_says_its_losses(tmp_path: Path) -> None:
    config = settings(tmp_path)
    classify(config)
    folder = classifier_dir(config, 0.1)
    line = read_metrics(folder / "metrics.jsonl")[0]
    assert line["loss"] == pytest.approx(line["multilabel"] + line["saliency"], rel=1e-5)
    model = from_pretrained(folder / "checkpoints/step-00000004")
    assert model.background
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    pixels = torch.rand(1, 3, 48, 64)
    assert model(pixels).shape == (1, 2)
    features = model.backbone(pixels)
    raw = torch.einsum("bchw,nc->bnhw", features, model.head.weight[:, :, 0, 0])
    powers = raw.exp()
    wanted = powers[:, :2] / powers.sum(dim=1, keepdim=True)
    assert torch.allclose(model.maps(pixels), wanted, atol=1e-6)
    assert torch.allclose(model(pixels), raw[:, :2].mean((2, 3)), atol=1e-6)
    cam = compute_cam(model, image, [2])
    assert cam.shape[0] == 1
    assert cam.min() > 0


def test_other_maps_are_another_classifier(tmp_path: Path) -> None:
    config = settings(tmp_path)
    before = classifier_task(config, 0.1).parameters
    shards, classes = beside_images(config, lambda n, *_: {"saliency.png": encode_gray(saliency_of(n + 1))})
    index = load_index(saliency_dir(config))
    write_shards(index.folder, "saliency", shards, classes, {**index.parameters, "other": 1})
    with pytest.raises(ConfigError, match="other"):
        classifier_task(config, 0.1)
    assert before["inputs"]["saliency"] == index.fingerprint
    for path in saliency_dir(config).iterdir():
        path.unlink()
    with pytest.raises(ShardError, match="distwsss saliency makes it"):
        classifier_task(config, 0.1)


def test_a_map_of_another_size_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    replace(saliency_dir(config), config, lambda n, _: {"saliency.png": encode_gray(saliency_of(n)[:20])})
    with pytest.raises(ShardError, match=r"\[20, 56\], its photograph \[40, 56\]"):
        loaded(config)


def test_the_background_channel_goes_on_where_both_have_one(tmp_path: Path) -> None:
    def tiny(classes: list[str], background: bool, seed: int) -> Classifier:
        torch.manual_seed(seed)
        return Classifier(BackboneSection(**TINY_BACKBONE), classes, 0.1, background=background)

    old, new = tiny(["background", "cat", "dog"], True, 1), tiny(["background", "dog", "cow"], True, 2)
    fresh = new.head.weight.detach().clone()
    assert load_earlier(new, publish(old, tmp_path / "a/step-00000001")) == (["cow"], ["cat"])
    assert torch.equal(new.head.weight, torch.stack([old.head.weight[1], fresh[1], old.head.weight[2]]))
    plain = tiny(CLASSES, False, 3)
    fresh = new.head.weight.detach().clone()
    load_earlier(new, publish(plain, tmp_path / "b/step-00000001"))
    assert torch.equal(new.head.weight[2], fresh[2])


def test_dropout_inside_resnet38_goes_with_it() -> None:
    section = BackboneSection(name="resnet38", pretrained=False, output_stride=8)
    with torch.device("meta"):
        model = Classifier(section, CLASSES, 0.3, "b7", background=True)
        scores, activations = model.training_outputs(torch.empty(1, 3, 32, 32))
    assert (tuple(scores.shape), tuple(activations.shape)) == ((1, 2), (1, 3, 4, 4))


def test_an_estimate_knows_the_objective(tmp_path: Path) -> None:
    costs = [
        step_cost(classifier_stage(settings(tmp_path, saliency=eps).classify, CLASSES), Way(2)) for eps in (None, {})
    ]
    assert costs[1].trained - costs[0].trained == 96  # one channel more


@pytest.mark.parametrize("key", ["classify.saliency", "seeds.saliency_unary", "seeds.saliency_voter"])
def test_what_uses_maps_needs_them_and_says_so(key: str) -> None:
    section, name = key.split(".")
    tree = {"name": "n", "data": {"dataset": "shapes"}, section: {name: {} if section == "classify" else True}}
    with pytest.raises(ConfigError, match=rf"`{key}`: is set, but saliency\.model and saliency\.folder are null"):
        check_config(tree)
    assert check_config({**tree, "saliency": {"model": "u2netp"}}).cue() == "tags + saliency (u2netp)"
    assert check_config({**tree, "saliency": {"folder": "maps"}}).cue() == "tags + saliency (folder)"


def test_maps_that_nothing_uses_are_no_cue() -> None:
    tree = {"name": "n", "data": {"dataset": "shapes"}}
    assert check_config(tree).cue() == "tags"
    assert check_config({**tree, "saliency": {"model": "nets/my net.onnx"}}).cue() == "tags"
    assert check_config({**tree, "saliency": {"model": "nets/my net.onnx"}}).saliency.name == "my_net"


@pytest.mark.parametrize(
    ("section", "said"),
    [({"model": "u2netp", "folder": "maps"}, "allowed: one of them"), ({"model": "u2net"}, r"a file NAME\.onnx")],
)
def test_one_source_of_maps(section: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_config({"name": "n", "data": {"dataset": "shapes"}, "saliency": section})
