"""The mark inside a file of ours: the file stays what it is for everybody else, and a changed one is no longer ours."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from distwsss.data.images import decode_image, decode_mask, encode_jpeg, encode_palette
from distwsss.runtime.signature import is_signed, not_ours, signed
from helpers.small import make_truth, picture

MASK = make_truth(3)
FILES = {
    "palette PNG": encode_palette(MASK),
    "JPEG": encode_jpeg(decode_image(picture(1), "a")),
    "text": b"name: tiny\ndata: {dataset: folder}\n",
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_what_was_signed_is_ours_until_a_byte_changes(data: bytes) -> None:
    marked = signed(data)
    assert is_signed(marked)
    assert not is_signed(data)
    for position in (len(marked) // 2, len(marked) - 2, 40, 90):
        changed = bytearray(marked)
        changed[position] ^= 1
        assert not is_signed(bytes(changed)), position
    assert not is_signed(marked + b"\n")


def test_the_contents_are_the_same() -> None:
    assert np.array_equal(decode_mask(signed(FILES["palette PNG"]), "a"), MASK)
    assert yaml.safe_load(signed(FILES["text"])) == yaml.safe_load(FILES["text"])
    assert np.array_equal(decode_image(signed(FILES["JPEG"]), "a"), decode_image(FILES["JPEG"], "a"))
    Image.open(io.BytesIO(signed(FILES["palette PNG"]))).verify()  # the checksums of all chunks


def test_a_picture_saved_again_by_another_program_is_not_ours() -> None:
    buffer = io.BytesIO()
    opened = Image.open(io.BytesIO(signed(FILES["palette PNG"])))
    opened.save(buffer, "PNG", pnginfo=None, comment="written by distwsss")
    assert not is_signed(buffer.getvalue())


def test_what_lies_at_a_path(tmp_path: Path) -> None:
    (tmp_path / "ours").write_bytes(signed(b"a: 1\n"))
    (tmp_path / "theirs").write_bytes(b"a: 1\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "link").symlink_to("theirs")
    names = ("ours", "absent", "theirs", "folder", "nowhere", "link", "theirs/below")
    assert [not_ours(tmp_path / name) for name in names] == [False, False, True, True, True, True, False]
