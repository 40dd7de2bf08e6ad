"""A trained segmenter, ready to segment photographs: what Python users load. Also called by `evaluate` and `report`.

A checkpoint says itself what inference must know (classes, mean, std, align_corners, temperature, longest side);
scales, windows and CRF are the `evaluate` section's, its defaults where there is no configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distwsss.config import Config
from distwsss.config.stages import EvaluateSection
from distwsss.data.images import decode_photograph, encode_jpeg, encode_palette, shrink, to_rgb
from distwsss.errors import CheckpointError, ConfigError, DataError, counted, relative_to
from distwsss.inference.enlarge import enlarged, enlarged_labels
from distwsss.inference.pictures import overlay, with_legend
from distwsss.inference.postprocess import crf_marginals
from distwsss.inference.views import predict_probabilities, views_of
from distwsss.models.export import CONFIG, from_pretrained, verified_checkpoint
from distwsss.models.segmenters import SEGMENTERS
from distwsss.runtime.artifacts import read_pointer, write_bytes
from distwsss.runtime.device import pick_device
from distwsss.runtime.layout import BEST, LAST, pointer, pointers_below, segmenter_dir
from distwsss.runtime.signature import not_ours, signed


@dataclass(frozen=True, eq=False)
class Prediction:
    """labels: class ids uint8[H,W]; probabilities: float32[K,H,W], of whose classes the labels are the most probable;
    classes: all K names, background first; image: uint8[H,W,3], the photograph; seen: float32[K,h,w], the probabilities
    at the size at which the network saw it."""

    labels: np.ndarray
    seen: np.ndarray = field(repr=False)
    classes: list[str]
    image: np.ndarray = field(repr=False)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Made when first read: of 21 classes and 12 megapixels it takes 1 GB."""
        return enlarged(self.seen, (self.labels.shape[0], self.labels.shape[1]))

    def overlay(self) -> Image.Image:
        """The photograph with the labels in colour, and a legend of the classes in it."""
        return with_legend(overlay(self.image, self.labels), self.labels, self.classes)

    def save(self, folder: str | Path, name: str) -> Path:
        """Write FOLDER/NAME.png (palette PNG of class ids) and FOLDER/NAME.overlay.jpg; returns the PNG's path.

        Earlier predictions are written anew. Raises ConfigError where other files lie there.
        """
        png, jpg = prediction_files(Path(folder), name)
        check_outputs([png, jpg])
        write_bytes(png, signed(encode_palette(self.labels)))
        write_bytes(jpg, signed(encode_jpeg(np.asarray(self.overlay()), quality=90, subsampling=2)))
        return png


def prediction_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a prediction called `name` is saved: its label map and its overlay."""
    return folder / f"{name}.png", folder / f"{name}.overlay.jpg"


def check_outputs(targets: list[Path]) -> None:
    """Raises ConfigError where files lie at `targets` that are no predictions as they were written."""
    found = [str(target) for target in targets if not_ours(target)]
    if found:
        some = ", ".join(found[:3]) + ", ..." * (len(found) > 3)
        raise ConfigError(
            f"{counted(len(found), 'file')} would be overwritten that distwsss did not write, or that changed since: "
            f"{some}; nothing was written. Name another output folder, or move them away"
        )


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A network with how it is to look at photographs. `folder`: the checkpoint it came from; `max_pixels`: larger
    files are refused before they are decoded."""

    model: nn.Module = field(repr=False)
    folder: Path
    device: torch.device
    section: EvaluateSection = field(default_factory=EvaluateSection)
    max_pixels: int | None = None

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str = "auto") -> Segmenter:
        """The segmenter of a run folder (its LAST), a checkpoint folder, a LAST or BEST, or an exported folder.

        device: auto (CUDA where there is one), cpu or cuda. Raises CheckpointError for what is no whole segmenter,
        ConfigError for CUDA without one.
        """
        return _open(locate_checkpoint(Path(path)), device, EvaluateSection(), None)

    @property
    def classes(self) -> list[str]:
        """All K names, background first."""
        return list(self.model.classes)

    def predict(
        self, image: str | Path | Image.Image | np.ndarray, multi_scale: bool = False, crf: bool = False
    ) -> Prediction:
        """The labels of a picture: a file, a PIL image, or uint8[H,W,3] RGB.

        multi_scale: the mean over the scales of `section` and the flip; crf: refined with its dense CRF. A picture
        larger than `longest_side` is looked at, and refined, shrunk, as in training; the labels have its own size.
        Raises DataError for a picture that cannot be read.
        """
        pixels, seen = self._pixels(image)
        probabilities = self.probabilities(seen, multi_scale).cpu().numpy()
        if crf:
            if self.section.crf is None:
                raise ConfigError("found no CRF parameters (`evaluate.crf` is null); name some there")
            probabilities = crf_marginals(seen, probabilities, self.section.crf)
        labels = enlarged_labels(probabilities, (pixels.shape[0], pixels.shape[1]))
        return Prediction(labels, probabilities, self.classes, pixels)

    @property
    def longest_side(self) -> int | None:
        """`prepare.longest_side` of the photographs it was trained on; None: as they were."""
        return getattr(self.model, "longest_side", None)  # checkpoints from before it was there have none

    def probabilities(self, image: np.ndarray, multi_scale: bool) -> Tensor:
        """uint8[H,W,3] RGB -> float32[K,H,W] on the device, without CRF."""
        return predict_probabilities(self.model, image, views_of(self.section, multi_scale), self.device)

    def _pixels(self, image: str | Path | Image.Image | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8[H,W,3], and as the network is to see it."""
        if isinstance(image, Image.Image):
            pixels = to_rgb(image)
        elif isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                found = f"{image.dtype}{list(image.shape)}"
                raise DataError(f"found an array {found}; allowed: uint8[H,W,3] RGB, a PIL image, or a path")
            pixels = image
        else:
            return self._read(Path(image).absolute())
        return pixels, shrink(pixels, self.longest_side)

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        seen = decode_photograph(data, str(path), self.max_pixels, self.longest_side)  # as `prepare` shrinks it
        whole = seen.pixels.shape[:2] == seen.size
        return (seen if whole else decode_photograph(data, str(path), self.max_pixels)).pixels, seen.pixels


def open_segmenter(config: Config, checkpoint: Path | None = None) -> Segmenter:
    """The segmenter of `checkpoint`, or that which `evaluate.checkpoint` of this run names, as the configuration says.

    Raises CheckpointError where it is missing or does not verify.
    """
    folder = checkpoint_folder(config, checkpoint)
    return _open(folder, config.hardware.device, config.evaluate, config.data.max_pixels)


def _open(folder: Path, device: str, section: EvaluateSection, max_pixels: int | None) -> Segmenter:
    chosen = pick_device(device)
    model = from_pretrained(folder, chosen)
    kind = model.architecture()["kind"]
    if kind not in SEGMENTERS:
        raise CheckpointError(f"{folder}: holds a {kind}; allowed: a segmenter ({', '.join(SEGMENTERS)})")
    if section.probabilities == "constrained" and not hasattr(model, "temperature"):
        raise CheckpointError(
            f"{folder}: does not say with which temperature it was trained (a checkpoint of an earlier version); "
            "allowed: evaluate.probabilities: softmax, or a checkpoint written anew"
        )
    return Segmenter(model, folder, chosen, section, max_pixels)


def checkpoint_folder(config: Config, checkpoint: Path | None = None) -> Path:
    """`checkpoint` (as `Segmenter.from_pretrained` takes it), or the one `evaluate.checkpoint` of this run names."""
    if checkpoint is not None:
        return locate_checkpoint(checkpoint)
    name = config.evaluate.checkpoint
    path = pointer(segmenter_dir(config), name)
    folder = read_pointer(path)
    if folder is None:
        hint = " (BEST needs masks of held-out images; LAST does not)" if name == BEST else ""
        raise CheckpointError(f"{path}: not found{hint}; run `distwsss train` first, or give --checkpoint FOLDER")
    return verified_checkpoint(folder)


def locate_checkpoint(path: Path) -> Path:
    """The verified folder of weights that `path` means: itself, or what a LAST or BEST names, in it or below it.

    Raises CheckpointError where there is none, or where it does not verify.
    """
    given, path = path, path.absolute()
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such folder{relative_to(given)}; allowed: a run folder, a checkpoint folder, LAST or BEST"
        )
    if path.is_dir() and not (path / CONFIG).is_file():
        below = pointers_below(path)
        if not any(found.is_file() for found in below):
            looked = ", ".join(str(found.relative_to(path)) for found in below)
            raise CheckpointError(f"{path}: no checkpoint in it (no {CONFIG}, {looked}); run `distwsss train` first")
        path = next(found for found in below if found.is_file())
    if path.is_file() and path.name not in (LAST, BEST):
        raise CheckpointError(f"{path}: a file; allowed: a run folder, a checkpoint folder, LAST or BEST")
    return verified_checkpoint(read_pointer(path) or path, exported=True)
