"""The work on one chunk (a shard) of the `seeds` stage, as plain functions of picklable tasks. Called by
`seeds.generate`, in its own process, a local pool or Ray's actors alike, so that the bytes are the same in all.

`cam_shard` makes the CAMs of one (p, scale); `seed_shard` refines those of all (p, scale) into seeds, lets them vote
and packs both shards. Workers write nothing: shards travel as bytes to the driver, the only one that publishes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from distwsss.config.stages import SeedsSection
from distwsss.data.images import decode_image, decode_mask, encode_clean, encode_gray, encode_palette
from distwsss.data.shards.format import INDEX, name_from_key
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.stage import Packed
from distwsss.data.shards.verify import digest_problems
from distwsss.data.shards.writer import shard_bytes
from distwsss.errors import DataError, ShardError, report_problems
from distwsss.maths.cam import cam_to_full, compute_cams, probabilities
from distwsss.maths.crf import refine
from distwsss.maths.vote import ABSTAIN, vote
from distwsss.models.classifier import Classifier
from distwsss.models.export import WEIGHTS, from_pretrained
from distwsss.runtime.artifacts import fingerprint, sha256_bytes, to_json
from distwsss.runtime.device import pick_device
from distwsss.runtime.faults import fault_point
from distwsss.runtime.pool import tell
from distwsss.runtime.storage import Folder, version_of

Cam = np.ndarray | str  # float16[L,h,w] at feature resolution, or why there is none
NO_CAM = np.zeros((0, 1, 1), np.float16)  # of an image without labels


@dataclass(frozen=True)
class CamTask:
    """The CAMs of one image shard by one classifier at one scale. `device`: as `hardware.device`."""

    name: str  # the seed's, 0.05-1.20
    images: Folder
    shard: int
    classifier: Path
    scale: float
    section: SeedsSection
    device: str = "auto"
    precision: str = "no"
    batch: int = 1


@dataclass(frozen=True)
class VoteTask:
    """Which of the seed shard's maps vote, in order (`names` are theirs), and how many votes make a pixel clean."""

    voters: tuple[int, ...]
    names: tuple[str, ...]
    threshold: int


@dataclass(frozen=True)
class SeedTask:
    """CRF, vote and both shards of one chunk. `quarantine`: the seeds of an image that cannot be refined abstain."""

    images: Folder
    shard: int
    section: SeedsSection
    vote: VoteTask
    cams: tuple[CamTask, ...]
    quarantine: bool = False


@dataclass
class CamResult:
    """Of every image of the shard in order: its CAM. `device`: the type it was computed on."""

    cams: list[Cam]
    device: str


@dataclass
class SeedResult:
    """`photos`: digest of what the seeds were made from; `bad`: image id -> why its seeds abstain."""

    seeds: Packed
    pseudo: Packed
    devices: list[str]
    photos: str
    bad: dict[str, str] = field(default_factory=dict)


@lru_cache(maxsize=8)
def _load_classifier(folder: Path, device: str, output_stride: int | None, changed: int) -> Classifier:
    return from_pretrained(folder, device, output_stride)


def _classifier(folder: Path, device: str, output_stride: int | None) -> Classifier:
    """Loaded once per process, and anew where the file changed: a sweep may retrain into the same folder."""
    return _load_classifier(folder, device, output_stride, (folder / WEIGHTS).stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _load_index(folder: Folder, kind: str, version: str) -> ShardIndex:
    return load_index(folder, kind)


def checked_index(folder: Folder, kind: str, shard: int) -> ShardIndex:
    """The index (kept while the file is the same), after the shard's sha256 is compared with it: seeds are never made
    from damaged bytes."""
    index = _load_index(folder, kind, version_of(folder / INDEX))
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


def cam_shard(task: CamTask) -> CamResult:
    """The CAMs of every image of the shard; images of equal size share a forward, in key order."""
    index = checked_index(task.images, "images", task.shard)
    device = pick_device(task.device).type
    found: dict[str, Cam] = {}
    waiting: dict[tuple[int, ...], list[_Photo]] = {}
    pace = _Pace("cam")
    with _threads(task.section.threads):
        for key, members in iter_shard(index, task.shard, ["jpg", "json"]):
            pace.tell(len(found))
            fault_point(f"cam:{task.name}:{key}")
            try:
                photo = _Photo(key, decode_image(members["jpg"], key), _labels(members))
            except DataError as error:
                found[key] = str(error)
                continue
            if not photo.labels:
                found[key] = NO_CAM
                continue
            pace.pixels += photo.image.size // 3
            same = waiting.setdefault(photo.image.shape, [])
            same.append(photo)
            if len(same) == task.batch:
                found |= _batch_cams(waiting.pop(photo.image.shape), task, device)
        for rest in waiting.values():
            found |= _batch_cams(rest, task, device)
            pace.tell(len(found))
        pace.tell(len(found))
    return CamResult([found[key] for key in index.shards[task.shard].keys], device)


class _Pace:
    """Tells how many images of a step (`cam`, `crf`) were done in which time: progress inside a shard."""

    def __init__(self, step: str) -> None:
        self.step, self.done, self.since = step, 0, time.monotonic()
        self.pixels = 0  # of the images since the last time

    def tell(self, done: int) -> None:
        if done > self.done:
            now = time.monotonic()
            what = {self.step: done - self.done, f"{self.step}_seconds": now - self.since, "pixels": self.pixels}
            tell({name: float(value) for name, value in what.items()})
            self.done, self.since, self.pixels = done, now, 0


@dataclass
class _Photo:
    key: str
    image: np.ndarray
    labels: list[int]


def _labels(members: dict[str, bytes]) -> list[int]:
    return json.loads(members["json"])["labels"] or []


def _batch_cams(photos: list[_Photo], task: CamTask, device: str) -> dict[str, Cam]:
    """Key -> CAM. An image that raises is tried by itself, so that it costs its batch nothing."""
    section = task.section
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(task.precision) if device == "cuda" else None
    model = _classifier(task.classifier, device, section.output_stride)
    images, labels = [photo.image for photo in photos], [photo.labels for photo in photos]
    try:
        cams = compute_cams(model, images, labels, task.scale, section.base_size, section.cam_scales, half)
    except Exception as error:
        if len(photos) > 1:
            return {key: cam for photo in photos for key, cam in _batch_cams([photo], task, device).items()}
        return {photos[0].key: _reason(error)}
    return {photo.key: cam for photo, cam in zip(photos, cams, strict=True)}


def _reason(error: Exception) -> str:
    """Why an image failed; what is no fault of the image (memory, a lost device) is raised on."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError | OSError):
        raise error
    return f"{type(error).__name__}: {error}"


def refine_cams(image: np.ndarray, labels: list[int], cams: list[np.ndarray], section: SeedsSection) -> np.ndarray:
    """m CAMs float16[L,h,w] of one image -> seeds uint8[m,H,W] of class ids: to full size, normalised, the alpha
    background, then one CRF call for all. An image without labels is background only."""
    height, width = image.shape[:2]
    if not labels:
        return np.zeros((len(cams), height, width), np.uint8)
    unaries = [probabilities(cam_to_full(cam, height, width), section.alpha, section.normalise) for cam in cams]
    marginals = refine(image, np.stack(unaries), section.crf)
    return np.array([0, *labels], np.uint8)[marginals.argmax(axis=1)]


def seed_shard(task: SeedTask, found: list[CamResult]) -> SeedResult:
    """The CAMs of all (p, scale), in the order of the seeds' names -> the seed shard and the pseudo-label shard.

    Raises DataError naming every image that has no CAM or whose CRF raised, unless `quarantine`.
    """
    index = checked_index(task.images, "images", task.shard)
    bad: dict[str, str] = {}
    seed_samples, pseudo_samples, seen = [], [], []
    pace = _Pace("crf")
    with _threads(task.section.threads):
        photos = iter_shard(index, task.shard, ["jpg", "json"])
        for (key, photo), cams in zip(photos, zip(*(result.cams for result in found), strict=True), strict=True):
            fault_point(f"crf:{key}")
            seen.append(_photo_digest(key, photo))
            maps = _image_seeds(key, photo, list(cams), task.section)
            if isinstance(maps, str):
                bad[name_from_key(key)] = maps
                maps = np.full((len(cams), *json.loads(photo["json"])["size"]), ABSTAIN, np.uint8)
            seed_samples.append((key, {f"s{k}.png": encode_palette(seed) for k, seed in enumerate(maps)}))
            pseudo_samples.append((key, vote_sample(photo, maps[list(task.vote.voters)], task.vote)))
            pace.tell(len(pseudo_samples))
    if bad and not task.quarantine:
        problems = [f"{name}: {reason}" for name, reason in bad.items()]
        title = f"shard {task.shard}: {len(bad)} images have no seeds; repair them, or use --on-bad quarantine"
        raise DataError(report_problems(title, problems))
    seeds = Packed(*shard_bytes(f"seeds-{task.shard:05d}.tar", seed_samples))
    pseudo = Packed(*shard_bytes(f"pseudo-{task.shard:05d}.tar", pseudo_samples))
    return SeedResult(seeds, pseudo, sorted({result.device for result in found}), fingerprint(seen), bad)


def photos_digest(index: ShardIndex, shard: int) -> str:
    """Digest of what the seeds of an image shard are made from, beside the classifiers and the section: keys,
    photographs, labels."""
    return fingerprint([_photo_digest(key, photo) for key, photo in iter_shard(index, shard, ["jpg", "json"])])


def _photo_digest(key: str, photo: dict[str, bytes]) -> list[object]:
    return [key, sha256_bytes(photo["jpg"]), _labels(photo)]


def _image_seeds(key: str, photo: dict[str, bytes], cams: list[Cam], section: SeedsSection) -> np.ndarray | str:
    """Seeds uint8[m,H,W], or why there are none."""
    reasons = [cam for cam in cams if isinstance(cam, str)]
    if reasons:
        return reasons[0]
    try:
        return refine_cams(decode_image(photo["jpg"], key), _labels(photo), cams, section)  # type: ignore[arg-type]
    except Exception as error:
        return _reason(error)


def vote_sample(photo: dict[str, bytes], seeds: np.ndarray, task: VoteTask) -> dict[str, bytes]:
    """The members of one pseudo-label sample, a pure function of the voting seeds uint8[m,H,W] (the photograph and its
    labels are carried over)."""
    labels, votes = vote(seeds)
    return {
        "jpg": photo["jpg"],
        "label.png": encode_palette(labels),
        "votes.png": encode_gray(votes),
        "clean.png": encode_clean((votes >= task.threshold) & (labels != ABSTAIN)),
        "json": to_json({**json.loads(photo["json"]), "seeds": list(task.names)}),
    }


def whole_shard(task: SeedTask) -> SeedResult:
    """Both steps of a chunk one after the other, for the local executor."""
    return seed_shard(task, [cam_shard(cam) for cam in task.cams])


def vote_shard(images_folder: Folder, seeds_folder: Folder, task: VoteTask, shard: int) -> Packed:
    """The pseudo-label shard of an existing seed shard: another vote needs no other seeds."""
    seeds_index = checked_index(seeds_folder, "seeds", shard)
    images_index = checked_index(images_folder, "images", shard)
    fields = [f"s{k}.png" for k in task.voters]

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        pairs = zip(
            iter_shard(images_index, shard, ["jpg", "json"]), iter_shard(seeds_index, shard, fields), strict=True
        )
        for (key, photo), (_, maps) in pairs:
            yield key, vote_sample(photo, np.stack([decode_mask(maps[field], key) for field in fields]), task)

    return Packed(*shard_bytes(f"pseudo-{shard:05d}.tar", samples()))
