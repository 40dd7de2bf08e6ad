"""Images per second of training and evaluation, alone and beside one busy process, by the user's own commands.

    python benchmarks/busy_machine.py [--runs 5] [--code CHECKOUT ...] [--steps 16 --images 12]

Each run: `distwsss train` and `distwsss evaluate` on generated photographs of 500 pixels with the default recipe of a
CPU (crops of 320, EfficientNet-Lite0), alone, then beside a process that does nothing but count. Runs alternate
over all `--code` (default: this checkout), so that versions are compared side by side. Training's rate is the median of
its log lines after the first; evaluation's is that of its last line.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from distwsss.runtime.metrics import read_metrics

HERE = Path(__file__).parents[1]
RECIPE = """
name: busy
data: {dataset: shapes, shapes: {train: 48, val: IMAGES, size: 500}}
hardware: {device: cpu, executor: local}
prepare: {longest_side: 512}
train:
  labels: truth
  holdout: 0.0
  augment: {crop: 320, resize: [0.7, 1.6]}
  optim: {duration: STEPS steps, global_batch: 8, log_every: 2}
"""


def distwsss(code: Path, folder: Path, *words: str) -> str:
    """Standard error of a command, which must succeed."""
    command = [sys.executable, "-m", "distwsss", *words, "--config", str(folder / "busy.yaml")]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(code)}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def rates(code: Path, steps: int, images: int) -> tuple[float, float]:
    """Images per second of training and of evaluation, in a folder of their own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "busy.yaml").write_text(RECIPE.replace("STEPS", str(steps)).replace("IMAGES", str(images)))
        distwsss(code, folder, "prepare")
        distwsss(code, folder, "train")
        (metrics,) = folder.glob("runs/*/train/metrics.jsonl")
        lines = [line["images_per_second"] for line in read_metrics(metrics) if "images_per_second" in line]
        said = distwsss(code, folder, "evaluate")
        found = re.findall(r"evaluate: \d+/\d+ in .*?([\d.]+) images/s", said)
        return statistics.median(lines[1:]), float(found[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--code", type=Path, nargs="+", default=[HERE])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--images", type=int, default=12)
    given = parser.parse_args()
    found: dict[tuple[Path, str], list[tuple[float, float]]] = {}
    for run in range(given.runs):
        for code in given.code:
            for place in ("alone", "busy"):
                # in a session of its own, as another user's is: Linux shares cores among sessions first (autogroup)
                count = [sys.executable, "-c", "while True: pass"]
                other = subprocess.Popen(count, start_new_session=True) if place == "busy" else None
                try:
                    pair = rates(code.resolve(), given.steps, given.images)
                finally:
                    if other:
                        other.kill()
                        other.wait()
                found.setdefault((code, place), []).append(pair)
                print(f"{run} {code} {place}: train {pair[0]:.2f}, evaluate {pair[1]:.2f} images/s", flush=True)
    for (code, place), pairs in found.items():
        text = (
            f"{name} {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
            for name, values in zip(("train", "evaluate"), zip(*pairs, strict=True), strict=True)
        )
        print(f"{code} {place}: {', '.join(text)} images/s")


if __name__ == "__main__":
    main()
