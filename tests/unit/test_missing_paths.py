"""What is not there is named with the absolute path that was looked at, in every message, where a relative one was
given. Links in it stay as they were written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distwsss import pipeline
from distwsss.config import Config, load_config
from distwsss.config.hardware import HardwareSection
from distwsss.config.load import check_config
from distwsss.config.networks import BackboneSection
from distwsss.errors import DistwsssError
from distwsss.evaluate.predict import find_pictures
from distwsss.inference.segmenter import Segmenter
from distwsss.models.backbones.build import Backbone
from distwsss.models.export import from_pretrained
from distwsss.models.weights.files import weights_file
from distwsss.models.weights.network import weights_read
from distwsss.train.engine.accelerate import deepspeed_file

GONE = "sub/gone"  # relative, and not there
VOC, FOLDER = "sub/voc", "sub/folder"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder. `sub` in it is a link; in that a bare devkit, a folder of no pictures and configurations."""
    (tmp_path / "target" / "voc" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "target" / "voc" / "cls_labels.csv").write_text("id,labels\n")
    (tmp_path / "target" / "folder").mkdir()
    (tmp_path / "target" / "folder" / "tags.csv").write_text("image,labels\n")
    (tmp_path / "target" / "one.yaml").write_text("base: gone\n")
    (tmp_path / "target" / "two.yaml").write_text("base: [../sub/gone]\n")
    (tmp_path / "sub").symlink_to("target")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(call: Callable[[], object]) -> str:
    with pytest.raises(DistwsssError) as caught:
        call()
    return str(caught.value)


def made(**data: Any) -> Config:
    return check_config({"name": "n", "data": data, "hardware": {"workers": 0}})


@pytest.mark.parametrize(
    ("call", "looked_at"),
    [
        (partial(load_config, GONE), GONE),
        (partial(load_config, "sub/one.yaml"), GONE),
        (partial(load_config, "sub/two.yaml"), "sub/../sub/gone"),
        (partial(load_config, "demo/shapes", GONE), GONE),
        (partial(deepspeed_file, HardwareSection(deepspeed=GONE)), GONE),
    ],
    ids=["--config", "base", "base in a list", "--profile", "hardware.deepspeed"],
)
def test_files_of_the_configuration(call: Callable[[], object], looked_at: str, here: Path) -> None:
    assert f"{here}/{looked_at}" in said(call)


@pytest.mark.parametrize(
    ("data", "looked_at"),
    [
        ({"dataset": "voc", "root": GONE}, GONE),
        ({"dataset": "coco", "root": GONE}, GONE),
        ({"dataset": "folder", "root": GONE}, GONE),
        ({"dataset": "voc", "root": FOLDER}, FOLDER),
        ({"dataset": "voc", "root": VOC, "train_split": "gone"}, f"{VOC}/ImageSets/Segmentation/gone.txt"),
        ({"dataset": "voc", "root": VOC, "train_split": "train_aug", "sbd": GONE}, GONE),
        ({"dataset": "coco", "root": FOLDER}, f"{FOLDER}/annotations/instances_train2014.json"),
        ({"dataset": "folder", "root": FOLDER}, f"{FOLDER}/images"),
        ({"dataset": "folder", "root": VOC, "images": "JPEGImages"}, f"{VOC}/cls_labels.csv"),
    ],
    ids=["voc", "coco", "folder", "no devkit", "split", "sbd", "no JSON", "data.images", "data.tags"],
)
def test_data(data: dict[str, Any], looked_at: str, here: Path) -> None:
    assert f"{here}/{looked_at}" in said(partial(pipeline.prepare, made(**data)))


RESNET38 = {"name": "resnet38", "output_stride": 8}


@pytest.mark.parametrize(
    "call",
    [
        partial(weights_read, BackboneSection(**RESNET38, weights=GONE)),
        partial(weights_read, BackboneSection(**RESNET38, pretrained=False), GONE),
        partial(Backbone, BackboneSection(**RESNET38, weights=f"{GONE}.params")),
        partial(pipeline.convert_weights, Path(f"{GONE}.params"), Path("out.safetensors"), None),
        partial(pipeline.convert_weights, Path(f"{GONE}.params"), Path("out.safetensors"), "resnet38"),
    ],
    ids=["backbone.weights", "train.weights", "a backbone", "convert-weights", "convert-weights --for"],
)
def test_weights(call: Callable[[], object], here: Path) -> None:
    assert f"{here}/{GONE}" in said(call)


@pytest.mark.parametrize(
    "call", [weights_file, partial(pipeline.convert_weights, output=Path("o.safetensors"), backbone=None)]
)
def test_a_folder_without_weights(call: Callable[[Path], object], here: Path) -> None:
    assert f"{here}/sub/folder: a folder without model.safetensors" in said(partial(call, Path(FOLDER)))


@pytest.mark.parametrize(
    "call",
    [
        lambda config: pipeline.evaluate(config, None, Path(GONE)),
        lambda config: pipeline.predict(config, [], Path("out"), Path(GONE), False, False),
        lambda config: pipeline.submit(config, Path("out.tgz"), "test", Path(GONE), False, False),
        lambda config: Segmenter.from_pretrained(GONE),
        lambda config: from_pretrained(GONE),
    ],
    ids=["evaluate", "predict", "submit", "Segmenter", "from_pretrained"],
)
def test_a_checkpoint(call: Callable[[Config], object], here: Path) -> None:
    assert f"{here}/{GONE}" in said(partial(call, made(dataset="voc", root=VOC)))


@pytest.mark.parametrize("options", [pipeline.Options(init_from=Path(GONE)), pipeline.Options(resume=GONE)])
def test_a_checkpoint_to_start_from(options: pipeline.Options, prepared: Config, tiny, here: Path) -> None:
    text = said(partial(pipeline.train, tiny(train={"labels": "truth"}), options))
    assert f"{here}/{GONE}" in text
    assert f" {GONE}" not in text


@pytest.mark.parametrize("verb", ["classify", "seeds", "stats", "train"])
def test_shards(verb: str, tiny, here: Path) -> None:
    config = tiny(paths={"shards": GONE}, seeds={"threshold": 1})
    assert f"{here}/{GONE}/images/train/index.json: cannot be read" in said(partial(getattr(pipeline, verb), config))


@pytest.mark.parametrize("path", [GONE, f"file://{GONE}"])
def test_shards_to_verify(path: str, here: Path) -> None:
    assert f"{here}/{GONE}: no such folder" in said(partial(pipeline.verify, None, path))


def test_pictures_to_predict(here: Path) -> None:
    found, problems = find_pictures([Path(GONE), Path(FOLDER)], Path("out"))
    assert not found
    assert [text.partition(": ")[0] for text in problems] == [f"{here}/{GONE}", f"{here}/{FOLDER}"]
