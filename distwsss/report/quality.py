"""Tables of how good seeds, vote and clean pixels are, from run_dir/seeds/quality.json. Called by `report.html`."""

from __future__ import annotations

from typing import Any

from distwsss.evaluate.scores import percent
from distwsss.report import page


def facts(quality: dict[str, Any]) -> list[str]:
    """What the figures refer to."""
    lines = [f"List {quality['split']}: {quality['images']} images scored"]
    lines.append(f"Seeds that vote: {', '.join(quality['vote_on'])}")
    if quality["seeds"]:
        lines.append(f"The selection rule would keep: {', '.join(quality['selected'])}")
    return [page.paragraph(line, "quiet") for line in [*lines, *quality["notes"]]]


def seeds_table(quality: dict[str, Any]) -> list[str]:
    """IoU per class of each seed and of the vote, mIoU, and the share of pixels that agree with the masks."""
    columns = {**quality["seeds"], f"vote of {len(quality['vote_on'])}": quality["aggregate"]}
    rows = [["IoU (%)", *columns]]
    for number, name in enumerate(quality["classes"]):
        rows.append([name, *(percent(scores["iou"][number]) for scores in columns.values())])
    rows.append(["mIoU", *(percent(scores["miou"]) for scores in columns.values())])
    rows.append(["pixels that agree", *(percent(scores["agreement"]) for scores in columns.values())])
    return [*facts(quality), page.table(rows, totals=2, best=True)]


def threshold_table(quality: dict[str, Any]) -> list[str]:
    """For every t: mIoU of the clean pixels and their share, and agreement inside and across clean and noisy."""
    within = {
        "clean_agree": "agree, of clean",
        "noisy_disagree": "disagree, of noisy",
        "agree_clean": "clean, of agreeing",
        "disagree_noisy": "noisy, of disagreeing",
    }
    cells = {"a": "(a) agree, clean", "b": "(b) agree, noisy", "c": "(c) disagree, noisy", "d": "(d) disagree, clean"}
    rows = [["t", "mIoU of clean pixels", "coverage", *cells.values(), *within.values()]]
    for entry in quality["thresholds"]:
        here = " (pseudo-labels)" if entry["t"] == quality["threshold"] else ""
        shares = [*(entry["cells"][name] for name in cells), *(entry["within"][name] for name in within)]
        rows.append([f"{entry['t']}{here}", *map(percent, [entry["miou"], entry["coverage"], *shares])])
    note = "Clean: votes >= t. In percent; (a) to (d) are shares of all labelled pixels, against the masks."
    return [page.paragraph(note, "quiet"), page.table(rows)]
