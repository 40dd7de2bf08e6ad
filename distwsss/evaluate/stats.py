"""How good the seeds and their vote are, measured with the train masks (METHOD section 7, Tables 4 and 9-11).

Called by `pipeline` (`stats`) and by sweeps; `report` shows the dictionary. Nothing here reaches a training label.
All figures come from two histograms over the labelled pixels (truth is not 255), counted shard by shard:
truth x prediction for every seed, votes x truth x prediction for the vote.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distwsss.config import Config
from distwsss.data.images import IGNORE, decode_mask, resize_labels
from distwsss.data.made_with import check_images, check_seeds, check_vote
from distwsss.data.shards.format import INDEX, key_from_name
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.data.sources.listing import plain_name, stem_of
from distwsss.errors import DataError, report_problems
from distwsss.evaluate.scores import or_none, percent, print_table
from distwsss.inference.postprocess import bounded_pool
from distwsss.maths.miou import ConfusionMatrix
from distwsss.maths.select import select_seeds
from distwsss.runtime.artifacts import fingerprint, read_json, write_json
from distwsss.runtime.layout import images_dir, pseudo_dir, quality_file, seeds_dir
from distwsss.runtime.progress import log, say
from distwsss.runtime.storage import Folder

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


@dataclass(frozen=True)
class CountTask:
    """Images of one shard, by position. `seeds`: None where the seed shards were dropped."""

    images: Folder
    pseudo: Folder
    seeds: Folder | None
    shard: int
    positions: tuple[int, ...]


@dataclass
class Counts:
    """`seeds`: int64[m,K,K+1]; `votes`: int64[V+1,K,K+1], V seeds voting; the last column is "no label" (255)."""

    seeds: np.ndarray
    votes: np.ndarray


def _histogram(truth: np.ndarray, labels: np.ndarray, votes: np.ndarray | None, most: int, classes: int) -> np.ndarray:
    """int64[most+1,K,K+1] of votes (0 where None), truth and labels over the labelled pixels."""
    known = truth != IGNORE
    columns = np.where(labels == IGNORE, classes, labels)[known].astype(np.int64)
    rows = truth[known].astype(np.int64)
    if votes is not None:
        rows += votes[known].astype(np.int64) * classes
    shape = (most + 1, classes, classes + 1)
    counts = np.bincount(rows * (classes + 1) + columns, minlength=int(np.prod(shape)))
    return counts.reshape(shape)


def shard_counts(task: CountTask) -> Counts:
    """The histograms of one shard's images that have a mask; plain and picklable, like the other per-shard work."""
    images, pseudo = load_index(task.images, "images"), load_index(task.pseudo, "pseudo")
    seeds = load_index(task.seeds, "seeds") if task.seeds else None
    classes, voters = len(images.classes), len(pseudo.extra["seeds"])
    fields = [f"s{k}.png" for k in range(len(seeds.extra["seeds"]))] if seeds else []
    per_seed = np.zeros((len(fields), classes, classes + 1), np.int64)
    per_vote = np.zeros((voters + 1, classes, classes + 1), np.int64)
    for position in task.positions:
        truth, key = read_truth(images, task.shard, position), images.key(task.shard, position)
        if truth is None:
            continue
        found = read_fields(pseudo, task.shard, position, ["label.png", "votes.png"])
        labels, votes = (_at(truth, found[field], f"{key}.{field}") for field in ("label.png", "votes.png"))
        per_vote += _histogram(truth, labels, votes, voters, classes)
        maps = read_fields(seeds, task.shard, position, fields) if seeds else {}
        for k, field in enumerate(fields):
            per_seed[k] += _histogram(truth, _at(truth, maps[field], f"{key}.{field}"), None, 0, classes)[0]
    return Counts(per_seed, per_vote)


def _at(truth: np.ndarray, data: bytes, where: str) -> np.ndarray:
    """A map at the size of the truth, which is larger where the photograph was shrunk."""
    return resize_labels(decode_mask(data, where), (truth.shape[0], truth.shape[1]))


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
    for other in (pseudo, seeds):
        if other is not None:
            images.check_same_images(other)
    parts: list[Counts] = []
    with bounded_pool(config.hardware.workers) as submit:
        for shard, positions in enumerate(images.select(keys.__contains__).positions):
            if positions:
                folder = seeds.folder if seeds else None
                task = CountTask(images.folder, pseudo.folder, folder, shard, tuple(positions))
                submit(parts.append, shard_counts, task)
    return Counts(sum(part.seeds for part in parts), sum(part.votes for part in parts))  # type: ignore[arg-type]


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
    seeds = {name: _scores(matrix) for name, matrix in zip(names, counts.seeds, strict=True)}
    known = {name: [np.nan if v is None else v for v in scores["iou"]] for name, scores in seeds.items()}
    return {
        "split": images.parameters.get("split"),
        "classes": list(images.classes),
        "vote_on": voters,
        "selected": select_seeds(known),
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


def tuning_keys(config: Config, index: ShardIndex) -> set[str]:
    """The shard keys of `data.tuning_ids`, ids with or without suffix. Raises DataError for ids not in `index`."""
    known = set(index.all().keys())
    keys = {name: key_from_name(stem_of(plain_name(name))) for name in config.data.tuning_ids}
    problems = [f"{name!r} is not the id of an image there" for name, key in keys.items() if key not in known]
    if problems:
        raise DataError(report_problems(f"`data.tuning_ids`: not all in {index.folder}; correct them", problems))
    return set(keys.values())


def seed_quality(config: Config, keys: set[str] | None = None, exclude: set[str] | None = None) -> Quality | None:
    """Quality of every seed, of the vote, and of its clean pixels at every t; None where no train image has a mask.

    `keys`: only these shard keys; `exclude`: all but these. Without `keys` it is written to run_dir/seeds/quality.json,
    and read back from there while shards, masks and `exclude` are the same. All figures are shares in 0..1, None where
    undefined (a class that does not occur):

    split, classes, images (scored), cue, vote_on, threshold, selected (what METHOD section 2's rule keeps), notes,
    seeds: {name: {iou, miou, agreement}} ({} where the seed shards were dropped), aggregate: {iou, miou, agreement},
    thresholds: [{t, miou, iou, coverage, cells: {a, b, c, d}, within: {clean_agree, noisy_disagree, agree_clean,
    disagree_noisy}}]; a agrees with the truth and is clean, b agrees, noisy, c disagrees, noisy, d disagrees, clean.

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
        "threshold": pseudo.parameters["threshold"],
        "notes": _notes(config, images, len(chosen), len(images)),
        "parameters": parameters,
    }
    if keys is None:
        write_json(path, quality)
    return quality


def seed_rows(quality: Quality) -> list[list[str]]:
    """Heading, IoU per class of each seed and of the vote, mIoU, and the share of pixels that agree with the masks."""
    columns = {**quality["seeds"], f"vote of {len(quality['vote_on'])}": quality["aggregate"]}
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
