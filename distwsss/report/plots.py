"""Training curves as inline SVG. Called by `report.html`."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from distwsss.report.pictures import data_uri

Series = dict[str, list[tuple[float, float]]]


def series(metrics: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) wherever `name` was logged as a number."""
    return [(entry["step"], entry[name]) for entry in metrics if isinstance(entry.get(name), int | float)]


def line_plot(title: str, lines: Series) -> str:
    """A small chart of `lines` over the step, as a data: URI; equal lines give equal bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "distwsss", "font.size": 9, "axes.spines.right": False}):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.subplots()
        for name, points in lines.items():
            marker = "o" if len(points) < 12 else None
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=name, linewidth=1.3, marker=marker, markersize=3)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("step")
        axes.spines["top"].set_visible(False)
        axes.grid(alpha=0.25)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return data_uri(buffer.getvalue(), "image/svg+xml")
