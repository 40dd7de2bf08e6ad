"""Folders of shards on an object store behave as on a disk: same bytes, same answers, same damage found.

fsspec's memory:// is a store without a network; `tests/dist/test_object_storage.py` has a real S3 server.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from distwsss.config.load import check_config
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import NEAR, iter_shard, neighbours, read_fields
from distwsss.data.shards.verify import digest_problems, verify
from distwsss.data.shards.writer import publish_shard, shard_bytes, write_shard
from distwsss.errors import ConfigError, ShardError
from distwsss.runtime.artifacts import free_space_check, is_done, read_json, sha256_file, write_json
from distwsss.runtime.layout import images_dir
from distwsss.runtime.storage import Folder, Remote, Scratch, folder_at, remove_tree, size_of, version_of
from helpers.small import make_folder, make_samples


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return tmp_path / "a" if request.param == "disk" else folder_at(f"memory://{uuid.uuid4().hex}/a")


@pytest.fixture
def remote() -> Remote:
    found = folder_at(f"memory://{uuid.uuid4().hex}/images")
    assert isinstance(found, Remote)
    return found


# --- names ---


@pytest.mark.parametrize(("text", "path"), [("shards/x", "shards/x"), ("file:///data/x", "/data/x")])
def test_a_path_names_a_folder_on_a_disk(text: str, path: str) -> None:
    assert folder_at(text) == Path(path)


def test_a_url_names_a_folder_on_a_store() -> None:
    assert folder_at("s3://bucket/a//") == Remote("s3://bucket/a")


@pytest.mark.parametrize("text", ["s3://", "s3:///"])
def test_a_url_without_a_bucket_names_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match="with a bucket"):
        folder_at(text)


def test_names_below_a_url_are_as_those_below_a_path() -> None:
    bucket = Remote("s3://bucket/a")
    assert (bucket / "b.tar").parent == bucket
    assert (bucket / "b.tar").name == "b.tar"
    assert str((bucket / "b.tar").with_name("c.json")) == "s3://bucket/a/c.json"


def test_scratch_travels_with_the_folder() -> None:
    tree = {"name": "n", "data": {"dataset": "shapes"}, "paths": {"shards": "s3://bucket/p"}}
    assert images_dir(check_config(tree), "val") == Remote("s3://bucket/p/images/val")
    tree["hardware"] = {"scratch": "/fast", "scratch_gb": 1.5}
    folder = pickle.loads(pickle.dumps(images_dir(check_config(tree), "val")))
    assert (folder.url, folder.scratch) == ("s3://bucket/p/images/val", Scratch(Path("/fast"), 1_500_000_000))


# --- as a path ---


def test_an_empty_folder_is_none(folder: Folder) -> None:
    assert not folder.is_dir()
    assert not (folder / "x.json").is_file()
    assert list(folder.rglob("*")) == []


@pytest.mark.parametrize("use", [lambda path: path.read_bytes(), size_of, lambda path: path.unlink()])
def test_a_file_that_is_not_there_is_not_found(folder: Folder, use: Callable[[Folder], object]) -> None:
    with pytest.raises(FileNotFoundError):
        use(folder / "x.json")


def test_what_is_written_is_read(folder: Folder) -> None:
    path = folder / "x.json"
    write_json(path, {"ä": [1]})
    assert read_json(path) == {"ä": [1]}
    assert size_of(path) == len(path.read_bytes())
    assert sha256_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_and_folders_are_told_apart(folder: Folder) -> None:
    write_json(folder / "x.json", 1)
    assert (folder.is_dir(), folder.is_file(), folder.exists()) == (True, False, True)
    assert ((folder / "x.json").is_dir(), (folder / "x.json").is_file()) == (False, True)


def test_files_are_listed_by_pattern(folder: Folder) -> None:
    for name in ("x.json", "x.tar", "sub/y.json"):
        write_json(folder / name, 1)
    assert [path.name for path in folder.glob("*.json")] == ["x.json"]
    assert sorted(path.name for path in folder.rglob("*.json")) == ["x.json", "y.json"]


def test_a_file_written_anew_has_another_version(folder: Folder) -> None:
    path = folder / "x.json"
    write_json(path, 2)
    version = version_of(path)
    assert version_of(path) == version
    write_json(path, 3)
    assert version_of(path) != version


def test_a_file_is_removed(folder: Folder) -> None:
    path = folder / "x.json"
    write_json(path, 1)
    path.unlink()
    assert not path.exists()
    path.unlink(missing_ok=True)


def test_a_folder_is_removed_with_all_below(folder: Folder) -> None:
    write_json(folder / "sub" / "y.json", 1)
    remove_tree(folder)
    assert not (folder / "sub" / "y.json").exists()
    remove_tree(folder)


def test_a_finished_stage_is_known_by_its_record(folder: Folder) -> None:
    assert not is_done(folder / "index.json", {"a": 1}, "stage")
    write_json(folder / "index.json", {"parameters": {"a": 1}})
    assert is_done(folder / "index.json", {"a": 1}, "stage")
    with pytest.raises(ConfigError, match="a: was 1, now 2"):
        is_done(folder / "index.json", {"a": 2}, "stage")


def test_no_disk_is_asked_for_space_that_a_store_has(remote: Remote) -> None:
    free_space_check(remote, 1 << 60, "prepare")


# --- shards ---


def test_shards_have_the_bytes_that_they_have_on_a_disk(tmp_path: Path, remote: Remote) -> None:
    make_folder(tmp_path)
    make_folder(remote)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert sorted(path.name for path in remote.rglob("*")) == names
    assert all((remote / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_making_and_publishing_are_writing(folder: Folder, tmp_path: Path) -> None:
    record, data = shard_bytes("images-00000.tar", make_samples())
    assert not folder.exists()
    publish_shard(folder, record, data)
    assert (folder / record.name).read_bytes() == data
    assert write_shard(tmp_path / "b" / record.name, make_samples()) == record
    assert (tmp_path / "b" / record.name).read_bytes() == data


def test_a_shard_of_another_name_is_not_made() -> None:
    with pytest.raises(ShardError, match="file name"):
        shard_bytes("no shard", make_samples())


def test_samples_are_read_as_they_were_written(remote: Remote) -> None:
    samples = make_folder(remote)
    index = load_index(remote, "images")
    found = [sample for shard in range(2) for sample in iter_shard(index, shard, ["json", "truth.png", "jpg"])]
    assert found == samples


def test_some_fields_of_one_sample_are_read(remote: Remote) -> None:
    key, fields = make_folder(remote)[5]
    index = load_index(remote, "images")
    assert index.key(1, 1) == key
    assert read_fields(index, 1, 1, ["json"]) == {"json": fields["json"]}
    assert list(read_fields(index, 1, 0, ["truth.png", "jpg"])) == ["truth.png", "jpg"]


def test_whole_shards_verify(remote: Remote) -> None:
    make_folder(remote)
    assert verify(remote) == []
    assert verify(remote.parent) == []


def test_neighbours_are_fetched_together() -> None:
    places = {"a": [512, 100], "b": [1536, 10], "far": [1546 + NEAR + 1, 5], "beside": [1551 + 2 * NEAR, 0]}
    assert neighbours(places) == [["a", "b"], ["far", "beside"]]
    assert neighbours({name: places[name] for name in ("b", "a")}) == [["a", "b"]]
    assert neighbours({}) == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "no index", "other"])
def test_the_same_damage_is_found(damage: str, tmp_path: Path, remote: Remote) -> None:
    found = []
    for place in (tmp_path / "images", remote):
        make_folder(place)
        shard = place / "images-00001.tar"
        data = shard.read_bytes()
        if damage == "missing":
            shard.unlink()
        elif damage == "no index":
            (place / "index.json").unlink()
        elif damage == "other":
            (place / "extra.tar").write_bytes(b"")
        else:
            shard.write_bytes(data[:3000] if damage == "cut" else data[:700] + b"!" + data[701:])
        found.append([text.replace(str(place), "FOLDER") for text in verify(place)])
        if damage in ("flipped", "cut", "missing"):
            assert len(digest_problems(load_index(place), 1)) == 1
            assert digest_problems(load_index(place), 0) == []
    if damage == "no index":  # the system's words for a missing file differ
        found = [[text.partition("(")[0] for text in texts] for texts in found]
    assert found[0] == found[1] != []


def test_a_shard_that_is_short_when_it_is_read(remote: Remote) -> None:
    make_folder(remote)
    index, shard = load_index(remote), remote / "images-00000.tar"
    offset, size = index.shards[0].members[0]["jpg"]
    shard.write_bytes(shard.read_bytes()[: offset + size - 1])
    with pytest.raises(ShardError, match=f"found {size - 1} of {size} bytes; run distwsss verify"):
        read_fields(index, 0, 0, ["jpg"])


def test_a_shard_that_is_gone_when_it_is_read(remote: Remote) -> None:
    make_folder(remote)
    index = load_index(remote)
    (remote / "images-00000.tar").unlink()
    with pytest.raises(ShardError, match=r"there is no such object.*run distwsss verify"):
        read_fields(index, 0, 0, ["jpg"])


def test_an_index_that_is_not_there(remote: Remote) -> None:
    with pytest.raises(ShardError, match=r"index\.json: cannot be read \(there is no such object\).*prepare makes it"):
        load_index(remote / "nothing", "images")


# --- what goes wrong before any byte ---


def test_an_unknown_protocol_names_what_is_allowed() -> None:
    with pytest.raises(
        ConfigError, match=r"found foo://bucket .*allowed: a folder, or a URL such as s3://BUCKET/PREFIX"
    ):
        folder_at("foo://bucket/x").is_file()


def test_a_missing_package_names_the_extra() -> None:
    script = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from distwsss.cli import main; sys.exit(main(['verify', 's3://bucket/prefix']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'distwsss[s3]'" in done.stderr


def test_fsspec_is_loaded_only_for_a_url(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from distwsss.data.shards.verify import verify\n"
        f"verify(Path({str(tmp_path)!r})); sys.exit('s3fs' in sys.modules)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False).returncode == 0
