"""verify finds every flipped byte, truncation, lost or doubled key, and members that no shard may hold."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distwsss.data import images
from distwsss.data.shards.format import ShardRecord
from distwsss.data.shards.index import load_index
from distwsss.data.shards.verify import verified, verify
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.errors import ShardError

CLASSES = ["background", "cat", "dog"]
SHAPE = (8, 10)


def image_fields(seed: int = 0) -> dict[str, bytes]:
    pixels = np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    return {
        "jpg": images.encode_jpeg(pixels),
        "json": json.dumps({"labels": [1, 2], "size": list(SHAPE), "name": f"{seed}"}).encode(),
        "truth.png": images.encode_palette(np.full(SHAPE, seed % 3, np.uint8)),
    }


def seed_fields(count: int = 2) -> dict[str, bytes]:
    return {f"s{i}.png": images.encode_palette(np.full(SHAPE, i % 3, np.uint8)) for i in range(count)}


def pseudo_fields() -> dict[str, bytes]:
    fields = image_fields()
    return {
        "jpg": fields["jpg"],
        "label.png": images.encode_palette(np.full(SHAPE, 255, np.uint8)),
        "votes.png": images.encode_gray(np.full(SHAPE, 6, np.uint8)),
        "clean.png": images.encode_clean(np.zeros(SHAPE, np.bool_)),
        "json": fields["json"],
    }


def build(folder: Path, samples: list[tuple[str, dict[str, bytes]]], kind: str = "images", extra=None) -> Path:
    """One shard and its index; returns the shard's path."""
    path = folder / f"{kind}-00000.tar"
    write_index(folder, [write_shard(path, samples)], {"a": 1}, CLASSES, kind, extra)
    return path


def reindex(folder: Path, path: Path, members: dict[str, dict[str, list[int]]], kind: str = "images") -> None:
    """An index with right sha256 for a shard that was changed by hand: only the walk can find the fault."""
    data = path.read_bytes()
    record = ShardRecord(path.name, len(data), hashlib.sha256(data).hexdigest(), list(members), list(members.values()))
    write_index(folder, [record], {"a": 1}, CLASSES, kind)


def hand_written(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """A shard with any members; the index lists those that an index may list, at their true places."""
    path = folder / "images-00000.tar"
    folder.mkdir(exist_ok=True)
    with tarfile.open(path, "w:") as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    listed: dict[str, dict[str, list[int]]] = {}
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            key, _, field = info.name.partition(".")
            if key == "good":
                listed.setdefault(key, {})[field] = [info.offset_data, info.size]
    reindex(folder, path, listed)


def good_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(tarfile.TarInfo(f"good.{field}"), data) for field, data in image_fields().items()]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    build(folder, [(f"k{i}", image_fields(i)) for i in range(3)])
    assert verify(folder) == []
    return folder


# --- damage ---


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_found(healthy, data):
    path = healthy / data.draw(st.sampled_from(["images-00000.tar", "index.json", "index.json.sha256"]))
    good = path.read_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    damaged = bytearray(good)
    damaged[position] ^= flip
    try:
        path.write_bytes(damaged)
        assert verify(healthy), f"{path.name}: byte {position} ^ {flip}"
    finally:
        path.write_bytes(good)


def test_every_byte_of_the_digest_file_matters(healthy):
    path = healthy / "index.json.sha256"
    good = path.read_bytes()
    for position in range(len(good)):
        for flip in (1, 32, 128):  # 32: the case of a letter
            damaged = bytearray(good)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            assert verify(healthy)
    path.write_bytes(good)
    assert verify(healthy) == []


def places(path: Path) -> dict[str, int]:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    fourth = members[3]
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512
    return {
        "member boundary": fourth.offset,
        "mid header": fourth.offset + 200,
        "mid payload": fourth.offset_data + fourth.size // 2,
        "before EOF blocks": end,
        "zero length": 0,
    }


@pytest.mark.parametrize("cut", ["member boundary", "mid header", "mid payload", "before EOF blocks", "zero length"])
def test_truncation_is_found(healthy, tmp_path, cut):
    folder = shutil.copytree(healthy, tmp_path / "cut")
    path = folder / "images-00000.tar"
    path.write_bytes(path.read_bytes()[: places(path)[cut]])
    problems = verify(folder)
    assert any("images-00000.tar: found" in problem and "bytes" in problem for problem in problems)


@pytest.mark.parametrize("cut", ["member boundary", "mid header", "mid payload", "zero length"])
def test_truncation_is_found_even_with_a_matching_sha256(healthy, tmp_path, cut):
    """The walk over the members finds it alone, whatever the sizes and sums in the index say."""
    folder = shutil.copytree(healthy, tmp_path / "cut")
    path = folder / "images-00000.tar"
    listed = json.loads((folder / "index.json").read_bytes())["shards"][0]
    data = path.read_bytes()[: places(path)[cut]]
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    record = ShardRecord(path.name, listed["bytes"], digest, listed["keys"], listed["members"])
    write_index(folder, [record], {"a": 1}, CLASSES, "images")
    problems = verify(folder)
    assert any("missing in the shard" in problem or "not a whole tar" in problem for problem in problems)


@pytest.mark.parametrize("content", [b"", bytes(10240), np.random.default_rng(1).bytes(10240)])
def test_other_content_is_found(healthy, tmp_path, content):
    folder = shutil.copytree(healthy, tmp_path / "other")
    (folder / "images-00000.tar").write_bytes(content)
    assert any("images-00000.tar" in problem for problem in verify(folder))


@pytest.mark.parametrize("content", [bytes, np.random.default_rng(1).bytes])
def test_other_content_of_the_right_size_is_found(healthy, tmp_path, content):
    folder = shutil.copytree(healthy, tmp_path / "other")
    path = folder / "images-00000.tar"
    path.write_bytes(content(path.stat().st_size))
    assert any("sha256 differs" in problem for problem in verify(folder))


@pytest.mark.parametrize("member", ["header", "jpg", "png"])
def test_one_flipped_bit_is_found(healthy, tmp_path, member):
    folder = shutil.copytree(healthy, tmp_path / "bit")
    path = folder / "images-00000.tar"
    with tarfile.open(path) as tar:
        jpg, png = tar.getmember("k1.jpg"), tar.getmember("k1.truth.png")
    position = {
        "header": jpg.offset + 130,
        "jpg": jpg.offset_data + jpg.size // 2,
        "png": png.offset_data + png.size // 2,
    }
    data = bytearray(path.read_bytes())
    data[position[member]] ^= 1
    path.write_bytes(data)
    assert any("sha256 differs" in problem for problem in verify(folder))


# --- keys and members ---


def test_doubled_member_is_found(tmp_path):
    members = good_members()
    hand_written(tmp_path, [*members, (tarfile.TarInfo("good.jpg"), image_fields(1)["jpg"])])
    assert any("good.jpg: stands twice" in problem for problem in verify(tmp_path))


def test_missing_key_is_found(tmp_path):
    path = build(tmp_path, [(f"k{i}", image_fields(i)) for i in range(3)])
    listed = json.loads((tmp_path / "index.json").read_bytes())["shards"][0]
    write_shard(path, [(f"k{i}", image_fields(i)) for i in range(2)])
    data = path.read_bytes()
    path.write_bytes(data + bytes(listed["bytes"] - len(data)))
    reindex(tmp_path, path, dict(zip(listed["keys"], listed["members"], strict=True)))
    assert any("k2.jpg: in index.json, missing in the shard" in problem for problem in verify(tmp_path))


def test_key_that_the_index_lacks_is_found(tmp_path):
    path = build(tmp_path, [(f"k{i}", image_fields(i)) for i in range(3)])
    listed = json.loads((tmp_path / "index.json").read_bytes())["shards"][0]
    reindex(tmp_path, path, dict(list(zip(listed["keys"], listed["members"], strict=True))[:2]))
    assert any("k2.jpg: in the shard, not in index.json" in problem for problem in verify(tmp_path))


def test_swapped_places_are_found(tmp_path):
    path = build(tmp_path, [(f"k{i}", image_fields(i)) for i in range(2)])
    listed = json.loads((tmp_path / "index.json").read_bytes())["shards"][0]
    reindex(tmp_path, path, dict(zip(listed["keys"], reversed(listed["members"]), strict=True)))
    assert any("k0.jpg: lies at" in problem for problem in verify(tmp_path))


@pytest.mark.parametrize("name", ["../../etc/k2.jpg", "/abs/k3.jpg", "good.pyd", "good.model.pth", "a/b.jpg", "README"])
def test_unsafe_members_are_found(tmp_path, name):
    members = good_members()
    path = tmp_path / "images-00000.tar"
    hand_written(tmp_path, members)
    listed = json.loads((tmp_path / "index.json").read_bytes())["shards"][0]
    with tarfile.open(path, "a:") as tar:
        info = tarfile.TarInfo(name)
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    reindex(tmp_path, path, dict(zip(listed["keys"], listed["members"], strict=True)))
    assert any("unsafe member" in problem and name in problem for problem in verify(tmp_path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_files_are_found(tmp_path, kind):
    info = tarfile.TarInfo("good.votes.png")
    info.type = kind
    info.linkname = "/etc/passwd"
    hand_written(tmp_path, [*good_members(), (info, b"")])
    assert any("not a regular file" in problem for problem in verify(tmp_path))


# --- folders ---


def test_folders_below_a_path(healthy, tmp_path):
    for name in ("images/train", "images/val"):
        shutil.copytree(healthy, tmp_path / name)
    assert verify(tmp_path) == []
    (tmp_path / "images/val/index.json").unlink()
    (problem,) = verify(tmp_path)
    assert str(tmp_path / "images/val/index.json") in problem


def test_a_folder_that_is_not_there_is_a_problem(tmp_path):
    assert verify(tmp_path / "nothing")


def test_a_folder_without_shards_is_a_problem(tmp_path):
    assert verify(tmp_path)


def test_a_file_is_no_folder_of_shards(healthy):
    assert verify(healthy / "images-00000.tar")


def test_a_shard_that_the_index_does_not_name_is_found(healthy, tmp_path):
    folder = shutil.copytree(healthy, tmp_path / "copy")
    (folder / "images-00001.tar").write_bytes(b"")
    assert any("images-00001.tar: not named" in problem for problem in verify(folder))


def test_a_shard_that_is_gone_is_found(healthy, tmp_path):
    folder = shutil.copytree(healthy, tmp_path / "copy")
    (folder / "images-00000.tar").unlink()
    (problem,) = verify(folder)
    assert problem.endswith("images-00000.tar: missing")


# --- contents ---


def test_all_kinds_are_healthy(tmp_path):
    build(tmp_path / "images", [("a", image_fields())])
    build(tmp_path / "seeds", [("a", seed_fields(11))], "seeds", {"seeds": [f"{i}" for i in range(11)]})
    build(tmp_path / "pseudo", [("a", pseudo_fields())], "pseudo")
    assert verify(tmp_path) == []


def json_field(**values: object) -> bytes:
    return json.dumps({"labels": [1], "size": list(SHAPE), **values}).encode()


@pytest.mark.parametrize(
    ("field", "content", "reason"),
    [
        ("jpg", b"<html>", "allowed"),
        ("jpg", image_fields()["jpg"][:300], "decoded"),
        ("json", b"{", "not JSON"),
        ("json", b"[]", "object"),
        ("json", json_field(labels=[3]), "labels"),
        ("json", json_field(labels=[0]), "labels"),
        ("json", json_field(labels=[2, 1]), "labels"),
        ("json", json_field(labels=[1, 1]), "labels"),
        ("json", json_field(labels=[True]), "labels"),
        ("json", json_field(size=[9, 9]), "sizes"),
        ("json", json_field(size="8x10"), "size"),
        ("truth.png", images.encode_palette(np.full(SHAPE, 3, np.uint8)), "{3: 80}"),
        ("truth.png", images.encode_palette(np.zeros((10, 8), np.uint8)), "sizes"),
        ("truth.png", images.encode_clean(np.zeros(SHAPE, np.bool_)), "mode"),
        ("truth.png", b"", "allowed"),
    ],
)
def test_wrong_content_is_found(tmp_path, field, content, reason):
    build(tmp_path, [("a", image_fields()), ("bad", {**image_fields(), field: content})])
    problems = verify(tmp_path)
    assert len(problems) == 1
    assert "bad" in problems[0]
    assert reason in problems[0]


@pytest.mark.parametrize("field", ["jpg", "label.png", "votes.png", "clean.png", "json"])
def test_pseudo_shard_needs_all_its_fields(tmp_path, field):
    fields = pseudo_fields()
    del fields[field]
    build(tmp_path, [("a", fields)], "pseudo")
    (problem,) = verify(tmp_path)
    assert problem.endswith(f"a.{field}: missing")


def test_seed_shard_needs_every_seed_of_the_index(tmp_path):
    build(tmp_path, [("a", seed_fields(2))], "seeds", {"seeds": ["x", "y", "z"]})
    (problem,) = verify(tmp_path)
    assert problem.endswith("a.s2.png: missing")


def test_clean_must_be_one_bit(tmp_path):
    fields = {**pseudo_fields(), "clean.png": images.encode_gray(np.zeros(SHAPE, np.uint8))}
    build(tmp_path, [("a", fields)], "pseudo")
    (problem,) = verify(tmp_path)
    assert "found pixel mode L" in problem


def test_unlabelled_is_allowed(tmp_path):
    samples = [(f"k{i}", {**image_fields(), "json": json_field(labels=labels)}) for i, labels in enumerate([None, []])]
    build(tmp_path, samples)
    assert verify(tmp_path) == []


def test_verified_names_every_damaged_shard(tmp_path):
    records = [write_shard(tmp_path / f"images-{i:05d}.tar", [(f"k{i}", image_fields(i))]) for i in range(3)]
    write_index(tmp_path, records, {"a": 1}, CLASSES, "images")
    index = load_index(tmp_path)
    assert verified(index) is index
    (tmp_path / "images-00000.tar").unlink()
    data = bytearray((tmp_path / "images-00002.tar").read_bytes())
    data[600] ^= 1
    (tmp_path / "images-00002.tar").write_bytes(bytes(data))
    with pytest.raises(ShardError) as caught:
        verified(index)
    for text in ("2 problems", "images-00000.tar: missing", "images-00002.tar: sha256 differs"):
        assert text in str(caught.value)
    assert "images-00001" not in str(caught.value)
