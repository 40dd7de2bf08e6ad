"""Verbs -> functions, nothing else. `distwsss VERB --help` teaches each.

Exit codes: 0 ok, 1 the run failed, 2 usage or configuration, 3 data or shards, 4 checkpoint, 130 interrupted (after
saving).
Stages are imported when they run, so `--help` and `config validate` answer without loading torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import distwsss
from distwsss.config import Config, load_config
from distwsss.config.load import dump_yaml
from distwsss.errors import ConfigError, DistwsssError, LaunchError, ShardError, report_problems
from distwsss.runtime.progress import log, setup_logging
from distwsss.runtime.run_folder import open_run, record_exit
from distwsss.runtime.stop import sigterm_interrupts
from distwsss.runtime.storage import folder_at

Arguments = argparse.Namespace


def _single_process(verb: str) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LaunchError(
            f"{verb} was started by torchrun with several ranks; start it plainly. torchrun is for classify, train and "
            "evaluate"
        )


def _prepare(config: Config, arguments: Arguments) -> None:
    from distwsss.data.prepare import prepare

    _single_process("prepare")
    prepare(config, arguments.on_bad)


def _classify(config: Config, arguments: Arguments) -> None:
    from distwsss.train.stages import classify

    classify(config, arguments.resume)


def _seeds(config: Config, arguments: Arguments) -> None:
    from distwsss.seeds.generate import run_seeds

    _single_process("seeds")
    run_seeds(config, arguments.on_bad)


def _stats(config: Config, arguments: Arguments) -> None:
    from distwsss.data.shards.index import images_dir, load_index
    from distwsss.data.sources.listing import tuning_keys
    from distwsss.evaluate.label_stats import print_quality, seed_quality

    _single_process("stats")
    record = config.run_dir / "seeds" / "quality.json"
    before = _changed(record)
    tuning = tuning_keys(config, load_index(images_dir(config, "train"), "images"))
    quality = seed_quality(config, exclude=tuning)
    if quality is None:
        log.info("stats: no masks on the train split to compare with, skipped")
        return
    if _changed(record) == before:
        log.info("stats: complete, skipped")
    print_quality(quality)


def _changed(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


def _train(config: Config, arguments: Arguments) -> None:
    from distwsss.train.stages import train

    train(config, arguments.resume, Path(arguments.init_from) if arguments.init_from else None)


def _evaluate(config: Config, arguments: Arguments) -> None:
    from distwsss.data.shards.index import images_dir
    from distwsss.evaluate.evaluate import evaluate
    from distwsss.train.engine.accelerate import make_accelerator

    if arguments.verb == "run":
        if images_dir(config, "val").is_dir():
            evaluate(config, "val")
        else:
            log.info("evaluate: the data set has no split for it, skipped")
        return
    make_accelerator(config.hardware, 1)  # opens the process group under torchrun
    other = arguments.split is not None or any(item.startswith("data.root=") for item in arguments.overrides or [])
    checkpoint = Path(arguments.checkpoint) if arguments.checkpoint else None
    evaluate(config, arguments.split or config.data.val_split, checkpoint, other_data=other)


def _predict(config: Config, arguments: Arguments) -> None:
    from distwsss.evaluate.predict import predict

    _single_process("predict")
    checkpoint = Path(arguments.checkpoint) if arguments.checkpoint else None
    inputs, output = [Path(name) for name in arguments.images], Path(arguments.output)
    paths = predict(config, inputs, output, checkpoint, arguments.multi_scale, arguments.crf)
    print(f"{len(paths)} predictions in {arguments.output}")


def _submit(config: Config, arguments: Arguments) -> None:
    from distwsss.evaluate.submit import submit

    _single_process("submit")
    checkpoint = Path(arguments.checkpoint) if arguments.checkpoint else None
    output = Path(arguments.output)
    count = submit(config, output, arguments.split, checkpoint, arguments.multi_scale, arguments.crf)
    print(f"{count} label maps in {output}")


def _report(config: Config, arguments: Arguments) -> None:
    from distwsss.report.html import write_report

    _single_process("report")
    print(f"Report with pictures: {write_report(config).resolve()}")


def _run(config: Config, arguments: Arguments) -> None:
    _single_process("run")
    for title, stage in STAGES.items():
        log.info(f"== {title}")
        stage(config, arguments)


STAGES: dict[str, Callable[[Config, Arguments], None]] = {
    "prepare": _prepare,
    "classify": _classify,
    "seeds": _seeds,
    "stats": _stats,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
}
VERBS: dict[str, tuple[Callable[[Config, Arguments], None], str]] = {
    "run": (_run, "every stage in turn, from image-level labels to mIoU and pictures"),
    "prepare": (_prepare, "check the data set and write image shards"),
    "classify": (_classify, "train one classifier per dropout probability"),
    "seeds": (_seeds, "CAMs, dense CRF and vote: seed and pseudo-label shards"),
    "stats": (_stats, "compare seeds and vote with the train masks, where there are any"),
    "train": (_train, "train the segmenter on the pseudo-labels"),
    "evaluate": (_evaluate, "mIoU of the segmenter, without and with multi-scale + flip and CRF"),
    "predict": (_predict, "segment pictures: palette PNG and overlay for each"),
    "submit": (_submit, "archive of label maps for the PASCAL VOC 2012 evaluation server"),
    "report": (_report, "one self-contained HTML page of numbers and pictures"),
}
SHOWING = ("predict", "submit", "report")  # they change no result, so what describes the results stays


def _add_config(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument("--config", required=required, metavar="FILE", help="YAML file, see configs/")
    parser.add_argument("--profile", metavar="NAME", help="hardware overlay: configs/profiles/NAME.yaml or a path")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        metavar="KEY=VALUE",
        help="override one key, e.g. train.optim.lr=0.001; may be given several times",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _add_options(verb: str, parser: argparse.ArgumentParser) -> None:
    """What a verb takes beyond the configuration. `run` takes what its stages take, with their defaults."""
    if verb in ("run", "classify", "train"):
        parser.add_argument(
            "--resume",
            default="auto",
            metavar="auto|must|never|PATH",
            help="auto: go on from the run's last checkpoint if there is one (default); must, never: insist; "
            "PATH: a checkpoint folder to start from where the run has none of its own",
        )
    if verb in ("run", "prepare", "seeds"):
        parser.add_argument(
            "--on-bad",
            choices=("fail", "quarantine"),
            default="fail",
            help="fail: stop at images that cannot be used, all named (default); quarantine: leave them out, listed in "
            "quarantine.jsonl in the run folder",
        )
    if verb in ("run", "classify", "seeds"):
        parser.add_argument(
            "--executor",
            choices=["auto", "ray", "local"],
            help="who does the work in parallel: actors of a Ray cluster (RAY_ADDRESS, else one on this machine), or "
            "local processes; auto: Ray for seeds where it is installed (default: hardware.executor)",
        )
    if verb in ("run", "train"):
        parser.add_argument("--init-from", metavar="PATH", help="checkpoint folder whose weights to start from")
    if verb in ("evaluate", "predict", "submit"):
        parser.add_argument("--checkpoint", metavar="PATH", help="checkpoint folder (default: evaluate.checkpoint's)")
    if verb == "evaluate":
        parser.add_argument("--split", metavar="NAME", help="split to score (default: data.val_split)")
    if verb == "submit":
        parser.add_argument("--split", default="test", metavar="NAME", help="split to predict (default: test)")
        parser.add_argument("--output", "-o", required=True, metavar="FILE", help="the archive, NAME.tgz or .tar.gz")
        for flag, text in (("multi-scale", "evaluate.scales and the flip"), ("crf", "the dense CRF of evaluate.crf")):
            dest = flag.replace("-", "_")
            parser.add_argument(f"--no-{flag}", dest=dest, action="store_false", help=f"without {text}")
    if verb == "predict":
        parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files or folders of them")
        parser.add_argument("--output", "-o", required=True, metavar="FOLDER", help="where predictions are written")
        parser.add_argument("--multi-scale", action="store_true", help="average over evaluate.scales and the flip")
        parser.add_argument("--crf", action="store_true", help="refine with the dense CRF of evaluate.crf")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distwsss",
        description="Weakly supervised semantic segmentation from image-level labels.",
        epilog="Start with: distwsss run --config configs/demo/shapes.yaml. Every verb skips what is complete.",
    )
    parser.add_argument("--version", action="version", version=f"distwsss {distwsss.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (_, text) in VERBS.items():
        subparser = verbs.add_parser(verb, help=text, description=text[0].upper() + text[1:] + ".")
        _add_config(subparser)
        _add_options(verb, subparser)
    verify = verbs.add_parser("verify", help="check shards byte for byte", description="Check shards byte for byte.")
    path_help = "a shard folder, or a folder or URL of such folders (default: the shards of --config)"
    verify.add_argument("path", nargs="?", metavar="PATH", help=path_help)
    _add_config(verify, required=False)
    text = "memory, micro-batch, operations and time of training, without a GPU"
    estimate = verbs.add_parser("estimate", help=text, description=text[0].upper() + text[1:] + ".")
    _add_config(estimate)
    estimate.add_argument("--json", action="store_true", help="for machines")
    text = "a file of published weights as safetensors, under our names (docs/weights.md)"
    convert = verbs.add_parser("convert-weights", help=text, description=text[0].upper() + text[1:] + ".")
    convert.add_argument("file", metavar="FILE", help="a .pth, .params, .caffemodel, .pkl, ..., or a folder of the hub")
    convert.add_argument("--output", "-o", required=True, metavar="FILE", help="NAME.safetensors")
    convert.add_argument("--for", dest="backbone", metavar="BACKBONE", help="the backbone to rename and check for")
    convert.add_argument("--debug", action="store_true", help="show the traceback of an error")
    config = verbs.add_parser("config", help="print or check a configuration")
    actions = config.add_subparsers(dest="action", required=True, metavar="show|validate")
    for action, text in (("show", "print the resolved configuration"), ("validate", "report every problem at once")):
        _add_config(actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + "."))
    return parser


def _verify(arguments: Arguments) -> None:
    from distwsss.data.shards.verify import verify

    if bool(arguments.path) == bool(arguments.config):
        found = "both PATH and --config" if arguments.path else "neither PATH nor --config"
        raise ConfigError(
            f"found {found}; allowed: one of them, a shard folder or a configuration whose shards to check"
        )
    path = folder_at(arguments.path) if arguments.path else _load(arguments).shard_dir
    problems = verify(path)
    if problems:
        raise ShardError(report_problems(f"{path}: damaged", problems))
    print(f"{path}: every shard and index verifies")


def _estimate(config: Config, arguments: Arguments) -> None:
    from distwsss.train.estimate.estimate import estimate
    from distwsss.train.estimate.table import as_json, as_table

    show = as_json if arguments.json else as_table
    print(show(estimate(config), config.hardware))


def _convert_weights(arguments: Arguments) -> None:
    from distwsss.models.convert import convert_weights

    print(convert_weights(Path(arguments.file), Path(arguments.output), arguments.backbone))


def _load(arguments: Arguments) -> Config:
    overrides = list(arguments.overrides or [])
    if getattr(arguments, "executor", None):
        overrides.append(f"hardware.executor={arguments.executor}")
    return load_config(arguments.config, arguments.profile, overrides)


def _dispatch(arguments: Arguments) -> None:
    if arguments.verb == "verify":
        _verify(arguments)
        return
    if arguments.verb == "convert-weights":
        _convert_weights(arguments)
        return
    config = _load(arguments)
    if arguments.verb == "config":
        print(dump_yaml(config) if arguments.action == "show" else f"{arguments.config}: valid", end="\n")
        return
    if arguments.verb == "estimate":
        _estimate(config, arguments)
        return
    with open_run(config, describe=arguments.verb not in SHOWING) as folder:
        code, message = 1, "ended unexpectedly"
        try:
            VERBS[arguments.verb][0](config, arguments)
            code, message = 0, "ok"
        except DistwsssError as error:
            code, message = error.exit_code, str(error)
            raise
        except KeyboardInterrupt:
            code, message = 130, "interrupted"
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            raise
        finally:
            record_exit(folder, code, message)


def main(argv: Sequence[str] | None = None) -> int:
    """The process's exit code; never a traceback for a user's mistake unless --debug."""
    arguments = build_parser().parse_args(argv)
    setup_logging(arguments.debug)
    logging.captureWarnings(False)
    try:
        with sigterm_interrupts():
            _dispatch(arguments)
    except (DistwsssError, OSError) as error:  # OSError: of a file or disk, where nothing said it better
        if arguments.debug:
            raise
        hint = "" if isinstance(error, DistwsssError) else " (--debug shows where)"
        log.error(f"distwsss {arguments.verb}: {error}{hint}")
        return error.exit_code if isinstance(error, DistwsssError) else 1
    except KeyboardInterrupt:
        log.error(f"distwsss {arguments.verb}: interrupted; run the same command to go on")
        return 130
    finally:
        _leave_group()
    return 0


def _leave_group() -> None:
    """End the process group that Accelerate opened, if torch was loaded at all."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
