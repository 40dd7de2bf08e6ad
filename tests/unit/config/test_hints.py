"""What is said of keys and words that are almost right."""

from __future__ import annotations

from pathlib import Path

import pytest

from distwsss import pipeline
from distwsss.config.load import check_config, load_config
from distwsss.errors import ConfigError, DataError
from helpers.small import write_config


def said(tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(tmp_path), None, list(overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("duration", "`classify.optim.duration` or `train.optim.duration`"),
        ("lr", "`classify.optim.lr` or `train.optim.lr`"),
        ("optim.lr", "`classify.optim` or `train.optim`"),
        ("train.lr", "`train.optim.lr`"),
        ("train.optm.lr", "`optim`"),
        ("train.durtion", "`classify.optim.duration` or `train.optim.duration`"),
        ("loader_worker", "`hardware.loader_workers`"),
        ("root", "`data.root`"),
        ("classfy.dropouts", "`classify`"),
        ("train.backbone.nmae", "`name`"),
        ("seeds.normalize", "`normalise`"),
    ],
)
def test_a_key_that_is_elsewhere_or_mistyped(tmp_path: Path, key: str, meant: str) -> None:
    assert f"unknown key; did you mean {meant}?" in said(tmp_path, f"{key}=1")


def test_a_key_that_is_like_none_is_answered_with_those_beside_it(tmp_path: Path) -> None:
    assert "`report.zzz`: unknown key; allowed: images" in said(tmp_path, "report.zzz=1")


@pytest.mark.parametrize("value", ["20", '"20"', "20 eopchs", "20e"])
@pytest.mark.parametrize(
    ("key", "allowed"),
    [("train.optim.duration", "`20000 steps` or `20 epochs`;"), ("train.optim.save_every", "`20 epochs` or `10%`;")],
)
def test_a_duration_without_its_unit(tmp_path: Path, key: str, allowed: str, value: str) -> None:
    text = said(tmp_path, f"{key}={value}")
    assert f"{allowed} did you mean `20 epochs` or `20 steps`?" in text
    assert "valid string" not in text


@pytest.mark.parametrize(("typed", "meant"), [("atuo", "auto"), ("Auto", "auto"), ("nver", "never"), ("mus", "must")])
def test_a_mistyped_resume_is_no_path(typed: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"--resume {typed}: .*one of auto, must, never; did you mean `{meant}`"):
        pipeline.Options(resume=typed)


def test_a_resume_that_is_a_folder_may_be_called_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "atuo").mkdir()
    monkeypatch.chdir(tmp_path)
    for resume in ("atuo", "runs/other/train/checkpoints/step-00000010", "auto", "must", "never"):
        assert pipeline.Options(resume=resume).resume == resume


def test_a_missing_folder_says_what_it_is_relative_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for root, expected in (("pictures", f"(relative to the folder where the command was started, {tmp_path})"),
                           (str(tmp_path / "pictures"), "pictures; use")):  # fmt: skip
        config = check_config({"name": "n", "data": {"dataset": "folder", "root": root}})
        with pytest.raises(DataError) as caught:
            pipeline.prepare(config)
        assert expected in str(caught.value)


def test_one_seed_votes(tmp_path: Path) -> None:
    assert "only 1 seed votes; allowed: 1..1" in said(tmp_path, "seeds.vote_on=[0.10-1.00]", "seeds.threshold=2")
