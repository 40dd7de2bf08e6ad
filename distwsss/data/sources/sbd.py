"""The Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), for VOC's `train_aug`. Called by `voc`.

`train_aug` is derived from the official lists: VOC 2012's segmentation train, SBD's train and val, without VOC 2012's
segmentation val; 10,582 images. SBD's masks are for evaluation only: image-level labels come from VOC's annotations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distwsss.config.data import DataSection
from distwsss.data.sources.listing import stem_of
from distwsss.data.sources.lists import read_ids, voc_id
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.artifacts import sha256_file
from distwsss.runtime.progress import log

TRAIN_AUG = "train_aug"
OFFICIAL = {"VOC train": 1464, "VOC val": 1449, "SBD train": 8498, "SBD val": 2857}  # ids in each list
OFFICIAL_TRAIN_AUG = 10_582


def sbd_folder(data: DataSection) -> Path:
    """The folder of cls/, train.txt and val.txt: `data.sbd`, its `dataset` or its `benchmark_RELEASE/dataset`."""
    given = Path(data.sbd or "").absolute()
    for folder in (given, given / "dataset", given / "benchmark_RELEASE" / "dataset"):
        if data.sbd is not None and (folder / "train.txt").is_file() and (folder / "cls").is_dir():
            return folder
    found = "it is not set" if data.sbd is None else f"found no cls/ and train.txt in {given}"
    raise DataError(
        f"split `{TRAIN_AUG}` needs `data.sbd`: {found}; allowed: the unpacked SBD release "
        "(benchmark_RELEASE/dataset with cls/ID.mat, train.txt and val.txt); use --set data.sbd=PATH"
    )


def list_files(lists: Path, sbd: Path) -> dict[str, Path]:
    """The four lists that `train_aug` is made from, by the names that OFFICIAL uses. `lists`: VOC's folder of them."""
    voc = {f"VOC {split}": lists / f"{split}.txt" for split in ("train", "val")}
    return {**voc, **{f"SBD {split}": sbd / f"{split}.txt" for split in ("train", "val")}}


def train_aug_names(files: dict[str, Path]) -> list[str]:
    """The ids of `train_aug`, sorted.

    Raises DataError where a list is missing, or where the lists are as long as the official ones and do not give 10,582
    ids. Shorter lists, of a subset, give a warning with what was found.
    """
    ids = {name: set(map(voc_id, read_ids(path, _is_id))) for name, path in files.items()}
    names = sorted((ids["VOC train"] | ids["SBD train"] | ids["SBD val"]) - ids["VOC val"])
    counts = {name: len(found) for name, found in ids.items()}
    if len(names) != OFFICIAL_TRAIN_AUG:
        found = f"{TRAIN_AUG}: found {len(names)} images, not {OFFICIAL_TRAIN_AUG}"
        if counts == OFFICIAL:
            raise DataError(f"{found}, in lists of the official lengths; replace them: {_said(files)}")
        lengths = ", ".join(f"{name} {count} of {OFFICIAL[name]}" for name, count in counts.items())
        log.warning(f"{found}: the lists are a subset or not the official ones ({lengths})")
    return names


def _is_id(line: str) -> bool:
    return len(line.split()) == 1 and stem_of(line) == line


def _said(files: dict[str, Path]) -> str:
    return ", ".join(map(str, files.values()))


@dataclass(frozen=True)
class MatMask:
    """SBD's `cls/ID.mat`: GTcls.Segmentation, classes 0..20, no ignored pixels."""

    path: Path

    def draw(self) -> np.ndarray:
        """uint8[H,W]. Raises DataError for a file that is no such mask."""
        mask = np.asarray(self._segmentation())
        if mask.ndim != 2 or not mask.size or mask.dtype.kind not in "iu" or mask.min() < 0 or mask.max() > 255:
            found = f"{mask.dtype}{list(mask.shape)}"
            raise DataError(f"{self.path}: found GTcls.Segmentation {found}; allowed: whole numbers 0..255, [H,W]")
        return mask.astype(np.uint8)

    def _segmentation(self) -> Any:
        loadmat = _loadmat()
        try:
            return loadmat(self.path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        except (MemoryError, FileNotFoundError):
            raise
        except Exception as error:  # scipy documents no errors: what a damaged file raises depends on the damaged byte
            raise DataError(f"{self.path}: no SBD mask ({type(error).__name__}: {error}); replace the file") from error

    def digest(self) -> str:
        return sha256_file(self.path)


def _loadmat() -> Any:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ConfigError("SBD's masks need scipy, which is not installed: pip install 'distwsss[coco]'") from error
    return loadmat
