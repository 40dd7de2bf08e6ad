"""`seeds --remake`: the shards that other images, classifiers or keys concern are made anew, the others stay."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from distwsss.config.schema import Config
from distwsss.data.prepare import prepare
from distwsss.data.shards import stage as shard_stage
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.verify import verify
from distwsss.data.shards.writer import write_index
from distwsss.errors import ConfigError
from distwsss.runtime.layout import pseudo_dir, seeds_dir, shard_dir
from distwsss.seeds import generate
from distwsss.seeds.generate import run_seeds
from helpers.small import make_config, merged, snapshot, write_classifiers, write_folder

CLASSES = ["background", "cat", "dog"]
SIZE = (32, 40)


def settings(folder: Path, **sections: Any) -> Config:
    own = {"data": {"dataset": "folder", "root": str(folder / "data")}, "prepare": {"shard_size": 2}}
    own["seeds"] = {"scales": [1.0], "threshold": 2}
    return make_config(folder, **merged(own, sections))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photographs in five shards of two, the untrained classifiers, and the seeds."""
    folder = tmp_path_factory.mktemp("made")
    write_folder(folder / "data", size=SIZE, splits=lambda number: "train")
    config = settings(folder)
    prepare(config)
    write_classifiers(config, CLASSES)
    run_seeds(config)
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def correct(folder: Path) -> None:
    """The tags of p4, in the data and in the image shards."""
    path = folder / "data/tags.csv"
    path.write_text(path.read_text().replace("p4,dog", "p4,cat"))
    prepare(settings(folder), remake=True)


def made_anew(folder: Path, tmp_path: Path, **sections: Any) -> dict[str, bytes]:
    """The shards of a run on the same data from nothing."""
    other = tmp_path / "anew"
    shutil.copytree(folder / "data", other / "data")
    config = settings(other, **sections)
    prepare(config)
    shutil.copytree(folder / "run/classify", other / "run/classify")
    run_seeds(config)
    return snapshot(other / "shards")


def written(folder: Path, kind: str) -> dict[str, tuple[int, int]]:
    found = sorted((folder / "shards" / kind).rglob("*.tar"))
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def replaced(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
    return [name for name in after if before.get(name) != after[name]]


def concerned(index: ShardIndex, key: str) -> int:
    return next(number for number, record in enumerate(index.shards) if key in record.keys)


def test_only_the_shard_of_a_corrected_image_is_made_anew(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct(copy)
    config, before = settings(copy), {kind: written(copy, kind) for kind in ("seeds", "pseudo")}
    with pytest.raises(ConfigError, match=r"inputs\.images: was .*, now (.|\n)*--remake"):
        run_seeds(config)
    worked: list[int] = []
    work = generate.whole_shard
    monkeypatch.setattr(generate, "whole_shard", lambda task: worked.append(task.shard) or work(task))
    run_seeds(config, remake=True)
    shard = concerned(load_index(seeds_dir(config)), "p4")
    assert worked == [shard]
    assert replaced(before["seeds"], written(copy, "seeds")) == [f"seeds-{shard:05d}.tar"]
    assert replaced(before["pseudo"], written(copy, "pseudo")) == [f"pseudo-{shard:05d}.tar"]
    run_seeds(config)
    assert worked == [shard]
    assert snapshot(copy / "shards") == made_anew(copy, tmp_path)


def test_other_classifiers_keep_nothing(copy: Path, tmp_path: Path) -> None:
    config, before = settings(copy), written(copy, "seeds")
    write_classifiers(config, CLASSES, seed=7)
    with pytest.raises(ConfigError, match=r"inputs\.classifiers"):
        run_seeds(config)
    run_seeds(config, remake=True)
    assert len(replaced(before, written(copy, "seeds"))) == 5
    assert snapshot(copy / "shards") == made_anew(copy, tmp_path)


def test_seeds_that_were_dropped_are_made_anew(copy: Path, tmp_path: Path) -> None:
    run_seeds(settings(copy, seeds={"keep_maps": False}))
    section = {"keep_maps": False, "alpha": 2.0}
    config = settings(copy, seeds=section)
    with pytest.raises(ConfigError):
        run_seeds(config)
    run_seeds(config, remake=True)
    assert not seeds_dir(config).exists()
    assert snapshot(copy / "shards") == made_anew(copy, tmp_path, seeds=section)


def test_another_vote_of_seeds_that_were_dropped_makes_them_anew(copy: Path, tmp_path: Path) -> None:
    run_seeds(settings(copy, seeds={"keep_maps": False}))
    first, config = written(copy, "pseudo"), settings(copy, seeds={"keep_maps": False, "threshold": 1})
    run_seeds(config)
    assert not seeds_dir(config).exists()
    anew = made_anew(copy, tmp_path, seeds={"keep_maps": False, "threshold": 1})
    found = {name: data for name, data in snapshot(copy / "shards").items() if name in anew}
    assert found == anew
    assert written(copy, "pseudo").items() >= first.items()


def test_fewer_shards_leave_none_behind(copy: Path, tmp_path: Path) -> None:
    path = copy / "data/tags.csv"
    path.write_text(
        "\n".join(line for line in path.read_text().splitlines() if not line.startswith(("p1", "p2", "p3")))
    )
    config = settings(copy)
    prepare(config, remake=True)
    run_seeds(config, remake=True)
    assert verify(shard_dir(config)) == []
    assert snapshot(copy / "shards") == made_anew(copy, tmp_path)


def test_a_key_that_was_not_recorded_is_named(copy: Path) -> None:
    """Seeds from before `normalise` was in fingerprints: by which they were made is not known."""
    config, before = settings(copy), snapshot(copy / "shards")
    index = load_index(seeds_dir(config))
    section = {key: value for key, value in index.parameters["seeds"].items() if key != "normalise"}
    parameters = {**index.parameters, "seeds": section}
    write_index(index.folder, index.shards, parameters, index.classes, "seeds", index.extra)
    with pytest.raises(ConfigError, match=f"seeds.normalise: was not recorded, now '{config.seeds.normalise}'"):
        run_seeds(config)
    run_seeds(config, remake=True)
    assert snapshot(copy / "shards") == before


@pytest.mark.parametrize("point", ["reopen:pseudo", "reopen:seeds", "shard:seeds", "shard:pseudo", "index:seeds"])
def test_an_interrupted_remake_goes_on(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Without the option too, once the old index is gone; no index names old and new shards."""
    correct(copy)
    config = settings(copy)
    number = concerned(load_index(seeds_dir(config)), "p4")
    stop = f"after-{point}-{number:05d}.tar" if point.startswith("shard") else f"after-{point}"

    def interrupt(name: str) -> None:
        if name == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_stage, "fault_point", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_seeds(config, remake=True)
    assert not (pseudo_dir(config) / "index.json").exists()
    if point == "reopen:pseudo":
        with pytest.raises(ConfigError, match=r"inputs\.images"):
            run_seeds(config)
    run_seeds(config, remake=point == "reopen:pseudo")
    assert snapshot(copy / "shards") == made_anew(copy, tmp_path)
