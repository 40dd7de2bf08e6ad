"""How long the `seeds` stage takes on a cluster: a model from per-image costs, checked against Ray (actors that sleep).

    python benchmarks/scale.py predict [--cam-seconds S --crf-seconds S ...]   VOC train_aug and COCO on 1, 8, 64 GPUs
    python benchmarks/scale.py check [--actors 64]                             the model against a real Ray run

The stage is a pipeline: shards x (p, scale) CAM jobs on GPUs, one CRF + vote + packing job per shard on a CPU core, and
one driver that publishes. Its time is that of the busiest of the three, plus filling (the first shard's CAMs) and
draining (the last shard's CRF). The actors of `check` do what real ones do for the driver, the scheduler and the object
store (they take jobs and return as many bytes), but sleep instead of computing; they import no torch and take no CPU.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from distwsss.config.hardware import RaySection
from distwsss.runtime import ray_pool
from distwsss.runtime.progress import setup_logging
from distwsss.runtime.ray_schedule import Step

MEBI = 1 << 20


@dataclass(frozen=True)
class Costs:
    """Per image. `cam_seconds` of one (p, scale) with its flip on one GPU; `crf_seconds` of all seeds on one core."""

    cam_seconds: float
    crf_seconds: float
    driver_seconds: float  # of the driver, per job
    publish_seconds: float  # of the driver, to write both shards
    photo_bytes: int  # read once per (p, scale), and by the CRF
    cam_bytes: int  # of one (p, scale): float16 at feature resolution, present classes
    shard_bytes: int  # of the seed and the pseudo-label shard


@dataclass(frozen=True)
class Stage:
    images: int
    seeds: int  # (p, scale) pairs
    gpus: int
    cores: int
    shard: int = 64

    @property
    def shards(self) -> int:
        return math.ceil(self.images / self.shard)


def predict(stage: Stage, costs: Costs) -> dict[str, float]:
    """Seconds of each part if it alone were the limit, of the whole, and bytes a second over the network."""
    cam_job, crf_job = stage.shard * costs.cam_seconds, stage.shard * costs.crf_seconds
    jobs = stage.shards * (stage.seeds + 1)
    limits = {
        "CAM": math.ceil(stage.shards * stage.seeds / stage.gpus) * cam_job,
        "CRF": math.ceil(stage.shards / stage.cores) * crf_job,
        "driver": jobs * costs.driver_seconds + stage.images * costs.publish_seconds,
    }
    bottleneck = max(limits, key=lambda name: limits[name])
    fill = math.ceil(stage.seeds / stage.gpus) * cam_job if bottleneck != "CAM" else 0.0
    drain = crf_job if bottleneck != "CRF" else 0.0
    total = limits[bottleneck] + fill + drain
    stored = stage.images * (stage.seeds * costs.cam_bytes + costs.shard_bytes)
    read = stage.images * (stage.seeds + 1) * costs.photo_bytes
    return {**limits, "total": total, "object store": stored / total, "reading": read / total}


def print_predictions(arguments: argparse.Namespace, costs: Costs) -> None:
    print(
        f"costs per image: CAM {1000 * costs.cam_seconds:g} ms a (p, scale) and GPU, CRF + vote + packing "
        f"{costs.crf_seconds:g} s a core; {arguments.cores_per_gpu} cores a GPU; shards of {arguments.shard} images"
    )
    print("| data set | GPUs | cores | CAM | CRF | driver | whole stage | limit | object store MiB/s | reading MiB/s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, images in (("VOC train_aug", 10_582), ("COCO 2014 train", 82_081)):
        for gpus in (1, 8, 64):
            cores = gpus * arguments.cores_per_gpu
            found = predict(Stage(images, arguments.seeds, gpus, cores, arguments.shard), costs)
            parts = ("CAM", "CRF", "driver")
            limit = max(parts, key=lambda part: found[part])
            minutes = " | ".join(f"{found[part] / 60:.1f} min" for part in (*parts, "total"))
            print(
                f"| {name} | {gpus} | {cores} | {minutes} | {limit} | {found['object store'] / MEBI:.1f} "
                f"| {found['reading'] / MEBI:.1f} |"
            )


def sleep_cam(task: tuple[float, int]) -> bytes:
    seconds, size = task
    time.sleep(seconds)
    return os.urandom(size)


def sleep_crf(task: tuple[float, int], results: list[bytes]) -> bytes:
    seconds, size = task
    assert all(results)
    time.sleep(seconds)
    return os.urandom(size)


def wait_at(gate: str) -> bytes:
    """Says that this actor is up, then waits for the gate file."""
    Path(gate, str(os.getpid())).touch()
    while not Path(gate, "open").exists():
        time.sleep(0.01)
    return b"."


def first_step(task: str | tuple[float, int]) -> bytes:
    return wait_at(task) if isinstance(task, str) else sleep_cam(task)


def run_sleeping(stage: Stage, costs: Costs) -> float:
    """Seconds of a real Ray run of this stage, from the moment that every CAM actor is up and waits at a gate."""
    cam = (stage.shard * costs.cam_seconds, stage.shard * costs.cam_bytes)
    crf = (stage.shard * costs.crf_seconds, stage.shard * costs.shard_bytes)
    parts = tuple(ray_pool.Part(f"cam[{n}]", cam, str(n)) for n in range(stage.seeds))
    chunks = [ray_pool.Chunk(f"shard {n}", crf, parts, "crf") for n in range(stage.shards)]
    steps = [Step(first_step, stage.gpus, 0.0), Step(sleep_crf, stage.cores, 0.0)]
    with tempfile.TemporaryDirectory() as gate:
        waiting = ray_pool.Chunk("gate", (0.0, 1), tuple(ray_pool.Part("gate", gate) for _ in range(stage.gpus)))
        opened: list[float] = []

        def open_gate() -> None:
            if not opened and len(list(Path(gate).iterdir())) == stage.gpus:
                opened.append(time.monotonic())
                Path(gate, "open").touch()

        for _ in ray_pool.run_chunks([waiting, *chunks], steps, RaySection(), ray_pool.Load(), open_gate):
            pass
        return time.monotonic() - opened[0]


def check(arguments: argparse.Namespace, costs: Costs) -> None:
    """Measures the driver's share with jobs that take no time, then compares model and run."""
    section = RaySection(object_store_mb=1024)
    stage = Stage(arguments.images, arguments.seeds, arguments.actors, arguments.crf_workers, arguments.shard)
    with ray_pool.connect(section, 2):
        empty = replace(costs, cam_seconds=0.0, crf_seconds=0.0)
        small = replace(stage, gpus=2, cores=2)
        jobs = small.shards * (small.seeds + 1)
        costs = replace(costs, driver_seconds=run_sleeping(small, empty) / jobs, publish_seconds=0.0)
        print(f"driver, scheduler and object store: {1000 * costs.driver_seconds:.2f} ms a job ({jobs} empty jobs)")
        print("| CAM actors | CRF workers | jobs | CAM job s | CRF job s | predicted s | Ray s | Ray / predicted |")
        print("|---|---|---|---|---|---|---|---|")
        for crf_seconds in (costs.crf_seconds, 8 * costs.crf_seconds):  # limited by CAM, then by CRF
            case = replace(costs, crf_seconds=crf_seconds)
            wanted, found = predict(stage, case)["total"], run_sleeping(stage, case)
            row = [stage.gpus, stage.cores, jobs, stage.shard * case.cam_seconds, stage.shard * crf_seconds]
            shown = " | ".join(f"{value:g}" for value in row)
            print(f"| {shown} | {wanted:.1f} | {found:.1f} | {found / wanted:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["predict", "check"])
    parser.add_argument("--cam-seconds", type=float, default=0.05, help="assumed, not measured: no GPU was at hand")
    parser.add_argument("--crf-seconds", type=float, default=1.0, help="all seeds of an image, vote and packing")
    parser.add_argument("--driver-ms", type=float, default=5.0, help="per job, as `check` measures it")
    parser.add_argument("--publish-ms", type=float, default=2.0, help="per image, to write both shards")
    parser.add_argument("--photo-kb", type=float, default=110.0)
    parser.add_argument("--cam-kb", type=float, default=20.0)
    parser.add_argument("--shard-kb", type=float, default=160.0)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--shard", type=int, default=64)
    parser.add_argument("--cores-per-gpu", type=int, default=8)
    parser.add_argument("--images", type=int, default=4096, help="of `check`")
    parser.add_argument("--actors", type=int, default=64, help="of `check`: sleeping CAM actors")
    parser.add_argument("--crf-workers", type=int, default=16, help="of `check`")
    arguments = parser.parse_args()
    setup_logging()
    costs = Costs(
        arguments.cam_seconds, arguments.crf_seconds, arguments.driver_ms / 1000, arguments.publish_ms / 1000,
        *(round(1000 * kb) for kb in (arguments.photo_kb, arguments.cam_kb, arguments.shard_kb)),
    )  # fmt: skip
    if arguments.what == "check":
        check(arguments, replace(costs, cam_seconds=0.04, crf_seconds=0.05))
    else:
        print_predictions(arguments, costs)


if __name__ == "__main__":
    main()
