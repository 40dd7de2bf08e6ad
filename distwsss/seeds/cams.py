"""The CAMs of one shard by one classifier at one scale, a plain function of a picklable task. Called by
`seeds.chunk` and `seeds.sweep_chunk`, and by Ray's actors through `seeds.on_ray`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from distwsss.config.stages import SeedsSection
from distwsss.data.images import decode_image
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.verify import digest_problems
from distwsss.errors import DataError, ShardError, report_problems
from distwsss.maths.cam import compute_cams
from distwsss.models.classifier import Classifier
from distwsss.models.export import WEIGHTS, from_pretrained
from distwsss.runtime.device import pick_device
from distwsss.runtime.faults import fault_point
from distwsss.runtime.pool import tell
from distwsss.runtime.seeding import torch_generator
from distwsss.runtime.storage import Folder, version_of

Cam = np.ndarray | str  # float16[L,h,w] at feature resolution, or why there is none
NO_CAM = np.zeros((0, 1, 1), np.float16)  # of an image without labels


@dataclass(frozen=True)
class CamTask:
    """The CAMs of one image shard by one classifier at one scale. `device`: as `hardware.device`; `keys`: of these
    images only, None: of all."""

    name: str  # the seed's, 0.05-1.20
    images: Folder
    shard: int
    classifier: Path
    scale: float
    section: SeedsSection
    device: str = "auto"
    precision: str = "no"
    batch: int = 1
    keys: tuple[str, ...] | None = None


@dataclass
class CamResult:
    """Of every image of the shard that was asked for, in order: its CAM. `device`: the type it was computed on."""

    cams: list[Cam]
    device: str


@lru_cache(maxsize=8)
def _load_classifier(folder: Path, device: str, output_stride: int | None, changed: int) -> Classifier:
    return from_pretrained(folder, device, output_stride)


def _classifier(folder: Path, device: str, output_stride: int | None) -> Classifier:
    """Loaded once per process, and anew where the file changed: a sweep may retrain into the same folder."""
    return _load_classifier(folder, device, output_stride, (folder / WEIGHTS).stat().st_mtime_ns)


@lru_cache(maxsize=3)
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
def fixed_threads(count: int) -> Iterator[None]:
    """A fixed number of intra-op threads: their number changes float sums, hence bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cam_shard(task: CamTask) -> CamResult:
    """The CAMs of the images of the shard; images of equal size share a forward, in key order."""
    index = checked_index(task.images, "images", task.shard)
    device = pick_device(task.device).type
    found: dict[str, Cam] = {}
    waiting: dict[tuple[int, ...], list[_Photo]] = {}
    pace = Pace("cam")
    with fixed_threads(task.section.threads):
        wanted = set(index.shards[task.shard].keys if task.keys is None else task.keys)
        for key, members in iter_shard(index, task.shard, ["jpg", "json"]):
            if key not in wanted:
                continue
            pace.tell(len(found))
            fault_point(f"cam:{task.name}:{key}")
            try:
                photo = _Photo(key, decode_image(members["jpg"], key), labels_of(members))
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
    return CamResult([found[key] for key in index.shards[task.shard].keys if key in found], device)


class Pace:
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


def labels_of(members: dict[str, bytes]) -> list[int]:
    return json.loads(members["json"])["labels"] or []


def _batch_cams(photos: list[_Photo], task: CamTask, device: str) -> dict[str, Cam]:
    """Key -> CAM. An image that raises is tried by itself, so that it costs its batch nothing."""
    section = task.section
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(task.precision) if device == "cuda" else None
    model = _classifier(task.classifier, device, section.output_stride)
    images, labels = [photo.image for photo in photos], [photo.labels for photo in photos]
    passes = section.dropout_passes
    kept = torch.stack([kept_channels(model, photo.key, passes) for photo in photos]).to(device) if passes else None
    try:
        cams = compute_cams(
            model, images, labels, task.scale, section.base_size, section.cam_scales, half,
            kept, section.dropout_reduce,
        )  # fmt: skip
    except Exception as error:
        if len(photos) > 1:
            return {key: cam for photo in photos for key, cam in _batch_cams([photo], task, device).items()}
        return {photos[0].key: reason(error)}
    return {photo.key: cam for photo, cam in zip(photos, cams, strict=True)}


def kept_channels(model: Classifier, key: str, passes: int) -> torch.Tensor:
    """float32[P,C] of the classifier's dropout: 0 with probability p, else 1 / (1 - p), drawn on the CPU by the image's
    key and p, so that no batch, worker or device changes them."""
    keep = 1 - model.dropout_p
    generator = torch_generator("dropout of CAMs", f"{model.dropout_p:.2f}", key)
    return torch.bernoulli(torch.full((passes, model.head.in_channels), keep), generator=generator) / keep


def reason(error: Exception) -> str:
    """Why an image failed; what is no fault of the image (memory, a lost device) is raised on."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | torch.AcceleratorError | OSError):
        raise error
    return f"{type(error).__name__}: {error}"
