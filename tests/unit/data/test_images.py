"""Decoding is exact or an error that names the file; encoding is deterministic and reversible."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageFile

from distwsss.data import images
from distwsss.errors import DataError
from helpers.orientation import UPRIGHT

WHERE = "pictures/cat.7.jpg"
masks = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12))


def photograph(height: int = 12, width: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand, after its specification."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def fails(function, data: bytes, *words: str, **options: object) -> None:
    with pytest.raises(DataError) as caught:
        function(data, WHERE, **options)
    for word in (WHERE, *words):
        assert word in str(caught.value)


# --- images ---


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_lossless_image_is_exact(form):
    image = photograph()
    found = images.decode_image(encoded(Image.fromarray(image), form), WHERE)
    np.testing.assert_array_equal(found, image)
    assert found.dtype == np.uint8
    assert found.flags.writeable


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = encoded(Image.fromarray(photograph()), "JPEG", quality=95)
    turned = encoded(Image.fromarray(photograph()), "JPEG", quality=95, exif=exif)
    expected = UPRIGHT[orientation](images.decode_image(plain, WHERE))
    np.testing.assert_array_equal(images.decode_image(turned, WHERE), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(mode):
    form = "TIFF" if mode == "CMYK" else "PNG"
    image = Image.fromarray(photograph()).convert(mode)
    expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(images.decode_image(encoded(image, form), WHERE), expected)


def test_16_bit_image_is_refused():
    fails(images.decode_image, encoded(Image.fromarray(np.full((4, 4), 3000, np.uint16))), "I;16", "allowed")


def test_html_named_jpg_is_refused():
    fails(images.decode_image, b"<html><body>404 not found</body></html>", "<html>", "allowed")


def test_an_empty_file_is_refused():
    fails(images.decode_image, b"")


def test_truncated_jpeg_is_refused():
    data = encoded(Image.fromarray(photograph(64, 64)), "JPEG")
    fails(images.decode_image, data[: len(data) // 2], "truncated")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_every_cut_of_a_png_is_refused():
    data = encoded(Image.fromarray(photograph(4, 4)))
    for length in range(data.index(b"IEND")):
        fails(images.decode_image, data[:length])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_decoding():
    # The header promises 10000 x 10000, the pixel data is rubbish: decoding it would be another error.
    data = png(10_000, 10_000, 8, 0, b"rubbish")
    fails(images.decode_image, data, "10000 x 10000", "at most 40000000", max_pixels=40_000_000)
    fails(images.decode_mask, data, "10000 x 10000", max_pixels=40_000_000)


def test_bomb_is_refused_without_a_limit_of_ours():
    row = b"\0" * 14_001
    data = png(14_000, 14_000, 8, 0, row * 14_000)
    assert len(data) < 300_000
    fails(images.decode_image, data, "too many pixels")
    fails(images.decode_mask, data, "too many pixels")


def test_max_pixels_itself_is_allowed():
    data = encoded(Image.fromarray(photograph(10, 10)))
    assert images.decode_image(data, WHERE, max_pixels=100).shape == (10, 10, 3)


def test_a_pixel_more_than_max_pixels_is_refused():
    fails(images.decode_image, encoded(Image.fromarray(photograph(10, 10))), max_pixels=99)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"BM", b"RIFF"]))
def test_any_bytes_give_an_image_or_a_data_error(data, start):
    for decode in (images.decode_image, images.decode_mask, images.decode_clean):
        try:
            decode(start + data, WHERE)
        except DataError as error:
            assert WHERE in str(error)  # noqa: PT017


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_the_mode_of_a_jpeg(mode):
    assert (
        images.decode_photograph(encoded(Image.fromarray(photograph()).convert(mode), "JPEG"), WHERE).jpeg_mode == mode
    )


def test_what_is_no_jpeg_has_no_mode():
    assert images.decode_photograph(encoded(Image.fromarray(photograph())), WHERE).jpeg_mode is None


# --- shrunk ---


def scene(height: int, width: int) -> np.ndarray:
    """Smooth hills and sharp edges."""
    rows, columns = np.mgrid[:height, :width]
    hills = 100 + 60 * np.sin(rows / 23)[..., None] + 50 * np.cos(columns / 31)[..., None]
    tiles = ((rows // 40 + columns // 56) % 2 * 40)[..., None]
    return np.broadcast_to(hills + tiles, (height, width, 3)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_a_large_photograph_is_shrunk_by_lanczos(form):
    found = images.decode_photograph(encoded(Image.fromarray(scene(300, 400)), form), WHERE, longest_side=100)
    assert found.size == (300, 400)
    wanted = Image.fromarray(scene(300, 400)).resize((100, 75), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(found.pixels, np.asarray(wanted))


@pytest.mark.parametrize("size", [(1200, 1600), (1600, 1200), (900, 2000), (450, 600)])
def test_a_shrunk_jpeg_is_close_to_one_that_was_decoded_whole(size):
    """PIL skips frequencies while it decodes; an eighth, a quarter and a half, and none for the last."""
    data = encoded(Image.fromarray(scene(*size)), "JPEG", quality=92)
    found = images.decode_photograph(data, WHERE, longest_side=max(size) // 9 if max(size) > 600 else 400)
    height, width = found.pixels.shape[:2]
    whole = Image.open(io.BytesIO(data)).resize((width, height), Image.Resampling.LANCZOS)
    difference = np.abs(found.pixels.astype(int) - np.asarray(whole))
    assert difference.mean() < 1.5
    assert found.size == size


@pytest.mark.parametrize(
    ("size", "longest", "wanted"),
    [
        ((3000, 4000), 512, (384, 512)), ((4000, 3000), 512, (512, 384)), ((512, 512), 512, (512, 512)),
        ((513, 100), 512, (512, 100)), ((100, 20), 512, (100, 20)), ((5000, 2), 512, (512, 1)), ((9, 7), None, (9, 7)),
    ],
)  # fmt: skip
def test_the_size_of_what_is_shrunk(size, longest, wanted):
    assert images.shrunk_size(size, longest) == wanted
    if max(size) < 1000:
        assert images.shrink(np.zeros((*size, 3), np.uint8), longest).shape[:2] == wanted


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turned_photograph_is_shrunk_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(scene(300, 400)), exif=exif)
    found = images.decode_photograph(data, WHERE, longest_side=100)
    wanted = Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](scene(300, 400))))
    assert (found.size, found.orientation) == (wanted.size[::-1], orientation)
    height, width = found.pixels.shape[:2]
    assert max(height, width) == 100
    difference = np.abs(found.pixels.astype(int) - np.asarray(wanted.resize((width, height), Image.Resampling.LANCZOS)))
    assert difference.max() <= 1


def test_a_cut_jpeg_is_refused_also_where_it_is_shrunk():
    data = encoded(Image.fromarray(scene(600, 800)), "JPEG")
    fails(images.decode_photograph, data[: len(data) * 3 // 4], "truncated", longest_side=64)


def test_labels_are_resized_to_the_nearest():
    labels = np.array([[1, 2], [3, 255]], np.uint8)
    wanted = np.repeat(np.repeat(labels, 3, axis=0), 4, axis=1)
    np.testing.assert_array_equal(images.resize_labels(labels, (6, 8)), wanted)


def test_encode_jpeg_is_close_and_deterministic():
    smooth = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    data = images.encode_jpeg(smooth)
    assert data == images.encode_jpeg(smooth)
    assert np.abs(images.decode_image(data, WHERE).astype(int) - smooth).max() <= 3


# --- masks ---


@given(masks)
def test_palette_and_grey_are_reversible(mask):
    for encode in (images.encode_palette, images.encode_gray):
        data = encode(mask)
        assert data == encode(np.asfortranarray(mask))
        found = images.decode_mask(data, WHERE)
        np.testing.assert_array_equal(found, mask)
        assert found.dtype == np.uint8


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_clean_is_reversible(clean):
    found = images.decode_clean(images.encode_clean(clean), WHERE)
    np.testing.assert_array_equal(found, clean)
    assert found.dtype == np.bool_


def test_palette_png_is_read_as_indices():
    mask = np.array([[0, 15, 20, 255]], dtype=np.uint8)
    image = Image.open(io.BytesIO(images.encode_palette(mask)))
    assert image.mode == "P"
    assert np.array(image.convert("L")).tolist() != mask.tolist()  # what a grey reader makes of it
    np.testing.assert_array_equal(images.decode_mask(images.encode_palette(mask), WHERE), mask)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_palettes_are_read_as_indices(bits):
    mask = np.arange(2**bits, dtype=np.uint8)[None]
    image = Image.fromarray(mask)
    image.putpalette(images.voc_palette().tobytes())
    data = encoded(image, bits=bits)
    assert data[24] == bits
    np.testing.assert_array_equal(images.decode_mask(data, WHERE), mask)


def test_palette_is_that_of_voc():
    palette = images.voc_palette()
    expected = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {i: tuple(map(int, palette[i])) for i in expected} == expected


def test_every_class_has_a_colour_of_its_own():
    assert len({tuple(colour) for colour in images.voc_palette().tolist()}) == 256


@pytest.mark.parametrize(
    ("mode", "form", "words"),
    [
        ("RGB", "PNG", ("RGB", "L or P")), ("LA", "PNG", ("LA",)), ("1", "PNG", ("found pixel mode 1",)),
        ("L", "JPEG", ("PNG",)),
    ],
)  # fmt: skip
def test_masks_of_other_modes_and_formats_are_refused(mode, form, words):
    fails(images.decode_mask, encoded(Image.fromarray(photograph()).convert(mode), form), *words)


def test_a_16_bit_mask_is_refused():
    fails(images.decode_mask, encoded(Image.fromarray(np.full((4, 4), 7, np.uint16))), "I;16", "16-bit, values up to 7")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_colours_of_a_mask_are_told(mode):
    def coloured(*colours: tuple[int, int, int]) -> bytes:
        return encoded(Image.fromarray(np.array([colours] * 2, np.uint8)).convert(mode))

    fails(images.decode_mask, coloured((0, 0, 0), (0, 0, 0), (9, 8, 7)), mode, "the colours (0, 0, 0), (9, 8, 7)")
    voc = coloured((0, 0, 0), (0, 0, 0), (192, 128, 128))
    fails(images.decode_mask, voc, "those of VOC's palette for the ids 0, 15", "save class ids instead")
    noise = Image.fromarray(photograph(40, 40)).convert(mode)
    fails(images.decode_mask, encoded(noise), "more than 256 colours")


def test_a_mask_with_transparency_says_so():
    fails(images.decode_mask, encoded(Image.fromarray(photograph()).convert("LA")), "with transparency")


def test_a_clean_map_of_more_than_one_bit_is_refused():
    fails(images.decode_clean, encoded(Image.fromarray(photograph()).convert("L")), "found pixel mode L")


@pytest.mark.parametrize("depth", [2, 4])
def test_grey_masks_that_pil_would_scale_are_refused(depth):
    fails(images.decode_mask, png(2, 1, depth, 0, b"\0\x10"), f"{depth}-bit")


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_in_a_mask_is_refused(bit):
    """PIL alone decodes some of these to other values: it skips the checksums. (The empty last chunk is not read.)"""
    data = images.encode_gray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for position in range(data.index(b"IEND") - 4):
        damaged = bytearray(data)
        damaged[position] ^= 1 << bit
        fails(images.decode_mask, bytes(damaged))


@pytest.mark.parametrize(
    ("encode", "array"),
    [
        (images.encode_palette, np.zeros((2, 2), np.int64)),
        (images.encode_gray, np.zeros((2, 2, 3), np.uint8)),
        (images.encode_clean, np.zeros((2, 2), np.uint8)),
    ],
)
def test_encoders_refuse_other_arrays(encode, array):
    with pytest.raises(ValueError, match="allowed"):
        encode(array)


@settings(max_examples=20)
@given(masks)
def test_encoding_does_not_change_its_input(mask):
    before = mask.copy()
    images.encode_palette(mask)
    np.testing.assert_array_equal(mask, before)
