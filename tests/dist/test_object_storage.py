"""Shards in a bucket: real `distwsss` processes against a real S3 server (moto's) on 127.0.0.1, and its request log.

What is in the bucket is looked at with boto3, which distwsss does not use itself.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from helpers.small import last_weights, merged, tiny_tree

from distwsss.config.load import check_config
from distwsss.data.shards.index import load_index
from distwsss.runtime.layout import images_dir
from distwsss.data.shards.reader import iter_shard, read_fields

BUCKET = "wsss"
REQUEST = re.compile(r'"(?:\x1b\[[\d;]*m)*([A-Z]+) (\S+) HTTP')  # coloured where the status is not 200
Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass
class Server:
    """The S3 server, what is in its bucket, and what was asked of it."""

    endpoint: str
    log: Path
    client: Any

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def requests(self) -> list[tuple[str, str]]:
        """(method, path) of every request so far."""
        return REQUEST.findall(self.log.read_text(encoding="utf-8"))

    def asked(self, method: str, suffix: str, since: int = 0) -> Counter[str]:
        """How often `method` was used on each path with that suffix."""
        return Counter(path for verb, path in self.requests()[since:] if verb == method and path.endswith(suffix))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """moto's server in a process of its own, on a port that the system chose."""
    log = tmp_path_factory.mktemp("s3") / "log.txt"
    with pytest.MonkeyPatch.context() as patch, log.open("w") as file:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        command = [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            endpoint = _endpoint(log, process)
            patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
            client = boto3.client("s3", endpoint_url=endpoint)
            client.create_bucket(Bucket=BUCKET)
            yield Server(endpoint, log, client)
        finally:
            process.kill()
            process.wait()


def _endpoint(log: Path, process: subprocess.Popen[bytes]) -> str:
    for _ in range(600):
        found = re.search(r"Running on (http://127\.0\.0\.1:[1-9]\d*)", log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def settings(folder: Path, prefix: str, **sections: Any) -> dict[str, Any]:
    """The tiny run with its shards in the bucket, read by forked loader workers."""
    base = {"paths": {"shards": f"s3://{BUCKET}/{prefix}"}, "hardware": {"executor": "local", "loader_workers": 2}}
    return merged(merged(tiny_tree(folder), base), sections)


def written(tree: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return folder / "tiny.yaml"


def good(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def one_message(done: subprocess.CompletedProcess[str], code: int) -> str:
    """What a failed process says: no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def prepared(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of image shards in the bucket, made by `distwsss prepare`."""
    folder = tmp_path_factory.mktemp("prepared")
    tree = settings(folder, "prepared")
    command = [sys.executable, "-m", "distwsss", "prepare", "--config", str(written(tree, folder))]
    good(subprocess.run(command, capture_output=True, text=True, timeout=120, check=False))
    return tree


# --- reading ---


def test_a_sample_is_one_request(server: Server, prepared: dict[str, Any]) -> None:
    index = load_index(images_dir(check_config(prepared), "train"), "images")
    fields = ["jpg", "json", "truth.png"]
    before = len(server.requests())
    found = [read_fields(index, 1, position, fields) for position in (2, 0)]
    assert server.asked("GET", ".tar", before) == {f"/{BUCKET}/prepared/images/train/{index.shards[1].name}": 2}
    assert len(server.requests()) == before + 2
    data = server.get(f"prepared/images/train/{index.shards[1].name}")
    for position, sample in zip((2, 0), found, strict=True):
        for field in fields:
            offset, size = index.shards[1].members[position][field]
            assert sample[field] == data[offset : offset + size]


def test_with_scratch_a_shard_is_fetched_once_and_gives_the_same(
    server: Server, prepared: dict[str, Any], tmp_path: Path
) -> None:
    plain = load_index(images_dir(check_config(prepared), "train"))
    other = load_index(images_dir(check_config(merged(prepared, {"hardware": {"scratch": str(tmp_path)}})), "train"))
    fields = ["jpg", "truth.png", "json"]
    expected = [sample for shard in range(3) for sample in iter_shard(plain, shard, fields)]
    before = len(server.requests())
    for _ in range(2):
        assert [sample for shard in range(3) for sample in iter_shard(other, shard, fields)] == expected
    gets = server.asked("GET", ".tar", before)
    assert (len(gets), set(gets.values())) == (3, {1})
    copies = {path.stem: path.read_bytes() for path in tmp_path.glob("*.tar")}
    assert copies == {record.sha256: server.get(f"prepared/images/train/{record.name}") for record in other.shards}


READ = """
import sys
from pathlib import Path
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_fields
from distwsss.runtime.storage import Remote, Scratch
index = load_index(Remote(sys.argv[1], Scratch(Path(sys.argv[2]), 10**9)))
print("ready", flush=True)
sys.stdin.readline()
for shard in range(len(index.shards)):
    sys.stdout.write(read_fields(index, shard, 0, ["json"])["json"].decode())
"""


def test_processes_that_share_scratch_fetch_a_shard_once(
    server: Server, prepared: dict[str, Any], tmp_path: Path
) -> None:
    index = load_index(images_dir(check_config(prepared), "train"))
    command = [sys.executable, "-c", READ, index.folder.url, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    before = len(server.requests())
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
    outputs = {reader.communicate(timeout=60)[0] for reader in readers}
    expected = "".join(read_fields(index, shard, 0, ["json"])["json"].decode() for shard in range(3))
    assert outputs == {expected}
    assert len(list(tmp_path.glob("*.tar"))) == 3
    # each whole shard once; the ranged requests that made `expected` here are the other three
    assert sum(server.asked("GET", ".tar", before).values()) == 3 + 3


def test_prepare_publishes_each_object_by_one_put_and_is_then_complete(
    server: Server, prepared: dict[str, Any], distwsss: Run, tmp_path: Path
) -> None:
    keys = server.keys("prepared/images/")
    assert len([key for key in keys if key.endswith(".tar")]) == 4
    puts = {path: count for path, count in server.asked("PUT", "").items() if path.startswith(f"/{BUCKET}/prepared/")}
    records = [f"{key}.json" for key in keys if key.endswith(".tar")]  # of a shard, until the index is there
    assert puts == {f"/{BUCKET}/{key}": 1 for key in [*keys, *records]}
    assert not set(keys) & set(records)
    assert not [path for method, path in server.requests() if "uploads" in path or method == "POST"]
    done = good(distwsss("prepare", "--config", written(prepared, tmp_path)))
    assert "train complete, skipped" in done.stderr
    assert set(server.asked("PUT", ".tar").values()) == {1}


def test_a_killed_prepare_keeps_the_objects_it_put(
    server: Server, prepared: dict[str, Any], distwsss: Run, tmp_path: Path
) -> None:
    file = written(settings(tmp_path, "killed"), tmp_path)
    killed = distwsss("prepare", "--config", file, fault="after-shard:images-00001.tar")
    assert killed.returncode == -signal.SIGKILL
    assert not [key for key in server.keys("killed/") if "index" in key]
    good(distwsss("prepare", "--config", file))
    puts = {path: count for path, count in server.asked("PUT", ".tar").items() if path.startswith(f"/{BUCKET}/killed/")}
    assert len(puts) == 4
    assert set(puts.values()) == {1}
    names = [key.removeprefix("prepared/") for key in server.keys("prepared/images/")]
    assert {key.removeprefix("killed/") for key in server.keys("killed/")} == set(names)
    for name in names:
        assert server.get(f"killed/{name}") == server.get(f"prepared/{name}"), name


# --- what goes wrong ---


def test_a_wrong_bucket_and_missing_credentials_are_one_message(
    server: Server, distwsss: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = settings(tmp_path, "x", paths={"shards": "s3://no-such-bucket/x"})
    said = one_message(distwsss("prepare", "--config", written(tree, tmp_path)), 3)
    assert "s3://no-such-bucket/x/images/train/index.json: there is no such bucket; create it" in said
    said = one_message(distwsss("verify", "s3://no-such-bucket/x"), 3)
    assert "there is no such bucket" in said
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    said = one_message(distwsss("verify", f"s3://{BUCKET}/x"), 3)
    assert "Unable to locate credentials" in said
    assert "check the URL, the credentials and the endpoint" in said


def test_no_server_is_one_message(server: Server, distwsss: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    said = one_message(distwsss("verify", f"s3://{BUCKET}/x"), 3)
    assert f"s3://{BUCKET}/x: cannot be reached or used (EndpointConnectionError" in said


def test_a_password_in_a_url_is_shown_nowhere(server: Server, distwsss: Run, tmp_path: Path) -> None:
    tree = settings(tmp_path, "x", paths={"shards": f"s3://anna:geheim@{BUCKET}/x"})
    said = one_message(distwsss("prepare", "--config", written(tree, tmp_path / "own")), 3)
    assert f"s3://***@{BUCKET}/x" in said
    assert "geheim" not in said
    stored = {path: path.read_text() for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert "***@" in stored[tmp_path / "run/config.yaml"]
    assert not [path for path, text in stored.items() if "geheim" in text]


# --- a whole run ---


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run whose shards lie on the disk."""
    folder = tmp_path_factory.mktemp("local")
    tree = merged(tiny_tree(folder), {"hardware": {"executor": "local"}})
    command = [sys.executable, "-m", "distwsss", "run", "--config", str(written(tree, folder))]
    good(subprocess.run(command, capture_output=True, text=True, timeout=280, check=False))
    return folder


@pytest.fixture(scope="module")
def bucket_run(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, stage by stage, whose shards lie in the bucket."""
    folder = tmp_path_factory.mktemp("bucket")
    file = written(settings(folder, "tiny", hardware={"workers": 2}), folder)
    for verb in ("prepare", "classify", "seeds", "stats", "train", "evaluate", "report"):
        command = [sys.executable, "-m", "distwsss", verb, "--config", str(file)]
        good(subprocess.run(command, capture_output=True, text=True, timeout=280, check=False))
    return folder


def equal_weights(one: Path, other: Path) -> bool:
    first, second = last_weights(one), last_weights(other)
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.slow
def test_a_run_on_a_bucket_gives_the_bytes_and_weights_of_a_local_one(
    server: Server, local: Path, bucket_run: Path, distwsss: Run
) -> None:
    files = {str(path.relative_to(local / "shards")): path for path in (local / "shards").rglob("*") if path.is_file()}
    assert {key.removeprefix("tiny/") for key in server.keys("tiny/")} == files.keys()
    for name, path in files.items():
        assert server.get(f"tiny/{name}") == path.read_bytes(), name
    assert equal_weights(local / "run", bucket_run / "run")
    for name, part in (("seeds/quality.json", "aggregate"), ("evaluate/val.json", "confusion")):
        one, other = (json.loads((folder / "run" / name).read_text())[part] for folder in (local, bucket_run))
        assert one == other
    puts = server.asked("PUT", ".tar")
    assert {path: count for path, count in puts.items() if path.startswith(f"/{BUCKET}/tiny/")} == {
        f"/{BUCKET}/tiny/{name}": 1 for name in files if name.endswith(".tar")
    }
    assert not (bucket_run / "shards").exists()
    assert "verifies" in good(distwsss("verify", "--config", bucket_run / "tiny.yaml")).stdout
    assert "verifies" in good(distwsss("verify", f"s3://{BUCKET}/tiny/pseudo")).stdout


@pytest.mark.slow
def test_every_stage_is_skipped_the_second_time(server: Server, bucket_run: Path, distwsss: Run) -> None:
    before = len(server.requests())
    done = good(distwsss("run", "--config", bucket_run / "tiny.yaml"))
    for what in ("prepare: train complete", "seeds: complete", "vote: complete"):
        assert what in done.stderr
    assert not [path for method, path in server.requests()[before:] if method in ("PUT", "POST", "DELETE")]


@pytest.mark.slow
def test_training_from_scratch_copies_gives_the_same_weights(bucket_run: Path, distwsss: Run, tmp_path: Path) -> None:
    options = ["--set", f"paths.run={tmp_path / 'run'}", "--set", f"hardware.scratch={tmp_path / 'scratch'}"]
    good(distwsss("train", "--config", bucket_run / "tiny.yaml", *options))
    assert equal_weights(bucket_run / "run", tmp_path / "run")
    assert list((tmp_path / "scratch").glob("*.tar"))
    assert not list((tmp_path / "scratch").glob(".*.tmp"))


@pytest.mark.slow
def test_a_damaged_shard_is_found_and_stops_a_stage(
    server: Server, bucket_run: Path, distwsss: Run, tmp_path: Path
) -> None:
    (key,) = [key for key in server.keys("tiny/pseudo/") if key.endswith("/pseudo-00001.tar")]
    data = server.get(key)
    server.client.put_object(Bucket=BUCKET, Key=key, Body=data[:700] + bytes([data[700] ^ 1]) + data[701:])
    try:
        said = one_message(distwsss("verify", "--config", bucket_run / "tiny.yaml"), 3)
        assert f"s3://{BUCKET}/{key}: sha256 differs from index.json" in said
        for scratch in ([], ["--set", f"hardware.scratch={tmp_path / 'scratch'}"]):
            run = ["--set", f"paths.run={tmp_path / 'run'}"]
            said = one_message(distwsss("train", "--config", bucket_run / "tiny.yaml", *run, *scratch), 3)
            assert f"s3://{BUCKET}/{key}: sha256 differs from index.json" in said
    finally:
        server.client.put_object(Bucket=BUCKET, Key=key, Body=data)


@pytest.mark.slow
def test_a_killed_seeds_stage_goes_on(server: Server, bucket_run: Path, distwsss: Run, tmp_path: Path) -> None:
    shutil.copytree(bucket_run / "run", tmp_path / "run")
    for key in server.keys("tiny/images/"):
        server.client.copy_object(Bucket=BUCKET, Key=key.replace("tiny/", "killed/", 1), CopySource=f"{BUCKET}/{key}")
    options = ["--config", bucket_run / "tiny.yaml", "--set", f"paths.run={tmp_path / 'run'}"]
    options += ["--set", f"paths.shards=s3://{BUCKET}/killed", "--set", "hardware.workers=0"]
    assert distwsss("seeds", *options, fault="after-shard:seeds-00001.tar").returncode == -9
    there = [key for key in server.keys("killed/seeds/") if key.endswith(".tar")]
    assert there == ["killed/seeds/seeds-00000.tar", "killed/seeds/seeds-00001.tar"]
    good(distwsss("seeds", *options))
    names = [key.removeprefix("tiny/") for key in server.keys("tiny/") if "/images/" not in key]
    assert names == [key.removeprefix("killed/") for key in server.keys("killed/") if "/images/" not in key]
    assert all(server.get(f"killed/{name}") == server.get(f"tiny/{name}") for name in names)
    puts = server.asked("PUT", ".tar")
    assert {puts[f"/{BUCKET}/killed/{name}"] for name in names if name.endswith(".tar")} == {1}
