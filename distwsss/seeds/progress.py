"""Progress of the `seeds` stage: images done, images/s of CAM and CRF, queue, time left. Called by `seeds.generate`."""

from __future__ import annotations

import time

from distwsss.runtime.progress import duration, log, step_bar

EVERY = 20.0  # seconds between lines where there is no terminal


class SeedProgress:
    """A bar on a terminal, a line every `EVERY` seconds elsewhere.

    counts: images of every shard; todo: the shards to make; seeds: CAMs per image.
    """

    def __init__(self, counts: list[int], todo: list[int], seeds: int) -> None:
        self.counts, self.seeds, self.queue = counts, seeds, ""
        self.total, self.left = sum(counts), sum(counts[shard] for shard in todo)
        self.todo, self.made, self.cams = self.left, 0, 0
        self.start = self.last = time.monotonic()
        self.bar = step_bar(self.total - self.left, self.total, "seeds", "image")

    def cam_done(self, shard: int) -> None:
        """One (p, scale) of a shard."""
        self.cams += self.counts[shard]
        self._show()

    def shard_done(self, shard: int) -> None:
        self.made += self.counts[shard]
        self.left -= self.counts[shard]
        self.bar.update(self.counts[shard])
        self._show()

    def line(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-9)
        rates = f"{self.made / seconds:.2f} images/s"
        if self.cams:
            rates = f"CAM {self.cams / self.seeds / seconds:.2f}, CRF {rates}"
        left = f", {duration(self.left * seconds / self.made)} left" if self.made else ""
        return f"{rates}{self.queue}{left}"

    def _show(self) -> None:
        self.bar.set_postfix_str(self.line())
        if self.bar.disable and time.monotonic() - self.last >= EVERY and self.left:
            log.info(f"seeds: {self.total - self.left}/{self.total} images, {self.line()}")
            self.last = time.monotonic()

    def close(self) -> None:
        self.bar.close()
        if self.todo:
            seconds = time.monotonic() - self.start
            log.info(f"seeds: {self.todo} images in {duration(seconds)}, {self.line()}")
