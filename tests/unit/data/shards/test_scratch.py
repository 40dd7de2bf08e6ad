"""Copies of shards on a local disk: right or not there, within the limit, and the leftovers of the dead removed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import iter_shard, read_fields
from distwsss.data.shards.verify import digest_problems, verified, verify
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.errors import ShardError
from distwsss.runtime.storage import Remote, Scratch
from helpers.small import CLASSES, Samples, make_samples

SHARDS = 4

HOLDER = """
import sys, time
from pathlib import Path
from filelock import FileLock
folder = Path(sys.argv[1])
with FileLock(folder / "lock"):
    (folder / ".half.tar.abc.tmp").write_bytes(b"half")
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def made(tmp_path: Path) -> tuple[ShardIndex, Samples]:
    """Four shards in a store, their index with room for three in scratch, and their samples."""
    url = f"memory://{uuid.uuid4().hex}"
    samples = [make_samples(3 * shard, 3) for shard in range(SHARDS)]
    records = [write_shard(Remote(url) / f"images-{s:05d}.tar", samples[s]) for s in range(SHARDS)]
    write_index(Remote(url), records, {}, CLASSES, "images")
    limit = sum(sorted(record.bytes for record in records)[-3:])
    index = load_index(Remote(url, Scratch(tmp_path / "scratch", limit)))
    return index, [sample for part in samples for sample in part]


def copies(index: ShardIndex) -> set[int]:
    """The numbers of the shards that are in scratch."""
    assert isinstance(index.folder, Remote)
    assert index.folder.scratch is not None
    names = {path.stem for path in index.folder.scratch.folder.glob("*.tar")}
    return {number for number, record in enumerate(index.shards) if record.sha256 in names}


def read_one(index: ShardIndex, shard: int) -> None:
    read_fields(index, shard, 0, ["jpg"])
    time.sleep(0.02)  # times of use that a file system tells apart


def test_reading_gives_the_same_samples(made: tuple[ShardIndex, Samples]) -> None:
    index, samples = made
    for _ in range(2):
        found = [sample for s in range(SHARDS) for sample in iter_shard(index, s, ["jpg", "json", "truth.png"])]
        assert found == samples


def test_a_copy_is_read_without_the_store(made: tuple[ShardIndex, Samples]) -> None:
    index, samples = made
    assert verified(index) is index
    (index.folder / index.shards[3].name).unlink()
    assert read_fields(index, 3, 0, ["jpg"]) == {"jpg": samples[9][1]["jpg"]}


def test_the_least_recently_used_goes(made: tuple[ShardIndex, Samples]) -> None:
    index, _ = made
    for shard in (0, 1, 2):
        read_one(index, shard)
    assert copies(index) == {0, 1, 2}
    read_one(index, 0)
    read_one(index, 3)
    assert 0 in copies(index)
    assert 1 not in copies(index)
    assert 3 in copies(index)
    sizes = [index.shards[shard].bytes for shard in copies(index)]
    assert sum(sizes) <= index.folder.scratch.limit


def test_one_shard_stays_in_a_scratch_that_is_too_small(made: tuple[ShardIndex, Samples]) -> None:
    index, samples = made
    small = load_index(Remote(index.folder.url, Scratch(index.folder.scratch.folder, 1)))
    for shard in range(SHARDS):
        assert read_fields(small, shard, 0, ["json"]) == {"json": samples[3 * shard][1]["json"]}
        assert copies(small) == {shard}


def test_a_damaged_shard_is_no_copy(made: tuple[ShardIndex, Samples]) -> None:
    index, _ = made
    path = index.folder / index.shards[1].name
    data = path.read_bytes()
    path.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    with pytest.raises(ShardError, match=r"images-00001\.tar: sha256 differs from index\.json"):
        read_fields(index, 1, 0, ["jpg"])
    with pytest.raises(ShardError, match=r"damaged \(1 problem\)"):
        verified(index)
    assert copies(index) == {0, 2, 3}


def test_a_shard_that_is_gone_is_missing(made: tuple[ShardIndex, Samples]) -> None:
    index, _ = made
    (index.folder / index.shards[1].name).unlink()
    assert "missing" in digest_problems(index, 1)[0]


def test_verify_looks_at_the_store_and_stages_at_the_copy(made: tuple[ShardIndex, Samples]) -> None:
    index, _ = made
    read_one(index, 0)
    path = index.folder / index.shards[0].name
    data = path.read_bytes()
    path.write_bytes(data[:700] + bytes([data[700] ^ 1]) + data[701:])
    assert "sha256 differs" in verify(index.folder)[0]
    assert digest_problems(index, 0) == []


def test_a_copy_that_its_disk_damaged_is_fetched_anew(made: tuple[ShardIndex, Samples]) -> None:
    index, samples = made
    read_one(index, 0)
    copy = index.folder.scratch.folder / f"{index.shards[0].sha256}.tar"
    copy.write_bytes(bytes(index.shards[0].bytes))
    assert digest_problems(index, 0) == []
    assert read_fields(index, 0, 0, ["jpg"]) == {"jpg": samples[0][1]["jpg"]}


def test_a_copy_that_is_short_is_fetched_anew(made: tuple[ShardIndex, Samples]) -> None:
    index, samples = made
    read_one(index, 0)
    (index.folder.scratch.folder / f"{index.shards[0].sha256}.tar").write_bytes(b"cut")
    assert read_fields(index, 0, 0, ["jpg"]) == {"jpg": samples[0][1]["jpg"]}


def test_a_reader_keeps_what_is_removed_meanwhile(made: tuple[ShardIndex, Samples]) -> None:
    index, samples = made
    iterator = iter_shard(index, 0, ["jpg"])
    next(iterator)
    for path in index.folder.scratch.folder.glob("*.tar"):
        path.unlink()
    assert [key for key, _ in iterator] == [key for key, _ in samples[1:3]]


def test_temporary_files_of_the_dead_go_and_those_of_the_living_stay(made: tuple[ShardIndex, Samples]) -> None:
    index, samples = made
    scratch = index.folder.scratch.folder
    scratch.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(scratch)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        found: dict[str, bytes] = {}
        reader = threading.Thread(target=lambda: found.update(read_fields(index, 0, 0, ["jpg"])))
        reader.start()
        reader.join(0.5)
        assert reader.is_alive()  # waits for the living
        assert (scratch / ".half.tar.abc.tmp").exists()
    finally:
        holder.kill()
        holder.wait()
    reader.join(20)
    assert found == {"jpg": samples[0][1]["jpg"]}
    assert not list(scratch.glob(".*"))


def test_threads_share_one_copy(made: tuple[ShardIndex, Samples]) -> None:
    index, samples = made
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(read_fields(index, 2, 1, ["jpg"])["jpg"])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [samples[7][1]["jpg"]] * 8
    assert copies(index) == {2}
