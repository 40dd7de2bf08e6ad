"""Writing, indexing and reading shards: equal bytes, nothing half-written, any WebDataset reader opens them."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from distwsss.data.shards.format import MAX_KEY, ShardRecord, is_key, key_from_name, name_from_key, split_member
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import OPEN_SHARDS, iter_shard, read_fields, read_json_field, read_truth
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.errors import DataError, ShardError
from helpers.paths import REPOSITORY
from helpers.small import CLASSES, make_folder, make_samples

# --- keys ---


@given(st.text(min_size=1, max_size=12))
@settings(max_examples=300)
def test_key_is_reversible_and_safe(name):
    key = key_from_name(name)
    assert name_from_key(key) == name
    assert is_key(key)
    assert set(key).isdisjoint("./\\ \0\n")
    assert key.isascii()


@given(st.text("a./%2Eé~\u0301", min_size=1, max_size=6), st.text("a./%2Eé~\u0301", min_size=1, max_size=6))
@settings(max_examples=500)
def test_key_is_injective(one, other):
    assert (key_from_name(one) == key_from_name(other)) == (one == other)


def test_key_examples():
    assert key_from_name("2007_000032") == "2007_000032"
    assert key_from_name("img.v1") == "img%2Ev1"
    assert key_from_name("../../etc/k") == "%2E%2E%2F%2E%2E%2Fetc%2Fk"
    assert key_from_name("a%2Eb") != key_from_name("a.b")


@pytest.mark.parametrize("name", ["", "a" * (MAX_KEY + 1), "\u732b" * 23, "\ud800"])
def test_impossible_names_are_refused(name):
    with pytest.raises(DataError, match="rename"):
        key_from_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/k2.jpg",
        "/abs/k3.jpg",
        "a/b.jpg",
        "a.pyd",
        "a.jpg.pkl",
        "a.s01.png",
        "a.S0.png",
        "jpg",
        ".jpg",
        "a%2e.jpg",
        "a b.jpg",
        "a.jpg\n",
        "%zz.jpg",
        "%ff.jpg",
    ],
)
def test_unsafe_member_names_are_refused(name):
    with pytest.raises(ShardError):
        split_member(name)


def test_member_name_is_split_at_the_first_dot():
    assert split_member("img%2Ev1.truth.png") == ("img%2Ev1", "truth.png")
    assert split_member("a.s17.png") == ("a", "s17.png")


# --- writing ---


def test_two_writes_are_byte_identical(tmp_path):
    records = [write_shard(tmp_path / name / "images-00000.tar", make_samples()) for name in ("one", "two")]
    files = [(tmp_path / name / "images-00000.tar").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert records[0] == records[1]
    assert records[0].sha256 == hashlib.sha256(files[0]).hexdigest()
    assert records[0].bytes == len(files[0])


def test_two_indices_are_byte_identical(tmp_path):
    for name in ("one", "two"):
        make_folder(tmp_path / name)
    for file in sorted((tmp_path / "one").iterdir()):
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_tar_is_plain_ustar_in_the_given_order(tmp_path):
    samples = make_samples()
    record = write_shard(tmp_path / "images-00000.tar", samples)
    data = (tmp_path / "images-00000.tar").read_bytes()
    with tarfile.open(tmp_path / "images-00000.tar", "r:") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"{key}.{field}" for key, fields in samples for field in fields]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        assert (member.uname, member.gname, member.type) == ("", "", tarfile.REGTYPE)
        assert data[member.offset + 257 : member.offset + 265] == b"ustar\x0000"
        assert member.offset_data == member.offset + 512  # no extension headers
        key, field = split_member(member.name)
        assert record.members[record.keys.index(key)][field] == [member.offset_data, member.size]


def test_longest_keys_survive(tmp_path):
    key = "k" * MAX_KEY
    record = write_shard(tmp_path / "images-00000.tar", [(key, {"truth.png": b"x" * 700})])
    offset, size = record.members[0]["truth.png"]
    assert (tmp_path / "images-00000.tar").read_bytes()[offset : offset + size] == b"x" * 700
    (sample,) = webdataset.WebDataset(str(tmp_path / "images-00000.tar"), shardshuffle=False)
    assert (sample["__key__"], sample["truth.png"]) == (key, b"x" * 700)


def test_stock_webdataset_reads_equal_bytes(tmp_path):
    samples = make_folder(tmp_path)
    urls = [str(tmp_path / f"images-{s:05d}.tar") for s in range(2)]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [key for key, _ in samples]
    for sample, (_, fields) in zip(found, samples, strict=True):
        assert {name: value for name, value in sample.items() if not name.startswith("__")} == fields


def test_ids_with_dots_stay_apart_in_stock_webdataset(tmp_path):
    samples = [(key_from_name(name), {"jpg": name.encode()}) for name in ("img.v1", "img.v2", "img", "d/img.v1", "é")]
    write_shard(tmp_path / "images-00000.tar", samples)
    found = list(webdataset.WebDataset(str(tmp_path / "images-00000.tar"), shardshuffle=False))
    assert [(sample["__key__"], {"jpg": sample["jpg"]}) for sample in found] == samples


def test_an_exception_leaves_nothing_visible(tmp_path):
    def broken():
        yield from make_samples(0, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "images-00000.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_old_shard(tmp_path):
    path = tmp_path / "images-00000.tar"
    write_shard(path, make_samples())
    before = path.read_bytes()
    with pytest.raises(ShardError):
        write_shard(path, [*make_samples(0, 3), ("a/b", {"jpg": b""})])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_kill_leaves_nothing_under_the_final_name(tmp_path):
    script = """
import os, signal, sys
from pathlib import Path
from distwsss.data.shards.writer import write_shard
def samples():
    for i in range(100):
        if i == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        yield f"k{i}", {"jpg": bytes(5000)}
write_shard(Path(sys.argv[1]), samples())
"""
    path = tmp_path / "images-00000.tar"
    result = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=60)
    assert result.returncode == -9
    assert not path.exists()
    assert all(file.name.startswith(".") and file.name.endswith(".tmp") for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    "samples",
    [
        [("a", {"jpg": b"1"}), ("a", {"json": b"{}"})],
        [("a", {})],
        [("../a", {"jpg": b"1"})],
        [("a.b", {"jpg": b"1"})],
        [("a", {"pyd": b"1"})],
        [("a", {"../jpg": b"1"})],
    ],
)
def test_writer_refuses_what_a_shard_may_not_hold(tmp_path, samples):
    with pytest.raises(ShardError):
        write_shard(tmp_path / "images-00000.tar", samples)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["images.00000.tar", "images.tgz", "pipe:images.tar"])
def test_writer_refuses_odd_file_names(tmp_path, name):
    with pytest.raises(ShardError, match="file name"):
        write_shard(tmp_path / name, make_samples())


# --- index ---


def test_index_round_trip(tmp_path):
    samples = make_folder(tmp_path)
    index = load_index(tmp_path, "images")
    assert (index.folder, index.kind, index.classes, index.extra) == (
        tmp_path,
        "images",
        CLASSES,
        {"labels_from": "csv"},
    )
    assert index.parameters == {"data": {"dataset": "shapes"}}
    assert index.counts == [4, 4]
    assert len(index) == 8
    assert index.all().keys() == [key for key, _ in samples]
    assert [ShardRecord.from_json(record.to_json(), "here") for record in index.shards] == index.shards


def test_index_digest_is_that_of_sha256sum(tmp_path):
    make_folder(tmp_path)
    digest = hashlib.sha256((tmp_path / "index.json").read_bytes()).hexdigest()
    assert (tmp_path / "index.json.sha256").read_text() == f"{digest}  index.json\n"


@pytest.mark.parametrize(("kind", "verb"), [("images", "distwsss prepare"), ("seeds", "distwsss seeds")])
def test_missing_index_names_the_verb(tmp_path, kind, verb):
    with pytest.raises(ShardError, match=verb):
        load_index(tmp_path / "nothing", kind)


def test_index_of_another_kind_is_refused(tmp_path):
    make_folder(tmp_path)
    with pytest.raises(ShardError, match="'images'; allowed: pseudo"):
        load_index(tmp_path, "pseudo")


def rewrite_index(folder: Path, change) -> None:
    """A consistent index with other content, as someone might hand out."""
    value = json.loads((folder / "index.json").read_bytes())
    changed = change(value)
    data = json.dumps(value if changed is None else changed).encode()
    (folder / "index.json").write_bytes(data)
    (folder / "index.json.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  index.json\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: [],
        lambda v: {"format": 1},
        lambda v: v.update(format=2),
        lambda v: v.update(kind="other"),
        lambda v: v.update(classes=[]),
        lambda v: v.update(parameters={}),
        lambda v: v.update(shards={}),
        lambda v: v["shards"].append(v["shards"][0]),
        lambda v: v["shards"][0].update(name="../images.tar"),
        lambda v: v["shards"][0].update(name="pipe:touch x"),
        lambda v: v["shards"][0].update(samples=5),
        lambda v: v["shards"][0].update(sha256="x"),
        lambda v: v["shards"][0].update(keys=["../a"] * 4),
        lambda v: v["shards"][0].update(keys=[1, 2, 3, 4]),
        lambda v: v["shards"][1].update(keys=v["shards"][0]["keys"]),
        lambda v: v["shards"][0]["members"].clear(),
        lambda v: v["shards"][0]["members"][0].update(jpg=[-5, 3]),
        lambda v: v["shards"][0]["members"][0].update(jpg=[512, 10**9]),
        lambda v: v["shards"][0]["members"][0].update(jpg=[512.0, 3]),
        lambda v: v["shards"][0]["members"][0].update(pyd=[512, 3]),
        lambda v: v["shards"][0].update(bytes=None),
        lambda v: v["shards"].append({}),
    ],
)
def test_a_consistent_but_wrong_index_is_refused(tmp_path, change):
    make_folder(tmp_path)
    rewrite_index(tmp_path, change)
    with pytest.raises(ShardError, match=r"index\.json"):
        load_index(tmp_path)


def test_a_damaged_index_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "index.json").write_bytes((tmp_path / "index.json").read_bytes() + b" ")
    with pytest.raises(ShardError, match="damaged"):
        load_index(tmp_path)


def test_an_index_without_its_digest_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "index.json.sha256").unlink()
    with pytest.raises(ShardError, match="sha256"):
        load_index(tmp_path)


def test_index_refuses_a_key_in_two_shards(tmp_path):
    records = [write_shard(tmp_path / f"images-0000{s}.tar", make_samples()) for s in range(2)]
    with pytest.raises(ShardError, match="id%2E0"):
        write_index(tmp_path, records, {}, CLASSES, "images")


def test_index_refuses_an_unknown_kind(tmp_path):
    record = write_shard(tmp_path / "images-00000.tar", make_samples())
    with pytest.raises(ShardError, match="kind"):
        write_index(tmp_path, [record], {}, CLASSES, "pictures")


def test_a_failure_between_the_two_files_leaves_no_index(tmp_path, monkeypatch):
    make_folder(tmp_path)
    records = load_index(tmp_path).shards
    real = os.replace

    def fail_on_index(source, target):
        if Path(target).name == "index.json":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_on_index)
    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path, records, {"new": 1}, CLASSES, "images")
    assert not (tmp_path / "index.json").exists()


# --- reading ---


def test_reading_gives_the_written_bytes(tmp_path):
    samples = make_folder(tmp_path)
    index = load_index(tmp_path)
    every = ["jpg", "json", "truth.png"]
    for n, (key, fields) in enumerate(samples):
        assert index.key(n // 4, n % 4) == key
        assert read_fields(index, n // 4, n % 4, every) == fields
        assert read_fields(index, n // 4, n % 4, ["json"]) == {"json": fields["json"]}


def test_a_shard_is_read_in_order(tmp_path):
    samples = make_folder(tmp_path)
    index = load_index(tmp_path)
    assert [sample for s in range(2) for sample in iter_shard(index, s, ["jpg", "json", "truth.png"])] == samples


def test_truth_is_decoded_or_none(tmp_path):
    make_folder(tmp_path)
    index = load_index(tmp_path)
    np.testing.assert_array_equal(read_truth(index, 0, 2), np.full((6, 10), 2, np.uint8))
    assert read_truth(index, 0, 1) is None


def test_a_short_shard_is_an_error(tmp_path):
    make_folder(tmp_path)
    index = load_index(tmp_path)
    path = tmp_path / "images-00000.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ShardError, match="the index says"):
        read_fields(index, 0, 0, ["jpg"])


def test_a_missing_shard_is_an_error(tmp_path):
    make_folder(tmp_path)
    index = load_index(tmp_path)
    (tmp_path / "images-00001.tar").unlink()
    with pytest.raises(ShardError, match="cannot be opened"):
        read_fields(index, 1, 0, ["jpg"])


def test_a_shard_cut_while_open_is_an_error(tmp_path):
    make_folder(tmp_path)
    index = load_index(tmp_path)
    read_fields(index, 0, 0, ["jpg"])
    os.truncate(tmp_path / "images-00000.tar", 600)
    with pytest.raises(ShardError, match="verify"):
        read_fields(index, 0, 3, ["jpg"])


def test_a_shard_written_anew_is_opened_anew(tmp_path):
    path = tmp_path / "images-00000.tar"
    for content in (b"old", b"new"):
        write_index(tmp_path, [write_shard(path, [("a", {"jpg": content})])], {}, CLASSES, "images")
        assert read_fields(load_index(tmp_path), 0, 0, ["jpg"]) == {"jpg": content}


def test_open_files_are_bounded(tmp_path):
    records = [
        write_shard(tmp_path / f"images-{s:05d}.tar", [(f"k{s}", {"jpg": b"x"})]) for s in range(OPEN_SHARDS + 9)
    ]
    write_index(tmp_path, records, {}, CLASSES, "images")
    index = load_index(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for shard in range(len(records)):
        assert read_fields(index, shard, 0, ["jpg"]) == {"jpg": b"x"}
    assert len(os.listdir("/proc/self/fd")) - before <= OPEN_SHARDS


def test_reading_in_forked_and_spawned_processes(tmp_path):
    """Concurrent readers with inherited handles do not disturb each other, and nobody complains at exit."""
    samples = make_folder(tmp_path)
    script = """
import multiprocessing, sys
from pathlib import Path
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_fields
def read(place):
    return read_fields(load_index(Path(sys.argv[1])), *place, ["jpg"])["jpg"]
if __name__ == "__main__":
    places = [(s, i) for s in range(2) for i in range(4)]
    expected = [read(place) for place in places]
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(read, places * 20, chunksize=1) == expected * 20
"""
    (tmp_path / "script.py").write_text(script)
    command = [
        sys.executable,
        "-X",
        "dev",
        "-W",
        "ignore::DeprecationWarning",
        str(tmp_path / "script.py"),
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "Handle" not in result.stderr
    assert len(samples) == 8


def test_a_json_field_is_an_object():
    assert read_json_field(b'{"labels": null}', "here") == {"labels": None}


@pytest.mark.parametrize("data", [b"", b"\xff", b"[1]", b"[" * 100_000], ids=["empty", "bytes", "list", "nested"])
def test_a_json_field_that_is_none_is_refused(data):
    with pytest.raises(ShardError, match="here"):
        read_json_field(data, "here")
