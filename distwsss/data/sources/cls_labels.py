"""`cls_labels.npy` of WSSS repositories: a dictionary from VOC ids to 0/1 vectors of the foreground classes, read
without running code. Called by `tags_found` and `voc`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distwsss.data.sources.listing import BACKGROUND, TagRow
from distwsss.data.sources.tags_csv import Tags
from distwsss.data.sources.voc_classes import VOC_CLASSES
from distwsss.errors import CheckpointError, DataError

VOC_ID = re.compile(r"\d{4}_\d{6}")


def read_cls_labels(path: Path, find: Callable[[str], list[str]], classes: list[str] | None) -> Tags:
    """The labels of each id, by class name. Integer ids are VOC's without `_`, unless a picture is called so.

    `classes`: background first; None: VOC's where the ids are VOC's and the vectors have 20 numbers. Raises DataError
    for vectors of another length, values besides 0 and 1, and a file that is no such dictionary.
    """
    from distwsss.models.weights.pickles import read_npy_dict

    try:
        content = read_npy_dict(path)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    vectors = {_name(key, find): _vector(value) for key, value in content.items()}
    names = classes or _voc_classes(path, vectors)
    wrong = [name for name, vector in vectors.items() if len(vector) != len(names) - 1 or not set(vector) <= {0, 1}]
    if wrong:
        raise DataError(
            f"{path}: {len(wrong)} of {len(vectors)} entries ({', '.join(wrong[:3])}) are no vectors of "
            f"{len(names) - 1} numbers 0 or 1; allowed: one for each foreground class"
        )
    rows = [
        TagRow(name, [names[at + 1] for at, on in enumerate(vector) if on], None, [])
        for name, vector in vectors.items()
    ]
    said = f"{path}: vectors of {len(names) - 1} classes" + (
        "" if classes else f" in VOC's order, without `{BACKGROUND}`"
    )
    return Tags(rows, said, "npy", classes=names)


def _voc_classes(path: Path, vectors: dict[str, list[Any]]) -> list[str]:
    if all(VOC_ID.fullmatch(name) and len(vector) == len(VOC_CLASSES) - 1 for name, vector in vectors.items()):
        return VOC_CLASSES
    raise DataError(f"{path}: found vectors without class names; give `data.classes` or classes.txt")


def _name(key: Any, find: Callable[[str], list[str]]) -> str:
    """`2007000032` -> `2007_000032`."""
    name = str(key)
    return f"{name[:4]}_{name[4:]}" if re.fullmatch(r"\d{10}", name) and not find(name) else name


def _vector(value: Any) -> list[Any]:
    return [float(number) for number in value.reshape(-1).tolist()] if hasattr(value, "reshape") else list(value)
