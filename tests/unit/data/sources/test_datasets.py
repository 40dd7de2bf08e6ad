"""The listings of the `voc` and `folder` data sets, on trees built here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distwsss.config.data import DataSection
from distwsss.config.load import check_config
from distwsss.data.holdout import tuning_keys
from distwsss.data.images import encode_palette
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import Listing, stem_of
from distwsss.data.sources.tags_csv import read_tags
from distwsss.data.sources.voc_classes import VOC_CLASSES
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.layout import images_dir
from helpers.paths import VOC_MINI

XML = """<annotation><filename>one.jpg</filename>
<object><name>person</name><difficult>0</difficult><part><name>head</name></part><part><name>cat</name></part></object>
<object><name>dog</name><difficult>1</difficult></object>
<object><name>person</name></object>
</annotation>"""


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)


def text(path: Path, content: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding=encoding)


def listing(dataset: str, root: Path, split: str = "train", **keys: Any) -> Listing:
    return DATASETS[dataset](DataSection(dataset=dataset, root=str(root), **keys), split)  # type: ignore[arg-type]


def labels(found: Listing) -> dict[str, list[int] | None]:
    return {item.name: item.labels for item in found.items}


def problems(found: Listing) -> dict[str, list[str]]:
    return {item.name: item.problems for item in found.items if item.problems}


# voc


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
    text(tmp_path / "ImageSets/Segmentation/train.txt", "two\none\n\n")
    text(tmp_path / "ImageSets/Segmentation/val.txt", "three\n")
    return tmp_path


@pytest.fixture
def voc_xml(voc: Path) -> Path:
    """With annotations of the train split, and a CSV beside them."""
    text(voc / "Annotations/one.xml", XML)
    text(voc / "Annotations/two.xml", "<annotation></annotation>")
    text(voc / "cls_labels.csv", "id,labels\none,1\ntwo,1\n")
    return voc


def test_voc_xml_takes_objects_and_not_their_parts(voc_xml: Path) -> None:
    found = listing("voc", voc_xml)
    assert labels(found) == {"two": [], "one": [VOC_CLASSES.index("dog"), VOC_CLASSES.index("person")]}


def test_voc_has_its_20_classes(voc_xml: Path) -> None:
    found = listing("voc", voc_xml)
    assert found.classes == VOC_CLASSES
    assert len(found.classes) == 21


def test_voc_xml_wins_over_the_csv_unless_that_is_named(voc_xml: Path) -> None:
    assert listing("voc", voc_xml).labels_from == "xml"
    assert labels(listing("voc", voc_xml, labels_from="csv")) == {"two": [1], "one": [1]}


def test_voc_val_needs_no_xml(voc_xml: Path) -> None:
    assert labels(listing("voc", voc_xml, "val")) == {"three": None}


def test_voc_xml_problems(voc: Path) -> None:
    text(voc / "Annotations/one.xml", "<annotation><object>")
    text(voc / "Annotations/two.xml", "<annotation><object><name>persom</name></object></annotation>")
    found = problems(listing("voc", voc))
    assert "Annotations/one.xml: not readable XML" in found["one"][0]
    assert found["two"] == ["unknown class 'persom'; did you mean `person`?"]


def test_voc_csv_by_index_and_by_name(voc: Path) -> None:
    text(voc / "cls_labels.csv", "id,labels\none,15 1 15\ntwo,tvmonitor cat\n", "utf-8-sig")
    found = listing("voc", voc)
    assert found.labels_from == "csv"
    assert labels(found) == {"two": [8, 20], "one": [1, 15]}
    assert not problems(found)


def test_voc_empty_annotations_do_not_hide_the_csv(voc: Path) -> None:
    (voc / "Annotations").mkdir()
    with pytest.raises(DataError, match="no image-level labels"):
        listing("voc", voc)
    text(voc / "cls_labels.csv", "id,labels\none,1\ntwo,2\n")
    found = listing("voc", voc)
    assert found.labels_from == "csv"
    assert labels(found) == {"two": [2], "one": [1]}


def test_voc_csv_problems(voc: Path) -> None:
    text(voc / "cls_labels.csv", "id,labels\none,0 3\ntwo,21\ntwo,4\n")
    found = problems(listing("voc", voc))
    assert "is the background" in found["one"][0]
    assert "stands more than once" in found["two"][0]


def test_voc_csv_an_index_beyond_the_classes(voc: Path) -> None:
    text(voc / "cls_labels.csv", "id,labels\none,21\ntwo,2\n")
    assert problems(listing("voc", voc)) == {"one": ["unknown class index 21; allowed: 1..20"]}


@pytest.fixture
def voc_masks(voc: Path) -> Path:
    """With a mask of `one`, without other labels."""
    (voc / "SegmentationClass").mkdir()
    mask = encode_palette(np.array([[0, 3, 255], [7, 7, 0]], np.uint8))
    (voc / "SegmentationClass" / "one.png").write_bytes(mask)
    return voc


def test_voc_masks_are_no_labels_unless_named(voc_masks: Path) -> None:
    with pytest.raises(DataError, match=r"no image-level labels(.|\n)*labels_from: masks"):
        listing("voc", voc_masks)


def test_voc_masks_are_labels_when_named(voc_masks: Path) -> None:
    found = listing("voc", voc_masks, labels_from="masks")
    assert found.labels_from == "masks"
    assert labels(found) == {"two": None, "one": [3, 7]}
    assert [item.mask for item in found.items] == [None, voc_masks / "SegmentationClass" / "one.png"]


def test_voc_val_needs_no_labels(voc_masks: Path) -> None:
    assert labels(listing("voc", voc_masks, "val")) == {"three": None}


@pytest.mark.parametrize("source", ["xml", "csv", "masks"])
def test_voc_a_named_source_that_is_absent_is_refused(voc: Path, source: str) -> None:
    with pytest.raises(DataError, match=f"labels_from: {source}"):
        listing("voc", voc, labels_from=source)


@pytest.fixture
def voc_terns(voc: Path) -> Path:
    """With classes of its own."""
    text(voc / "cls_labels.csv", "id,labels\none,gull\ntwo,1\n")
    text(voc / "classes.txt", "background\ntern\ngull\n")
    return voc


def test_voc_classes_from_a_file(voc_terns: Path) -> None:
    assert labels(listing("voc", voc_terns)) == {"two": [1], "one": [2]}


def test_voc_classes_of_the_configuration_win(voc_terns: Path) -> None:
    assert listing("voc", voc_terns, classes=["gull", "tern"]).classes == ["background", "gull", "tern"]


@pytest.mark.parametrize(
    ("content", "message"), [("tern\ngull\n", "line 1"), ("background\n", "0 foreground"), ("background\na\na", "once")]
)
def test_voc_classes_that_cannot_be(voc_terns: Path, content: str, message: str) -> None:
    text(voc_terns / "classes.txt", content)
    with pytest.raises(DataError, match=message):
        listing("voc", voc_terns)


def test_voc_a_missing_split_is_empty(voc: Path) -> None:
    text(voc / "cls_labels.csv", "id,labels\none,1\n")
    found = listing("voc", voc, "test")
    assert found.items == []
    assert found.where.endswith("test.txt")


def test_voc_an_id_stays_inside(voc: Path) -> None:
    text(voc / "cls_labels.csv", "id,labels\none,1\n")
    text(voc / "ImageSets/Segmentation/train.txt", "../../etc/passwd\n")
    assert "leads out" in problems(listing("voc", voc))["../../etc/passwd"][0]


@pytest.mark.parametrize("dataset", ["voc", "folder"])
def test_a_root_that_does_not_exist(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root.*nowhere") as caught:
        listing(dataset, tmp_path / "nowhere")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("dataset", ["voc", "folder"])
def test_a_root_that_is_not_set(dataset: str) -> None:
    with pytest.raises(DataError, match=r"data\.root"):
        DATASETS[dataset](DataSection(dataset=dataset), "train")  # type: ignore[arg-type]


@pytest.mark.parametrize("dataset", ["voc", "folder"])
def test_a_root_without_pictures(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"JPEGImages|images"):
        listing(dataset, tmp_path)


@pytest.mark.skipif(not VOC_MINI.is_dir(), reason="voc_mini is not here (DISTWSSS_DATA)")
def test_voc_mini_is_listed() -> None:
    train, val = (listing("voc", VOC_MINI, split) for split in ("train", "val"))
    assert (len(train.items), len(val.items), train.labels_from) == (490, 239, "csv")
    assert train.classes == ["background", *(VOC_MINI / "classes.txt").read_text().split("\n")[1:21]]
    assert all(item.labels and item.mask and not item.problems for item in train.items)
    from_masks = listing("voc", VOC_MINI, labels_from="masks")
    assert np.mean([a.labels == b.labels for a, b in zip(train.items, from_masks.items, strict=True)]) > 0.95


# folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.c.PNG", "sub/deep/d.v2.webp", "e.jpeg", "unused.bmp"):
        picture(tmp_path / "images" / name)
    return tmp_path


def test_folder_names_with_and_without_suffix_dots_and_folders(folder: Path) -> None:
    text(folder / "tags.csv", "image,tags\na,dog\nb.c.PNG,cat dog\nsub/deep/d.v2,cat\n./e.jpeg,\n", "utf-8-sig")
    found = listing("folder", folder)
    assert found.classes == ["background", "cat", "dog"]
    assert labels(found) == {"a.jpg": [2], "b.c.PNG": [1, 2], "sub/deep/d.v2.webp": [1], "e.jpeg": []}
    assert all(isinstance(item.image, Path) and item.image.is_file() for item in found.items)
    assert not problems(found)
    assert listing("folder", folder, "val").items == []


def test_folder_masks_lie_by_stem(folder: Path) -> None:
    text(folder / "tags.csv", "file,labels\na,dog\nsub/deep/d.v2,dog\n")
    mask = folder / "masks/sub/deep/d.v2.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(encode_palette(np.zeros((6, 8), np.uint8)))
    assert [item.mask for item in listing("folder", folder).items] == [None, mask]


@pytest.mark.parametrize("cell", ["potted plant;dog", "dog | potted plant", "2 1", "potted plant; 1", "1;2"])
def test_folder_separators(folder: Path, cell: str) -> None:
    text(folder / "tags.csv", f"id,labels\na,{cell}\ne,potted plant\n")
    found = listing("folder", folder, classes=["dog", "potted plant"])
    assert labels(found) == {"a.jpg": [1, 2], "e.jpeg": [2]}
    assert not problems(found)


def test_folder_classes_derived_from_names_with_spaces(folder: Path) -> None:
    text(folder / "tags.csv", "id,labels\na,potted plant;dog\ne,potted plant\n")
    found = listing("folder", folder)
    assert found.classes == ["background", "dog", "potted plant"]
    assert labels(found) == {"a.jpg": [1, 2], "e.jpeg": [2]}


def test_folder_classes_file_and_unknown_labels(folder: Path) -> None:
    text(folder / "classes.txt", "background\ndog\ncat\n")
    text(folder / "tags.csv", "id,labels\na,0\nb.c,3\ne,doog 2\nsub/deep/d.v2,background\n")
    found = problems(listing("folder", folder))
    assert "background" in found["a.jpg"][0]
    assert found["b.c.PNG"] == ["unknown class index 3; allowed: 1..2"]
    assert found["e.jpeg"] == ["unknown class 'doog'; did you mean `dog`?"]
    assert "background" in found["sub/deep/d.v2.webp"][0]


def test_folder_indices_need_class_names(folder: Path) -> None:
    text(folder / "tags.csv", "id,labels\na,1 2\n")
    with pytest.raises(DataError, match=r"class indices \(1, 2\) without class names"):
        listing("folder", folder)


def test_folder_doubled_ambiguous_and_malformed_rows(folder: Path) -> None:
    picture(folder / "images/a.png")
    text(folder / "tags.csv", "id,labels,by\na,dog,me\nb.c,dog,me\nb.c.PNG,cat,me\ne,dog,cat,me\n")
    found = problems(listing("folder", folder))
    assert "could be any of a.jpg, a.png" in found["a.jpg"][0]
    assert "duplicate id" in found["b.c.PNG"][0]
    assert "tags.csv line 5: found 4 cells; allowed: 3" in found["e.jpeg"][0]


@pytest.fixture
def folder_column(folder: Path) -> Path:
    """With a column `split`."""
    rows = ("a,dog,train", "b.c,dog,val", "e,dog,train", "sub/deep/d.v2,dog,")
    text(folder / "tags.csv", "id,labels,split\n" + "\n".join(rows))
    return folder


def test_folder_splits_by_column(folder_column: Path) -> None:
    assert list(labels(listing("folder", folder_column))) == ["a.jpg", "e.jpeg"]
    assert list(labels(listing("folder", folder_column, "val"))) == ["b.c.PNG"]


def test_folder_a_list_wins_over_the_column(folder_column: Path) -> None:
    text(folder_column / "train.txt", "b.c\nunused\n")
    found = listing("folder", folder_column)
    assert labels(found) == {"b.c.PNG": [1], "unused.bmp": None}  # `prepare` refuses the second
    assert list(labels(listing("folder", folder_column, "val"))) == ["b.c.PNG"]


def test_folder_a_val_list_alone_keeps_its_images_out_of_training(folder: Path) -> None:
    text(folder / "tags.csv", "id,labels\na,dog\nb.c,dog\n")
    text(folder / "val.txt", "a.jpg\n")
    assert list(labels(listing("folder", folder))) == ["b.c.PNG"]
    assert list(labels(listing("folder", folder, "val"))) == ["a.jpg"]


def test_folder_training_needs_tags(folder: Path) -> None:
    with pytest.raises(DataError, match=r"data\.tags"):
        listing("folder", folder)


def test_folder_another_split_needs_no_tags(folder: Path) -> None:
    text(folder / "test.txt", "a\n")
    assert labels(listing("folder", folder, "test", classes=["dog"])) == {"a.jpg": None}


def test_folder_without_tags_classes_must_be_named(folder: Path) -> None:
    text(folder / "test.txt", "a\n")
    with pytest.raises(DataError, match="no tags to take class names from"):
        listing("folder", folder, "test")


def test_folder_has_no_xml(folder: Path) -> None:
    with pytest.raises(ConfigError, match="labels_from"):
        listing("folder", folder, labels_from="xml")


# formats


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found header ''"),
        ("id;words\na;x\n", "found header 'id;words'"),
        ("who,labels\na,1\n", "found header 'who,labels'"),
        ("id,labels\n,1\n", "line 2: no id"),
        ('id,labels\n"a,1\n', "not valid CSV"),
    ],
)
def test_tags_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    text(tmp_path / "tags.csv", content)
    with pytest.raises(DataError, match=message):
        read_tags(tmp_path / "tags.csv", lambda name: [], None)


def test_tags_that_are_not_utf8(tmp_path: Path) -> None:
    text(tmp_path / "tags.csv", "id,labels\nö,1\n", "latin-1")
    with pytest.raises(DataError, match="not UTF-8"):
        read_tags(tmp_path / "tags.csv", lambda name: [], None)


def test_stems() -> None:
    names = {"a.jpg": "a", "a/b.c.JPEG": "a/b.c", "img.v2": "img.v2", ".jpg": ".jpg", "x.png.tif": "x.png"}
    assert {name: stem_of(name) for name in names} == names


@pytest.fixture
def tuned(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """tuned(*ids) -> the keys that they mean, of a prepared folder."""
    for name in ("a.v1.jpg", "sub/b.png", "c.jpg"):
        picture(folder / "images" / name)
    text(folder / "tags.csv", "image,labels\na.v1.jpg,cat\n./sub/b.png,dog\nc,cat\n")
    data = {"dataset": "folder", "root": str(folder), "classes": ["cat", "dog"]}
    paths = {"shards": str(tmp_path_factory.mktemp("shards"))}

    def keys(*ids: str) -> set[str]:
        config = check_config({"name": "t", "paths": paths, "data": {**data, "tuning_ids": list(ids)}})
        prepare(config)
        return tuning_keys(config, load_index(images_dir(config, "train")))

    return keys


def test_tuning_ids_mean_what_the_tags_say(tuned) -> None:
    wanted = {"a%2Ev1", "sub%2Fb"}
    assert tuned("a.v1.jpg", "sub/b.png") == tuned("a.v1", "sub/b") == tuned("./a.v1.jpg", "sub\\b.png") == wanted


def test_unknown_tuning_ids_are_all_named(tuned) -> None:
    with pytest.raises(DataError, match=r"(?s)`data\.tuning_ids`.*2 problems.*'a\.v2'.*'d'"):
        tuned("c", "a.v2", "d")
