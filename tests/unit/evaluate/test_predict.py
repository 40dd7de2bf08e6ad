"""Predictions for pictures: names, palettes, bad inputs, and never a file outside the output folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distwsss.config.schema import Config
from distwsss.data.images import decode_image, decode_mask, voc_palette
from distwsss.errors import CheckpointError, ConfigError, DataError
from distwsss.evaluate.predict import predict
from distwsss.inference.pictures import overlay, with_legend
from distwsss.inference.postprocess import crf_labels
from distwsss.inference.segmenter import open_segmenter
from distwsss.inference.views import Views, predict_probabilities
from distwsss.models.export import from_pretrained
from helpers.small import make_config, picture, snapshot, write_segmenter


@pytest.fixture
def run(tmp_path: Path) -> tuple[Config, Path]:
    config = make_config(tmp_path)
    return config, write_segmenter(config)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_and_folders_keep_their_names(run: tuple[Config, Path], tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    for name in ("a.jpg", "sub/b.v2.JPG", "sub/deep/c.jpeg"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(picture(len(name), 40, 56))
    (photos / "notes.txt").write_text("not a picture")
    (tmp_path / "single.jpg").write_bytes(picture(9))
    written = predict(open_segmenter(run[0]), [photos, tmp_path / "single.jpg"], output)
    names = ["a", "single", "sub/b.v2", "sub/deep/c"]
    assert everything(output) == sorted(f"{name}{end}" for name in names for end in (".png", ".overlay.jpg"))
    assert sorted(written) == sorted(output / f"{name}.png" for name in names)


def test_a_map_holds_the_most_probable_classes_in_vocs_colours(run: tuple[Config, Path], tmp_path: Path) -> None:
    config, checkpoint = run
    (tmp_path / "a.jpg").write_bytes(picture(5, 40, 56))
    predict(open_segmenter(config), [tmp_path / "a.jpg"], tmp_path / "out")
    image, stored = decode_image((tmp_path / "a.jpg").read_bytes(), "a"), (tmp_path / "out/a.png").read_bytes()
    wanted = predict_probabilities(from_pretrained(checkpoint), image, Views()).argmax(0).numpy()
    assert np.array_equal(decode_mask(stored, "a.png"), wanted)
    opened = Image.open(io.BytesIO(stored))
    assert opened.mode == "P"
    assert np.array_equal(np.array(opened.getpalette()).reshape(-1, 3)[:3], voc_palette()[:3])


def test_multi_scale_and_crf(run: tuple[Config, Path], tmp_path: Path) -> None:
    config, checkpoint = run
    (tmp_path / "a.jpg").write_bytes(picture(1, 40, 56))
    predict(open_segmenter(config), [tmp_path / "a.jpg"], tmp_path / "out", multi_scale=True, crf=True)
    image = decode_image((tmp_path / "a.jpg").read_bytes(), "a")
    probabilities = predict_probabilities(from_pretrained(checkpoint), image, Views((0.75, 1.0), True)).numpy()
    assert config.evaluate.crf is not None
    wanted = crf_labels(image, probabilities, config.evaluate.crf)
    assert np.array_equal(decode_mask((tmp_path / "out" / "a.png").read_bytes(), "a"), wanted)


def test_bad_pictures_are_named_after_the_others_are_done(run: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = run
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "good.jpg").write_bytes(picture(1))
    (photos / "cut.jpg").write_bytes(picture(2)[:300])
    (photos / "page.png").write_text("<html>")
    with pytest.raises(DataError) as caught:
        predict(open_segmenter(config), [photos, tmp_path / "absent"], tmp_path / "out")
    for name in ("cut.jpg", "page.png", "absent: not found", "1 picture done", "3 problems"):
        assert name in str(caught.value)
    assert everything(tmp_path / "out") == ["good.overlay.jpg", "good.png"]


def test_clashing_names_are_refused(run: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = run
    for name in ("one/a.jpg", "two/a.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(picture(1))
    with pytest.raises(DataError, match=r"two/a\.jpg: its output would overwrite that of .*one/a\.jpg"):
        predict(open_segmenter(config), [tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert everything(tmp_path / "out") == ["a.overlay.jpg", "a.png"]


def test_a_picture_given_twice_is_done_once(run: tuple[Config, Path], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.jpg").write_bytes(picture(1))
    assert len(predict(open_segmenter(run[0]), [tmp_path / "one", tmp_path / "one/a.jpg"], tmp_path / "out")) == 1


def test_inputs_are_never_overwritten(run: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = run
    photos = tmp_path / "photos"
    photos.mkdir()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(3))).save(buffer, "PNG")
    (photos / "a.png").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"a\.png: its output would overwrite an input"):
        predict(open_segmenter(config), [photos / "a.png"], photos)
    assert (photos / "a.png").read_bytes() == buffer.getvalue()
    assert everything(photos) == ["a.png"]


def test_an_output_folder_inside_the_input_is_no_input(run: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = run
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(picture(1))
    for _ in range(2):
        assert predict(open_segmenter(config), [photos], photos / "out") == [photos / "out" / "a.png"]
    assert everything(photos) == ["a.jpg", "out/a.overlay.jpg", "out/a.png"]


def test_nothing_is_written_through_a_link_out_of_the_output(run: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = run
    photos, outside, output = tmp_path / "photos", tmp_path / "outside", tmp_path / "out"
    for folder in (photos / "sub", outside, output):
        folder.mkdir(parents=True)
    (photos / "sub" / "a.jpg").write_bytes(picture(1))
    (output / "sub").symlink_to(outside)
    with pytest.raises(DataError, match="a link leads its output out of"):
        predict(open_segmenter(config), [photos], output)
    assert everything(outside) == []


def test_a_folder_without_pictures_is_an_error(run: tuple[Config, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture in it"):
        predict(open_segmenter(run[0]), [tmp_path / "empty"], tmp_path / "out")


def test_what_a_folder_holds_beside_pictures_is_said(
    run: tuple[Config, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Links to folders are followed, circles end, other names of JPEG are read; all else is counted in one line."""
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for name in ("photos/a.jpg", "photos/b.JFIF", "elsewhere/c.jpg", "elsewhere/deep/d.jpe"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(len(name)))
    for name in ("IMG_2.HEIC", "IMG_3.heic", "notes.txt", "._a.jpg"):
        (photos / name).write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "holiday").symlink_to(elsewhere)
    (photos / "twice").symlink_to(elsewhere / "deep")
    (elsewhere / "circle").symlink_to(photos)
    (photos / "lost.jpg").symlink_to(tmp_path / "nowhere")
    assert len(predict(open_segmenter(run[0]), [photos], tmp_path / "out")) == 4
    found = [name for name in everything(tmp_path / "out") if not name.endswith(".overlay.jpg")]
    assert len(found) == 4
    assert {"a.png", "b.png", "holiday/c.png"} < set(found)
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    for text in ("left out 7", "2 .heic (IMG_2.HEIC, IMG_3.heic)", "1 .txt (notes.txt)", "1 hidden (._a.jpg)",
                 "1 link that leads nowhere (lost.jpg)", "2 linked folder seen already", "as JPEG first"):  # fmt: skip
        assert text in line


def test_pictures_of_a_phone_alone_are_an_error_that_says_what_to_do(run: tuple[Config, Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/IMG_2.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(DataError, match=r"no picture in it; .*1 \.heic \(IMG_2\.HEIC\); save .* as JPEG first"):
        predict(open_segmenter(run[0]), [tmp_path / "photos"], tmp_path / "out")


def test_earlier_predictions_are_written_anew_until_somebody_changes_one(
    run: tuple[Config, Path], tmp_path: Path
) -> None:
    output, segmenter = tmp_path / "out", open_segmenter(run[0])
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(picture(len(name)))
    for inputs in (["a.jpg"], ["a.jpg", "b.jpg"]):
        predict(segmenter, [tmp_path / name for name in inputs], output)
    drawn = Image.open(output / "a.png")
    drawn.putpixel((0, 0), 1 + drawn.getpixel((0, 0)))
    drawn.save(output / "a.png")
    (output / "b.overlay.jpg").write_bytes(picture(3))
    before = snapshot(output)
    with pytest.raises(ConfigError, match=r"2 files would be overwritten .*out/a\.png, .*out/b\.overlay\.jpg; nothing"):
        predict(segmenter, [tmp_path / "a.jpg", tmp_path / "b.jpg"], output)
    assert snapshot(output) == before
    with pytest.raises(ConfigError, match="1 file would be overwritten"):
        segmenter.predict(tmp_path / "a.jpg").save(output, "a")
    assert snapshot(output) == before


def test_a_crf_that_is_not_configured_is_an_error(run: tuple[Config, Path], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    without = open_segmenter(make_config(tmp_path, evaluate={"crf": None}))
    with pytest.raises(ConfigError, match=r"evaluate\.crf"):
        predict(without, [tmp_path / "a.jpg"], tmp_path / "out", crf=True)


@pytest.mark.parametrize("output", ["a.jpg", "a.jpg/sub"])
def test_an_output_that_cannot_be_a_folder_is_an_error(run: tuple[Config, Path], tmp_path: Path, output: str) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    with pytest.raises(ConfigError, match=r"--output .*a\.jpg.*: cannot be a folder"):
        predict(open_segmenter(run[0]), [tmp_path / "a.jpg"], tmp_path / output)
    assert (tmp_path / "a.jpg").read_bytes() == picture(1)


def test_without_a_segmenter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="run `distwsss train` first"):
        open_segmenter(make_config(tmp_path))


def test_an_overlay_leaves_background_and_mixes_colours() -> None:
    image, labels = np.full((10, 60, 3), 200, dtype=np.uint8), np.zeros((10, 60), dtype=np.uint8)
    labels[:, 30:] = 2
    mixed = overlay(image, labels, strength=0.5)
    assert np.array_equal(mixed[:, :30], image[:, :30])
    assert mixed[0, 59].tolist() == [100, 164, 100]  # half of grey 200, half of VOC's (0, 128, 0)


def test_a_legend_names_the_classes_that_are_there() -> None:
    image, labels = np.full((10, 60, 3), 200, dtype=np.uint8), np.zeros((10, 60), dtype=np.uint8)
    labels[:, 30:] = 2
    framed = np.array(with_legend(image, labels, ["background", "cat", "dog"]))
    assert framed.shape == (26, 60, 3)
    assert (framed[10:] == [0, 128, 0]).all(axis=2).sum() == 11 * 11  # the swatch of the one class present
