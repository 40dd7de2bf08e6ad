"""Local worker processes. Called by `seeds.generate` and `evaluate.postprocess`. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor


def spawn_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of `workers` processes that end when this one does, however it ends."""
    # spawn: a fork of a process whose OpenMP threads run can hang
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)


def _end_with_parent() -> None:
    """Workers hold both ends of their queue, so a killed parent leaves them waiting for ever without this."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
