"""What /dev/shm has: there lie the batches of loader workers, the semaphores of every pool, and Ray's objects.

Called by `data.batches`, `runtime.pool` and `runtime.ray_pool`. Docker gives a container 64 MB of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distwsss.errors import RunError

FOLDER = Path("/dev/shm")
MORE = "start the container with more (`docker run --shm-size 2g`)"


def room() -> tuple[int, int]:
    """Bytes of it, free and in all; zeros where there is none."""
    try:
        found = shutil.disk_usage(FOLDER)
    except OSError:
        return 0, 0
    return found.free, found.total


def described() -> str:
    free, total = room()
    return f"{FOLDER} has {free / 1e6:.0f} of {total / 1e6:.0f} MB free"


@contextmanager
def needed(what: str, key: str) -> Iterator[None]:
    """What the block makes needs a little of it (semaphores). Raises RunError naming it where that fails.

    key: what to set for doing without `what`.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{what} cannot be started ({error.strerror or error}): {described()}; {MORE}, or set `{key}: 0`"
        ) from error
