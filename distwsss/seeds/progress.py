"""Progress of the `seeds` stage: images done, images/s of CAM and CRF, memory, queue, time left. Called by
`seeds.generate`."""

from __future__ import annotations

import time
from collections import Counter

from distwsss.runtime.memory import peak_memory
from distwsss.runtime.progress import duration, log, step_bar

EVERY = 20.0  # seconds between lines where there is no terminal
# CPU seconds of one core per megapixel, at 10 iterations (500 x 375 pixels, 1 and 4 seeds): the lattice of an image,
# and each class of each seed with its PNG
CRF_LATTICE, CRF_CLASS = 1.2, 0.07


class SeedProgress:
    """A bar on a terminal, a line every `EVERY` seconds elsewhere.

    counts: images of every shard; todo: the shards to make; seeds: CAMs per image; processes: how many work at once,
    where they tell of each image (`heard`). On Ray only whole (p, scale) of a shard and whole shards are told.
    """

    def __init__(self, counts: list[int], todo: list[int], seeds: int, processes: int = 1) -> None:
        self.counts, self.seeds, self.processes, self.queue = counts, seeds, processes, ""
        self.total, self.left = sum(counts), sum(counts[shard] for shard in todo)
        self.todo, self.made, self.cams = self.left, 0, 0
        self.told: Counter[str] = Counter()
        self.start = self.last = time.monotonic()
        self.bar = step_bar(self.total - self.left, self.total, "seeds", "image")

    def heard(self, what: dict[str, float]) -> None:
        """What a chunk tells while it works: images of a step (cam, crf), the seconds of a process, pixels."""
        for name, amount in what.items():
            self.told[name] += amount  # type: ignore[assignment]
        self.bar.update(int(what.get("crf", 0)))
        self._show()

    def cam_done(self, shard: int) -> None:
        """One (p, scale) of a shard, on Ray."""
        self.cams += self.counts[shard]
        self._show()

    def shard_done(self, shard: int) -> None:
        self.made += self.counts[shard]
        self.left -= self.counts[shard]
        if not self.told:
            self.bar.update(self.counts[shard])
        self._show()

    def line(self) -> str:
        """Rates, memory and time left, as far as they are known."""
        if self.told:
            return self._line_told()
        seconds = max(time.monotonic() - self.start, 1e-9)
        rates = f"{self.made / seconds:.2f} images/s"
        if self.cams:
            rates = f"CAM {self.cams / self.seeds / seconds:.2f}, CRF {rates}"
        left = f", {duration(self.left * seconds / self.made)} left" if self.made else ""
        return f"{rates}{self.queue}{left}"

    def _line_told(self) -> str:
        cam, crf = self._cam_seconds(), self._crf_seconds()
        each = max(cam + crf, 1e-9)
        parts = [f"{self.processes / each:.2f} images/s (CAMs {cam:.1f} s, CRF {'' if self.told['crf'] else 'about '}"
                 f"{crf:.1f} s each)", memory_line()]  # fmt: skip
        cams = self.todo * self.seeds - self.told["cam"]
        seconds = cams * cam / self.seeds + (self.todo - self.told["crf"]) * crf
        return ", ".join([*parts, f"{duration(seconds / self.processes)} left"])

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
            log.info(f"seeds: {done}/{self.total} images, {self.line()}")
            self.last = time.monotonic()

    def close(self) -> None:
        self.bar.close()
        if self.todo:
            seconds = time.monotonic() - self.start
            rate = f"{self.todo / max(seconds, 1e-9):.2f} images/s"
            log.info(f"seeds: {self.todo} images in {duration(seconds)}, {rate}, {memory_line()}")


def crf_seconds(megapixels: float, seeds: int, tags: float = 1.5) -> float:
    """Of CRF and vote of an image with so many classes beside background, by rule."""
    return megapixels * (CRF_LATTICE + CRF_CLASS * seeds * (1 + tags))


def memory_line() -> str:
    """The most memory that this process and its workers have held."""
    sizes = peak_memory()
    each = f" in {len(sizes)} processes, at most {max(sizes):.1f} GB each" if len(sizes) > 1 else ""
    return f"memory {sum(sizes):.1f} GB{each}"
