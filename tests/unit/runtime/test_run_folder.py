"""A run is written into a folder of its own: what somebody else put there is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from distwsss.config.load import dump_yaml
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.layout import classifier_dir, run_dir
from distwsss.runtime.run_folder import check_training_folder, open_run
from helpers.small import make_config, snapshot, write_segmenter

NOTES = "# lr chosen on 3 May after 12 tries\nname: mine\n"


def put(folder: Path, name: str, text: str = NOTES) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    "name",
    [
        *("config.yaml", "command.txt", "env.json", "exit.json", "lock", "report/index.html", "evaluate/val.json"),
        *("train/metrics.jsonl", "classify/0.10/metrics.jsonl", "prepare/notes.txt", "seeds/quality.json"),
    ],
)
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_was(tiny, tmp_path: Path, name: str) -> None:
    put(tmp_path / "run", name)
    put(tmp_path / "run", "notes.txt")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError) as caught, open_run(tiny(), "distwsss prepare"):
        raise AssertionError("opened")
    for text in (str(tmp_path / "run"), name.split("/")[0], "nothing was written", "paths.run"):
        assert text in str(caught.value)
    assert snapshot(tmp_path) == before


def test_a_folder_with_files_of_other_names_is_used(tiny, tmp_path: Path) -> None:
    put(tmp_path / "run", "notes.txt")
    with open_run(tiny(), "distwsss prepare"):
        pass
    assert (tmp_path / "run/notes.txt").read_text() == NOTES


def test_folders_that_another_rank_has_made_already_are_no_ones_files(tiny, tmp_path: Path) -> None:
    (tmp_path / "run/classify/0.10/checkpoints").mkdir(parents=True)
    with open_run(tiny(), "distwsss classify"):
        pass
    assert (tmp_path / "run/env.json").is_file()


def test_a_linked_run_folder_is_looked_into(tiny, tmp_path: Path) -> None:
    put(tmp_path / "thesis", "config.yaml")
    (tmp_path / "run").symlink_to("thesis")
    with pytest.raises(ConfigError, match=r"config\.yaml"), open_run(tiny(), None):
        pass
    (tmp_path / "thesis/config.yaml").unlink()
    with open_run(tiny(), None):
        pass
    assert yaml.safe_load((tmp_path / "thesis/config.yaml").read_text())["name"] == "tiny"


def test_a_run_goes_on_in_its_own_folder_until_its_configuration_is_edited(tiny, tmp_path: Path) -> None:
    for seed in (0, 1):
        with open_run(tiny(seed=seed), "distwsss prepare"):
            pass
    stored = tmp_path / "run/config.yaml"
    assert yaml.safe_load(stored.read_text()) == yaml.safe_load(dump_yaml(tiny(seed=1)))
    stored.write_text(stored.read_text() + "# tried on 3 May\n")
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.yaml: not as distwsss wrote it"), open_run(tiny(), None):
        pass
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("left", [["env.json", "lock"], ["exit.json", "lock"], ["train/checkpoints/LAST"]])
def test_runs_of_earlier_versions_are_still_runs(tiny, tmp_path: Path, left: list[str]) -> None:
    """They have no mark: known by a file as only a run has one; their config.yaml is as it was dumped."""
    texts = {
        "env.json": json.dumps({"distwsss": "0.1.0", "packages": {}}),
        "exit.json": json.dumps({"code": 0, "message": "ok", "time": "2025-01-01"}),
        "config.yaml": dump_yaml(tiny()),
    }
    for name in [*left, "config.yaml", "command.txt", "seeds/quality.json"]:
        put(tmp_path / "run", name, texts.get(name, ""))
    with open_run(tiny(seed=3), "distwsss train"):
        pass
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["seed"] == 3


def test_what_only_shows_results_makes_no_run(tiny, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run; run `distwsss run` first"), open_run(tiny(), None, False):
        pass
    assert not run_dir(tiny()).exists()


def test_what_only_shows_results_leaves_how_the_run_ended(tiny, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(tiny(), "distwsss train --set a.token=secret"):
        raise KeyboardInterrupt
    ended = json.loads((tmp_path / "run/exit.json").read_text())
    assert (ended["code"], ended["command"]) == (130, "distwsss train --set a.token=***")
    with open_run(tiny(), "distwsss report", describe=False):
        pass
    assert json.loads((tmp_path / "run/exit.json").read_text()) == ended


def test_shared_classifiers_are_not_put_beside_files_of_others(tmp_path: Path) -> None:
    config = make_config(tmp_path, paths={"classifiers": str(tmp_path / "models")})
    folder = classifier_dir(config, 0.1)
    check_training_folder(folder)
    for name in ("metrics.jsonl", "config.yaml"):
        put(folder, name)
        with pytest.raises(ConfigError, match=name):
            check_training_folder(folder)


def test_a_folder_of_checkpoints_is_a_training(tmp_path: Path) -> None:
    write_segmenter(make_config(tmp_path))
    put(tmp_path / "run/train", "metrics.jsonl", "")
    check_training_folder(tmp_path / "run/train")
