"""`.caffemodel` files against protobuf's own encoder, and DeepLab's files of weights layer by layer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from distwsss.config.networks import BackboneSection
from distwsss.errors import CheckpointError
from distwsss.models.backbones.build import Backbone
from distwsss.models.backbones.resnet_caffe import CaffeResNet101
from distwsss.models.weights.backbone import load_file_into
from distwsss.models.weights.caffe_names import deeplab_names
from distwsss.models.weights.caffemodel import read_caffemodel
from helpers.deeplab_reference import caffe_layer, caffe_name, caffe_shapes, marks, random_weights, torchvision_shapes
from helpers.deeplab_reference import write_caffemodel as write

FIELDS = {  # caffe.proto, the part of it that holds weights: (name, number, type, repeated, packed)
    "BlobShape": [("dim", 1, "int64", True, True)],
    "BlobProto": [
        ("num", 1, "int32", False, False), ("channels", 2, "int32", False, False),
        ("height", 3, "int32", False, False), ("width", 4, "int32", False, False),
        ("data", 5, "float", True, True), ("diff", 6, "float", True, True), ("shape", 7, "BlobShape", False, False),
        ("double_data", 8, "double", True, True),
    ],
    "LooseBlob": [("data", 5, "float", True, False), ("shape", 7, "BlobShape", False, False)],
    "LayerParameter": [
        ("name", 1, "string", False, False), ("type", 2, "string", False, False),
        ("loss_weight", 5, "float", True, False), ("blobs", 7, "BlobProto", True, False),
        ("phase", 10, "int32", False, False),
    ],
    "V1LayerParameter": [
        ("name", 4, "string", False, False), ("type", 5, "int32", False, False),
        ("blobs", 6, "BlobProto", True, False),
    ],
    "LooseLayer": [("name", 1, "string", False, False), ("blobs", 7, "LooseBlob", True, False)],
    "NetParameter": [
        ("name", 1, "string", False, False), ("layers", 2, "V1LayerParameter", True, False),
        ("force_backward", 5, "bool", False, False), ("layer", 100, "LayerParameter", True, False),
    ],
    "LooseNet": [("layer", 100, "LooseLayer", True, False)],
}  # fmt: skip


def caffe_messages() -> dict[str, type]:
    """protobuf's classes for `FIELDS`."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe_weights.proto", package="caffe", syntax="proto2")
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, number, kind, repeated, packed in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            if kind in FIELDS:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
            field.options.packed = packed
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {m: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{m}")) for m in FIELDS}


CAFFE = caffe_messages()


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """By torchvision's names."""
    return random_weights(torchvision_shapes())


def caffe_layers(weights: dict[str, torch.Tensor], factor: float) -> dict[str, list[np.ndarray]]:
    """The layers of `init.caffemodel`: BatchNorm holds its statistics times `factor`, and the factor."""
    layers: dict[str, list[np.ndarray]] = {}
    for name, tensor in sorted(weights.items(), key=lambda item: caffe_layer(item[0])):
        layer, _ = caffe_layer(name)
        layers.setdefault(layer, []).append(tensor.numpy() * (factor if layer.startswith("bn") else 1))
    for layer, blobs in layers.items():
        if layer.startswith("bn"):
            blobs.append(np.array([factor], "f4"))
    return layers


def test_blobs_are_those_protobuf_wrote(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 3, 2, 2)).astype("f4")
    net = CAFFE["NetParameter"](name="net", force_backward=True)
    net.layer.add(name="data", type="Data", phase=1)
    layer = net.layer.add(name="conv", type="Convolution", loss_weight=[1.0, 2.0])
    layer.blobs.add(data=values.ravel(), shape={"dim": values.shape}, diff=[0.5] * 48)
    layer.blobs.add(data=[1.0, 2.0, 3.0])  # no shape at all: a row
    layer.blobs.add(double_data=[1e300, -2.0], shape={"dim": [1, 2]})
    old = net.layers.add(name="fc6", type=14)
    old.blobs.add(data=np.arange(300.0), num=1, channels=1, height=2, width=150)
    (tmp_path / "a.caffemodel").write_bytes(net.SerializeToString())
    found = read_caffemodel(tmp_path / "a.caffemodel")
    assert set(found) == {"conv/0", "conv/1", "conv/2", "fc6/0"}
    assert torch.equal(found["conv/0"], torch.from_numpy(values))
    assert found["conv/1"].tolist() == [1.0, 2.0, 3.0]
    assert (found["conv/2"].dtype, found["conv/2"].tolist()) == (torch.float64, [[1e300, -2.0]])
    assert torch.equal(found["fc6/0"], torch.arange(300.0).reshape(1, 1, 2, 150))


def test_values_that_are_not_packed_are_read_too(tmp_path: Path) -> None:
    net = CAFFE["LooseNet"]()
    net.layer.add(name="scale").blobs.add(data=[0.25, -4.0, 8.0], shape={"dim": [3]})
    (tmp_path / "a.caffemodel").write_bytes(net.SerializeToString())
    assert read_caffemodel(tmp_path / "a.caffemodel")["scale/0"].tolist() == [0.25, -4.0, 8.0]


def test_the_reference_writer_writes_what_protobuf_reads(tmp_path: Path) -> None:
    blob = np.arange(12, dtype="f4").reshape(3, 4)
    write(tmp_path / "a.caffemodel", {"conv": [blob, blob[0]]})
    net = CAFFE["NetParameter"].FromString((tmp_path / "a.caffemodel").read_bytes())
    assert [layer.name for layer in net.layer] == ["conv"]
    assert list(net.layer[0].blobs[0].shape.dim) == [3, 4]
    assert list(net.layer[0].blobs[0].data) == list(range(12))


@pytest.mark.parametrize("at", [1, 4, 30, 200, -1])
def test_a_cut_file_is_refused(at: int, tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel"
    write(path, {"conv": [np.ones((4, 4), "f4")], "fc": [np.ones((8, 8), "f4")]})
    path.write_bytes(path.read_bytes()[:at])
    with pytest.raises(CheckpointError, match=r"a\.caffemodel: .*allowed: a whole \.caffemodel file"):
        read_caffemodel(path)


def net_of(**blob: object) -> bytes:
    net = CAFFE["NetParameter"]()
    net.layer.add(name="conv").blobs.add(**blob)
    return net.SerializeToString()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "holds no layer with weights"),
        (b"\x93NUMPY something else", "allowed: a whole .caffemodel file"),
        (net_of(data=[1.0, 2.0], shape={"dim": [3]}), r"conv/0: 2 values for the shape \(3,\)"),
        (net_of(data=[1.0], shape={"dim": [-1]}), "conv/0: 1 values for the shape"),
        (net_of(data=[1.0], shape={"dim": [1]}) * 2, "conv/0: its layer is there twice"),
        (b"\xa2\x06\x08\x0a\x01a\x3a\x03\x2a\x01\x00", "allowed: a whole .caffemodel file"),  # a float of one byte
        (b"\xff" * 40, "a number of more than 64 bits"),
        (b"\x0b" * 40, "wire type 3"),
        (b"\xa0\x06\x05", "a number where a message should be"),
    ],
)
def test_damage_is_named(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "a.caffemodel").write_bytes(content)
    with pytest.raises(CheckpointError, match=found):
        read_caffemodel(tmp_path / "a.caffemodel")


@pytest.fixture(scope="module")
def init_caffemodel(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """DeepLab's COCO file as it is laid out: res, bn and scale layers, a head of 91 classes, a copy."""
    path = tmp_path_factory.mktemp("caffe") / "init.caffemodel"
    layers = caffe_layers(weights, factor=7.5)
    layers["fc1_coco"] = [np.ones((91, 4), "f4"), np.ones(91, "f4")]
    layers["res2a_branch1_res075"] = [np.ones((2, 2), "f4")]
    write(path, layers)
    yield path
    path.unlink()


def test_every_parameter_lands_where_convert_py_puts_it(
    init_caffemodel: Path, weights: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    section = BackboneSection(name="resnet101_caffe", weights=str(init_caffemodel), output_stride=8)
    with caplog.at_level(logging.INFO, logger="distwsss"):
        state = Backbone(section).net.state_dict()
    assert len([name for name in state if "num_batches" not in name]) == len(weights)
    for name, expected in weights.items():
        found = state[caffe_name(name)]
        if name.endswith(("running_mean", "running_var")):  # times 7.5 in float32, and back
            assert torch.allclose(found, expected, rtol=3e-7, atol=0), name
        else:
            assert torch.equal(found, expected), name
    assert "left out the classification layer: fc.weight, fc.bias" in caplog.text
    assert "left out 1 layers that repeat the weights of scale 1: res2a_branch1_res075" in caplog.text


def test_heads_of_the_voc_file_are_the_aspps() -> None:
    blobs = {f"fc1_voc12_c{k}/{i}": torch.full((1,), float(2 * k + i)) for k in range(4) for i in range(2)}
    found = {name: tensor.item() for name, tensor in deeplab_names(blobs).items()}
    expected = {f"aspp.c{k}.{last}": 2.0 * k + i for k in range(4) for i, last in enumerate(("weight", "bias"))}
    assert found == expected


@pytest.mark.parametrize(
    ("blobs", "found"),
    [
        ({"bn_conv1/0": 1, "bn_conv1/1": 1, "bn_conv1/2": 0}, r"bn_conv1: it is scaled by \[0\.0\]"),
        ({"bn2a_branch1/0": 1, "bn2a_branch1/1": 1}, "bn2a_branch1 has 2 blobs; allowed: 3"),
        ({"conv1/0": 1, "conv1/1": 1}, "conv1 has 2 blobs; allowed: 1"),
    ],
)
def test_layers_of_another_make_are_refused(blobs: dict[str, float], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        deeplab_names({name: torch.tensor([float(value)]) for name, value in blobs.items()})


@pytest.mark.parametrize(("prefix", "head"), [("", "fc"), ("base.", "aspp.c0")])
def test_deeplab_pytorch_files_load_by_name(
    prefix: str, head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """deeplabv1_resnet101-coco.pth and -imagenet.pth; deeplabv2_resnet101_msc-vocaug-20000.pth with its prefix."""
    marked = marks(caffe_shapes())
    file = {prefix + name: tensor for name, tensor in marked.items()}
    for name in marked:
        if name.endswith("running_mean"):  # convert.py leaves statistics in float64
            file[prefix + name] = marked[name].double()
            file[prefix + name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    file |= {f"{prefix}{head}.weight": torch.zeros(91, 2048, 1, 1), f"{prefix}{head}.bias": torch.zeros(91)}
    torch.save(file, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    net = CaffeResNet101()
    with caplog.at_level(logging.INFO, logger="distwsss"):
        load_file_into(net, tmp_path / "w.pth", "resnet101_caffe")
    state = net.state_dict()
    assert all(torch.equal(state[name], expected) for name, expected in marked.items())
    assert f"left out the classification layer: {head}.weight, {head}.bias" in caplog.text
