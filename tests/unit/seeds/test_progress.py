"""What `seeds` says while it works: images/s, memory and time left, inside a single shard too."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest

from distwsss.runtime.memory import available_memory, peak_memory
from distwsss.runtime.pool import spread, tell
from distwsss.seeds import progress
from distwsss.seeds.generate import run_seeds
from distwsss.seeds.progress import SeedProgress
from helpers.small import make_config, write_classifiers, write_images

LINE = r"seeds: (\d)/2 images, .* images/s .*memory \d+\.\d GB, \d+:\d\d left"


def test_lines_come_inside_the_only_shard(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    config = make_config(tmp_path)
    write_images(config, "train", 2)
    write_classifiers(config)
    with caplog.at_level(logging.INFO, "distwsss"):
        run_seeds(config)
    lines = [entry.message for entry in caplog.records if re.search(LINE, entry.message)]
    assert len(lines) == 2 * 4 + 2  # four CAMs and one CRF of each image
    assert [re.search(LINE, line).group(1) for line in lines] == ["0"] * 8 + ["1", "2"]
    assert "CRF about" in lines[0]
    assert "about" not in lines[-1]


def test_time_left_is_what_images_took(monkeypatch) -> None:
    """Two of ten images of four seeds done by two processes, 1 s a CAM and 2 s a CRF: eight times 6 s, halved."""
    shown = SeedProgress([10], [0], 4, processes=2)
    shown.heard({"cam": 8, "cam_seconds": 8.0, "pixels": 2e6})
    shown.heard({"crf": 2, "crf_seconds": 4.0, "pixels": 0.0})
    assert "0.33 images/s" in shown.line()
    assert shown.line().endswith("0:24 left")


def test_on_ray_it_is_measured_how_many_work_at_once(monkeypatch) -> None:
    """24 seconds of work in 8 seconds are three actors, however long they took to start; what was tried again makes
    nothing negative."""
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = SeedProgress([10], [0], 4, processes=None)
    clock[0] += 50.0
    shown.heard({"cam": 1, "cam_seconds": 1.0, "pixels": 1e5})
    shown.heard({"worker_gb": 999.0})  # more than this process, whatever it did before
    clock[0] += 7.0
    shown.heard({"cam": 19, "cam_seconds": 19.0, "pixels": 2e6})
    shown.heard({"crf": 1, "crf_seconds": 4.0, "pixels": 0.0})
    shown.heard({"worker_gb": 0.5})
    shown.queue = ", 1 shards in the queue"
    assert "memory at most 999.0 GB a process, 1 shards in the queue" in shown.line()
    assert shown.line().endswith(f"0:{(20 * 1 + 9 * 4) / 3:02.0f} left")
    shown.heard({"cam": 40, "cam_seconds": 40.0, "crf": 20, "crf_seconds": 80.0})
    assert shown.line().endswith("0:00 left")


def test_before_the_first_crf_its_time_goes_by_pixels() -> None:
    small, large = (SeedProgress([10], [0], 4) for _ in range(2))
    small.heard({"cam": 4, "cam_seconds": 4.0, "pixels": 1e6})
    large.heard({"cam": 4, "cam_seconds": 4.0, "pixels": 48e6})
    seconds = [[int(part) for part in re.search(r"(\d+):(\d+) left", s.line()).groups()] for s in (small, large)]
    assert seconds[1] > seconds[0]


def told(number: int) -> int:
    tell({"done": number})
    return os.getpid()


@pytest.mark.slow
def test_what_workers_tell_is_heard() -> None:
    heard: list[float] = []
    pids = {pid for _, pid in spread(told, [1, 2, 3], 2, lambda what: heard.append(what["done"]))}
    assert sorted(heard) == [1, 2, 3]
    assert os.getpid() not in pids


def test_in_this_process_too_and_nobody_need_listen() -> None:
    heard: list[float] = []
    assert [pid for _, pid in spread(told, [1, 2], 0, lambda what: heard.append(what["done"]))] == [os.getpid()] * 2
    told(3)
    assert list(spread(told, [4], 0)) == [(4, os.getpid())]
    assert heard == [1, 2]


def test_memory_is_a_machine_s() -> None:
    assert 0.01 < peak_memory()[0] < 1000
    found = available_memory()
    assert found is None or 0 < found < 100_000
