"""How many CAM actors and CRF workers a cluster's resources give. No Ray is started: the plan is a pure function."""

from __future__ import annotations

import pytest

from distwsss.config.hardware import HardwareSection, RaySection
from distwsss.errors import ConfigError
from distwsss.runtime.ray_schedule import Step, Wanted, schedule
from distwsss.seeds.on_ray import wanted_steps


@pytest.mark.parametrize(
    ("cpus", "gpus", "keys", "wanted"),
    [
        (1, 0, {}, (1, 1, 0.5, 0.0)),  # a laptop with one CPU: both share it
        (2, 0, {}, (2, 2, 0.5, 0.0)),
        (64, 8, {}, (8, 56, 1.0, 1.0)),
        (64, 8, {"cam_gpus": 0.25}, (32, 32, 1.0, 0.25)),
        (4, 8, {}, (8, 1, 0.44, 1.0)),  # more GPUs than CPUs: still one CRF worker
        (64, 8, {"cam_actors": 2, "crf_workers": 3}, (2, 3, 1.0, 1.0)),
        (10_000, 0, {}, (800, 100, 1.0, 0.0)),  # no more than 100 shards x 8 seeds, and 100 shards
    ],
)
def test_plan(cpus: float, gpus: float, keys: dict, wanted: tuple) -> None:
    cam, crf = schedule(wanted_steps(HardwareSection(ray=RaySection(**keys)), 100, 8), "auto", cpus, gpus)
    assert (cam.actors, crf.actors, cam.cpus, cam.gpus) == wanted
    assert crf.cpus == cam.cpus
    assert crf.gpus == 0
    assert cam.actors * cam.cpus + crf.actors * crf.cpus <= max(cpus, 1)
    assert cam.actors * cam.gpus <= gpus


def test_device_decides() -> None:
    wanted = wanted_steps(HardwareSection(), 100, 8)
    cam, _ = schedule(wanted, "cpu", 64, 8)
    assert (cam.actors, cam.gpus) == (64, 0.0)
    with pytest.raises(ConfigError, match="the Ray cluster offers none"):
        schedule(wanted, "cuda", 64, 0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "wanted"),
    [
        (8, 0, (4, 2.0, 0.0)),  # four classifiers: each computes on its part of the CPUs
        (6, 0, (4, 1.5, 0.0)),
        (2, 0, (2, 1.0, 0.0)),
        (0.5, 0, (1, 0.5, 0.0)),
        (16, 2, (2, 8.0, 1.0)),
        (16, 8, (4, 4.0, 1.0)),
    ],
)
def test_classifiers_take_all_cpus_that_are_there_for_them(cpus: float, gpus: float, wanted: tuple) -> None:
    (step,) = schedule([Wanted(print, 4, gpus=1.0, all_cpus=True)], "auto", cpus, gpus)
    assert step == Step(print, *wanted)
