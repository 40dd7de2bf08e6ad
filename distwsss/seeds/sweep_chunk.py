"""The work of `seeds sweep` on one image shard, as a plain function of a picklable task: CAMs once, then the label maps
of every setting, scored. Called by `seeds.sweep`, in its own process or a local pool.

A worker keeps the CAMs that it made (`KEY.npz`, an array float16[L,h,w] for each seed's name), an image at a time, so
that a kill costs one shard's at most; the counts travel to the process that started it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distwsss.config.stages import SeedsSection
from distwsss.data.images import decode_image, resize_labels
from distwsss.data.saliency import read_saliency
from distwsss.data.scoring import ImageCounts, histogram
from distwsss.data.shards.format import name_from_key
from distwsss.data.shards.index import ShardIndex
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.errors import DataError, report_problems
from distwsss.maths.miou import class_counts
from distwsss.runtime.artifacts import write_bytes
from distwsss.runtime.faults import fault_point
from distwsss.runtime.storage import Folder
from distwsss.seeds.cams import CamTask, Pace, cam_shard, checked_index, fixed_threads, labels_of
from distwsss.seeds.maps import LabelMaps, refine_settings
from distwsss.seeds.votes import VoteTask, label_and_votes

STACK_BYTES = 1 << 27  # of the distributions in one CRF call, which takes some seven times as much


@dataclass(frozen=True)
class Setting:
    """What the CRF is given: `section` with these values. crf: its name."""

    crf: str
    normalise: str
    alpha: float
    section: SeedsSection

    @property
    def name(self) -> str:
        return f"{self.crf}:{self.normalise}:{self.alpha:g}"


@dataclass(frozen=True)
class SweepTask:
    """Images of a shard, by position, each with a mask. `cams`: a task for each seed, whose results lie in the folder
    `cache`; `voters`: names of those scored alone, the first maps of an image and the saliency map's; `rules`: label
    rule -> its vote; `saliency`: the maps' shards, where the seeds make use of them."""

    images: Folder
    shard: int
    positions: tuple[int, ...]
    cams: tuple[CamTask, ...]
    cache: Path
    settings: tuple[Setting, ...]
    voters: dict[str, int]
    rules: dict[str, VoteTask]
    saliency: Folder | None = None


def thresholds(voters: int) -> range:
    """t from the majority to all."""
    return range(voters // 2 + 1, voters + 1)


def column(rule: str, t: int | None = None) -> str:
    """Of a rule's labels in `ImageCounts`, or of those clean at t."""
    return rule if t is None else f"{rule} t={t}"


def sweep_shard(task: SweepTask) -> dict[str, ImageCounts]:
    """Setting's name -> its counts: a column for each of `voters`, for each rule's labels, and for those of its pixels
    that are clean at each of `thresholds`. Raises DataError naming every image that has no CAM."""
    index = checked_index(task.images, "images", task.shard)
    found: dict[str, list[np.ndarray]] = {setting.name: [] for setting in task.settings}
    names: list[str] = []
    saliency = None if task.saliency is None else checked_index(task.saliency, "saliency", task.shard)
    _make_cams(task, index)
    pace = Pace("crf")
    with fixed_threads(task.settings[0].section.threads):
        for done, position in enumerate(task.positions, 1):
            fault_point(f"sweep:{index.key(task.shard, position)}")
            truth = read_truth(index, task.shard, position)
            assert truth is not None, "only images with masks are swept"
            for setting, maps in _label_maps(task, index, saliency, position):
                columns = _columns(task, maps, truth, len(index.classes))
                names = list(columns)
                found[setting.name].append(np.stack(list(columns.values())))
            pace.tell(done)
    keys = [index.key(task.shard, position) for position in task.positions]
    return {name: _image_counts(keys, names, counts) for name, counts in found.items()}


def _image_counts(keys: list[str], names: list[str], counts: list[np.ndarray]) -> ImageCounts:
    """counts: of each image [columns,3,K]."""
    stacked = np.stack(counts).astype(np.uint32)
    return ImageCounts(keys, {name: stacked[:, number] for number, name in enumerate(names)})


def _make_cams(task: SweepTask, index: ShardIndex) -> None:
    """Those that are not in the cache yet."""
    keys = [index.key(task.shard, position) for position in task.positions]
    missing = tuple(key for key in keys if not cam_file(task.cache, key).is_file())
    if not missing:
        return
    results = [cam_shard(replace(cam, keys=missing)) for cam in task.cams]
    ordered = [key for key in index.shards[task.shard].keys if key in set(missing)]
    bad: dict[str, str] = {}
    for key, cams in zip(ordered, zip(*(result.cams for result in results), strict=True), strict=True):
        why = [cam for cam in cams if isinstance(cam, str)]
        if why:
            bad[name_from_key(key)] = why[0]
        else:
            buffer = io.BytesIO()
            np.savez(buffer, **{one.name: cam for one, cam in zip(task.cams, cams, strict=True)})
            write_bytes(cam_file(task.cache, key), buffer.getvalue())
    if bad:
        title = f"shard {task.shard}: {len(bad)} images have no CAMs; repair them, or leave them out of data.tuning_ids"
        raise DataError(report_problems(title, [f"{name}: {reason}" for name, reason in bad.items()]))


def cam_file(cache: Path, key: str) -> Path:
    return cache / f"{key}.npz"


def _read_cams(task: SweepTask, key: str) -> list[np.ndarray]:
    """In the order of the seeds' names; nothing is unpickled."""
    path = cam_file(task.cache, key)
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[cam.name] for cam in task.cams]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: found no CAMs ({error}); delete it and run the same command again") from None


def _label_maps(
    task: SweepTask, index: ShardIndex, saliency: ShardIndex | None, position: int
) -> Iterator[tuple[Setting, LabelMaps]]:
    """Of one image under every setting."""
    key = index.key(task.shard, position)
    members = read_fields(index, task.shard, position, ["jpg", "json"])
    image, labels, cams = decode_image(members["jpg"], key), labels_of(members), _read_cams(task, key)
    salient = None if saliency is None else read_saliency(saliency, task.shard, position)
    bytes_each = 4 * (len(cams) + 1) * (len(labels) + 1) * image.shape[0] * image.shape[1]
    for block in blocks(task.settings, max(1, STACK_BYTES // bytes_each)):
        sections = [setting.section for setting in block]
        yield from zip(block, refine_settings(image, labels, cams, sections, salient), strict=True)


def blocks(settings: tuple[Setting, ...], most: int) -> Iterator[tuple[Setting, ...]]:
    """Settings of the same CRF, at most `most` at a time."""
    for crf in dict.fromkeys(setting.crf for setting in settings):
        same = tuple(setting for setting in settings if setting.crf == crf)
        yield from (same[start : start + most] for start in range(0, len(same), most))


def _columns(task: SweepTask, maps: LabelMaps, truth: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Column -> int64[3,K] of one image."""
    shape = (truth.shape[0], truth.shape[1])
    found = {}
    for name, number in task.voters.items():
        seed = resize_labels(maps.labels[number], shape)
        found[name] = class_counts(histogram(truth, seed, None, 0, classes)[0])
    for rule, vote in task.rules.items():
        labels, votes = (resize_labels(one, shape) for one in label_and_votes(maps, vote))
        counts = histogram(truth, labels, votes, len(vote.voters), classes)
        found[column(rule)] = class_counts(counts.sum(axis=0))
        for t in thresholds(len(vote.voters)):
            found[column(rule, t)] = class_counts(counts[t:].sum(axis=0))
    return found
