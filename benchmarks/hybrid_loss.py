"""Time and memory of the hybrid loss, forward and backward, beside PyTorch's cross entropy, in one process on the CPU.

    python benchmarks/hybrid_loss.py [--shape 2 81 448 448 --threads 2 --taus 1 0.1 none --clean 0.7 --runs 5]

Random float32 logits, 10% of the labels ignored, `--clean` of the others clean and the rest noisy with a drawn
complementary label. The losses alternate, in turned order every other run. Peak: the most bytes allocated at once
while a loss is made and differentiated, by the profiler, in copies of the logits; these, there before, are not in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from distwsss.losses.hybrid import hybrid_loss, sample_complements

IGNORED = 0.1
BASE = "cross_entropy"


def temperature(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def make_losses(logits: Tensor, clean_share: float, taus: list[float | None]) -> dict[str, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    size, classes = (logits.shape[0], *logits.shape[2:]), logits.shape[1]
    labels = torch.randint(classes, size, generator=generator)
    labels[torch.rand(size, generator=generator) < IGNORED] = 255
    clean = torch.rand(size, generator=generator) < clean_share
    complements = sample_complements(labels, classes, generator=generator)

    def ours(tau: float | None) -> Callable[[], Tensor]:
        return lambda: hybrid_loss(logits, labels, clean, complements=complements, temperature=tau).value

    losses: dict[str, Callable[[], Tensor]] = {BASE: lambda: cross_entropy(logits, labels, ignore_index=255)}
    return losses | {f"hybrid_loss, tau {tau}": ours(tau) for tau in taus}


def peak_bytes(step: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    found = [event["args"] for event in events if event["name"] == "[memory]"]
    return max(itertools.accumulate(each["Bytes"] for each in sorted(found, key=lambda each: each["Ev Idx"])))


def measure(
    logits: Tensor, losses: dict[str, Callable[[], Tensor]], runs: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each run and peak in copies of the logits, per loss."""

    def step(loss: Callable[[], Tensor]) -> None:
        loss().backward()

    times: dict[str, list[float]] = {name: [] for name in losses}
    peaks = {}
    for name, loss in losses.items():  # also the first, slower call of each
        logits.grad = None
        peaks[name] = peak_bytes(lambda loss=loss: step(loss)) / logits.nbytes
    for run in range(runs):
        for name in list(losses)[:: 1 if run % 2 == 0 else -1]:
            logits.grad = None
            start = time.perf_counter()
            step(losses[name])
            times[name].append(time.perf_counter() - start)
    return times, peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=[2, 81, 448, 448], metavar=("B", "K", "H", "W"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--taus", type=temperature, nargs="+", default=[1.0, 0.1, None], help="or none: no constraint")
    parser.add_argument("--clean", type=float, default=0.7, help="share of clean pixels among those not ignored")
    parser.add_argument("--channels-last", action="store_true", help="logits as channels-last networks give them")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logits = 3 * torch.randn(arguments.shape, generator=torch.Generator().manual_seed(1))
    if arguments.channels_last:
        logits = logits.to(memory_format=torch.channels_last)
    losses = make_losses(logits.requires_grad_(), arguments.clean, arguments.taus)
    times, peaks = measure(logits, losses, arguments.runs)
    layout = "channels last" if arguments.channels_last else "planes"
    about = f"logits {arguments.shape} ({layout}, {logits.nbytes / 1e6:.0f} MB)"
    print(f"PyTorch {torch.__version__}, {arguments.threads} threads, {about}")
    base = statistics.median(times[BASE])
    for name, values in times.items():
        median = statistics.median(values)
        spread = f"{1e3 * median:.0f} ms ({1e3 * min(values):.0f}-{1e3 * max(values):.0f})"
        print(f"{name:24}{spread:26}time / {BASE}'s: {median / base:5.2f}   peak: {peaks[name]:.2f} copies")


if __name__ == "__main__":
    main()
