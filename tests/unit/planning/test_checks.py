"""What a run will miss is said before any work: all of it at once, and only of stages that have work to do."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distwsss.cli import main
from distwsss.config.load import check_config
from distwsss.config.schema import Config
from distwsss.errors import ConfigError
from distwsss.planning.checks import check_run, run_problems
from distwsss.planning.facts import DataFacts
from distwsss.planning.plan import not_complete
from distwsss.runtime.memory import available_memory
from helpers.small import make_config, write_classifiers, write_config, write_images

DATA = DataFacts(10, 2, 0, longest=500, pixels=187_500, most_pixels=250_000, classes={"cat": 10})
STAGES = ["prepare", "classify", "seeds", "stats", "train", "evaluate", "report"]


def settings(**sections: Any) -> Config:
    return check_config({"name": "n", "data": {"dataset": "shapes"}, **sections})


def backbone(**keys: Any) -> Config:
    section = {"name": "tiny", "pretrained": False, "output_stride": 8}
    return settings(classify={"backbone": section}, train={"backbone": {**section, **keys}})


def problems(config: Config, stages: list[str] = STAGES, data: DataFacts = DATA, launched: bool = True) -> str:
    return "\n".join(run_problems(config, stages, data, launched))


def test_a_configuration_that_needs_nothing_is_quiet(tmp_path: Path) -> None:
    check_run(make_config(tmp_path), STAGES, DATA)


def test_unknown_names_and_strides() -> None:
    assert "train.backbone: backbone 'resnet51'" in problems(backbone(name="resnet51"))
    assert "output stride" in problems(backbone(name="vgg16", output_stride=8))
    assert problems(backbone(name="resnet18")) == ""
    assert "no parameter starts with 'stem'" in problems(backbone(freeze=["stem"]))


def test_missing_files_of_weights(tmp_path: Path) -> None:
    missing = {"name": "resnet18", "pretrained": True, "weights": str(tmp_path / "none.pth")}
    assert f"train.backbone: weights: {tmp_path / 'none.pth'}: no such file" in problems(backbone(**missing))
    (tmp_path / "folder").mkdir()
    assert "a folder without" in problems(backbone(**{**missing, "weights": str(tmp_path / "folder")}))
    whole = settings(train={"backbone": {"name": "tiny", "pretrained": False, "output_stride": 8}, "weights": "gone"})
    assert "train.weights: " in problems(whole, ["train"])


def test_weights_that_no_hub_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = problems(backbone(name="resnet18", pretrained=True, output_stride=16))
    assert "timm/resnet18" in found
    assert "pretrained: false" in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_all_are_in_one_report(tmp_path: Path) -> None:
    config = settings(
        hardware={"device": "cuda"},
        classify={"backbone": {"name": "no_net", "pretrained": False, "output_stride": 8}},
        train={"backbone": {"name": "resnet18", "weights": str(tmp_path / "gone.pth")}},
    )
    with pytest.raises(ConfigError, match=r"3 problems(.|\n)*found 'cuda'(.|\n)*no_net(.|\n)*gone.pth"):
        check_run(config, STAGES, DATA)


def test_disk_and_memory_of_large_data() -> None:
    config = backbone()
    assert "disk: about" in problems(config, data=replace(DATA, photographs=10**9))
    assert "memory" not in problems(config, data=replace(DATA, most_pixels=10**11))  # it is shrunk
    config = config.model_copy(update={"prepare": config.prepare.model_copy(update={"longest_side": None})})
    if available_memory():
        found = problems(config, data=replace(DATA, most_pixels=10**11))
        assert "memory: the largest photograph (100000.0 megapixels)" in found
        assert "memory" not in problems(config, ["train"], replace(DATA, most_pixels=10**11))


def test_memory_of_the_segmenter_s_maps() -> None:
    config = settings(
        prepare={"longest_side": None}, train={"backbone": {"name": "tiny", "pretrained": False, "output_stride": 8}}
    )
    large = replace(DATA, most_pixels=10**11)
    if available_memory():
        assert "processes of `evaluate`" in problems(config, ["evaluate"], large)
        assert problems(config, ["evaluate"], replace(large, scored=0)) == ""
    assert problems(config, ["evaluate"]) == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_batchnorm_over_ranks_needs_a_gpu() -> None:
    assert "`train.backbone.norm`: found sync" in problems(backbone(norm="sync"))
    assert problems(backbone(norm="sync"), ["seeds", "evaluate"]) == ""


def test_deepspeed_needs_a_launcher() -> None:
    config = settings(hardware={"deepspeed": "zero2"})
    assert "`hardware.deepspeed`: found zero2, which needs a launcher" in problems(config, ["train"], launched=False)
    assert "launcher" not in problems(config, ["seeds"], launched=False)
    assert "launcher" not in problems(config, ["train"])


def test_more_complements_than_other_classes() -> None:
    """Of background and one class a pixel has one other; where nothing is drawn it does not matter."""
    two = {"backbone": {"name": "tiny", "pretrained": False, "output_stride": 8}, "complements": 2}
    found = problems(settings(train=two), ["train"])
    assert found.startswith("train.complements: found 2, but there are 2 classes")
    assert problems(settings(train={**two, "noisy": "ignore"}), ["train"]) == ""
    assert problems(settings(train={**two, "complements": 1}), ["train"]) == ""


def test_complete_stages_need_nothing(tmp_path: Path) -> None:
    config = make_config(tmp_path, classify={"backbone": {"name": "no_net"}})
    assert "no_net" in problems(config, not_complete(config, STAGES))
    write_images(config, "train", 2)
    write_classifiers(config)
    left = not_complete(config, STAGES)
    assert left == ["seeds", "stats", "train", "evaluate", "report"]
    assert "no_net" not in problems(config, left)


def test_validate_data_lists_checks_and_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path)
    assert main(["config", "validate", "--data", "--config", str(path)]) == 0
    said = capsys.readouterr().out
    assert "split `train`: 12 photographs, " in said
    assert "plan:" in said
    assert "in all" in said
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "shards").exists()
    path = write_config(tmp_path, train={"backbone": {"name": "no_net"}})
    assert main(["config", "validate", "--data", "--config", str(path)]) == 2
    assert main(["config", "show", "--data", "--config", str(path)]) == 2


def test_run_refuses_before_it_prepares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, train={"backbone": {"name": "no_net"}})
    assert main(["run", "--config", str(path)]) == 2
    assert "no_net" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()
