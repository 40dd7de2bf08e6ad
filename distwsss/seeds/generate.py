"""The `seeds` stage: image shard i -> seed shard i -> pseudo-label shard i. Called by `cli`.

A chunk of work is a shard, handled by a plain function of a picklable task (`seed_shard`, `vote_shard`), here in a
local process pool. Finished shards are recorded beside them, so a rerun makes only what is missing; the index comes
last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distwsss.config import Config
from distwsss.config.schema import SeedsSection
from distwsss.data.images import decode_image, decode_mask, encode_clean, encode_gray, encode_palette
from distwsss.data.shard_format import INDEX, ShardRecord
from distwsss.data.shard_index import ShardIndex, images_dir, load_index, pseudo_dir, seeds_dir
from distwsss.data.shard_reader import iter_shard
from distwsss.data.shard_writer import write_index, write_shard
from distwsss.data.verify import digest_problems
from distwsss.errors import CheckpointError, RunError, ShardError, report_problems
from distwsss.models.classifier import Classifier
from distwsss.models.export import WEIGHTS, from_pretrained, verified_checkpoint
from distwsss.runtime.artifacts import (
    check_same,
    fingerprint,
    free_space_check,
    is_done,
    read_json,
    read_pointer,
    sha256_file,
    to_json,
    write_json,
)
from distwsss.runtime.faults import fault_point
from distwsss.runtime.pool import spawn_pool
from distwsss.runtime.progress import log, track
from distwsss.seeds.cam import cam_to_full, compute_cam, probabilities
from distwsss.seeds.crf import refine
from distwsss.seeds.vote import vote


@dataclass(frozen=True)
class SeedTask:
    """Everything `seed_shard` needs. `classifiers`: a checkpoint folder per dropout probability, in order."""

    index_folder: Path
    shard: int
    output: Path
    classifiers: tuple[Path, ...]
    section: SeedsSection
    device: str


@dataclass(frozen=True)
class VoteTask:
    """Everything `vote_shard` needs. `voters`: which of the seed shard's maps vote, in order; `names` theirs."""

    images_folder: Path
    seeds_folder: Path
    shard: int
    output: Path
    voters: tuple[int, ...]
    names: tuple[str, ...]
    threshold: int


@lru_cache(maxsize=8)
def _load_classifier(folder: Path, device: str, output_stride: int | None, changed: int) -> Classifier:
    return from_pretrained(folder, device, output_stride)


def _classifier(folder: Path, device: str, output_stride: int | None) -> Classifier:
    """Loaded once per process, and anew where the file changed: a sweep may retrain into the same folder."""
    return _load_classifier(folder, device, output_stride, (folder / WEIGHTS).stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _load_index(folder: Path, kind: str, changed: int) -> ShardIndex:
    return load_index(folder, kind)


def _index(folder: Path, kind: str) -> ShardIndex:
    """Loaded once per process, and anew where the file changed."""
    return _load_index(folder, kind, (folder / INDEX).stat().st_mtime_ns)


def _checked_index(folder: Path, kind: str, shard: int) -> ShardIndex:
    """The index, after the shard's sha256 is compared with it: seeds are never made from damaged bytes."""
    index = _index(folder, kind)
    problems = digest_problems(index, shard)
    if problems:
        raise ShardError(report_problems(f"{folder}: damaged", problems))
    return index


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """A fixed number of intra-op threads: their number changes float sums, hence bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def image_cams(image: np.ndarray, labels: list[int], task: SeedTask) -> np.ndarray:
    """The normalised CAMs of one image, float32[m,L,H,W]: one per (p, scale), p outermost."""
    section, cams = task.section, []
    for folder in task.classifiers:
        classifier = _classifier(folder, task.device, section.output_stride)
        for scale in section.scales:
            cam = compute_cam(classifier, image, labels, scale, section.base_size, section.cam_scales)
            cams.append(cam_to_full(cam, image.shape[0], image.shape[1]))
    return np.stack(cams)


def refine_cams(image: np.ndarray, labels: list[int], cams: np.ndarray, section: SeedsSection) -> np.ndarray:
    """CAMs float32[m,L,H,W] -> seeds uint8[m,H,W] of class ids: the alpha background, then one CRF call for all."""
    unaries = np.stack([probabilities(cam, section.alpha, section.normalise) for cam in cams])
    marginals = refine(image, unaries, section.crf)
    return np.array([0, *labels], np.uint8)[marginals.argmax(axis=1)]


def image_seeds(image: np.ndarray, labels: list[int], task: SeedTask) -> np.ndarray:
    """All seeds of one image: uint8[m,H,W] class ids. An image without labels is background only."""
    if not labels:
        count = len(task.classifiers) * len(task.section.scales)
        return np.zeros((count, *image.shape[:2]), np.uint8)
    return refine_cams(image, labels, image_cams(image, labels, task), task.section)


def seed_shard(task: SeedTask) -> ShardRecord:
    """Image shard -> seed shard, written atomically to `task.output`."""
    index = _checked_index(task.index_folder, "images", task.shard)

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for key, members in iter_shard(index, task.shard, ["jpg", "json"]):
            labels = json.loads(members["json"])["labels"] or []
            seeds = image_seeds(decode_image(members["jpg"], key), labels, task)
            yield key, {f"s{k}.png": encode_palette(seed) for k, seed in enumerate(seeds)}

    with _threads(task.section.threads):
        return write_shard(task.output, samples())


def vote_shard(task: VoteTask) -> ShardRecord:
    """Seed shard -> pseudo-label shard, a pure function of it (the photograph and labels are carried over)."""
    seeds_index = _checked_index(task.seeds_folder, "seeds", task.shard)
    images_index = _checked_index(task.images_folder, "images", task.shard)
    fields = [f"s{k}.png" for k in task.voters]

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        pairs = zip(
            iter_shard(images_index, task.shard, ["jpg", "json"]),
            iter_shard(seeds_index, task.shard, fields),
            strict=True,
        )
        for (key, photo), (_, maps) in pairs:
            labels, votes = vote(np.stack([decode_mask(maps[field], key) for field in fields]))
            described = {**json.loads(photo["json"]), "seeds": list(task.names)}
            yield key, {
                "jpg": photo["jpg"],
                "label.png": encode_palette(labels),
                "votes.png": encode_gray(votes),
                "clean.png": encode_clean((votes >= task.threshold) & (labels != 255)),
                "json": to_json(described),
            }

    return write_shard(task.output, samples())


def classifier_folders(config: Config) -> list[Path]:
    """The checkpoint of each classifier. Raises CheckpointError where one is not there or does not verify."""
    folders = []
    for p in config.classify.dropouts:
        checkpoints = config.run_dir / "classify" / f"{p:.2f}" / "checkpoints"
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


def _run_shards(
    stage: str, parameters: dict[str, Any], tasks: list[Any], work: Callable[[Any], ShardRecord], workers: int
) -> list[ShardRecord]:
    """`work` on every task whose record is not there yet; records of all, in task order.

    A record, `NAME.tar.json` beside the shard, says which parameters made it, so that a rerun never mixes.
    """
    done: dict[Path, ShardRecord] = {}
    for task in tasks:
        path = _record_path(task.output)
        if path.is_file() and task.output.is_file():
            value = read_json(path)
            check_same(value["parameters"], parameters, f"{stage} ({task.output})")
            done[task.output] = ShardRecord.from_json(value["record"], str(path))
    todo = [task for task in tasks if task.output not in done]
    if done:
        log.info(f"{stage}: {len(done)} of {len(tasks)} shards are there already")
    for task, record in track(_each(work, todo, workers), len(todo), stage, "shard"):
        write_json(_record_path(task.output), {"parameters": parameters, "record": record.to_json()})
        done[task.output] = record
        fault_point(f"after-shard:{task.output.name}")
    return [done[task.output] for task in tasks]


def _record_path(shard: Path) -> Path:
    return shard.with_name(shard.name + ".json")


def _each(
    work: Callable[[Any], ShardRecord], tasks: list[Any], workers: int
) -> Iterator[tuple[Any, ShardRecord]]:
    """(task, result) as they finish; in this process with fewer than two workers."""
    for task in tasks:
        for stale in task.output.parent.glob(f".{task.output.name}.*.tmp"):  # of an interrupted attempt
            stale.unlink()
    if workers < 2 or len(tasks) < 2:
        for task in tasks:
            yield task, work(task)
        return
    try:
        with spawn_pool(min(workers, len(tasks))) as pool:
            futures = {pool.submit(work, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise RunError("a worker process died (killed, or out of memory); run the same command to go on") from error


def generate_seeds(config: Config) -> None:
    """CAM and CRF of every (p, scale) over the train image shards, to shards/NAME/seeds."""
    images, folder = load_index(images_dir(config, "train"), "images"), seeds_dir(config)
    parameters = _seed_parameters(config)
    if is_done(folder / INDEX, parameters, "seeds"):
        log.info("seeds: complete, skipped")
        return
    names, classifiers = config.seed_names(), tuple(classifier_folders(config))
    free_space_check(folder, len(images) * len(names) * 8_000, "seeds")
    device = "cpu" if config.hardware.device == "cpu" or not torch.cuda.is_available() else "cuda"
    tasks = [
        SeedTask(images.folder, shard, folder / f"seeds-{shard:05d}.tar", classifiers, config.seeds, device)
        for shard in range(len(images.shards))
    ]
    records = _run_shards("seeds", parameters, tasks, seed_shard, config.hardware.workers)
    extra = {"seeds": names, "versions": _versions(device)}
    write_index(folder, records, parameters, images.classes, "seeds", extra)
    _drop_records(tasks)


def vote_seeds(config: Config) -> None:
    """The vote of `seeds.vote_on` at t = `seeds.threshold`, to shards/NAME/pseudo."""
    images, folder = load_index(images_dir(config, "train"), "images"), pseudo_dir(config)
    voters, names, seeds = config.voting_seeds(), config.seed_names(), _seed_parameters(config)
    inputs = {"seeds": fingerprint(seeds)}
    parameters = {"vote_on": voters, "threshold": config.vote_threshold(), "inputs": inputs}
    if _is_voted(folder, parameters, seeds):
        log.info("vote: complete, skipped")
        return
    found = load_index(seeds_dir(config), "seeds")
    check_same(found.parameters, seeds, f"seeds ({found.folder})")
    free_space_check(folder, sum(record.bytes for record in images.shards), "vote")
    tasks = [
        VoteTask(
            images.folder,
            seeds_dir(config),
            shard,
            folder / f"pseudo-{shard:05d}.tar",
            tuple(names.index(name) for name in voters),
            tuple(voters),
            config.vote_threshold(),
        )
        for shard in range(len(images.shards))
    ]
    records = _run_shards("vote", parameters, tasks, vote_shard, config.hardware.workers)
    extra = {"seeds": voters, "seed_parameters": seeds}
    write_index(folder, records, parameters, images.classes, "pseudo", extra)
    _drop_records(tasks)


def _is_voted(folder: Path, parameters: dict[str, Any], seeds: dict[str, Any]) -> bool:
    """`is_done` of the vote, which also names what differs in the seeds: their own index may be gone
    (`keep_maps: false`). An index written before `seed_parameters` was kept shows their fingerprint only."""
    if (folder / INDEX).is_file():
        check_same(load_index(folder, "pseudo").extra.get("seed_parameters", seeds), seeds, f"the vote ({folder})")
    return is_done(folder / INDEX, parameters, "the vote")


def _drop_records(tasks: list[Any]) -> None:
    for task in tasks:
        _record_path(task.output).unlink(missing_ok=True)


def _versions(device: str) -> dict[str, str]:
    """What byte-identity holds for: one device type with one set of library versions."""
    return {"device": device, "torch": torch.__version__, "numpy": np.__version__}


def run_seeds(config: Config) -> None:
    """Seeds, then the vote; `seeds.keep_maps: false` drops the seed shards afterwards."""
    pseudo_done = (pseudo_dir(config) / INDEX).is_file()
    if not (pseudo_done and not config.seeds.keep_maps and not (seeds_dir(config) / INDEX).is_file()):
        generate_seeds(config)
    vote_seeds(config)
    if not config.seeds.keep_maps:
        shutil.rmtree(seeds_dir(config), ignore_errors=True)
