"""Training with the /dev/shm of a small container, mounted for real where this process may."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distwsss.data.prepare import prepare
from helpers.small import make_config, write_config

MOUNT = "mount -t tmpfs -o size=256k tmpfs /dev/shm"


@pytest.fixture
def small() -> None:
    found = subprocess.run(["unshare", "-m", "sh", "-c", MOUNT], capture_output=True, check=False)
    if found.returncode:
        pytest.skip("may not mount (unshare -m); test_workers.py stands in for the size of /dev/shm")


@pytest.mark.parametrize("crop", [48, 160])
def test_classifiers_are_trained(small: None, tmp_path: Path, crop: int) -> None:
    """Batches of 110 kB, of which one or two fit, and of 1.2 MB, of which none does."""
    sections = {"hardware": {"loader_workers": 2}, "classify": {"augment": {"crop": crop}, "dropouts": [0.1]}}
    prepare(make_config(tmp_path, seeds={"threshold": 1}, **sections))
    file = write_config(tmp_path, seeds={"threshold": 1}, **sections)
    command = f'{MOUNT} && exec "$0" -m distwsss classify --config "$1"'
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", command, sys.executable, file],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/classify/0.10/done.json").is_file()
    if crop == 160:
        assert "/dev/shm has 0 of 0 MB free" in done.stderr
        assert "docker run --shm-size" in done.stderr
