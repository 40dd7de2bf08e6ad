"""Small image shards of noise: samples, and a folder of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from distwsss.data import images
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.writer import write_index, write_shard

CLASSES = ["background", "cat", "dog"]
Samples = list[tuple[str, dict[str, bytes]]]


def make_samples(start: int = 0, count: int = 4) -> Samples:
    """Samples of image shards, each of another width, every other one with a mask."""
    samples: Samples = []
    for i in range(start, start + count):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 8 + i, 3), dtype=np.uint8)
        fields = {
            "jpg": images.encode_jpeg(pixels),
            "json": json.dumps({"labels": [1], "size": [6, 8 + i], "name": f"id.{i}"}).encode(),
        }
        if i % 2 == 0:
            fields["truth.png"] = images.encode_palette(np.full((6, 8 + i), i % 3, np.uint8))
        samples.append((key_from_name(f"id.{i}"), fields))
    return samples


def make_folder(folder: Path) -> Samples:
    """Two image shards of four samples and their index."""
    samples = make_samples(0) + make_samples(4)
    records = [write_shard(folder / f"images-{s:05d}.tar", samples[4 * s : 4 * s + 4]) for s in range(2)]
    write_index(folder, records, {"data": {"dataset": "shapes"}}, CLASSES, "images", {"labels_from": "csv"})
    return samples
