"""Files of weights as people have them: with extras, in other wrappers, under other names; and what looks like one.

`torch.save`, `pickle` and `zipfile` make them; nothing in them is run.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import pathlib
import pickle
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distwsss.errors import CheckpointError
from distwsss.models.weights.files import read_weights

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.tensor([1.0, -1.0])}
CREATED: list[str] = []


class Config(dict):
    """As OmegaConf's and mmcv's: a class of somebody's."""

    def __setstate__(self, state: Any) -> None:
        CREATED.append("ran")


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": STATE, "best": np.float64(0.71), "epoch": 3, "name": "run 7"},
        {"state_dict": STATE, "iou": np.array([0.5]), "hist": np.arange(4, dtype=np.int32), "mask": np.ones(3, bool)},
        {"state_dict": STATE, "text": np.bool_(True), "lr": [np.float32(0.1), (np.int64(2), None)]},
        {name: tensor.numpy() for name, tensor in STATE.items()},
        {"model_state_dict": STATE}, {"net": STATE}, {"params_ema": STATE}, {"teacher": STATE, "epoch": 1},
        {"ema": {"model": STATE}}, {"checkpoint": {"state_dict": STATE}}, {"anything": STATE, "optimizer": {"lr": 0.1}},
        {"state_dict_ema": prefixed("module.")}, {"model": prefixed("module._orig_mod.")}, prefixed("model."),
    ],
)  # fmt: skip
def test_what_is_around_the_weights_is_taken_off(tmp_path: Path, content: dict[str, Any], zipped: bool) -> None:
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert same(read_weights(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    "name", ["a.pth.tar", "A.PTH", "a.PT", "a.bin", "a.ckpt", "a.pth", "weights", "a.pth.1", "a.pth?download=true"]
)
def test_files_of_torch_are_called_anything(tmp_path: Path, name: str) -> None:
    torch.save(STATE, tmp_path / name)
    assert same(read_weights(tmp_path / name))


def test_other_formats_under_torchs_suffixes(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.pth")
    save_file(STATE, tmp_path / "A.SAFETENSORS")
    (tmp_path / "b.pth").write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in STATE.items()}))
    for name in ("a.pth", "A.SAFETENSORS", "b.pth"):
        assert same(read_weights(tmp_path / name)), name


def test_of_several_the_log_says_which_was_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"ema": prefixed("other."), "model": STATE}, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, logger="distwsss"):
        assert same(read_weights(tmp_path / "a.pth"))
    assert "takes the weights under 'model'; those under ema are left" in caplog.text


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (types.SimpleNamespace(lr=0.1), "types.SimpleNamespace"),
        (datetime.datetime(2024, 5, 3), "datetime.datetime"),
        (pathlib.PurePosixPath("/data"), "pathlib"),
        (Config(a=1), "Config"),
        (nn.Linear(2, 3), "torch.nn.modules.linear.Linear"),
        (np.array([{"a": 1}], dtype=object), "dtype"),
    ],
)
def test_what_is_not_allowed_is_named_and_not_run(tmp_path: Path, extra: Any, named: str, zipped: bool) -> None:
    CREATED.clear()
    torch.save({"model": STATE, "args": extra}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path / "a.pth")
    assert named in str(caught.value)
    assert "nothing of it was run" in str(caught.value)
    assert not CREATED


def test_all_names_are_given_at_once(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(), "when": datetime.date(2024, 5, 3), "model": STATE}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds argparse\.Namespace, datetime\.date; allowed: tensors"):
        read_weights(tmp_path / "a.pth")


def html(path: Path) -> None:
    path.write_text("\n<!DOCTYPE html><html><head><title>Google Drive - Quota\n exceeded</title></head></html>")


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("models/res38.pth", b"x")


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 3)), path)


def cut(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.pkl", "a.caffemodel", "a.params"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (html, "a web page ('Google Drive - Quota exceeded')"),
        (lambda path: path.write_bytes(b"<html>\xe9\xe8</html>"), "a web page"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 420000\n"),
            "a Git LFS pointer, not the file of 420,000 bytes",
        ),
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_bytes(bytes(5000)), "5000 zero bytes"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(99)), "gzip"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n" + bytes(99)), "HDF5"),
        (archive, "a zip of models/res38.pth; unpack it"),
        (script, "a TorchScript archive"),
        (cut, "a PyTorch or zip file that was cut short"),
    ],
    ids=["page", "latin page", "lfs", "empty", "zeros", "gzip", "hdf5", "zip", "script", "cut"],
)
def test_what_only_looks_like_weights_is_called_what_it_is(
    tmp_path: Path, make: Callable[[Path], object], said: str, name: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        read_weights(tmp_path / name)
    assert f"{name}: this is " in str(caught.value)
    assert said in str(caught.value)


def test_text_is_called_text(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_text('{"error": "not found"}')
    with pytest.raises(CheckpointError, match=r"""this is text \('{"error": "not found"}'\), not weights"""):
        read_weights(tmp_path / "a.pth")


def test_a_legacy_file_that_was_cut_short(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="or damaged"):
        read_weights(tmp_path / "a.pth")
