"""What `pip install` gives: the wheel in an empty folder knows the configurations that ship with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import CONFIGS, REPOSITORY

PARTS = ("distwsss", "configs", "setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as the wheel has it, built from a copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    tree.mkdir()
    for name in PARTS:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, tree / name)
        else:
            shutil.copy(REPOSITORY / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, tree]
    subprocess.run(build, check=True, capture_output=True, timeout=200)
    (wheel,) = folder.glob("distwsss-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=200)
    return folder / "site"


def python(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_every_configuration_is_in_the_wheel(installed: Path) -> None:
    files = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*") if path.is_file())
    shipped = installed / "distwsss" / "configs"
    assert sorted(path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file()) == files
    for name in files:
        assert (shipped / name).read_bytes() == (CONFIGS / name).read_bytes()


def test_names_work_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    found = python(
        *(installed, tmp_path, "-m", "distwsss", "config", "show"),
        *("--config", "voc12/deeplab_v2", "--profile", "rtx3090", "--set", "hardware.deepspeed=zero2"),
    )
    assert found.returncode == 0, found.stderr
    assert "name: voc12_deeplab_v2" in found.stdout
    code = (
        "from distwsss.config.hardware import HardwareSection\n"
        "from distwsss.train.engine.accelerate import deepspeed_file\n"
        "print(deepspeed_file(HardwareSection(deepspeed='zero2')))"
    )
    found = python(installed, tmp_path, "-c", code)
    assert found.stdout.strip() == str(installed / "distwsss/configs/deepspeed/zero2.json"), found.stderr


def test_a_path_names_a_file_first(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "voc12").mkdir()
    (tmp_path / "voc12/deeplab_v2").write_text("data: {dataset: shapes}\n")
    (tmp_path / "rtx3090").write_text("hardware: {workers: 7}\n")
    found = python(
        *(installed, tmp_path, "-m", "distwsss", "config", "show"),
        *("--config", "voc12/deeplab_v2", "--profile", "rtx3090"),
    )
    assert found.returncode == 0, found.stderr
    assert "name: deeplab_v2\n" in found.stdout
    assert "  workers: 7\n" in found.stdout


def test_an_unknown_name_says_where_was_looked_and_what_there_is(installed: Path, tmp_path: Path) -> None:
    found = python(installed, tmp_path, "-m", "distwsss", "config", "validate", "--config", "voc12/deeplab_v3")
    assert found.returncode == 2
    assert str(tmp_path / "voc12/deeplab_v3") in found.stderr
    assert "did you mean `voc12/deeplab_v2`?" in found.stderr
