"""What the training loop costs: a step against a bare PyTorch loop, the loader against bare decoding, checkpoints.

    python benchmarks/engine.py [step] [loader] [checkpoint] [--runs 7 --threads 1]

`step`: DeepLab on the backbone given, the same batches, loss and optimizer, `train.steps` against a loop of ten lines;
alternating. `loader`: `data.batches` with worker processes against a DataLoader over files in memory that decodes and
augments with the same functions. `checkpoint`: ten saves, some steps apart, in the background and waited for, against
the same steps without. Everything that only starts or ends a run is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from distwsss.config import Config
from distwsss.config.load import check_config
from distwsss.data.batches.loader import Batch, MicroBatches, share_batch
from distwsss.data.batches.transforms import augment_sample
from distwsss.data.batches.workers import read_batches
from distwsss.data.images import decode_clean, decode_image, decode_mask, encode_clean, encode_gray, encode_palette
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.losses.hybrid import hybrid_loss, sample_complements
from distwsss.models.export import description
from distwsss.runtime.layout import images_dir, pseudo_dir, run_dir
from distwsss.runtime.progress import setup_logging
from distwsss.runtime.stop import StopSignal
from distwsss.train.checkpoint import CheckpointWriter, optimizer_states
from distwsss.train.engine.accelerate import make_accelerator
from distwsss.train.engine.watch import HangWatch
from distwsss.train.loop import Outputs
from distwsss.train.optim import build_optimizer, lr_factor, set_lr
from distwsss.train.steps import Run, train_steps
from distwsss.train.task import Task, segmenter_task

BATCH, STEPS, SAVES, BETWEEN = 4, 12, 10, 12


def make_config(folder: Path, backbone: str, size: int) -> Config:
    """A configuration with generated images and pseudo-labels that are their masks, three rows of four clean."""
    tree = {
        "name": "engine",
        "paths": {"run": str(folder / "run"), "shards": str(folder / "shards")},
        "hardware": {"device": "cpu", "workers": 0, "loader_workers": 0},
        "data": {"dataset": "shapes", "shapes": {"train": 64, "val": 0, "size": size}},
        "prepare": {"shard_size": 16},
        "train": {
            "backbone": {"name": backbone, "pretrained": False, "output_stride": 16},
            "temperature": 0.1,
            "holdout": 0.0,
            "augment": {"crop": size, "color_jitter": [0.3, 0.3, 0.3, 0.1]},
            "optim": {"global_batch": BATCH, "duration": f"{STEPS} steps", "save_every": "100%", "lr": 1e-4},
        },
    }
    config = check_config(tree)
    prepare(config)
    images, records = load_index(images_dir(config, "train"), "images"), []
    for shard in range(len(images.shards)):
        samples = []
        for key, members in iter_shard(images, shard, ["jpg", "json", "truth.png"]):
            labels = decode_mask(members["truth.png"], key)
            votes = np.where(np.arange(len(labels))[:, None] % 4 < 3, 2, 1).astype(np.uint8) * (labels != 255)
            maps = {"label.png": encode_palette(labels), "votes.png": encode_gray(votes)}
            clean = {"clean.png": encode_clean(votes >= 2)}
            samples.append((key, {"jpg": members["jpg"], "json": members["json"], **maps, **clean}))
        records.append(write_shard(pseudo_dir(config) / f"pseudo-{shard:05d}.tar", samples))
    write_index(pseudo_dir(config), records, {}, images.classes, "pseudo", {"seeds": ["a", "b"]})
    return config


def batches_of(task: Task, config: Config, steps: int) -> list[Batch]:
    return list(
        read_batches(MicroBatches(task.selection, task.samples, 0, BATCH, share_batch(BATCH, None, 0, 1), steps), 0, 0)
    )


def made_run(config: Config, total: int) -> Run:
    task = segmenter_task(config)
    accelerator = make_accelerator(config.hardware, 1)
    model, optimizer = accelerator.prepare(Outputs(task.model.train()), build_optimizer(task.model, task.optim))
    (run_dir(config) / "checkpoints").mkdir(parents=True, exist_ok=True)
    writer, watch = CheckpointWriter(run_dir(config) / "checkpoints", 1), HangWatch(run_dir(config), 0, 600)
    return Run(task, accelerator, model, optimizer, run_dir(config), 0, total, config.hardware, 0, writer, watch)


def our_steps(config: Config, batches: list[Batch]) -> float:
    """Median seconds of a step of `train_steps`: from one look at the loader to the next, the first two left out."""
    run, looks = made_run(config, STEPS), []

    def loader() -> Iterator[Batch]:
        for batch in batches:
            looks.append(time.perf_counter())
            yield batch

    with StopSignal() as stop, run.watch:
        train_steps(run, loader(), 0, stop)
        run.writer.wait()
    run.writer.close()
    return statistics.median(b - a for a, b in pairwise(looks[2:]))


def bare_steps(config: Config, batches: list[Batch]) -> float:
    """The same of what a script of ten lines would do."""
    task = segmenter_task(config)
    model, optimizer = task.model.train(), build_optimizer(task.model, task.optim)
    marks = []
    for step, batch in enumerate(batches):
        marks.append(time.perf_counter())
        set_lr(optimizer, task.optim.lr * lr_factor(step, STEPS, 0, task.optim))
        logits = F.interpolate(model(batch.image), batch.labels.shape[-2:], mode="bilinear", align_corners=False)
        loss = hybrid_loss(logits, batch.labels, batch.clean, complements=batch.complements, temperature=0.1).value
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return statistics.median(b - a for a, b in pairwise(marks[2:]))


class Bare(Dataset[dict[str, Any]]):
    """Decodes and augments one sample; its files are in memory."""

    def __init__(self, task: Task, steps: int) -> None:
        index = task.selection.index
        fields = ["jpg", "label.png", "clean.png"]
        self.files = [members for shard in range(len(index.shards)) for _, members in iter_shard(index, shard, fields)]
        self.task, self.classes, self.count = task, len(index.classes), steps * BATCH

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        files, rng = self.files[number % len(self.files)], np.random.default_rng(number)
        maps = {"labels": decode_mask(files["label.png"], ""), "clean": decode_clean(files["clean.png"], "")}
        mean, std = self.task.model.mean, self.task.model.std
        image, placed = augment_sample(decode_image(files["jpg"], ""), maps, self.task.augment, mean, std, rng)
        drawn = sample_complements(placed["labels"], self.classes, generator=torch.Generator().manual_seed(number))
        return {"image": image, **placed, "complements": drawn.to(torch.uint8)}


def rate(loader: Iterator[Any], skip: int) -> float:
    """Images per second after the first `skip` batches, in which processes start."""
    count, began = 0, 0.0
    for number, _ in enumerate(loader):
        if number == skip:
            began = time.perf_counter()
        elif number > skip:
            count += BATCH
    return count / (time.perf_counter() - began)


def our_loader(task: Task, steps: int, workers: int) -> float:
    batches = MicroBatches(task.selection, task.samples, 0, BATCH, share_batch(BATCH, None, 0, 1), steps)
    return rate(read_batches(batches, 0, workers), 4 * workers)


def bare_loader(task: Task, steps: int, workers: int) -> float:
    def quiet(_: int) -> None:
        torch.set_num_threads(1)

    loader = DataLoader(Bare(task, steps), BATCH, num_workers=workers, worker_init_fn=quiet)
    return rate(iter(loader), 4 * workers)


def saving(config: Config, batches: list[Batch], how: str) -> tuple[float, float]:
    """SAVES times BETWEEN small steps and a save: `none`, `background` or `waited`. Returns the seconds of all of it,
    and those that training stood still for the saves."""
    run = made_run(config, STEPS)
    optimizer, model = build_optimizer(run.task.model, run.task.optim), run.task.model
    images, stalls, began = batches[0].image[:1, :, :64, :64], 0.0, 0.0
    for save in range(SAVES + 1):  # the first one makes the buffers
        began = time.perf_counter() if save == 1 else began
        for _ in range(BETWEEN):
            model(images).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if how == "none":
            continue
        stopped = time.perf_counter()
        states, trainer = optimizer_states(model, optimizer), {"step": save, "total": 0, "attempt": 0, "parameters": {}}
        run.writer.save(model.state_dict(), description(model), states, trainer)
        if how == "waited" or not save:
            run.writer.wait()
        stalls += time.perf_counter() - stopped if save else 0.0
    taken = time.perf_counter() - began  # the last one may still be on its way, as in training
    run.writer.close()
    return taken, stalls


def compare(title: str, ways: dict[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Each way `runs` times, in turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs):
        for name in list(ways) if run % 2 == 0 else list(ways)[::-1]:
            found[name].append(ways[name]())
    print(f"{title}: " + ", ".join(f"{name} {statistics.median(values):.4g}" for name, values in found.items()))
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["step", "loader", "checkpoint"], metavar="PART")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=224, help="side of images and crops in pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setup_logging()
    with tempfile.TemporaryDirectory() as name:
        config = make_config(Path(name), arguments.backbone, arguments.size)
        task = segmenter_task(config)
        batches = batches_of(task, config, STEPS)
        if "step" in arguments.parts:
            ways = {"ours": lambda: our_steps(config, batches), "bare": lambda: bare_steps(config, batches)}
            found = compare("seconds a step", ways, arguments.runs)
            ratios = [ours / bare for ours, bare in zip(found["ours"], found["bare"], strict=True)]
            print(f"  our step / a bare one: {spread(ratios)}")
        if "loader" in arguments.parts:
            steps = 60
            ways = {
                "ours": lambda: our_loader(task, steps, arguments.workers),
                "bare": lambda: bare_loader(task, steps, arguments.workers),
            }
            found = compare("images per second", ways, arguments.runs)
            ratios = [ours / bare for ours, bare in zip(found["ours"], found["bare"], strict=True)]
            print(f"  our loader / bare decoding and augmentation: {spread(ratios)}")
        if "checkpoint" in arguments.parts:
            hows = ("none", "background", "waited")
            runs = [{how: saving(config, batches, how) for how in hows} for _ in range(arguments.runs)]
            for title, ratios in (
                (
                    "still for saves, in the background / waited for",
                    [r["background"][1] / r["waited"][1] for r in runs],
                ),
                ("all in all, in the background / without saves", [r["background"][0] / r["none"][0] for r in runs]),
                ("all in all, waited for / without saves", [r["waited"][0] / r["none"][0] for r in runs]),
            ):
                print(f"  {title}: {spread(ratios)}")


if __name__ == "__main__":
    main()
