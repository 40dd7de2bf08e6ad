"""What a sweep found: rows of setting x label rule, the best of them, two folds, as a table, JSON, CSV and a plot.
Called by `seeds.sweep`.

All shares are in 0..1 and None where undefined; texts say percent.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distwsss.data.holdout import halves
from distwsss.data.scoring import ImageCounts, write_image_counts
from distwsss.data.shards.format import name_from_key
from distwsss.maths.bootstrap import Interval, paired_bootstrap
from distwsss.maths.miou import miou_of
from distwsss.runtime.artifacts import write_bytes, write_json
from distwsss.runtime.progress import print_table, say
from distwsss.seeds.sweep_chunk import Setting, column, thresholds

Column = tuple[str, str]  # a setting's name and a column of its counts


@dataclass(frozen=True)
class Sweep:
    """`counts`: setting's name -> those of the images, of all settings the same; `seeds`: the names of those scored
    alone; `voters`: how many vote; `labels`: the rules asked for."""

    classes: list[str]
    settings: list[Setting]
    labels: tuple[str, ...]
    seeds: list[str]
    voters: int
    counts: dict[str, ImageCounts]

    @property
    def keys(self) -> list[str]:
        return next(iter(self.counts.values())).keys

    def of(self, place: Column) -> np.ndarray:
        """uint32[I,3,K] of one column under one setting."""
        return self.counts[place[0]].columns[place[1]]

    def rows(self) -> list[tuple[Setting, str]]:
        return [(setting, label) for setting in self.settings for label in self.labels]

    def best(self, places: list[Column], images: np.ndarray | slice = slice(None)) -> Column:
        """The one of the highest mIoU on `images`, the first of equals; where none has any it is the first."""
        return max(places, key=lambda place: _known(_miou(self.of(place)[images])))

    def best_label(self, images: np.ndarray | slice = slice(None)) -> Column:
        return self.best([(setting.name, column(label)) for setting, label in self.rows()], images)

    def best_seed(self, images: np.ndarray | slice = slice(None), settings: list[Setting] | None = None) -> Column:
        return self.best([(each.name, seed) for each in settings or self.settings for seed in self.seeds], images)


def _miou(counts: np.ndarray) -> float:
    """Of images [I,3,K] together."""
    return float(miou_of(counts.sum(axis=0, dtype=np.int64)))


def _known(value: float) -> float:
    return -1.0 if math.isnan(value) else value


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _clean(sweep: Sweep, setting: Setting, label: str, t: int) -> dict[str, Any]:
    """Coverage: share of the labelled pixels that are clean at t; precision: share of these that agree with the
    masks."""
    everything = sweep.of((setting.name, column(label))).sum(axis=0, dtype=np.int64)
    clean = sweep.of((setting.name, column(label, t))).sum(axis=0, dtype=np.int64)
    pixels, labelled = clean[2].sum(), everything[2].sum()
    return {
        "t": t,
        "coverage": float(pixels / labelled) if labelled else None,
        "precision": float(clean[0].sum() / pixels) if pixels else None,
        "miou": _or_none(float(miou_of(clean))),
    }


def _row(sweep: Sweep, setting: Setting, label: str) -> dict[str, Any]:
    seed = sweep.best_seed(settings=[setting])
    return {
        **{"crf": setting.crf, "normalise": setting.normalise, "alpha": setting.alpha, "label": label},
        "miou": _or_none(_miou(sweep.of((setting.name, column(label))))),
        "best_seed": {"name": seed[1], "miou": _or_none(_miou(sweep.of(seed)))},
        "thresholds": [_clean(sweep, setting, label, t) for t in thresholds(sweep.voters)],
    }


def _against(label: np.ndarray, seed: np.ndarray) -> dict[str, Any]:
    """Label minus seed, of the same images."""
    interval: Interval = paired_bootstrap(label, seed)
    return {"seed_miou": _or_none(_miou(seed)), "difference": {k: _or_none(v) for k, v in asdict(interval).items()}}


def two_folds(sweep: Sweep) -> dict[str, Any]:
    """The row, and the seed, chosen on one half of the images and scored on the other, and the reverse; both halves'
    counts together are one figure. Beside it the best seed of the scored half, which one knows only afterwards."""
    first, second = (np.array([key in half for key in sweep.keys]) for half in halves(set(sweep.keys)))
    folds, found = [], []
    for chosen_on, scored in ((first, second), (second, first)):
        label, seed, after = sweep.best_label(chosen_on), sweep.best_seed(chosen_on), sweep.best_seed(scored)
        found.append([sweep.of(place)[scored] for place in (label, seed, after)])
        names = {"label": " ".join(label), "seed": " ".join(seed), "best_seed_afterwards": " ".join(after)}
        folds.append({"chosen_on": int(chosen_on.sum()), "scored_on": int(scored.sum()), **names})
    labels, seeds, afterwards = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return {
        "folds": folds,
        "miou": _or_none(_miou(labels)),
        "against_chosen_seed": _against(labels, seeds),
        "against_best_seed_afterwards": _against(labels, afterwards),
    }


def describe(sweep: Sweep, folds: bool) -> dict[str, Any]:
    """What sweep.json holds of the figures."""
    label, seed = sweep.best_label(), sweep.best_seed()
    places = [(setting.name, column(rule)) for setting, rule in sweep.rows()]
    return {
        "images": len(sweep.keys),
        "ids": [name_from_key(key) for key in sweep.keys],
        "classes": sweep.classes,
        "rows": [_row(sweep, *row) for row in sweep.rows()],
        "best": {"row": places.index(label), "seed": " ".join(seed), **_against(sweep.of(label), sweep.of(seed))},
        "folds": two_folds(sweep) if folds else None,
    }


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def table(found: dict[str, Any]) -> list[list[str]]:
    """Heading, and a line for each row; `*` marks the best."""
    ts = [each["t"] for each in found["rows"][0]["thresholds"]]
    head = ["best", "crf", "normalise", "alpha", "label", "mIoU", "best seed", "its mIoU"]
    rows = [[*head, *(f"t={t} {what}" for t in ts for what in ("coverage", "precision", "mIoU"))]]
    for number, row in enumerate(found["rows"]):
        seed = row["best_seed"]
        mark = "*" if number == found["best"]["row"] else ""
        cells = [mark, row["crf"], row["normalise"], f"{row['alpha']:g}", row["label"], percent(row["miou"])]
        clean = [percent(each[what]) for each in row["thresholds"] for what in ("coverage", "precision", "miou")]
        rows.append([*cells, seed["name"], percent(seed["miou"]), *clean])
    return rows


def _difference(found: dict[str, Any]) -> str:
    low, value, high = (found["difference"][name] for name in ("low", "value", "high"))
    if None in (low, value, high):
        return f"{percent(found['seed_miou'])} (too few photographs for an interval)"
    return f"{percent(found['seed_miou'])}, difference {100 * value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def lines(found: dict[str, Any]) -> list[str]:
    """What is said below the table."""
    best, row = found["best"], found["rows"][found["best"]["row"]]
    said = [
        f"in percent, labels from {found['cue']}; clean pixels: at least t of {len(found['vote_on'])} seeds agree",
        f"* the best of these {found['images']} photographs, chosen and scored on the same ones: {row['label']} "
        f"{percent(row['miou'])}; best single seed {best['seed']} {_difference(best)} (95% interval over photographs)",
    ]
    if found["folds"]:
        folds = found["folds"]
        said.append(f"two folds, chosen on one half and scored on the other: {percent(folds['miou'])}")
        said.append(f"  best single seed of the half chosen on: {_difference(folds['against_chosen_seed'])}")
        said.append(
            "  best single seed of the scored half, known only afterwards: "
            f"{_difference(folds['against_best_seed_afterwards'])}"
        )
        said += [
            f"  chosen on {fold['chosen_on']}, scored on {fold['scored_on']}: {fold['label']}; seed {fold['seed']}"
            for fold in folds["folds"]
        ]
    return said


def write_sweep(folder: Path, sweep: Sweep, about: dict[str, Any], folds: bool) -> dict[str, Any]:
    """Prints and writes everything; returns what sweep.json holds, `about` included."""
    from distwsss.seeds.sweep_plot import plot  # matplotlib takes a second

    found = {**about, **describe(sweep, folds), "per_image": "sweep.counts.npz"}
    rows = table(found)
    columns = {f"{name} {key}": values for name, each in sweep.counts.items() for key, values in each.columns.items()}
    write_image_counts(folder / "sweep.counts.npz", ImageCounts(sweep.keys, columns))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_bytes(folder / "sweep.csv", text.getvalue().encode())
    write_bytes(folder / "sweep.png", plot(found))
    write_json(folder / "sweep.json", found)
    print_table(rows)
    say("\n".join(["", *lines(found), f"Written to {folder}: sweep.json, sweep.csv, sweep.png, sweep.counts.npz"]))
    return found
