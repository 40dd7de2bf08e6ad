"""Local worker processes. Called by `data`, `seeds.generate` and `inference.postprocess`. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from distwsss.errors import RunError

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(
    work: Callable[[Task], Result], tasks: list[Task], workers: int
) -> Generator[tuple[Task, Result], None, None]:
    """(task, work(task)) as they finish, by `workers` processes; by this one with fewer than two workers or tasks.

    Closing the generator ends the processes at once. Raises what `work` raises, and RunError when a process is killed.
    """
    if workers < 2 or len(tasks) < 2:
        for task in tasks:
            yield task, work(task)
        return
    try:
        with spawn_pool(min(workers, len(tasks))) as pool:
            futures = {pool.submit(work, task): task for task in tasks}
            for future in as_completed(list(futures)):
                yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RunError("a worker process died (killed, or out of memory); run the same command to go on") from error


@contextmanager
def spawn_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of `workers` processes that end when this one does, however it ends, and when the block raises."""
    # spawn: a fork of a process whose OpenMP threads run can hang
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield pool
    except BaseException:
        # shutdown would wait for the calls that run and for those already in the workers' queue: minutes
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
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
