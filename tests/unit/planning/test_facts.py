"""The facts of a data set, from its lists and from its shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from distwsss.data.images import stored_size
from distwsss.data.prepare import prepare
from distwsss.errors import DataError
from distwsss.planning.facts import DataFacts, read_data, read_shards
from helpers.small import data_config, picture, write_folder

# of `write_folder`'s ten pictures two are val; of the others 2, 4, 5, 7 and 8 are tagged dog, 3, 6 and 9 cat and dog;
# the even ones have masks
FACTS = DataFacts(
    photographs=8, scored=2, masks=4, longest=40, pixels=1200, most_pixels=1200, classes={"cat": 3, "dog": 8}
)


def test_of_lists_and_of_shards(tmp_path: Path) -> None:
    config = data_config(write_folder(tmp_path / "data", size=(30, 40)), tmp_path)
    assert read_data(config) == FACTS
    prepare(config)
    assert read_shards(config) == FACTS
    assert FACTS.tags_each == 11 / 8


def test_a_picture_that_cannot_be_read_is_left_to_prepare(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", size=(30, 40))
    (root / "images/p4.jpg").write_bytes(b"no picture")
    (root / "images/p5.jpg").write_bytes(picture(1, 60, 90))
    found = read_data(data_config(root, tmp_path))
    assert (found.photographs, found.longest, found.most_pixels) == (8, 40, 5400)


def test_the_size_is_in_the_header(tmp_path: Path) -> None:
    """Of a file that ends behind it."""
    path = tmp_path / "cut.jpg"
    path.write_bytes(picture(1, 30, 50)[:700])
    assert stored_size(path, "cut") == stored_size(path.read_bytes(), "cut") == (30, 50)
    with pytest.raises(DataError, match=r"gone\.jpg"):
        stored_size(tmp_path / "gone.jpg", "gone.jpg")
