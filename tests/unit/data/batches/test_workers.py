"""Loader processes that die, hang or find /dev/shm full: the training goes on or ends with a reason, never waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distwsss.data.batches.loader import Batch, MicroBatches, share_batch
from distwsss.data.batches.plan import Sample
from distwsss.data.batches.workers import read_batches
from distwsss.data.shards.format import ShardRecord
from distwsss.data.shards.index import ShardIndex
from distwsss.errors import RunError
from distwsss.runtime import shared_memory
from distwsss.runtime.pool import spread
from helpers.paths import REPOSITORY

FULL, PLENTY = (10_000, 64_000_000), (10**9, 10**9)


def batches(load: Callable[[Sample, str], dict[str, Tensor]], steps: int = 6) -> MicroBatches:
    record = ShardRecord("images-00000.tar", 0, "0" * 64, [f"k{i}" for i in range(12)], [{}] * 12)
    selection = ShardIndex(Path("nowhere"), "images", ["background"], {}, "", [record], {}).all()
    return MicroBatches(selection, load, 1, 2, share_batch(2, None, 0, 1), steps)


def noise(sample: Sample, key: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(sample.position)
    return {"image": torch.rand(3, 64, 64, generator=generator), "labels": torch.full((64, 64), sample.position)}


def equal(found: list[Batch], wanted: list[Batch]) -> bool:
    return len(found) == len(wanted) and all(
        a.keys == b.keys and torch.equal(a.image, b.image) and torch.equal(a.labels, b.labels)
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize(("room", "lines"), [(FULL, 1), ((0, 0), 1), (PLENTY, 0)])
def test_a_full_shared_memory_is_gone_around_and_said_once(
    room: tuple[int, int], lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_memory, "room", lambda: room)  # before the workers are forked
    assert equal(list(read_batches(batches(noise), 0, 2)), list(read_batches(batches(noise), 0, 0)))
    said = [record.message for record in caplog.records if "/dev/shm" in record.message]
    assert len(said) == lines
    assert all("docker run --shm-size" in line for line in said)


def test_memory_that_another_process_took_meanwhile_is_gone_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(self: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(shared_memory, "room", lambda: PLENTY)
    monkeypatch.setattr(Tensor, "share_memory_", taken)
    assert equal(list(read_batches(batches(noise), 0, 2)), list(read_batches(batches(noise), 0, 0)))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGBUS, ["--shm-size", "Bus error"]),
        (signal.SIGKILL, ["out of memory", "micro_batch"]),
        (signal.SIGSEGV, ["Segmentation fault"]),
    ],
)
def test_a_worker_that_dies_ends_the_training_with_its_reason(number: int, words: list[str]) -> None:
    def dies(sample: Sample, key: str) -> dict[str, Tensor]:
        if key == "k7":
            signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
            os.kill(os.getpid(), number)
        return noise(sample, key)

    began = time.monotonic()
    with pytest.raises(RunError) as caught, closing(read_batches(batches(dies), 0, 2)) as reading:
        list(reading)
    for text in ("/dev/shm", "hardware.loader_workers: 0", *words):
        assert text in str(caught.value)
    assert time.monotonic() - began < 60
    assert equal(list(read_batches(batches(noise), 0, 2)), list(read_batches(batches(noise), 0, 0)))  # and the next one


def test_workers_that_hang_do_not_keep_the_process(tmp_path: Path) -> None:
    """As in training: SIGTERM is noted, the batch does not come, the process ends."""
    code = f"""
        import sys, time
        sys.path[:0] = ["{REPOSITORY}", "{REPOSITORY}/tests", "{Path(__file__).parent}"]
        from contextlib import closing
        from test_workers import batches
        from distwsss.data.batches.workers import read_batches
        from distwsss.runtime.stop import StopSignal

        def hangs(sample, key):
            time.sleep(1000)

        with StopSignal() as stop, closing(read_batches(batches(hangs), 0, 2)) as reading:
            print("waiting", flush=True)
            with stop.waiting(1.0):
                next(reading)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's loader, which never began
def test_no_room_for_a_semaphore_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", full)
    for start in (lambda: list(read_batches(batches(noise), 0, 2)), lambda: list(spread(abs, [1, 2], 2))):
        with pytest.raises(RunError, match=r"No space left on device\): /dev/shm has .*--shm-size.*orkers: 0"):
            start()
