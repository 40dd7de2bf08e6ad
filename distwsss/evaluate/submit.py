"""The archive that the evaluation server of PASCAL VOC 2012 takes: a label map of every test image. Called by
`pipeline`.

What it takes, as public sources say (not tried against the server): a .tgz or .tar.gz, no plain .tar, of
`results/VOC2012/Segmentation/comp6_test_cls/ID.png`. That is the development kit's path of results,
`COMPETITION_SPLIT_cls/ID.png`; competition 5 is for methods trained on VOC's trainval alone, 6 for those that used
other data too, such as ImageNet weights or SBD. The kit's `VOCevalseg` reads the PNGs as indexed images and refuses one
whose size is not the photograph's, or with a value above 20: 255 is no answer.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from distwsss.config.crf import CRFParams
from distwsss.config.schema import Config
from distwsss.data.check import check_listing
from distwsss.data.images import Photograph, decode_mask, decode_photograph, encode_palette
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import Item, read_source
from distwsss.data.sources.voc import VOC_CLASSES
from distwsss.errors import ConfigError, DataError, report_problems
from distwsss.inference.postprocess import bounded_pool, crf_labels
from distwsss.inference.segmenter import open_segmenter
from distwsss.inference.views import labels_at
from distwsss.runtime.artifacts import atomic_path
from distwsss.runtime.progress import log, track

MEMBER = "results/VOC2012/Segmentation/comp6_{split}_cls/{name}.png"
SUFFIXES = (".tgz", ".tar.gz")
TEST_IMAGES = 1456  # in VOC 2012's ImageSets/Segmentation/test.txt
PACKED = "distwsss-submit.tar"  # what the archive says was packed, by which `submit` knows its own
PALETTE = (8, 3)  # bit depth and colour type in a PNG's header
Predict = Callable[[bytes, str], tuple[Photograph, Tensor]]  # a file and its id -> as it is seen, float32[K,h,w]
Sizes = dict[str, tuple[int, int]]  # member -> H, W of the photograph, in the order of the list


def submit(
    config: Config,
    output: Path,
    split: str = "test",
    checkpoint: Path | None = None,
    multi_scale: bool = True,
    crf: bool = True,
) -> int:
    """Write `output`, the archive of the label maps of `split` in the order of its list; returns how many.

    Predicted as the `evaluate` section says, with its scales and the flip (`multi_scale`) and its CRF (`crf`). Before
    the first prediction it is known that the segmenter has VOC's classes and that every image can be read; the archive
    is read back before it gets its name, so one that is there is whole. Raises ConfigError, CheckpointError, and
    DataError with all problems.
    """
    _check_request(config, output)
    segmenter = open_segmenter(config, checkpoint)
    if segmenter.classes != VOC_CLASSES:
        found = ", ".join(segmenter.classes)
        raise DataError(
            f"{segmenter.folder}: a segmenter of {found}; allowed: VOC's background and 20 classes, in their order"
        )
    items, params = _images(config, split), config.evaluate.crf if crf else None

    def predict(data: bytes, name: str) -> tuple[Photograph, Tensor]:
        photo = decode_photograph(data, name, config.data.max_pixels, segmenter.longest_side)
        return photo, segmenter.probabilities(photo.pixels, multi_scale)

    with atomic_path(output) as temporary:
        with _archive(temporary) as tar:
            sizes = _write(tar, config, {MEMBER.format(split=split, name=i.name): i for i in items}, predict, params)
        problems = archive_problems(temporary, sizes)
        if problems:
            raise DataError(report_problems(f"{output}: not written, the server would refuse it", problems))
    how = f"{'multi-scale + flip' if multi_scale else 'single scale'}, {'CRF' if params else 'no CRF'}"
    log.info(f"submit: {output}: {len(items)} label maps by {segmenter.folder} ({how}), read back and checked")
    return len(items)


def _check_request(config: Config, output: Path) -> None:
    if config.data.dataset != "voc":
        raise ConfigError(f"submit: `data.dataset` is {config.data.dataset!r}; allowed: voc, whose server it is for")
    if not output.name.endswith(SUFFIXES) or output.is_dir():
        raise ConfigError(f"submit --output {output}: allowed: a file called NAME{' or NAME'.join(SUFFIXES)}")
    if os.path.lexists(output) and not _is_archive(output):
        raise ConfigError(f"submit --output {output}: is there, and submit did not write it; name another, or move it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"submit --output {output}: its folder cannot be made ({error.strerror})") from error


def _is_archive(path: Path) -> bool:
    """Whether `submit` wrote it: the header of the gzip says what it was called before (byte 3: that it says so)."""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(11 + len(PACKED))
        return head[3:4] == b"\x08" and head[10:] == PACKED.encode() + b"\0"
    return False


def _images(config: Config, split: str) -> list[Item]:
    """The images of the split in the order of its list; neither labels nor masks are needed, which test has not."""
    listing = DATASETS["voc"](config.data, split)
    if not listing.items:
        hint = "; the test images and their list are a download of their own, VOC2012test.tar" * (split == "test")
        raise DataError(f"split `{split}` has no images (looked in {listing.where}){hint}")
    found = check_listing(listing, config.data, False, config.hardware.workers, f"submit: checking {split}")
    checked = zip(listing.items, found, strict=True)
    problems = [f"{item.name}: {text}" for item, one in checked for text in one.problems]
    if problems:
        raise DataError(report_problems(f"submit: split `{split}` cannot be used; nothing was written", problems))
    if split == "test" and len(listing.items) != TEST_IMAGES:
        log.warning(f"submit: {listing.where} lists {len(listing.items)} images; the server has {TEST_IMAGES}")
    return listing.items


@contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    """A gzipped tar to write; equal members give equal bytes."""
    with (
        path.open("wb") as file,
        gzip.GzipFile(PACKED, "wb", fileobj=file, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w:", format=tarfile.USTAR_FORMAT) as tar,
    ):
        yield tar


def _write(
    tar: tarfile.TarFile, config: Config, items: dict[str, Item], predict: Predict, params: CRFParams | None
) -> Sizes:
    """The label map of each item (by member), refined with the CRF `params` if any, in processes."""
    sizes: Sizes = {}
    with bounded_pool(config.hardware.workers if params else 0) as run:
        for member, item in track(items.items(), len(items), "submit"):
            photo, probabilities = predict(read_source(item.image), item.name)
            size, add = photo.size, partial(_add, tar, member)
            sizes[member] = size
            if params is None:
                add(labels_at(probabilities, size))
            else:  # half precision, as `evaluate` hands them over
                run(add, crf_labels, photo.pixels, probabilities.half().cpu().numpy(), params, None, size)
    return sizes


def _add(tar: tarfile.TarFile, member: str, labels: np.ndarray) -> None:
    data, info = encode_palette(labels.astype(np.uint8)), tarfile.TarInfo(member)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def archive_problems(path: Path, sizes: Sizes) -> list[str]:
    """Why the server, or its evaluation, would refuse the archive of these photographs; empty when all is well."""
    problems, names = [], []
    try:
        whole = gzip.decompress(path.read_bytes())  # to its checksum; tarfile stops reading at the last member
        with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as tar:
            for info in tar:
                names.append(info.name)
                file = tar.extractfile(info) if info.isfile() else None
                if file is None:
                    problems.append(f"{info.name}: not a regular file")
                elif info.name in sizes:
                    problems += _map_problems(file.read(), info.name, sizes[info.name])
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        return [f"not a whole gzipped tar ({error})"]
    problems += [f"{name}: missing" for name in sizes if name not in names]
    problems += [f"{name}: not an image of the split" for name in dict.fromkeys(names) if name not in sizes]
    if not problems and names != list(sizes):
        problems.append("members twice, or in another order than the split's list")
    return problems


def _map_problems(data: bytes, name: str, size: tuple[int, int]) -> list[str]:
    try:
        labels = decode_mask(data, name)
    except DataError as error:
        return [str(error)]
    problems = []
    if (data[24], data[25]) != PALETTE:
        problems.append(f"{name}: found no 8-bit palette; allowed: an indexed PNG")
    if labels.shape != size:
        found, allowed = (f"{width} x {height}" for height, width in (labels.shape, size))
        problems.append(f"{name}: found {found} pixels; allowed: {allowed}, the size of the photograph")
    wrong = [int(value) for value in np.unique(labels) if value >= len(VOC_CLASSES)]
    if wrong:
        values = ", ".join(map(str, wrong[:8]))
        problems.append(f"{name}: found values {values}; allowed: 0..{len(VOC_CLASSES) - 1}")
    return problems
