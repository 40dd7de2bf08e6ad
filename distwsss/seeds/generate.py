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
from typing import TypeAlias

import numpy as np
import torch

from distwsss.config import Config
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import load_index
from distwsss.errors import DataError, report_problems
from distwsss.runtime.artifacts import check_same, free_space_check, is_done, read_json, write_bytes
from distwsss.runtime.layout import pseudo_dir, quarantine_file, seeds_dir
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import log, track
from distwsss.runtime.storage import remove_tree
from distwsss.seeds.chunk import SeedResult, SeedTask, vote_shard, whole_shard
from distwsss.seeds.labels import check_labels
from distwsss.seeds.on_ray import check_roots, use_ray, work_on_ray
from distwsss.seeds.plan import SeedsPlan, plan_seeds
from distwsss.seeds.progress import SeedProgress

_Work: TypeAlias = Generator[tuple[SeedTask, SeedResult], None, None]


def run_seeds(config: Config, on_bad: str = "fail") -> None:
    """Seeds, then the vote; `seeds.keep_maps: false` drops the seed shards afterwards.

    Raises RunError where the pseudo-labels hold no foreground at all, also those of an earlier run.
    """
    check_roots(config)
    plan = plan_seeds(config)
    pseudo_done = (pseudo_dir(config) / INDEX).is_file()
    if not (pseudo_done and not config.seeds.keep_maps and not (seeds_dir(config) / INDEX).is_file()):
        generate_seeds(plan, on_bad)
    vote_seeds(plan)
    if not config.seeds.keep_maps:
        remove_tree(seeds_dir(config))
    check_labels(config)


def generate_seeds(plan: SeedsPlan, on_bad: str = "fail") -> None:
    """CAM and CRF of every (p, scale) over the train image shards, to shards/NAME/seeds; the vote on the way, to
    shards/NAME/pseudo, whose index `vote_seeds` writes.

    `on_bad`: an image whose CAM or CRF raises ends the run (`fail`, DataError naming it), or all its seeds abstain
    (`quarantine`: label 255, listed in runs/NAME/seeds/quarantine.jsonl).
    """
    images, seeds, vote = plan.images, plan.seeds, plan.vote
    if is_done(seeds.folder / INDEX, seeds.parameters, "seeds"):
        log.info("seeds: complete, skipped")
        return
    voted = _is_voted(plan)  # refuses here what it would refuse after hours of work
    names = plan.config.seed_names()
    free_space_check(seeds.folder, len(images) * len(names) * 8_000, "seeds")
    seeds.remove_stale()
    vote.remove_stale()
    known = {shard: seeds.finished(shard) for shard in range(len(images.shards))}
    todo = [shard for shard, record in known.items() if record is None]
    if len(todo) < len(known):
        log.info(f"seeds: {len(known) - len(todo)} of {len(known)} shards are there already")
    tasks = [plan.chunk(shard, on_bad == "quarantine") for shard in todo]
    progress = SeedProgress(images.counts, todo, len(names), _processes(plan.config, len(todo)))
    with closing(_work(plan.config, tasks, progress)) as work:  # a full disk here ends the workers at once
        for task, result in work:
            seeds.publish(task.shard, result.seeds, devices=result.devices, bad=result.bad)
            if not voted and vote.finished(task.shard) is None:
                vote.publish(task.shard, result.pseudo)
            progress.shard_done(task.shard)
    progress.close()
    _complete_seeds(plan, on_bad)


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
    extra = {"seeds": plan.config.seed_names(), "versions": _versions(devices), "quarantined": sorted(bad)}
    seeds.complete(count, plan.images.classes, extra)


def _work(config: Config, tasks: list[SeedTask], progress: SeedProgress) -> _Work:
    """(task, result) as shards are finished, by the executor that the configuration asks for."""
    if tasks and use_ray(config.hardware):
        yield from work_on_ray(config, tasks, progress)
    else:
        yield from spread(whole_shard, tasks, config.hardware.workers, progress.heard)


def _processes(config: Config, shards: int) -> int:
    """How many local processes work at once."""
    return max(1, min(config.hardware.workers, shards))


def vote_seeds(plan: SeedsPlan) -> None:
    """The vote of `seeds.vote_on` at t = `seeds.threshold`, to shards/NAME/pseudo."""
    images, seeds, vote = plan.images, plan.seeds, plan.vote
    if _is_voted(plan):
        log.info("vote: complete, skipped")
        return
    found = load_index(seeds.folder, "seeds")
    check_same(found.parameters, seeds.parameters, f"seeds ({found.folder})")
    free_space_check(vote.folder, sum(record.bytes for record in images.shards), "vote")
    vote.remove_stale()
    todo = [shard for shard in range(len(images.shards)) if vote.finished(shard) is None]
    work = partial(vote_shard, images.folder, seeds.folder, plan.vote_task)
    for shard, packed in track(spread(work, todo, plan.config.hardware.workers), len(todo), "vote", "shard"):
        vote.publish(shard, packed)
    extra = {"seeds": plan.config.voting_seeds(), "seed_parameters": seeds.parameters}
    vote.complete(len(images.shards), images.classes, extra)


def _is_voted(plan: SeedsPlan) -> bool:
    """`is_done` of the vote, which also names what differs in the seeds: their own index may be gone
    (`keep_maps: false`). An index written before `seed_parameters` was kept shows their fingerprint only."""
    seeds, vote = plan.seeds, plan.vote
    if (vote.folder / INDEX).is_file():
        known = load_index(vote.folder, "pseudo").extra.get("seed_parameters", seeds.parameters)
        check_same(known, seeds.parameters, f"the vote ({vote.folder})")
    return is_done(vote.folder / INDEX, vote.parameters, "the vote")


def _versions(device: str) -> dict[str, str]:
    """What byte-identity holds for: one device type with one set of library versions."""
    return {"device": device, "torch": torch.__version__, "numpy": np.__version__}
