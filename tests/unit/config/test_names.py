"""Configurations by name: that of a run is its file's, and those that ship are known from any folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from distwsss.config import load_config
from distwsss.config.hardware import HardwareSection
from distwsss.config.load import find_file
from distwsss.errors import ConfigError
from distwsss.train.engine.accelerate import deepspeed_file
from helpers.paths import CONFIGS

DATA = "data: {dataset: shapes}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- the name of a run ---


def test_a_run_is_called_as_its_file() -> None:
    assert load_config(write("sub/my-run_2.yaml", DATA)).name == "my-run_2"


def test_the_name_of_the_base_is_kept() -> None:
    write("base.yaml", f"name: given\n{DATA}")
    assert load_config(write("mine.yaml", "base: base.yaml\n")).name == "given"


def test_a_base_without_a_name_gives_none() -> None:
    write("base.yaml", DATA)
    assert load_config(write("mine.yaml", "base: base.yaml\n")).name == "mine"


def test_a_name_by_hand_is_over_the_files() -> None:
    assert load_config(write("mine.yaml", DATA), overrides=["name=other"]).name == "other"


@pytest.mark.parametrize("stem", ["my run", "run.v2", "läufe", "a+b"])
def test_a_file_that_cannot_name_a_run_is_one_error(stem: str) -> None:
    path = write(f"{stem}.yaml", DATA)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    where = f"{path} (the file's own name; `name:` gives another): `name`: found {stem!r}; "
    assert f"(1 problem):\n  {where}" in str(caught.value)
    assert load_config(path, overrides=["name=good"]).name == "good"


# --- what ships ---


@pytest.mark.parametrize("name", ["voc12/deeplab_v2", "voc12/deeplab_v2.yaml"])
def test_a_shipped_configuration_from_any_folder(name: str) -> None:
    assert load_config(name) == load_config(CONFIGS / "voc12" / "deeplab_v2.yaml")


@pytest.mark.parametrize("name", ["rtx3090", "rtx3090.yaml"])
def test_a_shipped_profile_from_any_folder(name: str) -> None:
    assert load_config("demo/shapes", name) == load_config("demo/shapes", str(CONFIGS / "profiles" / "rtx3090.yaml"))


@pytest.mark.parametrize("name", ["zero2", "zero2.json"])
def test_a_shipped_deepspeed_file_from_any_folder(name: str) -> None:
    found = deepspeed_file(HardwareSection(deepspeed=name))
    assert found == CONFIGS / "deepspeed" / "zero2.json"


def test_a_path_wins_over_a_shipped_configuration() -> None:
    write("demo/shapes.yaml", f"seed: 77\n{DATA}")
    assert load_config("demo/shapes.yaml").seed == 77
    assert load_config("demo/shapes").seed != 77  # no such path


def test_a_path_wins_over_a_shipped_profile() -> None:
    write("rtx3090", "hardware: {workers: 77}\n")
    assert load_config("demo/shapes", "rtx3090").hardware.workers == 77


def test_a_path_wins_over_a_shipped_deepspeed_file() -> None:
    write("zero2", json.dumps({}))
    assert deepspeed_file(HardwareSection(deepspeed="zero2")) == Path("zero2")


def test_a_folder_does_not_hide_what_ships() -> None:
    Path("voc12/deeplab_v2").mkdir(parents=True)
    assert load_config("voc12/deeplab_v2").data.dataset == "voc"


@pytest.mark.parametrize(
    ("option", "name", "kind", "suffix", "close"),
    [
        ("--config", "demo/shaeps", ".", ".yaml", "demo/shapes"),
        ("--profile", "rtx3080", "profiles", ".yaml", "rtx3090"),
        ("hardware.deepspeed", "zero22", "deepspeed", ".json", "zero2"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(
    option: str, name: str, kind: str, suffix: str, close: str, here: Path
) -> None:
    shipped = (CONFIGS / kind / f"{name}{suffix}").absolute()
    looked = re.escape(f"{option} {name}: no such file; looked for {here / name} and {shipped}; ")
    with pytest.raises(ConfigError, match=rf"^{looked}did you mean `{close}`\?$"):
        find_file(option, name, kind, suffix)
