"""What a trained classifier says of the train photographs: its average precision on those held out, and the tags that
all of a run's classifiers contradict. Called by `train.stages`.

A photograph is seen whole, as for its CAM at scale 1.00 (`seeds.base_size`, else the size it had on average in
training), but no larger than LONGEST.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from distwsss.config import Config
from distwsss.data.batches.loader import share_batch
from distwsss.data.doubtful import Doubt, first_doubts, write_doubts
from distwsss.data.holdout import MEASURED_FROM, classifier_held_out_keys, image_tags
from distwsss.data.images import decode_image
from distwsss.data.shards.format import name_from_key
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_fields
from distwsss.maths.average_precision import average_precision
from distwsss.maths.cam import scaled_input
from distwsss.models.export import from_pretrained
from distwsss.runtime import ranks
from distwsss.runtime.artifacts import read_json, read_pointer, write_bytes, write_json
from distwsss.runtime.layout import (
    average_precision_file,
    classifier_dir,
    done_file,
    doubtful_tags_file,
    images_dir,
    pointer,
    scores_file,
)
from distwsss.runtime.progress import log, track
from distwsss.train.engine.accelerate import all_sum, end_accelerator, make_accelerator
from distwsss.train.engine.zero_config import deepspeed_config

LONGEST = 320  # pixels of a photograph's longest side: what is in it is seen there too, in a fraction of the time
SHOWN = 20  # classes whose average precision the log names


def measure(config: Config, dropout: float) -> None:
    """The scores of a finished classifier for every train photograph, and its average precision on those held out, to
    classify/P/; skipped where they are there. Each rank looks at its share."""
    folder, index = classifier_dir(config, dropout), load_index(images_dir(config, "train"), "images")
    parameters = {
        "weights": read_json(done_file(folder))["sha256"],
        "images": index.fingerprint,
        "holdout": config.classify.holdout,
        "base_size": config.seeds.base_size,
    }
    accelerator = _engine_of_training(config, folder)
    try:
        known = accelerator.is_main_process and _is_measured(folder, parameters)
        if all_sum(accelerator, torch.tensor([int(known)])):  # rank 0 has looked, for all
            return
        model = from_pretrained(read_pointer(pointer(folder)) or folder, accelerator.device)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        scores = all_sum(accelerator, _scores(config, model, index, mine, f"classify {dropout:.2f}: scores"))
        if accelerator.is_main_process:
            _write(folder, index, scores.cpu().numpy(), parameters)
    finally:
        end_accelerator(accelerator)


def _engine_of_training(config: Config, folder: Path) -> Accelerator:
    """As it was while the classifier was trained: what a launcher insists on, and no other after DeepSpeed."""
    hardware, optim = config.hardware, config.classify.optim
    share = share_batch(optim.global_batch, hardware.micro_batch, ranks.rank(), ranks.world_size())
    zero = deepspeed_config(hardware, share, optim.clip_grad)
    return make_accelerator(hardware, share.accumulation, zero, folder)


def _is_measured(folder: Path, parameters: dict[str, Any]) -> bool:
    path = average_precision_file(folder)
    return path.is_file() and scores_file(folder).is_file() and read_json(path).get("parameters") == parameters


@torch.inference_mode()
def _scores(config: Config, model: nn.Module, index: ShardIndex, mine: slice, what: str) -> torch.Tensor:
    """float32[n,N] after the sigmoid, in shard order; rows of other ranks are 0."""
    places = list(enumerate(index.all().places()))
    scores = torch.zeros(len(places), len(index.classes) - 1)
    for row, place in track(places[mine], len(places[mine]), what):
        image = decode_image(read_fields(index, *place, ["jpg"])["jpg"], index.key(*place))
        factor = _side(config, max(image.shape[:2])) / max(image.shape[:2])
        scores[row] = model(scaled_input(image, factor, model))[0].sigmoid().float().cpu()
    return scores


def _side(config: Config, longest: int) -> float:
    """What the longest side of a photograph becomes, in pixels."""
    augment = config.classify.augment
    trained = sum(augment.resize) / 2 * (longest if augment.resize_by == "factor" else 1)
    return min(config.seeds.base_size or trained, LONGEST)


def _write(folder: Path, index: ShardIndex, scores: np.ndarray, parameters: dict[str, Any]) -> None:
    """scores: float32[n,N]. The file that says what they are of comes last."""
    buffer = io.BytesIO()
    np.save(buffer, scores)
    write_bytes(scores_file(folder), buffer.getvalue())
    kept_out = classifier_held_out_keys(index, parameters["holdout"])
    rows = [row for row, key in enumerate(index.all().keys()) if key in kept_out]
    record = precision_record(index.classes[1:], scores[rows], _targets(index)[rows])
    names = sorted(name_from_key(key) for key in kept_out)
    write_json(average_precision_file(folder), {**record, "ids": names, "parameters": parameters})


def _targets(index: ShardIndex) -> np.ndarray:
    """bool[n,N], whether a photograph has the tag, in shard order."""
    tags = image_tags(index).values()
    return np.array([[label in labels for label in range(1, len(index.classes))] for labels in tags])


def precision_record(classes: list[str], scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """scores float[n,N], targets bool[n,N] -> {photographs, mean, classes: {name: {average_precision, positives}}};
    None for a class that none of the n photographs has."""
    found = [average_precision(scores[:, k], targets[:, k]) for k in range(len(classes))]
    known = [value for value in found if not np.isnan(value)]
    each = {
        name: {"average_precision": None if np.isnan(value) else value, "positives": int(targets[:, k].sum())}
        for k, (name, value) in enumerate(zip(classes, found, strict=True))
    }
    return {"photographs": len(scores), "mean": float(np.mean(known)) if known else None, "classes": each}


def precision_line(record: dict[str, Any]) -> str:
    """Mean, then the classes from the worst to the best; all in percent."""
    if not record["photographs"]:
        return (
            f"average precision was not measured: no photograph is held out (from {MEASURED_FROM} on, "
            "`classify.holdout` of them are)"
        )
    values = {name: each["average_precision"] for name, each in record["classes"].items()}
    known = sorted((value, name) for name, value in values.items() if value is not None)
    absent = [name for name, value in values.items() if value is None]
    parts = [", ".join(f"{name} {100 * value:.1f}" for value, name in known[:SHOWN]) + ", ..." * (len(known) > SHOWN)]
    parts += [f"no photograph with {', '.join(absent)}"] if absent else []
    mean = "unknown" if record["mean"] is None else f"{100 * record['mean']:.1f}"
    return f"average precision on {record['photographs']} photographs held out: mean {mean} ({'; '.join(parts)})"


def tell(config: Config) -> list[Doubt]:
    """Log what was measured of each classifier; write and log the tags that all of them, on average, contradict."""
    folders = [classifier_dir(config, p) for p in config.classify.dropouts]
    records = [read_json(average_precision_file(folder)) for folder in folders]
    said = {folder.name: precision_line(record) for folder, record in zip(folders, records, strict=True)}
    for name, line in said.items() if records[0]["photographs"] else [("", precision_line(records[0]))]:
        log.info(f"{f'classify {name}'.rstrip()}: {line}")
    index, path = load_index(images_dir(config, "train"), "images"), doubtful_tags_file(config)
    mean = np.mean([np.load(scores_file(folder), allow_pickle=False) for folder in folders], axis=0)
    doubts = write_doubts(path, doubtful_tags(index, mean, set(records[0]["ids"])))
    photographs = len({each.id for each in doubts})
    log.info(
        f"classify: the classifiers contradict the tags of {photographs} of {len(index)} photographs"
        + (f"; all in {path}. The scores of those they were trained on lean towards the tags. First:" if doubts else "")
        + f"\n{first_doubts(doubts, 5)}".rstrip()
    )
    return doubts


def doubtful_tags(index: ShardIndex, scores: np.ndarray, held_out: set[str]) -> list[Doubt]:
    """Of each photograph the class without a tag that scores highest, if above 0.5, and the tagged one that scores
    lowest, if below. scores: float[n,N] in shard order; held_out: ids."""
    found = []
    for key, row, has in zip(index.all().keys(), scores, _targets(index), strict=True):
        name = name_from_key(key)
        for tagged, k in ((False, np.where(has, -1, row).argmax()), (True, np.where(has, row, 2).argmin())):
            doubt = Doubt(name, index.classes[k + 1], tagged, float(row[k]), name in held_out, index.fingerprint)
            if has[k] == tagged and doubt.doubt > 0.5:
                found.append(doubt)
    return found
