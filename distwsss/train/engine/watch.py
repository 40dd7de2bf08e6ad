"""What ranks that fail or hang leave behind: stacks, and the error of the first that failed. Called by `train.loop`."""

from __future__ import annotations

import faulthandler
import json
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

import torch

from distwsss.errors import DistwsssError, RunError
from distwsss.runtime.artifacts import write_json
from distwsss.runtime.layout import error_file, stacks_file
from distwsss.runtime.stop import StopSignal

GRACE = 5.0  # seconds in which the error of the rank that failed first may still be on its way


class HangWatch:
    """Where a step takes longer than `seconds`, this rank's stacks and step are written to `folder`, once for the step.

    The process group's own timeout, which ends the run, comes a little later. The timer is the interpreter's and needs
    no lock of it, so a rank stuck in a native call writes too.
    """

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self.path, self.rank, self.seconds = stacks_file(folder, rank), rank, seconds
        self._file: IO[str] | None = None

    def __enter__(self) -> HangWatch:
        self._file = self.path.open("w", encoding="utf-8")
        return self

    def step(self, step: int) -> None:
        """Step `step` begins now."""
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"rank {self.rank}, step {step + 1}: no end after {self.seconds:.0f} s\n")
        self._file.flush()
        faulthandler.dump_traceback_later(self.seconds, file=self._file)

    def pause(self) -> None:
        """What follows is no step and may take long."""
        faulthandler.cancel_dump_traceback_later()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
        with suppress(OSError):
            if len(self.path.read_text(encoding="utf-8").splitlines()) < 2:  # nothing hung
                self.path.unlink()


class FirstError:
    """Ranks tell each other why they end through files in `folder`, as a collective may be what failed."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self.folder, self.rank, self.world = folder, rank, world

    def _path(self, rank: int) -> Path:
        return error_file(self.folder, rank)

    def clear(self) -> None:
        """Forget what an earlier attempt left; every rank its own."""
        self._path(self.rank).unlink(missing_ok=True)

    def tell(self, error: BaseException) -> None:
        """This rank ends because of `error`."""
        if self.world > 1:
            code, message = 1, f"{type(error).__name__}: {error}"
            if isinstance(error, DistwsssError):
                code, message = error.exit_code, str(error)
            with suppress(OSError, RunError):
                write_json(self._path(self.rank), {"code": code, "message": message, "time": time.time()})

    def of_another(self, stop: StopSignal) -> str | None:
        """That and why another rank ended the run, where one says so within a few seconds, or before the launcher asks
        this one to end: the other's process is gone then."""
        until = time.monotonic() + GRACE
        others = [rank for rank in range(self.world) if rank != self.rank]
        while others:
            ended = stop.asked or time.monotonic() > until
            for rank in others:
                with suppress(OSError, ValueError):
                    message = json.loads(self._path(rank).read_text(encoding="utf-8"))["message"]
                    return f"another rank ended the run: rank {rank}: {message}"
            if ended:
                return None
            time.sleep(0.2)
        return None


def is_collective_failure(error: BaseException) -> bool:
    """Whether `error` came from talking to the other ranks: torch's own where they meet (`DistError`), and of
    collectives RuntimeErrors with texts of gloo's and NCCL's."""
    text = str(error).lower()
    signs = ("gloo", "nccl", "timed out", "connection closed", "connection reset", "process group", "collective")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    )


def no_answer(error: BaseException) -> str:
    """What to say of a collective's failure for which no rank gave a reason."""
    first = str(error).partition("\n")[0]
    return (
        f"the other ranks do not answer ({first}): one was killed (out of memory?), hangs (stacks-rank*.txt) or has no "
        "network; run the same command to go on"
    )
