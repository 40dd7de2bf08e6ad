"""A folder of shards made one by one, so that a killed stage goes on. Called by `data.prepare`, `saliency.maps`
and `seeds.generate`.

Every published shard has a record beside it, `NAME.tar.json`, that says which parameters made it; the index, which
takes the records in, comes last. Only the process that holds the run's lock publishes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from distwsss.data.shards.format import INDEX, ShardRecord
from distwsss.data.shards.index import load_index
from distwsss.data.shards.scratch import damage
from distwsss.data.shards.writer import publish_shard, write_index
from distwsss.errors import ShardError
from distwsss.runtime.artifacts import check_same, differences, read_json, sha256_file, write_json
from distwsss.runtime.faults import fault_point
from distwsss.runtime.storage import Folder, size_of


@dataclass
class Packed:
    """A shard in memory."""

    record: ShardRecord
    data: bytes


@dataclass(frozen=True)
class ShardStage:
    """The folder, the kind of shards in it (`format.REQUIRED`), and the parameters of all of them. `name`:
    what messages call the stage."""

    name: str
    kind: str
    folder: Folder
    parameters: dict[str, Any]

    def shard(self, number: int) -> Folder:
        return self.folder / f"{self.kind}-{number:05d}.tar"

    def record_path(self, number: int) -> Folder:
        return self.folder / f"{self.shard(number).name}.json"

    def published(self, number: int) -> dict[str, Any] | None:
        """The record {parameters, record, ...} of a shard that an earlier attempt made, of whatever parameters; None
        without one, and where the shard's bytes are not those recorded."""
        try:
            about, data = self.record_path(number).read_bytes(), self.shard(number).read_bytes()
        except FileNotFoundError:
            return None
        try:
            value: dict[str, Any] = json.loads(about)
            record = ShardRecord.from_json(value["record"], str(self.record_path(number)))
        except (ValueError, KeyError, TypeError, ShardError):
            return None
        return None if damage(data, record) else value

    def finished(self, number: int, remake: bool = False) -> dict[str, Any] | None:
        """`published`, but raises ConfigError when it was made with other parameters; with `remake` None."""
        value = self.published(number)
        if value is not None and remake and differences(value["parameters"], self.parameters):
            return None
        if value is not None:
            check_same(value["parameters"], self.parameters, f"{self.name} ({self.shard(number)})")
        return value

    def publish(self, number: int, packed: Packed, **about: Any) -> None:
        """The shard, then the record that says which parameters made it, so that a rerun never mixes. A shard that lies
        there byte for byte is not written again."""
        if not self._holds(packed.record):
            publish_shard(self.folder, packed.record, packed.data)
        value = {"parameters": self.parameters, "record": packed.record.to_json(), **about}
        write_json(self.record_path(number), value)
        fault_point(f"after-shard:{packed.record.name}")

    def _holds(self, record: ShardRecord) -> bool:
        try:
            same = size_of(self.folder / record.name) == record.bytes
        except FileNotFoundError:
            return False
        return same and sha256_file(self.folder / record.name) == record.sha256

    def reopen(self, count: int, kept: dict[int, dict[str, Any]] | None = None) -> None:
        """Turn what lies there into an attempt at these parameters that was killed: no index, a record for the shards
        that are `kept` (number -> what else their record says), no shards after the first `count`.

        The records come first: a kill before the index goes leaves the folder complete as it was.
        """
        if (self.folder / INDEX).is_file():
            shards = load_index(self.folder, self.kind).shards if kept else []
            for number, about in (kept or {}).items():
                value = {"parameters": self.parameters, "record": shards[number].to_json(), **about}
                write_json(self.record_path(number), value)
            (self.folder / INDEX).unlink()
        wanted = {self.shard(number).name for number in range(count)}
        for path in [*self.folder.glob(f"{self.kind}-*.tar"), *self.folder.glob(f"{self.kind}-*.tar.json")]:
            if path.name.removesuffix(".json") not in wanted:
                path.unlink(missing_ok=True)
        fault_point(f"after-reopen:{self.kind}")

    def complete(self, count: int, classes: list[str], extra: dict[str, Any]) -> None:
        """The index; the records are in it."""
        records = [ShardRecord.from_json(read_json(self.record_path(n))["record"], self.name) for n in range(count)]
        write_index(self.folder, records, self.parameters, classes, self.kind, extra)
        fault_point(f"after-index:{self.kind}")
        for number in range(count):
            self.record_path(number).unlink(missing_ok=True)

    def remove_stale(self) -> None:
        """What killed attempts left that is of no use: temporary files, and records that are in the index."""
        records = self.folder.glob(f"{self.kind}-*.tar.json") if (self.folder / INDEX).is_file() else []
        for stale in [*self.folder.glob(".*.tmp"), *records]:  # of dead processes: this one holds the lock
            stale.unlink(missing_ok=True)
