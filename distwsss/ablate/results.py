"""What the runs of an ablation say together: means, both kinds of spread, differences. Called by `ablate.runs`.

Two kinds of spread stand apart. *Over the random seeds*: the standard deviation of the mIoUs of the runs of a variant.
*Over the images*: intervals of the bootstrap (`maths.bootstrap`), in which every resample averages the mIoUs of the
same runs, so that a difference is exactly that of the two means.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distwsss.ablate.plan import Ablation, Row, Variant
from distwsss.data.scoring import AGGREGATE, CLEAN, ImageCounts, read_image_counts
from distwsss.errors import DataError
from distwsss.maths.bootstrap import LEVEL, RESAMPLES, bootstrap, paired_bootstrap
from distwsss.maths.miou import miou_of
from distwsss.runtime.artifacts import fingerprint, read_json, write_json
from distwsss.runtime.layout import HELD_OUT, ablation_files, evaluation_file, quality_file

Table = dict[str, Any]


def record_of(row: Row) -> Path:
    """Where the scores of a run are."""
    if row.score == "train":
        return quality_file(row.config)
    return evaluation_file(row.config, HELD_OUT if row.score == "held_out" else "val")


def remember_scored(ablation: Ablation, row: Row) -> None:
    """Count one look at the scored images, each record once: what is chosen by many looks at them is chosen on them."""
    path, record = ablation_files(ablation.folder)["scored"], read_json(record_of(row))
    known, label = read_json(path) if path.is_file() else {}, row.label(ablation.folder)
    found = {"run": label, "split": record["split"], "images": record.get("scored", record["images"])}
    key = fingerprint([label, record["parameters"]])
    if key not in known:
        write_json(path, {**known, key: found})


def compared(ablation: Ablation, is_complete: Callable[[Row], bool], failures: dict[str, str]) -> Table:
    """Everything that the tables show, JSON-ready; mIoU in 0..1, None where nothing was run.

    ablation, score, baseline, random_seeds, split, images, ids (of the images scored, of the baseline's or else the
    first variant's), scored (how often these images were), resamples, level, variants: [{name, column, once, wanted,
    miou: {random seed: mIoU}, mean, sd (None for one run), interval: {low, high}, difference: {value, low, high,
    share_below}, state, note}].
    """
    baseline = ablation.baseline()
    found = {v.name: _Runs(ablation, v, [row for row in v.rows if is_complete(row)]) for v in ablation.variants}
    known = next((runs for runs in (found[baseline.name], *found.values()) if runs.records), None)
    scored = ablation_files(ablation.folder)["scored"]
    return {
        "ablation": ablation.file.name,
        "score": ablation.file.score,
        "baseline": baseline.name,
        "random_seeds": ablation.file.random_seeds.model_dump(),
        "split": known and known.records[0]["split"],
        "images": known and known.records[0].get("scored", known.records[0]["images"]),
        "ids": known.counts[0].keys if known and known.counts else None,
        "scored": len(read_json(scored)) if scored.is_file() else 0,
        "resamples": RESAMPLES,
        "level": LEVEL,
        "variants": [_line(runs, found[baseline.name], failures) for runs in found.values()],
    }


class _Runs:
    """The complete runs of a variant: their records, and the counts of each image where all of them have any."""

    def __init__(self, ablation: Ablation, variant: Variant, rows: list[Row]) -> None:
        self.variant, self.folder, self.rows = variant, ablation.folder, rows
        self.records = [read_json(record_of(row)) for row in rows]
        self.miou: list[float] = []
        self.counts: list[ImageCounts] = []
        self.note = ""
        try:
            self.miou = [_miou(record, variant.column) for record in self.records]
            each = zip(map(record_of, rows), self.records, self.miou, strict=True)
            self.counts = [_counts(*one, variant.column) for one in each]
        except DataError as error:
            self.note = str(error)

    def stacked(self) -> np.ndarray:
        """[S,I,3,K] of the variant's column."""
        return np.stack([counts.columns[self.variant.column] for counts in self.counts])


def _miou(record: dict[str, Any], column: str) -> float:
    """Raises DataError where the record has none of that column."""
    if "thresholds" not in record:  # of `evaluate`
        value = record["miou"].get(column)
    elif column == AGGREGATE:
        value = record["aggregate"]["miou"]
    elif column == CLEAN:
        value = next(row["miou"] for row in record["thresholds"] if row["t"] == record["threshold"])
    else:
        value = record["seeds"].get(column, {}).get("miou")
    if value is None:
        raise DataError(f"no mIoU of `{column}` was recorded on {record['split']}")
    return float(value)


def _counts(path: Path, record: dict[str, Any], miou: float, column: str) -> ImageCounts:
    """Raises DataError where there are none, or where they are not those of the record."""
    if "per_image" not in record:
        raise DataError(f"{path}: from before counts of images were kept: no interval")
    counts = read_image_counts(path.parent / record["per_image"])
    if column not in counts.columns or abs(miou_of(counts.columns[column].sum(axis=0, dtype=np.int64)) - miou) > 1e-9:
        raise DataError(f"{path}: the counts beside it are not its own: no interval")
    return counts


def _line(runs: _Runs, baseline: _Runs, failures: dict[str, str]) -> Table:
    variant, number = runs.variant, len(runs.miou)
    failed = [failures[label] for row in variant.rows if (label := row.label(runs.folder)) in failures]
    state = (
        "complete" if number == len(variant.rows) else f"{number} of {len(variant.rows)} run" if number else "not run"
    )
    line: Table = {
        "name": variant.name,
        "column": variant.column,
        "once": variant.once,
        "wanted": len(variant.rows),
        "miou": {str(row.seed): miou for row, miou in zip(runs.rows, runs.miou, strict=bool(runs.miou))},
        "mean": statistics.fmean(runs.miou) if number else None,
        "sd": statistics.stdev(runs.miou) if number > 1 else None,
        "interval": None,
        "difference": None,
        "state": f"failed: {failed[0]}" if failed else state,
        "note": runs.note,
    }
    if not runs.counts:
        return line
    interval = bootstrap(runs.stacked())
    line["interval"] = {"low": interval.low, "high": interval.high}
    if runs is baseline or not baseline.counts:
        return line
    if any(counts.keys != baseline.counts[0].keys for counts in (*runs.counts, *baseline.counts)):
        return {**line, "note": "other images were scored than the baseline's: not compared"}
    return {**line, "difference": asdict(paired_bootstrap(runs.stacked(), baseline.stacked()))}
