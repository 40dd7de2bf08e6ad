"""Tags as people and tools write them, read into a folder data set: tables, cells, names of files, of classes."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distwsss.config.data import DataSection
from distwsss.data.sources.alike import alike
from distwsss.data.sources.cells import split_cells
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import Listing
from distwsss.data.sources.summary import classes_line, problem_lines
from distwsss.errors import DataError


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)


def folder(root: Path, table: str | bytes, *names: str, file: str = "tags.csv") -> Path:
    """Pictures `names` below root/images, and a file of tags."""
    for name in names or ("a.jpg", "b.jpg", "c.jpg"):
        picture(root / "images" / name)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_bytes(table if isinstance(table, bytes) else table.encode())
    return root


def listing(root: Path, split: str = "train", **keys: Any) -> Listing:
    return DATASETS["folder"](DataSection(dataset="folder", root=str(root), **keys), split)


def tags(found: Listing) -> dict[str, list[str]]:
    return {item.name: [found.classes[label] for label in item.labels or []] for item in found.items}


def problems(found: Listing) -> list[str]:
    return [text for item in found.items for text in item.problems]


# cells


@pytest.mark.parametrize(
    "cell",
    [
        "dog,sofa", "dog, sofa", "dog;sofa", "dog | sofa", "dog\nsofa", "dog\r\nsofa", '["dog", "sofa"]',
        "['dog', 'sofa']", "('dog', 'sofa')", "['dog' 'sofa']", "[dog, sofa]", "'dog', 'sofa'", "dog,sofa,",
        "dog;;dog;sofa",
        '{"choices": ["dog", "sofa"]}',
    ],
)  # fmt: skip
def test_a_cell_of_two_tags(cell: str) -> None:
    assert split_cells([cell], None) == [["dog", "sofa"]]
    assert split_cells([cell, "potted plant", "", "x|y"], None)[0] == ["dog", "sofa"]


def test_spaces_separate_known_words_only() -> None:
    found = split_cells(["dog sofa", "potted plant", "dog", "sofa;cat"], None)
    assert found == [["dog", "sofa"], ["potted plant"], ["dog"], ["sofa", "cat"]]
    assert split_cells(["dog sofa", "dog bench"], ["background", "dog", "sofa"]) == [["dog", "sofa"], ["dog", "bench"]]
    assert split_cells(["tench, Tinca tinca"], ["background", "tench, Tinca tinca"]) == [["tench, Tinca tinca"]]


def test_nothing_in_a_cell_is_run(tmp_path: Path) -> None:
    cell = f"[__import__('pathlib').Path({str(tmp_path / 'x')!r}).touch()]"
    split_cells([cell], None)
    assert not (tmp_path / "x").exists()


# tables


@pytest.mark.parametrize(
    "image", ["id", "Image", "FILE", "filename", "file_name", "File Name", "path", "image_id", "name"]
)
@pytest.mark.parametrize("tag", ["label", "Labels", "tags", "classes", "class", "category"])
def test_headers(tmp_path: Path, image: str, tag: str) -> None:
    root = folder(tmp_path, f"{image},{tag}\na.jpg,dog\nb.jpg,cat\n")
    assert tags(listing(root)) == {"a.jpg": ["dog"], "b.jpg": ["cat"]}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_encodings_and_line_ends(tmp_path: Path, separator: str, encoding: str, end: str) -> None:
    rows = (f"image{separator}labels", f'a.jpg{separator}"dog,M\u00f6we"', f"b.jpg{separator}dog", "")
    found = tags(listing(folder(tmp_path, end.join(rows).encode(encoding))))
    assert found == {"a.jpg": ["M\u00f6we", "dog"], "b.jpg": ["dog"]}


def test_latin_1_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not UTF-8.*save the file as UTF-8"):
        listing(folder(tmp_path, "image,labels\na.jpg,M\u00f6we\n".encode("latin-1")))


def test_quoted_newlines_commas_spaces_in_names_and_empty_tags(tmp_path: Path) -> None:
    table = 'image,labels\n"my, photo 1.jpg","dog\ncat"\nb c.jpg,\n'
    found = listing(folder(tmp_path, table, "my, photo 1.jpg", "b c.jpg"))
    assert tags(found) == {"my, photo 1.jpg": ["cat", "dog"], "b c.jpg": []}
    assert not problems(found)


def test_unquoted_commas_between_tags(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    found = listing(folder(tmp_path, "image,labels\na.jpg,dog,sofa\nb.jpg,dog\nc.jpg,cat,\n"))
    assert tags(found) == {"a.jpg": ["dog", "sofa"], "b.jpg": ["dog"], "c.jpg": ["cat"]}
    assert "1 lines with unquoted separators" in lines.text


def test_a_row_number_beside_the_picture_is_ignored(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    found = listing(
        folder(tmp_path, "id,image,labels\n1,3.jpg,cat\n2,1.jpg,cat\n3,2.jpg,dog\n", "1.jpg", "2.jpg", "3.jpg")
    )
    assert tags(found) == {"3.jpg": ["cat"], "1.jpg": ["cat"], "2.jpg": ["dog"]}
    assert "column `image` (`id` ignored), tags in `labels`" in lines.text


@pytest.mark.parametrize("rows", ["a.jpg,b.jpg,cat\nb.jpg,a.jpg,dog\n", "a,b,cat\nb,a,dog\n"])
def test_two_columns_of_pictures_are_refused(tmp_path: Path, rows: str) -> None:
    with pytest.raises(DataError, match=r"`path`, `name`.*differ|`name`, `path`.*differ"):
        listing(folder(tmp_path, f"name,path,labels\n{rows}"))


def test_two_columns_that_say_the_same(tmp_path: Path) -> None:
    found = listing(folder(tmp_path, "id,path,labels\na,images/a.jpg,cat\nb,images/b.jpg,dog\n"))
    assert tags(found) == {"a.jpg": ["cat"], "b.jpg": ["dog"]}


@pytest.mark.parametrize(("on", "off"), [("1", "0"), ("1.0", "0.0"), ("True", "False"), ("1", ""), ("1", "-1")])
@pytest.mark.parametrize("join", [",", ", "])
def test_a_column_for_each_class(tmp_path: Path, on: str, off: str, join: str) -> None:
    rows = (("filename", "cat", "potted plant", "background"), ("a.jpg", on, on, on), ("b.jpg", off, on, on),
            ("c.jpg", off, off, on))  # fmt: skip
    found = listing(folder(tmp_path, "\n".join(join.join(row) for row in rows)))
    assert tags(found) == {"a.jpg": ["cat", "potted plant"], "b.jpg": ["potted plant"], "c.jpg": []}


def test_classes_called_by_numbers(tmp_path: Path) -> None:
    root = folder(tmp_path, "image,labels\na.jpg,7\nb.jpg,3;7\nc.jpg,1\n")
    found = listing(root, classes=["7", "3"])
    assert tags(found) == {"a.jpg": ["7"], "b.jpg": ["7", "3"], "c.jpg": []}
    assert problems(found) == ["unknown class '1'; allowed: 7, 3"]


def test_a_row_twice_is_a_problem(tmp_path: Path) -> None:
    assert "duplicate id" in problems(listing(folder(tmp_path, "image,labels\na.jpg,dog\na.jpg,dog\n")))[0]


# classes


@pytest.mark.parametrize(
    ("a", "b"),
    [("dog", "Dog"), ("dog", "dog."), ("dog", "dogs"), ("caf\u00e9", "cafe\u0301"), ("potted plant", "potted_plant"),
     ("potted plant", "Potted-Plant"), ("bottle", "botle"), ("horse", "house"), ("bus", "buses")],
)  # fmt: skip
def test_names_alike_are_refused_unless_listed(tmp_path: Path, a: str, b: str) -> None:
    root = folder(tmp_path, f"image,labels\na.jpg,{a}\nb.jpg,{a}\nc.jpg,{b}\n")
    with pytest.raises(DataError, match=r"\((2 photographs, a|1 photograph, c)\.jpg\)(.|\n)*differ only in") as caught:
        listing(root)
    assert a in str(caught.value)
    assert b in str(caught.value)
    assert "data.classes" in str(caught.value)
    assert listing(root, classes=[a, b]).classes == ["background", a, b]


def test_names_that_are_not_alike() -> None:
    names = [
        "cat",
        "car",
        "cow",
        "type 1",
        "type 2",
        "boat",
        "bottle",
        "class10",
        "class11",
        "grade a",
        "grade b",
        "tv",
        "tvmonitor",
    ]
    assert alike(names) == []


def test_classes_are_said_with_their_counts(tmp_path: Path) -> None:
    found = listing(folder(tmp_path, "image,labels\na.jpg,dog;cat\nb.jpg,dog\nc.jpg,\n"))
    assert classes_line(found) == "3 photographs, 1 without tags; classes: cat 1, dog 2"


# names of files


@pytest.mark.parametrize(
    ("file", "given"),
    [
        ("IMG_1.JPG", "IMG_1.jpg"), ("IMG_1.JPG", "img_1"), ("images/a.jpg", "/home/me/set/images/images/a.jpg"),
        ("a.jpg", "images/a.jpg"), ("sub/a.jpg", "images/Sub/a.jpg"),
        (unicodedata.normalize("NFD", "\u00dcbung.jpg"), "\u00dcbung.jpg"),
        ("\u00dcbung.jpg", unicodedata.normalize("NFD", "\u00dcbung")),
    ],
)  # fmt: skip
def test_names_almost_right_are_used(tmp_path: Path, lines: pytest.LogCaptureFixture, file: str, given: str) -> None:
    found = listing(folder(tmp_path, f"image,labels\n{given},dog\n", file))
    assert tags(found) == {file: ["dog"]}
    assert not problems(found)
    assert "1 names differ from their files in" in lines.text


@pytest.mark.parametrize(
    ("file", "given"), [("0012.jpg", "12"), ("a.jpeg", "a.jpg"), ("holiday.jpg", "holliday.jpg"), ("x/a.jpg", "a.jpg")]
)
def test_other_names_are_suggested(tmp_path: Path, file: str, given: str) -> None:
    found = listing(folder(tmp_path, f"image,labels\n{given},dog\n", file))
    assert f"did you mean `{file}`?" in problems(found)[0]


def test_a_name_that_two_files_could_have(tmp_path: Path) -> None:
    found = listing(folder(tmp_path, "image,labels\na.Jpg,dog\n", "a.jpg", "A.jpg"))
    assert "could be any of A.jpg, a.jpg" in problems(found)[0]


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "image,labels\nholiday/a,dog\n", "x.jpg")
    picture(tmp_path / "nas/a.jpg")
    os.symlink("../../nas", root / "images/holiday")
    os.symlink("../images", root / "images/loop")
    assert tags(listing(root)) == {"holiday/a.jpg": ["dog"]}


def test_problems_of_a_kind_are_one_line() -> None:
    bad = [(f"{number}.jpg", [f"no image of this name; did you mean `00{number}.jpg`?"]) for number in range(40)]
    (line,) = problem_lines([*bad])
    assert line.startswith("40 images, such as 0.jpg: no image")
    assert line.count("did you mean") == 3
    assert len(problem_lines(bad[:3])) == 3


# lists


def test_lists_of_pairs(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path, "image,labels\na,dog\nb,cat\nmy c,dog\n", "a.jpg", "b.jpg", "my c.jpg")
    (root / "train.txt").write_text("/images/a.jpg /masks/a.png\nb.jpg masks/b.png\nmy c.jpg\n")
    assert tags(listing(root)) == {"a.jpg": ["dog"], "b.jpg": ["cat"], "my c.jpg": ["dog"]}
    assert "2 lines have a second column" in lines.text


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    for name in ("2007_000032", "2007_000039"):
        picture(tmp_path / f"JPEGImages/{name}.jpg")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Main").mkdir()
    pairs = "/JPEGImages/2007_000032.jpg /SegmentationClass/2007_000032.png\n2007_000039 1\n"
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text(pairs)
    return tmp_path


def test_voc_pairs_and_lists_of_each_class(voc: Path) -> None:
    (voc / "ImageSets/Main/dog_train.txt").write_text("2007_000032  1\n2007_000039 -1\n")
    (voc / "ImageSets/Main/cat_train.txt").write_text("2007_000032 -1\n2007_000039  0\n")
    (voc / "ImageSets/Main/trainval.txt").write_text("2007_000032\n")
    found = DATASETS["voc"](DataSection(dataset="voc", root=str(voc)), "train")
    assert found.labels_from == "lists"
    assert tags(found) == {"2007_000032": ["dog"], "2007_000039": ["cat"]}


@pytest.mark.parametrize("key", [int, str, np.int32])
def test_voc_cls_labels(voc: Path, key: Any) -> None:
    vector = np.eye(20, dtype=np.float32)
    ids = ("2007_000032", "2007_000039") if key is str else (2007000032, 2007000039)
    np.save(voc / "cls_labels.npy", {key(ids[0]): vector[11], key(ids[1]): vector[7]}, allow_pickle=True)  # type: ignore[arg-type]
    found = DATASETS["voc"](DataSection(dataset="voc", root=str(voc)), "train")
    assert (found.labels_from, tags(found)) == ("npy", {"2007_000032": ["dog"], "2007_000039": ["cat"]})


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_cls_labels_with_code_are_refused_by_name(voc: Path) -> None:
    np.save(voc / "cls_labels.npy", {"2007_000032": Evil(voc / "made")}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="mkdir"):
        DATASETS["voc"](DataSection(dataset="voc", root=str(voc)), "train")
    assert not (voc / "made").exists()


# other files


@pytest.mark.parametrize("file", ["labels.csv", "images/_classes.csv", "images/metadata.csv", "metadata.csv"])
def test_tables_of_other_names(tmp_path: Path, file: str) -> None:
    root = folder(tmp_path, "file_name,label\na.jpg,dog\nb.jpg,cat\n", file=file)
    assert tags(listing(root)) == {"a.jpg": ["dog"], "b.jpg": ["cat"]}


def test_two_that_could_be_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, "file_name,label\na.jpg,dog\n", file="labels.csv")
    folder(root, "file_name,label\na.jpg,dog\n", file="metadata.csv")
    with pytest.raises(DataError, match=r"labels\.csv, metadata\.csv"):
        listing(root)
    assert tags(listing(root, tags="metadata.csv")) == {"a.jpg": ["dog"]}


def test_hugging_face_metadata_in_folders_of_splits(tmp_path: Path) -> None:
    rows = {"train": [("a.jpg", ["dog", "cat"]), ("b.jpg", "cat")], "validation": [("a.jpg", ["dog"])]}
    for split, records in rows.items():
        text = "".join(json.dumps({"file_name": name, "tags": found}) + "\n" for name, found in records)
        folder(tmp_path, text, f"{split}/a.jpg", f"{split}/b.jpg", file=f"images/{split}/metadata.jsonl")
    assert tags(listing(tmp_path)) == {"train/a.jpg": ["cat", "dog"], "train/b.jpg": ["cat"]}
    assert tags(listing(tmp_path, "val")) == {"validation/a.jpg": ["dog"]}


@pytest.mark.parametrize("key", ["annotations", "completions"])
def test_label_studio(tmp_path: Path, key: str) -> None:
    def task(image: str, *choices: str, **more: Any) -> dict[str, Any]:
        result = [{"type": "choices", "value": {"choices": list(choices)}}, {"type": "rectanglelabels", "value": {}}]
        return {"id": 1, "data": {"image": image}, key: [{"result": result, **more}]}

    tasks = [
        task("/data/upload/1/abcdef12-a.jpg", "dog", "cat"), task("https://x.org/p/my%20b.jpg?token=1", "cat"),
        task("/data/local-files/?d=set/images/c.jpg", "dog"), task("d.jpg", "cat", was_cancelled=True),
    ]  # fmt: skip
    root = folder(tmp_path, json.dumps(tasks), "a.jpg", "my b.jpg", "c.jpg", "d.jpg", file="project-1.json")
    assert tags(listing(root)) == {"a.jpg": ["cat", "dog"], "my b.jpg": ["cat"], "c.jpg": ["dog"]}


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for name in ("dog/1.jpg", "cat/1.jpg", "cat/2.jpg"):
        picture(tmp_path / "images" / name)
    found = listing(tmp_path)
    assert (found.labels_from, tags(found)) == (
        "folders", {"cat/1.jpg": ["cat"], "cat/2.jpg": ["cat"], "dog/1.jpg": ["dog"]}
    )  # fmt: skip


def test_folders_of_splits_and_classes(tmp_path: Path) -> None:
    for name in ("train/dog/1.jpg", "train/train/1.jpg", "val/dog/2.jpg"):
        picture(tmp_path / "images" / name)
    assert tags(listing(tmp_path)) == {"train/dog/1.jpg": ["dog"], "train/train/1.jpg": ["train"]}
    assert tags(listing(tmp_path, "val")) == {"val/dog/2.jpg": ["dog"]}
