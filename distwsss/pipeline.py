"""The stages in order, and what else one does with a configuration: what `distwsss VERB` and Python users call.

Every function takes the configuration and plain options. Stages are imported when they run, so that importing this
module, like `--help`, loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distwsss.config import Config
from distwsss.config.hints import mistyped
from distwsss.config.load import config_without_file
from distwsss.errors import ConfigError, ShardError, counted, report_problems
from distwsss.runtime import ranks
from distwsss.runtime.layout import images_dir, shard_dir
from distwsss.runtime.progress import log, say, setup_logging
from distwsss.runtime.run_folder import open_run
from distwsss.runtime.storage import folder_at

if TYPE_CHECKING:
    from distwsss.planning.plan import Plan
    from distwsss.seeds.sweep import SweepOptions

RESUME = ("auto", "must", "never")


@dataclass(frozen=True)
class Options:
    """What the stages of a run take beside the configuration, as the verbs' options of the same names.

    Raises ConfigError for a `resume` that is no folder, but almost one of its words.
    """

    resume: str = "auto"
    on_bad: str = "fail"
    init_from: Path | None = None
    classifiers_from: Path | None = None  # a folder of earlier classifiers, P below it, whose weights to go on from
    remake: bool = False
    warm_start: bool = False  # what is made anew of classifiers goes on from the weights of those before

    def __post_init__(self) -> None:
        if self.warm_start and not self.remake:
            raise ConfigError("--warm-start: found without --remake; allowed: with it, as it is for what is made anew")
        meant = None if Path(self.resume).exists() else mistyped(self.resume, RESUME)
        if meant and self.resume not in RESUME:
            raise ConfigError(
                f"--resume {self.resume}: found no such folder, nor is it one of {', '.join(RESUME)}; did you mean "
                f"`{meant}`?"
            )


def prepare(config: Config, options: Options = Options()) -> None:
    """The data set, checked, as image shards."""
    from distwsss.data.prepare import prepare

    prepare(config, options.on_bad, options.remake)


def saliency(config: Config, options: Options = Options()) -> None:
    """Saliency maps of the train photographs, by the network or from the folder that the configuration names."""
    from distwsss.saliency.maps import make_saliency

    make_saliency(config, options.remake)


def classify(config: Config, options: Options = Options()) -> None:
    """One classifier per dropout probability."""
    from distwsss.train.stages import classify

    classify(config, options.resume, options.classifiers_from, options.remake, options.warm_start)


def seeds(config: Config, options: Options = Options()) -> None:
    """CAMs, dense CRF and vote: seed and pseudo-label shards."""
    from distwsss.seeds.generate import run_seeds

    run_seeds(config, options.on_bad, options.remake)


def sweep_seeds(config: Config, options: SweepOptions | None = None) -> dict[str, Any]:
    """How good the labels would be under other values of alpha, CRF, label rule and t, by train masks."""
    from distwsss.seeds.sweep import SweepOptions, sweep_seeds

    return sweep_seeds(config, options or SweepOptions())


def stats(config: Config, _: Options = Options()) -> None:
    """How good seeds and vote are, where the train split has masks."""
    from distwsss.evaluate.stats import stats

    stats(config)


def train(config: Config, options: Options = Options()) -> None:
    """The segmenter, on the pseudo-labels."""
    from distwsss.train.stages import train

    train(config, options.resume, options.init_from, options.remake)


def evaluate(
    config: Config,
    split: str | None = None,
    checkpoint: Path | None = None,
    remake: bool = False,
    held_out: bool = False,
) -> dict[str, Any] | None:
    """mIoU of the segmenter on a split, `data.val_split` unless named, or on the train ids held out from it."""
    from distwsss.evaluate.evaluate import evaluate
    from distwsss.train.engine.accelerate import end_accelerator, make_accelerator

    accelerator = make_accelerator(config.hardware)  # opens the process group under torchrun
    try:
        return evaluate(config, split, checkpoint, remake, held_out)
    finally:
        end_accelerator(accelerator)


def report(config: Config, _: Options = Options()) -> Path:
    """One self-contained HTML page of everything the run has made; returns its path."""
    from distwsss.report.html import write_report

    path = write_report(config)
    say(f"Report with pictures: {path}")
    return path


def _evaluate_in_run(config: Config, options: Options) -> None:
    if images_dir(config, "val").is_dir():
        evaluate(config, remake=options.remake)
    else:
        log.info("evaluate: the data set has no split for it, skipped")


# in the order in which each reads what those before it wrote
STAGES: dict[str, Callable[[Config, Options], object]] = {
    "prepare": prepare,
    "saliency": saliency,
    "classify": classify,
    "seeds": seeds,
    "stats": stats,
    "train": train,
    "evaluate": _evaluate_in_run,
    "report": report,
}


def stages_of(config: Config) -> list[str]:
    """What `run` does of STAGES for this configuration: no saliency maps where it asks for none."""
    return [name for name in STAGES if name != "saliency" or config.saliency.name is not None]


def run(config: Config, stages: Sequence[str] | None = None) -> None:
    """Every stage in turn, or those named, from image-level labels to mIoU and pictures; what is complete is skipped.

    Locks the run folder and describes there what is run, as `distwsss run` does. Raises our errors (`distwsss.errors`),
    ConfigError for a stage that does not exist.
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f"run: found a {type(config).__name__}; allowed: the configuration that `load_config` returns"
        )
    if not log.hasHandlers():
        setup_logging()
    with open_run(config, None):
        run_stages(config, Options(), stages)


def run_stages(config: Config, options: Options, stages: Sequence[str] | None = None) -> None:
    """`run` in a run folder that is open already."""
    ranks.check_single_process("run")
    unknown = [stages] if isinstance(stages, str) else [name for name in stages or () if name not in STAGES]
    if unknown:
        raise ConfigError(f"stages: found {', '.join(unknown)}; allowed: a list of {', '.join(STAGES)}")
    wanted = stages_of(config) if stages is None else stages
    chosen = [name for name in STAGES if name in wanted]
    plan = _checked_plan(config, chosen, _said_anew(config, options, chosen), ranks.is_launched())
    log.info("\n".join(plan.lines()))
    for name in chosen:
        log.info(f"== {name}")
        with plan.stage(name):
            STAGES[name](config, options)


def _checked_plan(config: Config, stages: list[str], anew: Sequence[str] = (), launched: bool = True) -> Plan:
    """What there is to do and how long it takes, after a look at what it needs. Raises ConfigError for what misses.

    anew: stages whose results lie there and will be replaced; launched: whether a launcher starts their process.
    """
    from distwsss.planning.checks import check_run
    from distwsss.planning.plan import known_facts, make_plan, not_complete

    data = known_facts(config)
    check_run(config, not_complete(config, stages, anew), data, launched)
    return make_plan(config, stages, data, anew)


def validate_data(config: Config) -> None:
    """Lists the data, looks for what every stage needs and prints the plan of a run; writes nothing.

    Raises DataError for what the lists and tags have wrong, ConfigError for what is missing.
    """
    from distwsss.data.check import check_listings

    for line in check_listings(config):
        say(line)
    say("\n".join(_checked_plan(config, stages_of(config)).lines()))


def _said_anew(config: Config, options: Options, stages: Sequence[str]) -> list[str]:
    """The `stages` that `--remake` will make anew, after a line for each, and for each that it keeps."""
    from distwsss.planning.remake import KEPT, remake_lines

    lines = remake_lines(config, options.warm_start) if options.remake else {}
    for name in stages if options.remake else ():
        log.info(f"remake: {name}: {lines[name]}")
    return [name for name in stages if lines.get(name, KEPT) != KEPT]


def checkpoint_config(verb: str, profile: str | None, overrides: list[str]) -> Config:
    """The defaults and what is set by hand, for a checkpoint that is used without its run's configuration.

    `predict` needs no data set; `evaluate` is told which one by `--set data.dataset=...` and `data.root=...`.
    """
    return config_without_file(verb, {"dataset": "folder"} if verb == "predict" else {}, profile, overrides)


def new(folder: Path, output: Path | None) -> Path:
    """A configuration for the data set in `folder`, by stated rules; returns its path."""
    from distwsss.planning.new import new, problems_of

    path = new(folder, output)
    say(path.read_text(encoding="utf-8"))
    if problems := problems_of(path):
        log.warning(problems)
        say(f"Written to {path}. Next: correct these, then distwsss run --config {path}")
    else:
        say(f"Written to {path}. Next: distwsss run --config {path}")
    return path


def predict(
    config: Config, images: list[Path], output: Path, checkpoint: Path | None, multi_scale: bool, crf: bool
) -> None:
    """Pictures to palette PNGs and overlays."""
    from distwsss.evaluate.predict import predict
    from distwsss.inference.segmenter import open_segmenter

    paths = predict(open_segmenter(config, checkpoint), images, output, multi_scale, crf)
    say(f"{counted(len(paths), 'prediction')} in {output}")


def submit(config: Config, output: Path, split: str, checkpoint: Path | None, multi_scale: bool, crf: bool) -> None:
    """The archive of label maps for the evaluation server of PASCAL VOC 2012."""
    from distwsss.evaluate.submit import submit

    count = submit(config, output, split, checkpoint, multi_scale, crf)
    say(f"{count} label maps in {output}")


def estimate(config: Config, as_json: bool) -> None:
    """Parameters, memory, micro-batch, operations and time of training, without a GPU."""
    from distwsss.train.estimate import table
    from distwsss.train.estimate.estimate import estimate

    show = table.as_json if as_json else table.as_table
    say(show(estimate(config), config.hardware))


def verify(config: Config | None, path: str | None) -> None:
    """Shards compared with their indexes, byte for byte: those of a folder or URL, or of a configuration.

    Raises ShardError naming every damage.
    """
    from distwsss.data.shards.verify import verify

    if (config is None) == (path is None):
        found = "both PATH and --config" if path else "neither PATH nor --config"
        raise ConfigError(
            f"found {found}; allowed: one of them, a shard folder or a configuration whose shards to check"
        )
    folder = shard_dir(config) if config else folder_at(path or "")
    folder = folder.absolute() if isinstance(folder, Path) else folder
    problems = verify(folder)
    if problems:
        raise ShardError(report_problems(f"{folder}: damaged", problems))
    say(f"{folder}: every shard and index verifies")


def convert_weights(file: Path, output: Path, backbone: str | None) -> None:
    """A published file of weights as safetensors, under our names."""
    from distwsss.models.convert import convert_weights

    say(convert_weights(file, output, backbone))
