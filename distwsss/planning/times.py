"""The time of every stage by rules: what a configuration asks for, of this data, on this machine. Called by
`planning.plan`.

No network is built, so that it answers at once; within a factor of two where the backbone stands in the table. A time
measured by an earlier stage of the same run corrects those that follow (`planning.plan`).
"""

from __future__ import annotations

from collections.abc import Callable

from distwsss.config import Config
from distwsss.config.networks import BackboneSection
from distwsss.config.section import duration_to_steps
from distwsss.config.stages import TrainSection
from distwsss.config.training import AugmentSection, OptimSection
from distwsss.planning.facts import DataFacts, MachineFacts
from distwsss.seeds.progress import crf_seconds
from distwsss.train.estimate.cards import CARDS, computes_in

# --- what was measured, and on what; lite, lite_full, PICTURE and START were then fitted to one idle run of 40
# photographs (benchmarks/README.md): how far they are right for other sets is not known ---

# CPU seconds of one core (x86 server of 2026, two cores, float32, channels-last) per megapixel that goes forward, and
# per megapixel of crop of a training step; lite: 4 crops of 320 pixels at stride 16, tiny: 16 of 96
FORWARD = {"tiny": 0.13, "lite": 0.6, "lite_full": 0.72}
TRAINING = {"tiny": 0.7, "lite": 2.7, "lite_full": 2.7}
# GFLOP (a multiplication and an addition are two) of a forward per megapixel. Counted by torch: tiny, lite, lite_full,
# resnet18 and resnet50 at 16; reckoned from these: the other strides, resnet101; resnet38 from its parameters;
# SegFormer's and Mask2Former's whole networks about as their papers have them
GFLOP: dict[str, dict[int, float]] = {
    "tiny": {8: 7}, "lite": {8: 94, 16: 27, 32: 15}, "lite_full": {8: 100, 16: 30, 32: 17},
    "resnet18": {8: 320, 16: 121, 32: 72}, "resnet50": {8: 823, 16: 247, 32: 164},
    "resnet101": {8: 1414, 16: 408, 32: 312}, "resnet101_caffe": {8: 1414}, "resnet38": {8: 3500},
    "mit_b0": {16: 64}, "mit_b1": {16: 121}, "mit_b2": {16: 476}, "mit_b3": {16: 603}, "mit_b4": {16: 730},
    "mit_b5": {16: 894}, "swin_tiny": {16: 565}, "swin_small": {16: 748}, "swin_base": {16: 1089},
    "swin_large": {16: 3075},
}  # fmt: skip
OTHER = "resnet50"  # stands for a backbone that is not in the table
# of one core, of plain convolutions: the ResNets at strides 8 and 16 reach 89 to 101 (2 or 4 crops of 320), resnet38
# 101, SegFormer 50 to 70; lite's depthwise ones 45, which is why it is in the tables above
CORE_GFLOPS = 90.0
USED = 0.25  # share of a card's peak rate that such networks reach: assumed, not measured here
UNKNOWN_CARD = 20_000.0  # GFLOP/s at its peak of a card that is in no table
TRAIN_FACTOR = 3.0  # a backward costs two forwards
# guesses from here on, but for PICTURE and START (DECODE: 0.005 measured)
MORE_CORES = 0.85  # of a core's work, that each further one adds to a network's
DECODE, ENCODE = 0.01, 0.05  # CPU seconds per megapixel of a JPEG (decode; encode and shrink)
AUGMENT = 0.08  # CPU seconds per megapixel of crop: decode, scale, colours
EVALUATE = 1.0  # CPU seconds per megapixel and way (single, multi): upsampling to full size, argmax, matrices
SALIENCY = 0.4  # CPU seconds of u2netp for a photograph, whatever its size (0.3 to 0.5 measured); of a folder's, little
COMPARE = 0.05  # CPU seconds per megapixel and seed of `stats`
PICTURE = 0.1  # seconds of one photograph's row in the report
START = {
    "prepare": 3.0, "saliency": 1.0, "classify": 3.0, "seeds": 10.0, "stats": 0.5, "train": 3.0, "evaluate": 2.0,
    "report": 1.0,
}  # fmt: skip


def stage_times(config: Config, data: DataFacts, machine: MachineFacts) -> dict[str, float]:
    """Stage -> seconds, as long as nothing of it is done."""
    names = [name for name in RULES if name != "saliency" or config.saliency.name is not None]
    return {name: START[name] + RULES[name](config, data, machine) for name in names}


def stored_pixels(config: Config, data: DataFacts) -> float:
    """Megapixels of the middle photograph in the shards: `prepare.longest_side` bounds them."""
    side = config.prepare.longest_side
    return data.pixels / 1e6 * (min(1.0, side / data.longest) ** 2 if side else 1.0)


def _gflop(section: BackboneSection, stride: int | None = None) -> float:
    """Of a forward, per megapixel, at the stride asked for or the nearest one that is known."""
    known = GFLOP.get(section.name) or GFLOP[OTHER]
    wanted = stride or section.output_stride
    nearest = min(known, key=lambda each: abs(each - wanted))
    return known[nearest]


def _rate(config: Config, machine: MachineFacts) -> float | None:
    """GFLOP/s that a network gets of one GPU; None without any."""
    if not machine.gpus or config.hardware.device == "cpu":
        return None
    name = machine.gpu.lower().replace(" ", "")
    card = next((card for key, card in CARDS.items() if key in name), None)
    return USED * (card.rates[computes_in(config.hardware)] * 1000 if card else UNKNOWN_CARD)


def forward_seconds(
    config: Config, machine: MachineFacts, section: BackboneSection, stride: int | None = None
) -> float:
    """Of one megapixel, on one core or one GPU."""
    rate = _rate(config, machine)
    gflop = _gflop(section, stride)
    if rate is None and section.name in FORWARD:
        return FORWARD[section.name] * gflop / _gflop(section, 8 if section.name == "tiny" else 16)
    return gflop / (rate or CORE_GFLOPS)


def _training(
    config: Config, data: DataFacts, machine: MachineFacts, section: BackboneSection,
    optim: OptimSection, augment: AugmentSection, share: float = 1.0,
) -> float:  # fmt: skip
    """Seconds of one training: its crops through the network, or through the loader where that is slower."""
    images = round(data.photographs * share)
    steps = duration_to_steps(optim.duration, max(1, images), optim.global_batch)
    megapixels = steps * optim.global_batch * augment.crop**2 / 1e6
    forward = forward_seconds(config, machine, section)
    if _rate(config, machine) is not None:
        loading = (AUGMENT + DECODE * stored_pixels(config, data) * 1e6 / augment.crop**2) / _loaders(config, machine)
        return megapixels * max(TRAIN_FACTOR * forward, loading)
    factor = TRAINING[section.name] / FORWARD[section.name] if section.name in TRAINING else TRAIN_FACTOR
    return megapixels * (factor * forward + AUGMENT) / cores_worth(machine.cores)


def _loaders(config: Config, machine: MachineFacts) -> int:
    return max(1, min(config.hardware.loader_workers, machine.cores))


def cores_worth(cores: int) -> float:
    """How many times one core a network's operations run on all of them."""
    return 1.0 + MORE_CORES * (cores - 1)


def _processes(config: Config, machine: MachineFacts, pieces: int) -> int:
    return max(1, min(config.hardware.workers, machine.cores, pieces))


def _prepare(config: Config, data: DataFacts, machine: MachineFacts) -> float:
    images, megapixels = data.photographs + data.scored, data.pixels / 1e6
    shrunk = ENCODE if stored_pixels(config, data) < megapixels else 0.0
    return images * megapixels * (3 * DECODE + shrunk) / _processes(config, machine, images)


def _saliency(config: Config, data: DataFacts, machine: MachineFacts) -> float:
    """By a network; a folder's maps are decoded twice: checked, then packed."""
    each = SALIENCY if config.saliency.model else (2 * DECODE + ENCODE) * data.pixels / 1e6
    shards = -(-data.photographs // config.prepare.shard_size)
    return data.photographs * each / _processes(config, machine, shards)


def _classify(config: Config, data: DataFacts, machine: MachineFacts) -> float:
    section = config.classify
    one = _training(config, data, machine, section.backbone, section.optim, section.augment)
    return len(section.dropouts) * (START["classify"] + one)


def _seeds(config: Config, data: DataFacts, machine: MachineFacts) -> float:
    section, megapixels = config.resolved_seeds(), stored_pixels(config, data)
    base = data.pixels / 1e6 * (section.base_size / data.longest) ** 2 if section.base_size else megapixels
    views = sum((scale * each) ** 2 for scale in section.scales for each in section.cam_scales)
    seeds, shards = len(config.seed_names()), -(-data.photographs // config.prepare.shard_size)
    # 2: the flip; a CAM worker has `threads` threads
    forward = forward_seconds(config, machine, config.classify.backbone, section.output_stride)
    cams = 2 * base * views * len(config.classify.dropouts) * forward
    crf = crf_seconds(megapixels, seeds + 1, data.tags_each) * config.seeds.crf.iterations / 10
    processes = _processes(config, machine, shards)
    if _rate(config, machine) is None:
        return data.photographs * (cams + crf) / processes
    return data.photographs * (cams + crf / processes)


def _stats(config: Config, data: DataFacts, machine: MachineFacts) -> float:
    return data.masks * data.pixels / 1e6 * COMPARE * (len(config.map_names()) + 2)


def _train(config: Config, data: DataFacts, machine: MachineFacts) -> float:
    section: TrainSection = config.train
    share = 1 - section.holdout if data.masks else 1.0
    return _training(config, data, machine, section.backbone, section.optim, section.augment, share)


def _evaluate(config: Config, data: DataFacts, machine: MachineFacts) -> float:
    section, megapixels = config.evaluate, stored_pixels(config, data)
    views = 1 + 2 * sum(scale**2 for scale in section.scales)
    forward = forward_seconds(config, machine, config.train.backbone) * views
    forward /= 1.0 if _rate(config, machine) is not None else cores_worth(machine.cores)
    # two of them, over the few classes that have any probability
    crf = 2 * crf_seconds(1.0, 1, 4.0) / _processes(config, machine, data.scored or 1) if section.crf else 0.0
    return data.scored * megapixels * (forward + 2 * EVALUATE / cores_worth(machine.cores) + crf)


def _report(config: Config, data: DataFacts, machine: MachineFacts) -> float:
    return PICTURE * 1.5 * config.report.images


RULES: dict[str, Callable[[Config, DataFacts, MachineFacts], float]] = {
    "prepare": _prepare,
    "saliency": _saliency,
    "classify": _classify,
    "seeds": _seeds,
    "stats": _stats,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
}
