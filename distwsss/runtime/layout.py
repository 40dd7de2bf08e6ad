"""Where a run's files and shards lie: the only place that knows. Called by every stage.

    runs/NAME/ (`paths.run`)          config.yaml command.txt env.json exit.json times.json lock
      prepare/                        source.json, and quarantine.jsonl: images left out
      classify/                       doubtful_tags.jsonl: tags that the classifiers contradict
      classify/P/ (`paths.classifiers`), train/
                                      config.yaml metrics.jsonl done.json checkpoints/{step-NNNNNNNN/, LAST, BEST};
                                      of classifiers scores.npy average_precision.json;
                                      while one is remade, old/: the one before;
                                      of ranks that fail stacks-rankR.txt error-rankR.json nccl-rank-R
      seeds/                          quality.json quality.counts.npz labels.json selected.json quarantine.jsonl
                                      ray.json; sweep/{sweep.json sweep.csv sweep.png sweep.counts.npz}, and what a
                                      sweep need not compute again: sweep/{cams,counts}/DIGEST/
      evaluate/                       val.json val.counts.npz train.json held_out.json ...;
                                      images-SPLIT-DIGEST/ of other data
      report/index.html
    shards/NAME/ (`paths.shards`)     images/train/ images/val/ saliency/MODEL/ seeds/ pseudo/VOTE/

Relative paths of the configuration are relative to the folder where the command was started; what is returned is
absolute, so that a message shows where was looked. A *role* (train, val) is what a split is for; its *split* is the
name of its list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

from distwsss.config import Config
from distwsss.config.stages import SELECTED
from distwsss.errors import ConfigError, report_problems
from distwsss.runtime.artifacts import fingerprint
from distwsss.runtime.storage import Folder, Scratch, folder_at

Role: TypeAlias = Literal["train", "val"]
ROLES: tuple[Role, ...] = ("train", "val")
LAST, BEST = "LAST", "BEST"
HELD_OUT = "held_out"  # the name of an evaluation on train ids that were not trained on
# what a run writes into its folder
RUN_CONTENTS = (
    *("config.yaml", "command.txt", "env.json", "exit.json", "lock"),
    *("prepare", "classify", "seeds", "train", "evaluate", "report"),
)
CHECKPOINTS, DONE, METRICS = "checkpoints", "done.json", "metrics.jsonl"


def run_dir(config: Config) -> Path:
    return Path(config.paths.run or f"runs/{config.name}").absolute()


def describing_files(config: Config) -> dict[str, Path]:
    """What describes a run, by what it is: configuration, command, environment, exit, lock."""
    names = {"configuration": "config.yaml", "command": "command.txt", "environment": "env.json", "exit": "exit.json"}
    return {what: run_dir(config) / name for what, name in {**names, "lock": "lock"}.items()}


def times_file(config: Config) -> Path:
    """How long the finished stages took."""
    return run_dir(config) / "times.json"


def source_file(config: Config) -> Path:
    """From which data root the image shards were made."""
    return run_dir(config) / "prepare" / "source.json"


def quarantine_file(config: Config, stage: Literal["prepare", "seeds"]) -> Path:
    """The images that a stage left out, a line each."""
    return run_dir(config) / stage / "quarantine.jsonl"


def classifier_dir(config: Config, dropout: float) -> Path:
    """The training of the classifier of dropout probability `dropout`."""
    folder = Path(config.paths.classifiers).absolute() if config.paths.classifiers else run_dir(config) / "classify"
    return folder / f"{dropout:.2f}"


def scores_file(training: Path) -> Path:
    """A classifier's scores of all train photographs."""
    return training / "scores.npy"


def average_precision_file(training: Path) -> Path:
    """How good a classifier is on the photographs held out of its training."""
    return training / "average_precision.json"


def doubtful_tags_file(config: Config) -> Path:
    """The tags that the run's classifiers contradict."""
    return run_dir(config) / "classify" / "doubtful_tags.jsonl"


def segmenter_dir(config: Config) -> Path:
    """The training of the segmenter."""
    return run_dir(config) / "train"


def checkpoints_dir(training: Path) -> Path:
    """The checkpoints of a training (`classifier_dir`, `segmenter_dir`), with LAST and BEST beside them."""
    return training / CHECKPOINTS


def pointer(training: Path, name: str = LAST) -> Path:
    return checkpoints_dir(training) / name


def pointers_below(folder: Path) -> list[Path]:
    """Where the LAST of a folder of checkpoints, of a training or of a run's segmenter would be."""
    return [folder / LAST, pointer(folder), pointer(folder / "train")]


def done_file(training: Path) -> Path:
    """Written when a training is complete."""
    return training / DONE


def retired_dir(training: Path) -> Path:
    """The training that was here before, until the one that replaces it is complete (`--remake`)."""
    return training / "old"


def metrics_file(training: Path) -> Path:
    return training / METRICS


def training_config_file(training: Path) -> Path:
    """The configuration with which a training was started last."""
    return training / "config.yaml"


def training_lock(training: Path) -> Path:
    """Held by rank 0 while a classifier is trained."""
    return training / "lock"


def checkpoint_dir(training: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return checkpoints_dir(training) / checkpoint_name(step)


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def stacks_file(training: Path, rank: int) -> Path:
    """Where a rank was when a step did not end."""
    return training / f"stacks-rank{rank}.txt"


def error_file(training: Path, rank: int) -> Path:
    """Why a rank ended."""
    return training / f"error-rank{rank}.json"


def nccl_prefix(training: Path) -> str:
    """What NCCL's dumps are called, up to the rank's number."""
    return str(training.absolute() / "nccl-rank-")


def quality_file(config: Config) -> Path:
    """How good seeds and vote are, by the train masks."""
    return run_dir(config) / "seeds" / "quality.json"


def labels_file(config: Config) -> Path:
    """Which tagged classes got no pixel in the pseudo-labels."""
    return run_dir(config) / "seeds" / "labels.json"


def selected_file(config: Config) -> Path:
    """Which seeds `vote_on: selected` took, and by which masks."""
    return run_dir(config) / "seeds" / "selected.json"


def ray_file(config: Config) -> Path:
    """Which nodes of a Ray cluster made the seeds."""
    return run_dir(config) / "seeds" / "ray.json"


def sweep_dir(config: Config) -> Path:
    """What `seeds sweep` keeps and, by default, writes."""
    return run_dir(config) / "seeds" / "sweep"


def sweep_cams_dir(config: Config, digest: str) -> Path:
    """CAMs of the classifiers and keys that `digest` stands for, a file for each image."""
    return sweep_dir(config) / "cams" / digest[:16]


def sweep_counts_file(config: Config, digest: str, shard: int) -> Path:
    """Counts of a shard's images under the setting that `digest` stands for."""
    return sweep_dir(config) / "counts" / digest[:16] / f"{shard:05d}.npz"


def evaluate_dir(config: Config) -> Path:
    return run_dir(config) / "evaluate"


def evaluation_file(config: Config, name: str) -> Path:
    """The scores of a checkpoint on a split: `val`, `train`, `held_out`, or a name that tells data and checkpoint."""
    return evaluate_dir(config) / f"{name}.json"


def counts_file(record: Path) -> Path:
    """Counts of each image beside a record of scores."""
    return record.with_suffix(".counts.npz")


def other_images_dir(config: Config, split: str, digest: str) -> Path:
    """Image shards of data other than the run's own; `split` as a shard's key."""
    return evaluate_dir(config) / f"images-{split}-{digest[:8]}"


def report_file(config: Config) -> Path:
    return run_dir(config) / "report" / "index.html"


def shards_place(config: Config) -> str:
    """Where all shards of a run are: a folder, as it was given, or a URL."""
    return config.paths.shards or f"shards/{config.name}"


def shard_dir(config: Config) -> Folder:
    """All shards of a run, on a file system or an object store."""
    hardware = config.hardware
    scratch = Scratch(Path(hardware.scratch).absolute(), int(hardware.scratch_gb * 1e9)) if hardware.scratch else None
    folder = folder_at(shards_place(config), scratch)
    return folder.absolute() if isinstance(folder, Path) else folder


def images_dir(config: Config, role: Role) -> Folder:
    """Image shards of the train or the val split."""
    return shard_dir(config) / "images" / role


def saliency_dir(config: Config) -> Folder:
    """Saliency maps of the train split, of the network or folder that the configuration names."""
    name = config.saliency.name
    if name is None:
        raise ConfigError(
            "`saliency`: found neither `model` nor `folder`; allowed: one of them, such as saliency.model=u2netp "
            "(docs/saliency.md)"
        )
    return shard_dir(config) / "saliency" / name


def seeds_dir(config: Config) -> Folder:
    return shard_dir(config) / "seeds"


def pseudo_dir(config: Config) -> Folder:
    """Pseudo-label shards of the configuration's vote; those of other votes over the same seeds lie beside it."""
    keys = config.vote_keys()
    voters = "selected" if keys["vote_on"] == SELECTED else f"{len(keys['vote_on'])}seeds"
    name = f"{keys['label']}-{voters}-t{keys['threshold'] or 'all'}-{fingerprint(keys)[:8]}"
    return shard_dir(config) / "pseudo" / name


def ablation_dir(name: str, output: Path | None = None) -> Path:
    """Everything of an ablation but shards and classifiers: table.csv, table.tex, table.json, and of every variant
    VARIANT/SEED/ (`paths.run` of that run), with SEED.yaml, SEED.log and SEED.done.json beside it."""
    return (output or Path("runs") / name).absolute()


def ablation_files(folder: Path) -> dict[str, Path]:
    """Of `ablation_dir`, by what they are."""
    names = {"lock": "ablation.lock", "scored": "scored.json"}
    tables = {suffix: f"table.{suffix}" for suffix in ("csv", "tex", "json")}
    return {what: folder / name for what, name in {**names, **tables}.items()}


def beside_run(run: Path) -> dict[str, Path]:
    """Of one run of an ablation, by what they are: its configuration, log, and what it was complete for."""
    suffixes = {"configuration": ".yaml", "log": ".log", "done": ".done.json"}
    return {what: run.with_name(run.name + suffix) for what, suffix in suffixes.items()}


def check_absolute_roots(config: Config) -> None:
    """For a Ray cluster, where a relative folder would lie in some process's own working folder. Raises ConfigError."""
    given: dict[str, str | None] = {
        "paths.run": config.paths.run or f"runs/{config.name}",
        "paths.classifiers": config.paths.classifiers,
        "paths.shards": shards_place(config),
        "classify.backbone.weights": config.classify.backbone.weights,
    }
    found: dict[str, Any] = {key: folder_at(value) for key, value in given.items() if value}
    problems = [
        f"`{key}`: found {folder}; allowed: an absolute path on storage that all nodes share"
        + (", or a URL such as s3://BUCKET/PREFIX" if key == "paths.shards" else "")
        for key, folder in found.items()
        if isinstance(folder, Path) and not folder.is_absolute()
    ]
    if problems:
        raise ConfigError(report_problems("work on the Ray cluster at RAY_ADDRESS", problems))
