"""The `seeds` stage on Ray: CAM actors, CRF workers, and where they see the data. Called by `seeds.generate`."""

from __future__ import annotations

from collections.abc import Iterator

from distwsss.config import Config
from distwsss.config.schema import HardwareSection
from distwsss.data.shards.format import INDEX
from distwsss.errors import LaunchError
from distwsss.models.export import WEIGHTS
from distwsss.runtime import ray_pool
from distwsss.runtime.artifacts import write_json
from distwsss.runtime.progress import log
from distwsss.runtime.run_folder import check_absolute_roots
from distwsss.seeds.chunk import SeedResult, SeedTask, cam_shard, seed_shard
from distwsss.seeds.progress import SeedProgress


def use_ray(hardware: HardwareSection) -> bool:
    """Whether seeds are made on Ray: if asked for, and by default where it is installed and there are workers."""
    if hardware.executor == "auto":
        return hardware.workers > 0 and ray_pool.installed()
    return hardware.executor == "ray"


def check_roots(config: Config) -> None:
    """Before anything is looked for in them. Raises ConfigError for relative folders on a cluster."""
    if use_ray(config.hardware) and ray_pool.is_cluster():
        check_absolute_roots(config)


def work_on_ray(config: Config, tasks: list[SeedTask], progress: SeedProgress) -> Iterator[tuple[SeedTask, SeedResult]]:
    """(task, result) as shards are finished. Raises RunError when a piece of work failed as often as is allowed."""
    load = ray_pool.Load()
    with ray_pool.connect(config.hardware.ray, max(1, config.hardware.workers)):
        ray_pool.check_visible([tasks[0].images / INDEX, *(cam.classifier / WEIGHTS for cam in tasks[0].cams)])
        steps = plan_steps(config.hardware, len(tasks), len(tasks[0].cams), *ray_pool.resources())
        log.info(f"seeds: Ray, {steps[0].actors} CAM actor(s), {steps[1].actors} CRF worker(s)")
        for chunk, part, result in ray_pool.run_chunks(
            [_chunk(task) for task in tasks], steps, config.hardware.ray, load
        ):
            progress.queue = f", {load.parts_waiting} CAM jobs and {load.chunks_in_flight} shards in the queue"
            if part:
                progress.cam_done(chunk.task.shard)
            else:
                yield chunk.task, result
    write_json(config.run_dir / "seeds" / "ray.json", {"jobs_by_node": load.by_node, "replaced": load.replaced})


def _chunk(task: SeedTask) -> ray_pool.Chunk:
    parts = tuple(ray_pool.Part(f"cam[{cam.name}]", cam, str(cam.classifier)) for cam in task.cams)
    return ray_pool.Chunk(f"shard {task.shard}", task, parts, "crf")


def plan_steps(hardware: HardwareSection, shards: int, seeds: int, cpus: float, gpus: float) -> list[ray_pool.Step]:
    """CAM actors and CRF workers as the cluster's resources allow: at least one of each, fractions of a CPU where there
    are fewer CPUs than actors, and no more than there is work for. Raises LaunchError for CUDA without a GPU."""
    if hardware.device == "cpu":
        gpus = 0.0
    if hardware.device == "cuda" and not gpus:
        raise LaunchError("hardware.device is cuda, but the Ray cluster has no GPU; set hardware.device=auto")
    cams = hardware.ray.cam_actors or int(gpus / hardware.ray.cam_gpus if gpus else cpus)
    crfs = hardware.ray.crf_workers or int(cpus - cams if gpus else cpus)
    cams, crfs = max(1, min(cams, shards * seeds)), max(1, min(crfs, shards))
    share = min(1.0, int(100 * cpus / (cams + crfs)) / 100)
    return [
        ray_pool.Step(cam_shard, cams, share, hardware.ray.cam_gpus if gpus else 0.0),
        ray_pool.Step(seed_shard, crfs, share),
    ]
