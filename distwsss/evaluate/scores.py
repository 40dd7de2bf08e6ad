"""What is said about an evaluation: the checkpoint's training, notes, the table. Called by `evaluate` and `report`.

A number is printed with the list, the image count, the checkpoint and the settings it belongs to, without and with
CRF, single scale and multi-scale, side by side.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from distwsss.config.crf import CRF_PARAMS
from distwsss.config.schema import Config
from distwsss.runtime.artifacts import flatten, read_json
from distwsss.runtime.layout import checkpoints_dir, segmenter_dir
from distwsss.runtime.progress import print_table, say

COLUMNS = {"single": "single scale", "single_crf": "+ CRF", "multi": "multi-scale + flip", "multi_crf": "+ CRF"}
VOC_VAL_IMAGES = 1449
SETTINGS = {  # what to say -> the last part of the keys under which a checkpoint's files may record it
    "step": ("step",),
    "labels": ("labels",),
    "loss": ("loss",),
    "noisy": ("noisy",),
    "temperature": ("temperature",),
    "t": ("vote_threshold", "threshold"),
    "cue": ("cue",),
}


def _recorded(folder: Path) -> dict[str, Any]:
    """Settings found in the checkpoint's own JSON files; whatever is absent or unreadable is left out."""
    flat: dict[str, Any] = {}
    for name in ("config.json", "trainer.json"):
        try:
            flat.update(flatten(read_json(folder / name)))
        except (OSError, ValueError):
            continue
    found = {}
    for setting, leaves in SETTINGS.items():
        values = [flat[key] for leaf in leaves for key in flat if key.rsplit(".", 1)[-1] == leaf]
        if values:
            found[setting] = next((value for value in values if value is not None), None)
    return found


def describe_checkpoint(config: Config, folder: Path) -> dict[str, Any]:
    """`folder`'s name, step, and the labels, loss, temperature, t and cue it was trained with, as far as known.

    The run's own checkpoints were trained with the run's configuration; others say only what they record.
    """
    known: dict[str, Any] = {}
    if folder.resolve().parent == checkpoints_dir(segmenter_dir(config)).resolve():
        train = config.train
        known = {"labels": train.labels, "loss": train.loss, "temperature": train.temperature}
        known["t"] = train.vote_threshold or config.vote_threshold()
        if train.noisy != "negative":
            known["noisy"] = train.noisy
        known["cue"] = config.training_cue()
    if match := re.fullmatch(r"step-(\d+)", folder.name):
        known["step"] = int(match[1])
    known.update({name: value for name, value in _recorded(folder).items() if value is not None or name not in known})
    if known.get("labels", "vote") != "vote":
        known.pop("t", None)
    return {"folder": folder.name, **known}


def checkpoint_line(checkpoint: dict[str, Any]) -> str:
    """`step-00002000 (step 2000): labels vote, t = 6, loss hybrid, temperature 1.0`."""
    said = [f"labels {checkpoint['labels']}" if "labels" in checkpoint else "training settings not recorded"]
    if checkpoint.get("t") is not None:
        said.append(f"t = {checkpoint['t']}")
    if "loss" in checkpoint:
        said.append(f"loss {checkpoint['loss']}")
        if checkpoint["loss"] == "hybrid" and checkpoint.get("noisy") == "ignore":
            said.append("noisy pixels ignored")
    if "temperature" in checkpoint and checkpoint.get("loss") != "cross_entropy":
        value = checkpoint["temperature"]
        said.append("no temperature" if value is None else f"temperature {value}")
    return f"{checkpoint['folder']} (step {checkpoint.get('step', 'unknown')}): {', '.join(said)}"


def cue_line(record: dict[str, Any]) -> str:
    """`learned from tags + saliency (u2netp)`: what a number must not be compared without."""
    return f"learned from {record.get('cue') or 'what is not recorded'}"


def notes(config: Config, record: dict[str, Any]) -> list[str]:
    """What a reader must know not to misread the numbers."""
    lines = ["255 in a mask is not scored; the segmenter never predicts 255"]
    if record["scored"] < record["images"]:
        lines.append(f"{record['images'] - record['scored']} images have no mask and are not scored")
    if record["labels_from"] == "masks":
        lines.append("image-level labels from: masks")
    if config.data.dataset == "voc" and record["scored"] != VOC_VAL_IMAGES:
        lines.append(f"not the {VOC_VAL_IMAGES} images of VOC 2012 val: not comparable with published VOC figures")
    return lines


def protocol_line(record: dict[str, Any]) -> str:
    """Scales, averaging, windows and CRF parameters of the figures."""
    section = record["parameters"]["evaluate"]
    scales = ", ".join(f"{scale:g}" for scale in section["scales"])
    line = f"multi-scale {scales} + flip; {section['probabilities']}, {section['average']} averaged; "
    if section.get("mode") == "slide":
        line += f"windows of {section['crop_size']} every {section['stride']}; "
    crf = section["crf"]
    if crf is None:
        return line + "CRF off"
    names = [name for name, params in CRF_PARAMS.items() if params.parameters() == crf]
    return line + (
        f"CRF {' '.join([*names, ''])}{crf['iterations']} iterations, gaussian {crf['gaussian_sxy']:g}/"
        f"{crf['gaussian_compat']:g}, bilateral {crf['bilateral_sxy']:g}/{crf['bilateral_srgb']:g}/"
        f"{crf['bilateral_compat']:g}, over all classes"
    )


def or_none(value: float) -> float | None:
    """For JSON, which has no NaN: None."""
    return None if math.isnan(value) else float(value)


def percent(value: float | None) -> str:
    """0.4567 as `45.7`; None (class absent) as `-`."""
    return "-" if value is None else f"{100 * value:.1f}"


def table_rows(record: dict[str, Any]) -> list[list[str]]:
    """Heading, a row per class, and the mIoU: the table that `print_scores` and the report show."""
    columns = [name for name in COLUMNS if name in record["miou"]]
    rows = [["IoU (%)", *(COLUMNS[name] for name in columns)]]
    for number, name in enumerate(record["classes"]):
        rows.append([name, *(percent(record["iou"][column][number]) for column in columns)])
    rows.append(["mIoU", *(percent(record["miou"][column]) for column in columns)])
    return rows


def print_scores(record: dict[str, Any]) -> None:
    """The table and everything its numbers refer to, on stdout."""
    say(f"evaluate: {record['data']}, list {record['split']}: {record['scored']} of {record['images']} images scored")
    say(f"checkpoint {checkpoint_line(record['checkpoint'])}")
    say(cue_line(record))
    say(protocol_line(record))
    for note in record["notes"]:
        say(f"note: {note}")
    rows = table_rows(record)
    print_table(rows, (1, len(rows) - 1))
