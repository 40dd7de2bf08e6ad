"""The work on one chunk (a shard) of the stage `saliency`, as plain functions of picklable tasks. Called by
`saliency.maps`, in its own process or a local pool alike, so that the bytes are the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from distwsss.data.images import decode_image, encode_gray
from distwsss.data.saliency import FIELD
from distwsss.data.shards.format import name_from_key
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.stage import Packed
from distwsss.data.shards.verify import digest_problems
from distwsss.data.shards.writer import shard_bytes
from distwsss.errors import ShardError, report_problems
from distwsss.runtime.faults import fault_point
from distwsss.runtime.onnx import OnnxNetwork, open_network
from distwsss.runtime.storage import Folder
from distwsss.saliency.folder import MapFile, read_map
from distwsss.saliency.network import saliency_map

THREADS = 1  # of a network in each process: another number might give other bytes


@dataclass(frozen=True)
class MapTask:
    """The maps of one image shard: by the network in the file `network`, else `files`, in the order of its keys."""

    images: Folder
    shard: int
    network: Path | None
    files: tuple[MapFile, ...]
    normalise: str
    max_pixels: int


@dataclass
class MapResult:
    """`means`: the sum of the maps' means, each of 0 to 1; `flat`: ids of photographs in which the network finds
    nothing, whose maps are 0."""

    packed: Packed
    means: float
    flat: list[str] = field(default_factory=list)


@lru_cache(maxsize=1)
def _network(path: Path, changed: int) -> OnnxNetwork:
    """Opened once per process, and anew where the file changed."""
    return open_network(path, THREADS)


def saliency_shard(task: MapTask) -> MapResult:
    """The saliency shard of one image shard. Raises ShardError where that is damaged: maps are never made from damaged
    bytes."""
    index = load_index(task.images, "images")
    if problems := digest_problems(index, task.shard):
        raise ShardError(report_problems(f"{task.images}: damaged", problems))
    maps = {}
    for number, (key, members) in enumerate(iter_shard(index, task.shard, ["jpg"])):
        fault_point(f"saliency:{key}")
        maps[key] = _map(task, number, decode_image(members["jpg"], key))
    name = f"saliency-{task.shard:05d}.tar"
    packed = Packed(*shard_bytes(name, ((key, {FIELD: encode_gray(values)}) for key, values in maps.items())))
    flat = [name_from_key(key) for key, values in maps.items() if not values.any()]
    return MapResult(packed, sum(float(values.mean()) / 255 for values in maps.values()), flat)


def _map(task: MapTask, number: int, image: np.ndarray) -> np.ndarray:
    """uint8[H,W] of the photograph of that number in the shard."""
    if task.network is None:
        size = (image.shape[0], image.shape[1])
        return read_map(task.files[number], size, task.normalise, task.max_pixels)
    return saliency_map(_network(task.network, task.network.stat().st_mtime_ns), image)
