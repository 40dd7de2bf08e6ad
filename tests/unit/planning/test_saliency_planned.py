"""The stage `saliency` in the plan of a run: only where it is asked for; what it needs, and what depends on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distwsss.cli import main
from distwsss.config import Config
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.pipeline import STAGES, stages_of
from distwsss.planning.checks import run_problems
from distwsss.planning.facts import DataFacts
from distwsss.planning.plan import complete_stages, make_plan
from distwsss.planning.remake import remake_lines
from distwsss.runtime.artifacts import write_json
from distwsss.runtime.layout import classifier_dir, done_file, images_dir
from distwsss.saliency.maps import make_saliency
from distwsss.train.task import classifier_task
from helpers.small import make_config

DATA = DataFacts(400, 0, 0, longest=500, pixels=187_500, most_pixels=250_000, classes={"cat": 400})


def prepared(tmp_path: Path) -> Config:
    """A run whose photographs are prepared, with a map of each in maps/ and classifiers that are to learn them."""
    maps, size = tmp_path / "maps", {"shapes": {"train": 4, "val": 0, "size": 32}}
    config = make_config(tmp_path, data=size, saliency={"folder": str(maps)}, classify={"saliency": {}})
    prepare(config)
    maps.mkdir()
    for number, key in enumerate(load_index(images_dir(config, "train"), "images").all().keys()):
        values = np.random.default_rng(number).integers(0, 255, (32, 32), np.uint8)
        Image.fromarray(values).save(maps / f"{key}.png")
    return config


def test_it_is_a_stage_only_where_maps_are_asked_for(tmp_path: Path) -> None:
    asked = make_config(tmp_path, saliency={"model": "u2netp"})
    assert stages_of(asked) == list(STAGES)
    assert stages_of(asked)[:3] == ["prepare", "saliency", "classify"]
    assert stages_of(make_config(tmp_path)) == [name for name in STAGES if name != "saliency"]


def test_the_plan_has_its_time(tmp_path: Path) -> None:
    asked = make_config(tmp_path, saliency={"model": "u2netp"})
    plan = make_plan(asked, stages_of(asked), DATA)
    assert 60 < plan.seconds("saliency") < 240  # 400 photographs of 0.4 s on one core
    assert any(line.split()[:2] == ["saliency", "about"] for line in plan.lines())
    bare = make_config(tmp_path)
    assert not any("saliency" in line for line in make_plan(bare, stages_of(bare), DATA).lines())


def test_the_verb_without_a_source_says_what_to_set(tiny_file, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["saliency", "--config", str(tiny_file())]) == 2
    assert "found neither `model` nor `folder`" in capsys.readouterr().err


def test_what_it_needs_is_looked_for_before_any_work(tmp_path: Path) -> None:
    gone = make_config(tmp_path, saliency={"folder": str(tmp_path / "gone")})
    assert f"saliency.folder: found no folder {tmp_path / 'gone'}" in "\n".join(run_problems(gone, ["saliency"], None))
    assert list(run_problems(gone, ["seeds"], None)) == []


def test_what_is_made_anew_with_other_maps(tmp_path: Path) -> None:
    config = prepared(tmp_path)
    assert remake_lines(config, False)["saliency"] == "to be made"
    make_saliency(config)
    assert complete_stages(config)["saliency"]
    for p in config.classify.dropouts:
        write_json(done_file(classifier_dir(config, p)), {"parameters": classifier_task(config, p).parameters})
    assert [remake_lines(config, False)[stage] for stage in ("prepare", "saliency", "classify")] == ["kept"] * 3
    path = next((tmp_path / "maps").iterdir())
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    lines = remake_lines(config, False)
    assert lines["saliency"] == "anew, as inputs.folder changed"
    assert lines["classify"].startswith("p = 0.10 anew, as saliency maps changed")
    make_saliency(config, remake=True)
    assert remake_lines(config, False)["saliency"] == "kept"
    assert remake_lines(config, False)["classify"].startswith("p = 0.10 anew, as saliency maps changed")
