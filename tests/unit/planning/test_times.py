"""The rules for times: more work takes longer, a GPU is faster, and they agree with what was measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distwsss.config.load import check_config
from distwsss.config.schema import Config
from distwsss.planning.facts import DataFacts, MachineFacts
from distwsss.planning.plan import Plan
from distwsss.planning.times import RULES, stage_times
from distwsss.runtime.artifacts import read_json
from distwsss.runtime.layout import times_file

DATA = DataFacts(400, 100, 400, longest=500, pixels=187_500, most_pixels=250_000, classes={"cat": 300, "dog": 300})
CPU = MachineFacts(cores=2, memory=16)
GPU = replace(CPU, gpus=1, gpu_memory=80, gpu="NVIDIA A100-SXM4-80GB")
NETWORKS = ("classify", "seeds", "train", "evaluate")


def settings(**sections: Any) -> Config:
    return check_config({"name": "n", "data": {"dataset": "folder", "root": "pictures"}, **sections})


@pytest.mark.parametrize("name", [name for name in RULES if name != "report"])
def test_more_photographs_take_longer(name: str) -> None:
    more = replace(DATA, photographs=4000, scored=1000, masks=4000)
    epochs = {"optim": {"duration": "20 epochs"}}
    config = settings(classify=epochs, train=epochs, saliency={"model": "u2netp"})
    assert stage_times(config, more, CPU)[name] > 2 * stage_times(config, DATA, CPU)[name]


@pytest.mark.parametrize("name", ["prepare", "seeds", "stats", "evaluate"])
def test_larger_photographs_take_longer(name: str) -> None:
    large = replace(DATA, longest=4000, pixels=12_000_000, most_pixels=12_000_000)
    config = settings(prepare={"longest_side": None})
    assert stage_times(config, large, CPU)[name] > 5 * stage_times(config, DATA, CPU)[name]
    if name in ("seeds", "evaluate"):  # which see them shrunk
        assert 0.9 < stage_times(settings(), large, CPU)[name] / stage_times(settings(), DATA, CPU)[name] < 1.1


@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_is_faster_and_cores_help(name: str) -> None:
    config = settings(classify={"backbone": {"name": "resnet101", "output_stride": 8}},
                      train={"backbone": {"name": "resnet101", "output_stride": 8}})  # fmt: skip
    on_cpu, on_gpu = stage_times(config, DATA, CPU), stage_times(config, DATA, GPU)
    assert on_gpu[name] < on_cpu[name]
    assert stage_times(config, DATA, replace(CPU, cores=16))[name] <= on_cpu[name]
    told = settings(**{"hardware": {"device": "cpu"}, **config.model_dump(include={"classify", "train"})})
    assert stage_times(told, DATA, GPU) == stage_times(told, DATA, CPU)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "resnet38", "densenet121"])
def test_every_backbone_has_a_time(name: str) -> None:
    lite = stage_times(settings(), DATA, CPU)["classify"]
    backbone = {"name": name, "pretrained": False, "output_stride": 8}
    assert stage_times(settings(classify={"backbone": backbone}), DATA, CPU)["classify"] > lite


def test_more_steps_seeds_and_scales_take_longer() -> None:
    few = settings(classify={"dropouts": [0.1]}, seeds={"scales": [1.0]}, train={"optim": {"duration": "100 steps"}})
    many = settings(train={"optim": {"duration": "20000 steps"}})
    low, high = stage_times(few, DATA, CPU), stage_times(many, DATA, CPU)
    assert high["classify"] > 3 * low["classify"]
    assert high["seeds"] > 3 * low["seeds"]
    assert high["train"] > 50 * low["train"]


def test_twenty_thousand_steps_of_lite_take_what_was_measured() -> None:
    """Of 10 crops of 448 pixels: about 45 core-hours."""
    optim = {"duration": "20000 steps", "global_batch": 10}
    section = {"backbone": {"name": "lite", "output_stride": 16}, "augment": {"crop": 448}, "optim": optim}
    hours = stage_times(settings(train=section), DATA, replace(CPU, cores=1))["train"] / 3600
    assert 45 / 2 < hours < 45 * 2


def test_no_network_is_built() -> None:
    before = {name for name in sys.modules if name.startswith("timm")}
    stage_times(settings(), DATA, CPU)
    assert {name for name in sys.modules if name.startswith("timm")} == before


def test_a_measured_stage_corrects_those_of_its_kind(tmp_path: Path) -> None:
    config = settings(paths={"run": str(tmp_path)})
    names = ["classify", "seeds", "train"]
    plan = Plan(config, names, {"classify": 1e-6, "seeds": 100.0, "train": 200.0}, dict.fromkeys(names, False))
    assert plan.total() == pytest.approx(300)
    assert "train" in "".join(plan.lines())
    plan = Plan(config, names, {"classify": 0.1, "seeds": 100.0, "train": 200.0}, dict.fromkeys(names, False))
    with plan.stage("classify"):
        sum(range(3_000_000))
    measured = read_json(times_file(config))["classify"]
    assert measured["expected"] == pytest.approx(0.1)
    assert plan.seconds("train") == pytest.approx(200 * measured["seconds"] / 0.1)
    assert plan.seconds("seeds") == 100
    again = Plan(config, names, plan.rules, {"classify": True, "seeds": False, "train": False})
    assert again.seconds("classify") == 0
    assert again.seconds("train") == plan.seconds("train")
    assert "complete" in "".join(again.lines())
