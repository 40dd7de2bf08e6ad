"""An ablation's comparison as text, CSV, LaTeX and JSON. Called by `ablate.runs`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from distwsss.data.scoring import CLEAN
from distwsss.errors import counted
from distwsss.runtime.artifacts import write_bytes, write_json
from distwsss.runtime.layout import ablation_files
from distwsss.runtime.progress import print_table, say

Table = dict[str, Any]
HEADING = ("variant", "runs", "mIoU", "sd", "images 95%", "difference", "images 95%", "<= 0")
CSV_HEADING = (
    *("variant", "column", "runs", "wanted", "state", "miou", "sd", "low", "high"),
    *("difference", "difference_low", "difference_high", "share_below"),
)
SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": "$<$"},
}


def write_tables(table: Table, folder: Path) -> None:
    """table.csv, table.tex and table.json in `folder`, and the text on stdout. table: as `ablate.results` makes it."""
    files = ablation_files(folder)
    write_json(files["json"], table)
    write_bytes(files["csv"], csv_text(table).encode())
    write_bytes(files["tex"], latex_text(table).encode())
    say(f"ablate: {heading(table)}")
    print_table(table_rows(table))
    for note in notes(table):
        say(f"note: {note}")
    say(f"{folder}: table.csv, table.tex, table.json")


def heading(table: Table) -> str:
    """What the figures are of."""
    what = "mIoU (%) of the labels" if table["score"] == "train" else "mIoU (%) of the segmenter"
    where = (
        f"list {table['split']}: {counted(table['images'], 'image')} scored" if table["split"] else "nothing scored yet"
    )
    return f"{table['ablation']}: {what}, {where}; compared with {table['baseline']}"


def table_rows(table: Table) -> list[list[str]]:
    """HEADING and a row for each variant, in percent. Of what has no run: why, in the place of its mIoU."""
    columns = len({line["column"] for line in table["variants"]}) > 1
    rows = [[*HEADING[:1], *(["column"] if columns else []), *HEADING[1:]]]
    for line in table["variants"]:
        difference = line["difference"] or {}
        runs = f"{len(line['miou'])} of {line['wanted']}{' (once)' if line['once'] else ''}"
        state = line["state"].partition(":")[0]
        mean = state if line["mean"] is None else _percent(line["mean"])
        share = difference.get("share_below")
        rows.append([
            *(line["name"], *([line["column"]] if columns else []), runs, mean, _percent(line["sd"])),
            *(_between(line["interval"]), _percent(difference.get("value"), "+"), _between(difference, "+")),
            "" if share is None else f"{share:.3f}",
        ])  # fmt: skip
    return rows


def notes(table: Table) -> list[str]:
    """What a reader must know not to misread the table."""
    key = table["random_seeds"]["key"]
    where = {"val": "val", "train": "masks of train", "held_out": "held-out train ids"}[table["score"]]
    lines = [
        f"mIoU is the mean of the runs, sd their standard deviation over the random seeds ({key})",
        f"images {100 * table['level']:g}%: of {table['resamples']} resamples of the images, the same for both where "
        "two are compared; other random seeds are not in it. <= 0: share of resamples without a gain",
        f"scored in this ablation: {where}, {counted(table['scored'], 'time')}",
    ]
    if any(line["column"] == CLEAN for line in table["variants"]):
        lines.append("clean: of the clean pixels alone, which are fewer and easier")
    if any(line["once"] for line in table["variants"]):
        lines.append("once: run with the first random seed alone")
    own = {line["name"]: line["note"] or line["state"] for line in table["variants"]}
    return [*lines, *(f"{name}: {text}" for name, text in own.items() if text not in ("complete", "not run"))]


def csv_text(table: Table) -> str:
    """CSV_HEADING and a row for each variant; figures as shares in 0..1, empty where there is none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADING)
    for line in table["variants"]:
        interval, difference = line["interval"] or {}, line["difference"] or {}
        said = [
            line["name"],
            line["column"],
            len(line["miou"]),
            line["wanted"],
            line["state"],
            line["mean"],
            line["sd"],
        ]
        said += [interval.get("low"), interval.get("high")]
        writer.writerow([*said, *(difference.get(key) for key in ("value", "low", "high", "share_below"))])
    return buffer.getvalue()


def latex_text(table: Table) -> str:
    """A tabular of `table_rows`, with heading and notes as comments: no package is needed."""
    rows = [" & ".join(map(_escaped, row)) + r" \\" for row in table_rows(table)]
    columns = "l" + "r" * rows[0].count(" & ")
    said = [f"% {line}" for line in (heading(table), *notes(table))]
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([*said, begin, r"\hline", rows[0], r"\hline", *rows[1:], r"\hline", end, ""])


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.2f}"


def _between(interval: dict[str, float] | None, sign: str = "") -> str:
    return f"{_percent(interval['low'], sign)} .. {_percent(interval['high'], sign)}" if interval else ""


def _escaped(cell: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in cell)
