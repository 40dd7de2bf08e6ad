"""`distwsss new FOLDER`: facts of data and machine -> by `planning.rules` a short configuration with its reasons.

Called by `pipeline`. As nnU-Net's plan: nothing is tried out, every value has a stated rule.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import yaml

import distwsss
from distwsss.config import Config
from distwsss.config.load import check_config
from distwsss.config.networks import BackboneSection
from distwsss.data.check import check_listings
from distwsss.data.sources.listing import IMAGE_SUFFIXES
from distwsss.errors import ConfigError, DataError, counted
from distwsss.models.weights.saliency import network_path
from distwsss.planning.checks import missing_weights
from distwsss.planning.facts import DataFacts, MachineFacts, read_data, read_machine
from distwsss.planning.plan import about
from distwsss.planning.rules import Choice, Facts, choose, saliency_choices, saliency_line
from distwsss.planning.times import stage_times
from distwsss.runtime.artifacts import write_bytes
from distwsss.runtime.progress import silent

DATA_KEYS = {
    "root": "relative to the folder where commands are started",
    "images": "the pictures lie beside the tags",
}


def has_weights(backbone: str) -> bool:
    """Whether its published weights are here or can be fetched."""
    return not list(missing_weights(BackboneSection(name=backbone, output_stride=32)))


def has_saliency(network: str = "u2netp") -> bool:
    """Whether saliency maps can be made here without fetching or installing anything."""
    return importlib.util.find_spec("onnxruntime") is not None and network_path(network).is_file()


def new(folder: Path, output: Path | None = None) -> Path:
    """Write the configuration for the data set in `folder` to `output` (default: NAME.yaml here); returns its path.

    Raises ConfigError for a file that is there already, DataError for a folder that is no data set.
    """
    path = output or Path(f"{_name(folder.absolute())}.yaml")
    if path.exists():
        raise ConfigError(f"{path} is there already; give another file by --output, or remove it")
    tree = {"name": _name(path), "data": _data(folder)}
    config = check_config(tree, where=f"new {folder}")
    facts = Facts(read_data(config), read_machine())
    choices = choose(facts, has_weights) + saliency_choices(has_saliency())
    chosen = check_config(_merged(tree, choices), where=f"new {folder}")
    choices += _micro_batch(chosen, facts)
    text = configuration_text(tree, choices, _header(folder, path, chosen, facts))
    check_config(yaml.safe_load(text), where=str(path))
    write_bytes(path, text.encode())
    return path


def problems_of(path: Path) -> str:
    """What is wrong with the lists and tags of the data set that the configuration at `path` names, for people; empty
    where nothing is. `prepare` would refuse them, and looks into the pictures too."""
    try:
        with silent():  # `new` has said what was inferred
            check_listings(check_config(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path)))
    except DataError as error:
        return str(error)
    return ""


def _name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", path.stem).strip("_") or "mine"


def _data(folder: Path) -> dict[str, Any]:
    """The `data` section of what lies in `folder`, by its layout."""
    if not folder.is_dir():
        raise DataError(f"found no folder {folder.absolute()}; give the folder of a data set")
    if (folder / "JPEGImages").is_dir() and (folder / "ImageSets").is_dir():
        return {"dataset": "voc", "root": str(folder)}
    if (folder / "annotations").is_dir() and any((folder / "annotations").glob("instances_*.json")):
        return {"dataset": "coco", "root": str(folder)}
    data: dict[str, Any] = {"dataset": "folder", "root": str(folder)}
    if not (folder / "images").is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        data["images"] = "."
    return data


def _merged(tree: dict[str, Any], choices: list[Choice]) -> dict[str, Any]:
    result: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    for choice in choices:
        section = result
        *parents, last = choice.key.split(".")
        for part in parents:
            section = section.setdefault(part, {})
        section[last] = choice.value
    return result


def _micro_batch(config: Config, facts: Facts) -> list[Choice]:
    """On GPUs: the most images of a rank's share that fit, by `estimate`'s arithmetic."""
    if not facts.gpus:
        return []
    from distwsss.train.estimate.cards import Card
    from distwsss.train.estimate.estimate import largest_micro_batch
    from distwsss.train.estimate.fake_step import classifier_stage, segmenter_stage

    classes = ["background", *facts.data.classes]
    card = Card(facts.machine.gpu, int(facts.gpu_memory), {})
    stages = classifier_stage(config.classify, classes), segmenter_stage(config.train, classes)
    fits = min(largest_micro_batch(stage, config.hardware, card, {}) for stage in stages)
    if fits == 0:
        raise ConfigError(f"{config.train.backbone.name} does not fit into {card.memory} GiB of {card.title}")
    return [Choice("hardware.micro_batch", fits, f"what fits into {card.memory} GiB (`distwsss estimate`)")]


def _header(folder: Path, path: Path, config: Config, facts: Facts) -> list[str]:
    data, machine = facts.data, facts.machine
    times = stage_times(config, data, machine)
    expected = ", ".join(f"{stage} {about(seconds)}" for stage, seconds in times.items())
    return [
        f"Made by `distwsss new {folder}`, version {distwsss.__version__}. Every value may be changed; what stands",
        "nowhere is the default (`distwsss config show --describe`). The rules: docs/new.md.",
        f"  distwsss run --config {path}",
        f"  distwsss predict --config {path} PHOTOGRAPH -o out",
        "",
        *describe_facts(data, machine),
        f"Expected: {expected}; {about(sum(times.values()))} in all, within a factor of 2",
        saliency_line(config.cue()),
    ]


def describe_facts(data: DataFacts, machine: MachineFacts) -> list[str]:
    """Two lines for people."""
    classes = ", ".join(f"{name} {count}" for name, count in data.classes.items())
    masks = f"masks of {data.masks}" if data.masks else "no masks"
    scored = f"{data.scored} in the val list" if data.scored else "no val list"
    gpus = f"{machine.gpus} x {machine.gpu}, {machine.gpu_memory:.0f} GiB" if machine.gpus else "no GPU"
    return [
        f"Data: {counted(data.photographs, 'photograph')}, {data.longest} pixels long (median), {masks}, {scored}; "
        f"{len(data.classes)} classes: {classes}",
        f"Machine: {counted(machine.cores, 'core')}, {machine.memory:.0f} GiB, {gpus}",
    ]


def configuration_text(tree: dict[str, Any], choices: list[Choice], header: list[str]) -> str:
    """The YAML file: `header` as comments, then each value with its reason beside it."""
    why = {f"data.{key}": text for key, text in DATA_KEYS.items()} | {choice.key: choice.why for choice in choices}
    lines = [f"# {line}".rstrip() for line in header]
    return "\n".join([*lines, *_lines(_merged(tree, choices), why, "")]) + "\n"


def _lines(tree: dict[str, Any], why: dict[str, str], prefix: str) -> list[str]:
    indent, lines = "  " * prefix.count("."), []
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, why, f"{prefix}{key}.")]
            continue
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
        text = text.removesuffix("\n...\n").strip()
        reason = why.get(f"{prefix}{key}")
        lines.append(f"{indent}{key}: {text}" + (f"  # {reason}" if reason else ""))
    return lines
