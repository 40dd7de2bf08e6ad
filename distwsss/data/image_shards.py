"""Image shards of one split: which there are, which an earlier attempt left whole, and the making of the others.

Called by `data/prepare.py` with items that were checked. A shard is made from its items alone (`make_shard`), so that
the bytes are the same whichever process makes it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distwsss.config import Config
from distwsss.data.images import decode_photograph, encode_jpeg, encode_palette
from distwsss.data.shards.stage import Packed, ShardStage
from distwsss.data.shards.writer import shard_bytes
from distwsss.data.sources.listing import Item, MaskSource, item_key, mask_digest, read_mask, read_source
from distwsss.runtime.artifacts import fingerprint, sha256_bytes, to_json
from distwsss.runtime.faults import fault_point
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import log, track

PER_SAMPLE = 4096  # bytes of tar headers, padding, JSON and index, at most
PER_DRAWN_MASK = 16_384  # bytes of its palette PNG, commonly less


@dataclass(frozen=True)
class ImageTask:
    """One shard to make."""

    number: int
    name: str
    items: list[Item]


@dataclass(frozen=True)
class ImagePlan:
    """The shards of a split: `count` of them, of which `todo` are not there yet. `max_pixels` and `longest_side`: the
    keys of these names."""

    stage: ShardStage
    count: int
    todo: list[ImageTask]
    max_pixels: int
    longest_side: int | None

    def bytes_needed(self) -> int:
        there = [self.stage.shard(task.number) for task in self.todo]  # which go, or are replaced
        found = sum(path.stat().st_size for path in there if isinstance(path, Path) and path.is_file())
        needed = sum(_bytes_needed(item, self.longest_side) for task in self.todo for item in task.items)
        return max(0, needed - found)


def plan_shards(stage: ShardStage, items: list[Item], config: Config) -> ImagePlan:
    """Shards of `prepare.shard_size` images in the order of the keys' sha256, which mixes the classes and does not
    depend on the listing's order. Done are those whose record agrees in parameters, sources and bytes."""
    ordered = sorted(items, key=lambda item: sha256_bytes(item_key(item).encode()))
    size = config.prepare.shard_size
    starts = range(0, len(ordered), size)
    tasks = [
        ImageTask(number, stage.shard(number).name, ordered[start : start + size])
        for number, start in enumerate(starts)
    ]
    todo = [task for task in tasks if not _is_done(stage, task)]
    return ImagePlan(stage, len(tasks), todo, config.data.max_pixels, config.prepare.longest_side)


def _is_done(stage: ShardStage, task: ImageTask) -> bool:
    found = stage.published(task.number)
    if found is None or fingerprint(found.get("parameters")) != fingerprint(stage.parameters):
        return False
    return bool(found.get("sources") == _sources(task.items))


def write_shards(
    plan: ImagePlan, classes: list[str], extra: dict[str, Any], workers: int, remake: bool = False
) -> None:
    """Make what is left to do, in `workers` processes, and write the index. What earlier attempts left of other
    parameters or sources goes; with `remake` each of its shards stays until it is replaced, or for good where the bytes
    are the same."""
    stage, what = plan.stage, f"{plan.stage.name}: writing"
    if remake:
        stage.reopen(plan.count)
    else:
        _remove_others(plan)
    if len(plan.todo) < plan.count:
        log.info(f"{stage.name}: {plan.count - len(plan.todo)} of {plan.count} shards are there already")
    with closing(spread(partial(make_shard, plan.max_pixels, plan.longest_side), plan.todo, workers)) as made:
        for task, (packed, sources) in track(made, len(plan.todo), what, unit="shard"):
            stage.publish(task.number, packed, sources=sources)
    stage.complete(plan.count, classes, extra)


def _remove_others(plan: ImagePlan) -> None:
    folder, names = plan.stage.folder, {task.name for task in plan.todo}
    plan.stage.remove_stale()
    kept = {plan.stage.shard(number).name for number in range(plan.count)} - names
    for path in [*folder.glob("images-*.tar.json"), *folder.glob("images-*.tar")]:
        if path.name.removesuffix(".json") not in kept:
            path.unlink(missing_ok=True)


def make_shard(max_pixels: int, longest_side: int | None, task: ImageTask) -> tuple[Packed, str]:
    """The shard, and the digest of what it was made from."""
    sources = _sources(task.items)
    fault_point(f"making:{task.name}")
    samples = ((item_key(item), _sample(item, max_pixels, longest_side)) for item in task.items)
    return Packed(*shard_bytes(task.name, samples)), sources


def _sources(items: list[Item]) -> str:
    """Digest of all that a shard is made from; unlike the content digest of a split, every byte of the images too."""
    return fingerprint(
        [
            [item.name, item.labels, sha256_bytes(read_source(item.image)), item.mask and mask_digest(item.mask)]
            for item in items
        ]
    )


def _sample(item: Item, max_pixels: int, longest_side: int | None) -> dict[str, bytes]:
    """The members of one image: jpg (the original bytes wherever they are an upright JPEG in RGB or grey that is no
    larger than `longest_side`), json, truth.png."""
    data = read_source(item.image)
    photo = decode_photograph(data, item.name, max_pixels, longest_side)
    stored = photo.pixels.shape[:2]
    about: dict[str, Any] = {"labels": item.labels, "size": list(stored), "name": item.name}
    if stored != photo.size:
        about["original"] = list(photo.size)
    if photo.orientation != 1:
        about["turned"] = photo.orientation
    if photo.jpeg_mode not in ("RGB", "L") or "original" in about or "turned" in about:
        about["encoded_from"] = "jpg" if photo.jpeg_mode else Path(item.name).suffix.lower().removeprefix(".")
        data = encode_jpeg(photo.pixels)
    sample = {"jpg": data, "json": to_json(about)}
    if item.mask is not None:
        sample["truth.png"] = encode_palette(read_mask(item.mask, f"{item.name}: mask", max_pixels))
    return sample


def _bytes_needed(item: Item, longest_side: int | None) -> int:
    photo = _stored(item.image)
    if longest_side is not None:
        photo = min(photo, 3 * longest_side**2)  # no JPEG of that size takes more than its pixels
    return PER_SAMPLE + photo + (0 if item.mask is None else _stored(item.mask))


def _stored(source: Path | bytes | MaskSource) -> int:
    if isinstance(source, bytes):
        return len(source)
    return source.stat().st_size if isinstance(source, Path) else PER_DRAWN_MASK
