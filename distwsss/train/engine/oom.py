"""What to change when CUDA memory runs out. Called by `train.loop`."""

from __future__ import annotations

import re

from distwsss.config.hardware import HardwareSection
from distwsss.data.batches.loader import Share
from distwsss.errors import RunError


def oom_advice(error: BaseException, name: str, hardware: HardwareSection, share: Share, crop: int) -> RunError:
    """`error`, a torch.OutOfMemoryError, as one that names the three settings to change, in this order.

    name: the task's; crop: of its `augment` section. Recomputed activations and, but for BatchNorm that follows the
    batches, a smaller micro-batch leave the result as it is; precision and crop do not.
    """
    steps = [*_micro_batch(share), *_recompute(hardware), *_precision(hardware, name, crop)]
    lines = [f"{name}: the GPU's memory does not hold a micro-batch of {share.micro_batch} images{_asked(error)}"]
    lines += [f"  {number}. {step}" for number, step in enumerate(steps, start=1)]
    return RunError("\n".join([*lines, "  `distwsss estimate` says what fits; the last checkpoint is untouched"]))


def _asked(error: BaseException) -> str:
    """What could not be allocated, of how much, where torch's message says so."""
    found = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error)), re.search(r"capacity of ([\d.]+ \w+)", str(error))
    asked, capacity = (match.group(1) if match else None for match in found)
    return f" (asked for {asked} more" + (f" of {capacity})" if capacity else ")") if asked else ""


def _micro_batch(share: Share) -> list[str]:
    if share.micro_batch == 1:
        return ["hardware.micro_batch: is 1 already"]
    less = share.micro_batch // 2
    same = "the global batch stays; only BatchNorm of norm `local` sees fewer images"
    return [f"hardware.micro_batch: is {share.micro_batch}; set {less} ({same})"]


def _recompute(hardware: HardwareSection) -> list[str]:
    if hardware.activation_checkpointing:
        return ["hardware.activation_checkpointing: is true already"]
    return ["hardware.activation_checkpointing: is false; set true (same result, a second forward of the backbone)"]


def _precision(hardware: HardwareSection, name: str, crop: int) -> list[str]:
    section = name.partition(" ")[0]
    if hardware.mixed_precision == "no":
        return [f"hardware.mixed_precision: is no; set bf16, or {section}.augment.crop below {crop} (results change)"]
    found = f"hardware.mixed_precision: is {hardware.mixed_precision} already"
    return [f"{found}; set {section}.augment.crop below {crop} (results change)"]
