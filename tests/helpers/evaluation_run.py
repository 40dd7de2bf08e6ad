"""A small finished run for the tests of evaluation, prediction and report: shards and a segmenter, no training."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from distwsss.config.load import check_config
from distwsss.config.networks import BackboneSection
from distwsss.config.schema import Config
from distwsss.data.images import encode_palette
from distwsss.data.prepare import data_parameters, split_of
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.models.deeplab import DeepLab
from distwsss.models.export import save_pretrained
from distwsss.runtime.artifacts import to_json, write_json, write_manifest, write_pointer
from distwsss.runtime.layout import images_dir, run_dir, source_file

CLASSES = ["background", "cat", "dog"]


def make_config(folder: Path, **sections: Any) -> Config:
    """A configuration whose run and shards lie in `folder`."""
    tree: dict[str, Any] = {
        "name": "small",
        "paths": {"run": str(folder / "run"), "shards": str(folder / "shards")},
        "data": {"dataset": "shapes"},
        "hardware": {"device": "cpu", "workers": 0},
        "classify": {"dropouts": [0.1, 0.2]},
        "seeds": {"scales": [1.0]},
        "evaluate": {"scales": [0.75, 1.0], "crf": {"iterations": 2}},
        "report": {"images": 2},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return check_config(tree)


def picture(seed: int, height: int = 24, width: int = 32) -> bytes:
    """A JPEG of coloured noise on a gradient."""
    rows = np.linspace(0, 200, height)[:, None, None]
    noise = np.random.default_rng(seed).integers(0, 55, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray((rows + noise).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def make_truth(seed: int, height: int = 24, width: int = 32, classes: int = 3) -> np.ndarray:
    """Random class ids in blocks, with an ignored border row."""
    blocks = np.random.default_rng(seed).integers(0, classes, (height // 8, width // 8), dtype=np.uint8)
    truth = np.kron(blocks, np.ones((8, 8), dtype=np.uint8))
    truth[0] = 255
    return truth


def write_images(
    config: Config,
    role: str,
    count: int,
    classes: list[str] = CLASSES,
    truth: bool = True,
    names: list[str] | None = None,
    labels_from: str = "generated",
) -> list[np.ndarray]:
    """Image shards of `count` images, two a shard, sizes differing; returns the masks."""
    masks, samples = [], []
    for number in range(count):
        height, width = 24 + 8 * (number % 2), 32
        masks.append(make_truth(number, height, width, len(classes)))
        name = names[number] if names else f"{role}-{number}"
        about = {"labels": [1 + number % (len(classes) - 1)], "size": [height, width], "name": name}
        fields = {"jpg": picture(number, height, width), "json": to_json(about)}
        if truth:
            fields["truth.png"] = encode_palette(masks[-1])
        samples.append((key_from_name(name), fields))
    folder = images_dir(config, role)
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        write_shard(folder / f"images-{start // 2:05d}.tar", samples[start : start + 2]) for start in range(0, count, 2)
    ]
    extra = {"labels_from": labels_from, "truth": "digest" if truth else None}
    parameters = {"data": data_parameters(config), "split": split_of(config, role), "count": count}
    write_index(folder, records, parameters, classes, "images", extra)
    root = config.data.root and str(Path(config.data.root).absolute())
    write_json(source_file(config), {"root": root})
    return masks


def write_segmenter(config: Config, classes: list[str] = CLASSES, step: int = 10) -> Path:
    """An untrained segmenter, sharpened so that its classes differ, published as the run's LAST checkpoint."""
    torch.manual_seed(0)
    backbone = BackboneSection(name="tiny", pretrained=False, output_stride=8)
    model = DeepLab(backbone, classes, "aspp", 8, 0.5)
    for parameter in model.head.parameters():
        parameter.data.mul_(300)
    checkpoints = run_dir(config) / "train" / "checkpoints"
    folder = checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    save_pretrained(model, folder)
    write_json(folder / "trainer.json", {"step": step})
    write_manifest(folder)
    write_pointer(checkpoints / "LAST", folder)
    return folder


def flip_a_bit(path: Path) -> None:
    """Damage the middle byte of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
