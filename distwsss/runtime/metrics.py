"""metrics.jsonl: one JSON object a line, written by `train.steps`, read by it and by `report`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from distwsss.errors import RunError


def append_metrics(path: Path, entry: dict[str, Any]) -> None:
    """One line more; on a line of its own also after one that a kill cut short."""
    line = json.dumps(entry).encode() + b"\n"
    try:
        with path.open("a+b") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                line = b"\n" + line
            file.write(line)
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); make room and run the same command again"
        ) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl by step; of a step logged twice (before and after a restart) the later fields win.

    A line cut short by a kill is left out.
    """
    steps: dict[float, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            steps.setdefault(entry["step"], {}).update(entry)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return [steps[step] for step in sorted(steps)]
