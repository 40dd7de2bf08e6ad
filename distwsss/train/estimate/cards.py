"""GPUs that `hardware.card` names: memory and peak rates, for `train.estimate`.

Dense rates (no sparsity), in 1e12 operations a second, of products whose sums are float32, as others quote NVIDIA's
GA102 whitepaper and its data sheets of A100 80GB and H100 SXM (dense is half of what these give with sparsity).
"""

from __future__ import annotations

from dataclasses import dataclass

from distwsss.config.hardware import HardwareSection


@dataclass(frozen=True)
class Card:
    """memory: GiB; rates: by what products are computed in."""

    title: str
    memory: int
    rates: dict[str, float]


CARDS: dict[str, Card] = {
    "rtx3090": Card("RTX 3090", 24, {"bf16": 71.2, "fp16": 71.2, "tf32": 35.6, "float32": 35.6}),
    "a100": Card("A100 80GB SXM", 80, {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "float32": 19.5}),
    "h100": Card("H100 SXM", 80, {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "float32": 66.9}),
}


def computes_in(hardware: HardwareSection) -> str:
    """The key of `rates` that the section's precision means."""
    if hardware.mixed_precision != "no":
        return hardware.mixed_precision
    return "tf32" if hardware.tf32 else "float32"
