"""Published files of MiT, Swin, SegFormer and Mask2Former, built here by other libraries or by name, and what they do.

None of the real files can be had here. timm's and segmentation-models-pytorch's networks carry the names NVlabs' and
microsoft's files have; transformers writes folders as the hub has them; detectron2's head is written out in
`mask2former_reference`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from distwsss.config.networks import BackboneSection, Mask2FormerSection
from distwsss.config.stages import TrainSection
from distwsss.errors import CheckpointError
from distwsss.models.export import save_pretrained
from distwsss.models.segmenters import build_segmenter
from distwsss.models.weights.backbone import load_file_into
from distwsss.models.weights.files import read_weights
from distwsss.models.weights.network import weights_read
from helpers.mask2former_reference import head_shapes, predictions

SIZES = {"hidden": 32, "feedforward": 64, "queries": 5, "encoder_layers": 2, "decoder_layers": 4}
CLASSES = ["background", "cat", "dog"]


def touch(path: str) -> None:
    Path(path).touch()


def segformer(name: str = "mit_b0", **options: Any) -> TrainSection:
    return TrainSection(model="segformer", backbone=BackboneSection(name=name, **options))


def mask2former(whole: Path | None = None, swin: Path | None = None) -> TrainSection:
    """From a file of the whole network, or of the backbone."""
    backbone = BackboneSection(name="swin_tiny", pretrained=swin is not None, weights=str(swin) if swin else None)
    sizes = Mask2FormerSection(**SIZES)
    return TrainSection(
        model="mask2former", backbone=backbone, mask2former=sizes, weights=str(whole) if whole else None
    )


def randomised(net: nn.Module, spread: float = 0.05) -> nn.Module:
    """Every parameter drawn anew, norms' and biases' too, so that none can be mistaken for another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def hub_names(folder: Path) -> set[str]:
    return set(load_file(folder / "model.safetensors"))


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    """transformers' SegFormer of three classes."""
    config = transformers.SegformerConfig(num_labels=3)
    net = randomised(transformers.SegformerForSemanticSegmentation(config), 0.2)
    net.decode_head.batch_norm.running_mean += 0.1
    return net


def whole_segformer(weights: Path) -> TrainSection:
    return segformer(pretrained=False).model_copy(update={"weights": str(weights)})


class TestMiT:
    def test_nvlabs_file(self, tmp_path: Path, caplog) -> None:
        net = randomised(smp.encoders.get_encoder("mit_b0", weights=None))
        head = {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
        assert "block1.0.attn.kv.weight" in net.state_dict()
        torch.save({**net.state_dict(), **head}, tmp_path / "mit_b0.pth")
        with caplog.at_level(logging.INFO, "distwsss"):
            model = build_segmenter(segformer(weights=str(tmp_path / "mit_b0.pth")), CLASSES).eval()
        assert "left out the classification layer: head.weight, head.bias" in caplog.text
        features, found = torch.randn(1, 3, 64, 96), []
        expected = net(features)[2:]
        for stage in model.backbone.stages:
            features = stage(features)
            found.append(features)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
        assert all(a.std() > 0.01 for a in found)

    @pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
    def test_hub_folder(self, tmp_path: Path, file: str) -> None:
        net = randomised(transformers.SegformerForImageClassification(transformers.SegformerConfig(num_labels=10)))
        net.save_pretrained(tmp_path)
        assert "segformer.encoder.block.1.0.attention.self.query.weight" in hub_names(tmp_path)
        if file.endswith(".bin"):
            torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / file)
            (tmp_path / "model.safetensors").unlink()
        model = build_segmenter(segformer(weights=str(tmp_path)), CLASSES)
        for name, tensor in net.segformer.state_dict().items():
            assert torch.equal(model.backbone.state_dict()[name], tensor), name

    def test_whole_segformer_of_the_hub(self, whole: nn.Module, tmp_path: Path) -> None:
        whole.save_pretrained(tmp_path)
        assert "decode_head.linear_c.0.proj.weight" in hub_names(tmp_path)
        own = build_segmenter(whole_segformer(tmp_path), CLASSES).state_dict()
        for name, tensor in whole.state_dict().items():
            ours = re.sub("^segformer", "backbone", re.sub("^decode_head", "head", name))
            assert torch.equal(own.pop(ours), tensor), name
        assert not own

    def test_whole_segformer_of_nvlabs(self, whole: nn.Module, tmp_path: Path, caplog) -> None:
        """Its names for the same head; a classifier for other classes."""
        nvlabs = {}
        for name, tensor in whole.decode_head.state_dict().items():
            name = re.sub(r"linear_projections\.(\d)", lambda match: f"linear_c{int(match[1]) + 1}", name)
            name = re.sub("^linear_fuse", "linear_fuse.conv", name).replace("batch_norm", "linear_fuse.bn")
            nvlabs[f"decode_head.{name.replace('classifier', 'linear_pred')}"] = tensor
        encoder = randomised(smp.encoders.get_encoder("mit_b0", weights=None)).state_dict()
        nvlabs |= {f"backbone.{name}": tensor for name, tensor in encoder.items()}
        nvlabs |= {
            "decode_head.conv_seg.weight": torch.zeros(3, 128, 1, 1),
            "decode_head.conv_seg.bias": torch.zeros(3),
        }
        torch.save({"state_dict": nvlabs}, tmp_path / "segformer.b0.pth")
        with caplog.at_level(logging.INFO, "distwsss"):
            model = build_segmenter(whole_segformer(tmp_path / "segformer.b0.pth"), [*CLASSES, "sheep"])
        assert "left out the classification layer: head.classifier.weight, head.classifier.bias" in caplog.text
        assert "no part of the network: decode_head.conv_seg.weight" in caplog.text
        own = model.head.state_dict()
        for name, tensor in whole.decode_head.state_dict().items():
            if not name.startswith("classifier"):
                assert torch.equal(own[name], tensor), name

    def test_whole_segformer_of_a_checkpoint(self, tmp_path: Path) -> None:
        model = build_segmenter(segformer(pretrained=False), CLASSES)
        save_pretrained(model, tmp_path)
        again = build_segmenter(whole_segformer(tmp_path), CLASSES).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())

    def test_a_file_of_another_size_is_refused_name_by_name(self, tmp_path: Path) -> None:
        state = smp.encoders.get_encoder("mit_b0", weights=None).state_dict()
        state.pop("norm4.bias")
        state["block2.1.norm3.weight"] = torch.zeros(64)
        torch.save(state, tmp_path / "mit.pth")
        with pytest.raises(CheckpointError) as error:
            build_segmenter(segformer("mit_b1", weights=str(tmp_path / "mit.pth")), CLASSES)
        assert "missing stages.3.layer_norm.bias" in str(error.value)
        assert "unexpected stages.1.blocks.1.norm3.weight" in str(error.value)
        assert "stages.0.patch_embeddings.proj.weight is (32, 3, 7, 7), allowed (64, 3, 7, 7)" in str(error.value)

    def test_keys_and_values_that_cannot_be_told_apart_are_refused(self, tmp_path: Path) -> None:
        state = smp.encoders.get_encoder("mit_b0", weights=None).state_dict()
        state["block1.0.attn.kv.weight"] = torch.zeros(63, 32)
        torch.save(state, tmp_path / "mit.pth")
        with pytest.raises(CheckpointError, match=r"block1\.0\.attn\.kv\.weight has 63 rows; allowed: a multiple of 2"):
            build_segmenter(segformer(weights=str(tmp_path / "mit.pth")), CLASSES)

    def test_without_network_the_hub_is_one_clear_error(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setenv("DISTWSSS_CACHE", str(tmp_path))
        with pytest.raises(CheckpointError, match=r"mit_b2: .* not here .*nvidia/mit-b2/.*pretrained: false"):
            build_segmenter(segformer("mit_b2"), CLASSES)


class TestTheFileARunStartsFrom:
    """`weights_read` records it by its content."""

    @pytest.fixture
    def sha(self, tmp_path: Path) -> dict[str, str]:
        """Folders a, b and hub with a file each, by its sha256."""
        for folder in ("a", "b", "hub"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "pytorch_model.bin").write_bytes(folder.encode())
        return {folder: hashlib.sha256(folder.encode()).hexdigest() for folder in ("a", "b", "hub")}

    def test_a_folders_file_is_recorded_and_logged(self, sha: dict[str, str], tmp_path: Path, caplog) -> None:
        with caplog.at_level(logging.INFO, "distwsss"):
            found = weights_read(BackboneSection(name="mit_b0", weights=str(tmp_path / "a")))
        assert found == {"weights": sha["a"]}
        assert f"starts from {tmp_path}/a/pytorch_model.bin, sha256 {sha['a']}" in caplog.text

    def test_a_whole_networks_comes_before_the_backbones(self, sha: dict[str, str], tmp_path: Path) -> None:
        backbone = BackboneSection(name="mit_b0", weights=str(tmp_path / "a"))
        assert weights_read(backbone, str(tmp_path / "b" / "pytorch_model.bin")) == {"weights": sha["b"]}

    def test_the_hubs_is_recorded_too(self, sha: dict[str, str], tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv("DISTWSSS_CACHE", str(tmp_path))
        (tmp_path / "hub").rename(tmp_path / "swin_large")
        assert weights_read(BackboneSection(name="swin_large")) == {"weights": sha["hub"]}

    @pytest.mark.parametrize("options", [{"name": "swin_large", "pretrained": False}, {"name": "resnet50"}])
    def test_without_a_file_nothing_is_recorded(self, options: dict[str, Any]) -> None:
        assert weights_read(BackboneSection(**options)) == {}

    def test_a_file_that_is_absent_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no such file"):
            weights_read(BackboneSection(name="mit_b0", weights=str(tmp_path / "c.pth")))


@pytest.fixture(scope="module")
def swin() -> tuple[nn.Module, dict[str, Tensor]]:
    """timm's Swin-T for 448 x 448, wider than a window at every stage, and its weights as microsoft's file has them."""
    net = randomised(timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, img_size=448))
    state = {}
    for name, tensor in net.state_dict().items():  # timm merges patches at a stage's start, microsoft at its end
        name = re.sub(r"^layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        state[name.replace("head.fc", "head")] = tensor
    for stage, blocks in enumerate((2, 2, 6, 2)):
        for block in range(blocks):
            prefix = f"layers.{stage}.blocks.{block}."
            state[f"{prefix}attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
            if block % 2:
                state[f"{prefix}attn_mask"] = torch.zeros(4, 49, 49)
    return net, state


class TestSwin:
    def test_microsoft_file(self, swin, tmp_path: Path, caplog) -> None:
        """Its features, of which a stage's norm is new, and thus the order in which four patches are merged."""
        net, state = swin
        torch.save({"model": state}, tmp_path / "swin_tiny_patch4_window7_224.pth")
        with caplog.at_level(logging.INFO, "distwsss"):
            model = build_segmenter(mask2former(swin=tmp_path / "swin_tiny_patch4_window7_224.pth"), CLASSES)
        assert "left out the classification layer: head.weight, head.bias" in caplog.text
        assert re.search(r"no part of the network: .*norm\.weight.* and \d+ more", caplog.text)
        features = net.patch_embed(images := torch.randn(1, 3, 448, 448))
        for layer, found in zip(net.layers, model.eval().backbone(images).feature_maps, strict=True):
            features = layer(features)  # B,h,w,C
            expected = layer_norm(features, features.shape[-1:]).permute(0, 3, 1, 2)
            assert torch.allclose(found, expected, atol=1e-5)

    def test_detectron2_pickle_and_hub_folder_are_the_same(self, swin, tmp_path: Path) -> None:
        """The pickle as Mask2Former's converter writes it: tensors, in the dictionary that torch.load gave."""
        _, state = swin
        ordered = OrderedDict(state)
        ordered._metadata = OrderedDict({"": {"version": 1}})
        wrapped = {"model": ordered, "__author__": "third_party", "matching_heuristics": True}
        (tmp_path / "swin.pkl").write_bytes(pickle.dumps(wrapped))
        model = build_segmenter(mask2former(swin=tmp_path / "swin.pkl"), CLASSES).backbone
        block = model.swin.encoder.layers[2].blocks[5].attention
        fused = state["layers.2.blocks.5.attn.qkv.weight"]
        for part, rows in zip((block.q_proj, block.k_proj, block.v_proj), fused.split(384), strict=True):
            assert torch.equal(part.weight, rows)
        assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in model.hidden_states_norms.values())
        hub = transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=10))
        last = {"layernorm.weight": torch.ones(768), "layernorm.bias": torch.zeros(768)}
        hub.swin.load_state_dict({**model.swin.state_dict(), **last})
        hub.save_pretrained(tmp_path)
        assert "swin.encoder.layers.0.blocks.0.attention.self.query.weight" in hub_names(tmp_path)
        again = build_segmenter(mask2former(swin=tmp_path), CLASSES).backbone.state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())

    def test_a_file_of_another_size_is_refused(self, swin, tmp_path: Path) -> None:
        _, state = swin
        torch.save({"model": {name: t for name, t in state.items() if ".2.blocks.5." not in name}}, tmp_path / "s.pth")
        with pytest.raises(
            CheckpointError, match=r"missing swin\.encoder\.layers\.2\.blocks\.5\.attention\.q_proj\.weight"
        ):
            build_segmenter(mask2former(swin=tmp_path / "s.pth"), CLASSES)


def detectron2_state(swin: dict[str, Tensor], classes: int) -> dict[str, np.ndarray]:
    """A `model_final_*.pkl`'s arrays: the backbone with its four norms, and the head of `mask2former_reference`."""
    generator = np.random.default_rng(0)
    shapes = head_shapes(96, 32, 64, 2, 4, 5, classes)
    for stage in range(4):
        shapes |= {f"backbone.norm{stage}.weight": (96 * 2**stage,), f"backbone.norm{stage}.bias": (96 * 2**stage,)}
    found = {name: 0.3 * generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    kept = {name: t for name, t in swin.items() if not name.startswith(("norm.", "head.")) and "attn_mask" not in name}
    return {**{f"backbone.{name}": tensor.numpy() for name, tensor in kept.items()}, **found}


class TestMask2Former:
    def test_hub_folder(self, tmp_path: Path, caplog) -> None:
        """Every layer's classes and masks are those of transformers' own network, and of a checkpoint of ours."""
        backbone = transformers.SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone, num_labels=3, num_queries=5, hidden_dim=32, feature_size=32, mask_feature_size=32,
            dim_feedforward=64, encoder_feedforward_dim=32, encoder_layers=2, decoder_layers=5,
        )  # fmt: skip
        net = randomised(transformers.Mask2FormerForUniversalSegmentation(config), 0.1)
        net.save_pretrained(tmp_path)
        name = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.weight"
        assert name in hub_names(tmp_path)
        with caplog.at_level(logging.INFO, "distwsss"):
            model = build_segmenter(mask2former(tmp_path), CLASSES).eval()
        assert "class_predictor" not in caplog.text
        images = torch.randn(1, 3, 64, 96)
        expected = net(images, output_auxiliary_logits=True)
        layers = [*expected.auxiliary_logits, expected]
        for found, wanted in zip(model.predict(images), layers, strict=True):
            assert torch.equal(found.classes, wanted["class_queries_logits"])
            assert torch.equal(found.masks, wanted["masks_queries_logits"])
        with caplog.at_level(logging.INFO, "distwsss"):
            other = build_segmenter(mask2former(tmp_path), CLASSES[:2])
        assert "left out the classification layer: class_predictor.weight, class_predictor.bias" in caplog.text
        (tmp_path / "ours").mkdir()
        save_pretrained(other, tmp_path / "ours")
        again = build_segmenter(mask2former(tmp_path / "ours"), CLASSES[:2]).state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in other.state_dict().items())

    @pytest.mark.parametrize("older", [False, True])
    def test_detectron2_pickle(self, swin, tmp_path: Path, older: bool) -> None:
        """Every layer's classes and masks are those of the head written out by its published names, in float64."""
        arrays = detectron2_state(swin[1], 3)
        state = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
        if older:  # names before detectron2's conversions
            arrays = {name.replace("query_feat", "static_query").replace("pixel_decoder.", ""): a
                      for name, a in arrays.items()}  # fmt: skip
        wrapped = {"model": arrays, "__author__": "Bowen Cheng", "matching_heuristics": True}
        (tmp_path / "model_final_e5f453.pkl").write_bytes(pickle.dumps(wrapped))
        model = build_segmenter(mask2former(tmp_path / "model_final_e5f453.pkl"), CLASSES).double().eval()
        for stage in range(4):
            assert torch.equal(model.backbone.hidden_states_norms[f"stage{stage + 1}"].weight,
                               state[f"backbone.norm{stage}.weight"])  # fmt: skip
        block = model.backbone.swin.encoder.layers[3].blocks[1]
        assert torch.equal(block.attention.v_proj.bias, state["backbone.layers.3.blocks.1.attn.qkv.bias"][2 * 768 :])
        generator = torch.Generator().manual_seed(1)
        sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
        features = [torch.randn(1, 96 * 2**i, *size, generator=generator, dtype=torch.float64)
                    for i, size in enumerate(sizes)]  # fmt: skip
        expected = predictions(state, [feature[0] for feature in features])
        found = model.from_features(features)
        assert len(found) == len(expected) == 5
        for (classes, masks), layer in zip(expected, found, strict=True):
            assert torch.allclose(layer.classes[0], classes, atol=1e-5)
            assert torch.allclose(layer.masks[0], masks, atol=1e-5)
        assert (found[0].masks - found[-1].masks).abs().max() > 0.1

    def test_what_is_missing_is_listed(self, swin, tmp_path: Path) -> None:
        arrays = detectron2_state(swin[1], 3)
        del arrays["sem_seg_head.predictor.decoder_norm.weight"]
        arrays["sem_seg_head.predictor.extra.weight"] = np.zeros(3, np.float32)
        (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays}))
        with pytest.raises(CheckpointError) as error:
            build_segmenter(mask2former(tmp_path / "model.pkl"), CLASSES)
        assert "missing decoder.decoder.layernorm.weight" in str(error.value)
        assert "unexpected sem_seg_head.predictor.extra.weight" in str(error.value)
        assert "(2 problems)" in str(error.value)


class Runs:
    """What pickles of this run when they are loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


VALUES = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3), "fortran": np.asfortranarray(np.eye(3)[:2]),
    "big endian": np.arange(3, dtype=">f4"), "half": np.ones(2, np.float16), "integers": np.arange(4),
    "strided": np.arange(12.0).reshape(3, 4)[:, ::2], "scalar": np.float32(3.5), "truth": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32), "point": np.array(2.0),
}  # fmt: skip
TENSORS = {
    "tensor": torch.arange(12.0).reshape(3, 4).t(), "parameter": nn.Parameter(torch.ones(2)),
    "bfloat16": torch.ones(2, dtype=torch.bfloat16), "view": torch.arange(10.0)[3:5],
}  # fmt: skip


class TestPickles:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_arrays_and_tensors_are_read(self, tmp_path: Path, protocol: int) -> None:
        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps({"model": {**VALUES, **TENSORS}, "__author__": "x"}, protocol))
        found = read_weights(path)
        for name, value in VALUES.items():
            assert found[name].numpy().dtype == value.dtype.newbyteorder("=")
            assert np.array_equal(found[name].numpy(), value), name
            assert found[name].shape == np.shape(value)
        for name, tensor in TENSORS.items():
            assert torch.equal(found[name], tensor), name

    def test_arrays_of_older_numpy_are_read(self, tmp_path: Path) -> None:
        content = pickle.dumps({"a": VALUES["matrix"], "b": np.float64(1.5)}, protocol=3)
        assert b"numpy._core.multiarray" in content
        (tmp_path / "x.pkl").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert torch.equal(read_weights(tmp_path / "x.pkl")["a"], torch.arange(6.0).reshape(2, 3))

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    @pytest.mark.parametrize(
        ("named", "function", "arguments"),
        [
            ("posix.system", os.system, ["touch {}"]),
            ("eval", eval, ["open('{}', 'w')"]),
            ("getattr", getattr, [os, "system"]),
            ("torch.serialization.load", torch.load, ["{}"]),
            ("transformer_weights.touch", "lambda", []),
        ],
    )
    def test_what_would_run_something_is_refused_by_name(
        self, tmp_path: Path, protocol: int, named: str, function: Any, arguments: list[Any]
    ) -> None:
        target = tmp_path / "ran"
        if function == "lambda":
            payload = f"c{__name__}\ntouch\n(V{target}\ntR.".encode()
        else:
            given = [a.format(target) if isinstance(a, str) else "x" for a in arguments]
            payload = pickle.dumps({"model": {"a": Runs(function, *given)}}, protocol)
        (tmp_path / "x.pkl").write_bytes(payload)
        with pytest.raises(CheckpointError, match=rf"x\.pkl: not read \(it names \S*{named}"):
            read_weights(tmp_path / "x.pkl")
        assert not target.exists()

    @pytest.mark.parametrize("content", [b"", b"\x80\x04", pickle.dumps({"a": VALUES["matrix"]})[:-20]])
    def test_a_damaged_one_is_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.pkl"):
            read_weights(tmp_path / "x.pkl")

    def test_nothing_runs_by_a_detour(self, tmp_path: Path) -> None:
        """In an array's elements, in a tensor's storage, by altering what may be named, by a persistent id."""
        target, path = tmp_path / "ran", tmp_path / "x.pkl"
        inner = tmp_path / "inner.pt"
        torch.save(Runs(os.system, f"touch {target}"), inner, _use_new_zipfile_serialization=False)
        storage = b"ctorch.storage\n_load_from_bytes\n(" + pickle.dumps(inner.read_bytes(), 2)[2:-1] + b"tR."
        altered = b"ctorch._utils\n_rebuild_tensor_v2\n}V__doc__\nVx\nsb."
        payloads = {
            "system": pickle.dumps(np.array([Runs(os.system, f"touch {target}")], dtype=object)),
            "UnpicklingError|Weights only": storage,
            "alters what it has named": altered,
            "outside the file": b"Vx\nQ.",
            "dtype": pickle.dumps(np.array([None])),
        }
        for found, payload in payloads.items():
            path.write_bytes(payload)
            with pytest.raises(CheckpointError, match=found):
                read_weights(path)
            assert not target.exists()

    def test_a_folder_without_weights_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"without model\.safetensors or pytorch_model\.bin"):
            load_file_into(nn.Module(), tmp_path, "mit_b0")
