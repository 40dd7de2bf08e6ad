"""How good the seeds and their vote are, measured with the train masks (METHOD section 7, Tables 4 and 9-11).

Called by `pipeline` (`stats`) and by sweeps; `report` shows the dictionary. Nothing here reaches a training label.
All figures come from the counts of `data.scoring`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distwsss.config import Config
from distwsss.config.stages import MEANS
from distwsss.data.holdout import tuning_keys
from distwsss.data.made_with import check_images, check_seeds, check_vote
from distwsss.data.scoring import Counts, add_counts, count_tasks, own_threshold, shard_counts, write_image_counts
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.evaluate.scores import or_none, percent
from distwsss.inference.postprocess import bounded_pool
from distwsss.maths.miou import ConfusionMatrix
from distwsss.maths.select import select_seeds
from distwsss.runtime.artifacts import fingerprint, read_json, write_json
from distwsss.runtime.layout import counts_file, images_dir, pseudo_dir, quality_file, seeds_dir
from distwsss.runtime.progress import log, print_table, say

VOC_TRAIN_IMAGES = (1464, 10582)
Quality = dict[str, Any]
# of Tables 10 and 11, as shares of all labelled pixels, and inside and across clean and noisy
CELLS = {
    "a": "agree with the truth and clean",
    "b": "agree, noisy",
    "c": "disagree, noisy",
    "d": "disagree, clean",
}
WITHIN = {
    "clean_agree": "clean: agree",
    "noisy_disagree": "noisy: disagree",
    "agree_clean": "agree: clean",
    "disagree_noisy": "disagree: noisy",
}


def _share(part: np.ndarray, whole: np.ndarray) -> float | None:
    return float(part.sum() / whole.sum()) if whole.sum() else None


def _scores(matrix: np.ndarray) -> dict[str, Any]:
    """IoU of each class, their mean, and the share of pixels that agree with the truth (Tables 4 and 9)."""
    confusion = ConfusionMatrix(len(matrix))
    confusion.matrix = matrix
    iou = [or_none(value) for value in confusion.iou()]
    return {"iou": iou, "miou": or_none(confusion.miou()), "agreement": _share(np.diagonal(matrix), matrix)}


def _threshold(votes: np.ndarray, t: int) -> dict[str, Any]:
    """Quality of the pixels clean at t, their share, and the cells of Tables 10 and 11."""
    clean, noisy, everything = votes[t:].sum(axis=0), votes[:t].sum(axis=0), votes.sum(axis=0)
    right = {"clean": np.diagonal(clean).sum(), "noisy": np.diagonal(noisy).sum()}
    wrong = {"clean": clean.sum() - right["clean"], "noisy": noisy.sum() - right["noisy"]}
    cells = {"a": right["clean"], "b": right["noisy"], "c": wrong["noisy"], "d": wrong["clean"]}
    scores = _scores(clean)
    return {
        "t": t,
        "miou": scores["miou"],
        "iou": scores["iou"],
        "coverage": _share(clean, everything),
        "cells": {name: _share(cell, everything) for name, cell in cells.items()},
        "within": {
            "clean_agree": _share(cells["a"], clean),
            "noisy_disagree": _share(cells["c"], noisy),
            "agree_clean": _share(cells["a"], cells["a"] + cells["b"]),
            "disagree_noisy": _share(cells["c"], cells["c"] + cells["d"]),
        },
    }


def _chosen(index: ShardIndex, keys: set[str] | None, exclude: set[str] | None) -> set[str]:
    known = set(index.all().keys())
    for name, wanted in (("restricted to", keys), ("leave out", exclude)):
        if wanted and wanted - known:
            log.warning(f"stats: told to {name} {len(wanted - known)} images that are not in the train split")
    masked = set(index.with_truth().keys()) - (exclude or set())
    return masked if keys is None else masked & keys


def _count(config: Config, images: ShardIndex, pseudo: ShardIndex, seeds: ShardIndex | None, keys: set[str]) -> Counts:
    parts: list[Counts] = []
    with bounded_pool(config.hardware.workers) as submit:
        for task in count_tasks(images, pseudo, seeds, keys):
            submit(parts.append, shard_counts, task)
    return add_counts(parts)


def _notes(config: Config, images: ShardIndex, scored: int, total: int) -> list[str]:
    notes = ["255 in a mask is not scored; a pixel without any vote counts as wrong and noisy"]
    if scored < total:
        notes.append(f"{total - scored} train images are not scored (left out, or without mask)")
    if images.extra.get("labels_from") == "masks":
        notes.append("image-level labels from: masks")
    if config.data.dataset == "voc" and scored not in VOC_TRAIN_IMAGES:
        notes.append("not the train list of VOC 2012 or SBD: not comparable with published VOC figures")
    return notes


def _describe(images: ShardIndex, names: list[str], voters: list[str], counts: Counts) -> Quality:
    assert counts.votes is not None  # there is a vote
    seeds = {name: _scores(matrix) for name, matrix in zip(names, counts.seeds, strict=True)}
    known = {name: [np.nan if v is None else v for v in scores["iou"]] for name, scores in seeds.items()}
    return {
        "split": images.parameters.get("split"),
        "classes": list(images.classes),
        "vote_on": voters,
        "selected": select_seeds({name: iou for name, iou in known.items() if name not in MEANS}),
        "seeds": seeds,
        "aggregate": _scores(counts.votes.sum(axis=0)),
        "thresholds": [_threshold(counts.votes, t) for t in range(1, len(voters) + 1)],
    }


def stats(config: Config) -> Quality | None:
    """The stage: `seed_quality` on the images on which no key was chosen (`data.tuning_ids`), printed."""
    quality = seed_quality(config, exclude=tuning_keys(config, load_index(images_dir(config, "train"), "images")))
    if quality is None:
        log.info("stats: no masks on the train split to compare with, skipped")
    else:
        print_quality(quality)
    return quality


def seed_quality(config: Config, keys: set[str] | None = None, exclude: set[str] | None = None) -> Quality | None:
    """Quality of every seed, of the vote, and of its clean pixels at every t; None where no train image has a mask.

    `keys`: only these shard keys; `exclude`: all but these. Without `keys` it is written to run_dir/seeds/quality.json
    (the counts of each image beside it, in the file that `per_image` names), and read back from there while shards,
    masks and `exclude` are the same. All figures are shares in 0..1, None where
    undefined (a class that does not occur):

    split, classes, images (scored), cue, label (the rule), vote_on, threshold, selected (what the paper's rule keeps),
    notes, seeds: {name: {iou, miou, agreement}} ({} where the seed shards were dropped), aggregate: {iou, miou,
    agreement}, thresholds: [{t, miou, iou, coverage, cells: {a, b, c, d}, within: {clean_agree, noisy_disagree,
    agree_clean, disagree_noisy}}]; a agrees with the truth and is clean, b agrees, noisy, c disagrees, noisy, d
    disagrees, clean.

    Raises ShardError where shards are missing or do not belong together, ConfigError where they were made with other
    parameters.
    """
    images = load_index(images_dir(config, "train"), "images")
    check_images(config, images)
    chosen = _chosen(images, keys, exclude)
    if not chosen:
        return None
    pseudo = load_index(pseudo_dir(config), "pseudo")
    check_vote(config, images, pseudo)
    seeds = load_index(seeds_dir(config), "seeds") if (seeds_dir(config) / INDEX).is_file() else None
    if seeds is not None:
        check_seeds(config, images, seeds.parameters, f"the seeds ({seeds.folder})")
    inputs = {"images": images.fingerprint, "truth": images.extra.get("truth"), "pseudo": pseudo.fingerprint}
    parameters = {"inputs": {**inputs, "seeds": seeds and seeds.fingerprint}, "keys": fingerprint(sorted(chosen))}
    path = quality_file(config)
    if keys is None and path.is_file() and (found := read_json(path)).get("parameters") == parameters:
        log.info("stats: complete, skipped")
        return dict(found)
    counts = _count(config, images, pseudo, seeds, chosen)
    names = list(seeds.extra["seeds"]) if seeds else []
    quality = {
        **_describe(images, names, list(pseudo.extra["seeds"]), counts),
        "images": len(chosen),
        "cue": config.cue(),
        "label": pseudo.parameters.get("label", "vote"),
        "threshold": own_threshold(pseudo),
        "notes": _notes(config, images, len(chosen), len(images)),
        "parameters": parameters,
    }
    if keys is None:
        write_image_counts(counts_file(path), counts.each)
        quality["per_image"] = counts_file(path).name
        write_json(path, quality)
    return quality


def seed_rows(quality: Quality) -> list[list[str]]:
    """Heading, IoU per class of each seed and of the labels, mIoU, and the share of pixels that agree with masks."""
    rule = quality.get("label", "vote")
    name = f"vote of {len(quality['vote_on'])}" if rule == "vote" else f"label: {rule}"
    columns = {**quality["seeds"], name: quality["aggregate"]}
    rows = [["IoU (%)", *columns]]
    for number, name in enumerate(quality["classes"]):
        rows.append([name, *(percent(scores["iou"][number]) for scores in columns.values())])
    rows.append(["mIoU", *(percent(scores["miou"]) for scores in columns.values())])
    rows.append(["pixels that agree", *(percent(scores["agreement"]) for scores in columns.values())])
    return rows


def threshold_rows(quality: Quality) -> list[list[str]]:
    """Heading, and for every t: mIoU of the clean pixels and their share, the cells, and agreement inside and across
    clean and noisy. `*` marks the pseudo-labels' own t."""
    rows = [["t", "clean mIoU", "coverage", *(f"({cell})" for cell in CELLS), *WITHIN.values()]]
    for row in quality["thresholds"]:
        values = [row["miou"], row["coverage"], *(row["cells"][c] for c in CELLS), *(row["within"][w] for w in WITHIN)]
        rows.append([f"{row['t']}{' *' if row['t'] == quality['threshold'] else ''}", *map(percent, values)])
    return rows


def threshold_notes(quality: Quality) -> list[str]:
    """What the columns of `threshold_rows` mean."""
    own = f"* t = {quality['threshold']}, the pseudo-labels'"
    meanings = ", ".join(f"({cell}) {meaning}" for cell, meaning in CELLS.items())
    return [f"clean where votes >= t ({own}); in percent of all labelled pixels:", meanings]


def facts(quality: Quality) -> list[str]:
    """What the figures refer to."""
    lines = [f"list {quality['split']}: {quality['images']} images scored"]
    lines.append(f"made from {quality.get('cue', 'what is not recorded')}")
    lines.append(f"seeds that vote: {', '.join(quality['vote_on'])}")
    if quality["seeds"]:
        lines.append(f"the selection rule would keep: {', '.join(quality['selected'])}")
    return [*lines, *(f"note: {note}" for note in quality["notes"])]


def print_quality(quality: Quality) -> None:
    """Tables 4 and 9, then 10 and 11, with what they refer to, on stdout. In percent."""
    say("stats: " + "\n".join(facts(quality)) + "\n")
    rows = seed_rows(quality)
    print_table(rows, (1, len(rows) - 2))
    say("\n".join(["", *threshold_notes(quality)]))
    print_table(threshold_rows(quality))
    say()
