"""`prepare --on-bad quarantine`: bad images are left out, counted and listed, and nothing else changes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distwsss.config.schema import Config
from distwsss.data.images import encode_palette
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.data.shards.verify import verify
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.layout import images_dir, run_dir, shard_dir
from helpers.small import data_config, snapshot, write_folder


def bad_tree(root: Path) -> Path:
    """Ten pictures, of which four have problems (one of them two), one of those in the val split."""
    write_folder(root)
    (root / "images/p1.jpg").write_bytes(b"no picture")  # val
    (root / "images/p3.jpg").unlink()
    (root / "masks/p4.png").write_bytes(encode_palette(np.full((8, 6), 9, np.uint8)))
    (root / "tags.csv").write_text((root / "tags.csv").read_text().replace("p5,dog", "p5,wolf"))
    (root / "classes.txt").write_text("background\ncat\ndog\n")
    return root


def lines(config: Config) -> list[dict[str, Any]]:
    path = run_dir(config) / "prepare/quarantine.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def quarantined(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The configuration of a data set prepared without its bad images; no test changes it."""
    folder = tmp_path_factory.mktemp("quarantined")
    config = data_config(bad_tree(folder / "data"), folder)
    prepare(config, "quarantine")
    return config


def test_bad_images_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "distwsss"):
        prepare(data_config(bad_tree(tmp_path / "data"), tmp_path), "quarantine")
    assert "prepare: train: 8 in = 5 out + 3 quarantined" in caplog.text
    assert "prepare: val: 2 in = 1 out + 1 quarantined" in caplog.text


def test_bad_images_are_left_out(quarantined: Config) -> None:
    assert verify(shard_dir(quarantined)) == []
    train, val = (load_index(images_dir(quarantined, split), "images") for split in ("train", "val"))
    assert sorted(train.all().keys()) == ["p2", "p6", "p7", "p8", "p9"]
    assert val.all().keys() == ["p0"]
    assert train.parameters["quarantined"] == ["p3", "p4.jpg", "p5.jpg"]
    assert val.parameters["quarantined"] == ["p1.jpg"]


def test_bad_images_are_listed_with_every_reason(quarantined: Config) -> None:
    found = {line["id"]: line for line in lines(quarantined)}
    assert {name: (line["split"], len(line["reasons"])) for name, line in found.items()} == {
        "p3": ("train", 1), "p4.jpg": ("train", 2), "p5.jpg": ("train", 1), "p1.jpg": ("val", 1),
    }  # fmt: skip
    assert len(lines(quarantined)) == 4
    assert "no image" in found["p3"]["reasons"][0]
    assert found["p4.jpg"]["reasons"][0].startswith("mask: found 6 x 8 pixels")
    assert found["p1.jpg"]["reasons"][0].startswith("found b'no picture'")
    assert all(name not in reason for name, line in found.items() for reason in line["reasons"] if name != "p3")


def test_the_same_quarantine_is_complete(quarantined: Config) -> None:
    before, listed = snapshot(shard_dir(quarantined)), lines(quarantined)
    prepare(quarantined, "quarantine")
    assert (before, listed) == (snapshot(shard_dir(quarantined)), lines(quarantined))


def test_without_quarantine_the_quarantined_are_refused(quarantined: Config) -> None:
    with pytest.raises(ConfigError, match=r"made without 3 bad images .*p5\.jpg.*--on-bad quarantine"):
        prepare(quarantined)


def test_another_quarantine_is_refused(tmp_path: Path) -> None:
    root = bad_tree(tmp_path / "data")
    config = data_config(root, tmp_path)
    prepare(config, "quarantine")
    before = snapshot(shard_dir(config))
    (root / "images/p7.jpg").write_bytes(b"bad too")
    with pytest.raises(ConfigError, match=r"photographs changed: 1 \(p7.jpg\)"):
        prepare(config, "quarantine")
    assert before == snapshot(shard_dir(config))


def test_quarantine_of_good_data_changes_nothing(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    plain, other = data_config(root, tmp_path / "plain"), data_config(root, tmp_path / "other")
    prepare(plain)
    prepare(other, "quarantine")
    assert snapshot(shard_dir(plain)) == snapshot(shard_dir(other))
    assert [path.name for path in (run_dir(other) / "prepare").iterdir()] == ["source.json"]
    prepare(other)


def test_a_repeated_id_is_written_once_and_quarantined_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    (root / "train.txt").write_text("p3\np4\np4.jpg\n")
    config = data_config(root, tmp_path)
    prepare(config, "quarantine")
    assert sorted(load_index(images_dir(config, "train")).all().keys()) == ["p3", "p4"]
    assert [line["id"] for line in lines(config)] == ["p4.jpg"]
    prepare(config, "quarantine")


def test_a_split_of_bad_images_alone_still_fails(tmp_path: Path) -> None:
    root = bad_tree(tmp_path / "data")
    (root / "images/p0.jpg").write_bytes(b"")
    config = data_config(root, tmp_path)
    with pytest.raises(DataError, match="split `val`: none of 2 images can be used") as caught:
        prepare(config, "quarantine")
    assert "val: p1.jpg: found b'no picture'" in str(caught.value)
    assert not shard_dir(config).exists()
    assert not run_dir(config).exists()


def test_a_data_set_that_cannot_be_read_still_fails(tmp_path: Path) -> None:
    root = bad_tree(tmp_path / "data")
    (root / "tags.csv").write_text("nothing\n")
    with pytest.raises(DataError, match="found header"):
        prepare(data_config(root, tmp_path), "quarantine")


def test_an_interrupted_quarantine_keeps_the_lines_of_the_complete_split(tmp_path: Path) -> None:
    config = data_config(bad_tree(tmp_path / "data"), tmp_path)
    prepare(config, "quarantine")
    before, listed = snapshot(tmp_path), lines(config)
    (images_dir(config, "val") / "index.json").unlink()
    prepare(config, "quarantine")
    assert lines(config) == listed
    assert snapshot(tmp_path) == before
