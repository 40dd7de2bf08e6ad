"""The `seeds` stage: image shard i -> seed shard i -> pseudo-label shard i. Called by `cli`.

A chunk of work is a shard (`seeds.chunk`), done by Ray's actors, by a local pool or in this process: the executor.
Only this process, which holds the run's lock, publishes shards. Finished ones are recorded beside them, so a rerun
makes only what is missing; the index comes last.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from distwsss.config import Config
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import images_dir, load_index, pseudo_dir, seeds_dir
from distwsss.data.shards.stage import ShardStage
from distwsss.errors import CheckpointError, DataError, report_problems
from distwsss.models.export import WEIGHTS, verified_checkpoint
from distwsss.runtime.artifacts import (
    check_same,
    fingerprint,
    free_space_check,
    is_done,
    read_json,
    read_pointer,
    sha256_file,
    write_bytes,
)
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import log, track
from distwsss.runtime.storage import Folder, remove_tree
from distwsss.seeds.chunk import CamTask, SeedResult, SeedTask, VoteTask, vote_shard, whole_shard
from distwsss.seeds.on_ray import check_roots, use_ray, work_on_ray
from distwsss.seeds.progress import SeedProgress

_Work: TypeAlias = Generator[tuple[SeedTask, SeedResult], None, None]


def classifier_folders(config: Config) -> list[Path]:
    """The checkpoint of each classifier. Raises CheckpointError where one is not there or does not verify."""
    folders = []
    for p in config.classify.dropouts:
        checkpoints = config.classifier_dir(p) / "checkpoints"
        folder = read_pointer(checkpoints / "LAST")
        if folder is None or not (checkpoints.parent / "done.json").is_file():
            raise CheckpointError(f"{checkpoints}: no finished classifier for p = {p:.2f}; run `distwsss classify`")
        folders.append(verified_checkpoint(folder))
    return folders


def _seed_parameters(config: Config) -> dict[str, Any]:
    """What the fingerprint of the seed shards covers; known whether or not these were kept."""
    images, classifiers = load_index(images_dir(config, "train"), "images"), classifier_folders(config)
    section = {k: v for k, v in config.seeds.parameters().items() if k not in ("vote_on", "threshold")}
    weights = {f"{p:.2f}": sha256_file(c / WEIGHTS) for p, c in zip(config.classify.dropouts, classifiers, strict=True)}
    inputs = {"images": images.fingerprint, "classifiers": weights}
    # the list too: `weights` is written in the order of its keys, but s0.png, s1.png, ... follow the list
    return {"seeds": section, "dropouts": config.classify.dropouts, "inputs": inputs}


def _stages(config: Config) -> tuple[ShardStage, ShardStage]:
    seeds = _seed_parameters(config)
    inputs = {"seeds": fingerprint(seeds)}
    vote = {"vote_on": config.voting_seeds(), "threshold": config.vote_threshold(), "inputs": inputs}
    shards = ShardStage("seeds", "seeds", seeds_dir(config), seeds)
    return shards, ShardStage("vote", "pseudo", pseudo_dir(config), vote)


def _vote_task(config: Config) -> VoteTask:
    voters, names = config.voting_seeds(), config.seed_names()
    return VoteTask(tuple(names.index(name) for name in voters), tuple(voters), config.vote_threshold())


def _chunk(config: Config, images: Folder, classifiers: list[Path], shard: int, quarantine: bool) -> SeedTask:
    """The work on one shard: its CAM tasks in the order of the seeds' names, p outermost."""
    hardware, section = config.hardware, config.seeds
    names = iter(config.seed_names())
    options = (section, hardware.device, hardware.mixed_precision, hardware.cam_batch)
    cams = tuple(
        CamTask(next(names), images, shard, folder.resolve(), scale, *options)
        for folder in classifiers
        for scale in section.scales
    )
    return SeedTask(images, shard, section, _vote_task(config), cams, quarantine)


def generate_seeds(config: Config, on_bad: str = "fail") -> None:
    """CAM and CRF of every (p, scale) over the train image shards, to shards/NAME/seeds; the vote on the way, to
    shards/NAME/pseudo, whose index `vote_seeds` writes.

    `on_bad`: an image whose CAM or CRF raises ends the run (`fail`, DataError naming it), or all its seeds abstain
    (`quarantine`: label 255, listed in runs/NAME/seeds/quarantine.jsonl).
    """
    images, (seeds, vote) = load_index(images_dir(config, "train"), "images"), _stages(config)
    if is_done(seeds.folder / INDEX, seeds.parameters, "seeds"):
        log.info("seeds: complete, skipped")
        return
    voted = _is_voted(vote, seeds)  # refuses here what it would refuse after hours of work
    names, classifiers = config.seed_names(), classifier_folders(config)
    free_space_check(seeds.folder, len(images) * len(names) * 8_000, "seeds")
    seeds.remove_stale()
    vote.remove_stale()
    known = {shard: seeds.finished(shard) for shard in range(len(images.shards))}
    todo = [shard for shard, record in known.items() if record is None]
    if len(todo) < len(known):
        log.info(f"seeds: {len(known) - len(todo)} of {len(known)} shards are there already")
    tasks = [_chunk(config, images.folder, classifiers, shard, on_bad == "quarantine") for shard in todo]
    progress = SeedProgress(images.counts, todo, len(names))
    with closing(_work(config, tasks, progress)) as work:  # a full disk here ends the workers at once
        for task, result in work:
            seeds.publish(task.shard, result.seeds, devices=result.devices, bad=result.bad)
            if not voted and vote.finished(task.shard) is None:
                vote.publish(task.shard, result.pseudo)
            progress.shard_done(task.shard)
    progress.close()
    _complete_seeds(config, seeds, images.classes, len(known), on_bad)


def _complete_seeds(config: Config, seeds: ShardStage, classes: list[str], count: int, on_bad: str) -> None:
    records = [read_json(seeds.record_path(shard)) for shard in range(count)]
    bad = {name: reason for record in records for name, reason in record["bad"].items()}
    if bad and on_bad == "fail":
        problems = [f"{name}: {reason}" for name, reason in bad.items()]
        title = f"{seeds.folder}: some abstain, of an earlier attempt; use --on-bad quarantine, or delete that folder"
        raise DataError(report_problems(title, problems))
    if bad:
        path = config.run_dir / "seeds" / "quarantine.jsonl"
        write_bytes(path, "".join(f"{json.dumps({'id': k, 'reasons': [v]})}\n" for k, v in bad.items()).encode())
        log.warning(f"seeds: those of {len(bad)} images abstain, see {path}")
    devices = "+".join(sorted({device for record in records for device in record["devices"]}))
    extra = {"seeds": config.seed_names(), "versions": _versions(devices), "quarantined": sorted(bad)}
    seeds.complete(count, classes, extra)


def _work(config: Config, tasks: list[SeedTask], progress: SeedProgress) -> _Work:
    """(task, result) as shards are finished, by the executor that the configuration asks for."""
    if tasks and use_ray(config.hardware):
        yield from work_on_ray(config, tasks, progress)
    else:
        yield from spread(whole_shard, tasks, config.hardware.workers)


def vote_seeds(config: Config) -> None:
    """The vote of `seeds.vote_on` at t = `seeds.threshold`, to shards/NAME/pseudo."""
    images, (seeds, vote) = load_index(images_dir(config, "train"), "images"), _stages(config)
    if _is_voted(vote, seeds):
        log.info("vote: complete, skipped")
        return
    found, task = load_index(seeds.folder, "seeds"), _vote_task(config)
    check_same(found.parameters, seeds.parameters, f"seeds ({found.folder})")
    free_space_check(vote.folder, sum(record.bytes for record in images.shards), "vote")
    vote.remove_stale()
    todo = [shard for shard in range(len(images.shards)) if vote.finished(shard) is None]
    work = partial(vote_shard, images.folder, seeds.folder, task)
    for shard, packed in track(spread(work, todo, config.hardware.workers), len(todo), "vote", "shard"):
        vote.publish(shard, packed)
    extra = {"seeds": config.voting_seeds(), "seed_parameters": seeds.parameters}
    vote.complete(len(images.shards), images.classes, extra)


def _is_voted(vote: ShardStage, seeds: ShardStage) -> bool:
    """`is_done` of the vote, which also names what differs in the seeds: their own index may be gone
    (`keep_maps: false`). An index written before `seed_parameters` was kept shows their fingerprint only."""
    if (vote.folder / INDEX).is_file():
        known = load_index(vote.folder, "pseudo").extra.get("seed_parameters", seeds.parameters)
        check_same(known, seeds.parameters, f"the vote ({vote.folder})")
    return is_done(vote.folder / INDEX, vote.parameters, "the vote")


def _versions(device: str) -> dict[str, str]:
    """What byte-identity holds for: one device type with one set of library versions."""
    return {"device": device, "torch": torch.__version__, "numpy": np.__version__}


def run_seeds(config: Config, on_bad: str = "fail") -> None:
    """Seeds, then the vote; `seeds.keep_maps: false` drops the seed shards afterwards."""
    check_roots(config)
    pseudo_done = (pseudo_dir(config) / INDEX).is_file()
    if not (pseudo_done and not config.seeds.keep_maps and not (seeds_dir(config) / INDEX).is_file()):
        generate_seeds(config, on_bad)
    vote_seeds(config)
    if not config.seeds.keep_maps:
        remove_tree(seeds_dir(config))
