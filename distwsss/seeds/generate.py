"""The `seeds` stage: image shard i -> seed shard i -> pseudo-label shard i. Called by `pipeline`.

A chunk of work is a shard (`seeds.chunk`), done by Ray's actors, by a local pool or in this process: the executor.
Only this process, which holds the run's lock, publishes shards. Finished ones are recorded beside them, so a rerun
makes only what is missing; the index comes last.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from distwsss.config import Config
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import load_index
from distwsss.data.shards.verify import digest_problems
from distwsss.errors import DataError, report_problems
from distwsss.runtime.artifacts import check_same, differences, free_space_check, is_done, read_json, write_bytes
from distwsss.runtime.layout import quarantine_file, report_file, seeds_dir
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import log, track
from distwsss.runtime.storage import remove_tree
from distwsss.seeds.chunk import SeedResult, SeedTask, photos_digest, whole_shard
from distwsss.seeds.labels import check_labels
from distwsss.seeds.on_ray import check_roots, use_ray, work_on_ray
from distwsss.seeds.plan import SeedsPlan, plan_seeds
from distwsss.seeds.progress import SeedProgress
from distwsss.seeds.select import known_voters, select_voters
from distwsss.seeds.votes import vote_shard

MAP_BYTES = 24_000  # a label map with its marginals, of a photograph of 500 x 375 pixels

_Work: TypeAlias = Generator[tuple[SeedTask, SeedResult], None, None]


def run_seeds(config: Config, on_bad: str = "fail", remake: bool = False) -> None:
    """Seeds, then the vote; `seeds.keep_maps: false` drops the seed shards afterwards.

    `remake`: shards of other images, classifiers or parameters are replaced, but where photographs and labels of a
    shard, the classifiers and the parameters are what they were, its seeds are kept.
    Raises RunError where the pseudo-labels hold no foreground at all, also those of an earlier run.
    """
    check_roots(config)
    plan = plan_seeds(config)
    dropped = not config.seeds.keep_maps and not (seeds_dir(config) / INDEX).is_file()
    plan = known_voters(plan) if dropped else plan
    if not (dropped and plan.vote_task is not None and _is_voted(plan, remake)):
        generate_seeds(plan, on_bad, remake)
    plan = select_voters(plan)
    vote_seeds(plan, remake)
    if not config.seeds.keep_maps:
        remove_tree(seeds_dir(config))
    check_labels(config)


def generate_seeds(plan: SeedsPlan, on_bad: str = "fail", remake: bool = False) -> None:
    """CAM and CRF of every (p, scale) over the train image shards, to shards/NAME/seeds; the vote on the way, to
    shards/NAME/pseudo/VOTE, whose index `vote_seeds` writes.

    `on_bad`: an image whose CAM or CRF raises ends the run (`fail`, DataError naming it), or all its seeds abstain
    (`quarantine`: label 255, listed in runs/NAME/seeds/quarantine.jsonl).
    """
    images, seeds, vote = plan.images, plan.seeds, plan.vote
    if is_done(seeds.folder / INDEX, seeds.parameters, "seeds", remake):
        seeds.remove_stale()
        log.info("seeds: complete, skipped")
        return
    # refuses here what it would refuse after hours of work; without a vote yet, none is made on the way
    voted = plan.vote_task is None or _is_voted(plan, remake)
    names = plan.config.seed_names()
    free_space_check(seeds.folder, len(images) * len(plan.config.map_names()) * MAP_BYTES, "seeds")
    seeds.remove_stale()
    vote.remove_stale()
    if remake:
        _reopen(plan, voted)
    known = {shard: seeds.finished(shard, remake) for shard in range(len(images.shards))}
    todo = [shard for shard, record in known.items() if record is None]
    if len(todo) < len(known):
        log.info(f"seeds: {len(known) - len(todo)} of {len(known)} shards are there already")
    tasks = [plan.chunk(shard, on_bad == "quarantine") for shard in todo]
    progress = SeedProgress(images.counts, todo, len(names), _processes(plan.config, len(todo)))
    with closing(_work(plan.config, tasks, progress)) as work:  # a full disk here ends the workers at once
        for task, result in work:
            about = {"devices": result.devices, "photos": result.photos, "bad": result.bad}
            seeds.publish(task.shard, result.seeds, **about)
            if not voted and result.pseudo is not None and vote.finished(task.shard, remake) is None:
                vote.publish(task.shard, result.pseudo)
            progress.shard_done(task.shard)
    progress.close()
    _complete_seeds(plan, on_bad)


def _reopen(plan: SeedsPlan, voted: bool) -> None:
    """Before shards of other parameters are replaced: no index is left that names them."""
    count = len(plan.images.shards)
    report_file(plan.config).unlink(missing_ok=True)  # it shows what is replaced
    if not voted:
        plan.vote.reopen(count)
    plan.seeds.reopen(count, _unchanged(plan))


def _unchanged(plan: SeedsPlan) -> dict[int, dict[str, Any]]:
    """The shards whose seeds stay, with what their records say: nothing but images elsewhere changed."""
    images, seeds = plan.images, plan.seeds
    if not (seeds.folder / INDEX).is_file():
        return {}
    old = load_index(seeds.folder, "seeds")
    versions = old.extra.get("versions", {})
    device = versions.get("device", "")
    if set(differences(old.parameters, seeds.parameters)) != {"inputs.images"} or versions != _versions(device):
        return {}
    if old.extra["quarantined"]:  # why, their records said
        return {}
    about = {"devices": device.split("+"), "bad": {}}
    photos = dict(zip(range(len(images.shards)), old.extra.get("photos", []), strict=False))
    return {
        shard: {**about, "photos": digest}
        for shard, digest in photos.items()
        if not digest_problems(old, shard) and photos_digest(images, shard) == digest
    }


def _complete_seeds(plan: SeedsPlan, on_bad: str) -> None:
    seeds, count = plan.seeds, len(plan.images.shards)
    records = [read_json(seeds.record_path(shard)) for shard in range(count)]
    bad = {name: reason for record in records for name, reason in record["bad"].items()}
    if bad and on_bad == "fail":
        problems = [f"{name}: {reason}" for name, reason in bad.items()]
        title = f"{seeds.folder}: some abstain, of an earlier attempt; use --on-bad quarantine, or delete that folder"
        raise DataError(report_problems(title, problems))
    if bad:
        path = quarantine_file(plan.config, "seeds")
        write_bytes(path, "".join(f"{json.dumps({'id': k, 'reasons': [v]})}\n" for k, v in bad.items()).encode())
        log.warning(f"seeds: those of {len(bad)} images abstain, see {path}")
    devices = "+".join(sorted({device for record in records for device in record["devices"]}))
    extra = {"seeds": plan.config.map_names(), "versions": _versions(devices), "quarantined": sorted(bad)}
    extra["photos"] = [record.get("photos") for record in records]
    seeds.complete(count, plan.images.classes, extra)


def _work(config: Config, tasks: list[SeedTask], progress: SeedProgress) -> _Work:
    """(task, result) as shards are finished, by the executor that the configuration asks for."""
    if tasks and use_ray(config.hardware):
        yield from work_on_ray(config, tasks, progress)
    else:
        yield from spread(whole_shard, tasks, config.hardware.workers, progress.heard)


def _processes(config: Config, shards: int) -> int | None:
    """How many local processes work at once; None on Ray."""
    return None if use_ray(config.hardware) else max(1, min(config.hardware.workers, shards))


def vote_seeds(plan: SeedsPlan, remake: bool = False) -> None:
    """The labels of `seeds.label` with the votes of `seeds.vote_on` at t = `seeds.threshold`, to
    shards/NAME/pseudo/VOTE."""
    assert plan.vote_task is not None, "the seeds that vote are selected first"
    images, seeds, vote = plan.images, plan.seeds, plan.vote
    if _is_voted(plan, remake):
        vote.remove_stale()
        log.info("vote: complete, skipped")
        return
    found = load_index(seeds.folder, "seeds")
    check_same(found.parameters, seeds.parameters, f"seeds ({found.folder})")
    free_space_check(vote.folder, sum(record.bytes for record in images.shards), "vote")
    vote.remove_stale()
    if remake:
        report_file(plan.config).unlink(missing_ok=True)  # it shows what is replaced
        vote.reopen(len(images.shards))
    todo = [shard for shard in range(len(images.shards)) if vote.finished(shard, remake) is None]
    work = partial(vote_shard, images.folder, seeds.folder, plan.vote_task)
    for shard, packed in track(spread(work, todo, plan.config.hardware.workers), len(todo), "vote", "shard"):
        vote.publish(shard, packed)
    extra = {"seeds": list(plan.vote_task.names), "t": plan.vote_task.threshold, "seed_parameters": seeds.parameters}
    vote.complete(len(images.shards), images.classes, extra)


def _is_voted(plan: SeedsPlan, remake: bool = False) -> bool:
    """`is_done` of the vote, which also names what differs in the seeds: their own index may be gone
    (`keep_maps: false`). An index written before `seed_parameters` was kept shows their fingerprint only."""
    seeds, vote = plan.seeds, plan.vote
    if (vote.folder / INDEX).is_file() and not remake:
        known = load_index(vote.folder, "pseudo").extra.get("seed_parameters", seeds.parameters)
        check_same(known, seeds.parameters, f"the vote ({vote.folder})")
    return is_done(vote.folder / INDEX, vote.parameters, "the vote", remake)


def _versions(device: str) -> dict[str, str]:
    """What byte-identity holds for: one device type with one set of library versions."""
    return {"device": device, "torch": torch.__version__, "numpy": np.__version__}
