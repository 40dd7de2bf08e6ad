"""The processes that load micro-batches ahead of the training, and what is said when one dies. Called by
`train.loop`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from distwsss.data.batches.loader import Batch, MicroBatches
from distwsss.errors import RunError
from distwsss.runtime import shared_memory
from distwsss.runtime.pool import end_with_parent
from distwsss.runtime.progress import log

KEY = "hardware.loader_workers"


def _quiet_worker(_: int) -> None:
    """Signals are for the rank, which saves and then ends its workers; one thread each, as there are several.

    torch's own watch over a killed parent looks every 5 s, and so long the other ranks would wait for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    torch.set_num_threads(1)
    end_with_parent()


def make_loader(batches: MicroBatches, start_step: int, workers: int) -> DataLoader[Batch | Exception]:
    """Micro-batches from `start_step` to the end, in order, whatever the number of workers."""
    todo = range(start_step * batches.share.accumulation, len(batches))
    return DataLoader(
        batches,
        batch_size=None,
        sampler=todo,
        num_workers=min(workers, len(todo)),
        worker_init_fn=_quiet_worker,
        pin_memory=torch.cuda.is_available(),
    )


def read_batches(batches: MicroBatches, start_step: int, workers: int) -> Generator[Batch, None, None]:
    """The items of `make_loader`; one that is an error is raised here, in the rank, and so is the death of a worker.

    Close it: workers that an error leaves behind do not hear SIGTERM, and the process would wait for them at its end.
    """
    with shared_memory.needed("loader workers", KEY):
        items = iter(make_loader(batches, start_step, workers))
    told = False
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                if (said := death_of_worker(error)) is None:
                    raise
                raise said from error
            if isinstance(item, Exception):
                raise item
            if isinstance(item.image, np.ndarray):
                item = item.map(torch.from_numpy, np.ndarray)
                told = told or _tell()
            yield item
    finally:
        _end(items)


def _tell() -> bool:
    log.warning(
        f"{shared_memory.described()}, too little for batches: they go through pipes, which is slower; "
        f"{shared_memory.MORE}, or set `{KEY}: 0`"
    )
    return True


def death_of_worker(error: RuntimeError) -> RunError | None:
    """What to say where torch says that a worker died; None for any other error.

    torch raises it in whatever the rank is doing just then.
    """
    texts = [str(each) for each in (error.__cause__, error) if str(each).startswith("DataLoader worker")]
    if not texts:
        return None
    text = texts[0]  # the cause knows the signal
    if "Bus error" in text:
        why = f"a bus error is what a full /dev/shm gives: {shared_memory.MORE}"
    elif "Killed" in text:
        why = "most likely this machine ran out of memory: fewer of them, or a smaller `hardware.micro_batch`"
    else:
        why = f"{shared_memory.MORE} if it is full"
    first = text.splitlines()[0].partition(". ")[0].rstrip(". ")
    return RunError(
        f"{first}: {shared_memory.described()}; {why}; `{KEY}: 0` works without such processes. Run the same command "
        "to go on"
    )


def _end(items: Iterator[Any]) -> None:
    """Kill the workers that are left: torch's own way sends SIGTERM, and waits for a lock that a dead one may hold."""
    workers = [each for each in getattr(items, "_workers", []) if each.is_alive()]
    if not workers:
        return
    with _children_die():
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(5.0)
        _let_go(items)


def _let_go(items: Any) -> None:
    """What torch's own `_shutdown_workers` would do beside ending the workers."""
    signal_handling._remove_worker_pids(id(items))
    items._shutdown = True
    if hasattr(items, "_pin_memory_thread"):
        items._pin_memory_thread_done_event.set()
    for queue in (*items._index_queues, items._worker_result_queue):
        queue.cancel_join_thread()
        queue.close()


@contextmanager
def _children_die() -> Iterator[None]:
    """While the block runs the death of a child is no error of this process: torch has a handler that makes it one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
