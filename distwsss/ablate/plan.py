"""From an ablation's file to the runs it wants: a configuration for each variant and random seed. Called by
`ablate.runs`.

What runs share is decided here alone: classifiers and shards lie in folders that are named by what they are made of,
and variants that differ in nothing but the column are one run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distwsss.ablate.file import OWN_KEYS, AblationFile, base_file, read_ablation
from distwsss.config import Config
from distwsss.config.load import Layer, load_layered, nested
from distwsss.data.made_with import classifier_section
from distwsss.errors import ConfigError, report_problems
from distwsss.runtime.artifacts import fingerprint
from distwsss.runtime.layout import ablation_dir, classifier_dir, shard_dir, shards_place

# sections that neither classifiers nor shards depend on; any other separates them
NOT_OF_SHARDS = ("name", "paths", "hardware", "train", "evaluate", "report")
# keys of `seeds` that choose a vote and leave the seeds as they are: votes lie beside each other (`Config.vote_keys`)
OF_THE_VOTE = ("label", "vote_on", "threshold", "ties")
NOT_OF_RESULTS = ("name", "paths", "hardware", "report")
LABELS = ("prepare", "saliency", "classify", "seeds")
OURS = ("name", "paths")  # what a variant may not say: every run has its own


@dataclass(frozen=True)
class Row:
    """One run: a variant with one random seed. `run`: its folder; `score`: the file's; `stages`: what that takes."""

    config: Config
    seed: int
    run: Path
    score: str
    stages: tuple[str, ...]

    def label(self, folder: Path) -> str:
        """As it is called below the ablation's folder: VARIANT/SEED."""
        return str(self.run.relative_to(folder))


@dataclass(frozen=True)
class Variant:
    """`rows`: its runs, some of which may be those of another variant, too."""

    name: str
    column: str
    once: bool
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Ablation:
    file: AblationFile
    folder: Path
    variants: tuple[Variant, ...]

    def rows(self, names: Sequence[str] = ()) -> list[Row]:
        """Each run once, in the order of the variants, or of those named."""
        chosen = [row for variant in self.variants if not names or variant.name in names for row in variant.rows]
        return list({row.run: row for row in chosen}.values())

    def baseline(self) -> Variant:
        name = self.file.baseline or self.variants[0].name
        return next(variant for variant in self.variants if variant.name == name)


@dataclass(frozen=True)
class _Given:
    """What all rows are made of: the file and where it lies, and `base` as overlaid by all but the variants."""

    file: AblationFile
    where: Path
    base: Path
    folder: Path
    profile: str | None
    overrides: list[str] | None

    def config(self, *above: Layer) -> Config:
        shared = [(f"{self.where}: set", nested(self.file.set))]
        return load_layered(self.base, self.profile, shared, self.overrides, above)


def plan_ablation(
    path: str | Path, profile: str | None = None, overrides: list[str] | None = None, output: Path | None = None
) -> Ablation:
    """Everything that the file wants. A key is taken from, the last first: the random seed, the variant, `overrides`,
    `set`, the profile, `base`. Raises ConfigError with every problem of the file and of the configurations."""
    file, where = read_ablation(path)
    given = _Given(file, where, base_file(file, where), ablation_dir(file.name, output), profile, overrides)
    stem = given.config()
    reference = _reference(given.base, profile, stem)
    rows: dict[str, Row] = {}
    variants, problems = [], []
    for name in file.variants:
        try:
            variants.append(_variant(given, name, stem, reference, rows))
        except ConfigError as error:
            problems += _lines(error)
    if problems:
        raise ConfigError(report_problems(f"{where}: not a valid ablation", list(dict.fromkeys(problems))))
    return Ablation(file, given.folder, tuple(variants))


def _variant(given: _Given, name: str, stem: Config, reference: Config, known: dict[str, Row]) -> Variant:
    """known: the rows of those before it, by what they are; its own are added. Raises ConfigError."""
    file, where = given.file, f"{given.where}: variants.{name}"
    keys, values = file.variants[name], file.random_seeds.values
    own = nested({key: value for key, value in keys.items() if key not in OWN_KEYS})
    problems = [f"{where}: `{key}`: found in a variant; the ablation says it itself" for key in OURS if key in own]
    rows = []
    for value in values[:1] if keys.get("once") else values:
        try:
            seed = nested({file.random_seeds.key: value})
            config = given.config((where, own), (f"{given.where}: random_seeds", seed))
        except ConfigError as error:
            problems += _lines(error)
            continue
        row = _row(given, name, value, config, places(config, stem, reference))
        rows.append(known.setdefault(_same(row), row))
    column = keys.get("column") or file.column or ("aggregate" if file.score == "train" else "single")
    problems += [f"{where}: {text}" for row in rows for text in _column_faults(file, column, row)]
    if problems:
        raise ConfigError(report_problems(where, problems))
    return Variant(name, column, bool(keys.get("once")), tuple(rows))


def _reference(base: Path, profile: str | None, stem: Config) -> Config:
    """The configuration whose own run may have left shards and classifiers: `base` as it is, if it is valid alone."""
    try:
        return load_layered(base, profile)
    except ConfigError:
        return stem


def _row(given: _Given, variant: str, value: int, config: Config, shared: dict[str, str]) -> Row:
    file, run = given.file, given.folder / variant / str(value)
    paths = config.paths.model_copy(update={"run": str(run), **shared})
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{file.name}-{variant}-{value}")
    config = config.model_copy(update={"name": name, "paths": paths})
    made = tuple(stage for stage in LABELS if stage != "saliency" or config.saliency_users())
    if file.score == "train":
        return Row(config, value, run, file.score, (*made, "stats"))
    labels = LABELS[:1] if config.train.labels == "truth" else made
    return Row(config, value, run, file.score, (*labels, "train", "evaluate"))


def places(config: Config, stem: Config, reference: Config) -> dict[str, str]:
    """`paths.shards` and `paths.classifiers`: those of `stem` where they are made of what `reference`'s are, else
    beside these, with the digest of what they are made of. So equal ones are made once, also by several ablations."""
    own = shard_dir(stem)
    stems = {
        "shards": str(own) if isinstance(own, Path) else shards_place(stem),
        "classifiers": str(classifier_dir(stem, 0.0).parent),
    }
    made_of = {"shards": shards_made_of, "classifiers": classifiers_made_of}
    found = {}
    for key, place in stems.items():
        digest, known = (fingerprint(made_of[key](each)) for each in (config, reference))
        found[key] = place if digest == known else f"{place.rstrip('/')}-{digest[:8]}"
    return found


def shards_made_of(config: Config) -> dict[str, Any]:
    """What image, seed and pseudo-label shards depend on."""
    seeds = {key: value for key, value in config.seeds.parameters().items() if key not in OF_THE_VOTE}
    maps = _saliency(config) if config.seeds.uses_saliency() else None
    return {**classifiers_made_of(config), "dropouts": config.classify.dropouts, "seeds": seeds, "of_seeds": maps}


def classifiers_made_of(config: Config) -> dict[str, Any]:
    """What a classifier depends on, whichever others there are. The file of weights by its path."""
    apart = (*NOT_OF_SHARDS, "seeds", "classify", "seed", "saliency")
    names = [name for name in type(config).model_fields if name not in apart]
    sections = {name: getattr(config, name).parameters() for name in names}
    own = {"seed": config.seed, "classify": classifier_section(config), "weights": config.classify.backbone.weights}
    return {**sections, **own, "of_classifiers": _saliency(config) if config.classify.saliency else None}


def _saliency(config: Config) -> list[str | None]:
    """Where saliency maps come from; the section's parameters leave paths out."""
    return [config.saliency.model, config.saliency.folder, config.saliency.normalise]


def configuration(config: Config) -> dict[str, Any]:
    """Every key that may change a figure."""
    return config.model_dump(mode="json", exclude=set(NOT_OF_RESULTS))


def _same(row: Row) -> str:
    return fingerprint([configuration(row.config), list(row.stages)])


def _lines(error: ConfigError) -> list[str]:
    """The problems of `report_problems`, without the title; a message of one line is one."""
    title, *lines = str(error).split("\n")
    return [line.strip() for line in lines] or [title]


def _column_faults(file: AblationFile, column: str, row: Row) -> list[str]:
    if file.score == "train":
        allowed = ["aggregate", "clean", *row.config.map_names()]
    else:
        allowed = (
            ["single", "multi"] if row.config.evaluate.crf is None else ["single", "single_crf", "multi", "multi_crf"]
        )
    return [] if column in allowed else [f"`column`: found {column!r}; allowed: {', '.join(allowed)}"]
