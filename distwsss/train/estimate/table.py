"""Estimates as text, for people and for machines. Called by `pipeline`; the numbers are made by `estimate`."""

from __future__ import annotations

import json
from dataclasses import asdict

from distwsss.config.hardware import HardwareSection
from distwsss.train.estimate.cards import CARDS, computes_in
from distwsss.train.estimate.estimate import CONTEXT_GIB, FRAGMENTS, GIB, USABLE, UTILISATION, Estimate

_MEMORY_NAMES = {
    "parameters": "  weights and buffers",
    "states": "  optimizer states",
    "gradients": "  gradients",
    "activations": "  activations",
    "buckets": "  buckets of DDP",
    "allowance": "  allowance",
}


def as_json(estimates: list[Estimate], hardware: HardwareSection) -> str:
    settings = ("card", "cards", "mixed_precision", "tf32", "activation_checkpointing", "micro_batch")
    stages = [{**asdict(found), "memory": {**found.memory, "total": found.total}} for found in estimates]
    return json.dumps({"hardware": {key: getattr(hardware, key) for key in settings}, "stages": stages}, indent=2)


def as_table(estimates: list[Estimate], hardware: HardwareSection) -> str:
    """Lines of text: a column per stage."""
    columns = [_column(found, hardware) for found in estimates]
    names = list(columns[0])
    wide = [max(len(name) for name in names), *(max(map(len, column.values())) for column in columns)]
    lines = [[name, *(column[name] for column in columns)] for name in names]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip() for line in lines]
    return "\n".join([_title(hardware), *body, *_notes(hardware)])


def _title(hardware: HardwareSection) -> str:
    card = CARDS[hardware.card].title if hardware.card else "the CPU"
    recomputed = ", activations recomputed" if hardware.activation_checkpointing else ""
    return f"Estimates, nothing was run: {hardware.cards} x {card}, {computes_in(hardware)}{recomputed}"


def _column(found: Estimate, hardware: HardwareSection) -> dict[str, str]:
    card = CARDS.get(hardware.card or "")
    memory = {name: f"{found.memory[kind] / GIB:.2f} GiB" for kind, name in _MEMORY_NAMES.items()}
    if hardware.cards == 1:
        memory.pop(_MEMORY_NAMES["buckets"])
    if not card:
        memory.pop(_MEMORY_NAMES["allowance"])
    share = f", {found.total / card.memory / GIB:.0%} of the card" if card else ""
    too_much = card and found.total > USABLE * card.memory * GIB
    return {
        "stage": found.stage,
        "network": found.network,
        "parameters trained, frozen": f"{found.trained:,}, {found.frozen:,}",
        "global batch": f"{found.global_batch} = {found.ranks} x {found.accumulation} x {found.micro_batch}",
        **memory,
        "memory at the peak": f"{found.total / GIB:.2f} GiB{share}{': does not fit' if too_much else ''}",
        "largest micro-batch": "-" if found.largest_micro_batch is None else str(found.largest_micro_batch),
        "images": "unknown" if found.images is None else f"{found.images:,}",
        "steps per epoch": "unknown" if found.steps_per_epoch is None else f"{found.steps_per_epoch:,.1f}",
        "steps": "unknown" if found.steps is None else f"{found.steps:,}",
        "operations per step": f"{found.flops:.2e}",
        "  with recomputation": f"{found.flops_recomputed:.2e}",
        "time": "unknown" if found.hours is None else "{:.1f} to {:.1f} h".format(*found.hours),
    }


def _notes(hardware: HardwareSection) -> list[str]:
    notes = ["global batch = ranks x accumulation x micro-batch; `classify` is one of its classifiers"]
    if hardware.card:
        low, high = UTILISATION
        notes += [
            f"allowance (assumed): {CONTEXT_GIB:g} GiB and {FRAGMENTS:.0%} of the rest; {1 - USABLE:.0%} is left free",
            f"time (assumed): {high:.0%} to {low:.0%} of the card's peak rate, and never a wait for data",
        ]
    else:
        notes.append("hardware.card is not set: no memory to fit in and no time; allowed: " + ", ".join(CARDS))
    if hardware.deepspeed:
        notes.append("hardware.deepspeed: what ZeRO partitions or offloads is not taken off")
    return notes
