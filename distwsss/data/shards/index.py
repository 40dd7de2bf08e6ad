"""The index of a folder of shards, and selections from it. Called by every stage that reads shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distwsss.data.shards.format import FORMAT, INDEX, INDEX_DIGEST, MADE_BY, ShardRecord, digest_line
from distwsss.errors import ShardError
from distwsss.runtime.artifacts import fingerprint
from distwsss.runtime.storage import Folder

_OWN = ("format", "kind", "classes", "parameters", "fingerprint", "shards")


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """`index.json` of `folder`. `classes` includes background as entry 0; `extra`: what its stage added."""

    folder: Folder
    kind: str
    classes: list[str]
    parameters: dict[str, Any]
    fingerprint: str
    shards: list[ShardRecord]
    extra: dict[str, Any]

    @property
    def counts(self) -> list[int]:
        """Samples of each shard."""
        return [len(record.keys) for record in self.shards]

    def __len__(self) -> int:
        return sum(self.counts)

    def key(self, shard: int, position: int) -> str:
        return self.shards[shard].keys[position]

    def select(self, keys: Callable[[str], bool]) -> Selection:
        """The samples whose key passes the test, in shard order."""
        positions = [[i for i, key in enumerate(record.keys) if keys(key)] for record in self.shards]
        return Selection(self, positions)

    def all(self) -> Selection:
        return Selection(self, [list(range(count)) for count in self.counts])

    def with_truth(self) -> Selection:
        """The samples that have a mask."""
        members = (enumerate(record.members) for record in self.shards)
        return Selection(self, [[i for i, fields in each if "truth.png" in fields] for each in members])

    def check_same_images(self, other: ShardIndex) -> None:
        """Raises ShardError unless `other` holds the same images at the same places."""
        if [record.keys for record in other.shards] != [record.keys for record in self.shards]:
            raise ShardError(f"{other.folder} and {self.folder} do not hold the same images; run distwsss seeds anew")


@dataclass(frozen=True, eq=False)
class Selection:
    """Some samples of an index: `positions[s]`, ascending, inside shard s. Compared by identity; do not change it."""

    index: ShardIndex
    positions: list[list[int]]

    def __len__(self) -> int:
        return sum(map(len, self.positions))

    def places(self) -> list[tuple[int, int]]:
        """(shard, position) of each, in shard order."""
        return [(shard, i) for shard, positions in enumerate(self.positions) for i in positions]

    def keys(self) -> list[str]:
        """Keys in shard order."""
        return [self.index.key(*place) for place in self.places()]


def _read_checked(folder: Folder, kind: str | None) -> Any:
    """index.json parsed, after its bytes are compared with index.json.sha256."""
    path, again = folder / INDEX, MADE_BY.get(kind or "", "the stage that writes it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); {again} makes it") from error
    try:
        found = (folder / INDEX_DIGEST).read_bytes()
    except OSError as error:
        raise ShardError(f"{folder / INDEX_DIGEST}: cannot be read ({error.strerror}); {again} makes it") from error
    if found != digest_line(data):
        damaged = f"does not match {INDEX_DIGEST}: one of them is damaged"
        raise ShardError(f"{path}: {damaged}; delete {folder} and run {again}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: not JSON ({error}); delete {folder} and run {again}") from error


def _check_index(value: Any, kind: str | None) -> None:
    if value["format"] != FORMAT:
        raise ValueError(f"found format {value['format']!r}; allowed: {FORMAT}")
    if value["kind"] not in MADE_BY or kind not in (None, value["kind"]):
        raise ValueError(f"found shards of kind {value['kind']!r}; allowed: {kind or ', '.join(MADE_BY)}")
    if value["fingerprint"] != fingerprint(value["parameters"]):
        raise ValueError("the fingerprint is not that of the parameters")
    classes = value["classes"]
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"found classes {classes!r}; allowed: a list of names, background first")
    if not isinstance(value["shards"], list):
        raise ValueError("`shards` is not a list")


def load_index(folder: Folder, kind: str | None = None) -> ShardIndex:
    """The index of `folder`, checked against its sha256; with `kind` (one of `format.REQUIRED`) only of that kind.

    Raises ShardError when it is missing, damaged, of another format or kind, or names a key twice.
    """
    path = folder / INDEX
    value = _read_checked(folder, kind)
    try:
        _check_index(value, kind)
    except (KeyError, TypeError, ValueError) as error:
        missing = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ShardError(f"{path}: {missing}") from error
    records = [ShardRecord.from_json(record, f"{path}: shard {i}") for i, record in enumerate(value["shards"])]
    seen: set[str] = set()
    for name in [record.name for record in records] + [key for record in records for key in record.keys]:
        if name in seen:
            raise ShardError(f"{path}: {name} stands twice")
        seen.add(name)
    extra = {name: item for name, item in value.items() if name not in _OWN}
    return ShardIndex(
        folder, value["kind"], value["classes"], value["parameters"], value["fingerprint"], records, extra
    )
