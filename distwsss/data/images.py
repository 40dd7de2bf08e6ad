"""Images and masks, bytes to arrays and back; the only module that decodes pictures with PIL.

Called by `prepare`, the shard reader, seeds, evaluation and the report. Every function takes `where`
(file, or shard and key) for its message and raises DataError for what it cannot read exactly.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from distwsss.errors import DataError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
IMAGE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
IGNORE = 255  # in a mask: no class
MASK_FORMATS = ("PNG", "BMP", "TIFF")  # JPEG masks would be lossy


def _load(data: bytes, where: str, formats: Sequence[str], max_pixels: int | None) -> Image.Image:
    """The decoded PIL image; its size is checked from the header, before any pixel is decoded."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "a truncated image must stay an error"
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        fits = max_pixels is None or image.width * image.height <= max_pixels
        if fits and image.format == "PNG":  # its load() does not check the checksums: other pixels would come out
            image.verify()
            image = Image.open(io.BytesIO(data), formats=formats)
        if fits:
            image.load()
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: found {data[:16]!r}...; allowed: a {', '.join(formats)} file") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: too many pixels ({error}); make it smaller") from error
    except Exception as error:  # the decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError, ...
        raise DataError(f"{where}: cannot be decoded ({error}); replace the file") from error
    if not fits:
        size = f"{image.width} x {image.height} = {image.width * image.height} pixels"
        raise DataError(f"{where}: found {size}; allowed: at most {max_pixels} (`data.max_pixels`)")
    return image


def decode_image(data: bytes, where: str, max_pixels: int | None = None) -> np.ndarray:
    """uint8[H,W,3] RGB, turned upright by its EXIF orientation. Without `max_pixels` only PIL's
    own limit holds (179 million pixels).

    Raises DataError for an unreadable, truncated or oversized file, and for 16-bit or float pixels.
    """
    return to_rgb(_load(data, where, IMAGE_FORMATS, max_pixels), where)


def to_rgb(image: Image.Image, where: str = "image") -> np.ndarray:
    """A PIL image as `decode_image` gives it. Raises DataError likewise."""
    if image.mode not in IMAGE_MODES:
        raise DataError(f"{where}: found pixel mode {image.mode}; allowed: 8-bit ({', '.join(IMAGE_MODES)})")
    try:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # malformed EXIF
        raise DataError(f"{where}: cannot be converted to RGB ({error}); save it again without EXIF") from error


def stored_size(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) of an image file as its pixels lie in it, EXIF not minded. Reads the header only."""
    try:
        image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Exception as error:
        raise DataError(f"{where}: cannot be decoded ({error}); replace the file") from error
    return image.height, image.width


def jpeg_mode(data: bytes, where: str) -> str | None:
    """PIL's mode (`RGB`, `L`, `CMYK`) of a JPEG file, None for any other format. Reads the header only."""
    try:
        return str(Image.open(io.BytesIO(data), formats=("JPEG",)).mode)
    except UnidentifiedImageError:
        return None
    except Exception as error:
        raise DataError(f"{where}: cannot be decoded ({error}); replace the file") from error


def _load_png(data: bytes, where: str, modes: Sequence[str], max_pixels: int | None) -> np.ndarray:
    image = _load(data, where, MASK_FORMATS, max_pixels)
    if image.mode not in modes:
        raise DataError(f"{where}: found pixel mode {image.mode}; allowed: {' or '.join(modes)}")
    depth = _depth(data, image)
    if image.mode == "L" and depth != 8:  # PIL scales 2- and 4-bit greys to 0..255: class ids would change
        raise DataError(f"{where}: found a {depth}-bit grey {image.format}; allowed: 8-bit grey or palette")
    return np.array(image)  # palette indices, not colours


def _depth(data: bytes, image: Image.Image) -> int:
    """Bits of a pixel as they lie in the file."""
    if image.format == "TIFF":
        return int(image.tag_v2.get(258, (1,))[0])
    return data[28] if image.format == "BMP" else data[24]  # BITMAPINFOHEADER; IHDR


def decode_mask(data: bytes, where: str, max_pixels: int | None = None) -> np.ndarray:
    """uint8[H,W] values of an 8-bit grey PNG, BMP or TIFF, or indices of a palette; 255 = ignore by our convention.

    Raises DataError for RGB, 16-bit, 1-bit and unreadable files.
    """
    return _load_png(data, where, ("L", "P"), max_pixels)


def decode_clean(data: bytes, where: str, max_pixels: int | None = None) -> np.ndarray:
    """bool[H,W] of a 1-bit PNG. Raises DataError for anything else."""
    return _load_png(data, where, ("1",), max_pixels)


def voc_palette() -> np.ndarray:
    """uint8[256,3], the colour map of the VOC development kit: bit k of the class id drives bit 7 - k // 3."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _checked(array: np.ndarray, dtype: type, ndim: int = 2) -> np.ndarray:
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(f"found {array.dtype}{list(array.shape)}; allowed: {dtype.__name__} with {ndim} dimensions")
    return np.ascontiguousarray(array)


def encode_palette(mask: np.ndarray) -> bytes:
    """uint8[H,W] class ids as a palette PNG in VOC colours; equal masks give equal bytes."""
    image = Image.fromarray(_checked(mask, np.uint8))
    image.putpalette(voc_palette().tobytes())
    return _encode(image, "PNG")


def encode_gray(values: np.ndarray) -> bytes:
    """uint8[H,W] as an 8-bit grey PNG."""
    return _encode(Image.fromarray(_checked(values, np.uint8)), "PNG")


def encode_clean(clean: np.ndarray) -> bytes:
    """bool[H,W] as a 1-bit PNG."""
    return _encode(Image.fromarray(_checked(clean, np.bool_)), "PNG")


def encode_jpeg(image: np.ndarray, quality: int = 95, subsampling: int = 0) -> bytes:
    """uint8[H,W,3] RGB as JPEG; subsampling of the colours: 0 none, 2 half of both sides."""
    return _encode(Image.fromarray(_checked(image, np.uint8, 3)), "JPEG", quality=quality, subsampling=subsampling)
