"""`convert-weights`; ResNet-101 from torchvision and with a deep stem; where a run's weights come from is recorded."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from distwsss.cli import main
from distwsss.config.networks import BackboneSection
from distwsss.config.stages import TrainSection
from distwsss.errors import CheckpointError, ConfigError
from distwsss.models.backbones.build import Backbone
from distwsss.models.convert import convert_weights
from distwsss.models.segmenters import build_segmenter
from helpers.deeplab_reference import caffe_shapes, marks, torchvision_shapes

FC = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def resnet(name: str, weights: Path) -> BackboneSection:
    return BackboneSection(name=name, weights=str(weights), output_stride=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files users have, with another constant in every tensor."""
    folder = tmp_path_factory.mktemp("weights")
    contents = {
        "resnet101-5d3b4d8f.pth": marks(torchvision_shapes()) | FC,
        "resnet101s-03a0f310.pth": marks(torchvision_shapes(deep_stem=True)) | FC,
        "deeplabv1_resnet101-imagenet.pth": marks(caffe_shapes()),
    }
    for name, content in contents.items():
        torch.save(content, folder / name, _use_new_zipfile_serialization=False)
    return {name.split("-")[0]: folder / name for name in contents}


@pytest.mark.parametrize(("name", "deep"), [("resnet101", False), ("resnet101s", True)])
def test_the_references_names_and_shapes_are_timms(name: str, deep: bool) -> None:
    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    theirs = {key: tuple(value.shape) for key, value in state.items() if "num_batches" not in key}
    assert theirs == torchvision_shapes(deep) | {key: tuple(tensor.shape) for key, tensor in FC.items()}


@pytest.mark.parametrize(("name", "deep"), [("resnet101", False), ("resnet101s", True)])
def test_resnet101_loads_layer_by_layer_without_its_classifier(
    name: str, deep: bool, files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="distwsss"):
        state = Backbone(resnet(name, files[name])).net.net.state_dict()
    for key, expected in marks(torchvision_shapes(deep)).items():
        assert torch.equal(state[key], expected), key
    assert "left out the classification layer: fc.weight, fc.bias" in caplog.text


@pytest.mark.parametrize(
    ("name", "file", "found", "allowed"),
    [
        ("resnet101s", "resnet101", "one 7x7 convolution", "resnet101s-03a0f310.pth, or for this file a backbone like"),
        ("resnet101", "resnet101s", "three 3x3 convolutions", "resnet101-5d3b4d8f.pth, or for this file a backbone"),
        ("resnet101_caffe", "resnet101", "one 7x7 convolution", "deeplabv1_resnet101-coco.pth"),
        ("resnet101", "deeplabv1_resnet101", "DeepLab in Caffe", "for this file a backbone like resnet101_caffe"),
        ("resnet38", "resnet101", "one 7x7 convolution", "res38_cls.pth"),
    ],
)
def test_a_file_of_another_make_is_named(
    name: str, file: str, found: str, allowed: str, files: dict[str, Path], tmp_path: Path
) -> None:
    """semantic-segmentation-codebase drops what does not match, silently: its README names the 7x7 file."""
    with pytest.raises(CheckpointError) as caught:
        convert_weights(files[file], tmp_path / "o.safetensors", name)
    message = str(caught.value)
    assert "\n" not in message
    assert str(files[file]) in message
    for part in (f"found a ResNet that starts with {found}" if "conv" in found else found, repr(name), allowed):
        assert part in message
    assert not (tmp_path / "o.safetensors").exists()


def test_a_whole_deeplab_of_deeplab_pytorch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """deeplabv2_resnet101_msc-vocaug-20000.pth, for as many classes and for others."""
    body = marks(caffe_shapes())
    head = {f"c{k}.{last}": torch.full(shape, k + 0.5) for k in range(4) for last, shape in
            (("weight", (21, 2048, 3, 3)), ("bias", (21,)))}  # fmt: skip
    file = {f"base.{name}": tensor for name, tensor in body.items()}
    torch.save(file | {f"base.aspp.{name}": tensor for name, tensor in head.items()}, tmp_path / "w.pth")
    backbone = BackboneSection(name="resnet101_caffe", pretrained=False, output_stride=8)
    section = TrainSection(lineage="classic", backbone=backbone, weights=str(tmp_path / "w.pth"))
    state = build_segmenter(section, ["background", *(f"class{i}" for i in range(20))]).state_dict()
    assert all(torch.equal(state[f"backbone.net.{name}"], tensor) for name, tensor in body.items())
    assert all(torch.equal(state[f"head.branches.{name[1:]}"], tensor) for name, tensor in head.items())
    with caplog.at_level(logging.INFO, logger="distwsss"):
        other = build_segmenter(section, ["background", "cat"]).state_dict()
    assert all(torch.equal(other[f"backbone.net.{name}"], tensor) for name, tensor in body.items())
    assert other["head.branches.0.weight"].std() < 0.02
    assert "left out the classification layer: head.branches.0.weight" in caplog.text


class TestConvertWeights:
    def test_the_result_is_the_backbones_and_says_where_from(
        self, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output, source = tmp_path / "caffe.safetensors", files["deeplabv1_resnet101"]
        assert main(["convert-weights", str(source), "-o", str(output), "--for", "resnet101_caffe"]) == 0
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        with safe_open(output, "pt") as file:
            assert file.metadata() == {
                "format": "pt", "origin": "deeplabv1_resnet101-imagenet.pth", "source_format": ".pth",
                "sha256": digest, "backbone": "resnet101_caffe",
            }  # fmt: skip
        expected = marks(caffe_shapes())
        found = load_file(output)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        printed = capsys.readouterr().out
        assert f"520 tensors, {sum(t.numel() for t in expected.values()):,} values\n" in printed
        assert digest in printed
        assert f"backbone.name: resnet101_caffe, backbone.weights: {output}" in printed
        state = Backbone(resnet("resnet101_caffe", output)).net.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())

    def test_equal_input_gives_equal_bytes(self, tmp_path: Path) -> None:
        source = tmp_path / "w.pth"
        torch.save({f"layer{i}.weight": torch.full((3,), float(i)) for i in range(9)}, source)
        digests = set()
        for i in range(4):
            convert_weights(source, tmp_path / f"{i}.safetensors")
            digests.add(hashlib.sha256((tmp_path / f"{i}.safetensors").read_bytes()).hexdigest())
        assert len(digests) == 1

    def test_what_is_left_out_is_said(self, files: dict[str, Path], tmp_path: Path) -> None:
        text = convert_weights(files["resnet101s"], tmp_path / "o.safetensors", "resnet101s")
        assert "left out the classification layer: fc.weight, fc.bias" in text
        assert "fc.weight" not in load_file(tmp_path / "o.safetensors")

    def test_without_a_backbone_names_and_types_stay(self, tmp_path: Path) -> None:
        shared = torch.arange(6.0)
        tensors = {"a.weight": torch.ones(2, dtype=torch.float16), "b": shared[:3], "c": shared.reshape(2, 3).T}
        torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, tmp_path / "w.pt")
        text = convert_weights(tmp_path / "w.pt", tmp_path / "w.safetensors")
        found = load_file(tmp_path / "w.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
        assert text.startswith(f"{tmp_path / 'w.safetensors'}: 3 tensors, 11 values\n")

    @pytest.mark.parametrize(("target", "source"), [("o.pth", "w.pth"), ("w.safetensors", "w.safetensors")])
    def test_where_it_must_not_go(self, target: str, source: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="another file than the source, named"):
            convert_weights(tmp_path / source, tmp_path / target)

    def test_misfits_are_listed_with_exit_code_4(self, tmp_path: Path, capsys) -> None:
        content: dict[str, Tensor] = marks(caffe_shapes())
        content["layer5.block3.increase.bn.weight"] = torch.zeros(7)
        content["extra"] = content.pop("layer1.conv1.bn.bias")
        torch.save(content, tmp_path / "w.pth")
        arguments = ["convert-weights", str(tmp_path / "w.pth"), "-o", str(tmp_path / "o.safetensors")]
        assert main([*arguments, "--for", "resnet101_caffe"]) == 4
        message = capsys.readouterr().err
        for line in ("missing layer1.conv1.bn.bias", "unexpected extra", "is (7,), allowed (2048,)", "3 problems"):
            assert line in message

    def test_a_backbone_that_only_its_segmenter_builds(self, tmp_path: Path) -> None:
        section = TrainSection(model="segformer", backbone=BackboneSection(name="mit_b0", pretrained=False))
        state = build_segmenter(section, ["background", "cat"]).backbone.state_dict()
        torch.save(state, tmp_path / "w.pth")
        convert_weights(tmp_path / "w.pth", tmp_path / "o.safetensors", "mit_b0")
        found = load_file(tmp_path / "o.safetensors")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_a_file_that_was_not_converted_is_left_alone(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    save_file({"mine": torch.zeros(3)}, tmp_path / "out.safetensors")
    (tmp_path / "text.safetensors").write_text("my notes")
    for name in ("out.safetensors", "text.safetensors"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ConfigError, match=f"{name}: is there, and convert-weights did not write it"):
            convert_weights(tmp_path / "a.pth", tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    for value in (1.0, 2.0):
        torch.save({"a": torch.full((2,), value)}, tmp_path / "a.pth")
        convert_weights(tmp_path / "a.pth", tmp_path / "again.safetensors")
    assert load_file(tmp_path / "again.safetensors")["a"].tolist() == [2.0, 2.0]
