"""The rules that make a configuration of a data set and a machine, in one table. Called by `planning.new`.

A row says what one key is set to, by one fact: `bands` are (limit, value, why), the first whose limit the fact is below
holds. docs/new.md shows the table; what was measured for it is in benchmarks/README.md. What nothing says here is the
schema's default, which is the recipe for some hundred photographs on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from distwsss.planning.facts import DataFacts, MachineFacts

FEW, MANY = "measured on 40 photographs of 5 classes", "measured on 490 photographs of 20 classes"
BETWEEN = "between what was measured on 40 and on 490 photographs"
PUBLISHED = "as published; not run here"


@dataclass(frozen=True)
class Facts:
    """What rows ask for, by name."""

    data: DataFacts
    machine: MachineFacts

    @property
    def photographs(self) -> int:
        return self.data.photographs

    @property
    def photographs_per_core(self) -> float:
        return self.data.photographs / self.machine.cores

    @property
    def masks(self) -> int:
        return self.data.masks

    @property
    def gpus(self) -> int:
        return self.machine.gpus

    @property
    def gpu_memory(self) -> float:
        return self.machine.gpu_memory


@dataclass(frozen=True)
class Row:
    """One rule. fact: a property of `Facts`; machine: cpu, gpu or any, where the row holds."""

    key: str
    machine: str
    fact: str
    bands: tuple[tuple[float, Any, str], ...]

    def choose(self, facts: Facts) -> tuple[Any, str] | None:
        """(value, why), or None where the row does not hold for this machine."""
        if self.machine != "any" and (self.machine == "gpu") != (facts.gpus > 0):
            return None
        found: float = getattr(facts, self.fact)
        return next((value, why) for limit, value, why in self.bands if found < limit)


def _always(key: str, value: Any, why: str, machine: str = "any") -> Row:
    return Row(key, machine, "photographs", ((inf, value, why),))


ROWS: tuple[Row, ...] = (
    Row("hardware.executor", "any", "photographs", (
        (2000, "local", "local processes are enough for so few photographs"),
        (inf, "auto", "Ray where it is installed: actors that die are replaced"),
    )),
    _always("hardware.mixed_precision", "bf16", "half the memory; weights and losses stay float32", "gpu"),
    Row("prepare.shard_size", "any", "photographs_per_core", (
        (64, 8, "several shards for each process, although there are few photographs"),
        (inf, 64, "about 5 MB a shard"),
    )),
    Row("classify.dropouts", "cpu", "photographs", (
        (1000, [0.05, 0.10, 0.20, 0.30], "the paper's four classifiers"),
        (inf, [0.10, 0.30], "two of the paper's four classifiers: half the time on a CPU"),
    )),
    Row("classify.optim.duration", "any", "photographs", (
        (100, "100 steps", f"the loss is near 0 after 50; {FEW}"),
        (480, "150 steps", BETWEEN),
        (inf, "5 epochs", MANY),
    )),
    Row("classify.optim.backbone_multiplier", "any", "photographs", (
        (100, 0.03, f"a backbone that learns fast knows few by heart, and its CAMs spread; {FEW}"),
        (inf, 0.1, f"0.3 is no better; {MANY}"),
    )),
    Row("seeds.alpha", "any", "photographs", (
        (480, 4.0, f"best, and flat from 3 to 6; {FEW}, with more not tried"),
        (inf, 8.0, MANY),
    )),
    Row("train.model", "gpu", "gpu_memory", (
        (8, "deeplab", "SegFormer MiT-B2 wants 8 GB"),
        (inf, "segformer", PUBLISHED),
    )),
    Row("train.backbone.name", "gpu", "gpu_memory", (
        (8, "lite", "EfficientNet-Lite0 fits into any GPU"),
        (inf, "mit_b2", PUBLISHED),
    )),
    Row("train.optim.duration", "cpu", "photographs", (
        (100, "200 steps", f"150 steps were as good as 300; {FEW}"),
        (600, "300 steps", BETWEEN),
        (inf, "4 epochs", MANY),
    )),
    Row("train.optim.duration", "gpu", "photographs", (
        (500, "4000 steps", "few photographs repeat themselves soon"),
        (20000, "20000 steps", PUBLISHED),
        (inf, "60000 steps", "as published for COCO; not run here"),
    )),
    Row("train.holdout", "any", "masks", (
        (1, 0.0, "no masks: nothing could be measured on photographs held out"),
        (inf, 0.2, "a fifth of the photographs with masks measures the others' training (held-out mIoU, BEST)"),
    )),
)  # fmt: skip

# what goes with a value that a row chose: the network's published way of training
WITH: dict[tuple[str, Any], dict[str, Any]] = {
    ("train.backbone.name", "mit_b2"): {
        "train.backbone.output_stride": 32,
        "train.backbone.freeze": [],
        "train.backbone.drop_path": 0.1,
        "train.augment.crop": 512,
        "train.augment.resize": [0.5, 2.0],
        "train.optim.global_batch": 16,
        "train.optim.lr": 6.0e-5,
        "train.optim.decay_bias": True,
        "train.optim.power": 1.0,
        "train.optim.warmup": "5%",
    },
}


@dataclass(frozen=True)
class Choice:
    """A key, its value and the reason that stands beside it."""

    key: str
    value: Any
    why: str


def choose(facts: Facts, has_weights: Callable[[str], bool]) -> list[Choice]:
    """What the rows say, in their order. `has_weights`: whether a backbone's weights are here or can be fetched; where
    not, `lite`, whose weights come with the package, takes its place."""
    chosen = {row.key: Choice(row.key, *found) for row in ROWS if (found := row.choose(facts)) is not None}
    backbone = chosen.get("train.backbone.name")
    if backbone is not None and backbone.value != "lite" and not has_weights(backbone.value):
        why = f"the weights of {backbone.value} are not here and cannot be fetched; these come with distwsss"
        chosen["train.backbone.name"] = Choice(backbone.key, "lite", why)
        chosen["train.model"] = Choice("train.model", "deeplab", why)
        chosen["train.optim.duration"] = Choice("train.optim.duration", "4000 steps", "EfficientNet-Lite0 is small")
    result = []
    for choice in chosen.values():
        result.append(choice)
        published = WITH.get((choice.key, choice.value) if isinstance(choice.value, str) else ("", None), {})
        result += [Choice(key, value, f"goes with {choice.value}") for key, value in published.items()]
    return result


def saliency_choices(at_hand: bool) -> list[Choice]:
    """Saliency maps where nothing needs to be installed or fetched for them."""
    here = Choice("saliency.model", "u2netp", "onnxruntime and its file are here; it finds what stands out")
    use = Choice("seeds.saliency_unary", True, "its maps know where objects end; remove both keys for tags only")
    crf = Choice("seeds.crf", "deeplab_v2", "the CRF made for CAMs smooths the maps' outlines away")
    return [here, use, crf] if at_hand else []


def saliency_line(cue: str) -> str:
    """What the configuration's cue means, or how saliency maps are turned on."""
    if cue == "tags":
        return "Labels from tags only; docs/saliency.md says how to add saliency maps, which know where objects end"
    return f"Labels from {cue}: its network was trained with masks, so compare with results of that cue only"


def rules_table() -> str:
    """ROWS as docs/new.md shows them."""
    lines = ["| key | where | fact | below | value | reason |", "|---|---|---|---|---|---|"]
    for row in ROWS:
        for limit, value, why in row.bands:
            below = "" if limit == inf else f"{limit:g}"
            lines.append(f"| `{row.key}` | {row.machine} | {row.fact} | {below} | `{value}` | {why} |")
    return "\n".join(lines)
