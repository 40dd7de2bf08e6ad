"""What the values of a table say against its header, and tags in the further forms that tools write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distwsss.config.data import DataSection
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import Listing
from distwsss.data.sources.summary import problem_lines
from distwsss.errors import DataError

NUMBERED = ("1.jpg", "2.jpg", "3.jpg")


def folder(root: Path, files: dict[str, str | bytes], *names: str, below: str = "images") -> Path:
    """Pictures `names`, and `files` by their path."""
    for name in names or ("a.jpg", "b.jpg", "c.jpg"):
        path = root / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path, "JPEG")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def listing(root: Path, split: str = "train", dataset: str = "folder", **keys: Any) -> Listing:
    return DATASETS[dataset](DataSection(dataset=dataset, root=str(root), **keys), split)  # type: ignore[arg-type]


def tags(found: Listing) -> dict[str, list[str]]:
    return {item.name: [found.classes[label] for label in item.labels or []] for item in found.items}


def problems(found: Listing) -> list[str]:
    return [text for item in found.items for text in item.problems]


# the column of pictures


@pytest.mark.parametrize("header", ["id,Bild,labels", "id,image,labels", "index,picture file,Finding Labels"])
@pytest.mark.parametrize("suffix", [".jpg", ""])
def test_a_row_number_is_no_picture_whatever_the_header_says(tmp_path: Path, header: str, suffix: str) -> None:
    table = f"{header}\n1,3{suffix},cat\n2,1{suffix},cat\n3,2{suffix},dog\n"
    found = listing(folder(tmp_path, {"tags.csv": table}, *NUMBERED))
    assert tags(found) == {"3.jpg": ["cat"], "1.jpg": ["cat"], "2.jpg": ["dog"]}


def test_ids_that_could_be_pictures_and_count_no_rows_are_refused(tmp_path: Path) -> None:
    table = "id,image,labels\n2,3,cat\n3,1,cat\n1,2,dog\n"
    with pytest.raises(DataError, match=r"several columns \(`image`, `id`\) that differ"):
        listing(folder(tmp_path, {"tags.csv": table}, *NUMBERED))


@pytest.mark.parametrize("header", [",filename,cat,dog", "filename,cat,dog,", "filename,cat,dog"])
def test_columns_without_a_name_are_no_classes(tmp_path: Path, header: str) -> None:
    rows = {",filename,cat,dog": ("0,a.jpg,1,0", "1,b.jpg,0,1")}.get(header, ("a.jpg,1,0", "b.jpg,0,1"))
    found = listing(folder(tmp_path, {"tags.csv": "\n".join((header, *rows))}))
    assert tags(found) == {"a.jpg": ["cat"], "b.jpg": ["dog"]}
    assert not problems(found)


@pytest.mark.parametrize(
    "table",
    ["a.jpg,dog\nb.jpg,cat\n", "dog,a.jpg\ncat,b.jpg\n", "a.jpg;dog\nb.jpg;cat\n", 'a.jpg,"dog" \nb.jpg, "cat"\n'],
)
def test_a_table_without_header(tmp_path: Path, lines: pytest.LogCaptureFixture, table: str) -> None:
    assert tags(listing(folder(tmp_path, {"tags.csv": table}))) == {"a.jpg": ["dog"], "b.jpg": ["cat"]}
    assert "without a header" in lines.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"), (b"PK\3\4\x14\0\xff", "Excel workbook"),
        ("image,labels\n".encode("utf-16-le"), "zero bytes"),
        (b'image,labels\na.jpg,"dog\nb.jpg,cat\n', "not valid CSV"), (b"x.jpg,y.jpg,dog\n", "found no header"),
    ],
)  # fmt: skip
def test_what_is_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        listing(folder(tmp_path, {"tags.csv": content}))


# cells and flags


def test_words_for_nothing_are_no_classes_unless_listed(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path, {"tags.csv": "image,labels\na.jpg,none\nb.jpg,-\nc.jpg,dog\n"})
    assert tags(listing(root)) == {"a.jpg": [], "b.jpg": [], "c.jpg": ["dog"]}
    assert "2 cells have a word for no tags" in lines.text
    assert tags(listing(root, classes=["none", "dog"]))["a.jpg"] == ["none"]


def test_a_slip_in_a_column_of_flags_is_a_problem_of_its_row(tmp_path: Path) -> None:
    found = listing(folder(tmp_path, {"tags.csv": "filename,cat,dog\na.jpg,1,0\nb.jpg,O,1\nc.jpg,1,0\n"}))
    assert tags(found) == {"a.jpg": ["cat"], "b.jpg": ["dog"], "c.jpg": ["cat"]}
    assert problems(found) == ["tags.csv line 3: found `cat` 'o'; allowed: 0 or 1"]


def test_0_beside_1_and_minus_1(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    root = folder(tmp_path, {"tags.csv": "file,cat,dog,sofa\na.jpg,1,-1,-1\nb.jpg,0,1,-1\nc.jpg,-1,-1,1\n"})
    assert tags(listing(root)) == {"a.jpg": ["cat"], "b.jpg": ["cat", "dog"], "c.jpg": ["sofa"]}
    assert "0 beside 1 and -1, 1 times" in lines.text
    (root / "tags.csv").write_text("file,cat,dog\na.jpg,1,0\nb.jpg,-1,0\nc.jpg,0,1\n")
    with pytest.raises(DataError, match=r"3 times 0 and 1 times -1.*either may mean no"):
        listing(root)


def test_other_words_for_splits(tmp_path: Path) -> None:
    root = folder(tmp_path, {"tags.csv": "image,labels,Split\na,dog,Training\nb,cat,valid\nc,dog,test\n"})
    assert [list(tags(listing(root, split))) for split in ("train", "val", "test")] == [["a.jpg"], ["b.jpg"], ["c.jpg"]]
    assert list(tags(listing(root, "valid", val_split="valid"))) == ["b.jpg"]


def test_the_same_fault_of_many_tags_is_one_line() -> None:
    bad = [(f"{n}.jpg", ["unknown class 'wolf'; allowed: dog"]) for n in range(40)] + [("x.jpg", ["unknown class 'a'"])]
    first, second = problem_lines(bad)
    assert first.startswith("40 images, such as 0.jpg: unknown class 'wolf'")
    assert second == "x.jpg: unknown class 'a'"


# addresses, exports


def test_the_end_of_an_address_is_the_picture(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    rows = "https://x.org/p/a.jpg?x=1,dog\ns3://bucket/k/b.jpg,cat\n/data/upload/1/abcdef12-c.jpg,cat\n"
    found = listing(folder(tmp_path, {"tags.csv": f"image,labels\n{rows}"}))
    assert tags(found) == {"a.jpg": ["dog"], "b.jpg": ["cat"], "c.jpg": ["cat"]}
    assert "3 names are addresses" in lines.text


def test_label_studios_short_json_of_two_people(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    def record(image: str, chosen: Any, person: int) -> dict[str, Any]:
        more = {"annotator": person, "annotation_id": person, "created_at": "now", "lead_time": 1.5}
        return {"image": image, "id": 7, "tier": chosen, **more}

    records = [record("/data/upload/1/abcdef12-a.jpg", {"choices": ["dog", "cat"]}, 1), record("b.jpg", "dog", 2),
               record("/data/upload/1/abcdef12-a.jpg", "sofa", 2)]  # fmt: skip
    found = listing(folder(tmp_path, {"project.json": json.dumps(records)}))
    assert tags(found) == {"a.jpg": ["cat", "dog", "sofa"], "b.jpg": ["dog"]}
    assert "1 rows of further people" in lines.text


def test_label_studios_csv(tmp_path: Path) -> None:
    header = "annotation_id,annotator,choice,created_at,id,image,lead_time,updated_at"
    rows = ('1,1,"{""choices"":[""dog"",""cat""]}",x,1,/data/upload/1/abcdef12-a.jpg,1.0,y', "2,1,dog,x,2,b.jpg,1.0,y")
    found = listing(folder(tmp_path, {"tags.csv": "\n".join((header, *rows))}))
    assert tags(found) == {"a.jpg": ["cat", "dog"], "b.jpg": ["dog"]}


def test_hugging_face_numbers_count_from_0(tmp_path: Path) -> None:
    text = '{"file_name": "a.jpg", "label": %d}\n{"file_name": "b.jpg", "label": 1}\n'
    root = folder(tmp_path, {"images/metadata.jsonl": text % 0})
    with pytest.raises(DataError, match="without class names"):
        listing(root)
    assert tags(listing(root, classes=["cat", "dog"])) == {"a.jpg": ["cat"], "b.jpg": ["dog"]}
    (root / "images/metadata.jsonl").write_text(text % 2)
    assert tags(listing(root, classes=["cat", "dog"])) == {"a.jpg": ["dog"], "b.jpg": ["cat"]}
    with pytest.raises(DataError, match=r"class numbers 1\.\.2 for 3 classes"):
        listing(root, classes=["cat", "dog", "sofa"])


def test_hugging_face_objects(tmp_path: Path) -> None:
    objects = [{"bbox": [[1, 2, 3, 4]], "categories": ["dog", "cat"]}, {"bbox": [], "categories": []}]
    records = [{"file_name": name, "objects": each} for name, each in zip(("a.jpg", "b.jpg"), objects, strict=True)]
    root = folder(tmp_path, {"images/metadata.jsonl": "\n".join(map(json.dumps, records))})
    assert tags(listing(root)) == {"a.jpg": ["cat", "dog"], "b.jpg": []}


def test_a_json_of_names_and_tags(tmp_path: Path) -> None:
    root = folder(tmp_path, {"tags.json": json.dumps({"a.jpg": ["dog", "cat"], "b": "cat"})})
    assert tags(listing(root)) == {"a.jpg": ["cat", "dog"], "b.jpg": ["cat"]}
    (root / "tags.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match="dataset: coco"):
        listing(root)


def test_roboflows_columns_in_folders_of_splits(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "images/train/_classes.csv": "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 0, 1\n",
        "images/valid/_classes.csv": "filename, cat, dog\nc.jpg, 1, 1\n",
    }
    root = folder(tmp_path, files, "train/a.jpg", "train/b.jpg", "valid/c.jpg")
    assert tags(listing(root)) == {"train/a.jpg": ["cat"], "train/b.jpg": ["dog"]}
    assert tags(listing(root, "val")) == {"valid/c.jpg": ["cat", "dog"]}


# lists of each class, folders, files of other names


def test_lists_of_each_class_for_a_folder(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    files: dict[str, str | bytes] = {
        "ImageSets/Main/dog_train.txt": "a 1\nb -1\n", "ImageSets/Main/dog_val.txt": "c -1\n",
        "ImageSets/Main/potted_plant_train.txt": "a -1\nb  0\n", "ImageSets/Main/potted_plant_val.txt": "c  1\n",
        "ImageSets/Main/train.txt": "a\nb\n",
    }  # fmt: skip
    found = listing(folder(tmp_path, files))
    assert (found.labels_from, tags(found)) == ("lists", {"a.jpg": ["dog"], "b.jpg": ["potted_plant"]})
    assert tags(listing(tmp_path, "val")) == {"c.jpg": ["potted_plant"]}
    assert "0, 1 times: difficult objects alone, which count" in lines.text
    assert listing(tmp_path, tags="ImageSets/Main").classes == found.classes


def test_folders_of_classes_beside_a_table_have_to_be_named(tmp_path: Path) -> None:
    root = folder(tmp_path, {"export.csv": "image,labels\ndog/1,sofa\n"}, "dog/1.jpg", "cat/2.jpg")
    with pytest.raises(DataError, match=r"data\.tags=images or --set data\.tags=export\.csv"):
        listing(root)
    assert tags(listing(root, tags="images")) == {"cat/2.jpg": ["cat"], "dog/1.jpg": ["dog"]}
    assert tags(listing(root, tags="export.csv")) == {"dog/1.jpg": ["sofa"]}


def test_a_table_of_another_name_is_pointed_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"export\.csv is there: call it tags\.csv, or name it by"):
        listing(folder(tmp_path, {"export.csv": "image,labels\na,dog\n"}))


def test_a_spreadsheet_is_to_be_saved_as_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tags\.xlsx is a spreadsheet: save it as `CSV UTF-8`, as tags\.csv; allowed"):
        listing(folder(tmp_path, {"tags.xlsx": "PK"}, "a.jpg"))


def test_pictures_without_a_line_are_named(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    names = [f"{number}.jpg" for number in range(6)]
    listing(folder(tmp_path, {"tags.csv": "image,labels\n0.jpg,dog\n"}, *names))
    assert "5 pictures without a line in" in lines.text
    assert "not used: 1.jpg, 2.jpg, 3.jpg, ..." in lines.text


def test_bytes_of_another_encoding_are_found_by_their_line(tmp_path: Path) -> None:
    root = folder(tmp_path, {"tags.csv": ""}, "a.jpg")
    (root / "tags.csv").write_bytes("image,labels\na.jpg,dog\ncafé.jpg,dog\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"tags\.csv: line 3: found bytes that are not UTF-8"):
        listing(root)


@pytest.mark.parametrize("file", ["Tags.CSV", "Labels.csv", "labels.tsv"])
def test_tables_of_usual_names_in_another_spelling(tmp_path: Path, file: str) -> None:
    separator = "\t" if file.endswith("tsv") else ","
    root = folder(tmp_path, {file: f"image{separator}labels\na{separator}dog\n"})
    assert tags(listing(root)) == {"a.jpg": ["dog"]}


def test_photographs_of_voc_in_another_spelling(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    files: dict[str, str | bytes] = {
        "ImageSets/Segmentation/train.txt": "x_1\ny\n7\n", "cls_labels.csv": "id,labels\nx_1,dog\ny,cat\n7,cat\n"
    }  # fmt: skip
    found = listing(folder(tmp_path, files, "x_1.JPG", "y.png", "007.jpg", below="JPEGImages"), dataset="voc")
    assert [Path(str(item.image)).name for item in found.items] == ["x_1.JPG", "y.png", "7.jpg"]
    assert len(problems(found)) == 1
    assert "did you mean `007.jpg`" in problems(found)[0]
    assert "2 photographs are not called ID.jpg" in lines.text


def test_another_joint_between_words_is_suggested(tmp_path: Path) -> None:
    found = listing(folder(tmp_path, {"tags.csv": "image,labels\nIMG 12,dog\n"}, "IMG_0012.jpg"))
    assert "did you mean `IMG_0012.jpg`" in problems(found)[0]
