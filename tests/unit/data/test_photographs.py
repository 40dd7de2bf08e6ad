"""The photograph in an image shard: upright for every reader and no larger than `prepare.longest_side`, else its own
bytes; and truth at its own size beside it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distwsss.config import Config
from distwsss.config.load import load_config
from distwsss.data.images import encode_palette
from distwsss.data.prepare import prepare
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.verify import verify
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.layout import images_dir, shard_dir
from helpers.orientation import UPRIGHT
from helpers.small import make_config, write_shards

SIZE = (90, 120)


def scene(height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
    """Smooth, and different at every corner."""
    rows, columns = np.linspace(20, 220, height)[:, None], np.linspace(200, 40, width)[None]
    return np.stack(np.broadcast_arrays(rows, columns, (rows + columns) / 2), -1).astype(np.uint8)


def write(path: Path, orientation: int = 1, **options: Any) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene()).save(path, exif=exif, **options)
    return path


def settings(root: Path, longest_side: int | None = 512, **data: Any) -> Config:
    """The pictures below root/data/images, all tagged `dog`."""
    names = sorted(path.name for path in (root / "data/images").iterdir())
    (root / "data/tags.csv").write_text("id,labels\n" + "".join(f"{name},dog\n" for name in names))
    data = {"dataset": "folder", "root": str(root / "data"), **data}
    return make_config(root, data=data, prepare={"longest_side": longest_side})


def prepared(config: Config) -> dict[str, dict[str, bytes]]:
    """Key -> the members of every image."""
    prepare(config)
    assert verify(shard_dir(config)) == []
    index = load_index(images_dir(config, "train"), "images")
    return {k: v for n in range(len(index.shards)) for k, v in iter_shard(index, n, ["jpg", "json", "truth.png"])}


def stored(data: bytes) -> np.ndarray:
    """The pixels as they lie in the file, as readers see them that know nothing of EXIF."""
    image = Image.open(io.BytesIO(data))
    assert image.getexif().get(0x0112) is None
    assert b"Orientation" not in data
    return np.asarray(image.convert("RGB"))


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.shape == wanted.shape and bool(np.abs(found.astype(int) - wanted).mean() < 2)


# --- upright ---


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_turned_photograph_is_upright_for_every_reader(tmp_path: Path, suffix: str, orientation: int) -> None:
    write(tmp_path / f"data/images/p.{suffix}", orientation, **({"quality": 95} if suffix != "png" else {}))
    found = prepared(settings(tmp_path))["p"]
    about = json.loads(found["json"])
    wanted = UPRIGHT[orientation](scene())
    assert close(stored(found["jpg"]), wanted)
    assert (about["size"], about["turned"]) == (list(wanted.shape[:2]), orientation)
    assert about["encoded_from"] == suffix
    assert "original" not in about


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_a_jpeg_that_is_not_turned_keeps_its_bytes(tmp_path: Path, orientation: int) -> None:
    path = write(tmp_path / "data/images/p.jpg", orientation)
    found = prepared(settings(tmp_path))["p"]
    assert found["jpg"] == path.read_bytes()
    assert json.loads(found["json"]).keys() == {"labels", "name", "size"}


def test_the_first_picture_of_a_phones_file_of_several(tmp_path: Path) -> None:
    """MPO: a JPEG with another one behind it. Turned ones are written anew, others kept."""
    folder = tmp_path / "data/images"
    folder.mkdir(parents=True)
    second = Image.fromarray(255 - scene())
    for name, orientation in (("plain", 1), ("turned", 6)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(scene()).save(folder / f"{name}.jpg", "MPO", save_all=True, append_images=[second], exif=exif)
    found = prepared(settings(tmp_path))
    assert found["plain"]["jpg"] == (folder / "plain.jpg").read_bytes()
    assert close(stored(found["turned"]["jpg"]), UPRIGHT[6](scene()))


def test_a_turned_photograph_in_cmyk(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "data/images").mkdir(parents=True)
    Image.fromarray(scene()).convert("CMYK").save(tmp_path / "data/images/p.jpg", quality=95, exif=exif)
    found = prepared(settings(tmp_path))["p"]
    assert Image.open(io.BytesIO(found["jpg"])).mode == "RGB"
    assert stored(found["jpg"]).shape == (120, 90, 3)


# --- shrunk ---


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_large_photograph_is_shrunk_and_its_truth_is_not(tmp_path: Path, suffix: str, orientation: int) -> None:
    write(tmp_path / f"data/images/p.{suffix}", orientation, **({"quality": 95} if suffix == "jpg" else {}))
    upright = np.ascontiguousarray(UPRIGHT[orientation](scene()))
    truth = np.random.default_rng(0).integers(0, 2, upright.shape[:2], np.uint8)
    (tmp_path / "data/masks").mkdir()
    (tmp_path / "data/masks/p.png").write_bytes(encode_palette(truth))
    found = prepared(settings(tmp_path, 48))["p"]
    about = json.loads(found["json"])
    height, width = (48, 36) if orientation == 6 else (36, 48)
    by_hand = np.asarray(Image.fromarray(upright).resize((width, height), Image.Resampling.LANCZOS))
    assert close(stored(found["jpg"]), by_hand)
    assert (about["size"], about["original"]) == ([height, width], list(upright.shape[:2]))
    assert np.array_equal(np.array(Image.open(io.BytesIO(found["truth.png"]))), truth)


def test_what_is_not_larger_keeps_its_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "data/images/p.jpg")
    for number, longest_side in enumerate((None, 120, 4000)):
        config = settings(tmp_path, longest_side)
        config = config.model_copy(update={"paths": config.paths.model_copy(update={"shards": f"{tmp_path}/{number}"})})
        assert prepared(config)["p"]["jpg"] == path.read_bytes()


def test_shards_of_another_longest_side_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "data/images/p.jpg")
    prepare(settings(tmp_path, None))
    with pytest.raises(ConfigError, match=r"(?s)prepare\.longest_side: was None, now 512.*Set them back"):
        prepare(settings(tmp_path))


@pytest.mark.parametrize("name", ["voc12/deeplab_v1", "voc12/segformer_b2", "coco14/deeplab_v2"])
def test_the_papers_rows_see_photographs_as_they_are(name: str) -> None:
    assert load_config(name).prepare.longest_side is None


def test_a_mask_of_the_shrunk_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    write(tmp_path / "data/images/p.jpg")
    (tmp_path / "data/masks").mkdir()
    (tmp_path / "data/masks/p.png").write_bytes(encode_palette(np.zeros((36, 48), np.uint8)))
    with pytest.raises(
        DataError, match=r"p\.jpg: mask: found 48 x 36 pixels; allowed: 120 x 90, the size of the image"
    ):
        prepare(settings(tmp_path, 48))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_drawn_on_the_unturned_pixels_is_told_of_exif(tmp_path: Path, orientation: int) -> None:
    write(tmp_path / "data/images/p.jpg", orientation)
    (tmp_path / "data/masks").mkdir()
    (tmp_path / "data/masks/p.png").write_bytes(encode_palette(np.zeros(SIZE, np.uint8)))
    wanted = rf"found 120 x 90 pixels; allowed: 90 x 120, .* EXIF orientation \({orientation}\).*turn the mask likewise"
    with pytest.raises(DataError, match=wanted):
        prepare(settings(tmp_path))


def test_a_truth_that_does_not_fit_the_original_is_found_by_verify(tmp_path: Path) -> None:
    write(tmp_path / "data/images/p.jpg")
    config = settings(tmp_path, 48)
    fields = prepared(config)["p"]
    for truth, problems in ((SIZE, 0), ((36, 48), 1), ((90, 119), 1)):
        members = {"jpg": fields["jpg"], "json": fields["json"], "truth.png": encode_palette(np.zeros(truth, np.uint8))}
        write_shards(tmp_path / str(truth), "images", [[(key_from_name("p"), members)]], ["background", "dog"])
        assert len(verify(tmp_path / str(truth))) == problems


def test_a_damaged_large_jpeg_is_a_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "data/images/p.jpg")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"p\.jpg: cannot be decoded"):
        prepare(settings(tmp_path, 48))
