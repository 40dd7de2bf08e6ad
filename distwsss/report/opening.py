"""What opens the page of a run that names an ablation: what each part brings, in one table, and six photographs for
whoever reads nothing else. Called by `report.html`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distwsss.config.schema import Config
from distwsss.config.stages import MEANS
from distwsss.data.images import voc_palette
from distwsss.data.shards.index import ShardIndex
from distwsss.errors import DataError
from distwsss.evaluate.scores import percent
from distwsss.inference.segmenter import Segmenter
from distwsss.report import page
from distwsss.report.gallery import Row, gallery
from distwsss.runtime.artifacts import read_json
from distwsss.runtime.layout import ablation_files

PHOTOGRAPHS = 6
TILES = {
    "photo": "the photograph",
    "pseudo-label": "label made of its tags",
    "prediction": "what the segmenter says",
    "truth": "the truth",
}


def opening(
    config: Config,
    images: ShardIndex | None,
    pseudo: ShardIndex | None,
    quality: dict[str, Any] | None,
    segmenter: Segmenter | None,
) -> list[str]:
    """The section, or none where `report.ablation` is null. Without the ablation's table the page says that it was not
    run. Raises DataError for a table of other columns."""
    if config.report.ablation is None:
        return []
    parts = [page.paragraph("Only image-level tags were given: which classes are in a photograph, not where.")]
    parts.append(page.table([["what", "of", "mIoU (%)", "difference"], *label_rows(quality), *_segmenters(config)]))
    path = ablation_table(config)
    if not path.is_file():
        parts.append(page.missing(f"ablate (its table is looked for in {config.report.ablation})"))
    if images is not None:
        rows = [simple(row) for row in gallery(config, images, None, pseudo, segmenter, PHOTOGRAPHS)]
        palette = voc_palette()
        parts.append(page.swatches([(name, palette[number].tolist()) for number, name in enumerate(images.classes)]))
        parts += [
            f'<div class="row">{page.paragraph("tags: " + ", ".join(row.labels))}{page.figures(row.tiles)}</div>'
            for row in rows
        ]
    return [page.section("What each part brings", *parts)]


def ablation_table(config: Config) -> Path:
    assert config.report.ablation is not None
    return ablation_files(Path(config.report.ablation).absolute())["json"]


def label_rows(quality: dict[str, Any] | None) -> list[list[str]]:
    """Best single seed (known by the masks only), the label made of all, and its clean pixels, on the train
    photographs; the difference is from the single seed. `quality` is what `stats` found."""
    if quality is None:
        return []
    scores = {name: quality["seeds"][name]["miou"] for name in quality["seeds"] if name not in MEANS}
    best = max(scores, key=lambda name: scores[name] or 0.0)
    label = quality["aggregate"]["miou"]
    rows = [[f"best of {len(scores)} single seeds ({best})", "train labels", percent(scores[best]), ""]]
    rows.append(["label made of all of them", "train labels", percent(label), _signed(label, scores[best])])
    for line in quality["thresholds"]:
        if line["t"] == quality["threshold"]:
            what = f"its clean pixels, {percent(line['coverage'])}% of all"
            rows.append([what, "train labels", percent(line["miou"]), _signed(line["miou"], scores[best])])
    return rows


def _segmenters(config: Config) -> list[list[str]]:
    path = ablation_table(config)
    if not path.is_file():
        return []
    table = read_json(path)
    try:
        return segmenter_rows(table)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not the table of an ablation ({type(error).__name__}: {error}); run ablate") from None


def segmenter_rows(table: dict[str, Any]) -> list[list[str]]:
    """The variants of an ablation's table.json, their names read as words; the difference is from its baseline."""
    rows, baseline = [], table["baseline"].replace("_", " ")
    for line in table["variants"]:
        known, difference = line["mean"] is not None, line["difference"]
        where = f"{table['split']}, {line['column'].replace('_', ' ')}"
        shown = f"{100 * difference['value']:+.1f} from {baseline}" if difference else ""
        name = f"segmenter: {line['name'].replace('_', ' ')}"
        rows.append([name, where, percent(line["mean"]) if known else line["state"], shown])
    return rows


def simple(row: Row) -> Row:
    """`row` with the four pictures that anyone understands, called by plain words."""
    return Row(row.name, row.labels, [(TILES[title], uri) for title, uri in row.tiles if title in TILES])


def _signed(value: float | None, other: float | None) -> str:
    return "" if value is None or other is None else f"{100 * (value - other):+.1f}"
