"""`distwsss new`: a folder of pictures -> a short configuration that says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distwsss.config.load import load_config
from distwsss.errors import ConfigError, DataError
from distwsss.planning.new import new, problems_of
from helpers.small import write_folder


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_folder(Path("my pictures"))


def test_every_value_has_its_reason(pictures: Path) -> None:
    path = new(pictures)
    assert path == Path("my_pictures.yaml")
    config = load_config(path)
    assert (config.name, config.data.root) == ("my_pictures", "my pictures")
    lines = path.read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if ": " in line and not line.lstrip().startswith("#")]
    named = ("name:", "dataset:")
    assert all("  # " in line for line in values if not line.strip().startswith(named))
    assert any("8 photographs" in line and "2 in the val list" in line and "dog 8" in line for line in lines)
    assert any(line.startswith("# Expected: prepare about") for line in lines)


def test_the_file_is_what_was_chosen(pictures: Path) -> None:
    tree = yaml.safe_load(new(pictures, Path("a.yaml")).read_text(encoding="utf-8"))
    assert tree["classify"]["optim"]["duration"] == "100 steps"
    assert tree["train"]["holdout"] == 0.2  # half of the pictures have masks
    assert tree["hardware"] == {"executor": "local"}


def test_problems_of_the_tags_are_said_at_once(pictures: Path) -> None:
    path = new(pictures, Path("a.yaml"))
    assert problems_of(path) == ""
    with open(pictures / "tags.csv", "a", encoding="utf-8") as file:
        file.write("\nnowhere,dog,train\n")
    assert "nowhere: no image of this name" in problems_of(path)


def test_nothing_is_written_over(pictures: Path) -> None:
    Path("a.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.yaml is there already"):
        new(pictures, Path("a.yaml"))
    assert Path("a.yaml").read_text(encoding="utf-8") == "mine"


def test_pictures_beside_their_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_folder(Path("p"))
    for path in (root / "images").iterdir():
        path.rename(root / path.name)
    (root / "images").rmdir()
    assert load_config(new(root)).data.images == "."


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no folder"):
        new(tmp_path / "nothing", tmp_path / "a.yaml")
    assert not (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize("at_hand", [True, False])
def test_saliency_is_on_where_nothing_must_be_fetched(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_hand: bool
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("DISTWSSS_CACHE", str(tmp_path))
    if at_hand:
        (tmp_path / "u2netp").mkdir()
        (tmp_path / "u2netp/u2netp.onnx").write_bytes(b"its bytes are looked at when it is used")
    path = new(pictures, Path("a.yaml"))
    config, text = load_config(path), path.read_text(encoding="utf-8")
    assert config.cue() == ("tags + saliency (u2netp)" if at_hand else "tags")
    assert ("\n  saliency_unary: true  # " in text) == ("\n  model: u2netp  # " in text) == at_hand
    assert ("# Labels from tags + saliency (u2netp): its network was trained with masks" in text) == at_hand
    assert ("# Labels from tags only; docs/saliency.md says how to add" in text) != at_hand
    assert (", saliency about " in text) == at_hand
