"""An ablation's file: what it may say, checked like a configuration, all problems at once. Called by `ablate.plan`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from distwsss.config.load import find_file, read_yaml
from distwsss.config.section import Section
from distwsss.errors import ConfigError, report_problems
from distwsss.evaluate.scores import COLUMNS

OWN_KEYS = ("column", "once")  # of a variant; everything else in it are keys of the configuration
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


class RandomSeeds(Section):
    """Each variant is run once for each value."""

    key: str = Field("train.seed", description="the key of the configuration that the values are of")
    values: list[int] = Field([0], min_length=1, description="one run of each variant for each")


class AblationFile(Section):
    """The file as it is written. `set` and the variants are keys of the configuration, dotted or in sections."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="of the folder; without it as the file is")
    base: str = Field(description="the configuration that the variants change: a file, or a name that ships")
    set: dict[str, Any] = Field({}, description="keys for all variants")
    random_seeds: RandomSeeds = RandomSeeds()
    score: Literal["val", "train", "held_out"] = Field(
        "val",
        description="val: the segmenter on `data.val_split`; held_out: on the train ids that it was not trained on; "
        "train: the labels, by `stats`",
    )
    column: str | None = Field(
        None,
        description="of `evaluate`: single (default), single_crf, multi, multi_crf; of `stats`: aggregate (default), "
        "clean, or a seed's name",
    )
    baseline: str | None = Field(None, description="the variant that the others are compared with; null: the first")
    variants: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name: keys, and `column` of its own, or `once: true` for the first random seed alone"
    )


def read_ablation(path: str | Path) -> tuple[AblationFile, Path]:
    """The file (or one that ships, as ablations/NAME), and where it lies. Raises ConfigError with every problem."""
    found = find_file("ablate", path, ".")
    tree = {"name": found.stem, **read_yaml(found)}
    try:
        file = AblationFile.model_validate(tree)
    except ValidationError as error:
        problems = [_described(dict(item)) for item in error.errors()]
    else:
        problems = list(_faults(file))
    if problems:
        raise ConfigError(report_problems(f"{found}: not a valid ablation", problems))
    return file, found


def base_file(file: AblationFile, where: Path) -> Path:
    """`base` beside the ablation's file, else as `--config` finds it. Raises ConfigError."""
    beside = where.parent / file.base
    return beside if beside.is_file() else find_file(f"{where}: `base`:", file.base, ".")


def _described(error: dict[str, Any]) -> str:
    dotted = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        model = RandomSeeds if error["loc"][0] == "random_seeds" else AblationFile
        return f"`{dotted}`: unknown key; {_meant(str(error['loc'][-1]), list(model.model_fields))}"
    if error["type"] == "missing":
        return f"`{dotted}`: missing; this key has no default"
    return f"`{dotted}`: found {error['input']!r}; {error['msg']}"


def _meant(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"allowed: {', '.join(known)}"


def _faults(file: AblationFile) -> list[str]:
    """What the model alone does not see."""
    import re

    names, faults = list(file.variants), []
    for name in names:
        if not re.match(NAME, name):
            faults.append(f"`variants.{name}`: allowed: a name of letters, digits, `_`, `-` and `.`, as of a folder")
    if file.baseline is not None and file.baseline not in names:
        faults.append(f"`baseline`: found {file.baseline!r}; {_meant(file.baseline, names)}")
    values = file.random_seeds.values
    if len(set(values)) < len(values):
        faults.append(f"`random_seeds.values`: found {values}; allowed: each once")
    columns = {"column": file.column, **{f"variants.{n}.column": v.get("column") for n, v in file.variants.items()}}
    for key, column in columns.items():
        if column is not None and not (isinstance(column, str) and (file.score == "train" or column in COLUMNS)):
            faults.append(f"`{key}`: found {column!r}; allowed for score {file.score}: {', '.join(COLUMNS)}")
    for name, keys in file.variants.items():
        if not isinstance(keys.get("once", False), bool):
            faults.append(f"`variants.{name}.once`: found {keys['once']!r}; allowed: true or false")
    return faults
