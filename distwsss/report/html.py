"""The report of a run: one HTML page with its numbers, curves and photographs. Called by `pipeline`.

Every stage's part is read from what the stage wrote; where a stage was not run the page says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distwsss.config.crf import CRFParams
from distwsss.config.load import shown_yaml
from distwsss.config.schema import Config
from distwsss.config.stages import SELECTED
from distwsss.data.images import IGNORE, voc_palette
from distwsss.data.made_with import check_images, check_segmenter, check_vote
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.errors import CheckpointError, DataError
from distwsss.evaluate.scores import checkpoint_line, cue_line, percent, protocol_line, table_rows
from distwsss.inference.segmenter import Segmenter, open_segmenter
from distwsss.report import page, pictures
from distwsss.report.gallery import Row, describe, gallery
from distwsss.report.opening import opening
from distwsss.report.plots import line_plot, series
from distwsss.report.quality import labels_table, seeds_table, threshold_table
from distwsss.report.tags import classifiers
from distwsss.runtime.artifacts import flatten, read_json, write_bytes
from distwsss.runtime.layout import (
    ROLES,
    Role,
    classifier_dir,
    describing_files,
    evaluate_dir,
    images_dir,
    labels_file,
    metrics_file,
    pointer,
    pseudo_dir,
    quality_file,
    report_file,
    run_dir,
    seeds_dir,
    segmenter_dir,
)
from distwsss.runtime.metrics import read_metrics
from distwsss.runtime.progress import log
from distwsss.runtime.storage import Folder

LARGEST_CLASS_TABLE = 40  # more classes than that are not counted one by one
NO_MASKS = "no photograph has a mask: nothing can be scored"


def _index(folder: Folder, kind: str) -> ShardIndex | None:
    """The index, or None where the stage that writes it was not run; a damaged one is an error."""
    return load_index(folder, kind) if (folder / INDEX).is_file() else None


def _json(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _current(path: Path, images: ShardIndex | None, pseudo: ShardIndex | None = None) -> Any:
    """The record at `path`, if it is of the shards that are there now; None where they were replaced since."""
    record = _json(path)
    inputs = (record or {}).get("parameters", {}).get("inputs", {})
    now = {"images": images.fingerprint, "truth": images.extra.get("truth")} if images else {}
    now |= {"pseudo": pseudo.fingerprint} if pseudo else {}
    if record is not None and any(inputs.get(key) != value for key, value in now.items()):
        log.info(f"report: {path.name} is of other shards than there are now: left out")
        return None
    return record


def _without_masks(indexes: dict[Role, ShardIndex]) -> bool:
    return bool(indexes) and not any(len(index.with_truth()) for index in indexes.values())


def _headline(
    evaluations: dict[str, Any], quality: dict[str, Any] | None, labels: dict[str, Any] | None, unscored: bool
) -> str:
    """mIoU; where there are no masks, what is known without."""
    items = []
    if "val" in evaluations:
        miou = evaluations["val"]["miou"]
        titles = {"single": "single scale", "single_crf": "single scale, CRF"}
        titles |= {"multi": "multi-scale + flip", "multi_crf": "multi-scale + flip, CRF"}
        items += [(percent(miou[name]), f"val mIoU, {title}") for name, title in titles.items() if name in miou]
    if quality:
        items.append((percent(quality["aggregate"]["miou"]), "train mIoU of the labels"))
        for entry in quality["thresholds"]:
            if entry["t"] == quality["threshold"]:
                what = f"train mIoU of its clean pixels, t = {entry['t']}, {percent(entry['coverage'])}% of all"
                items.append((percent(entry["miou"]), what))
    if unscored and not items:
        found = (
            [(f"{labels['with_foreground']} of {labels['images']}", "pseudo-labels show an object")] if labels else []
        )
        advice = (
            f"{NO_MASKS[0].upper()}{NO_MASKS[1:]}. Look at the photographs below and the classes that got no pixel. "
            "Masks of some photographs in masks/, with their ids in val.txt, would give an mIoU."
        )
        return page.section("Headline numbers", page.cards(found), page.paragraph(advice))
    cards = page.cards(items) if items else page.missing("evaluate and stats")
    notes = ["mIoU in percent, background included", *evaluations.get("val", {}).get("notes", [])]
    return page.section("Headline numbers", cards, page.paragraph("; ".join(notes) + ".", "quiet"))


def _cue(config: Config) -> str:
    """Under the title: what all of it was learned from."""
    cue = config.training_cue()
    masks = ". The saliency maps come from a network that was trained with masks" if "saliency" in cue else ""
    return page.paragraph(f"Learned from {cue}{masks}.")


def _class_counts(index: ShardIndex) -> list[int]:
    """Images per class by their image-level labels."""
    counts = [0] * len(index.classes)
    for shard, size in enumerate(index.counts):
        for position in range(size):
            for label in describe(index, shard, position)[1] or []:
                counts[label] += 1
    return counts


def _data(config: Config, indexes: dict[Role, ShardIndex]) -> str:
    if not indexes:
        return page.section("Data", page.missing("prepare"))
    facts: dict[str, str] = {"data set": config.data.dataset}
    for role, index in indexes.items():
        masks = len(index.with_truth())
        facts[role] = (
            f"{len(index)} images (list {index.parameters.get('split', role)}), {masks} with masks; image-level labels "
            f"from: {index.extra.get('labels_from', 'unknown')}"
        )
    parts = [page.pairs(facts)]
    first = next(iter(indexes.values()))
    if len(first.classes) <= LARGEST_CLASS_TABLE:
        counts = {role: _class_counts(index) for role, index in indexes.items()}
        rows = [[name, *(numbers[label] for numbers in counts.values())] for label, name in enumerate(first.classes)]
        parts.append(page.table([["images with class", *counts], *rows[1:]]))
    return page.section("Data", *parts)


def _voters(config: Config) -> str:
    names = ", ".join(config.voting_seeds())
    return f"those selected from {names}" if config.seeds.vote_on == SELECTED else names


def _made_by(config: Config) -> str:
    train, seeds, files = config.train, config.seeds, describing_files(config)
    t = train.vote_threshold or config.vote_threshold() or "all that vote"
    ignored = ", noisy pixels ignored" if train.loss == "hybrid" and train.noisy == "ignore" else ""
    facts = {
        "classifiers": f"{config.classify.backbone.name}, dropout p = {', '.join(map(str, config.classify.dropouts))}, "
        f"{config.classify.optim.duration}, batch {config.classify.optim.global_batch}",
        "seeds": f"scales {', '.join(map(str, seeds.scales))}, alpha {seeds.alpha}, {seeds.normalise}, "
        f"CRF {_crf(seeds.crf)}",
        "label of a pixel": f"{seeds.label}; votes of {_voters(config)}; clean: votes >= {t}",
        "segmenter": f"{train.model} {train.head} on {train.backbone.name}, labels {train.labels}, loss {train.loss}"
        f"{ignored}, temperature {train.temperature}, {train.optim.duration}, batch {train.optim.global_batch}",
        "seed of the random numbers": f"{config.seed}; of the segmenter's {config.segmenter_seed()}",
    }
    parts = [page.pairs(facts)]
    command, environment = files["command"], _json(files["environment"])
    if command.is_file():
        parts.append(page.details("last command", command.read_text(encoding="utf-8")))
    if environment:
        lines = [f"{name}: {value}" for name, value in flatten(environment).items()]
        parts.append(page.details("versions and machine", "\n".join(lines)))
    written = files["configuration"]
    resolved = written.read_text(encoding="utf-8") if written.is_file() else shown_yaml(config)
    parts.append(page.details("whole configuration", resolved))
    return page.section("What made it", *parts)


def _crf(params: CRFParams) -> str:
    return (
        f"{params.iterations} iterations, gaussian {params.gaussian_sxy:g}/{params.gaussian_compat:g}, "
        f"bilateral {params.bilateral_sxy:g}/{params.bilateral_srgb:g}/{params.bilateral_compat:g}"
    )


def _no_quality(unscored: bool) -> str:
    return page.set_apart(NO_MASKS) if unscored else page.missing("stats (needs masks on train)")


def _seeds(quality: dict[str, Any] | None, labels: dict[str, Any] | None, unscored: bool) -> str:
    counted = labels_table(labels) if labels else []
    if not quality:
        return page.section("Seeds and vote", _no_quality(unscored), *counted)
    return page.section("Seeds and vote", *seeds_table(quality), *counted)


def _clean(quality: dict[str, Any] | None, unscored: bool) -> str:
    if not quality:
        return page.section("Clean and noisy", _no_quality(unscored))
    return page.section("Clean and noisy", *threshold_table(quality))


def _curves(config: Config) -> str:
    folders = {f"p = {p:.2f}": classifier_dir(config, p) for p in config.classify.dropouts}
    losses = {name: series(read_metrics(metrics_file(folder)), "loss") for name, folder in folders.items()}
    losses = {name: points for name, points in losses.items() if points}
    metrics = read_metrics(metrics_file(segmenter_dir(config)))
    charts = [("Classifier loss", losses)]
    charts.append(("Segmenter loss and its parts", {n: series(metrics, n) for n in ("loss", "positive", "negative")}))
    shares = {"clean share": series(metrics, "clean_share") or series(metrics, "positive_share")}
    charts.append(("Share of clean pixels in the loss", shares))
    charts.append(("Held-out mIoU (train ids kept out)", {"mIoU": series(metrics, "heldout_miou")}))
    drawn = [(title, {name: points for name, points in lines.items() if points}) for title, lines in charts]
    plots = page.plots([(title, line_plot(title, lines)) for title, lines in drawn if lines])
    notes = [] if losses else [page.missing("classify")]
    notes += [] if metrics else [page.missing("train")]
    return page.section("Curves", plots, *notes)


def _evaluations(found: dict[str, Any], unscored: bool) -> str:
    if not found:
        return page.section("Evaluation", page.set_apart(NO_MASKS) if unscored else page.missing("evaluate"))
    parts = []
    for name, record in found.items():
        counted = f"{record['data']}, list {record['split']}: {record['scored']} of {record['images']} images scored"
        parts.append(f"<h3>{page.text(name)}</h3>")
        checkpoint = f"checkpoint {checkpoint_line(record['checkpoint'])}"
        lines = [counted, checkpoint, cue_line(record), protocol_line(record), *record["notes"]]
        parts += [page.paragraph(line, "quiet") for line in lines]
        parts.append(page.table(table_rows(record), totals=1))
    return page.section("Evaluation", *parts)


def _legend(seeds: int, classes: list[str]) -> str:
    palette = voc_palette()
    names = [(name, palette[number].tolist()) for number, name in enumerate(classes)]
    names.append(("ignore (255)", palette[IGNORE].tolist()))
    votes = [(f"{count} votes", colour.tolist()) for count, colour in enumerate(pictures.vote_colours(seeds))]
    clean = [("clean", pictures.CLEAN), ("noisy", pictures.NOISY), ("ignored", pictures.IGNORED)]
    return page.swatches(names) + page.swatches(votes) + page.swatches(clean)


def _rows(rows: list[Row]) -> list[str]:
    captions = [f"{row.name}: {', '.join(row.labels) or 'no labels'}" for row in rows]
    return [
        f'<div class="row">{page.paragraph(caption)}{page.figures(row.tiles)}</div>'
        for caption, row in zip(captions, rows, strict=True)
    ]


def _segmenter(config: Config) -> Segmenter | None:
    """None where none was trained. Raises CheckpointError for a damaged one, ConfigError for another's."""
    try:
        segmenter = open_segmenter(config)
        check_segmenter(config, segmenter.folder)
    except CheckpointError:
        if pointer(segmenter_dir(config), config.evaluate.checkpoint).is_file():
            raise  # there is one, and it is damaged
        return None
    return segmenter


def _photographs(config: Config, indexes: dict[Role, ShardIndex], segmenter: Segmenter | None) -> str:
    if not indexes or not config.report.images:
        return page.section("Photographs", page.missing("prepare") if not indexes else "")
    seeds, pseudo = _index(seeds_dir(config), "seeds"), _index(pseudo_dir(config), "pseudo")
    voters = len(pseudo.extra["seeds"]) if pseudo else len(config.voting_seeds())
    parts = [_legend(voters, next(iter(indexes.values())).classes)]
    parts += [page.missing(name) for name, piece in (("seeds", seeds or pseudo), ("train", segmenter)) if piece is None]
    if "train" in indexes:
        rows = gallery(config, indexes["train"], seeds, pseudo, segmenter, config.report.images)
        note = page.paragraph("Predictions are single scale, without CRF.", "quiet")
        parts += [f"<h3>train</h3>{note}", *_rows(rows)]
    if "val" in indexes:
        count = (config.report.images + 1) // 2
        parts += ["<h3>val</h3>", *_rows(gallery(config, indexes["val"], None, None, segmenter, count))]
    return page.section("Photographs", *parts)


def _check_made_with(config: Config, images: ShardIndex) -> None:
    """A page that shows one configuration and the pictures of another would mislead."""
    check_images(config, images)
    pseudo = _index(pseudo_dir(config), "pseudo")
    if pseudo is not None:
        check_vote(config, images, pseudo)


def write_report(config: Config) -> Path:
    """Write run_dir/report/index.html, self-contained (no network, no scripts), and return its path.

    Raises ShardError or CheckpointError for damaged results, ConfigError for those of other parameters, DataError where
    there is none at all; a stage that is missing is shown as "not run".
    """
    found = {role: _index(images_dir(config, role), "images") for role in ROLES}
    indexes = {role: index for role, index in found.items() if index is not None}
    if "train" in indexes:
        _check_made_with(config, indexes["train"])
    pseudo = _index(pseudo_dir(config), "pseudo")
    quality = _current(quality_file(config), indexes.get("train"), pseudo)
    own: dict[str, ShardIndex | None] = {role: indexes.get(role) for role in ROLES}
    records = {p.stem: _current(p, own.get(p.stem)) for p in sorted(evaluate_dir(config).glob("*.json"))}
    evaluations = {name: record for name, record in records.items() if record and "miou" in record}
    trained = [metrics_file(classifier_dir(config, p)) for p in config.classify.dropouts]
    if not (indexes or quality or evaluations or any(path.is_file() for path in trained)):
        raise DataError(f"report: no stage has left a result in {run_dir(config)}; run `distwsss run` first")
    labels, unscored = _json(labels_file(config)), _without_masks(indexes)
    shown = indexes and (config.report.images or config.report.ablation)
    segmenter = _segmenter(config) if shown else None
    sections = [
        *opening(config, indexes.get("train"), pseudo, quality, segmenter),
        _cue(config),
        _headline(evaluations, quality, labels, unscored),
        _data(config, indexes),
        _made_by(config),
        classifiers(config, indexes.get("train")),
        _seeds(quality, labels, unscored),
        _clean(quality, unscored),
        _curves(config),
        _evaluations(evaluations, unscored),
        _photographs(config, indexes, segmenter),
    ]
    path = report_file(config)
    write_bytes(path, page.page(f"distwsss: {config.name}", sections).encode("utf-8", "replace"))
    log.info(f"report: {path}")
    return path
