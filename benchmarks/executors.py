"""Ray's overhead over the local pool in the `seeds` stage, on real photographs and as users start it.

    python benchmarks/executors.py --data PATH [--images 200 --runs 5 --seeds 8]

PATH is a VOC devkit folder. `distwsss seeds` makes the seeds of the same image shards with both executors, alternating;
each also those of the first two shards alone, and the time of that (imports, Ray's start, processes) is subtracted, so
that figures are of the other images. The classifiers are `tiny` ones with random weights: an image costs a fraction of
what it does in earnest, and overhead shows more; most of all with two seeds. The shards of both must be equal.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from distwsss.config.data import DataSection
from distwsss.config.networks import BackboneSection
from distwsss.data.images import decode_image
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.data.sources.voc import list_voc
from distwsss.models.classifier import Classifier
from distwsss.models.export import save_pretrained
from distwsss.runtime.artifacts import to_json, write_json, write_manifest, write_pointer

SHARD, FIRST, WORKERS = 8, 16, 2
KEYS = {2: ([0.1, 0.3], [1.0]), 8: ([0.05, 0.1, 0.2, 0.3], [1.0, 1.2])}  # seeds: dropouts, scales


def write_images(folder: Path, data: str, images: int) -> None:
    """Image shards of every so many photographs of the train split."""
    listing = list_voc(DataSection(dataset="voc", root=data), "train")
    items = [listing.items[i] for i in np.linspace(0, len(listing.items) - 1, images).astype(int)]
    samples = []
    for item in items:
        jpg = Path(item.image).read_bytes()
        about = {"labels": item.labels, "size": list(decode_image(jpg, item.name).shape[:2]), "name": item.name}
        samples.append((key_from_name(item.name), {"jpg": jpg, "json": to_json(about)}))
    parts = [samples[start : start + SHARD] for start in range(0, images, SHARD)]
    records = [write_shard(folder / f"images-{n:05d}.tar", part) for n, part in enumerate(parts)]
    write_index(folder, records, {"split": "train"}, listing.classes, "images")


def write_classifiers(run: Path, classes: list[str], dropouts: list[float]) -> None:
    for number, p in enumerate(dropouts):
        torch.manual_seed(number)
        model = Classifier(BackboneSection(name="tiny", pretrained=False, output_stride=8), classes, p)
        folder = run / "classify" / f"{p:.2f}" / "checkpoints" / "step-00000001"
        folder.mkdir(parents=True)
        save_pretrained(model, folder)
        write_manifest(folder)
        write_pointer(folder.parent / "LAST", folder)
        write_json(folder.parent.parent / "done.json", {})


def make_place(folder: Path, data: str, images: int, seeds: int) -> Path:
    """A run whose next stage is `seeds`; returns its configuration."""
    dropouts, scales = KEYS[seeds]
    write_images(folder / "shards/images/train", data, images)
    classes = list_voc(DataSection(dataset="voc", root=data), "train").classes
    write_classifiers(folder / "run", classes, dropouts)
    tree = {
        "name": "overhead",
        "paths": {"run": str(folder / "run"), "shards": str(folder / "shards")},
        "data": {"dataset": "voc", "root": data},
        "hardware": {"device": "cpu", "workers": WORKERS},
        "classify": {"dropouts": dropouts},
        "seeds": {"scales": scales},
    }
    (folder / "overhead.yaml").write_text(yaml.safe_dump(tree))
    return folder / "overhead.yaml"


def seconds(config: Path, executor: str) -> tuple[float, dict[str, bytes]]:
    """Wall time of the command, and the bytes of the shards it made, which are removed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    command = [sys.executable, "-m", "distwsss", "seeds", "--config", str(config), "--executor", executor]
    start = time.monotonic()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    taken = time.monotonic() - start
    shards = config.parent / "shards"
    found = {path.name: path.read_bytes() for kind in ("seeds", "pseudo") for path in (shards / kind).rglob("*.tar")}
    for kind in ("seeds", "pseudo"):
        shutil.rmtree(shards / kind)
    return taken, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="VOC devkit folder")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=8, choices=KEYS)
    arguments = parser.parse_args()
    data = str(Path(arguments.data).resolve())
    times: dict[str, list[float]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory() as name:
        whole = make_place(Path(name) / "whole", data, arguments.images, arguments.seeds)
        first = make_place(Path(name) / "first", data, FIRST, arguments.seeds)
        shown = None
        for run in range(arguments.runs):
            for executor in ("local", "ray") if run % 2 == 0 else ("ray", "local"):
                taken, found = seconds(whole, executor)
                times[executor].append(taken - seconds(first, executor)[0])
                shown = shown or found
                assert found == shown, "the executors made different shards"
    count = arguments.images - FIRST
    for executor, values in times.items():
        rates = sorted(count / value for value in values)
        print(f"{executor}: {statistics.median(rates):.2f} images/s ({rates[0]:.2f}-{rates[-1]:.2f}), {WORKERS} CPUs")
    ratios = sorted(ray / local for ray, local in zip(times["ray"], times["local"], strict=True))
    print(f"Ray's time / the pool's: {statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f}), equal shards")


if __name__ == "__main__":
    main()
