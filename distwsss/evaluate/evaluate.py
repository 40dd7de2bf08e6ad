"""mIoU of a segmenter on a split, single scale and multi-scale + flip, each without and with CRF. Called by `pipeline`.

Every image is scored exactly once whatever the number of ranks: rank r takes images r, r + W, ..., all ranks take the
same number (the last ones may repeat an image, which then counts nowhere), and the counts are summed. The counts of
each image are kept beside the record, for intervals (`maths.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from distwsss.config import Config
from distwsss.data.holdout import held_out_keys
from distwsss.data.images import decode_image, shrink
from distwsss.data.made_with import check_images, check_segmenter
from distwsss.data.prepare import holds_split, prepare_split
from distwsss.data.scoring import ImageCounts, write_image_counts
from distwsss.data.shards.format import INDEX, key_from_name
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.data.shards.verify import verified
from distwsss.errors import ConfigError, DataError, DistwsssError
from distwsss.evaluate.scores import describe_checkpoint, notes, or_none, print_scores
from distwsss.inference.postprocess import bounded_pool, crf_labels
from distwsss.inference.segmenter import Segmenter, open_segmenter
from distwsss.inference.views import crf_planes, labels_at
from distwsss.maths.miou import ConfusionMatrix, class_counts
from distwsss.models.export import WEIGHTS
from distwsss.runtime import ranks
from distwsss.runtime.artifacts import fingerprint, is_done, read_json, sha256_file, write_json
from distwsss.runtime.layout import (
    HELD_OUT,
    ROLES,
    counts_file,
    evaluate_dir,
    evaluation_file,
    images_dir,
    other_images_dir,
    pseudo_dir,
    report_file,
)
from distwsss.runtime.progress import log, track
from distwsss.runtime.storage import Folder

Value = TypeVar("Value")


def evaluate(
    config: Config,
    split: str | None = None,
    checkpoint: Path | None = None,
    remake: bool = False,
    held_out: bool = False,
) -> dict[str, Any] | None:
    """Score a checkpoint (default: the one `evaluate.checkpoint` names) on `split` (default: `data.val_split`) of the
    configuration's data; print and return the scores.

    This run's own image shards are scored where they hold that split of that data; other data is prepared first
    (`images_to_score`). Written to run_dir/evaluate/ as val.json or train.json (other data: SPLIT-DIGEST.json; an
    explicit checkpoint adds its folder and digest), and skipped where that is complete; None where no image has a mask.
    `held_out`: instead of a split, the train ids that the segmenter was not trained on; the record is held_out.json.
    `remake`: a record made with other parameters is replaced.
    Raises CheckpointError without a segmenter, DataError for other classes, ShardError for damaged images, ConfigError
    where the record or the run's own segmenter was made with other parameters.
    """
    segmenter = open_segmenter(config, checkpoint)
    if checkpoint is None:
        check_segmenter(config, segmenter.folder)
    if held_out and split:
        raise ConfigError(f"evaluate: found --held-out and --split {split}; allowed: one of them")
    split = split or config.data.val_split
    where = images_dir(config, "train") if held_out else _on_rank_0(lambda: images_to_score(config, split))
    index = load_index(where, "images")
    _check_classes(segmenter.model, index, segmenter.folder)
    keys = _held_out(config, index) if held_out else set(index.all().keys())
    samples = [place for place in index.with_truth().places() if index.key(*place) in keys]
    if not samples:
        log.info(f"evaluate: {'held out' if held_out else split}: no masks: nothing to score")
        return None
    parameters = _parameters(config, segmenter, index)
    if held_out:
        parameters["inputs"]["held_out"] = fingerprint(sorted(keys))
    path = _record_path(config, index, segmenter.folder if checkpoint else None, parameters, held_out)
    if _on_rank_0(lambda: is_done(path, parameters, f"evaluate: {path.name}", remake)):
        log.info("evaluate: complete, skipped")
        record = _on_rank_0(lambda: read_json(path))
    else:
        scores = score(segmenter, verified(index), samples, config)
        record = _record(config, index, len(keys), len(samples), scores.matrices)
        record["split"] += ", held out" if held_out else ""
        record |= {"parameters": parameters, "checkpoint": describe_checkpoint(config, segmenter.folder)}
        record |= {"cue": record["checkpoint"].get("cue"), "notes": notes(config, record)}
        record["per_image"] = counts_file(path).name
        _on_rank_0(lambda: _write(path, record, ImageCounts([index.key(*place) for place in samples], scores.each)))
        if remake and ranks.rank() == 0:
            report_file(config).unlink(missing_ok=True)  # it shows what was replaced
        log.info(f"evaluate: {path}")
    if ranks.rank() == 0:
        print_scores(record)
    return record


def images_to_score(config: Config, split: str) -> Folder:
    """The folder of image shards with `split` of `config.data`: this run's own where they hold the same images and
    masks, else shards made under run_dir/evaluate, once per content.
    """
    for role in reversed(ROLES):  # val first, where both roles have one list
        folder = images_dir(config, role)
        if (folder / INDEX).is_file() and holds_split(load_index(folder, "images"), config, split):
            return folder
    below = evaluate_dir(config)
    log.info(f"evaluate: split `{split}` of this data is not in the run's own shards: prepared below {below}")
    return prepare_split(config, split, lambda digest: other_images_dir(config, key_from_name(split), digest))


class Scores:
    """Of each column: one confusion matrix over all samples, and int64[I,3,K], the counts of each of I samples."""

    def __init__(self, columns: list[str], classes: int, samples: int) -> None:
        self.matrices = {name: ConfusionMatrix(classes) for name in columns}
        self.each = {name: np.zeros((samples, 3, classes), np.int64) for name in columns}

    def add(self, column: str, sample: int, labels: np.ndarray, truth: np.ndarray) -> None:
        one = ConfusionMatrix(self.matrices[column].num_classes)
        one.update(labels, truth)
        self.matrices[column].merge(one)
        self.each[column][sample] = class_counts(one.matrix)

    def sum_over_ranks(self, device: torch.device) -> Scores:
        for column, matrix in self.matrices.items():
            matrix.matrix = _all_sum(matrix.matrix, device)
            self.each[column] = _all_sum(self.each[column], device)
        return self


def score(segmenter: Segmenter, index: ShardIndex, samples: list[tuple[int, int]], config: Config) -> Scores:
    """Counts over `samples`: single, multi and, where `evaluate.crf` is set, single_crf, multi_crf."""
    rank, world = ranks.rank(), ranks.world_size()
    crf = config.evaluate.crf
    names = ["single", "multi"] if crf is None else ["single", "single_crf", "multi", "multi_crf"]
    scores = Scores(names, len(index.classes), len(samples))
    rounds = -(-len(samples) // world)
    with bounded_pool(config.hardware.workers if crf else 0) as submit:
        for number in track(range(rounds), rounds, "evaluate"):
            turn = number * world + rank
            shard, position = samples[turn % len(samples)]
            fields = read_fields(index, shard, position, ["jpg"])
            image = shrink(decode_image(fields["jpg"], index.shards[shard].keys[position]), segmenter.longest_side)
            truth = read_truth(index, shard, position) if turn < len(samples) else None
            for name in ("single", "multi"):
                probabilities = segmenter.probabilities(image, name == "multi")
                if truth is None:  # a repeated image that keeps the ranks in step
                    continue
                size = (truth.shape[0], truth.shape[1])
                scores.add(name, turn, labels_at(probabilities, size), truth)
                if crf is not None:
                    planes, classes = crf_planes(probabilities, crf.clip)
                    submit(_counter(scores, f"{name}_crf", turn, truth), crf_labels, image, planes, crf, classes, size)
                del probabilities  # before the next forward
    return scores.sum_over_ranks(segmenter.device)


def _counter(scores: Scores, column: str, sample: int, truth: np.ndarray) -> Callable[[np.ndarray], None]:
    return lambda labels: scores.add(column, sample, labels, truth)


def _all_sum(counts: np.ndarray, device: torch.device) -> np.ndarray:
    if ranks.world_size() == 1:
        return counts
    tensor = torch.from_numpy(counts).to(device if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


def _write(path: Path, record: dict[str, Any], each: ImageCounts) -> None:
    """The record last: where it is, its counts are."""
    columns = {name: counts.astype(np.uint32) for name, counts in each.columns.items()}
    write_image_counts(counts_file(path), ImageCounts(each.keys, columns))
    write_json(path, record)


def _on_rank_0(function: Callable[[], Value]) -> Value:
    """Its value on every rank, computed on rank 0 only; an error of ours is raised on every rank."""
    if ranks.world_size() == 1:
        return function()
    answer: list[Any] = [None, None]
    if ranks.rank() == 0:
        try:
            answer[0] = function()
        except DistwsssError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _held_out(config: Config, images: ShardIndex) -> set[str]:
    """The train keys that the run's segmenter was not trained on. Raises ConfigError where there are none."""
    check_images(config, images)
    trained_on = load_index(pseudo_dir(config), "pseudo") if config.train.labels == "vote" else images
    keys = held_out_keys(trained_on, config.train.holdout) if len(images.with_truth()) else set()
    if not keys:
        raise ConfigError(
            f"evaluate --held-out: nothing is held out of training (train.holdout is {config.train.holdout:g}, "
            f"{len(images.with_truth())} train images have a mask); allowed: a share above 0, and masks"
        )
    return keys


def _check_classes(model: nn.Module, index: ShardIndex, folder: Path) -> None:
    known = list(model.classes)
    if known != list(index.classes):
        raise DataError(
            f"{index.folder}: the data's classes are not those of the segmenter in {folder}\n"
            f"  data: {', '.join(index.classes)}\n  segmenter: {', '.join(known)}\n"
            "allowed: the same names in the same order; set data.classes or choose other data"
        )


def _record(
    config: Config, index: ShardIndex, images: int, scored: int, matrices: dict[str, ConfusionMatrix]
) -> dict[str, Any]:
    root = Path(config.data.root).resolve().name if config.data.root else config.data.dataset
    return {
        "data": root,
        "split": index.parameters.get("split", index.folder.name),
        "images": images,
        "scored": scored,
        "classes": list(index.classes),
        "labels_from": index.extra.get("labels_from"),
        "iou": {name: [or_none(value) for value in matrix.iou()] for name, matrix in matrices.items()},
        "miou": {name: or_none(matrix.miou()) for name, matrix in matrices.items()},
        "confusion": {name: np.asarray(matrix.matrix).tolist() for name, matrix in matrices.items()},
    }


def _parameters(config: Config, segmenter: Segmenter, index: ShardIndex) -> dict[str, Any]:
    section = config.evaluate.parameters()
    section.pop("checkpoint")  # the weights' digest says it
    if config.evaluate.probabilities == "constrained":
        section["temperature"] = segmenter.model.temperature
    weights = sha256_file(segmenter.folder / WEIGHTS)
    inputs = {"checkpoint": weights, "images": index.fingerprint, "truth": index.extra.get("truth")}
    return {"evaluate": section, "inputs": inputs}


def _record_path(
    config: Config, index: ShardIndex, checkpoint: Path | None, parameters: dict[str, Any], held_out: bool
) -> Path:
    """val.json or train.json for the run's own data and pointer; anything else has a name of its own."""
    roles = [role for role in ROLES if images_dir(config, role) == index.folder]
    name = HELD_OUT if held_out else roles[0] if roles else index.folder.name.removeprefix("images-")
    if checkpoint is not None:
        name += f"-{checkpoint.name}-{parameters['inputs']['checkpoint'][:8]}"
    return evaluation_file(config, name)
