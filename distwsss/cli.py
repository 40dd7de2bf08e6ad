"""Verbs -> functions of `pipeline`, and the configuration shown. `distwsss VERB --help` teaches each.

Exit codes: 0 ok, 1 the run failed, 2 usage or configuration, 3 data or shards, 4 checkpoint, 130 interrupted (after
saving).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import distwsss
from distwsss import pipeline
from distwsss.config import Config, load_config
from distwsss.config.describe import describe
from distwsss.config.load import shown_yaml
from distwsss.errors import ConfigError, DistwsssError
from distwsss.runtime import ranks
from distwsss.runtime.progress import log, say, setup_logging
from distwsss.runtime.run_folder import open_run
from distwsss.runtime.stop import sigterm_interrupts

Arguments = argparse.Namespace


@dataclass(frozen=True)
class Option:
    """What `add_argument` is called with."""

    flags: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Verb:
    """One verb.

    function: called with the configuration (None where there is none) and the arguments. config: whether --config must
    be given, may be, or may be where there is a --checkpoint. single_process: refused under torchrun. opens_run: locks
    the run folder; `describe` also writes there what was run, which `lock` leaves, as it changes no result. locks: the
    verb's actions that only lock.
    """

    text: str
    function: Callable[[Any, Arguments], object]
    options: tuple[Option, ...] = ()
    config: Literal["required", "optional", "checkpoint", "none"] = "required"
    single_process: bool = True
    opens_run: Literal["describe", "lock"] | None = "describe"
    locks: tuple[str, ...] = ()


def _option(*flags: str, **settings: Any) -> Option:
    return Option(flags, settings)


RESUME = _option(
    "--resume",
    default="auto",
    metavar="auto|must|never|PATH",
    help="auto: go on from the run's last checkpoint if there is one (default); must, never: insist; "
    "PATH: a checkpoint folder to start from where the run has none of its own",
)
ON_BAD = _option(
    "--on-bad",
    choices=("fail", "quarantine"),
    default="fail",
    help="fail: stop at images that cannot be used, all named (default); quarantine: leave them out, listed in "
    "quarantine.jsonl in the run folder",
)
EXECUTOR = _option(
    "--executor",
    choices=["auto", "ray", "local"],
    help="who does the work in parallel: actors of a Ray cluster (RAY_ADDRESS, else one on this machine), or local "
    "processes; auto: Ray for seeds where it is installed (default: hardware.executor)",
)
REMAKE = _option(
    "--remake",
    action="store_true",
    help="what was made from other data or parameters is made anew, and nothing else, instead of being refused",
)
WARM_START = _option(
    "--warm-start",
    action="store_true",
    help="with --remake: classifiers go on from the weights of those they replace, class by class name",
)
CONFIG_OVERLAYS = (
    _option(
        "--profile",
        metavar="NAME",
        help="hardware overlay: a YAML file, or one that ships: cpu, rtx3090, a100x8, h100x8",
    ),
    _option(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, e.g. train.optim.lr=0.001; may be given several times",
    ),
)
STAGES = _option(
    "--stages", nargs="+", metavar="STAGE", help=f"only these of {', '.join(pipeline.STAGES)} (default: all)"
)
INIT_FROM = _option("--init-from", metavar="PATH", type=Path, help="checkpoint folder whose weights to start from")
CHECKPOINT = _option(
    "--checkpoint",
    metavar="PATH",
    type=Path,
    help="a checkpoint folder, or a run folder for its LAST (default: evaluate.checkpoint's)",
)
CHECKPOINT_ALONE = _option(*CHECKPOINT.flags, **{**CHECKPOINT.settings, "help": f"{CHECKPOINT.settings['help']}; needs "
                           "no --config"})  # fmt: skip
JSON = _option("--json", action="store_true", help="for machines")


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}; allowed: numbers between commas, such as 2,4,8") from None


SWEEP = (
    _option(
        "action",
        nargs="?",
        choices=("sweep",),
        help="sweep: score the labels of other values by the masks of data.tuning_ids (all train masks, where none are "
        "named), from finished classifiers; the options below are its own",
    ),
    _option("--alpha", dest="alphas", metavar="A,B,..", type=_numbers, help="default: 2,4,8,16 and seeds.alpha"),
    _option("--crf", dest="crfs", metavar="NAME,..", type=_texts, help="named CRF parameters (default: seeds.crf)"),
    _option("--normalise", metavar="NAME,..", type=_texts, help="sum, softmax (default: seeds.normalise)"),
    _option("--label", dest="labels", metavar="RULE,..", type=_texts, help="vote, mean_cam, mean_marginals (default)"),
    _option(
        "--folds", action="store_true", help="also choose on one half of the photographs and score the other, both ways"
    ),
    _option("--images", metavar="N", type=int, help="of N photographs only, always the same ones"),
    _option("--output", "-o", metavar="FOLDER", type=Path, help="where results go (default: RUN/seeds/sweep)"),
)


def _output(metavar: str, text: str) -> Option:
    return _option("--output", "-o", required=True, metavar=metavar, type=Path, help=text)


def _without(flag: str, text: str) -> Option:
    return _option(f"--no-{flag}", dest=flag.replace("-", "_"), action="store_false", help=f"without {text}")


def _options(given: Arguments) -> pipeline.Options:
    """Those of the stages' options that the verb has."""
    names = (field.name for field in fields(pipeline.Options) if hasattr(given, field.name))
    return pipeline.Options(**{name: getattr(given, name) for name in names})


def _show_config(config: Config | None, given: Arguments) -> None:
    if given.describe and given.action == "show":
        say(describe(config))
    elif given.describe:
        raise ConfigError("config validate: found --describe; allowed: config show --describe")
    elif config is None:
        raise ConfigError(f"config {given.action}: found no --config; give --config FILE")
    elif given.data and given.action == "show":
        raise ConfigError("config show: found --data; allowed: config validate --data")
    elif given.data:
        pipeline.validate_data(config)
        say(f"{given.config}: valid, and what it needs is there")
    else:
        say(shown_yaml(config) if given.action == "show" else f"{given.config}: valid")


def _ablate(_: Config | None, given: Arguments) -> None:
    from distwsss.ablate.runs import ablate  # numpy

    ablate(given.file, given.profile, given.overrides, given.output, given.only, given.dry_run, given.remake)


def _seeds(config: Config, given: Arguments) -> None:
    """The stage, or `seeds sweep`; an option of the one is refused with the other."""
    sweep = {option.settings.get("dest", option.flags[0].strip("-")): option.flags[0] for option in SWEEP[1:]}
    if given.action is None:
        foreign, allowed = [flag for name, flag in sweep.items() if getattr(given, name)], "with `distwsss seeds sweep`"
    else:
        foreign = [*(["--remake"] if given.remake else []), *(["--on-bad"] if given.on_bad != "fail" else [])]
        allowed = "with `distwsss seeds` alone"
    if foreign:
        raise ConfigError(f"seeds{' sweep' if given.action else ''}: found {', '.join(foreign)}; allowed: {allowed}")
    if given.action is None:
        pipeline.seeds(config, _options(given))
        return
    from distwsss.seeds.sweep import SweepOptions

    chosen = {name: getattr(given, name) for name in sweep if getattr(given, name) is not None}
    pipeline.sweep_seeds(config, SweepOptions(**chosen))


VERBS: dict[str, Verb] = {
    "new": Verb(
        "a configuration for your pictures, with the reason beside every value",
        lambda _, given: pipeline.new(given.folder, given.output),
        (
            _option("folder", metavar="FOLDER", type=Path, help="images/ and a file of tags, or VOC, or COCO"),
            _option("--output", "-o", metavar="FILE", type=Path, help="the YAML file (default: NAME.yaml, here)"),
        ),
        config="none",
        opens_run=None,
    ),
    "run": Verb(
        "every stage in turn, from image-level labels to mIoU and pictures",
        lambda config, given: pipeline.run_stages(config, _options(given), given.stages),
        (RESUME, ON_BAD, EXECUTOR, INIT_FROM, REMAKE, WARM_START, STAGES),
    ),
    "prepare": Verb(
        "check the data set and write image shards",
        lambda config, given: pipeline.prepare(config, _options(given)),
        (ON_BAD, REMAKE),
    ),
    "saliency": Verb(
        "saliency maps of the train photographs, by a network or from a folder (docs/saliency.md)",
        lambda config, given: pipeline.saliency(config, _options(given)),
        (REMAKE,),
    ),
    "classify": Verb(
        "train one classifier per dropout probability",
        lambda config, given: pipeline.classify(config, _options(given)),
        (RESUME, EXECUTOR, REMAKE, WARM_START),
        single_process=False,
    ),
    "seeds": Verb(
        "CAMs, dense CRF and vote: seed and pseudo-label shards; sweep: which values are the best (docs/seeds.md)",
        _seeds,
        (ON_BAD, EXECUTOR, REMAKE, *SWEEP),
        locks=("sweep",),
    ),
    "stats": Verb(
        "compare seeds and vote with the train masks, where there are any", lambda config, _: pipeline.stats(config)
    ),
    "train": Verb(
        "train the segmenter on the pseudo-labels",
        lambda config, given: pipeline.train(config, _options(given)),
        (RESUME, INIT_FROM, REMAKE),
        single_process=False,
    ),
    "evaluate": Verb(
        "score the segmenter: mIoU without and with multi-scale + flip and CRF",
        lambda config, given: pipeline.evaluate(config, given.split, given.checkpoint, given.remake, given.held_out),
        (
            CHECKPOINT_ALONE,
            _option("--split", metavar="NAME", help="split to score (default: data.val_split)"),
            _option(
                "--held-out",
                action="store_true",
                help="score the train ids held out from the segmenter (train.holdout) instead of a split",
            ),
            REMAKE,
        ),
        config="checkpoint",
        single_process=False,
    ),
    "predict": Verb(
        "segment pictures: palette PNG and overlay for each",
        lambda config, given: pipeline.predict(
            config, given.images, given.output, given.checkpoint, given.multi_scale, given.crf
        ),
        (
            _option("images", nargs="+", metavar="IMAGE", type=Path, help="picture files or folders of them"),
            _output("FOLDER", "where predictions are written"),
            CHECKPOINT_ALONE,
            _option("--multi-scale", action="store_true", help="average over evaluate.scales and the flip"),
            _option("--crf", action="store_true", help="refine with the dense CRF of evaluate.crf"),
        ),
        config="checkpoint",
        opens_run=None,
    ),
    "submit": Verb(
        "archive of label maps for the PASCAL VOC 2012 evaluation server",
        lambda config, given: pipeline.submit(
            config, given.output, given.split, given.checkpoint, given.multi_scale, given.crf
        ),
        (
            _output("FILE", "the archive, NAME.tgz or .tar.gz"),
            CHECKPOINT,
            _option("--split", default="test", metavar="NAME", help="split to predict (default: test)"),
            _without("multi-scale", "evaluate.scales and the flip"),
            _without("crf", "the dense CRF of evaluate.crf"),
        ),
        opens_run=None,
    ),
    "report": Verb(
        "one self-contained HTML page of numbers and pictures",
        lambda config, _: pipeline.report(config),
        opens_run="lock",
    ),
    "ablate": Verb(
        "variants of a configuration, run with several random seeds and compared (docs/ablations.md)",
        _ablate,
        (
            _option("file", metavar="FILE", help="a YAML file, or one that ships: ablations/demo_table6, ..."),
            *CONFIG_OVERLAYS,
            _option("--output", "-o", metavar="FOLDER", type=Path, help="runs and tables (default: runs/NAME)"),
            _option("--only", nargs="+", default=[], metavar="NAME", help="run these variants alone (default: all)"),
            _option("--dry-run", action="store_true", help="print what is there and what would be run, and stop"),
            REMAKE,
        ),
        config="none",
        opens_run=None,
    ),
    "verify": Verb(
        "check shards byte for byte",
        lambda config, given: pipeline.verify(config, given.path),
        (
            _option(
                "path",
                nargs="?",
                metavar="PATH",
                help="a shard folder, or a folder or URL of such folders (default: the shards of --config)",
            ),
        ),
        config="optional",
        single_process=False,
        opens_run=None,
    ),
    "estimate": Verb(
        "memory, micro-batch, operations and time of training, without a GPU",
        lambda config, given: pipeline.estimate(config, given.json),
        (JSON,),
        single_process=False,
        opens_run=None,
    ),
    "convert-weights": Verb(
        "a file of published weights as safetensors, under our names (docs/weights.md)",
        lambda _, given: pipeline.convert_weights(given.file, given.output, given.backbone),
        (
            _option(
                "file", metavar="FILE", type=Path, help="a .pth, .params, .caffemodel, ..., or a folder of the hub"
            ),
            _output("FILE", "NAME.safetensors"),
            _option("--for", dest="backbone", metavar="BACKBONE", help="the backbone to rename and check for"),
        ),
        config="none",
        single_process=False,
        opens_run=None,
    ),
    "config": Verb(
        "print a configuration or check it: every problem at once",
        _show_config,
        (
            _option(
                "action",
                choices=("show", "validate"),
                help="show: the resolved configuration; validate: report every problem at once",
            ),
            _option(
                "--describe",
                action="store_true",
                help="every key with its text, default and allowed values; with --config also its value there",
            ),
            _option(
                "--data",
                action="store_true",
                help="validate: list the data too, look for all that a run will need, and print its plan with times",
            ),
        ),
        config="optional",
        single_process=False,
        opens_run=None,
    ),
}


def _add_config(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE",
        help="a YAML file, or the name of one that ships with distwsss: voc12/deeplab_v2, demo/shapes, ...",
    )
    for option in CONFIG_OVERLAYS:
        parser.add_argument(*option.flags, **option.settings)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distwsss",
        description="Weakly supervised semantic segmentation from image-level labels.",
        epilog="Start with: distwsss new PICTURES, or run --config demo/shapes. Every stage skips what is complete.",
    )
    parser.add_argument("--version", action="version", version=f"distwsss {distwsss.__version__}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        subparser = subparsers.add_parser(name, help=verb.text, description=verb.text[0].upper() + verb.text[1:] + ".")
        if verb.config != "none":
            _add_config(subparser, required=verb.config == "required")
        for option in verb.options:
            subparser.add_argument(*option.flags, **option.settings)
        subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _configuration(verb: Verb, given: Arguments) -> Config | None:
    if verb.config == "none":
        return None
    overrides = list(given.overrides)
    if getattr(given, "executor", None):
        overrides.append(f"hardware.executor={given.executor}")
    if given.config is not None:
        return load_config(given.config, given.profile, overrides)
    if verb.config == "checkpoint":
        if given.checkpoint is None:
            raise ConfigError(f"{given.verb}: found neither --config nor --checkpoint; allowed: one of them, or both")
        return pipeline.checkpoint_config(given.verb, given.profile, overrides)
    return None


def _dispatch(given: Arguments, command: str) -> None:
    verb = VERBS[given.verb]
    config = _configuration(verb, given)
    opened: AbstractContextManager[None] = nullcontext()
    if config is not None and verb.opens_run:
        only_locks = verb.opens_run == "lock" or getattr(given, "action", None) in verb.locks
        opened = open_run(config, command, describe=not only_locks)
    with opened:
        if verb.single_process:
            ranks.check_single_process(given.verb)
        verb.function(config, given)


def main(argv: Sequence[str] | None = None) -> int:
    """The process's exit code; never a traceback for a user's mistake unless --debug."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        build_parser().print_help()
        return 2
    given = build_parser().parse_args(words)
    setup_logging(given.debug)
    logging.captureWarnings(False)
    try:
        with sigterm_interrupts():
            _dispatch(given, " ".join([sys.argv[0], *words]))
    except (DistwsssError, OSError) as error:  # OSError: of a file or disk, where nothing said it better
        if given.debug:
            raise
        hint = "" if isinstance(error, DistwsssError) else " (--debug shows where)"
        log.error(f"distwsss {given.verb}: {error}{hint}")
        return error.exit_code if isinstance(error, DistwsssError) else 1
    except KeyboardInterrupt:
        log.error(f"distwsss {given.verb}: interrupted; run the same command to go on")
        return 130
    finally:
        _leave_group()
    return 0


def _leave_group() -> None:
    """End the process group that Accelerate opened, if torch was loaded at all."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
