"""The plot of a sweep: mIoU against alpha, and precision against coverage over t, a line for each label rule. Called by
`seeds.sweep_table`."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]


def plot(found: dict[str, Any]) -> bytes:
    """A PNG of what sweep.json holds; equal figures give equal bytes."""
    with matplotlib.rc_context({"font.size": 9, "axes.spines.right": False, "axes.spines.top": False}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _by_alpha(left, found["rows"])
        _by_coverage(right, found["rows"])
        figure.suptitle(f"{found['images']} photographs, labels from {found['cue']}", fontsize=10)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()


def lines_of(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each label rule, and of each CRF and normalisation where there are several, by alpha."""
    several = [key for key in ("crf", "normalise") if len({row[key] for row in rows}) > 1]
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["alpha"]):
        found.setdefault(", ".join(row[key] for key in ("label", *several)), []).append(row)
    return found


def _by_alpha(axes: Axes, rows: list[Row]) -> None:
    for name, line in lines_of(rows).items():
        axes.plot([row["alpha"] for row in line], [_percent(row["miou"]) for row in line], marker="o", label=name)
    best: dict[float, float] = {}
    for row in rows:
        best[row["alpha"]] = max(best.get(row["alpha"], 0.0), _percent(row["best_seed"]["miou"]))
    alphas = sorted(best)
    axes.plot(alphas, [best[alpha] for alpha in alphas], "k--", marker="x", linewidth=1, label="best single seed")
    axes.set_xscale("log", base=2)
    axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    axes.set(xlabel="alpha", ylabel="mIoU (%)")
    _finish(axes)


def _by_coverage(axes: Axes, rows: list[Row]) -> None:
    """Of each line the row of the highest mIoU."""
    for name, line in lines_of(rows).items():
        row = max(line, key=lambda row: row["miou"] or 0.0)
        points = [each for each in row["thresholds"] if each["precision"] is not None]
        coverage = [_percent(each["coverage"]) for each in points]
        axes.plot(coverage, [_percent(each["precision"]) for each in points], marker="o",
                  label=f"{name}, alpha {row['alpha']:g}")  # fmt: skip
        for each, x in zip(points, coverage, strict=True):
            axes.annotate(f"t={each['t']}", (x, _percent(each["precision"])), fontsize=7)
    axes.set(xlabel="coverage of clean pixels (%)", ylabel="their precision (%)")
    _finish(axes)


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
