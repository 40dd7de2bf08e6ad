"""Small configurations and small data: `tiny` networks, pictures of a few pixels, seconds each.

A test says itself what it varies: the sections of its configuration, its classes, its label maps.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from distwsss.config.load import check_config
from distwsss.config.networks import BackboneSection
from distwsss.config.schema import Config
from distwsss.data.images import decode_mask, encode_clean, encode_gray, encode_palette
from distwsss.data.prepare import data_parameters, split_of
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard, read_fields, read_json_field
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.models.classifier import Classifier
from distwsss.models.deeplab import DeepLab
from distwsss.models.export import save_pretrained
from distwsss.runtime.artifacts import to_json, write_json, write_manifest, write_pointer
from distwsss.runtime.layout import images_dir, pseudo_dir, run_dir, seeds_dir, source_file
from distwsss.runtime.storage import Folder
from distwsss.saliency.maps import make_saliency

CLASSES = ["background", "cat", "dog"]
TINY_OPTIM = {
    **{"duration": "4 steps", "global_batch": 4, "optimizer": "sgd", "lr": 0.01, "weight_decay": 5e-4},
    **{"backbone_multiplier": 1.0, "bias_multiplier": 2.0, "log_every": 1},
}
TINY_BACKBONE = {"name": "tiny", "pretrained": False, "output_stride": 8}
TINY_AUGMENT = {"crop": 48, "resize": [0.8, 1.2], "resize_by": "factor"}
Samples = list[tuple[str, dict[str, bytes]]]  # key, fields

# --- configurations ---


def tiny_tree(folder: Path) -> dict[str, Any]:
    """The configuration of a run of seconds: 12 generated images of 64 pixels, two classifiers, four seeds."""
    return {
        "name": "tiny",
        "paths": {"run": str(folder / "run"), "shards": str(folder / "shards")},
        "hardware": {"device": "cpu", "workers": 0, "loader_workers": 0, "timeout_seconds": 60},
        "data": {"dataset": "shapes", "shapes": {"train": 12, "val": 4, "size": 64}},
        "prepare": {"shard_size": 4},
        "classify": {
            "dropouts": [0.1, 0.3], "backbone": TINY_BACKBONE, "augment": TINY_AUGMENT, "optim": TINY_OPTIM,
        },
        "seeds": {"threshold": 3, "base_size": None, "alpha": 8.0},
        "train": {"backbone": TINY_BACKBONE, "augment": TINY_AUGMENT, "optim": TINY_OPTIM, "head_dropout": 0.0},
        "evaluate": {"scales": [0.75, 1.0], "crf": {"iterations": 2}},
        "report": {"images": 2},
    }  # fmt: skip


def merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`base` with what `top` says otherwise, mappings key by key."""
    result = dict(base)
    for key, value in top.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and key in result else value
    return result


def make_config(folder: Path, **sections: Any) -> Config:
    """`tiny_tree` of `folder` with `sections` in it."""
    return check_config(merged(tiny_tree(folder), sections))


def write_config(folder: Path, **sections: Any) -> Path:
    """The same as folder/tiny.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(merged(tiny_tree(folder), sections)), encoding="utf-8")
    return path


# --- pictures and files ---


def picture(seed: int, height: int = 24, width: int = 32) -> bytes:
    """A JPEG of coloured noise on a gradient."""
    rows = np.linspace(0, 200, height)[:, None, None]
    noise = np.random.default_rng(seed).integers(0, 55, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray((rows + noise).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def make_truth(seed: int, height: int = 24, width: int = 32, classes: int = 3) -> np.ndarray:
    """Random class ids in blocks, with an ignored border row."""
    blocks = np.random.default_rng(seed).integers(0, classes, (-(-height // 8), -(-width // 8)), dtype=np.uint8)
    truth = np.kron(blocks, np.ones((8, 8), dtype=np.uint8))[:height, :width]
    truth[0] = 255
    return truth


def flip_a_bit(path: Path) -> None:
    """Damage the middle byte of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_folder(
    root: Path,
    count: int = 10,
    size: tuple[int, int] = (6, 8),
    kinds: Sequence[str] = ("jpg",),
    splits: Callable[[int], str] = lambda number: "val" if number < 2 else "train",
) -> Path:
    """A `folder` data set: pictures p0, p1, ..., of `kinds` in turn, masks of one class for the even ones, tags.csv."""
    rows = ["image,labels,split"]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"images/p{number}.{kinds[number % len(kinds)]}")
        if number % 2 == 0:
            (root / f"masks/p{number}.png").write_bytes(encode_palette(np.full(size, number % 3, np.uint8)))
        rows.append(f"p{number},{'dog' if number % 3 else 'cat;dog'},{splits(number)}")
    (root / "tags.csv").write_text("\n".join(rows))
    return root


# --- shards ---


def data_config(root: Path, folder: Path, dataset: str = "folder", shard_size: int = 4, **data: Any) -> Config:
    """The data set of `root`; run and shards lie in `folder`."""
    data = {"dataset": dataset, "root": str(root), **data}
    return make_config(folder, data=data, prepare={"shard_size": shard_size})


def make_samples(start: int = 0, count: int = 4) -> Samples:
    """Samples of images id.START, ..., each another width, the even ones with a mask."""
    samples: Samples = []
    for number in range(start, start + count):
        height, width, name = 6, 8 + number, f"id.{number}"
        about = {"labels": [1], "size": [height, width], "name": name}
        fields = {"jpg": picture(number, height, width), "json": to_json(about)}
        if number % 2 == 0:
            fields["truth.png"] = encode_palette(np.full((height, width), number % 3, np.uint8))
        samples.append((key_from_name(name), fields))
    return samples


def make_folder(folder: Folder) -> Samples:
    """Two image shards of four of them and their index."""
    samples, parameters = make_samples(0, 8), {"data": {"dataset": "shapes"}}
    write_shards(folder, "images", [samples[:4], samples[4:]], CLASSES, parameters, labels_from="csv")
    return samples


def write_shards(
    folder: Folder,
    kind: str,
    shards: Sequence[Samples],
    classes: Sequence[str] = CLASSES,
    parameters: dict[str, Any] | None = None,
    **extra: Any,
) -> None:
    """Shards of `kind`, one for each of `shards`, and their index."""
    records = [write_shard(folder / f"{kind}-{number:05d}.tar", samples) for number, samples in enumerate(shards)]
    write_index(folder, records, parameters or {}, list(classes), kind, extra)


def write_images(
    config: Config,
    role: str,
    count: int,
    classes: Sequence[str] = CLASSES,
    truth: bool = True,
    names: Sequence[str] | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    sizes: Sequence[tuple[int, int]] = ((24, 32), (32, 32)),
    labels_from: str = "generated",
) -> list[np.ndarray]:
    """Image shards of `count` images, two a shard, of `sizes` in turn; returns the masks."""
    masks: list[np.ndarray] = []
    samples: Samples = []
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        masks.append(make_truth(number, height, width, len(classes)))
        name = names[number] if names else f"{role}-{number}"
        said = list(labels[number]) if labels else [1 + number % (len(classes) - 1)]
        about = {"labels": said, "size": [height, width], "name": name}
        fields = {"jpg": picture(number, height, width), "json": to_json(about)}
        if truth:
            fields["truth.png"] = encode_palette(masks[-1])
        samples.append((key_from_name(name), fields))
    parameters = {"data": data_parameters(config), "split": split_of(config, role), "count": count}
    extra = {"labels_from": labels_from, "truth": "digest" if truth else None}
    shards = [samples[start : start + 2] for start in range(0, count, 2)]
    write_shards(images_dir(config, role), "images", shards, classes, parameters, **extra)
    root = config.data.root and str(Path(config.data.root).absolute())
    write_json(source_file(config), {"root": root})
    return masks


def beside_images(
    config: Config, fields: Callable[[int, dict[str, bytes], np.ndarray | None], dict[str, bytes]]
) -> tuple[list[Samples], list[str]]:
    """fields(number, the image's fields, its mask) of every train image, shard by shard, and the classes."""
    images, shards, number = load_index(images_dir(config, "train"), "images"), [], 0
    for shard in range(len(images.shards)):
        samples: Samples = []
        for key, found in iter_shard(images, shard, ["jpg", "json", "truth.png"]):
            truth = decode_mask(found["truth.png"], key) if "truth.png" in found else None
            samples.append((key, fields(number, found, truth)))
            number += 1
        shards.append(samples)
    return shards, images.classes


def write_seeds(config: Config, maps: Callable[[int], Sequence[np.ndarray]], **parameters: Any) -> None:
    """Seed shards of the train images: maps(number of the image) -> the map of each seed."""

    def fields(number: int, found: dict[str, bytes], truth: np.ndarray | None) -> dict[str, bytes]:
        return {f"s{k}.png": encode_palette(seed) for k, seed in enumerate(maps(number))}

    shards, classes = beside_images(config, fields)
    write_shards(seeds_dir(config), "seeds", shards, classes, parameters, seeds=config.seed_names())


def write_saliency(config: Config) -> list[np.ndarray]:
    """A map of every train image in `saliency.folder`, a bright block on a ramp, and the shards of them; returns the
    maps, uint8[H,W]."""
    folder, maps = Path(config.saliency.folder or ""), []
    folder.mkdir(parents=True, exist_ok=True)
    index = load_index(images_dir(config, "train"), "images")
    for number, (shard, position) in enumerate(index.all().places()):
        about = read_json_field(read_fields(index, shard, position, ["json"])["json"], "json")
        height, width = about["size"]
        grey = np.tile(np.linspace(0, 120, width, dtype=np.uint8), (height, 1))
        top = (number % 3 + 1) * height // 6
        grey[top : top + height // 2, width // 4 : width * 3 // 4] = 230
        (folder / f"{about['name']}.png").write_bytes(encode_gray(grey))
        maps.append(grey)
    make_saliency(config)
    return maps


def thirds(number: int, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The true labels, with one, two and three votes by row in turn."""
    rows = np.arange(len(truth), dtype=np.uint8)[:, None] % 3 + 1
    return truth, np.where(truth == 255, 0, rows).astype(np.uint8)


def write_pseudo(
    config: Config,
    maps: Callable[[int, Any], tuple[np.ndarray, np.ndarray]] = thirds,
    seeds: Sequence[str] = ("0.10-1.00", "0.10-1.20", "0.30-1.00"),
    **parameters: Any,
) -> None:
    """Pseudo-label shards of the train images: maps(number of the image, its mask) -> labels, votes. No classifier is
    needed; clean is what has two votes."""

    def fields(number: int, found: dict[str, bytes], truth: np.ndarray | None) -> dict[str, bytes]:
        labels, votes = maps(number, truth)
        maps_of = {"label.png": encode_palette(labels), "votes.png": encode_gray(votes)}
        return {"jpg": found["jpg"], **maps_of, "clean.png": encode_clean(votes >= 2), "json": found["json"]}

    shards, classes = beside_images(config, fields)
    write_shards(pseudo_dir(config), "pseudo", shards, classes, parameters, seeds=list(seeds))


# --- networks ---


def write_classifiers(config: Config, classes: Sequence[str] = CLASSES, seed: int = 0, gain: float = 1.0) -> None:
    """Untrained classifiers, published as finished runs. gain: of the head's weights."""
    for number, p in enumerate(config.classify.dropouts):
        torch.manual_seed(seed + number)
        model = Classifier(BackboneSection(**TINY_BACKBONE), list(classes), p)
        model.head.weight.data.mul_(gain)
        run = run_dir(config) / "classify" / f"{p:.2f}"
        publish(model, run / "checkpoints" / "step-00000001")
        write_json(run / "done.json", {})


def write_segmenter(config: Config, classes: Sequence[str] = CLASSES, step: int = 10) -> Path:
    """An untrained segmenter, sharpened so that its classes differ, published as the run's LAST checkpoint."""
    torch.manual_seed(0)
    model = DeepLab(BackboneSection(**TINY_BACKBONE), list(classes), "aspp", 8, 0.5)
    for parameter in model.head.parameters():
        parameter.data.mul_(300)
    folder = run_dir(config) / "train" / "checkpoints" / f"step-{step:08d}"
    return publish(model, folder, step=step)


def publish(model: torch.nn.Module, folder: Path, **trainer: Any) -> Path:
    """`folder` as the checkpoint that LAST beside it names."""
    folder.mkdir(parents=True, exist_ok=True)
    save_pretrained(model, folder)
    if trainer:
        write_json(folder / "trainer.json", trainer)
    write_manifest(folder)
    write_pointer(folder.parent / "LAST", folder)
    return folder


def weights(checkpoint: Path) -> bytes:
    return (checkpoint / "model.safetensors").read_bytes()


def last_weights(run: Path) -> dict[str, Tensor]:
    """The weights of the segmenter that the run's LAST names."""
    checkpoints = run / "train/checkpoints"
    return load_file(checkpoints / (checkpoints / "LAST").read_text().strip() / "model.safetensors")
