"""How much the negative term of the hybrid loss says beside the positive one, by the complementary labels it is given.

    python benchmarks/negative_gradient.py --config FILE [--set data.root=PATH] [--step 98] [--batches 8] [--taus 1 0.1]

Of a trained segmenter: the LAST of the run of FILE, or its checkpoint of `--step`. The first training batches,
augmented as in training, go through the network in evaluation mode; then both terms are differentiated with respect to
the logits at the labels' size, each alone. Printed: |d S_neg / dz| over |d S_pos / dz|, L2 norms over a whole batch, in
percent: median (min-max) over the batches; and the share of noisy pixels.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from distwsss.config import Config, load_config
from distwsss.data.batches.loader import Batch, MicroBatches, Share
from distwsss.losses.hybrid import hybrid_loss
from distwsss.models.export import from_pretrained
from distwsss.runtime.artifacts import read_pointer
from distwsss.runtime.layout import LAST, checkpoint_dir, pointer, segmenter_dir
from distwsss.train.task import segmenter_task

Ratios = dict[str, list[float]]


def variants(classes: int) -> dict[str, dict[str, object]]:
    """Row -> keys of `train`; as many as there are means all classes that may be drawn."""
    rows: dict[str, dict[str, object]] = {}
    for complement in ("uniform", "absent"):
        rows[complement] = {"complement": complement}
        rows[f"{complement}, 5 a pixel"] = {"complement": complement, "complements": min(5, classes - 1)}
        rows[f"{complement}, all"] = {"complement": complement, "complements": classes - 1}
    return rows | {"assigned": {"complement": "assigned"}, "assigned_uniform": {"complement": "assigned_uniform"}}


def checkpoint(config: Config, step: int | None) -> Path:
    folder = segmenter_dir(config)
    found = read_pointer(pointer(folder, LAST)) if step is None else checkpoint_dir(folder, step)
    if found is None:
        raise SystemExit(f"{folder}: no LAST; train first: distwsss train --config FILE")
    return found


def norms(logits: Tensor, batch: Batch, tau: float) -> tuple[float, float]:
    """L2 norms of the gradients of both sums with respect to the logits."""
    leaf = logits.requires_grad_()
    terms = hybrid_loss(leaf, batch.labels, batch.clean, complements=batch.complements, temperature=tau)
    positive, negative = (
        float(torch.autograd.grad(total, leaf, retain_graph=True)[0].norm()) for total, _ in terms
    )
    return positive, negative


def measure(config: Config, step: int | None, batches: int, taus: list[float]) -> tuple[Ratios, list[float]]:
    """Ratios of every row, one a batch, and the shares of noisy pixels."""
    task, size = segmenter_task(config), config.train.optim.global_batch
    model = from_pretrained(checkpoint(config, step), torch.device("cpu")).eval()
    rows = variants(len(model.classes))
    samples = {name: replace(task.samples, section=config.train.model_copy(update=keys)) for name, keys in rows.items()}
    loaded = {
        name: MicroBatches(task.selection, load, config.seed, size, Share(0, 1, size, 1), batches)
        for name, load in samples.items()
    }
    ratios: Ratios = {}
    shares = []
    for number in range(batches):
        first = loaded["uniform"][number]
        with torch.no_grad():
            logits = interpolate(
                model(first.image), first.labels.shape[-2:], mode="bilinear", align_corners=model.align_corners
            )
        valid = first.labels != 255
        shares.append(float((valid & ~first.clean).sum() / valid.sum()))
        for name, source in loaded.items():
            for tau in taus:
                positive, negative = norms(logits.detach(), source[number], tau)
                ratios.setdefault(f"{name} | {tau:g}", []).append(negative / positive)
    return ratios, shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--step", type=int, help="of a checkpoint; without: LAST")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--taus", type=float, nargs="+", default=[1.0, 0.1])
    arguments = parser.parse_args()
    config = load_config(arguments.config, overrides=arguments.set)
    ratios, shares = measure(config, arguments.step, arguments.batches, arguments.taus)
    print(f"noisy pixels: {100 * statistics.mean(shares):.1f}% of the labelled ones, {len(shares)} batches")
    print("| complements | tau | negative / positive, % |\n|---|---|---|")
    for name, values in ratios.items():
        found = [100 * value for value in values]
        print(f"| {name} | {statistics.median(found):.3g} ({min(found):.3g}-{max(found):.3g}) |")


if __name__ == "__main__":
    main()
