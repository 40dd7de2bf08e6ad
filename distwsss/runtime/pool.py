"""Local worker processes. Called by `data`, `seeds.generate` and `inference.postprocess`. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

from distwsss.errors import RunError
from distwsss.runtime import shared_memory

Task = TypeVar("Task")
Result = TypeVar("Result")
Hear: TypeAlias = Callable[[dict[str, float]], None]
LISTEN_SECONDS = 1.0  # between two looks at what workers told
WORKER_GB = "worker_gb"  # what Ray's actors tell beside it: the most memory, in GB, that one of them has held

_hear: Hear | None = None  # in a worker: hands it to the process that waits for the work


def tell(what: dict[str, float]) -> None:
    """Said by work while it runs, as {"cam": 1.0, "cam_seconds": 0.5}: `spread` and `ray_pool.run_chunks` hand it to
    their `hear`; else nobody hears it."""
    if _hear is not None:
        _hear(what)


def tell_to(hear: Hear | None) -> None:
    """Who hears from now on what work in this process tells: said where a worker starts."""
    global _hear
    _hear = hear


def spread(
    work: Callable[[Task], Result], tasks: list[Task], workers: int, hear: Hear | None = None
) -> Generator[tuple[Task, Result], None, None]:
    """(task, work(task)) as they finish, by `workers` processes; by this one with fewer than two workers or tasks.
    `hear` is called in this process with what the work tells (`tell`) on its way.

    Closing the generator ends the processes at once. Raises what `work` raises, and RunError when a process is killed.
    """
    if workers < 2 or len(tasks) < 2:
        for task in tasks:
            yield task, _heard(work, task, hear)
        return
    with shared_memory.needed("worker processes", "hardware.workers"):
        told = multiprocessing.get_context("spawn").SimpleQueue() if hear else None
    try:
        with spawn_pool(min(workers, len(tasks)), told) as pool:
            futures = {pool.submit(work, task): task for task in tasks}
            while futures:
                ended, _ = wait(futures, LISTEN_SECONDS if hear else None, FIRST_COMPLETED)
                while hear and told and not told.empty():
                    hear(told.get())
                for future in ended:
                    yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RunError("a worker process died (killed, or out of memory); run the same command to go on") from error


def _heard(work: Callable[[Task], Result], task: Task, hear: Hear | None) -> Result:
    before = _hear
    tell_to(hear)
    try:
        return work(task)
    finally:
        tell_to(before)


@contextmanager
def spawn_pool(workers: int, told: Any = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of `workers` processes that end when this one does, however it ends, and when the block raises.
    `told`: the queue of what their work tells."""
    # spawn: a fork of a process whose OpenMP threads run can hang
    with shared_memory.needed("worker processes", "hardware.workers"):
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (told,))
    try:
        yield pool
    except BaseException:
        # shutdown would wait for the calls that run and for those already in the workers' queue: minutes
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(told: Any) -> None:
    tell_to(told.put if told else None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the workers too; the parent ends them
    end_with_parent()


def end_with_parent() -> None:
    """Let this worker process end at once when its parent is killed.

    Workers hold both ends of their queue, so that a pool's would wait for ever. Those that were forked hold the
    parent's connections too: its peers would take it for alive.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
