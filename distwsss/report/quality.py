"""Tables of how good seeds, vote and clean pixels are, from what `seeds` and `stats` wrote. Called by `report.html`."""

from __future__ import annotations

from typing import Any

from distwsss.evaluate.stats import facts, seed_rows, threshold_notes, threshold_rows
from distwsss.report import page
from distwsss.seeds.labels import worst_first


def seeds_table(quality: dict[str, Any]) -> list[str]:
    """IoU per class of each seed and of the vote, mIoU, and the share of pixels that agree with the masks."""
    lines = [page.paragraph(line[0].upper() + line[1:], "quiet") for line in facts(quality)]
    return [*lines, page.table(seed_rows(quality), totals=2, best=True)]


def labels_table(labels: dict[str, Any]) -> list[str]:
    """For every class: the tagged photographs whose pseudo-label has no pixel of it."""
    rows = [[name, n, m] for name, n, m in worst_first(labels)]
    note = page.paragraph("Pseudo-labels in which a tagged class got no pixel, counted without masks.", "quiet")
    return [note, page.table([["class", "photographs without a pixel of it", "tagged with it"], *rows])]


def threshold_table(quality: dict[str, Any]) -> list[str]:
    """For every t: mIoU of the clean pixels and their share, and agreement inside and across clean and noisy."""
    lines = [page.paragraph(line[0].upper() + line[1:], "quiet") for line in threshold_notes(quality)]
    return [*lines, page.table(threshold_rows(quality))]
