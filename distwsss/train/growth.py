"""Whether a loss grows out of hand, from what is logged of it. Called by `train.steps`.

The losses of real training differ by step: tiny batches, warm-up, a schedule that restarts, parts that rise while the
whole falls. What ends a run must therefore hold for all of them: the smoothed loss is `factor` times its best, it still
rises (or the run is at its end), and it is above `factor` times what an untrained network of one loss term has at most
(about 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

HISTORY = 50  # steps before the first judgement
MEMORY = 25  # steps after which a loss weighs 1 / e


@dataclass
class Growth:
    """The history of one attempt; a resumed run begins another, but keeps its best.

    `factor`: None judges nothing; `floor`: losses below it are alike, so that a best near 0 says nothing (the sum of
    the loss terms' weights).
    """

    factor: float | None
    floor: float = 1.0
    steps: int = 0
    smoothed: float = math.nan
    best: float = math.inf
    best_step: int = 0
    _logs: list[float] = field(default_factory=lambda: [0.0, 0.0])  # weighted sum of the logarithms, sum of the weights

    def first(self, step: int, loss: float) -> None:
        """The loss of the first step alone, which later ones may have left far behind before the first line, or the
        best of the attempts before."""
        if loss < self.best:
            self.best, self.best_step = loss, step

    def grows(self, step: int, loss: float, steps: int, last: bool = False) -> bool:
        """Takes in the mean `loss` of the last `steps` steps, up to `step`; whether the run is to end. `last`: nothing
        follows in which it could come down again.

        The mean is that of logarithms: one step a thousand times too high weighs as much as a few twice too high.
        """
        before, keep = self.smoothed, math.exp(-steps / MEMORY)
        new = [(1 - keep) * math.log(max(loss, self.floor)), 1 - keep]
        self._logs = [keep * old + value for old, value in zip(self._logs, new, strict=True)]
        self.smoothed, self.steps = math.exp(self._logs[0] / self._logs[1]), self.steps + steps
        lowest = min(loss, self.smoothed)
        if lowest < self.best:
            self.best, self.best_step = lowest, step
        if self.factor is None or self.steps < HISTORY:
            return False
        limit = self.factor * max(self.best, self.floor)
        rises = loss >= before  # False of the first line, before which nothing is known
        return self.smoothed > limit and (rises or (last and loss > limit))
