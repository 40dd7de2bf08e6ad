"""Tags that the classifiers contradict: `classify` writes them down, `prepare` and `report` show them again.

A JSON line each, the most doubtful first; those of photographs or tags that have changed since are not read back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from distwsss.runtime.artifacts import write_bytes


@dataclass(frozen=True)
class Doubt:
    """`tagged`: whether photograph `id` has the tag `label`; `score`: 0..1 of the class, mean over the classifiers;
    `held_out`: none of them was trained on it; `images`: fingerprint of the image shards."""

    id: str
    label: str
    tagged: bool
    score: float
    held_out: bool
    images: str

    @property
    def doubt(self) -> float:
        """0..1, how far the classifiers are from the tags."""
        return 1 - self.score if self.tagged else self.score

    def __str__(self) -> str:
        said = "tagged" if self.tagged else "not tagged"
        return f"{self.id}: {said} {self.label}, score {self.score:.2f}" + " (held out)" * self.held_out


def write_doubts(path: Path, doubts: Iterable[Doubt]) -> list[Doubt]:
    """In order of doubt; returns them so."""
    found = sorted(doubts, key=lambda each: (-each.doubt, each.id, each.label))
    write_bytes(path, "".join(f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in found).encode())
    return found


def read_doubts(path: Path, images: str) -> list[Doubt]:
    """Those of the image shards with the fingerprint `images`; none where nothing was written about them."""
    if not path.is_file():
        return []
    try:
        found = [Doubt(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError):  # somebody's own notes: a list to look at ends no run
        return []
    return [each for each in found if each.images == images]


def first_doubts(doubts: list[Doubt], count: int) -> str:
    """The first `count` of them, a line each."""
    return "\n".join(f"  {each}" for each in doubts[:count])
