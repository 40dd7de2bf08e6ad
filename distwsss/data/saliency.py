"""Saliency shards: what they are made of, and whether those that lie there are the configuration's. Called by
`saliency`, which makes them, and by the stages that read them.

`KEY.saliency.png` is 8-bit grey at the size of `KEY.jpg`, 255 where something surely stands out; shard i has the keys
of image shard i.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from distwsss.config import Config
from distwsss.data.images import decode_mask
from distwsss.data.shards.format import INDEX, name_from_key
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import read_fields
from distwsss.data.sources.listing import stem_of
from distwsss.data.sources.pictures import files_below
from distwsss.errors import DataError, relative_to
from distwsss.models.weights.saliency import TABLE, network_path
from distwsss.runtime.artifacts import check_same, fingerprint, sha256_file
from distwsss.runtime.layout import saliency_dir

FIELD = "saliency.png"
SUFFIXES = (".png", ".jpg", ".jpeg")


def map_files(folder: str | Path, images: ShardIndex) -> dict[str, list[Path]]:
    """Image id -> the files of `folder` that may be its map, ID.png or ID.jpg, the suffix in any case; none or several
    where it is not clear. Raises DataError without such a folder."""
    root = Path(folder).absolute()
    if not root.is_dir():
        raise DataError(
            f"saliency.folder: found no folder {root}{relative_to(folder)}; give the folder of the maps, ID.png each"
        )
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for name in files_below(root):
        if name.lower().endswith(SUFFIXES):
            by_stem[stem_of(name)].append(root / name)
    return {name: by_stem.get(name, []) for name in map(name_from_key, images.all().keys())}


def saliency_parameters(config: Config, images: ShardIndex, digest: str) -> dict[str, Any]:
    """What the fingerprint of the saliency shards covers. digest: `source_digest`."""
    section = config.saliency
    kind = "network" if section.folder is None else "folder"
    return {"saliency": section.parameters(), "inputs": {kind: digest, "images": images.fingerprint}}


def source_digest(config: Config, images: ShardIndex) -> str | None:
    """sha256 of the network's file, or of the folder's files that are maps of `images`. Where these are gone, what the
    shards that lie there were made from; None where there are none."""
    section = config.saliency
    if section.folder is not None and Path(section.folder).is_dir():
        files = map_files(section.folder, images)
        return fingerprint([[name, [sha256_file(path) for path in found]] for name, found in sorted(files.items())])
    if section.model is not None and section.model in TABLE:
        return TABLE[section.model].sha256
    if section.model is not None and network_path(section.model).is_file():
        return sha256_file(network_path(section.model))
    if not (saliency_dir(config) / INDEX).is_file():
        return None
    inputs: dict[str, str] = load_index(saliency_dir(config), "saliency").parameters["inputs"]
    return inputs["folder" if section.model is None else "network"]


def open_saliency(config: Config, images: ShardIndex) -> ShardIndex:
    """The complete saliency shards of `images`. Raises ShardError where there are none, ConfigError where they were
    made from other images, another network or other maps."""
    index = load_index(saliency_dir(config), "saliency")
    digest = source_digest(config, images) or ""
    check_same(index.parameters, saliency_parameters(config, images, digest), f"saliency ({index.folder})")
    images.check_same_images(index)
    return index


def read_saliency(index: ShardIndex, shard: int, position: int) -> np.ndarray:
    """uint8[H,W], 255 where something surely stands out, at the size of the photograph in its image shard."""
    return decode_mask(read_fields(index, shard, position, [FIELD])[FIELD], f"{index.key(shard, position)}.{FIELD}")
