"""The archive for VOC's server: what is in it, read with tarfile and PIL alone; what is refused before it is made."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from distwsss import cli
from distwsss.config.schema import Config
from distwsss.data.images import decode_image, encode_clean, encode_gray, encode_palette, voc_palette
from distwsss.data.prepare import prepare_split
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_fields
from distwsss.data.sources.voc import VOC_CLASSES
from distwsss.errors import CheckpointError, ConfigError, DataError
from distwsss.evaluate import submit as module
from distwsss.evaluate.submit import archive_problems, submit
from distwsss.inference.postprocess import crf_labels
from distwsss.inference.segmenter import Segmenter
from distwsss.inference.views import Views, predict_probabilities
from distwsss.models.export import from_pretrained
from distwsss.runtime.artifacts import read_json, write_json, write_manifest
from helpers.small import CLASSES, make_config, picture, write_segmenter

NAMES = ["2008_000006", "2008_000011", "2007_000009", "2010_000002"]  # not sorted: the list's order counts
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def make_root(root: Path, names: list[str] = NAMES, split: str = "test") -> Path:
    """A devkit folder as VOC2012test.tar leaves it: photographs of several sizes and a list; no labels, no masks."""
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (root / f"JPEGImages/{name}.jpg").write_bytes(picture(number, 24 + 4 * number, 40 - 4 * number))
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def voc_config(folder: Path, workers: int = 0, **data: str) -> Config:
    section = {"dataset": "voc", "root": str(folder / "VOC2012"), **data}
    return make_config(folder, data=section, hardware={"workers": workers})


@pytest.fixture
def run(tmp_path: Path) -> tuple[Config, Path]:
    """A configuration and its segmenter of VOC's classes."""
    make_root(tmp_path / "VOC2012")
    config = voc_config(tmp_path)
    return config, write_segmenter(config, VOC_CLASSES)


def opened(path: Path) -> dict[str, Image.Image]:
    """Member -> picture, in the order of the archive."""
    with tarfile.open(path, "r:gz") as tar:
        files = {info.name: tar.extractfile(info) for info in tar}
        assert len(files) == len(tar.getmembers())
        return {name: Image.open(io.BytesIO(file.read())) for name, file in files.items() if file is not None}


def wanted(config: Config, checkpoint: Path, name: str, multi_scale: bool, crf: bool) -> np.ndarray:
    image = decode_image((Path(str(config.data.root)) / f"JPEGImages/{name}.jpg").read_bytes(), name)
    scales = (0.75, 1.0) if multi_scale else (1.0,)
    probabilities = predict_probabilities(from_pretrained(checkpoint), image, Views(scales, multi_scale))
    if crf and config.evaluate.crf is not None:
        return crf_labels(image, probabilities.half().numpy(), config.evaluate.crf)
    return probabilities.argmax(0).numpy()


@pytest.mark.parametrize(("multi_scale", "crf"), [(True, True), (True, False), (False, False)])
def test_every_image_in_order_as_an_indexed_png_of_its_size(
    run: tuple[Config, Path], tmp_path: Path, multi_scale: bool, crf: bool
) -> None:
    config, checkpoint = run
    assert submit(config, tmp_path / "out/results.tgz", multi_scale=multi_scale, crf=crf) == 4
    found = opened(tmp_path / "out/results.tgz")
    assert list(found) == [f"{FOLDER}/{name}.png" for name in NAMES]
    seen = set()
    for number, (name, map_) in enumerate(zip(NAMES, found.values(), strict=True)):
        assert (map_.format, map_.mode, map_.size) == ("PNG", "P", (40 - 4 * number, 24 + 4 * number))
        assert np.array_equal(np.array(map_.getpalette()).reshape(-1, 3), voc_palette()[: len(map_.getpalette()) // 3])
        labels = np.array(map_)
        assert np.array_equal(labels, wanted(config, checkpoint, name, multi_scale, crf))
        seen |= set(np.unique(labels).tolist())
    assert len(seen) > 1
    assert seen <= set(range(21))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.tgz"]


@pytest.mark.parametrize("crf", [True, False])
def test_maps_have_the_photographs_size_where_the_network_saw_them_shrunk(
    run: tuple[Config, Path], tmp_path: Path, crf: bool
) -> None:
    config, checkpoint = run
    described = read_json(checkpoint / "config.json")
    described["inference"]["longest_side"] = 20
    write_json(checkpoint / "config.json", described)
    write_manifest(checkpoint)
    segmenter = Segmenter.from_pretrained(checkpoint, "cpu")
    assert submit(config, tmp_path / "results.tgz", multi_scale=False, crf=crf) == 4
    for name, map_ in zip(NAMES, opened(tmp_path / "results.tgz").values(), strict=True):
        wanted = segmenter.predict(Path(str(config.data.root)) / f"JPEGImages/{name}.jpg")
        assert max(wanted.seen.shape) == 21
        assert map_.size == wanted.image.shape[1::-1]
        assert crf or np.array_equal(np.array(map_), wanted.labels)


def test_processes_and_repetition_do_not_change_a_byte(run: tuple[Config, Path], tmp_path: Path) -> None:
    for name, workers in (("a", 0), ("b", 0), ("c", 2)):
        submit(voc_config(tmp_path, workers), tmp_path / f"{name}.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "c.tar.gz").read_bytes()


@pytest.fixture
def submitted(run: tuple[Config, Path], tmp_path: Path) -> Callable[..., int]:
    """submitted(*arguments) -> the exit code of `distwsss submit` without several scales and CRF."""
    config, checkpoint = run
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(json.loads(config.model_dump_json())))
    plain = ["submit", "--config", str(file), "--no-multi-scale", "--no-crf", "--checkpoint", str(checkpoint)]
    return lambda *arguments: cli.main([*plain, *map(str, arguments)])


def test_the_command_line_takes_another_split(
    run: tuple[Config, Path], submitted: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_root(tmp_path / "VOC2012", NAMES[:2], "val")
    assert submitted("--split", "val", "-o", tmp_path / "val.tgz") == 0
    said = capfd.readouterr()
    assert f"2 label maps in {tmp_path / 'val.tgz'}" in said.out
    assert "single scale, no CRF" in said.err
    found = opened(tmp_path / "val.tgz")
    assert list(found) == [f"results/VOC2012/Segmentation/comp6_val_cls/{name}.png" for name in NAMES[:2]]
    assert np.array_equal(np.array(found[next(iter(found))]), wanted(*run, NAMES[0], False, False))


def test_a_test_split_of_another_length_than_the_servers_is_said(
    submitted: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert submitted("-o", tmp_path / "test.tgz") == 0
    assert "test.txt lists 4 images; the server has 1456" in capfd.readouterr().err


def test_an_absent_split_exits_as_bad_data(submitted: Callable[..., int], tmp_path: Path) -> None:
    assert submitted("--split", "none", "-o", tmp_path / "none.tgz") == 3


def test_problems_are_named_together_before_anything_is_predicted(
    run: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = run
    root = tmp_path / "VOC2012"
    (root / "JPEGImages/2008_000011.jpg").write_bytes(b"no picture")
    (root / "JPEGImages/2007_000009.jpg").unlink()
    (root / "ImageSets/Segmentation/test.txt").write_text("".join(f"{name}\n" for name in [*NAMES, NAMES[0], "../x"]))
    monkeypatch.setattr(Segmenter, "probabilities", None)
    with pytest.raises(DataError, match=r"split `test` cannot be used.*5 problems") as caught:
        submit(config, tmp_path / "results.tgz")
    for text in (
        "2008_000011: found b'no picture'",
        "2007_000009: no image",
        "2008_000006: duplicate id",
        "../x: the id",
    ):
        assert text in str(caught.value)
    assert not (tmp_path / "results.tgz").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *((name, r"allowed: a file called NAME\.tgz or NAME\.tar\.gz") for name in ("r.tar", "r.zip", "results")),
        ("file/results.tgz", "its folder cannot be made"),
        ("folder.tgz", r"folder\.tgz: allowed: a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(
    run: tuple[Config, Path], tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.tgz").mkdir()
    with pytest.raises(ConfigError, match=said):
        submit(run[0], tmp_path / name)


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`data\.dataset` is 'shapes'; allowed: voc"):
        submit(make_config(tmp_path), tmp_path / "results.tgz")


def test_a_list_that_is_not_there_is_named_with_its_archive(run: tuple[Config, Path], tmp_path: Path) -> None:
    (tmp_path / "VOC2012/ImageSets/Segmentation/test.txt").unlink()
    with pytest.raises(DataError, match=r"split `test` has no images .*test\.txt.*VOC2012test\.tar"):
        submit(run[0], tmp_path / "results.tgz")


def test_without_a_segmenter(tmp_path: Path) -> None:
    make_root(tmp_path / "VOC2012")
    with pytest.raises(CheckpointError, match="run `distwsss train` first"):
        submit(voc_config(tmp_path), tmp_path / "results.tgz")


def test_a_segmenter_of_other_classes_is_refused(tmp_path: Path) -> None:
    make_root(tmp_path / "VOC2012")
    config = voc_config(tmp_path)
    write_segmenter(config, CLASSES)
    with pytest.raises(DataError, match="a segmenter of background, cat, dog; allowed: VOC's"):
        submit(config, tmp_path / "results.tgz")


def test_an_archive_that_would_be_refused_gets_no_name(
    run: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(run[0], tmp_path / "out/results.tgz", multi_scale=False, crf=False)
    before = (tmp_path / "out/results.tgz").read_bytes()
    monkeypatch.setattr(module, "encode_palette", encode_gray)
    with pytest.raises(DataError, match=r"not written, the server would refuse it.*4 problems"):
        submit(run[0], tmp_path / "out/results.tgz")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.tgz"]
    assert (tmp_path / "out/results.tgz").read_bytes() == before


def test_an_archive_of_somebody_else_is_left_alone(run: tuple[Config, Path], tmp_path: Path) -> None:
    by_hand(tmp_path / "results.tgz", [("results/a.png", A)])
    before = (tmp_path / "results.tgz").read_bytes()
    with pytest.raises(ConfigError, match=r"results\.tgz: is there, and submit did not write it"):
        submit(run[0], tmp_path / "results.tgz")
    assert (tmp_path / "results.tgz").read_bytes() == before


# --- what an archive can have wrong, made by hand ---

SIZES = {"results/a.png": (4, 6), "results/b.png": (5, 5)}
A, B = encode_palette(np.zeros((4, 6), np.uint8)), encode_palette(np.full((5, 5), 20, np.uint8))


def by_hand(path: Path, members: list[tuple[str, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rgb() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def filled(value: int, shape: tuple[int, int] = (4, 6)) -> bytes:
    return encode_palette(np.full(shape, value, np.uint8))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("results/a.png", A), ("results/b.png", B)], []),
        ([("results/a.png", A)], ["results/b.png: missing"]),
        ([("results/a.png", A), ("results/b.png", B), ("c.png", A)], ["c.png: not an image of the split"]),
        ([("results/b.png", B), ("results/a.png", A)], ["members twice, or in another order"]),
        ([("results/a.png", A), ("results/b.png", B), ("results/a.png", A)], ["members twice, or in another order"]),
        ([("results/a.png", filled(255)), ("results/b.png", B)], ["results/a.png: found values 255; allowed: 0..20"]),
        ([("results/a.png", filled(21)), ("results/b.png", B)], ["results/a.png: found values 21; allowed: 0..20"]),
        ([("results/a.png", filled(0, (6, 4))), ("results/b.png", B)], ["found 4 x 6 pixels; allowed: 6 x 4"]),
        ([("results/a.png", encode_gray(np.zeros((4, 6), np.uint8))), ("results/b.png", B)], ["no 8-bit palette"]),
        ([("results/a.png", encode_clean(np.zeros((4, 6), bool))), ("results/b.png", B)], ["found pixel mode 1"]),
        ([("results/a.png", rgb()), ("results/b.png", B)], ["found pixel mode RGB"]),
        ([("results/a.png", A[:40]), ("results/b.png", B[:-30])], ["results/a.png: ", "results/b.png: "]),
    ],
)
def test_what_is_wrong_with_an_archive(tmp_path: Path, members: list[tuple[str, bytes]], said: list[str]) -> None:
    problems = archive_problems(by_hand(tmp_path / "x.tgz", members), SIZES)
    assert len(problems) == len(said)
    assert all(text in problem for text, problem in zip(said, problems, strict=True)), problems


def plain(path: Path) -> None:
    by_hand(path, [("results/a.png", A), ("results/b.png", B)], "w:")


def cut(path: Path) -> None:
    by_hand(path, [("results/a.png", A), ("results/b.png", B)])
    path.write_bytes(path.read_bytes()[:-20])


def flipped(path: Path) -> None:
    by_hand(path, [("results/a.png", A), ("results/b.png", B)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("make", [plain, cut, flipped])
def test_what_is_no_gzipped_tar(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.tgz")
    assert archive_problems(tmp_path / "x.tgz", SIZES)


def test_a_link_is_no_label_map(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tar:
        for name in SIZES:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(info)
    assert archive_problems(tmp_path / "x.tgz", SIZES) == [f"{name}: not a regular file" for name in SIZES]


def test_a_split_without_labels_and_masks_can_be_prepared(tmp_path: Path) -> None:
    make_root(tmp_path / "VOC2012")
    folder = prepare_split(voc_config(tmp_path), "test", tmp_path / "images")
    index = load_index(folder, "images")
    assert set(index.all().keys()) == set(NAMES)
    assert index.extra["truth"] is None
    assert list(index.shards[0].members[0]) == ["jpg", "json"]
    assert json.loads(read_fields(index, 0, 0, ["json"])["json"])["labels"] is None
