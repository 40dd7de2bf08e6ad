"""Images and masks, bytes to arrays and back; the only module that decodes pictures with PIL.

Called by `prepare`, the shard reader, seeds, evaluation and the report. Every function takes `where`
(file, or shard and key) for its message and raises DataError for what it cannot read exactly.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from distwsss.errors import DataError

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
IMAGE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
IGNORE = 255  # in a mask: no class
MASK_FORMATS = ("PNG", "BMP", "TIFF")  # JPEG masks would be lossy
GREY_FORMATS, GREY_MODES = ("PNG", "JPEG"), ("L", "LA", "RGB", "P")  # of saliency maps
ORIENTATION = 0x0112  # EXIF's tag
TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange height and width
# PIL warns from 89 megapixels on, though `data.max_pixels` allows more; its error from 179 on stays
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Photograph(NamedTuple):
    """What an image file shows, and what of it is not as in the file.

    pixels: uint8[h,w,3] RGB, upright; size: the (H, W) of the whole photograph, upright; orientation: EXIF's, by which
    it was turned, 1 where it was not; jpeg_mode: PIL's mode (`RGB`, `L`, `CMYK`) of a JPEG, None for other formats.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    orientation: int
    jpeg_mode: str | None


def _load(
    data: bytes, where: str, formats: Sequence[str], max_pixels: int | None, longest_side: int | None = None
) -> tuple[Image.Image, tuple[int, int], int]:
    """The decoded PIL image, its (height, width), and the EXIF orientation by which PIL turned it already (TIFF). The
    size is checked from the header, before any pixel is decoded.

    A JPEG that is to be shrunk is decoded at the half, quarter or eighth that is still twice as large as asked for.
    """
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "a truncated image must stay an error"
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        fits = max_pixels is None or image.width * image.height <= max_pixels
        if fits and image.format == "PNG":  # its load() does not check the checksums: other pixels would come out
            image.verify()
            image = Image.open(io.BytesIO(data), formats=formats)
        size, turned = (image.height, image.width), 1
        if fits:
            turned = image.getexif().get(ORIENTATION, 1) if image.format == "TIFF" else 1
            height, width = shrunk_size(size, longest_side)
            drafted = (height, width) != size and image.draft(None, (2 * width, 2 * height))
            image.load()
            size = size if drafted else (image.height, image.width)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{where}: found {data[:16]!r}...; allowed: a {', '.join(formats)} file") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{where}: too many pixels ({error}); make it smaller") from error
    except Exception as error:  # the decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError, ...
        raise DataError(f"{where}: cannot be decoded ({error}); replace the file") from error
    if not fits:
        found = f"{image.width} x {image.height} = {image.width * image.height} pixels"
        raise DataError(f"{where}: found {found}; allowed: at most {max_pixels} (`data.max_pixels`)")
    return image, size, turned


def decode_image(data: bytes, where: str, max_pixels: int | None = None) -> np.ndarray:
    """uint8[H,W,3] RGB, turned upright by its EXIF orientation. Without `max_pixels` only PIL's
    own limit holds (179 million pixels).

    Raises DataError for an unreadable, truncated or oversized file, and for 16-bit or float pixels.
    """
    return decode_photograph(data, where, max_pixels).pixels


def decode_photograph(
    data: bytes, where: str, max_pixels: int | None = None, longest_side: int | None = None
) -> Photograph:
    """`decode_image` with what it was made of; shrunk (`shrink`) where it is larger than `longest_side`."""
    image, stored, turned = _load(data, where, IMAGE_FORMATS, max_pixels, longest_side)
    upright, orientation = _upright(image, where)
    size = (stored[1], stored[0]) if orientation in TRANSPOSED else stored
    mode = image.mode if image.format in ("JPEG", "MPO") else None  # MPO: a JPEG with more pictures behind the first
    pixels = np.array(_resized(upright, shrunk_size(size, longest_side)))
    return Photograph(pixels, size, max(orientation, turned), mode)


def to_rgb(image: Image.Image, where: str = "image") -> np.ndarray:
    """A PIL image as `decode_image` gives it. Raises DataError likewise."""
    return np.array(_upright(image, where)[0])


def _upright(image: Image.Image, where: str) -> tuple[Image.Image, int]:
    """In RGB, turned by its EXIF orientation, and that orientation."""
    if image.mode not in IMAGE_MODES:
        raise DataError(f"{where}: found pixel mode {image.mode}; allowed: 8-bit ({', '.join(IMAGE_MODES)})")
    try:
        found = image.getexif().get(ORIENTATION, 1)
        orientation = found if found in range(1, 9) else 1  # as PIL takes others
        return ImageOps.exif_transpose(image).convert("RGB"), orientation
    except Exception as error:  # malformed EXIF
        raise DataError(f"{where}: cannot be converted to RGB ({error}); save it again without EXIF") from error


def shrunk_size(size: tuple[int, int], longest_side: int | None) -> tuple[int, int]:
    """(height, width) with the longer one at most `longest_side` (None: as it is); never larger than before."""
    if longest_side is None or max(size) <= longest_side:
        return size
    height, width = (max(1, round(side * longest_side / max(size))) for side in size)
    return height, width


def shrink(image: np.ndarray, longest_side: int | None) -> np.ndarray:
    """uint8[H,W,3] with its longest side at most `longest_side` (None: as it is), by Lanczos' filter."""
    size = shrunk_size((image.shape[0], image.shape[1]), longest_side)
    return image if size == image.shape[:2] else np.array(_resized(Image.fromarray(image), size))


def resize_grey(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[h,w] or float32[h,w] at (H, W), of the same dtype: bilinear, where it shrinks an average over the area.
    Unlike Lanczos' filter it makes no value beyond those there were."""
    if values.shape == size:
        return values
    return np.array(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[h,w] of class ids, or other numbers that cannot be mixed, at (H, W): nearest."""
    if labels.shape == size:
        return labels
    return np.array(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def stored_size(source: Path | bytes, where: str) -> tuple[int, int]:
    """(height, width) of an image file as its pixels lie in it, EXIF not minded. Reads the header only."""
    file = source if isinstance(source, Path) else io.BytesIO(source)
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            return image.height, image.width
    except Exception as error:
        raise DataError(f"{where}: cannot be decoded ({error}); replace the file") from error


def _load_png(data: bytes, where: str, modes: Sequence[str], max_pixels: int | None) -> np.ndarray:
    image, *_ = _load(data, where, MASK_FORMATS, max_pixels)
    if image.mode not in modes:
        raise DataError(f"{where}: found pixel mode {image.mode}{_about(image)}; allowed: {' or '.join(modes)}")
    if wrong := _not_as_stored(image):
        raise DataError(f"{where}: found {wrong}; allowed: one picture, without loss; save it as PNG")
    depth = _depth(data, image)
    if image.mode == "L" and depth != 8:  # PIL scales 2- and 4-bit greys to 0..255: class ids would change
        raise DataError(f"{where}: found a {depth}-bit grey {image.format}; allowed: 8-bit grey or palette")
    return np.array(image)  # palette indices, not colours


def _not_as_stored(image: Image.Image) -> str:
    """Why the values that PIL gives are not those that were drawn; empty where they are."""
    if getattr(image, "n_frames", 1) > 1:
        return f"{image.n_frames} pictures in one {image.format}"
    if image.format == "TIFF" and image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
        return "a TIFF with lossy compression"
    if image.format == "TIFF" and image.mode == "L" and image.tag_v2.get(262) == 0:  # PIL turns the values around
        return "a TIFF in which 0 is white"
    return ""


def _depth(data: bytes, image: Image.Image) -> int:
    """Bits of a pixel as they lie in the file."""
    if image.format == "TIFF":
        return int(image.tag_v2.get(258, (1,))[0])
    return data[28] if image.format == "BMP" else data[24]  # BITMAPINFOHEADER; IHDR


def _about(image: Image.Image) -> str:
    """What a picture holds that should have been a map of class ids."""
    if image.mode in ("RGB", "RGBA"):
        return f" ({_colours(image)}); save class ids instead of colours"
    if image.mode in ("LA", "PA"):
        return " (with transparency); save it without"
    if image.mode.startswith("I"):
        return f" (16-bit, values up to {int(np.array(image).max())}); save it with 8 bits"
    return " (1-bit); save it with 8 bits" if image.mode == "1" else ""


def _colours(image: Image.Image) -> str:
    found = image.convert("RGB").getcolors(256)
    if found is None:
        return "more than 256 colours: a photograph, or smoothed"
    colours = [colour for _, colour in sorted(found, reverse=True)]
    some = ", ".join(map(str, colours[:6])) + ", ..." * (len(colours) > 6)
    ids = {tuple(colour): number for number, colour in enumerate(voc_palette().tolist())}
    if not all(colour in ids for colour in colours):
        return f"the colours {some}"
    return f"the colours {some}, those of VOC's palette for the ids {', '.join(str(ids[c]) for c in colours[:6])}"


def decode_mask(data: bytes, where: str, max_pixels: int | None = None) -> np.ndarray:
    """uint8[H,W] values of an 8-bit grey PNG, BMP or TIFF, or indices of a palette; 255 = ignore by our convention.

    Raises DataError for RGB, 16-bit, 1-bit and unreadable files.
    """
    return _load_png(data, where, ("L", "P"), max_pixels)


def decode_clean(data: bytes, where: str, max_pixels: int | None = None) -> np.ndarray:
    """bool[H,W] of a 1-bit PNG. Raises DataError for anything else."""
    return _load_png(data, where, ("1",), max_pixels)


def decode_grey(data: bytes, where: str, max_pixels: int | None = None) -> np.ndarray:
    """uint8[H,W] of a PNG or JPEG that shows nothing but grey: L, LA (the transparency is not looked at), RGB with
    three equal channels, or P with a grey palette.

    Raises DataError for colours, RGBA, 16-bit, 1-bit and unreadable files: what they mean as grey is not known.
    """
    image, *_ = _load(data, where, GREY_FORMATS, max_pixels)
    found = _not_as_stored(image) or (f"pixel mode {image.mode}" if image.mode not in GREY_MODES else "")
    if image.mode.startswith("I") or (image.format == "PNG" and data[24] == 16):  # of RGB and LA PIL drops the low byte
        found = f"a 16-bit {image.format}"
    pixels = np.array(image.convert("LA" if image.mode == "LA" else "RGB")) if not found else np.zeros((1, 1, 1))
    if image.mode != "LA" and (pixels != pixels[..., :1]).any():
        found = f"colours ({_colours(image)})"
    if found:
        raise DataError(f"{where}: found {found}; allowed: 8-bit grey, as L, LA, RGB of equal channels or P of greys")
    return np.ascontiguousarray(pixels[..., 0])


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
