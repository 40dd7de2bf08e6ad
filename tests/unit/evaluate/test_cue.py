"""Every report says what the labels were made of: tags, tags and saliency, or masks."""

from __future__ import annotations

from pathlib import Path

import pytest

from distwsss.config import Config
from distwsss.evaluate.evaluate import evaluate
from distwsss.evaluate.scores import describe_checkpoint
from distwsss.evaluate.stats import print_quality, seed_quality
from distwsss.models.export import from_pretrained, save_pretrained
from distwsss.report.html import write_report
from distwsss.runtime.artifacts import read_json
from distwsss.runtime.layout import evaluation_file
from distwsss.train.task import segmenter_task
from helpers.small import make_config, write_images, write_pseudo, write_segmenter

CUE = "tags + saliency (u2netp)"
SALIENCY = {"saliency": {"model": "u2netp"}, "seeds": {"saliency_unary": True, "threshold": None}}


def scored(folder: Path, **sections: object) -> Config:
    """A run with pseudo-labels and a segmenter, four photographs of each split."""
    config = make_config(folder, evaluate={"crf": None, "scales": [1.0]}, report={"images": 0}, **sections)
    for role in ("train", "val"):
        write_images(config, role, 4)
    write_pseudo(config, threshold=config.vote_threshold(), vote_on=config.voting_seeds())
    write_segmenter(config)
    return config


def test_reports_say_the_cue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = scored(tmp_path, **SALIENCY)
    evaluate(config)
    assert read_json(evaluation_file(config, "val"))["cue"] == CUE
    assert f"\nlearned from {CUE}\n" in capsys.readouterr().out
    quality = seed_quality(config)
    print_quality(quality)
    assert quality["cue"] == CUE
    assert f"\nmade from {CUE}\n" in capsys.readouterr().out
    page = write_report(config).read_text(encoding="utf-8")
    header = page[page.index("<h1>") : page.index("<section>")]
    assert f"Learned from {CUE}. The saliency maps come from a network that was trained with masks." in header


def test_without_saliency_it_is_tags_and_of_masks_it_is_masks(tmp_path: Path) -> None:
    config = scored(tmp_path)
    assert evaluate(config)["cue"] == seed_quality(config)["cue"] == "tags"
    assert make_config(tmp_path, train={"labels": "truth"}, **SALIENCY).training_cue() == "masks"


def test_a_segmenter_carries_its_cue_to_other_runs(tmp_path: Path) -> None:
    model = segmenter_task(scored(tmp_path / "a", **SALIENCY)).model
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    save_pretrained(model, folder)
    assert from_pretrained(folder).cue == CUE
    assert describe_checkpoint(make_config(tmp_path / "b"), folder)["cue"] == CUE
