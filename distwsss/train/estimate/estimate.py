"""What training will take of a GPU: memory, the micro-batch that fits, operations, time; without one. Called by
`pipeline`.

Each stage's step runs once on fake tensors (`fake_step`). What that cannot see is added as `CONTEXT_GIB` and
`FRAGMENTS`, assumed and not measured; times assume that products reach `UTILISATION` of the card's peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from distwsss.config import Config
from distwsss.config.hardware import HardwareSection
from distwsss.config.section import duration_to_steps
from distwsss.data.batches.loader import share_batch
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import load_index
from distwsss.data.sources.shapes import CLASSES as SHAPES_CLASSES
from distwsss.data.sources.voc import VOC_CLASSES
from distwsss.errors import ConfigError
from distwsss.runtime.layout import images_dir
from distwsss.train.estimate.cards import CARDS, Card, computes_in
from distwsss.train.estimate.fake_step import Stage, StepCost, Way, classifier_stage, segmenter_stage, step_cost

GIB = 1 << 30
CONTEXT_GIB = 1.0  # CUDA context, workspaces of cuDNN and cuBLAS, buffers of the hybrid loss
FRAGMENTS = 0.05  # of what PyTorch's allocator holds: pieces too small to be used
USABLE = 0.92  # of a card's memory: 22 of 24 GiB
UTILISATION = (0.20, 0.45)  # of the peak rate, over a whole step
# (data set, split) -> images: VOC with SBD (10,582) and COCO 2014 (82,081 of its 82,783 have labels), METHOD section 6
KNOWN_IMAGES = {("voc", "train_aug"): 10582, ("voc", "train"): 1464, ("coco", "train"): 82081}
COCO_CLASSES = 81
MEMORY = ("parameters", "states", "gradients", "activations", "buckets", "allowance")


@dataclass(frozen=True)
class Estimate:
    """One stage. memory: bytes per rank at the peak, by kind; flops: of a step, over all ranks; hours: from, to."""

    stage: str
    network: str
    trained: int
    frozen: int
    global_batch: int
    ranks: int
    micro_batch: int
    accumulation: int
    memory: dict[str, int]
    largest_micro_batch: int | None
    images: int | None
    steps_per_epoch: float | None
    steps: int | None
    flops: int
    flops_recomputed: int
    hours: tuple[float, float] | None

    @property
    def total(self) -> int:
        return sum(self.memory.values())


def estimate(config: Config) -> list[Estimate]:
    """The stages `classify` (one of its classifiers) and `train`. Raises ConfigError where the classes are unknown."""
    hardware, classes, images = config.hardware, class_names(config), train_images(config)
    kept = images if images is None else images - round(config.train.holdout * images)
    head = f" {config.train.head}" if config.train.model == "deeplab" else ""
    network = f"{config.train.model}{head}, {config.train.backbone.name}"
    return [
        _stage(
            classifier_stage(config.classify, classes), f"classifier, {config.classify.backbone.name}", hardware, images
        ),
        _stage(segmenter_stage(config.train, classes), network, hardware, kept),
    ]


def class_names(config: Config) -> list[str]:
    """All classes, background first, from the shards if there are any; for COCO without them, as many names."""
    folder, data = images_dir(config, "train"), config.data
    if (folder / INDEX).is_file():
        return load_index(folder, "images").classes
    if data.classes is not None:
        return ["background", *data.classes]
    known = {"voc": VOC_CLASSES, "shapes": SHAPES_CLASSES, "coco": [f"class {i}" for i in range(COCO_CLASSES)]}
    if data.dataset not in known:
        raise ConfigError(
            f"estimate: the classes are not known: data.classes is not set, {folder} holds no shards; set "
            "data.classes or run prepare first"
        )
    return known[data.dataset]


def train_images(config: Config) -> int | None:
    """Images of the train split: from the shards, else of a known data set."""
    folder = images_dir(config, "train")
    if (folder / INDEX).is_file():
        return len(load_index(folder, "images").all())
    if config.data.dataset == "shapes":
        return config.data.shapes.train
    return KNOWN_IMAGES.get((config.data.dataset, config.data.train_split))


def _stage(stage: Stage, network: str, hardware: HardwareSection, images: int | None) -> Estimate:
    card, batch = CARDS.get(hardware.card or ""), stage.optim.global_batch
    if batch < hardware.cards:
        raise ConfigError(
            f"estimate: {stage.name}.optim.global_batch is {batch}, hardware.cards {hardware.cards}; allowed: at most "
            f"{batch} cards"
        )
    share = share_batch(batch, hardware.micro_batch, 0, hardware.cards)
    micro = -(-batch // (share.world * share.accumulation))  # of the largest slice
    cost = _cost(stage, hardware, micro)
    known = {micro: _total(cost, hardware)}
    executed = cost.flops * batch
    plain = step_cost(stage, _way(stage, hardware, 1, False)).flops * batch if hardware.activation_checkpointing else 0
    steps = _steps(stage, images)
    return Estimate(
        stage.name, network, cost.trained, cost.frozen, batch, share.world, micro, share.accumulation,
        memory=memory_of(cost, hardware),
        largest_micro_batch=largest_micro_batch(stage, hardware, card, known) if card else None,
        images=images,
        steps_per_epoch=images / batch if images else None,
        steps=steps,
        flops=plain or executed,
        flops_recomputed=executed,
        hours=_hours(executed, steps, hardware, card) if card and steps else None,
    )  # fmt: skip


def _way(stage: Stage, hardware: HardwareSection, micro: int, recomputes: bool) -> Way:
    cuda = hardware.card is not None
    accumulates = micro * hardware.cards < stage.optim.global_batch
    return Way(micro, hardware.mixed_precision, cuda, accumulates, recomputes)


def _cost(stage: Stage, hardware: HardwareSection, micro: int) -> StepCost:
    return step_cost(stage, _way(stage, hardware, micro, hardware.activation_checkpointing))


def memory_of(cost: StepCost, hardware: HardwareSection) -> dict[str, int]:
    """Bytes per rank by kind. DDP keeps every gradient once more in its buckets; ZeRO's partitions are not counted."""
    memory = {kind: cost.peak.get(kind, 0) for kind in MEMORY}
    memory["buckets"] = cost.gradients if hardware.cards > 1 else 0
    if hardware.card:
        memory["allowance"] = int(CONTEXT_GIB * GIB + FRAGMENTS * sum(memory.values()))
    return memory


def _total(cost: StepCost, hardware: HardwareSection) -> int:
    return sum(memory_of(cost, hardware).values())


def largest_micro_batch(stage: Stage, hardware: HardwareSection, card: Card, totals: dict[int, int]) -> int:
    """The largest micro-batch, of at most a rank's share of the global batch, that fits; 0 if one image does not.

    totals: what is known already, by micro-batch: one. Tried: the share, then what a straight line through that and
    the one known, or one image, says, then its neighbours.
    """
    share, usable = -(-stage.optim.global_batch // hardware.cards), USABLE * card.memory * GIB

    def fits(micro: int) -> bool:
        if micro not in totals:
            totals[micro] = _total(_cost(stage, hardware, micro), hardware)
        return totals[micro] <= usable

    known = max(totals, default=1)
    if fits(share):
        return share
    small = known if known < share and fits(known) else 1
    if not fits(small):
        return 0
    slope = (totals[share] - totals[small]) / (share - small)
    largest = min(share - 1, small + int((usable - totals[small]) / slope))
    while not fits(largest):
        largest -= 1
    while largest + 1 < share and fits(largest + 1):
        largest += 1
    return largest


def _steps(stage: Stage, images: int | None) -> int | None:
    duration = stage.optim.duration
    if images is None:
        return None if "epoch" in duration else duration_to_steps(duration, 1, stage.optim.global_batch)
    return duration_to_steps(duration, images, stage.optim.global_batch)


def _hours(flops: int, steps: int, hardware: HardwareSection, card: Card) -> tuple[float, float]:
    seconds = flops * steps / hardware.cards / (card.rates[computes_in(hardware)] * 1e12)
    return seconds / max(UTILISATION) / 3600, seconds / min(UTILISATION) / 3600
