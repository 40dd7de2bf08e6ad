"""What to change when CUDA memory runs out: three settings, in order, with what they are now."""

from __future__ import annotations

import pytest
import torch

from distwsss.config.hardware import HardwareSection
from distwsss.data.batches.loader import share_batch
from distwsss.errors import RunError
from distwsss.train.engine.oom import oom_advice

MESSAGE = (
    "CUDA out of memory. Tried to allocate 1.53 GiB. GPU 0 has a total capacity of 23.69 GiB of which 1.05 GiB is free."
)


def advice(message: str, **hardware: object) -> str:
    section = HardwareSection(**hardware)
    try:
        raise torch.OutOfMemoryError(message)
    except torch.OutOfMemoryError as caught:
        error = oom_advice(caught, "train", section, share_batch(10, section.micro_batch, 0, 1), crop=448)
    assert isinstance(error, RunError)
    return str(error)


def test_three_settings_in_order_with_what_they_are() -> None:
    lines = advice(MESSAGE).splitlines()
    assert lines[0] == (
        "train: the GPU's memory does not hold a micro-batch of 10 images (asked for 1.53 GiB more of 23.69 GiB)"
    )
    assert lines[1].startswith("  1. hardware.micro_batch: is 10; set 5 ")
    assert lines[2].startswith("  2. hardware.activation_checkpointing: is false; set true ")
    assert lines[3].startswith("  3. hardware.mixed_precision: is no; set bf16, or train.augment.crop below 448")
    assert "estimate" in lines[4]
    assert "untouched" in lines[4]


def test_what_is_set_already_is_said() -> None:
    lines = advice("no size", micro_batch=1, activation_checkpointing=True, mixed_precision="bf16").splitlines()
    assert lines[0] == "train: the GPU's memory does not hold a micro-batch of 1 images"
    assert lines[1:3] == [
        "  1. hardware.micro_batch: is 1 already",
        "  2. hardware.activation_checkpointing: is true already",
    ]
    assert (
        lines[3] == "  3. hardware.mixed_precision: is bf16 already; set train.augment.crop below 448 (results change)"
    )


@pytest.mark.parametrize("name", ["classify 0.05", "classify 0.10"])
def test_the_section_is_the_tasks(name: str) -> None:
    hardware = HardwareSection(mixed_precision="bf16")
    error = oom_advice(torch.OutOfMemoryError(MESSAGE), name, hardware, share_batch(8, 4, 0, 1), crop=321)
    assert "set classify.augment.crop below 321" in str(error)
