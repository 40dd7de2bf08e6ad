"""What the runs of an ablation say together, from records written by hand: means, both kinds of spread, tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from distwsss.ablate.plan import Ablation, Row, plan_ablation
from distwsss.ablate.results import compared, record_of, remember_scored
from distwsss.ablate.tables import csv_text, latex_text, notes, table_rows
from distwsss.data.scoring import ImageCounts, write_image_counts
from distwsss.maths.bootstrap import drawn_images
from distwsss.maths.miou import ConfusionMatrix, class_counts
from distwsss.runtime.artifacts import write_json
from distwsss.runtime.layout import counts_file
from helpers.small import write_config

KEYS = [f"k{number}" for number in range(6)]


def counts(seed: int, right: float) -> np.ndarray:
    """uint32[6,3,3] of six images of 40 pixels, of which about so many are right."""
    rng, found = np.random.default_rng(seed), []
    for number in range(len(KEYS)):
        truth = np.random.default_rng(number).integers(0, 3, 40)
        matrix = ConfusionMatrix(3)
        matrix.update(np.where(rng.random(40) < right, truth, rng.integers(0, 3, 40)), truth)
        found.append(class_counts(matrix.matrix))
    return np.array(found, np.uint32)


def miou(summed: np.ndarray) -> float:
    hits, predicted, true = summed.astype(float)
    return float(np.mean(hits / (predicted + true - hits)))


def write_record(row: Row, of_images: np.ndarray, keys: list[str] = KEYS, **changes: Any) -> None:
    """As `evaluate` leaves it."""
    path, value = record_of(row), miou(of_images.sum(axis=0))
    record = {"split": "val", "images": len(keys), "scored": len(keys), "miou": {"single": value, "multi": 0.5}}
    record |= {"parameters": {"seed": row.seed}, "per_image": counts_file(path).name, **changes}
    write_image_counts(counts_file(path), ImageCounts(keys, {"single": of_images}))
    write_json(path, {name: value for name, value in record.items() if value is not None})


@pytest.fixture
def ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ablation:
    """`a` and the baseline `b` with two random seeds, `c` with one."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, paths={"run": None, "shards": None})
    variants = {"a": {"train.loss": "positive"}, "b": {}, "c_1": {"train.temperature": 1.0, "once": True}}
    tree = {"base": "tiny.yaml", "baseline": "b", "random_seeds": {"values": [0, 1]}, "variants": variants}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return plan_ablation(tmp_path / "own.yaml")


def scored(row: Row) -> bool:
    return record_of(row).is_file()


def fill(ablation: Ablation) -> dict[str, list[np.ndarray]]:
    """Records of all runs; returns their counts."""
    of = {
        variant.name: [counts(10 * number + row.seed, 0.5 + 0.1 * number) for row in variant.rows]
        for number, variant in enumerate(ablation.variants)
    }
    for variant in ablation.variants:
        for row, of_images in zip(variant.rows, of[variant.name], strict=True):
            write_record(row, of_images)
    return of


def lines(ablation: Ablation, **failures: str) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in compared(ablation, scored, failures)["variants"]}


def test_means_and_the_spread_over_random_seeds(ablation: Ablation) -> None:
    of, found = fill(ablation), lines(ablation)
    for name, runs in of.items():
        values = [miou(each.sum(axis=0)) for each in runs]
        assert found[name]["mean"] == pytest.approx(np.mean(values))
        assert found[name]["sd"] == (pytest.approx(np.std(values, ddof=1)) if len(values) > 1 else None)


def test_differences_are_of_the_means_and_their_intervals_of_the_same_images(ablation: Ablation) -> None:
    of, found = fill(ablation), lines(ablation)
    for name in ("a", "c_1"):
        drawn = [row for block in drawn_images(len(KEYS), 10_000, 0) for row in block][:2_000]
        each = [[np.mean([miou(run[row].sum(axis=0)) for run in of[n]]) for row in drawn] for n in (name, "b")]
        expected = np.subtract(*each)
        difference = found[name]["difference"]
        assert difference["value"] == pytest.approx(found[name]["mean"] - found["b"]["mean"])
        assert (difference["low"], difference["high"]) == pytest.approx(np.percentile(expected, [2.5, 97.5]), abs=0.01)
        assert difference["share_below"] == pytest.approx(np.mean(expected <= 0), abs=0.03)
    assert found["b"]["difference"] is None


def test_what_is_not_run_is_listed_so(ablation: Ablation) -> None:
    fill(ablation)
    record_of(ablation.variants[0].rows[1]).unlink()
    record_of(ablation.variants[2].rows[0]).unlink()
    found = lines(ablation, **{"c_1/0": "exit code 1: loss is nan"})
    assert (found["a"]["state"], found["b"]["state"]) == ("1 of 2 run", "complete")
    assert found["c_1"]["state"] == "failed: exit code 1: loss is nan"
    table = compared(ablation, lambda row: False, {})
    assert [line["state"] for line in table["variants"]] == ["not run"] * 3
    assert [row[2] for row in table_rows(table)[1:]] == ["not run"] * 3


def test_no_interval_without_counts_or_with_those_of_another_record(ablation: Ablation) -> None:
    of = fill(ablation)
    (first, second) = ablation.variants[0].rows
    write_record(first, of["a"][0], per_image=None)
    assert "from before counts of images were kept" in lines(ablation)["a"]["note"]
    write_record(first, of["a"][0], miou={"single": 0.123})
    found = lines(ablation)["a"]
    assert "the counts beside it are not its own" in found["note"]
    assert (found["interval"], found["difference"]) == (None, None)
    for row, of_images in zip((first, second), of["a"], strict=True):
        write_record(row, of_images, keys=[*KEYS[:-1], "other"])
    found = lines(ablation)["a"]
    assert found["note"].startswith("other images were scored")
    assert found["interval"] is not None
    assert found["difference"] is None


def test_a_column_that_was_not_recorded_is_named(ablation: Ablation) -> None:
    """Seeds whose shards were dropped, or a record made without CRF: the others are compared all the same."""
    of = fill(ablation)
    write_record(ablation.variants[0].rows[0], of["a"][0], miou={"multi": 0.5})
    found = lines(ablation)
    assert (found["a"]["state"], found["a"]["mean"]) == ("not run", None)
    assert found["a"]["note"] == "no mIoU of `single` was recorded on val"
    assert found["c_1"]["difference"] is not None


def test_looks_at_the_scored_images_are_counted_once_each(ablation: Ablation) -> None:
    fill(ablation)
    for _ in range(2):
        for row in ablation.rows():
            remember_scored(ablation, row)
    assert compared(ablation, scored, {})["scored"] == 5
    write_record(ablation.rows()[0], counts(0, 0.5), parameters={"evaluate": "other"})
    remember_scored(ablation, ablation.rows()[0])
    assert compared(ablation, scored, {})["scored"] == 6
    assert "scored in this ablation: val, 6 times" in notes(compared(ablation, scored, {}))


def test_tables_say_the_same_in_every_form(ablation: Ablation) -> None:
    fill(ablation)
    record_of(ablation.variants[2].rows[0]).unlink()
    table = compared(ablation, scored, {})
    first, line = table["variants"][0], table_rows(table)[1]
    difference = first["difference"]
    assert line == [
        *("a", "2 of 2", f"{100 * first['mean']:.2f}", f"{100 * first['sd']:.2f}"),
        f"{100 * first['interval']['low']:.2f} .. {100 * first['interval']['high']:.2f}",
        f"{100 * difference['value']:+.2f}",
        f"{100 * difference['low']:+.2f} .. {100 * difference['high']:+.2f}",
        f"{difference['share_below']:.3f}",
    ]
    written = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [row["variant"] for row in written] == ["a", "b", "c_1"]
    assert float(written[0]["difference_low"]) == difference["low"]
    assert (written[2]["miou"], written[2]["state"]) == ("", "not run")
    latex = latex_text(table)
    assert r"c\_1 & 0 of 1 (once) & not run &" in latex
    assert latex.count(r"\\") == 4
    assert r"images 95\%" in latex
