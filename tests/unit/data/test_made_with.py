"""Stages called alone refuse what was made with another configuration, the key named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distwsss.config import Config
from distwsss.data.made_with import check_images, check_seeds, check_segmenter, check_vote, seed_parameters
from distwsss.data.shards.format import INDEX_DIGEST, digest_line
from distwsss.data.shards.index import load_index
from distwsss.errors import ConfigError, ShardError
from distwsss.runtime.artifacts import read_json, to_json, write_json
from distwsss.runtime.layout import images_dir, pseudo_dir
from distwsss.train.task import segmenter_task
from helpers.small import make_config, write_images, write_pseudo


def made(folder: Path, **sections: Any) -> Config:
    config = make_config(folder, train={"holdout": 0.0}, **sections)
    write_images(config, "train", 4)
    return config


def changed(folder: Path, key: str, value: Any) -> Config:
    section, name = key.split(".")
    return make_config(folder, **{"train": {"holdout": 0.0}, section: {name: value}})


@pytest.mark.parametrize(("key", "value"), [("data.allow_empty", True), ("data.train_split", "other")])
def test_image_shards_of_other_data(key: str, value: Any, tmp_path: Path) -> None:
    index = load_index(images_dir(made(tmp_path), "train"))
    check_images(make_config(tmp_path), index)
    with pytest.raises(ConfigError, match=rf"{key}: was .*, now '?{value}"):
        check_images(changed(tmp_path, key, value), index)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seeds.base_size", 64), ("seeds.alpha", 2.0), ("seeds.scales", [1.0, 1.3]), ("classify.dropouts", [0.1, 0.2])],
)
def test_seeds_of_another_configuration(key: str, value: Any, tmp_path: Path) -> None:
    config = made(tmp_path)
    index = load_index(images_dir(config, "train"))
    found = seed_parameters(config, index, {"0.10": "a", "0.30": "b"})
    check_seeds(config, index, found, "the seeds")
    with pytest.raises(ConfigError, match=key if key.startswith("seeds") else "dropouts"):
        check_seeds(changed(tmp_path, key, value), index, found, "the seeds")


def voted(config: Config) -> None:
    """Pseudo-label shards that say what they are of, as those of the stage `seeds` do."""
    index = load_index(images_dir(config, "train"))
    of = seed_parameters(config, index, {"0.10": "a", "0.30": "b"})
    write_pseudo(config, seeds=config.voting_seeds(), **config.vote_keys())
    path = pseudo_dir(config) / "index.json"
    rewrite(path, lambda value: {**value, "seed_parameters": of})


def rewrite(path: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:

    data = to_json(change(read_json(path)))
    path.write_bytes(data)
    (path.parent / INDEX_DIGEST).write_bytes(digest_line(data))


def test_training_alone_refuses_a_vote_of_other_seeds(tmp_path: Path) -> None:
    config = made(tmp_path)
    voted(config)
    assert segmenter_task(config)
    other = changed(tmp_path, "seeds.base_size", 64)
    with pytest.raises(ConfigError, match=r"the vote .*was made with other parameters:\n  .*base_size"):
        segmenter_task(other)


@pytest.mark.parametrize(("key", "value"), [("seeds.threshold", 2), ("seeds.ties", "first"), ("seeds.label", "vote")])
def test_training_alone_finds_no_vote_but_its_own(key: str, value: Any, tmp_path: Path) -> None:
    config = made(tmp_path)
    voted(config)
    other = changed(tmp_path, key, value)
    assert pseudo_dir(other) != pseudo_dir(config)
    with pytest.raises(ShardError, match="distwsss seeds"):
        segmenter_task(other)


def test_a_vote_from_before_it_said_of_what_is_taken(tmp_path: Path) -> None:
    config = made(tmp_path)
    write_pseudo(config, seeds=config.voting_seeds(), threshold=3, inputs={"seeds": "some"})
    images, pseudo = (load_index(folder) for folder in (images_dir(config, "train"), pseudo_dir(config)))
    check_vote(config, images, pseudo)


def test_a_segmenter_of_another_configuration(tmp_path: Path) -> None:

    config, trained = make_config(tmp_path), make_config(tmp_path, train={"temperature": 0.5, "holdout": 0.0})
    (tmp_path / "step").mkdir()
    write_json(tmp_path / "step/trainer.json", {"parameters": {"seed": 0, "train": trained.train.parameters()}})
    check_segmenter(trained, tmp_path / "step")
    check_segmenter(make_config(tmp_path, train={"temperature": 0.5, "holdout": 0.3}), tmp_path / "step")
    with pytest.raises(ConfigError, match=r"train\.temperature: was 0\.5, now 0\.1"):
        check_segmenter(config, tmp_path / "step")
