"""Dense CRF, vote and writing of seeds: images per second and core, the peers' way and ours, side by side.

    OMP_NUM_THREADS=1 python benchmarks/seeds.py crf   --data PATH [--images 20 --seeds 6 --runs 5]
    OMP_NUM_THREADS=1 python benchmarks/seeds.py parts --data PATH   where the time of one image goes
    OMP_NUM_THREADS=1 python benchmarks/seeds.py cores --data PATH   a pool of two processes, two on their own

PATH is a VOC devkit folder; images are taken at even distances from its train split. The peers' way (psa, SEAM, EPS):
for each seed a DenseCRF2D of its own, `inference(10)`, argmax, a PNG file; then the vote. Ours: the product's
functions, from `refine_cams` to the bytes of both shards. Both start from the same CAMs and parameters (defaults of
`seeds`). CAMs are a stand-in that needs no classifier: smooth blobs at stride 16, one to three per present class at
places common to the seeds, each seed's own in size, place and noise.

Ratios are of process CPU time (`time.process_time`), wall time stands beside it; the two ways alternate image by image
and the order changes with every run. A first, untimed image pays for imports and start-up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import unary_from_softmax

from distwsss.config.crf import CRF_PARAMS
from distwsss.config.data import DataSection
from distwsss.config.stages import SeedsSection
from distwsss.data.images import decode_image, encode_clean, encode_gray, encode_palette
from distwsss.data.shards.writer import shard_bytes
from distwsss.data.sources.voc import list_voc
from distwsss.maths import crf
from distwsss.maths.cam import cam_to_full, probabilities
from distwsss.maths.vote import vote
from distwsss.runtime.pool import spawn_pool
from distwsss.seeds.chunk import seed_sample
from distwsss.seeds.maps import refine_cams
from distwsss.seeds.votes import VoteTask, vote_sample

CRF = CRF_PARAMS["cam_label"]


@dataclass(frozen=True)
class Sample:
    key: str
    jpg: bytes
    image: np.ndarray  # uint8[H,W,3]
    labels: list[int]
    cams: list[np.ndarray]  # per seed: float16[L,h,w], as the product keeps them

    def unaries(self) -> np.ndarray:
        """float32[m,L+1,H,W]"""
        section, size = SeedsSection(), self.image.shape[:2]
        maps = [probabilities(cam_to_full(cam, *size), section.alpha, section.normalise) for cam in self.cams]
        return np.stack(maps)


@dataclass
class Clock:
    """Seconds of a block: `with clock: ...`; added up over several."""

    cpu: float = 0.0
    wall: float = 0.0

    def __enter__(self) -> None:
        self.started = time.process_time(), time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.cpu += time.process_time() - self.started[0]
        self.wall += time.perf_counter() - self.started[1]


def blobs(index: int, labels: int, height: int, width: int, seeds: int) -> list[np.ndarray]:
    """The stand-in CAMs: per seed float16[labels,h,w] >= 0 at stride 16."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[: -(-height // 16), : -(-width // 16)] + 0.5
    places = [[rng.uniform(0.25, 0.75, 2) for _ in range(rng.integers(1, 4))] for _ in range(labels)]
    found = []
    for _ in range(seeds):
        cam = 0.05 * rng.random((labels, *y.shape))
        for label, centres in enumerate(places):
            for centre in centres:
                cy, cx = (centre + rng.normal(0, 0.03, 2)) * y.shape
                sy, sx = rng.uniform(0.08, 0.25, 2) * y.shape
                cam[label] += np.exp(-(((y - cy) / sy) ** 2) - ((x - cx) / sx) ** 2)
        found.append(cam.astype(np.float16))
    return found


def load(data: str, images: int, seeds: int) -> list[Sample]:
    items = [item for item in list_voc(DataSection(dataset="voc", root=data), "train").items if item.labels]
    samples = []
    for index in np.linspace(0, len(items) - 1, images).astype(int):
        jpg = Path(items[index].image).read_bytes()
        image = decode_image(jpg, items[index].name)
        height, width = image.shape[:2]
        labels = items[index].labels or []
        cams = blobs(int(index), len(labels), height, width, seeds)
        samples.append(Sample(items[index].name, jpg, image, labels, cams))
    return samples


def peers_crf(image: np.ndarray, unaries: np.ndarray) -> np.ndarray:
    """Class indices int64[m,H,W], as `crf_inference` of psa, SEAM and EPS followed by their argmax."""
    height, width = image.shape[:2]
    found = []
    for probability in unaries:
        one = DenseCRF2D(width, height, len(probability))
        one.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probability)))
        one.addPairwiseGaussian(sxy=CRF.gaussian_sxy, compat=CRF.gaussian_compat)
        one.addPairwiseBilateral(
            sxy=CRF.bilateral_sxy, srgb=CRF.bilateral_srgb, rgbim=np.copy(image), compat=CRF.bilateral_compat
        )
        marginals = np.array(one.inference(CRF.iterations)).reshape(probability.shape)
        found.append(marginals.argmax(axis=0))
    return np.stack(found)


def peers(sample: Sample, folder: Path, alone: Clock) -> np.ndarray:
    """Seeds uint8[m,H,W], after writing a PNG each and those of the vote; the CRF and its argmax on `alone`."""
    unaries = sample.unaries()
    with alone:
        indices = peers_crf(sample.image, unaries)
    seeds = np.array([0, *sample.labels], np.uint8)[indices]
    for k, seed in enumerate(seeds):
        (folder / f"{sample.key}.{k}.png").write_bytes(encode_palette(seed))
    labels, votes = vote(seeds)
    (folder / f"{sample.key}.label.png").write_bytes(encode_palette(labels))
    (folder / f"{sample.key}.votes.png").write_bytes(encode_gray(votes))
    (folder / f"{sample.key}.clean.png").write_bytes(encode_clean(votes == len(seeds)))
    return seeds


def ours(sample: Sample, folder: Path) -> np.ndarray:
    """Seeds uint8[m,H,W], after writing both shards (here of one image each)."""
    maps = refine_cams(sample.image, sample.labels, sample.cams, SeedsSection())
    count = len(sample.cams)
    task = VoteTask(tuple(range(count)), tuple(map(str, range(count))), count, by_score=False)  # as the peers vote
    described = {"labels": sample.labels, "size": list(sample.image.shape[:2]), "name": sample.key}
    photo = {"jpg": sample.jpg, "json": json.dumps(described).encode()}
    samples = {"seeds": seed_sample(maps), "pseudo": vote_sample(photo, maps, task)}
    for kind, packed in samples.items():
        record, data = shard_bytes(f"{kind}-00000.tar", [(sample.key, packed)])
        (folder / record.name).write_bytes(data)
    return maps.labels[:count]


def one_run(samples: list[Sample], folder: Path, swap: bool) -> tuple[dict[str, Clock], np.ndarray]:
    """Times over all samples; pixels of the seeds, equal ones, pixels of the vote, equal ones."""
    clocks = {name: Clock() for name in ("peers CRF", "ours CRF", "peers all", "ours all")}
    pixels = np.zeros(4, np.int64)
    for sample in samples:
        found: dict[str, np.ndarray] = {}

        def run_peers(sample: Sample = sample, found: dict[str, np.ndarray] = found) -> None:
            with clocks["peers all"]:
                found["peers"] = peers(sample, folder, clocks["peers CRF"])

        def run_ours(sample: Sample = sample, found: dict[str, np.ndarray] = found) -> None:
            with clocks["ours all"]:
                found["ours"] = ours(sample, folder)
            unaries = sample.unaries()
            with clocks["ours CRF"]:
                crf.refine(sample.image, unaries, CRF).argmax(axis=1)

        for run in (run_ours, run_peers) if swap else (run_peers, run_ours):
            run()
        same, voted = found["peers"] == found["ours"], vote(found["peers"])[0] == vote(found["ours"])[0]
        pixels += [same.size, same.sum(), voted.size, voted.sum()]
    return clocks, pixels


def spread(values: list[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def compare(arguments: argparse.Namespace) -> None:
    samples = load(arguments.data, arguments.images, arguments.seeds)
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), []
        one_run(samples[:1], folder, False)
        for run in range(arguments.runs):
            clocks, pixels = one_run(samples, folder, run % 2 == 1)
            runs.append(clocks)
    labels = statistics.mean(len(sample.labels) + 1 for sample in samples)
    print(f"{len(samples)} photographs, {arguments.seeds} seeds, {labels:.2f} labels on average, {len(runs)} runs")
    print("| median (min-max) | peers, img/s/core | ours, img/s/core | ratio, CPU time | ratio, wall time |")
    print("|---|---|---|---|---|")
    for title, part in (("CRF + argmax", "CRF"), ("CRF + vote + write", "all")):
        rates = [[len(samples) / run[f"{way} {part}"].cpu for run in runs] for way in ("peers", "ours")]
        cpu = [run[f"peers {part}"].cpu / run[f"ours {part}"].cpu for run in runs]
        wall = [run[f"peers {part}"].wall / run[f"ours {part}"].wall for run in runs]
        print("| " + " | ".join([title, spread(rates[0]), spread(rates[1]), spread(cpu), spread(wall)]) + " |")
    print(f"equal pixels: {pixels[1] / pixels[0]:.5%} of the seeds, {pixels[3] / pixels[2]:.5%} of the vote")


def part_times(sample: Sample) -> dict[str, float]:
    """CPU milliseconds of the parts of our way on one image."""
    unaries, image = sample.unaries(), sample.image
    marginals = crf.refine(image, unaries, CRF)
    seeds = np.array([0, *sample.labels], np.uint8)[marginals.argmax(axis=1)]
    height, width = image.shape[:2]
    values = np.ascontiguousarray(unaries[:, 1:]).reshape(-1, height * width)
    exponents = np.ascontiguousarray(values.T).reshape(height * width, len(unaries), -1)
    if len(values) > 2:  # as `refine` does
        values = np.concatenate([values, np.zeros((-len(values) % 4, height * width), np.float32)])

    def kernels(gaussian: bool, bilateral: bool) -> DenseCRF2D:
        found = DenseCRF2D(width, height, len(values))
        found.setUnaryEnergy(values)
        if gaussian:
            found.addPairwiseGaussian(sxy=CRF.gaussian_sxy, compat=CRF.gaussian_compat)
        if bilateral:
            found.addPairwiseBilateral(
                sxy=CRF.bilateral_sxy, srgb=CRF.bilateral_srgb, rgbim=image, compat=CRF.bilateral_compat
            )
        return found

    def steps(found: DenseCRF2D) -> Callable[[], None]:
        state = tuple(crf.matrixXf(values) for _ in range(3))
        return lambda: [found.stepInference(*state) for _ in range(CRF.iterations)]  # type: ignore[return-value]

    bare = _milliseconds(steps(kernels(False, False)))
    empty = _milliseconds(lambda: kernels(False, False))
    return {
        "CAM to full size, background, softmax": _milliseconds(sample.unaries),
        "CRF: all of `refine`": _milliseconds(lambda: crf.refine(image, unaries, CRF)),
        "- lattice of the Gaussian, once": _milliseconds(lambda: kernels(True, False)) - empty,
        "- lattice of the bilateral, once": _milliseconds(lambda: kernels(False, True)) - empty,
        "- Gaussian filter, 10 steps": _milliseconds(steps(kernels(True, False))) - bare,
        "- bilateral filter, 10 steps": _milliseconds(steps(kernels(False, True))) - bare,
        "- pydensecrf's unary and joint softmax, 10 steps": bare,
        "- our softmax, 11 times": 11 * _milliseconds(lambda: [None for _ in crf._softmax(exponents)]),
        "argmax": _milliseconds(lambda: marginals.argmax(axis=1)),
        "PNG of the seeds": _milliseconds(lambda: [encode_palette(seed) for seed in seeds]),
        "vote": _milliseconds(lambda: vote(seeds)),
        "peers: all CRFs": _milliseconds(lambda: peers_crf(image, unaries)),
    }


def _milliseconds(work: Callable[[], Any], times: int = 3) -> float:
    found = []
    for _ in range(times):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return 1000 * min(found)


def parts(arguments: argparse.Namespace) -> None:
    samples = load(arguments.data, arguments.images, arguments.seeds)
    part_times(samples[0])
    rows = [part_times(sample) for sample in samples]
    print(f"CPU ms an image, median over {len(samples)} photographs (min-max); {arguments.seeds} seeds")
    print("| part | ms |\n|---|---|")
    for name in rows[0]:
        print(f"| {name} | {spread([row[name] for row in rows], '.1f')} |")


def chunk(samples: list[Sample]) -> tuple[int, float]:
    """Work of a pool's process: images done, CPU seconds."""
    torch.set_num_threads(1)
    clock = Clock()
    with tempfile.TemporaryDirectory() as name, clock:
        for sample in samples:
            ours(sample, Path(name))
    return len(samples), clock.cpu


def alone(samples: list[Sample], start: Any, results: Any) -> None:
    """A process on its own: its images per second, from the moment all have started, and CPU seconds."""
    chunk(samples[:1])
    start.wait()
    clock = Clock()
    with clock:
        chunk(samples)
    results.put((len(samples) / clock.wall, clock.cpu))


def independent(halves: list[list[Sample]]) -> tuple[float, float]:
    """Images per second of all processes at once, CPU seconds."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(len(halves)), context.Queue()
    processes = [context.Process(target=alone, args=(half, start, results)) for half in halves]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rate for rate, _ in found), sum(cpu for _, cpu in found)


def pooled(samples: list[Sample], workers: int, size: int) -> tuple[float, float]:
    """The same of the product's pool, chunks of `size` images going to whichever process is free."""
    chunks = [samples[i : i + size] for i in range(0, len(samples), size)]
    with spawn_pool(workers) as pool:
        list(pool.map(_warm, [samples[:1]] * workers))
        clock = Clock()
        with clock:
            found = list(pool.map(chunk, chunks))
    return len(samples) / clock.wall, sum(cpu for _, cpu in found)


def _warm(samples: list[Sample]) -> None:
    chunk(samples)
    time.sleep(1)  # so that every process takes one


def cores(arguments: argparse.Namespace) -> None:
    samples = load(arguments.data, arguments.images, arguments.seeds)
    rates, cpus = [], []
    for run in range(arguments.runs):
        ways = [lambda: independent([samples[k::2] for k in range(2)]), lambda: pooled(samples, 2, arguments.chunk)]
        order = [0, 1] if run % 2 == 0 else [1, 0]
        found = {k: ways[k]() for k in order}
        rates.append([found[k][0] for k in (0, 1)])
        cpus.append([found[k][1] for k in (0, 1)])
    print(f"{len(samples)} photographs, chunks of {arguments.chunk}, {arguments.runs} runs, {os.cpu_count()} cores")
    print(f"two processes on their own: {spread([a for a, _ in rates])} img/s")
    print(f"a pool of two processes:    {spread([b for _, b in rates])} img/s")
    rate, cpu = ([b / a for a, b in pairs] for pairs in (rates, cpus))
    print(f"pool / on their own: {spread(rate)} of the rate, {spread(cpu)} of the CPU time")


PARTS = {"crf": compare, "parts": parts, "cores": cores}  # Ray's overhead over the pool: an entry `ray` here


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", required=True, help="VOC devkit folder")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=4, help="images a chunk (a shard), for `cores`")
    return parser.parse_args()


def main() -> None:
    torch.set_num_threads(1)
    arguments = _arguments()
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    main()
