"""What the stages will need, looked for before the first one works: networks, weights, packages, device, disk, memory.
Called by `pipeline` before a run and by `config validate --data`.

Only stages that are not complete are asked for what they need. What cannot be known without the work itself (a damaged
photograph, weights of another network) is left to the stage.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from distwsss.config import Config
from distwsss.config.networks import BackboneSection
from distwsss.config.training import OptimSection
from distwsss.errors import ConfigError, DistwsssError, relative_to, report_problems
from distwsss.models.weights import saliency
from distwsss.models.weights.files import weights_file
from distwsss.models.weights.published import unobtainable
from distwsss.planning.facts import DataFacts, cores
from distwsss.planning.times import stored_pixels
from distwsss.runtime import onnx, ray_pool
from distwsss.runtime.device import pick_device
from distwsss.runtime.layout import run_dir, shard_dir
from distwsss.runtime.memory import available_memory
from distwsss.runtime.storage import Remote

JPEG_BYTES = 0.4  # of a photograph, per pixel: those of cameras and data sets have 0.2 to 0.5
MAP_BYTES = 24_000  # of one seed's palette PNG and its marginals
SALIENCY_BYTES = 20_000  # of a saliency map's PNG
PROCESS_GB = 0.6  # a worker process with torch, before it holds a photograph
CRF_BYTES = 30  # per pixel, seed and class: 12 megapixels took 7 GB with 8 seeds of two or three classes
FORWARD_BYTES = 280  # per pixel of a forward: `lite` at stride 16 (2 megapixels at scale 1.25 took 1.0 GB)
CLASS_BYTES, PREDICTED = 12, 5  # per pixel and class of the segmenter; the classes of an image that its CRF sees
PARAMETERS = {  # millions, of networks that are not built here only to count them
    "mit_b0": 4, "mit_b1": 14, "mit_b2": 25, "mit_b3": 45, "mit_b4": 61, "mit_b5": 82,
    "swin_tiny": 47, "swin_small": 69, "swin_base": 107, "swin_large": 216,
}  # fmt: skip


def check_run(config: Config, stages: Collection[str], data: DataFacts | None, launched: bool = True) -> None:
    """Raises ConfigError naming everything that `stages` will miss. data: None where it is not known yet; launched:
    whether a launcher starts their process (as far as `config validate` knows, one does)."""
    problems = list(dict.fromkeys(run_problems(config, stages, data, launched)))
    if problems:
        raise ConfigError(report_problems(f"{config.name}: looked at before any work", problems))


def run_problems(
    config: Config, stages: Collection[str], data: DataFacts | None, launched: bool = True
) -> Iterator[str]:
    """A text for each thing that one of `stages` will miss; arguments as of `check_run`."""
    yield from _packages(config, stages)
    yield from _raised(lambda: pick_device(config.hardware.device), not ray_pool.is_cluster())
    yield from _engine(config, stages, launched)
    sizes = {}
    for stage, section in (("classify", config.classify), ("train", config.train)):
        if stage in stages:
            faults, sizes[stage] = network(section.backbone)
            yield from (f"{stage}.{fault}" for fault in faults)
    if "saliency" in stages:
        yield from _saliency(config)
    if "train" in stages and config.train.weights:
        yield from _file("train.weights", config.train.weights)
    if data and "train" in stages and (fault := config.train.complements_fault(1 + len(data.classes))):
        yield f"train.{fault}"
    if data:
        yield from _disk(config, stages, data, sizes)
        yield from _memory(config, stages, data)


def _raised(function: Callable[[], object], wanted: bool = True) -> Iterator[str]:
    """The message of an error of ours that `function` raises."""
    try:
        if wanted:
            function()
    except DistwsssError as error:
        yield str(error)


def _packages(config: Config, stages: Collection[str]) -> Iterator[str]:
    hardware, trains = config.hardware, {"classify", "train"} & set(stages)
    uses_ray = hardware.executor == "ray" and {"classify", "seeds"} & set(stages)
    wanted = {
        "ray": ("hardware.executor: ray", uses_ray, "distwsss[ray]"),
        "deepspeed": ("hardware.deepspeed", hardware.deepspeed and trains, "distwsss[deepspeed]"),
        "tensorboard": ("hardware.trackers", "tensorboard" in hardware.trackers and trains, "tensorboard"),
        "wandb": ("hardware.trackers", "wandb" in hardware.trackers and trains, "wandb"),
        "onnxruntime": ("saliency.model", config.saliency.model and "saliency" in stages, onnx.EXTRA),
        "pycocotools": ("data.dataset: coco", config.data.dataset == "coco" and "prepare" in stages, "distwsss[coco]"),
    }
    for module, (key, needed, package) in wanted.items():
        if needed and importlib.util.find_spec(module) is None:
            yield f"`{key}`: needs {module}, which is not installed; run `pip install '{package}'`"


def _engine(config: Config, stages: Collection[str], launched: bool) -> Iterator[str]:
    """What training refuses: DeepSpeed without a launcher, BatchNorm over ranks where torch has none."""
    if config.hardware.deepspeed and {"classify", "train"} & set(stages) and not launched:
        yield (
            f"`hardware.deepspeed`: found {config.hardware.deepspeed}, which needs a launcher; allowed: null, or start "
            "`distwsss classify` and `train` with launchers/torchrun_local.sh (NPROC=1 for one GPU)"
        )
    for stage, section in (("classify", config.classify), ("train", config.train)):
        elsewhere = stage == "classify" and ray_pool.is_cluster()
        if stage in stages and section.backbone.norm == "sync" and not elsewhere and not _on_gpu(config):
            yield f"`{stage}.backbone.norm`: found sync, which needs a GPU; allowed here: frozen, local, group"


def _on_gpu(config: Config) -> bool:
    import torch

    return config.hardware.device != "cpu" and torch.cuda.is_available()


def network(section: BackboneSection) -> tuple[list[str], float]:
    """What is wrong with a backbone and its weights, each text a key below `classify.` or `train.`; and its
    parameters."""
    faults = [f"backbone: {problem}" for problem in missing_weights(section)]
    if section.name in PARAMETERS:
        return faults, PARAMETERS[section.name] * 1e6
    import torch

    from distwsss.models.backbones.build import Backbone

    try:
        with torch.device("meta"):  # shapes only: no memory, no time
            net = Backbone(section.model_copy(update={"pretrained": False, "weights": None}))
    except ConfigError as error:
        return [f"backbone: {error}"], 0.0  # of a network that there is not, no weights are looked for
    return faults, float(sum(parameter.numel() for parameter in net.parameters()))


def missing_weights(section: BackboneSection) -> Iterator[str]:
    """What is missing of the weights that a backbone starts from."""
    if section.weights:
        yield from _file("weights", section.weights)
    elif section.pretrained and (problem := unobtainable(section.name)):
        yield problem


def _saliency(config: Config) -> Iterator[str]:
    """What is missing of the network or folder that maps are to come from."""
    section = config.saliency
    if section.model is not None and (problem := saliency.unobtainable(section.model)):
        yield problem
    if section.folder is not None and not Path(section.folder).is_dir():
        yield f"saliency.folder: found no folder {Path(section.folder).absolute()}{relative_to(section.folder)}"


def _file(key: str, path: str) -> Iterator[str]:
    try:
        found = weights_file(path)
    except DistwsssError as error:
        yield f"{key}: {error}"
        return
    if not found.is_file():
        yield f"{key}: {found}: no such file; allowed: a file or folder of weights (docs/weights.md)"


def _disk(config: Config, stages: Collection[str], data: DataFacts, sizes: dict[str, float]) -> Iterator[str]:
    """Shards and checkpoints against what is free, folders of one disk together."""
    needed = {run_dir(config): _checkpoint_bytes(config, sizes)}
    shards = shard_dir(config)
    if not isinstance(shards, Remote):
        needed[shards] = _shard_bytes(config, stages, data)
    disks: dict[int, list[Path]] = {}
    for folder in needed:
        disks.setdefault(_existing(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        wanted, free = sum(needed[folder] for folder in folders), shutil.disk_usage(_existing(folders[0])).free
        if wanted > free:
            where = " and ".join(map(str, folders))
            yield f"disk: about {wanted / 1e9:.1f} GB go to {where}, {free / 1e9:.1f} GB are free; make room"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _shard_bytes(config: Config, stages: Collection[str], data: DataFacts) -> float:
    photograph = stored_pixels(config, data) * 1e6 * JPEG_BYTES
    images = (data.photographs + data.scored) * photograph if "prepare" in stages else 0.0
    maps = MAP_BYTES * (len(config.map_names()) + 2)
    cues = data.photographs * SALIENCY_BYTES if "saliency" in stages else 0.0
    return images + cues + (data.photographs * (photograph + maps) if "seeds" in stages else 0.0)


def _checkpoint_bytes(config: Config, sizes: dict[str, float]) -> float:
    """Of all trainings that are not complete: those kept and the one being written, the newest with optimizer state."""
    optims: dict[str, tuple[OptimSection, int]] = {
        "classify": (config.classify.optim, len(config.classify.dropouts)), "train": (config.train.optim, 1),
    }  # fmt: skip
    total = 0.0
    for stage, parameters in sizes.items():
        optim, trainings = optims[stage]
        states = 2 if optim.optimizer == "adamw" else 1
        total += trainings * 4 * parameters * (1 + optim.keep_last) * (1 + states)
    return total


def _memory(config: Config, stages: Collection[str], data: DataFacts) -> Iterator[str]:
    """The largest photograph in every process of `seeds`, and in those of `evaluate`, against what is free now."""
    free, pixels = available_memory(), _most_pixels(config, data)
    wanted = {
        "seeds": 0.0 if ray_pool.is_cluster() else _seeds_gb(config, data, pixels),
        "evaluate": _evaluate_gb(config, data, pixels) if data.scored else 0.0,
    }
    for stage, needed in wanted.items():
        if stage in stages and free is not None and needed > free:
            yield (
                f"memory: the largest photograph ({data.most_pixels / 1e6:.1f} megapixels) takes about {needed:.1f} GB "
                f"in the processes of `{stage}` together, {free:.1f} GB are free; allowed: fewer `hardware.workers`, "
                "or smaller photographs (`prepare.longest_side`)"
            )


def _most_pixels(config: Config, data: DataFacts) -> float:
    """Pixels of the largest photograph in the shards."""
    side = config.prepare.longest_side
    shrunk = min(1.0, side / data.longest) ** 2 if side else 1.0
    return min(data.most_pixels * shrunk, side * side) if side else float(data.most_pixels)


def _seeds_gb(config: Config, data: DataFacts, pixels: float) -> float:
    """A CRF of all seeds and classes in every worker at once."""
    shards = -(-data.photographs // config.prepare.shard_size)
    workers = max(1, min(config.hardware.workers, cores(), shards))
    classes = 1 + max(1.0, data.tags_each)
    return workers * (PROCESS_GB + pixels * CRF_BYTES * (len(config.seed_names()) + 1) * classes / 1e9)


def _evaluate_gb(config: Config, data: DataFacts, pixels: float) -> float:
    """Probabilities of all classes, a forward at the largest scale (of a window, where it slides), and the CRFs."""
    section = config.evaluate
    scaled = pixels * max(section.scales) ** 2
    seen = min(scaled, section.crop_size**2) if section.crop_size else scaled
    forward = 0.0 if _on_gpu(config) else FORWARD_BYTES * seen
    crfs = max(1, config.hardware.workers) * CRF_BYTES * PREDICTED if section.crf else 0
    return PROCESS_GB + (forward + pixels * (CLASS_BYTES * (1 + len(data.classes)) + crfs)) / 1e9
