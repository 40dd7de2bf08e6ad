"""The generated data set: deterministic, true to its labels, and with the difficulty it promises."""

from __future__ import annotations

import numpy as np
import pytest

from distwsss.config.data import DataSection, ShapesSection
from distwsss.data.images import decode_image, decode_mask
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.shapes import BOAT, CLASSES, Scene, draw_scene
from distwsss.errors import ConfigError

SIZE = 64


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(0, "train", number, SIZE) for number in range(300)]


def data(**shapes: int) -> DataSection:
    return DataSection(dataset="shapes", shapes=ShapesSection(size=48, **shapes))


def test_the_same_section_gives_the_same_bytes() -> None:
    first, second = (DATASETS["shapes"](data(train=5, val=3), "train").items for _ in range(2))
    assert [(item.name, item.image, item.mask, item.labels) for item in first] == [
        (item.name, item.image, item.mask, item.labels) for item in second
    ]


def test_an_image_depends_on_seed_split_and_number_but_not_on_the_count() -> None:
    few, many = (DATASETS["shapes"](data(train=count, val=4), "train").items for count in (2, 6))
    val = DATASETS["shapes"](data(train=2, val=4), "val").items
    other = DATASETS["shapes"](data(train=2, val=4, seed=1), "train").items
    assert [item.image for item in few] == [item.image for item in many[:2]]
    assert len({item.image for item in [*many, *val, *other]}) == 6 + 4 + 2
    assert len({item.name for item in [*many, *val]}) == 10


def test_what_the_listing_says_of_itself() -> None:
    listing = DATASETS["shapes"](data(train=3, val=0), "train")
    assert (len(listing.items), listing.classes, listing.labels_from) == (3, CLASSES, "generated")


def test_images_and_masks_have_the_size_asked_for() -> None:
    for item in DATASETS["shapes"](data(train=3, val=0), "train").items:
        assert isinstance(item.image, bytes)
        assert isinstance(item.mask, bytes)
        assert decode_image(item.image, item.name).shape == (48, 48, 3)
        assert decode_mask(item.mask, item.name).shape == (48, 48)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_of_no_images_and_an_unknown_one_are_empty(split: str) -> None:
    assert DATASETS["shapes"](data(train=3, val=0), split).items == []


def test_keys_that_mean_nothing_here_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"labels_from.*classes"):
        DATASETS["shapes"](DataSection(dataset="shapes", labels_from="masks"), "train")


def test_labels_are_exactly_the_classes_in_the_mask(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert set(scene.labels) == set(np.unique(scene.mask).tolist()) - {0, 255}
        assert 1 <= len(scene.labels) <= 3
        assert scene.labels == sorted(scene.labels)


def test_every_object_has_a_badge_that_is_a_small_part_of_it(scenes: list[Scene]) -> None:
    shares = []
    for scene in scenes:
        for label in scene.labels:
            body = scene.mask == label
            shares.append((body & scene.badges).sum() / body.sum())
    assert min(shares) > 0.02
    assert max(shares) < 0.5
    assert np.mean(shares) < 0.25


def test_several_classes_share_an_image(scenes: list[Scene]) -> None:
    counts = np.bincount([len(scene.labels) for scene in scenes], minlength=4)
    assert counts[2] + counts[3] > 0.4 * len(scenes)


def test_all_classes_are_common(scenes: list[Scene]) -> None:
    of_class = np.bincount([label for scene in scenes for label in scene.labels], minlength=len(CLASSES))
    assert of_class[1:].min() > 0.15 * len(scenes)


def test_boats_come_with_waves(scenes: list[Scene]) -> None:
    with_boat = [scene.waves for scene in scenes if BOAT in scene.labels]
    without = [scene.waves for scene in scenes if BOAT not in scene.labels]
    assert 0.6 < np.mean(with_boat) < 0.9  # 0.75 of about 90: standard deviation 0.05
    assert 0.07 < np.mean(without) < 0.23  # 0.15 of about 210: 0.025


def test_bodies_stand_out(scenes: list[Scene]) -> None:
    contrast = []
    for scene in scenes:
        image = scene.image.astype(float)
        for label in scene.labels:
            body = image[(scene.mask == label) & ~scene.badges].mean(axis=0)
            contrast.append(np.abs(body - image[scene.mask == 0].mean(axis=0)).max())
    assert np.percentile(contrast, 5) > 25  # of 255; the ground shows through by half


def test_backgrounds_are_textured(scenes: list[Scene]) -> None:
    texture = [scene.image.astype(float)[scene.mask == 0].std(axis=0).mean() for scene in scenes]
    assert np.percentile(texture, 5) > 10


def test_the_colour_of_a_body_says_nothing_about_its_class(scenes: list[Scene]) -> None:
    means = []
    for label in range(1, len(CLASSES)):
        bodies = [
            scene.image[(scene.mask == label) & ~scene.badges].mean(0) for scene in scenes if label in scene.labels
        ]
        means.append(np.mean(bodies, axis=0))
    assert np.ptp(np.array(means), axis=0).max() < 60  # single bodies are near 50 or near 220


def test_badges_of_a_class_share_a_colour(scenes: list[Scene]) -> None:
    """Against body colours (any): the hue of the most saturated badge pixels separates the classes."""
    hues: dict[int, list[float]] = {label: [] for label in range(1, len(CLASSES))}
    for scene in scenes:
        for label in scene.labels:
            pixels = scene.image[scene.badges & (scene.mask == label)].astype(float)
            vivid = pixels[np.argsort(np.ptp(pixels, axis=1))[-5:]].mean(0)
            hues[label].append(np.angle(vivid @ np.exp(2j * np.pi * np.arange(3) / 3)))
    centers = {label: np.angle(np.mean(np.exp(1j * np.array(values)))) for label, values in hues.items()}
    right = total = 0
    for label, values in hues.items():
        for value in values:
            nearest = min(centers, key=lambda other: abs(np.angle(np.exp(1j * (value - centers[other])))))
            right, total = right + (nearest == label), total + 1
    assert right / total > 0.9
