"""Saliency maps by a network in an ONNX file: one built here, and U2-Net-p where it is at hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distwsss.cli import main
from distwsss.config.saliency import NETWORKS
from distwsss.data.images import decode_image
from distwsss.data.saliency import open_saliency, read_saliency
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_fields
from distwsss.errors import CheckpointError, ConfigError
from distwsss.models.weights.saliency import TABLE, network_file, unobtainable
from distwsss.planning.checks import run_problems
from distwsss.runtime.artifacts import sha256_file
from distwsss.runtime.layout import images_dir, saliency_dir
from distwsss.runtime.onnx import open_network
from distwsss.saliency.maps import make_saliency
from distwsss.saliency.network import saliency_map
from helpers.paths import U2NETP, VOC_MINI
from helpers.small import make_config, snapshot, write_config, write_images

HERE = U2NETP.is_file() and VOC_MINI.is_dir()
at_hand = pytest.mark.skipif(not HERE, reason="voc_mini and u2netp.onnx are not here (DISTWSSS_DATA)")
SIDES = (16, 24)  # height, width that the network here takes


def write_network(path: Path, shape: tuple[object, ...] = (1, 3, *SIDES), kind: str = "FLOAT", inputs: int = 1) -> Path:
    """An ONNX file that answers with 3 - 2 x the mean of the channels."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    dtype = getattr(onnx.TensorProto, kind)
    nodes = [
        onnx.helper.make_node("ReduceMean", ["x0"], ["mean"], axes=[1], keepdims=1),
        onnx.helper.make_node("Mul", ["mean", "minus_two"], ["scaled"]),
        onnx.helper.make_node("Add", ["scaled", "three"], ["y"]),
    ]
    numbers = [onnx.helper.make_tensor(name, dtype, [1], [value]) for name, value in (("minus_two", -2), ("three", 3))]
    takes = [onnx.helper.make_tensor_value_info(f"x{number}", dtype, shape) for number in range(inputs)]
    gives = onnx.helper.make_tensor_value_info("y", dtype, (shape[0], 1, *shape[2:]))
    graph = onnx.helper.make_graph(nodes, "g", takes, [gives], numbers)
    opset = onnx.helper.make_opsetid("", 13)
    path.write_bytes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())
    return path


def reference(image: np.ndarray) -> np.ndarray:
    """What that network's map must be, in float64: 255 where the photograph is darkest."""
    small = np.asarray(Image.fromarray(image).resize(SIDES[::-1], Image.Resampling.LANCZOS), float)
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    answer = 3 - 2 * ((small / small.max() - mean) / std).mean(axis=2)
    answer = (answer - answer.min()) / (answer.max() - answer.min())
    full = Image.fromarray(answer.astype(np.float32)).resize(image.shape[1::-1], Image.Resampling.BILINEAR)
    return 255 * np.asarray(full)


def test_maps_of_a_network_are_in_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_network(tmp_path / "my net.onnx")
    config = make_config(tmp_path, saliency={"model": str(model)})
    write_images(config, "train", 4)
    images = load_index(images_dir(config, "train"))
    assert main(["saliency", "--config", str(write_config(tmp_path, saliency={"model": str(model)}))]) == 0
    assert "nothing uses these maps" in capsys.readouterr().err
    assert saliency_dir(config) == tmp_path / "shards/saliency/my_net"
    index = open_saliency(config, images)
    assert index.parameters["inputs"] == {"network": sha256_file(model), "images": images.fingerprint}
    for place in images.all().places():
        image = decode_image(read_fields(images, *place, ["jpg"])["jpg"], "image")
        found = read_saliency(index, *place)
        assert np.abs(found - reference(image)).max() < 0.51
        assert found.max() > 250


def test_several_processes_give_the_same_bytes(tmp_path: Path) -> None:
    model = write_network(tmp_path / "n.onnx")
    for name, workers in (("one", 0), ("two", 2)):
        config = make_config(tmp_path / name, saliency={"model": str(model)}, hardware={"workers": workers})
        write_images(config, "train", 4)
        make_saliency(config)
    assert snapshot(tmp_path / "one/shards/saliency") == snapshot(tmp_path / "two/shards/saliency")


def test_a_photograph_in_which_nothing_is_found(tmp_path: Path) -> None:
    network = open_network(write_network(tmp_path / "n.onnx"))
    assert not saliency_map(network, np.full((10, 12, 3), 70, np.uint8)).any()


@pytest.mark.parametrize(
    ("shape", "kind", "inputs", "said"),
    [
        ((1, 3, "height", "width"), "FLOAT", 1, "whose size is dynamic"),
        ((1, 1, 16, 24), "FLOAT", 1, r"allowed: tensor\(float\) \[1, 3, H, W\]"),
        ((4, 3, 16, 24), "FLOAT", 1, r"allowed: tensor\(float\) \[1, 3, H, W\]"),
        ((1, 3, 16, 24), "DOUBLE", 1, r"found tensor\(double\)"),
        ((1, 3, 16, 24), "FLOAT", 2, r"found 2 inputs \(x0, x1\)"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, shape: tuple, kind: str, inputs: int, said: str) -> None:
    path = write_network(tmp_path / "n.onnx", shape, kind, inputs)
    with pytest.raises(CheckpointError, match=said):
        open_network(path)


def test_any_number_of_pictures_at_once_is_taken(tmp_path: Path) -> None:
    network = open_network(write_network(tmp_path / "n.onnx", ("batch", 3, 16, 24)))
    assert (network.height, network.width) == SIDES


def test_a_file_that_is_no_network_stops_before_anything_is_written(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "n.onnx").write_bytes(b"no network")
    config = make_config(tmp_path, saliency={"model": str(tmp_path / "n.onnx")})
    write_images(config, "train", 2)
    with pytest.raises(CheckpointError, match="not a network that onnxruntime can read"):
        make_saliency(config)
    assert not saliency_dir(config).exists()


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what makes Python say that there is none
    with pytest.raises(ConfigError, match=r'run `pip install "distwsss\[saliency\]"`'):
        open_network(tmp_path / "n.onnx")


def test_the_names_of_the_configuration_are_those_of_the_table() -> None:
    assert tuple(TABLE) == NETWORKS


def test_a_file_that_is_not_here_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DISTWSSS_CACHE", str(tmp_path / "cache"))
    for model, said in (("u2netp", r"4,574,861 bytes, and is looked for as .*cache/u2netp/u2netp\.onnx"),
                        (str(tmp_path / "gone.onnx"), r"saliency\.model: found no file .*gone\.onnx")):  # fmt: skip
        config = make_config(tmp_path, saliency={"model": model})
        assert unobtainable(model) in "\n".join(run_problems(config, ["saliency"], None))
        with pytest.raises(CheckpointError, match=said):
            network_file(model)


def test_a_damaged_file_of_a_known_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTWSSS_CACHE", str(tmp_path))
    (tmp_path / "u2netp").mkdir()
    (tmp_path / "u2netp/u2netp.onnx").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="allowed: 309c8469"):
        network_file("u2netp")


@at_hand
def test_u2netp_gives_the_maps_it_gave_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("DISTWSSS_CACHE", str(tmp_path))
    (tmp_path / "u2netp").mkdir()
    (tmp_path / "u2netp/u2netp.onnx").symlink_to(U2NETP)
    network = open_network(network_file("u2netp"))
    for path in sorted((VOC_MINI / "SaliencyU2NetP").glob("*.png"))[:3]:
        image = decode_image((VOC_MINI / f"JPEGImages/{path.stem}.jpg").read_bytes(), path.stem)
        found, known = saliency_map(network, image).astype(int), np.asarray(Image.open(path)).astype(int)
        assert np.abs(found - known).max() <= 2
