"""How many actors of each kind a cluster's resources allow: pure arithmetic, no Ray. Called by `seeds.on_ray` and
`train.stages`, for `ray_pool`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distwsss.errors import no_cuda


@dataclass(frozen=True)
class Step:
    """What is done, by how many actors, and the share of its node that each takes."""

    function: Callable[..., Any]
    actors: int
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """A step before it is known what the cluster has. jobs: how often it is done; gpus: of which each actor takes so
    much where there are any (0: it needs none); actors: as many as the configuration says, None: as many as fit;
    all_cpus: an actor computes on all CPUs that are there for it, not on one."""

    function: Callable[..., Any]
    jobs: int
    gpus: float = 0.0
    actors: int | None = None
    all_cpus: bool = False


def schedule(wanted: Sequence[Wanted], device: str, cpus: float, gpus: float) -> list[Step]:
    """Actors of each step as a cluster of so many CPUs and GPUs allows: at least one of each, no more than there are
    jobs for, fractions of a CPU where there are fewer than actors. Steps without a GPU get the CPUs that others leave.

    device: `hardware.device`. Raises ConfigError for CUDA without a GPU.
    """
    if device == "cuda" and not gpus:
        raise no_cuda("the Ray cluster")
    gpus = 0.0 if device == "cpu" else gpus
    counts: list[int] = []
    for step in wanted:
        on_gpu = step.gpus and gpus
        fitting = int(gpus / step.gpus if on_gpu else cpus - sum(counts) if gpus else cpus)
        counts.append(max(1, min(step.actors or fitting, step.jobs)))
    share = int(100 * cpus / sum(counts)) / 100
    return [
        Step(step.function, count, share if step.all_cpus else min(1.0, share), step.gpus if gpus else 0.0)
        for step, count in zip(wanted, counts, strict=True)
    ]
