"""Whether shards and networks on the disk are those that the configuration would make: a stage that is called alone
refuses to mix as `run` does. Called by the stages before they read what another one wrote.

Every check raises ConfigError naming each key that differs, with what it was and is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distwsss.config import Config
from distwsss.data.prepare import data_parameters
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.models.export import TRAINER
from distwsss.runtime.artifacts import check_same, fingerprint, read_json
from distwsss.runtime.layout import classifier_dir, done_file, saliency_dir


def _compare(found: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    """`check_same` of those entries of `wanted` that were recorded."""
    names = [name for name in wanted if name in found]
    check_same({name: found[name] for name in names}, {name: wanted[name] for name in names}, what)


def check_images(config: Config, images: ShardIndex) -> None:
    """Image shards against `data` and `prepare`."""
    wanted = {"data": data_parameters(config), "prepare": config.prepare.parameters()}
    _compare(images.parameters, wanted, f"prepare ({images.folder})")


def check_classifier(config: Config, dropout: float) -> None:
    """A finished classifier against `classify`."""
    folder = classifier_dir(config, dropout)
    wanted = {"seed": config.seed, "classify": classifier_section(config), "dropout": dropout}
    _compare(_record(done_file(folder)).get("parameters", {}), wanted, f"classify {dropout:.2f} ({folder})")


def classifier_section(config: Config) -> dict[str, Any]:
    """What of `classify` each classifier depends on: each p is a run of its own."""
    return {**config.classify.parameters(), "dropouts": None}


def _record(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def seed_parameters(
    config: Config, images: ShardIndex, classifiers: dict[str, Any], saliency: str | None = None
) -> dict[str, Any]:
    """What the fingerprint of the seed shards covers. `classifiers`: sha256 of the weights for each p, as 0.05;
    `saliency`: the fingerprint of the maps' shards, where the seeds make use of them."""
    maps = {"saliency": saliency} if config.seeds.uses_saliency() else {}
    return {**seed_keys(config), "inputs": {"images": images.fingerprint, "classifiers": classifiers, **maps}}


def seed_keys(config: Config) -> dict[str, Any]:
    """What of it the configuration says."""
    section = {k: v for k, v in config.resolved_seeds().parameters().items() if k not in config.vote_keys()}
    # the list too: digests of classifiers are written in the order of their keys, but s0.png, s1.png, ... follow it
    return {"seeds": section, "dropouts": config.classify.dropouts}


def vote_parameters(config: Config, seeds: dict[str, Any], selected: Any = None) -> dict[str, Any]:
    """What the fingerprint of the pseudo-label shards covers, of seeds with the parameters `seeds`. `selected`: what
    `seeds.select` found, for `vote_on: selected`."""
    inputs = {"seeds": fingerprint(seeds), **({"selected": selected} if selected else {})}
    return {**config.vote_keys(), "inputs": inputs}


def check_seeds(config: Config, images: ShardIndex, found: dict[str, Any], what: str) -> None:
    """Parameters of seeds against `seeds`, the images, the classifiers and the saliency maps, of which those that are
    gone are taken as the seeds' own."""
    inputs = found.get("inputs", {})
    known, maps = inputs.get("classifiers", {}), inputs.get("saliency")
    if config.seeds.uses_saliency() and (saliency_dir(config) / INDEX).is_file():
        maps = load_index(saliency_dir(config), "saliency").fingerprint
    names = {f"{p:.2f}": _record(done_file(classifier_dir(config, p))).get("sha256") for p in config.classify.dropouts}
    digests = {name: digest or known.get(name) for name, digest in names.items()}
    _compare(found, seed_parameters(config, images, digests, maps), what)


def check_vote(config: Config, images: ShardIndex, pseudo: ShardIndex) -> None:
    """Pseudo-label shards against `seeds` and what their seeds were made of (not known of those from before it was
    kept)."""
    what, made_of = f"the vote ({pseudo.folder})", pseudo.extra.get("seed_parameters", {})
    check_seeds(config, images, made_of, what)
    inputs = pseudo.parameters.get("inputs", {})
    wanted = vote_parameters(config, made_of, inputs.get("selected"))
    _compare(pseudo.parameters, wanted if made_of else {**wanted, "inputs": inputs}, what)


def check_segmenter(config: Config, checkpoint: Path) -> None:
    """A checkpoint of the run's segmenter against `train`; what was held out follows from the masks, not from it."""
    found = _record(checkpoint / TRAINER).get("parameters", {})
    found = {**found, "train": {**found.get("train", {}), "holdout": None}} if found else {}
    wanted = {"seed": config.segmenter_seed(), "train": {**config.train.parameters(), "holdout": None}}
    _compare(found, wanted, f"train ({checkpoint})")
