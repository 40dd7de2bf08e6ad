"""What `run --remake` will make anew and what it keeps, a line for each stage before any works. Called by `pipeline`.

A stage is made anew where its own keys are others than recorded, or where one that it reads is. Masks concern only what
scores (and training on `train.labels: truth`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distwsss.config import Config
from distwsss.data.changes import MASKS
from distwsss.data.made_with import classifier_section, seed_keys
from distwsss.data.prepare import changed_splits
from distwsss.data.saliency import saliency_parameters, source_digest
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import load_index
from distwsss.runtime.artifacts import differences, read_json
from distwsss.runtime.layout import (
    classifier_dir,
    evaluation_file,
    images_dir,
    pseudo_dir,
    quality_file,
    saliency_dir,
    seeds_dir,
    segmenter_dir,
)
from distwsss.runtime.storage import Folder
from distwsss.train.earlier import recorded

KEPT = "kept"
NOT_THERE = "to be made"
IMAGES = "photographs, tags or classes"
SALIENCY = "saliency maps"


def remake_lines(config: Config, warm_start: bool) -> dict[str, str]:
    """Stage -> what becomes of it, in the order of the stages."""
    changed = changed_splits(config)
    prepared = "; ".join(f"{role}: {', '.join(found)}" for role, found in changed.items())
    complete = (images_dir(config, "train") / INDEX).is_file()
    images = "" if complete and all(line.startswith(MASKS) for line in changed.get("train", [])) else IMAGES
    maps = _saliency(config, images)
    cue, of_seeds = (SALIENCY if maps else ""), config.seeds.uses_saliency()
    classify = _classify(config, images or (cue if config.classify.saliency else ""))
    seeds = _seeds(config, images or (classify and "classifiers") or (cue if of_seeds else ""))
    vote = _why(_index(pseudo_dir(config)), config.vote_keys(), seeds and "seeds")
    masks = "masks" if "train" in changed else ""
    train = _train(config, {"vote": vote and "pseudo-labels", "truth": images or masks}, seeds and "seeds")
    lines = {
        "prepare": prepared and f"anew: {prepared}" if complete else NOT_THERE,
        "saliency": maps,
        "classify": classify + ("; from the weights of those before" if classify and warm_start else ""),
        "seeds": "; ".join(filter(None, (seeds, vote and f"the vote {vote}"))),
        "stats": _why(_record(quality_file(config)), {}, ((seeds or vote) and "seeds or vote") or masks),
        "train": train,
        "evaluate": _evaluate(config, (train and "the segmenter") or (("val" in changed and "val") or "")),
        "report": "anew",
    }
    return {stage: text or KEPT for stage, text in lines.items()}


def _why(found: dict[str, Any] | None, own: dict[str, Any], read: str) -> str:
    """Why what was made with the parameters `found` is made anew: keys of its `own`, or what it reads; nothing where it
    is kept."""
    if found is None:
        return NOT_THERE
    keys = list(differences({key: found[key] for key in own if key in found}, own))
    reasons = [*keys[:5], *(["..."] if len(keys) > 5 else []), *([read] if read else [])]
    return f"anew, as {', '.join(reasons)} changed" if reasons else ""


def _saliency(config: Config, images: str) -> str:
    """Of the saliency maps; nothing where none are asked for."""
    if config.saliency.name is None:
        return ""
    found = _index(saliency_dir(config))
    if found is None or images:
        return _why(found, {}, images)
    index = load_index(images_dir(config, "train"), "images")
    return _why(found, saliency_parameters(config, index, source_digest(config, index) or ""), "")


def _classify(config: Config, read: str) -> str:
    """Of the classifiers; also where what they read was replaced since they were trained."""
    own = {"seed": config.seed, "classify": classifier_section(config)}
    now = {} if read else _inputs(config)
    lines = {}
    for p in config.classify.dropouts:
        found = recorded(classifier_dir(config, p))
        stale = differences({"inputs": found.get("inputs")}, {"inputs": now}) if found is not None and now else {}
        which = [what for key, what in (("images", IMAGES), ("saliency", SALIENCY)) if f"inputs.{key}" in stale]
        lines[p] = _why(found, own, read or ", ".join(which))
    return "; ".join(f"p = {p:.2f} {why}" for p, why in lines.items() if why)


def _inputs(config: Config) -> dict[str, str]:
    """Fingerprints of the shards that classifiers are trained on."""
    folders = {"images": images_dir(config, "train")}
    if config.classify.saliency is not None:
        folders["saliency"] = saliency_dir(config)
    return {kind: load_index(folder, kind).fingerprint for kind, folder in folders.items()}


def _seeds(config: Config, read: str) -> str:
    """Of the seeds, whose parameters a vote records where they were dropped after it."""
    found, vote = _index(seeds_dir(config)), pseudo_dir(config)
    if found is None and (vote / INDEX).is_file():
        found = load_index(vote, "pseudo").extra.get("seed_parameters")
    return _why(found, seed_keys(config), read)


def _train(config: Config, read: dict[str, str], seeds: str) -> str:
    own = {"seed": config.segmenter_seed(), "train": config.train.parameters()}
    return _why(recorded(segmenter_dir(config)), own, read.get(config.train.labels, seeds))


def _evaluate(config: Config, read: str) -> str:
    found, own = _record(evaluation_file(config, "val")), config.evaluate.parameters()
    if found is not None:  # the network's temperature and weights stand for what the section says of them
        found = {"evaluate": {key: value for key, value in found["evaluate"].items() if key != "temperature"}}
    return _why(found, {"evaluate": {key: value for key, value in own.items() if key != "checkpoint"}}, read)


def _index(folder: Folder) -> dict[str, Any] | None:
    return load_index(folder).parameters if (folder / INDEX).is_file() else None


def _record(path: Path) -> dict[str, Any] | None:
    return dict(read_json(path)["parameters"]) if path.is_file() else None
