"""`distwsss seeds --executor ray` with a real Ray: the bytes of an undisturbed local run, whatever is killed.

Processes are killed by themselves with SIGKILL at a named point (`runtime/faults.py`), or by this test. `reference` is
a run by the local executor; every disturbed run must end with the same shards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from helpers.paths import only
from helpers.small import merged, tiny_tree, write_saliency

from distwsss.config import load_config
from distwsss.data.images import decode_mask
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.data.shards.verify import verify

MARK = "DISTWSSS_TEST_MARK"
# what workers on Ray must make as local ones do
SEEDS = {"dropout_passes": 2, "saliency_unary": True, "saliency_voter": True, "label": "mean_cam"}
FOLDERS = ("run", "shards", "maps")
Bytes = dict[str, bytes]


class Place:
    """A folder with a prepared and classified tiny run, and the processes started in it."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        tree = merged(tiny_tree(folder), merged({"hardware": {"workers": 1, "ray": {}}, "seeds": SEEDS}, sections))
        tree["saliency"] = {"folder": str(folder / "maps")}
        self.config = folder / "tiny.yaml"
        self.config.write_text(yaml.safe_dump(tree), encoding="utf-8")
        self.run, self.shards = folder / "run", folder / "shards"

    def environment(self, fault: str | None = None, times: int | None = None, **more: str) -> dict[str, str]:
        found = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        found |= {MARK: self.mark, "OMP_NUM_THREADS": "1", "HOME": str(self.folder), "RAY_worker_niceness": "0", **more}
        if fault:
            found |= {"DISTWSSS_ENABLE_FAULTS": "1", "DISTWSSS_FAULT": fault}
            found["DISTWSSS_FAULT_LOG"] = str(self.folder / "faults.log")
        if times is not None:
            found["DISTWSSS_FAULT_TIMES"] = str(times)
        return found

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "distwsss", *arguments, "--config", str(self.config)]

    def __call__(self, *arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment(**environment), capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip

    def seeds(self, *arguments: str, executor: str = "ray", **environment: Any) -> subprocess.CompletedProcess[str]:
        return self("seeds", "--executor", executor, *arguments, **environment)

    def start(self, *arguments: str, **environment: Any) -> subprocess.Popen[str]:
        """Without waiting; SIGINT as a terminal's shell leaves it."""
        return subprocess.Popen(
            self.command(*arguments), env=self.environment(**environment), stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def bytes(self) -> Bytes:
        return {str(path.relative_to(self.shards)): path.read_bytes() for path in self.files()}

    def files(self) -> list[Path]:
        found = (path for kind in ("seeds", "pseudo") for path in (self.shards / kind).rglob("*"))
        return sorted(path for path in found if path.is_file())

    def processes(self) -> list[psutil.Process]:
        """Everything alive that was started from here, Ray's own processes too."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def end_processes(self) -> None:
        for process in self.processes():
            process.kill()


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Place(tmp_path_factory.mktemp("classified"))
    for verb in ("prepare", "classify"):
        done = place(verb)
        assert done.returncode == 0, done.stderr
    write_saliency(load_config(str(place.config)))
    return place.folder


@pytest.fixture
def place(classified: Path, tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """place(**sections) -> a Place of its own, processes ended afterwards."""
    made: list[Place] = []

    def make(folder: Path = tmp_path, **sections: Any) -> Place:
        for name in FOLDERS:
            shutil.copytree(classified / name, folder / name)
        made.append(Place(folder, **sections))
        return made[-1]

    yield make
    for each in made:
        each.end_processes()


@pytest.fixture(scope="module")
def reference(classified: Path, tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    """The shards of an undisturbed local run."""
    folder = tmp_path_factory.mktemp("reference")
    for name in FOLDERS:
        shutil.copytree(classified / name, folder / name)
    local = Place(folder)
    done = local.seeds(executor="local")
    assert done.returncode == 0, done.stderr
    assert len([name for name in local.bytes() if name.endswith(".tar")]) == 6
    return local.bytes()


def check_whole(place: Place, reference: Bytes) -> None:
    """The reference's bytes and nothing else, every key exactly once."""
    found = place.bytes()
    assert sorted(found) == sorted(reference)
    assert found == reference
    images = load_index(place.shards / "images" / "train", "images")
    for kind, folder in {"seeds": place.shards / "seeds", "pseudo": only(place.shards / "pseudo")}.items():
        index = load_index(folder, kind)
        keys = [key for shard in range(len(index.shards)) for key, _ in iter_shard(index, shard, [])]
        assert sorted(keys) == sorted(images.all().keys())
    assert verify(place.shards) == []


def keys_of_shard(place: Place, shard: int) -> list[str]:
    return load_index(place.shards / "images" / "train", "images").shards[shard].keys


def test_ray_gives_the_bytes_of_the_local_executor(place: Callable[..., Place], reference: Bytes) -> None:
    here = place(hardware={"workers": 2})
    done = here.seeds()
    assert done.returncode == 0, done.stderr
    check_whole(here, reference)
    index = load_index(here.shards / "seeds", "seeds")
    assert index.extra["seeds"][-1] == "saliency"
    assert index.parameters["seeds"].items() >= {"dropout_passes": 2, "saliency_unary": True}.items()
    assert "2 CAM actor(s), 2 CRF worker(s)" in done.stderr
    assert re.search(r"seeds: \d+ images in .*, memory at most \d+\.\d GB a process", done.stderr)  # told by actors
    record = json.loads((here.run / "seeds" / "ray.json").read_text())
    assert sum(record["jobs_by_node"].values()) == 3 * (4 + 1)  # 3 shards, 4 CAM jobs and one CRF job each
    assert record["replaced"] == 0
    assert not (here.folder / ".ray").exists()  # no token that nobody asked for
    again = here.seeds()
    assert again.returncode == 0
    assert "complete, skipped" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["cam:0.10-1.20", "crf"])
def test_killed_workers_are_replaced(place: Callable[..., Place], reference: Bytes, stage: str) -> None:
    """kill -9 of the process at the third image of shard 1, and of the one that tries again."""
    here = place()
    done = here.seeds(fault=f"{stage}:{keys_of_shard(here, 1)[2]}", times=2)
    assert done.returncode == 0, done.stderr
    assert len((here.folder / "faults.log").read_text().splitlines()) == 3
    assert "attempt 1 failed" in done.stderr
    assert "attempt 2 failed" in done.stderr
    assert json.loads((here.run / "seeds" / "ray.json").read_text())["replaced"] == 2
    check_whole(here, reference)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["cam:0.10-1.20", "crf"])
def test_a_worker_killed_too_often_ends_the_run(place: Callable[..., Place], reference: Bytes, stage: str) -> None:
    here = place(hardware={"ray": {"attempts": 2}})
    done = here.seeds(fault=f"{stage}:{keys_of_shard(here, 2)[0]}")
    assert done.returncode == 1, done.stderr
    assert "of shard 2: failed 2 times" in done.stderr
    assert "Traceback" not in done.stderr
    assert len((here.folder / "faults.log").read_text().splitlines()) == 2
    kept = {path: path.stat() for path in here.files()}
    assert not [path for path in kept if path.name in ("seeds-00002.tar", "pseudo-00002.tar", "index.json")]
    check_resumes(here, reference, kept)


def check_resumes(here: Place, reference: Bytes, kept: dict[Path, os.stat_result]) -> None:
    """The same command completes the run; finished shards are not written again."""
    done = here.seeds()
    assert done.returncode == 0, done.stderr
    check_whole(here, reference)
    for path, before in kept.items():
        if path.suffix == ".tar":
            after = path.stat()
            assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), path


@pytest.mark.slow
def test_killed_driver_and_rerun(place: Callable[..., Place], reference: Bytes) -> None:
    here = place()
    done = here.seeds(fault="after-shard:pseudo-00000.tar")
    assert done.returncode == -signal.SIGKILL
    kept = {path: path.stat() for path in here.files()}
    assert any(path.name == "seeds-00000.tar" for path in kept)
    assert not any(path.name == "index.json" for path in kept)
    check_resumes(here, reference, kept)  # at once: workers of the dead driver may still be alive


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(place: Callable[..., Place], reference: Bytes, number: signal.Signals) -> None:
    """Ctrl-C in the middle of work: 130 within 15 s, no process left, and the rerun completes."""
    here = place()
    with here.start("seeds", "--executor", "ray") as driver:
        wait_for(lambda: any(title.startswith("ray::") and "cam[" in title for title in titles(here)))
        driver.send_signal(number)
        began = time.monotonic()
        assert driver.wait(15) == 130
        wait_for(lambda: not here.processes(), 15 - (time.monotonic() - began))
    check_resumes(here, reference, {path: path.stat() for path in here.files()})


def titles(here: Place) -> list[str]:
    """What the processes call themselves; a Ray worker by what it does, as `ray::cam[0.10-1.20]`."""
    found = []
    for process in here.processes():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.1)


@pytest.mark.slow
def test_out_of_memory_ends_with_a_clear_error(place: Callable[..., Place]) -> None:
    """Ray's memory monitor kills workers above a threshold that their imports alone exceed: never tried for ever."""
    here = place(hardware={"ray": {"attempts": 2}})
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + (700 << 20)) / memory.total
    done = here.seeds(RAY_memory_usage_threshold=f"{threshold:.4f}", RAY_memory_monitor_refresh_ms="50")
    assert done.returncode == 1, done.stderr
    assert "failed 2 times" in done.stderr
    assert "out of memory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_second_driver_is_told_that_the_run_is_locked(place: Callable[..., Place], reference: Bytes) -> None:
    here = place()
    with here.start("seeds", "--executor", "ray") as first:
        wait_for(lambda: (here.run / "lock").exists() and len(here.processes()) > 3)
        second = here.seeds()
        assert second.returncode == 1
        assert "locked" in second.stderr
        assert first.wait(120) == 0
    check_whole(here, reference)


@pytest.mark.slow
def test_full_disk(place: Callable[..., Place], reference: Bytes, tmp_path: Path) -> None:
    """The seeds folder on a disk with room for few files; then with more room, the same command completes."""
    here, out = place(seeds={"vote_on": "selected"}), tmp_path / "out"  # no vote on the way
    script = f"""
        set -u; mkdir -p {here.shards}/seeds; mount -t tmpfs -o size=64m,nr_inodes=4 none {here.shards}/seeds
        "$@"; echo "first $?"; ls -A {here.shards}/seeds | sed 's/^/left /'
        mount -o remount,size=64m,nr_inodes=1000 none {here.shards}/seeds
        "$@"; echo "second $?"; cp -r {here.shards}/seeds {out}"""
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    done = subprocess.run(
        [*unshare, "bash", "-c", script, "bash", *here.command("seeds", "--executor", "ray")],
        env=here.environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "first 1" in done.stdout, done.stderr
    assert "disk full" in done.stderr
    left = [line.removeprefix("left ") for line in done.stdout.splitlines() if line.startswith("left ")]
    assert not [name for name in left if name.endswith(".tmp") or name == "index.json"]
    assert "second 0" in done.stdout, done.stderr
    assert {f"seeds/{path.name}": path.read_bytes() for path in out.iterdir()} == {
        name: data for name, data in reference.items() if name.startswith("seeds/")
    }


def replace_photo(here: Place, shard: int, position: int, photo: bytes) -> str:
    """Write the shards anew with another photograph, so that all digests fit; returns its key."""
    folder = here.shards / "images" / "train"
    index = load_index(folder, "images")
    records = []
    for number, record in enumerate(index.shards):
        samples = list(iter_shard(index, number, ["jpg", "json", "truth.png"]))
        if number == shard:
            samples[position][1]["jpg"] = photo
        records.append(write_shard(folder / record.name, samples))
    write_index(folder, records, index.parameters, index.classes, "images", index.extra)
    return index.key(shard, position)


@pytest.mark.slow
def test_an_image_that_cannot_be_done(place: Callable[..., Place], reference: Bytes) -> None:
    """fail: exit 3, the image named; quarantine: its seeds abstain, it is listed, and nothing else changes."""
    here = place()
    key = replace_photo(here, 1, 2, b"no picture")
    failed = here.seeds()
    assert failed.returncode == 3, failed.stderr
    assert key in failed.stderr
    done = here.seeds("--on-bad", "quarantine")
    assert done.returncode == 0, done.stderr
    (line,) = (here.run / "seeds" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == key
    index = load_index(here.shards / "seeds", "seeds")
    for found, members in iter_shard(index, 1, ["s0.png", "s3.png"]):
        abstains = all((decode_mask(data, found) == 255).all() for data in members.values())
        assert abstains == (found == key)
    names = [name for name in reference if name.endswith(("seeds-00000.tar", "seeds-00002.tar", "pseudo-00002.tar"))]
    assert len(names) == 3
    for name in names:
        assert here.bytes()[name] == reference[name]


@pytest.mark.slow
def test_a_damaged_image_shard_stops_the_run(place: Callable[..., Place]) -> None:
    here = place()
    path = here.shards / "images" / "train" / "images-00001.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = here.seeds("--on-bad", "quarantine")
    assert done.returncode == 3, done.stderr
    assert "images-00001.tar: sha256 differs" in done.stderr


@pytest.mark.slow
def test_two_nodes_share_the_work(place: Callable[..., Place], reference: Bytes) -> None:
    """A cluster of two nodes of one CPU each: both are used, and the bytes are the same. A relative root is refused."""
    here = place(hardware={"ray": {"cam_actors": 2, "crf_workers": 2}})
    script = f"""
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1, "include_dashboard": False}})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
import os
import re
for options in (["--set", "paths.run=relative"], []):
    done = subprocess.run({here.command("seeds", "--executor", "ray")!r} + options,
                          env={{**os.environ, "RAY_ADDRESS": cluster.address}}, timeout=200)
    print("exit", done.returncode, flush=True)
cluster.shutdown()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=here.environment(RAY_AUTH_MODE="disabled"), cwd=here.folder,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == ["exit 2", "exit 0"], done.stderr
    assert "`paths.run`: found relative" in done.stderr
    check_whole(here, reference)
    assert len(json.loads((here.run / "seeds" / "ray.json").read_text())["jobs_by_node"]) == 2


@pytest.mark.slow
def test_classifiers_on_ray_survive_a_kill(place: Callable[..., Place], classified: Path) -> None:
    """An actor killed in step 3 is replaced and goes on from its checkpoint: the weights of the local run."""
    here = place(classify={"optim": {"save_every": "1 steps"}})
    shutil.rmtree(here.run / "classify")
    done = here("classify", "--executor", "ray", fault="after-step:3:rank0", times=1)
    assert done.returncode == 0, done.stderr
    assert "attempt 1 failed" in done.stderr
    for p in ("0.10", "0.30"):
        weights = Path("run/classify") / p / "checkpoints/step-00000004/model.safetensors"
        assert (here.folder / weights).read_bytes() == (classified / weights).read_bytes()
