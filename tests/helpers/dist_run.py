"""What the tests of this folder share: pseudo-label shards whose images differ in valid and clean pixels, weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from distwsss.config import Config
from distwsss.data.images import decode_mask, encode_clean, encode_gray, encode_palette
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.runtime.layout import images_dir, pseudo_dir

BLANK = 5  # every so many images one has no valid pixel


def make_shards(config: Config) -> None:
    """Image shards, and pseudo-label shards from the true masks: no classifier needed.

    Of image n of N the first n / N of the rows are noisy; every fifth image is ignored altogether.
    """
    prepare(config)
    images = load_index(images_dir(config, "train"), "images")
    records, number = [], 0
    for shard in range(len(images.shards)):
        samples = []
        for key, members in iter_shard(images, shard, ["jpg", "json", "truth.png"]):
            labels = decode_mask(members["truth.png"], key)
            if number % BLANK == BLANK - 1:
                labels = np.full_like(labels, 255)
            votes = np.full_like(labels, 2)
            votes[: len(votes) * number // len(images)] = 1
            votes[labels == 255] = 0
            fields = {
                "jpg": members["jpg"],
                "label.png": encode_palette(labels),
                "votes.png": encode_gray(votes),
                "clean.png": encode_clean(votes >= 2),
                "json": members["json"],
            }
            samples.append((key, fields))
            number += 1
        records.append(write_shard(pseudo_dir(config) / f"pseudo-{shard:05d}.tar", samples))
    write_index(pseudo_dir(config), records, {"made": "by a test"}, images.classes, "pseudo", {"seeds": ["a", "b"]})


def last_weights(run: Path) -> dict[str, Tensor]:
    """The weights of the segmenter that the run's LAST names."""
    checkpoints = run / "train/checkpoints"
    return load_file(checkpoints / (checkpoints / "LAST").read_text().strip() / "model.safetensors")


def make_pseudo(config: Config) -> None:
    """Pseudo-label shards straight from the true masks, a third of the rows noisy: no classifier needed."""
    images = load_index(images_dir(config, "train"), "images")
    records = []
    for shard in range(len(images.shards)):
        samples = []
        for key, members in iter_shard(images, shard, ["jpg", "json", "truth.png"]):
            labels = decode_mask(members["truth.png"], key)
            votes = (torch.arange(labels.shape[0])[:, None].expand(labels.shape) % 3 + 1).numpy().astype("uint8")
            votes[labels == 255] = 0
            fields = {
                "jpg": members["jpg"],
                "label.png": encode_palette(labels),
                "votes.png": encode_gray(votes),
                "clean.png": encode_clean(votes >= 2),
                "json": members["json"],
            }
            samples.append((key, fields))
        records.append(write_shard(pseudo_dir(config) / f"pseudo-{shard:05d}.tar", samples))
    names = ["0.10-1.00", "0.10-1.20", "0.30-1.00"]
    write_index(pseudo_dir(config), records, {"made": "by a test"}, images.classes, "pseudo", {"seeds": names})


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
