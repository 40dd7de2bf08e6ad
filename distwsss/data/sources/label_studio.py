"""Choices of a Label Studio export (JSON: a list of tasks with `annotations`, or `completions` before version 1.0).
Called by `tags_found`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

from distwsss.data.sources.columns import PEOPLE
from distwsss.data.sources.listing import IMAGE_SUFFIXES, TagRow
from distwsss.data.sources.pictures import Pictures, by_address
from distwsss.data.sources.table import read_json
from distwsss.data.sources.tags_csv import Tags
from distwsss.errors import DataError

RESULTS = ("annotations", "completions")


def is_label_studio(path: Path) -> bool:
    """Whether a JSON file is such an export."""
    try:
        content = read_json(path)
    except DataError:
        return False
    tasks = content if isinstance(content, list) else []
    return bool(tasks) and all(isinstance(task, dict) and "data" in task and _has_results(task) for task in tasks)


def is_json_min(path: Path) -> bool:
    """Whether a JSON file is Label Studio's short form: a record for each annotation, with who made it."""
    try:
        content = read_json(path)
    except DataError:
        return False
    records = content if isinstance(content, list) else []
    return bool(records) and all(isinstance(each, dict) and any(name in each for name in PEOPLE) for each in records)


def _has_results(task: dict[str, Any]) -> bool:
    return any(isinstance(task.get(key), list) for key in RESULTS)


def read_label_studio(path: Path, pictures: Pictures, classes: list[str] | None) -> Tags:
    """The choices of every task that somebody has finished; of several annotators those of all. Raises DataError for a
    task without an image, or where nobody has chosen anything."""
    tasks = [(_image(task["data"], path), _finished(task)) for task in read_json(path)]
    done = [(image, results) for image, results in tasks if results]
    rows = [TagRow(by_address(image, pictures), _choices(results), None, []) for image, results in done]
    if not any(row.tags for row in rows):
        raise DataError(f"{path}: found no result of type `choices`; allowed: tasks with choices as image-level labels")
    several = sum(len(results) > 1 for _, results in done)
    said = f"{path}: an export of Label Studio with {len(rows)} annotated tasks"
    said += f", {len(tasks) - len(done)} without an annotation are not used" if len(done) < len(tasks) else ""
    return Tags(rows, said + (f", {several} with several (all their choices count)" if several else ""), "json")


def _image(data: Any, path: Path) -> str:
    """The image of a task: `image`, else the first value that is called as one."""
    values = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    named = [value for value in values if unquote(value).split("?")[-1].lower().endswith(IMAGE_SUFFIXES)]
    image = data.get("image") if isinstance(data, dict) else None
    if not isinstance(image, str) and not named:
        raise DataError(f"{path}: a task has no image in its `data` ({data!r:.80}); allowed: `image`")
    return image if isinstance(image, str) else named[0]


def _finished(task: dict[str, Any]) -> list[list[Any]]:
    """The results of each annotation that was not cancelled."""
    found = [each for key in RESULTS for each in task.get(key) or [] if isinstance(each, dict)]
    return [each.get("result") or [] for each in found if not each.get("was_cancelled") and not each.get("skipped")]


def _choices(results: list[list[Any]]) -> list[str]:
    regions = [region for result in results for region in result if region.get("type") == "choices"]
    names = [str(name).strip() for region in regions for name in region.get("value", {}).get("choices", [])]
    return list(dict.fromkeys(names))
