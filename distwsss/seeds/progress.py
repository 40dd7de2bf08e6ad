"""Progress of the `seeds` stage: images done, images/s of CAM and CRF, memory, queue, time left. Called by
`seeds.generate` and `seeds.sweep`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from distwsss.runtime.memory import peak_memory
from distwsss.runtime.pool import WORKER_GB
from distwsss.runtime.progress import duration, expect, log, step_bar

EVERY = 20.0  # seconds between lines where there is no terminal
# CPU seconds of one core per megapixel, at 10 iterations (500 x 375 pixels, 1 and 4 seeds): the lattice of an image,
# and each class of each seed with its PNG
CRF_LATTICE, CRF_CLASS = 1.2, 0.07


class SeedProgress:
    """A bar on a terminal, a line every `EVERY` seconds elsewhere.

    counts: images of every shard; todo: the shards to make; seeds: CAMs per image; processes: how many work at once.
    They tell of each image (`heard`). None: Ray's actors do; how many of them work at once is measured.
    what: is done, as its lines call it.
    """

    def __init__(
        self, counts: list[int], todo: list[int], seeds: int, processes: int | None = 1, what: str = "seeds"
    ) -> None:
        self.what = what
        self.counts, self.seeds, self.processes, self.queue = counts, seeds, processes, ""
        self.total, self.left = sum(counts), sum(counts[shard] for shard in todo)
        self.todo = self.left
        self.told: Counter[str] = Counter()
        self.worker_gb, self.since = 0.0, 0.0  # of Ray's actors: the most memory, and when the first began to work
        self.start = self.last = time.monotonic()
        self.bar = step_bar(self.total - self.left, self.total, what, "image")

    def heard(self, what: dict[str, float]) -> None:
        """What a chunk tells while it works: images of a step (cam, crf), the seconds of a process, pixels; on Ray also
        the memory (GB) of an actor."""
        if WORKER_GB in what:
            self.worker_gb = max(self.worker_gb, what[WORKER_GB])
            return
        if not self.told:
            self.since = time.monotonic() - _worked(what)
        for name, amount in what.items():
            self.told[name] += amount  # type: ignore[assignment]
        self.bar.update(int(what.get("crf", 0)))
        self._show()

    def shard_done(self, shard: int) -> None:
        self.left -= self.counts[shard]
        self._show()

    def line(self) -> str:
        """Rates, memory and time left, once something of them was heard."""
        cam, crf = self._cam_seconds(), self._crf_seconds()
        each = max(cam + crf, 1e-9)
        at_once = self._at_once()
        parts = [f"{at_once / each:.2f} images/s (CAMs {cam:.1f} s, CRF {'' if self.told['crf'] else 'about '}"
                 f"{crf:.1f} s each)", f"{memory_line(self.worker_gb)}{self.queue}"]  # fmt: skip
        return ", ".join([*parts, f"{duration(self._work_left() / at_once)} left"])

    def _work_left(self) -> float:
        """Seconds of one process; what is tried again on Ray is told twice."""
        cams, crfs = self.todo * self.seeds - self.told["cam"], self.todo - self.told["crf"]
        return max(0.0, cams * self._cam_seconds() / self.seeds + crfs * self._crf_seconds())

    def _at_once(self) -> float:
        """Processes that work at once."""
        return self.processes or max(0.1, _worked(self.told) / max(1e-9, time.monotonic() - self.since))

    def _cam_seconds(self) -> float:
        """Of all CAMs of an image."""
        return self.seeds * self.told["cam_seconds"] / max(1, self.told["cam"])

    def _crf_seconds(self) -> float:
        """Of CRF and vote of an image: measured once one has ended, before that by its size."""
        if self.told["crf"]:
            return self.told["crf_seconds"] / self.told["crf"]
        return crf_seconds(self.told["pixels"] / 1e6 / max(1, self.told["cam"]), self.seeds)

    def _show(self) -> None:
        self.bar.set_postfix_str(self.line(), refresh=False)
        if self.bar.disable and time.monotonic() - self.last >= EVERY and self.left:
            done = max(self.total - self.left, self.total - self.todo + int(self.told["crf"]))
            log.info(f"{self.what}: {done}/{self.total} images, {self.line()}")
            self.last = time.monotonic()
        left = self._work_left() / self._at_once()
        expect(self.what, left, time.monotonic() - self.start + left)

    def close(self) -> None:
        self.bar.close()
        if self.todo:
            seconds = time.monotonic() - self.start
            rate = f"{self.todo / max(seconds, 1e-9):.2f} images/s"
            log.info(f"{self.what}: {self.todo} images in {duration(seconds)}, {rate}, {memory_line(self.worker_gb)}")


def _worked(told: Mapping[str, float]) -> float:
    """Seconds that processes worked, all together."""
    return told.get("cam_seconds", 0.0) + told.get("crf_seconds", 0.0)


def crf_seconds(megapixels: float, seeds: int, tags: float = 1.5) -> float:
    """Of CRF and vote of an image with so many classes beside background, by rule."""
    return megapixels * (CRF_LATTICE + CRF_CLASS * seeds * (1 + tags))


def memory_line(worker_gb: float = 0.0) -> str:
    """The most memory that this process and its workers have held. worker_gb: of one of Ray's actors, wherever."""
    sizes = peak_memory()
    if worker_gb:
        return f"memory at most {max(worker_gb, *sizes):.1f} GB a process"
    each = f" in {len(sizes)} processes, at most {max(sizes):.1f} GB each" if len(sizes) > 1 else ""
    return f"memory {sum(sizes):.1f} GB{each}"
