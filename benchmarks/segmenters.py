"""The segmenter trained the same way on different labels and losses: val mIoU of each, side by side.

    python benchmarks/segmenters.py --config configs/voc_mini/lite.yaml --set data.root=PATH --temperature 0.1

Needs `prepare`, `classify` and `seeds`. Every variant is `distwsss train` and `distwsss evaluate` with other keys, in a
run folder of its own; the shards are shared, finished variants are skipped. The single seed of (a) is the best on
`data.tuning_ids`. Held-out figures are of the train ids kept out of segmenter training, the ones to choose keys by.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from distwsss.config import Config, load_config
from distwsss.data.holdout import tuning_keys
from distwsss.data.shards.index import load_index
from distwsss.evaluate.stats import seed_quality
from distwsss.runtime.layout import images_dir, run_dir
from distwsss.runtime.progress import setup_logging


def best_single_seed(config: Config) -> str:
    """The seed with the highest mIoU on the tuning ids."""
    index = load_index(images_dir(config, "train"), "images")
    quality = seed_quality(config, keys=tuning_keys(config, index))
    assert quality is not None
    seeds = {name: scores["miou"] for name, scores in quality["seeds"].items()}
    print("seeds on the tuning ids:", ", ".join(f"{name} {100 * miou:.2f}" for name, miou in seeds.items()))
    return max(seeds, key=lambda name: seeds[name])


def variants(seed: str, tau: float) -> dict[str, list[str]]:
    """Name -> the keys in which it differs from the configuration."""
    chosen = f"temperature={tau}"
    return {
        f"a  best single seed {seed}, positive, tau {tau:g}": [f"labels=seed:{seed}", "loss=positive", chosen],
        "b1 aggregate, positive, tau 1": ["loss=positive", "temperature=1.0"],
        f"b  aggregate, positive, tau {tau:g}": ["loss=positive", chosen],
        "c1 aggregate, hybrid, tau 1": ["loss=hybrid", "temperature=1.0"],
        f"c  aggregate, hybrid, tau {tau:g}": ["loss=hybrid", chosen],
        "d  aggregate, cross-entropy (Eq. 3, no tau)": ["loss=cross_entropy", chosen],
        f"e  true masks, positive, tau {tau:g} (upper bound)": ["labels=truth", "loss=positive", chosen],
    }


def run_variant(arguments: argparse.Namespace, name: str, keys: list[str], folder: Path) -> dict[str, float]:
    """Train and evaluate one variant; its figures in percent."""
    overrides = [*(arguments.overrides or []), f"paths.run={folder}", "evaluate.crf=null"]
    overrides += [f"train.{key}" for key in keys]
    flags = [flag for item in overrides for flag in ("--set", item)]
    for verb in ("train", "evaluate"):
        command = [sys.executable, "-m", "distwsss", verb, "--config", arguments.config, *flags]
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: {' '.join(command)}\n{done.stderr}")
    (record,) = [json.loads(path.read_text()) for path in (folder / "evaluate").glob("*.json")]
    lines = [json.loads(line) for line in (folder / "train/metrics.jsonl").read_text().splitlines()]
    held_out = [line["heldout_miou"] for line in lines if "heldout_miou" in line]
    return {
        "held out": 100 * held_out[-1] if held_out else float("nan"),
        "single": 100 * record["miou"]["single"],
        "multi": 100 * record["miou"]["multi"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", dest="overrides", action="append")
    parser.add_argument("--temperature", type=float, required=True, help="the chosen tau")
    parser.add_argument("--jobs", type=int, default=1, help="variants at once; set OMP_NUM_THREADS to cores / jobs")
    parser.add_argument("--only", nargs="*", help="first letters of the variants to run, e.g. c1 c")
    parser.add_argument("--extra", action="append", default=[], help="one more variant: comma-separated train keys")
    arguments = parser.parse_args()
    setup_logging()
    config = load_config(arguments.config, overrides=arguments.overrides)
    table = variants(best_single_seed(config), arguments.temperature)
    table |= {f"x  {extra}": extra.split(",") for extra in arguments.extra}
    if arguments.only is not None:
        table = {name: keys for name, keys in table.items() if name.split()[0] in arguments.only or name[0] == "x"}
    names = ["-".join(keys).replace(":", "_").replace("=", "_") for keys in table.values()]
    folders = [Path(f"{run_dir(config)}_table") / name for name in names]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = pool.map(lambda job: run_variant(arguments, *job), zip(table, table.values(), folders, strict=True))
        print("| labels, loss | held-out train | val, single scale | val, multi-scale + flip |\n|---|---|---|---|")
        for name, figures in zip(table, found, strict=True):
            print("| " + " | ".join([name, *(f"{value:.2f}" for value in figures.values())]) + " |", flush=True)


if __name__ == "__main__":
    main()
