"""VOC's XML in whatever encoding it was written: read, or a problem of that one image."""

from __future__ import annotations

import codecs
import contextlib
import json
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.data.sources.voc_xml import object_names
from distwsss.errors import DataError
from distwsss.runtime.layout import images_dir, quarantine_file
from helpers.small import data_config, picture

TEXT = """<?xml version="1.0" encoding="{encoding}"?>
<annotation><folder>{folder}</folder>
<object><name> {name} </name><part><name>head</name></part></object></annotation>"""


def document(encoding: str, folder: str = "a", name: str = "dog") -> str:
    return TEXT.format(encoding=encoding, folder=folder, name=name)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("gbk", "狗"), ("gb2312", "狗"), ("gb18030", "狗"), ("big5", "狗"), ("shift_jis", "犬"), ("euc_jp", "犬"),
        ("euc_kr", "개"), ("latin-1", "chien à"), ("ISO-8859-1", "Hündin"), ("windows-1252", "Hund €"),
        ("koi8-r", "собака"), ("utf-8", "狗"), ("UTF-8", "dog"), ("utf-7", "dog"),
    ],
)  # fmt: skip
def test_what_python_can_decode_is_read(encoding: str, name: str) -> None:
    data = document(encoding, name, name).encode(encoding)
    assert object_names(data) == [name]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("declared", ["utf-8", "utf-16", "gbk"])
def test_bytes_say_more_than_the_declaration(encoding: str, declared: str) -> None:
    """A byte order mark, or zero bytes in the first characters."""
    assert object_names(document(declared, "图", "狗").encode(encoding)) == ["狗"]


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_utf_16_with_its_mark(mark: bytes) -> None:
    encoding = "utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be"
    assert object_names(mark + document("utf-16", "图").encode(encoding)) == ["dog"]


@pytest.mark.parametrize("declared", ["utf-16", "UTF-16LE", "utf_32"])
def test_utf_16_is_not_believed_of_single_bytes(declared: str) -> None:
    assert object_names(document(declared, "图").encode()) == ["dog"]


@pytest.mark.parametrize("actual", ["gbk", "shift_jis", "big5"])
def test_a_wrong_declaration_matters_in_names_only(actual: str) -> None:
    assert object_names(document("utf-8", "中文", "dog").encode(actual)) == ["dog"]
    with pytest.raises(DataError, match="the name of an object is not utf-8, as the file says it is"):
        object_names(document("utf-8", "a", "中文").encode(actual))


def test_without_a_declaration_it_is_utf_8() -> None:
    assert object_names("\n <annotation><object><name>é</name></object></annotation>".encode()) == ["é"]


def test_blank_lines_before_the_declaration() -> None:
    assert object_names(b"\n\n" + document("utf-8").encode()) == ["dog"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b" \n", "an empty file"),
        (b"\xef\xbb\xbf", "an empty file"),
        (document("gbk", "图").encode("gbk")[:90], "not readable XML"),
        (document("utf-16").encode("utf-16")[:91], "not readable XML"),
        (b"\0" * 500, "not readable XML"),
        (b"<html><body>404", "not readable XML"),
        (document("foobar").encode(), "found encoding 'foobar'"),
        (document("hex").encode(), "found encoding 'hex'"),
        (document("undefined").encode(), "found encoding 'undefined'"),
        (document("a\0b").encode(), "found encoding"),
    ],
)
def test_what_cannot_be_read(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        object_names(data)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gbk"])
def test_entities_are_not_expanded(encoding: str) -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY e0 "dog">{levels}]>'
    bomb += "<annotation><object><name>&e11;</name></object></annotation>"
    with pytest.raises(DataError, match="DTD with entities"):
        object_names(bomb.encode(encoding))
    file = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation><object><name>&e;</name></object></annotation>'
    with pytest.raises(DataError, match="DTD with entities"):
        object_names(file.encode())
    assert object_names(b'<!DOCTYPE annotation SYSTEM "voc.dtd">' + b"<annotation></annotation>") == []


@hypothesis.settings(deadline=None)
@hypothesis.given(st.binary(max_size=200), st.sampled_from(["", "utf-8", "gbk", "utf-16", "idna", "punycode", "zlib"]))
def test_any_bytes_give_names_or_a_data_error(data: bytes, encoding: str) -> None:
    start = f'<?xml version="1.0" encoding="{encoding}"?>'.encode() if encoding else b""
    for content in (start + data, start + b"<annotation>" + data + b"</annotation>"):
        with contextlib.suppress(DataError):
            assert isinstance(object_names(content), list)


def test_a_bad_file_is_a_problem_of_its_image_alone(tmp_path: Path) -> None:
    root = tmp_path / "VOC"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    contents = {
        "good": document("gbk", "图").encode("gbk"), "unknown": document("foobar").encode(),
        "empty": b"", "wrong": document("utf-8", "a", "狗").encode("gbk"),
    }  # fmt: skip
    for number, (name, data) in enumerate(contents.items()):
        (root / f"Annotations/{name}.xml").write_bytes(data)
        (root / f"JPEGImages/{name}.jpg").write_bytes(picture(number))
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(contents))
    config = data_config(root, tmp_path, "voc")
    with pytest.raises(DataError, match=r"(?s)3 problems.*train: unknown: Annotations/unknown\.xml: found encoding"):
        prepare(config)
    prepare(config, "quarantine")
    assert load_index(images_dir(config, "train")).all().keys() == ["good"]
    lines = [json.loads(line) for line in quarantine_file(config, "prepare").read_text().splitlines()]
    assert {line["id"]: line["reasons"][0].partition(": ")[0] for line in lines} == {
        name: f"Annotations/{name}.xml" for name in ("unknown", "empty", "wrong")
    }
