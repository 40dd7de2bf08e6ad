"""`distwsss seeds sweep`: how good the labels would be under other values of alpha, CRF, normalisation, label rule and
t, by the train masks of the photographs on which values are chosen. Called by `pipeline`.

It needs image shards and finished classifiers, no seeds. CAMs are kept in the run folder under the digest of what they
depend on, and counts under that and their setting, shard by shard: what is there is not computed again.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from distwsss.config import Config
from distwsss.config.crf import CRF_PARAMS, CRFParams
from distwsss.config.stages import MEANS, SELECTED
from distwsss.data.holdout import some_keys, tuning_keys
from distwsss.data.scoring import ImageCounts, read_image_counts, write_image_counts
from distwsss.errors import ConfigError, DataError, counted
from distwsss.runtime.artifacts import fingerprint, free_space_check
from distwsss.runtime.device import pick_device
from distwsss.runtime.layout import images_dir, sweep_cams_dir, sweep_counts_file, sweep_dir
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import log
from distwsss.seeds.plan import SeedsPlan, plan_seeds, vote_task
from distwsss.seeds.progress import SeedProgress
from distwsss.seeds.sweep_chunk import Setting, SweepTask, sweep_shard
from distwsss.seeds.sweep_table import Sweep, write_sweep

ALPHAS = (2.0, 4.0, 8.0, 16.0)
LABELS = ("vote", *MEANS)
CONFIGURED = "configured"  # name of a CRF that is none of the named sets
CAM_BYTES = 20_000  # of a seed's CAMs of a photograph with two tags, 32 x 32 features and more
# what CAMs depend on beside images, classifiers and device
CAM_KEYS = ("scales", "base_size", "output_stride", "cam_scales", "dropout_passes", "dropout_reduce", "threads")

_Work: TypeAlias = Generator[tuple[SweepTask, dict[str, ImageCounts]], None, None]


@dataclass(frozen=True)
class SweepOptions:
    """As the verb's options of the same names. None: the default ones; an empty `crfs` or `normalise`: the
    configuration's own."""

    alphas: tuple[float, ...] | None = None
    crfs: tuple[str, ...] = ()
    normalise: tuple[str, ...] = ()
    labels: tuple[str, ...] = LABELS
    folds: bool = False
    images: int | None = None
    output: Path | None = None


def sweep_seeds(config: Config, options: SweepOptions = SweepOptions()) -> dict[str, Any]:
    """Scores every setting, prints the table and writes sweep.json, .csv, .png and .counts.npz to `options.output`;
    returns what sweep.json holds.

    Raises ConfigError for options that are not allowed, DataError without masks, and what `plan_seeds` raises.
    """
    settings = sweep_settings(config, options)
    plan = plan_seeds(config)
    keys, source = _keys(plan, options.images)
    if options.folds and len(keys) < 2:
        raise ConfigError(f"--folds: found {counted(len(keys), 'photograph')} with a mask; allowed: from 2 on")
    voters = config.voting_seeds()
    if config.seeds.vote_on == SELECTED:
        log.info(f"sweep: seeds.vote_on is `selected`; here all {len(voters)} seeds vote, under every setting")
    log.info(f"sweep: scored by the masks of {counted(len(keys), 'photograph')} ({source}); their ids: sweep.json")
    counts = sweep_counts(plan, settings, keys)
    sweep = Sweep(plan.images.classes, settings, options.labels, config.possible_voters(), len(voters), counts)
    about = {"cue": config.cue(), "masks_of": source, "vote_on": voters, "ties": config.seeds.ties}
    return write_sweep(options.output or sweep_dir(config), sweep, about, options.folds)


def sweep_settings(config: Config, options: SweepOptions) -> list[Setting]:
    """Every CRF x normalisation x alpha. Raises ConfigError for values that are none."""
    base = config.resolved_seeds()
    known = next((name for name, params in CRF_PARAMS.items() if params == base.crf), CONFIGURED)
    crfs: dict[str, CRFParams] = {name: CRF_PARAMS[name] for name in options.crfs if name in CRF_PARAMS}
    _check("--crf", options.crfs, tuple(CRF_PARAMS))
    _check("--normalise", options.normalise, ("sum", "softmax"))
    _check("--label", options.labels, LABELS)
    if base.saliency_unary and (options.alphas or options.normalise):
        raise ConfigError(
            "seeds sweep: found --alpha or --normalise, but with seeds.saliency_unary the saliency map says what is "
            "background, and neither changes anything; allowed: without them"
        )
    alphas = options.alphas or ((base.alpha,) if base.saliency_unary else tuple(sorted({*ALPHAS, base.alpha})))
    wrong = [alpha for alpha in alphas if not 0 < alpha < float("inf")]
    if wrong:
        raise ConfigError(f"--alpha: found {wrong[0]:g}; allowed: numbers above 0, such as 2,4,8")
    return [
        Setting(name, normalise, alpha, base.model_copy(update={"crf": crf, "normalise": normalise, "alpha": alpha}))
        for name, crf in (crfs or {known: base.crf}).items()
        for normalise in dict.fromkeys(options.normalise or (base.normalise,))
        for alpha in dict.fromkeys(alphas)
    ]


def _check(option: str, found: Sequence[str], allowed: tuple[str, ...]) -> None:
    wrong = [value for value in found if value not in allowed]
    if wrong:
        raise ConfigError(f"{option}: found {', '.join(map(repr, wrong))}; allowed: {', '.join(allowed)}")


def _keys(plan: SeedsPlan, count: int | None) -> tuple[set[str], str]:
    """The shard keys whose masks score, and which these are, in words."""
    config, images = plan.config, plan.images
    keys, source = set(images.with_truth().keys()), "all train photographs that have one"
    if config.data.tuning_ids:
        keys, source = keys & tuning_keys(config, images), "data.tuning_ids"
    if not keys:
        raise DataError(
            f"seeds sweep: found no mask{' of data.tuning_ids' if config.data.tuning_ids else ''} in "
            f"{images_dir(config, 'train')}; allowed: where the train split has some, of a hundred photographs or so "
            "(data.tuning_ids names them)"
        )
    if count is not None and count < 1:
        raise ConfigError(f"--images: found {count}; allowed: 1 and more")
    chosen = some_keys(keys, count)
    return chosen, source if len(chosen) == len(keys) else f"{len(chosen)} of the {len(keys)} of {source}"


def sweep_counts(plan: SeedsPlan, settings: list[Setting], keys: set[str]) -> dict[str, ImageCounts]:
    """Setting's name -> the counts of all images `keys` in shard order; what is missing is computed and kept, a shard
    at a time, by `hardware.workers` processes."""
    cams = _cam_parameters(plan)
    digests = {setting.name: fingerprint(_parameters(plan, cams, setting)) for setting in settings}
    wanted = [[plan.images.key(shard, i) for i in found] for shard, found in enumerate(_positions(plan, keys))]
    known: dict[tuple[str, int], ImageCounts] = {}
    tasks = []
    for shard, positions in enumerate(_positions(plan, keys)):
        missing = []
        for setting in settings if positions else ():
            found = _kept(sweep_counts_file(plan.config, digests[setting.name], shard), wanted[shard])
            if found is None:
                missing.append(setting)
            else:
                known[setting.name, shard] = found
        if missing:
            tasks.append(_task(plan, shard, positions, missing, sweep_cams_dir(plan.config, fingerprint(cams))))
    if tasks:
        with closing(_worked(plan, tasks, [len(each) for each in wanted])) as work:  # an error here ends the workers
            for task, counts in work:
                for name, kept in counts.items():
                    write_image_counts(sweep_counts_file(plan.config, digests[name], task.shard), kept)
                    known[name, task.shard] = kept
    else:
        log.info("sweep: every setting was scored before")
    shards = [shard for shard, found in enumerate(wanted) if found]
    return {setting.name: _joined([known[setting.name, shard] for shard in shards]) for setting in settings}


def _positions(plan: SeedsPlan, keys: set[str]) -> list[list[int]]:
    return plan.images.select(keys.__contains__).positions


def _worked(plan: SeedsPlan, tasks: list[SweepTask], counts: list[int]) -> _Work:
    """(task, its counts) as they are finished."""
    workers = plan.config.hardware.workers
    free_space_check(sweep_dir(plan.config), sum(counts) * len(tasks[0].cams) * CAM_BYTES, "sweep")
    processes = max(1, min(workers, len(tasks)))
    progress = SeedProgress(counts, [task.shard for task in tasks], len(tasks[0].cams), processes, "sweep")
    for task, found in spread(sweep_shard, tasks, workers, progress.heard):
        yield task, found
        progress.shard_done(task.shard)
    progress.close()


def _task(plan: SeedsPlan, shard: int, positions: list[int], settings: list[Setting], cache: Path) -> SweepTask:
    config, maps = plan.config, plan.config.map_names()
    vote = vote_task(config, config.voting_seeds())
    rules = {rule: replace(vote, label=None if rule == "vote" else maps.index(rule)) for rule in LABELS}
    voters = {name: maps.index(name) for name in config.possible_voters()}
    chunk = plan.chunk(shard, quarantine=False)
    return SweepTask(
        chunk.images, shard, tuple(positions), chunk.cams, cache, tuple(settings), voters, rules, chunk.saliency
    )


def _cam_parameters(plan: SeedsPlan) -> dict[str, Any]:
    section, hardware = plan.config.resolved_seeds(), plan.config.hardware
    return {
        "inputs": {key: plan.seeds.parameters["inputs"][key] for key in ("images", "classifiers")},
        "dropouts": plan.config.classify.dropouts,
        "seeds": {key: getattr(section, key) for key in CAM_KEYS},
        "device": [pick_device(hardware.device).type, hardware.mixed_precision],
    }


def _parameters(plan: SeedsPlan, cams: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """What the counts of a setting depend on."""
    seeds = plan.config.seeds
    return {
        "cams": cams,
        "setting": {"crf": setting.section.crf.model_dump(), "normalise": setting.normalise, "alpha": setting.alpha},
        "vote": [plan.config.voting_seeds(), seeds.ties],
        "saliency": [seeds.saliency_unary, seeds.saliency_voter, plan.seeds.parameters["inputs"].get("saliency")],
        "truth": plan.images.extra.get("truth"),
    }


def _kept(path: Path, keys: list[str]) -> ImageCounts | None:
    """The counts of `keys` from a file that has them all, among others."""
    if not path.is_file():
        return None
    found = read_image_counts(path)
    rows = {key: row for row, key in enumerate(found.keys)}
    if not set(keys) <= set(rows):
        return None
    order = [rows[key] for key in keys]
    return ImageCounts(keys, {name: counts[order] for name, counts in found.columns.items()})


def _joined(parts: list[ImageCounts]) -> ImageCounts:
    keys = [key for part in parts for key in part.keys]
    names = parts[0].columns
    return ImageCounts(keys, {name: np.concatenate([part.columns[name] for part in parts]) for name in names})
