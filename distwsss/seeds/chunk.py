"""The work on one chunk (a shard) of the `seeds` stage, as plain functions of picklable tasks. Called by
`seeds.generate`, in its own process, a local pool or Ray's actors alike, so that the bytes are the same in all.

`seeds.cams.cam_shard` makes the CAMs of one (p, scale); `seed_shard` refines those of all (p, scale) into label maps,
lets them vote and packs both shards. Workers write nothing: shards travel as bytes to the driver, the only one that
publishes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from distwsss.config.stages import SeedsSection
from distwsss.data.images import decode_image, decode_mask, encode_gray, encode_palette
from distwsss.data.saliency import FIELD
from distwsss.data.shards.format import name_from_key
from distwsss.data.shards.index import ShardIndex
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.stage import Packed
from distwsss.data.shards.writer import shard_bytes
from distwsss.errors import DataError, report_problems
from distwsss.runtime.artifacts import fingerprint, sha256_bytes
from distwsss.runtime.faults import fault_point
from distwsss.runtime.storage import Folder
from distwsss.seeds.cams import (
    Cam,
    CamResult,
    CamTask,
    Pace,
    cam_shard,
    checked_index,
    fixed_threads,
    labels_of,
    reason,
)
from distwsss.seeds.maps import LabelMaps, abstaining, map_count, refine_cams
from distwsss.seeds.votes import VoteTask, vote_sample


@dataclass(frozen=True)
class SeedTask:
    """CRF, vote and both shards of one chunk. `vote`: None where who votes is not known before all seeds are made;
    `quarantine`: the seeds of an image that cannot be refined abstain; `saliency`: the maps' shards, where the seeds
    make use of them."""

    images: Folder
    shard: int
    section: SeedsSection
    vote: VoteTask | None
    cams: tuple[CamTask, ...]
    quarantine: bool = False
    saliency: Folder | None = None


@dataclass
class SeedResult:
    """`photos`: digest of what the seeds were made from; `bad`: image id -> why its seeds abstain."""

    seeds: Packed
    pseudo: Packed | None
    devices: list[str]
    photos: str
    bad: dict[str, str] = field(default_factory=dict)


def seed_shard(task: SeedTask, found: list[CamResult]) -> SeedResult:
    """The CAMs of all (p, scale), in the order of the seeds' names -> the seed shard and the pseudo-label shard.

    Raises DataError naming every image that has no CAM or whose CRF raised, unless `quarantine`.
    """
    index = checked_index(task.images, "images", task.shard)
    bad: dict[str, str] = {}
    seed_samples, pseudo_samples, seen = [], [], []
    pace = Pace("crf")
    with fixed_threads(task.section.threads):
        cams_of = zip(*(result.cams for result in found), strict=True)
        for (key, photo), cams in zip(_photos(index, task), cams_of, strict=True):
            fault_point(f"crf:{key}")
            seen.append(_photo_digest(key, photo))
            maps = _image_maps(key, photo, list(cams), task.section)
            if isinstance(maps, str):
                bad[name_from_key(key)] = maps
                maps = abstaining(map_count(task.section, len(cams)), *json.loads(photo["json"])["size"])
            seed_samples.append((key, seed_sample(maps)))
            if task.vote is not None:
                pseudo_samples.append((key, vote_sample(photo, maps, task.vote)))
            pace.tell(len(seed_samples))
    if bad and not task.quarantine:
        problems = [f"{name}: {why}" for name, why in bad.items()]
        title = f"shard {task.shard}: {len(bad)} images have no seeds; repair them, or use --on-bad quarantine"
        raise DataError(report_problems(title, problems))
    seeds = Packed(*shard_bytes(f"seeds-{task.shard:05d}.tar", seed_samples))
    pseudo = Packed(*shard_bytes(f"pseudo-{task.shard:05d}.tar", pseudo_samples)) if task.vote is not None else None
    return SeedResult(seeds, pseudo, sorted({result.device for result in found}), fingerprint(seen), bad)


def _photos(index: ShardIndex, task: SeedTask) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The photographs of the shard with their labels and, where the seeds make use of them, saliency maps."""
    photos = iter_shard(index, task.shard, ["jpg", "json"])
    if task.saliency is None:
        yield from photos
        return
    maps = iter_shard(checked_index(task.saliency, "saliency", task.shard), task.shard, [FIELD])
    for (key, photo), (_, saliency) in zip(photos, maps, strict=True):
        yield key, photo | saliency


def seed_sample(maps: LabelMaps) -> dict[str, bytes]:
    """The members of a seed sample: s0.png, s1.png, ... and m0.png, m1.png, ..."""
    labels = {f"s{k}.png": encode_palette(values) for k, values in enumerate(maps.labels)}
    return labels | {f"m{k}.png": encode_gray(values) for k, values in enumerate(maps.scores)}


def photos_digest(index: ShardIndex, shard: int) -> str:
    """Digest of what the seeds of an image shard are made from, beside the classifiers and the section: keys,
    photographs, labels."""
    return fingerprint([_photo_digest(key, photo) for key, photo in iter_shard(index, shard, ["jpg", "json"])])


def _photo_digest(key: str, photo: dict[str, bytes]) -> list[object]:
    return [key, sha256_bytes(photo["jpg"]), labels_of(photo)]


def _image_maps(key: str, photo: dict[str, bytes], cams: list[Cam], section: SeedsSection) -> LabelMaps | str:
    """The label maps of an image, or why there are none."""
    reasons = [cam for cam in cams if isinstance(cam, str)]
    if reasons:
        return reasons[0]
    try:
        saliency = decode_mask(photo[FIELD], f"{key}.{FIELD}") if FIELD in photo else None
        image = decode_image(photo["jpg"], key)
        return refine_cams(image, labels_of(photo), cams, section, saliency)  # type: ignore[arg-type]
    except Exception as error:
        return reason(error)


def whole_shard(task: SeedTask) -> SeedResult:
    """Both steps of a chunk one after the other, for the local executor."""
    return seed_shard(task, [cam_shard(cam) for cam in task.cams])
