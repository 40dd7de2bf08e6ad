"""What is logged of training: sums over the steps since the last line, then means over ranks. For `train.steps`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from distwsss.train.engine.accelerate import all_sum
from distwsss.train.terms import Parts

FIRST = "first_loss"  # of an attempt's first step alone


@dataclass
class Meter:
    """Sums over the steps since the last log line, over this rank's micro-batches."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    images: int = 0
    steps: int = 0
    start: float = field(default_factory=time.monotonic)

    def add(self, name: str, value: Tensor | float) -> None:
        """A tensor stays where it is until `means`: asked for its value, a GPU would have to end the step first."""
        value = value.detach().double() if isinstance(value, Tensor) else value
        self.sums[name] = self.sums.get(name, 0.0) + value

    def add_parts(self, parts: Parts) -> None:
        for name, (total, count) in parts.items():
            self.add(f"{name}.sum", total)
            self.add(f"{name}.count", count)

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """loss, grad_norm, `FIRST` if it was added, and of each part its mean and, where it counts pixels, its share of
        all counted pixels; a collective."""
        names = sorted(self.sums)
        values = torch.tensor([*(float(self.sums[name]) for name in names), self.images], dtype=torch.float64)
        *sums, images = all_sum(accelerator, values).tolist()
        total = dict(zip(names, sums, strict=True))
        found = {"loss": total.pop("loss") / self.steps}
        if FIRST in total:
            found[FIRST] = total.pop(FIRST)
        if "grad_norm" in total:
            found["grad_norm"] = total.pop("grad_norm") / self.steps / accelerator.num_processes
        pixels = sum(value for name, value in total.items() if _counts_pixels(name) and name.endswith(".count"))
        for name in [name.removesuffix(".sum") for name in total if name.endswith(".sum")]:
            count = total[f"{name}.count"]
            found[name] = total[f"{name}.sum"] / max(count, 1)
            if _counts_pixels(name):
                found[f"{name}_share"] = count / max(pixels, 1)
        found["images_per_second"] = round(images / max(time.monotonic() - self.start, 1e-9), 3)
        return found


def _counts_pixels(part: str) -> bool:
    # Mask2Former's set loss counts queries and masks, a classifier's losses photographs
    return not part.startswith(("set_", "multilabel", "saliency"))
