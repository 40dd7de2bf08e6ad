"""Log lines and progress: a bar on a terminal, one line every few seconds elsewhere. Called by every stage."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

from tqdm import tqdm

from distwsss.runtime import ranks

log = logging.getLogger("distwsss")
Item = TypeVar("Item")
Expecting: TypeAlias = Callable[[str, float, float], None]
_expecting: list[Expecting] = []


class _AboveBars(logging.StreamHandler):
    """Writes a line without tearing a progress bar on the same terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
        except Exception:  # as StreamHandler does: a closed terminal ends no run
            self.handleError(record)


def setup_logging(debug: bool = False) -> None:
    """Messages of rank 0 to stderr, warnings of the others; results are printed to stdout."""
    handler = (_AboveBars if sys.stderr.isatty() else logging.StreamHandler)(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if ranks.rank() != 0 else logging.DEBUG if debug else logging.INFO)


@contextmanager
def silent() -> Iterator[None]:
    """No lines from work in the block that is done again, and then speaks for itself."""
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def say(text: str = "") -> None:
    """Results to stdout, at once. Where nobody reads them any more (`| head`) they go nowhere, and no run ends for
    it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_table(rows: list[list[str]], rules: tuple[int, ...] = (1,)) -> None:
    """Aligned columns on stdout; a rule above each row number of `rules`."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        if number in rules:
            say("-" * (sum(widths) + 2 * len(widths) - 2))
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        say("  ".join(cells))


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def expect(what: str, left: float, whole: float) -> None:
    """Said by long work: the seconds that are left of it, and those of the whole of it. The plan of a run hears it."""
    for hear in _expecting:
        hear(what, left, whole)


@contextmanager
def heard_by(hear: Expecting) -> Iterator[None]:
    """`hear` is called with what work in the block expects."""
    _expecting.append(hear)
    try:
        yield
    finally:
        _expecting.remove(hear)


def _on_terminal() -> bool:
    return sys.stderr.isatty() and log.isEnabledFor(logging.INFO)


def step_bar(start: int, total: int, what: str, unit: str = "step") -> tqdm:
    """range(start, total) behind a bar on a terminal; elsewhere `disable` is set and the caller logs lines."""
    steps = range(start, total)
    return tqdm(steps, initial=start, total=total, desc=what, unit=unit, leave=False, disable=not _on_terminal())


def track(items: Iterable[Item], total: int, what: str, unit: str = "image", every: float = 20.0) -> Iterator[Item]:
    """Iterate with progress: tqdm on a terminal, otherwise a log line every `every` seconds and at the end."""
    bar, start, done = _on_terminal(), time.monotonic(), 0
    last = start
    for item in tqdm(items, total=total, desc=what, unit=unit, leave=False) if bar else items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= every and done < total:
            left = (now - start) / done * (total - done)
            expect(what, left, now - start + left)
            if not bar:
                log.info(f"{what}: {done}/{total}, {done / (now - start):.2f} {unit}s/s, {duration(left)} left")
            last = now
    if done and not bar:
        taken = time.monotonic() - start
        log.info(f"{what}: {done}/{total} in {duration(taken)}, {done / max(taken, 1e-9):.2f} {unit}s/s")
