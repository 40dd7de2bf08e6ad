"""mIoU of a segmenter on a split, single scale and multi-scale + flip, each without and with CRF. Called by `cli`.

Every image is scored exactly once whatever the number of ranks: rank r takes images r, r + W, ..., all ranks take the
same number (the last ones may repeat an image, which then counts nowhere), and the matrices are summed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from distwsss.config.schema import Config
from distwsss.data.images import decode_image
from distwsss.data.prepare import prepare_split
from distwsss.data.shards.format import INDEX, key_from_name
from distwsss.data.shards.index import ShardIndex, images_dir, load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.data.shards.verify import verified
from distwsss.errors import DataError, DistwsssError
from distwsss.evaluate.inference import (
    checkpoint_folder,
    crf_planes,
    load_segmenter,
    pick_device,
    predict_probabilities,
)
from distwsss.evaluate.miou import ConfusionMatrix
from distwsss.evaluate.postprocess import bounded_pool, crf_labels
from distwsss.evaluate.scores import describe_checkpoint, notes, print_scores
from distwsss.runtime.artifacts import fingerprint, is_done, read_json, sha256_file, write_json
from distwsss.runtime.progress import log, track
from distwsss.runtime.storage import Folder

Value = TypeVar("Value")
TRUTH = "truth.png"
ROLES = ("val", "train")


def _rank_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _on_rank_0(function: Callable[[], Value]) -> Value:
    """Its value on every rank, computed on rank 0 only; an error of ours is raised on every rank."""
    rank, world = _rank_world()
    if world == 1:
        return function()
    answer: list[Any] = [None, None]
    if rank == 0:
        try:
            answer[0] = function()
        except DistwsssError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def with_truth(index: ShardIndex) -> list[tuple[int, int]]:
    """(shard, position) of every image that has a mask, in index order."""
    return [
        (shard, position)
        for shard, record in enumerate(index.shards)
        for position, fields in enumerate(record.members)
        if TRUTH in fields
    ]


def score(
    model: nn.Module, index: ShardIndex, samples: list[tuple[int, int]], config: Config, device: torch.device
) -> dict[str, ConfusionMatrix]:
    """Confusion matrices over `samples`: single, multi and, where `evaluate.crf` is set, single_crf, multi_crf."""
    rank, world = _rank_world()
    crf = config.evaluate.crf
    names = ["single", "multi"] if crf is None else ["single", "single_crf", "multi", "multi_crf"]
    matrices = {name: ConfusionMatrix(len(index.classes)) for name in names}
    rounds = -(-len(samples) // world)
    with bounded_pool(config.hardware.workers if crf else 0) as submit:
        for number in track(range(rounds), rounds, "evaluate"):
            turn = number * world + rank
            shard, position = samples[turn % len(samples)]
            fields = read_fields(index, shard, position, ["jpg"])
            image = decode_image(fields["jpg"], index.shards[shard].keys[position])
            truth = read_truth(index, shard, position) if turn < len(samples) else None
            for name in ("single", "multi"):
                labels, planes, classes = _predicted(model, image, config, name == "multi", device)
                if truth is None:  # a repeated image that keeps the ranks in step
                    continue
                matrices[name].update(labels, truth)
                if crf is not None:
                    submit(_counter(matrices[f"{name}_crf"], truth), crf_labels, image, planes, crf, classes)
    return _sum_over_ranks(matrices, device)


def _predicted(
    model: nn.Module, image: np.ndarray, config: Config, multi_scale: bool, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Class ids int64[H,W] without CRF, and what a CRF needs (`crf_planes`); the probabilities themselves are gone."""
    probabilities = predict_probabilities(model, image, config, multi_scale, device)
    labels = probabilities.argmax(dim=0).cpu().numpy()
    crf = config.evaluate.crf
    return labels, *((None, None) if crf is None else crf_planes(probabilities, crf.clip))


def _counter(matrix: ConfusionMatrix, truth: np.ndarray) -> Callable[[np.ndarray], None]:
    return lambda labels: matrix.update(labels, truth)


def _sum_over_ranks(matrices: dict[str, ConfusionMatrix], device: torch.device) -> dict[str, ConfusionMatrix]:
    if _rank_world()[1] == 1:
        return matrices
    stacked = torch.from_numpy(np.stack([matrix.matrix for matrix in matrices.values()]))
    stacked = stacked.to(device if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(stacked)
    for matrix, total in zip(matrices.values(), stacked.cpu().numpy(), strict=True):
        matrix.matrix = total
    return matrices


def _images(config: Config, split: str, other_data: bool) -> ShardIndex:
    """The index to score: this run's image shards, or shards prepared from the data root and split asked for."""
    if other_data:
        return load_index(_on_rank_0(lambda: prepare_other(config, split)), "images")
    train = split in ("train", config.data.train_split) and split not in ("val", config.data.val_split)
    return load_index(images_dir(config, "train" if train else "val"), "images")


def prepare_other(config: Config, split: str) -> Folder:
    """The folder of image shards of `data.root`'s `split`: this run's own where they hold the same images and masks,
    else made under run_dir/evaluate, once per content."""
    own = {}
    for role in ROLES:
        if (images_dir(config, role) / INDEX).is_file():
            index = load_index(images_dir(config, role), "images")
            own[fingerprint([index.parameters, index.extra.get("truth")])] = index.folder
    parent, name = config.run_dir / "evaluate", key_from_name(split)
    return prepare_split(config, split, lambda digest: own.get(digest, parent / f"images-{name}-{digest[:8]}"))


def _check_classes(model: nn.Module, index: ShardIndex, folder: Path) -> None:
    known = list(model.classes)
    if known != list(index.classes):
        raise DataError(
            f"{index.folder}: the data's classes are not those of the segmenter in {folder}\n"
            f"  data: {', '.join(index.classes)}\n  segmenter: {', '.join(known)}\n"
            "allowed: the same names in the same order; set data.classes or choose other data"
        )


def _rounded(values: Any) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _record(config: Config, index: ShardIndex, scored: int, matrices: dict[str, ConfusionMatrix]) -> dict[str, Any]:
    root = Path(config.data.root).resolve().name if config.data.root else config.data.dataset
    return {
        "data": root,
        "split": index.parameters.get("split", index.folder.name),
        "images": len(index),
        "scored": scored,
        "classes": list(index.classes),
        "labels_from": index.extra.get("labels_from"),
        "iou": {name: _rounded(matrix.iou()) for name, matrix in matrices.items()},
        "miou": {name: _rounded([matrix.miou()])[0] for name, matrix in matrices.items()},
        "confusion": {name: np.asarray(matrix.matrix).tolist() for name, matrix in matrices.items()},
    }


def evaluate(
    config: Config, split: str = "val", checkpoint: Path | None = None, other_data: bool = False
) -> dict[str, Any] | None:
    """Score a checkpoint (default: the one `evaluate.checkpoint` names) on `split`; print and return the scores.

    With `other_data` the split is read from `data.root` (another data set of the same classes) instead of this run's
    shards. Written to run_dir/evaluate/ as val.json or train.json (other data: SPLIT-DIGEST.json; an explicit
    checkpoint adds its folder and digest), and skipped where that is complete; None where no image has a mask. Raises
    CheckpointError without a segmenter, DataError for other classes, ShardError for damaged images, ConfigError where
    the record was made with other parameters.
    """
    folder = checkpoint_folder(config, checkpoint)
    device = pick_device(config.hardware.device, int(os.environ.get("LOCAL_RANK", "0")))
    model = load_segmenter(folder, device)
    index = _images(config, split, other_data)
    _check_classes(model, index, folder)
    samples = with_truth(index)
    if not samples:
        log.info(f"evaluate: {split}: no masks: nothing to score")
        return None
    parameters = _parameters(config, folder, index)
    path = _record_path(config, index, checkpoint, parameters)
    if _on_rank_0(lambda: is_done(path, parameters, f"evaluate: {path.name}")):
        log.info("evaluate: complete, skipped")
        record = _on_rank_0(lambda: read_json(path))
    else:
        matrices = score(model, verified(index), samples, config, device)
        record = _record(config, index, len(samples), matrices)
        record |= {"parameters": parameters, "checkpoint": describe_checkpoint(config, folder)}
        record["notes"] = notes(config, record)
        _on_rank_0(lambda: write_json(path, record))
    if _rank_world()[0] == 0:
        print_scores(record)
    return record


def _parameters(config: Config, folder: Path, index: ShardIndex) -> dict[str, Any]:
    section = config.evaluate.parameters()
    section.pop("checkpoint")  # the weights' digest says it
    if config.evaluate.probabilities == "constrained":
        section["temperature"] = config.train.temperature
    weights = sha256_file(folder / "model.safetensors")
    inputs = {"checkpoint": weights, "images": index.fingerprint, "truth": index.extra.get("truth")}
    return {"evaluate": section, "inputs": inputs}


def _record_path(config: Config, index: ShardIndex, checkpoint: Path | None, parameters: dict[str, Any]) -> Path:
    """val.json or train.json for the run's own data and pointer; anything else has a name of its own."""
    roles = [role for role in ROLES if images_dir(config, role) == index.folder]
    name = roles[0] if roles else index.folder.name.removeprefix("images-")
    if checkpoint is not None:
        name += f"-{checkpoint.name}-{parameters['inputs']['checkpoint'][:8]}"
    return config.run_dir / "evaluate" / f"{name}.json"
