"""What opens the page of a run with an ablation: figures as they were recorded, and what there is none of."""

from __future__ import annotations

from typing import Any

from distwsss.report.gallery import Row
from distwsss.report.opening import label_rows, segmenter_rows, simple


def quality(**changes: Any) -> dict[str, Any]:
    seeds = {"0.10-1.00": {"miou": 0.612}, "0.10-1.20": {"miou": 0.703}, "mean_cam": {"miou": 0.75}}
    lines = [{"t": t, "coverage": 1 - t / 10, "miou": 0.7 + t / 20} for t in (1, 2)]
    return {"seeds": seeds, "aggregate": {"miou": 0.741}, "threshold": 2, "thresholds": lines, **changes}


def test_the_best_seed_is_one_of_the_single_ones_and_differences_are_from_it() -> None:
    best, label, clean = label_rows(quality())
    assert best == ["best of 2 single seeds (0.10-1.20)", "train labels", "70.3", ""]
    assert label == ["label made of all of them", "train labels", "74.1", "+3.8"]
    assert clean == ["its clean pixels, 80.0% of all", "train labels", "80.0", "+9.7"]


def test_a_label_below_the_best_seed_is_said_to_be_below() -> None:
    assert label_rows(quality(aggregate={"miou": 0.603}))[1][2:] == ["60.3", "-10.0"]


def test_without_masks_there_are_no_figures_of_labels() -> None:
    assert label_rows(None) == []


def line(name: str, mean: float | None, difference: float | None = None, state: str = "complete") -> dict[str, Any]:
    compared = None if difference is None else {"value": difference}
    return {"name": name, "column": "multi_crf", "mean": mean, "difference": compared, "state": state}


def test_variants_are_named_in_words_and_compared_with_the_baseline() -> None:
    lines = [line("all_pixels", 0.5), line("hybrid", 0.6, 0.1), line("twin", None, state="not run")]
    assert segmenter_rows({"baseline": "all_pixels", "split": "val", "variants": lines}) == [
        ["segmenter: all pixels", "val, multi crf", "50.0", ""],
        ["segmenter: hybrid", "val, multi crf", "60.0", "+10.0 from all pixels"],
        ["segmenter: twin", "val, multi crf", "not run", ""],
    ]


def test_four_pictures_are_left_in_the_words_of_everyday() -> None:
    titles = ["photo", "seed 0.10-1.00", "pseudo-label", "votes", "clean (t = 2) / noisy", "prediction", "truth"]
    row = simple(Row("a", ["cat"], [(title, f"data:{title}") for title in titles]))
    assert [uri for _, uri in row.tiles] == ["data:photo", "data:pseudo-label", "data:prediction", "data:truth"]
    assert not {title for title, _ in row.tiles} & set(titles)
