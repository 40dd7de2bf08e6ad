"""Saliency maps that people have in a folder: read, or refused all in one report before anything is written."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distwsss.config import Config
from distwsss.data.saliency import open_saliency, read_saliency
from distwsss.data.shards import stage as shard_stage
from distwsss.data.shards.index import load_index
from distwsss.data.shards.verify import verify
from distwsss.errors import ConfigError, DataError, ShardError
from distwsss.runtime.layout import images_dir, saliency_dir
from distwsss.saliency.maps import make_saliency
from helpers.small import beside_images, flip_a_bit, make_config, snapshot, write_images, write_shards

SIZE = (24, 32)
COUNT = 5  # photographs, in three shards


def grey(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8[H,W] with a bright block on a dark ground, neither of them flat."""
    values = np.random.default_rng(seed).integers(0, 60, size, np.uint8)
    values[4:14, 6:20] += 150
    return values


def settings(tmp_path: Path, **saliency: object) -> Config:
    """Five photographs p.0 ... p.4 of 32 x 24 pixels, whose maps are to come from maps/."""
    config = make_config(tmp_path, saliency={"folder": str(tmp_path / "maps"), **saliency})
    if not images_dir(config, "train").exists():
        write_images(config, "train", COUNT, names=[f"p.{number}" for number in range(COUNT)], sizes=[SIZE])
    return config


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """A folder with a good map for each of them."""
    folder = tmp_path / "maps"
    folder.mkdir()
    for number in range(COUNT):
        Image.fromarray(grey(number)).save(folder / f"p.{number}.png")
    return folder


def made(config: Config) -> list[np.ndarray]:
    """The maps in the shards, in the order of the photographs."""
    index = open_saliency(config, load_index(images_dir(config, "train"), "images"))
    return [read_saliency(index, *place) for place in index.all().places()]


def refused(config: Config) -> str:
    with pytest.raises(DataError) as error:
        make_saliency(config)
    assert not saliency_dir(config).exists()
    return str(error.value)


def palette(colours: Callable[[int], tuple[int, int, int]]) -> Image.Image:
    """The indices of grey(0) reversed, under a palette."""
    image = Image.fromarray(255 - grey(0))
    image.putpalette([channel for index in range(256) for channel in colours(index)])
    return image


def png16(image: Image.Image) -> bytes:
    """An RGB picture with 16 bits a channel, which PIL reads as 8 and cannot write: a PNG by hand."""
    rows = np.asarray(image.convert("RGB")).astype(">u2") * 257
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", image.width, image.height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("kind", ["L", "LA", "RGB of equal channels", "P of greys", "jpg"])
def test_every_kind_of_grey_gives_the_same_map(tmp_path: Path, maps: Path, kind: str) -> None:
    image = Image.fromarray(grey(0))
    wanted = grey(0)
    if kind == "LA":
        image = Image.merge("LA", (image, Image.fromarray(grey(7))))
    elif kind.startswith("RGB"):
        image = Image.merge("RGB", (image, image, image))
    elif kind.startswith("P"):
        image = palette(lambda index: (255 - index,) * 3)
    if kind == "jpg":
        (maps / "p.0.png").unlink()
        image.save(maps / "p.0.JPG", quality=95)
        wanted = np.asarray(Image.open(maps / "p.0.JPG"))
    else:
        image.save(maps / "p.0.png")
    make_saliency(settings(tmp_path))
    found = made(settings(tmp_path))
    assert np.array_equal(found[0], wanted)
    assert all(np.array_equal(found[number], grey(number)) for number in range(1, COUNT))
    assert verify(saliency_dir(settings(tmp_path))) == []


def test_every_map_that_cannot_be_used_is_in_one_report(tmp_path: Path, maps: Path) -> None:
    (maps / "p.0.png").unlink()
    Image.fromarray(grey(1, (48, 64))).save(maps / "p.1.png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(maps / "p.2.png")
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(maps / "p.3.png")
    Image.fromarray(grey(4)).save(maps / "p.4.jpg")
    found = refused(settings(tmp_path))
    assert "Of 5 photographs" in found
    assert re.search(r"1 have no map; .*\n    p\.0\n", found)
    assert re.search(r"1 have a map of another size; .*\n    p\.1: map 64 x 48, photograph 32 x 24\n", found)
    assert re.search(r"1 have a map that is 0 everywhere, .*\n    p\.2: ", found)
    assert re.search(r"1 have a map that is 255 everywhere, .*\n    p\.3: ", found)
    assert re.search(r"1 have several files .*\n    p\.4: .*p\.4\.jpg, .*p\.4\.png", found)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (lambda: Image.merge("RGB", [Image.fromarray(grey(seed)) for seed in (0, 1, 2)]), "colours"),
        (lambda: palette(lambda index: (index, 0, 0)), "colours"),
        (lambda: Image.fromarray(grey(0).astype(np.uint16) * 257), "a 16-bit PNG"),
        (lambda: png16(Image.fromarray(grey(0))), "a 16-bit PNG"),
        (lambda: Image.fromarray(grey(0) > 100), "pixel mode 1"),
        (lambda: Image.fromarray(grey(0)).convert("RGBA"), "pixel mode RGBA"),
        (lambda: b"no picture", "allowed: a PNG, JPEG file"),
    ],
    ids=["RGB", "P", "I;16", "RGB of 16 bits", "1", "RGBA", "text"],
)
def test_what_is_not_8_bit_grey_is_refused(tmp_path: Path, maps: Path, image: Callable[[], object], said: str) -> None:
    found = image()
    if isinstance(found, Image.Image):
        buffer = io.BytesIO()
        found.save(buffer, "PNG")
        found = buffer.getvalue()
    (maps / "p.2.png").write_bytes(found)
    report = refused(settings(tmp_path))
    assert "1 have a map that is not 8-bit grey" in report
    assert re.search(rf"p\.2: .*{re.escape(said)}", report)


def test_maps_that_look_inverted_are_a_warning(tmp_path: Path, maps: Path, lines: pytest.LogCaptureFixture) -> None:
    for path in maps.iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    make_saliency(settings(tmp_path))
    warnings = [each.message for each in lines.records if each.levelname == "WARNING"]
    mean = np.mean([255 - grey(number).astype(float) for number in range(COUNT)]) / 255
    assert [f"the mean of all maps is {mean:.2f} of 1: inverted?" in each for each in warnings] == [True]
    assert np.array_equal(made(settings(tmp_path))[0], 255 - grey(0))


def test_each_over_its_maximum(tmp_path: Path, maps: Path) -> None:
    config = settings(tmp_path, normalise="max")
    make_saliency(config)
    for number, found in enumerate(made(config)):
        wanted = grey(number).astype(float) / grey(number).max() * 255
        assert np.abs(found - wanted).max() <= 0.5


def test_a_map_is_shrunk_with_its_photograph(tmp_path: Path) -> None:
    config = make_config(tmp_path, saliency={"folder": str(tmp_path / "maps")})
    write_images(config, "train", 1, names=["p"], sizes=[(12, 16)])
    about = b'{"labels": [1], "name": "p", "original": [24, 32], "size": [12, 16]}'
    shards, classes = beside_images(config, lambda number, found, truth: {**found, "json": about})
    images = load_index(images_dir(config, "train"))
    write_shards(images.folder, "images", shards, classes, images.parameters, **images.extra)
    (tmp_path / "maps").mkdir()
    values = np.kron(np.random.default_rng(0).integers(0, 255, (12, 16)), np.ones((2, 2))).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "maps/p.png")
    make_saliency(config)
    found = made(config)[0].astype(int)
    assert found.shape == (12, 16)
    assert found.min() >= values.min()
    assert found.max() <= values.max()
    assert np.abs(found - values.reshape(12, 2, 16, 2).mean((1, 3))).mean() < 30  # the pixels beside weigh in too
    Image.fromarray(values[::2, ::2]).save(tmp_path / "maps/p.png")
    with pytest.raises(DataError, match="map 16 x 12, photograph 32 x 24"):
        make_saliency(config, remake=True)


def test_a_stopped_stage_goes_on(tmp_path: Path, maps: Path, monkeypatch: pytest.MonkeyPatch, lines) -> None:
    make_saliency(settings(tmp_path))
    undisturbed = snapshot(tmp_path / "shards/saliency")
    stopped = settings(tmp_path / "stopped", folder=str(maps))

    def stop(name: str) -> None:
        if name == "after-shard:saliency-00001.tar":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_stage, "fault_point", stop)
        with pytest.raises(KeyboardInterrupt):
            make_saliency(stopped)
    folder = saliency_dir(stopped)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert len(before) == 2
    with pytest.raises(ShardError, match="distwsss saliency makes it"):
        open_saliency(stopped, load_index(images_dir(stopped, "train")))
    make_saliency(stopped)
    assert "saliency: 2 of 3 shards are there already" in lines.messages
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert snapshot(tmp_path / "stopped/shards/saliency") == undisturbed
    make_saliency(stopped)
    assert lines.messages.count("saliency: complete, skipped") == 1


def test_other_maps_are_refused_until_they_are_to_be_made_anew(tmp_path: Path, maps: Path) -> None:
    config = settings(tmp_path)
    make_saliency(config)
    assert np.array_equal(made(config)[3], grey(3))
    Image.fromarray(grey(33)).save(maps / "p.3.png")
    for ask in (make_saliency, made):
        with pytest.raises(ConfigError, match=r"inputs\.folder: was "):
            ask(config)
    with pytest.raises(ConfigError, match=r"saliency\.normalise: was 'none', now 'max'"):
        make_saliency(settings(tmp_path, normalise="max"))
    make_saliency(config, remake=True)
    assert np.array_equal(made(config)[3], grey(33))


def test_maps_stay_good_when_their_folder_is_gone(tmp_path: Path, maps: Path) -> None:
    config = settings(tmp_path)
    make_saliency(config)
    maps.rename(tmp_path / "elsewhere")
    make_saliency(config)
    assert len(made(config)) == COUNT
    with pytest.raises(DataError, match=r"saliency\.folder: found no folder"):
        make_saliency(settings(tmp_path / "new", folder=str(maps)))


def test_damaged_photographs_give_no_maps(tmp_path: Path, maps: Path) -> None:
    config = settings(tmp_path)
    flip_a_bit(images_dir(config, "train") / "images-00001.tar")
    with pytest.raises(ShardError, match=r"images-00001\.tar: sha256 differs"):
        make_saliency(config)
