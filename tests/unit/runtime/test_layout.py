"""Where files lie: absolute always, from the current folder, or where `paths` says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distwsss.config import Config
from distwsss.config.load import check_config
from distwsss.errors import ConfigError
from distwsss.runtime import layout
from distwsss.runtime.storage import Folder, Remote, Scratch

# what is in the run folder; beside it the classifiers and the shards
IN_RUN: dict[str, Callable[[Config], Path]] = {
    "config.yaml": lambda config: layout.describing_files(config)["configuration"],
    "command.txt": lambda config: layout.describing_files(config)["command"],
    "env.json": lambda config: layout.describing_files(config)["environment"],
    "exit.json": lambda config: layout.describing_files(config)["exit"],
    "lock": lambda config: layout.describing_files(config)["lock"],
    "prepare/source.json": layout.source_file,
    "prepare/quarantine.jsonl": lambda config: layout.quarantine_file(config, "prepare"),
    "seeds/quarantine.jsonl": lambda config: layout.quarantine_file(config, "seeds"),
    "seeds/quality.json": layout.quality_file,
    "seeds/ray.json": layout.ray_file,
    "train": layout.segmenter_dir,
    "evaluate": layout.evaluate_dir,
    "report/index.html": layout.report_file,
}
IN_CLASSIFIERS: dict[str, Callable[[Config], Path]] = {
    "0.05": lambda config: layout.classifier_dir(config, 0.05),
    "0.30": lambda config: layout.classifier_dir(config, 0.3),
}
IN_SHARDS: dict[str, Callable[[Config], Folder]] = {
    "images/train": lambda config: layout.images_dir(config, "train"),
    "images/val": lambda config: layout.images_dir(config, "val"),
    "seeds": layout.seeds_dir,
    "pseudo/mean_cam-8seeds-t8-7786fb73": layout.pseudo_dir,
}


def made(**sections: Any) -> Config:
    return check_config({"name": "n", "data": {"dataset": "shapes"}, **sections})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, `here` below a temporary one."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("given", "folder"),
    [(None, "runs/n"), ("mine", "mine"), ("a/../mine", "a/../mine"), ("../other", "../other"), ("/runs/r", "/runs/r")],
)
def test_the_run_folder(given: str | None, folder: str, here: Path) -> None:
    config = made(paths={"run": given})
    assert layout.run_dir(config) == here / folder
    assert {name: place(config) for name, place in IN_RUN.items()} == {name: here / folder / name for name in IN_RUN}


@pytest.mark.parametrize(
    ("given", "folder"), [(None, "runs/n/classify"), ("shared", "shared"), ("../c", "../c"), ("/data/c", "/data/c")]
)
def test_the_classifiers(given: str | None, folder: str, here: Path) -> None:
    config = made(paths={"classifiers": given})
    assert {name: place(config) for name, place in IN_CLASSIFIERS.items()} == {
        name: here / folder / name for name in IN_CLASSIFIERS
    }


def test_classifiers_follow_the_run_folder(here: Path) -> None:
    assert layout.classifier_dir(made(paths={"run": "mine"}), 0.1) == here / "mine" / "classify" / "0.10"


@pytest.mark.parametrize(
    ("given", "folder"),
    [(None, "shards/n"), ("mine", "mine"), ("../s", "../s"), ("/data/s", "/data/s"), ("file:///data/s", "/data/s")],
)
def test_the_shards(given: str | None, folder: str, here: Path) -> None:
    config = made(paths={"shards": given})
    assert layout.shard_dir(config) == here / folder
    assert {name: place(config) for name, place in IN_SHARDS.items()} == {
        name: here / folder / name for name in IN_SHARDS
    }


def test_links_stay_as_they_are(here: Path) -> None:
    """A message shows what a user wrote, made absolute."""
    (here / "target").mkdir()
    (here / "link").symlink_to("target")
    assert layout.run_dir(made(paths={"run": "link"})) == here / "link"


def test_the_shards_of_a_url_are_remote() -> None:
    config = made(paths={"shards": "memory://bucket/s/"})
    assert layout.shard_dir(config) == Remote("memory://bucket/s")
    assert {name: place(config) for name, place in IN_SHARDS.items()} == {
        name: Remote(f"memory://bucket/s/{name}") for name in IN_SHARDS
    }


def test_scratch_is_absolute_too(here: Path) -> None:
    folder = layout.shard_dir(made(paths={"shards": "memory://b/s"}, hardware={"scratch": "fast", "scratch_gb": 0.5}))
    assert isinstance(folder, Remote)
    assert folder.scratch == Scratch(here / "fast", 500_000_000)


def test_the_files_of_a_training(tmp_path: Path) -> None:
    assert layout.checkpoints_dir(tmp_path) == tmp_path / "checkpoints"
    assert layout.pointer(tmp_path) == tmp_path / "checkpoints" / "LAST"
    assert layout.pointer(tmp_path, layout.BEST) == tmp_path / "checkpoints" / "BEST"
    assert layout.done_file(tmp_path) == tmp_path / "done.json"
    assert layout.metrics_file(tmp_path) == tmp_path / "metrics.jsonl"
    assert layout.training_config_file(tmp_path) == tmp_path / "config.yaml"


def test_where_a_folder_may_have_its_last(tmp_path: Path) -> None:
    names = ["LAST", "checkpoints/LAST", "train/checkpoints/LAST"]
    assert layout.pointers_below(tmp_path) == [tmp_path / name for name in names]


ABSOLUTE = {"run": "/r", "classifiers": "/c", "shards": "/s"}


@pytest.mark.parametrize("shards", ["/s", "memory://bucket/s"])
def test_absolute_roots_are_for_a_cluster(shards: str) -> None:
    weights = {"backbone": {"weights": "/w.pth"}}
    layout.check_absolute_roots(made(paths={**ABSOLUTE, "shards": shards}, classify=weights))


@pytest.mark.parametrize("key", ["run", "classifiers", "shards"])
def test_a_relative_root_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"\(1 problem\):\n  `paths\.{key}`: found rel/x; .* storage that all"
    ) as caught:
        layout.check_absolute_roots(made(paths={**ABSOLUTE, key: "rel/x"}))
    assert ("or a URL" in str(caught.value)) == (key == "shards")


def test_relative_weights_are_refused_by_their_key() -> None:
    weights = {"backbone": {"weights": "w.pth"}}
    with pytest.raises(ConfigError, match=r"\(1 problem\):\n  `classify\.backbone\.weights`: found w\.pth; allowed"):
        layout.check_absolute_roots(made(paths=ABSOLUTE, classify=weights))


def test_the_default_roots_are_relative() -> None:
    with pytest.raises(ConfigError, match=r"`paths\.run`: found runs/n; .*\n  `paths\.shards`: found shards/n; "):
        layout.check_absolute_roots(made())
