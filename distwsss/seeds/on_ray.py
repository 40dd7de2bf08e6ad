"""The `seeds` stage on Ray: CAM actors, CRF workers, and where they see the data. Called by `seeds.generate`."""

from __future__ import annotations

from collections.abc import Iterator

from distwsss.config import Config
from distwsss.config.hardware import HardwareSection
from distwsss.data.shards.format import INDEX
from distwsss.models.export import WEIGHTS
from distwsss.runtime import ray_pool
from distwsss.runtime.artifacts import write_json
from distwsss.runtime.layout import check_absolute_roots, ray_file
from distwsss.runtime.progress import log
from distwsss.runtime.ray_schedule import Wanted, schedule
from distwsss.seeds.cams import cam_shard
from distwsss.seeds.chunk import SeedResult, SeedTask, seed_shard
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
        maps = [] if tasks[0].saliency is None else [tasks[0].saliency / INDEX]
        ray_pool.check_visible([tasks[0].images / INDEX, *maps, *(cam.classifier / WEIGHTS for cam in tasks[0].cams)])
        wanted = wanted_steps(config.hardware, len(tasks), len(tasks[0].cams))
        steps = schedule(wanted, config.hardware.device, *ray_pool.resources())
        log.info(f"seeds: Ray, {steps[0].actors} CAM actor(s), {steps[1].actors} CRF worker(s)")
        for chunk, part, result in ray_pool.run_chunks(
            [_chunk(task) for task in tasks], steps, config.hardware.ray, load, hear=progress.heard
        ):
            progress.queue = f", {load.parts_waiting} CAM jobs and {load.chunks_in_flight} shards in the queue"
            if part is None:
                yield chunk.task, result
    write_json(ray_file(config), {"jobs_by_node": load.by_node, "replaced": load.replaced})


def _chunk(task: SeedTask) -> ray_pool.Chunk:
    parts = tuple(ray_pool.Part(f"cam[{cam.name}]", cam, str(cam.classifier)) for cam in task.cams)
    return ray_pool.Chunk(f"shard {task.shard}", task, parts, "crf")


def wanted_steps(hardware: HardwareSection, shards: int, seeds: int) -> list[Wanted]:
    """CAM actors, on GPUs where there are any, and CRF workers."""
    section = hardware.ray
    return [
        Wanted(cam_shard, shards * seeds, section.cam_gpus, section.cam_actors),
        Wanted(seed_shard, shards, actors=section.crf_workers),
    ]
