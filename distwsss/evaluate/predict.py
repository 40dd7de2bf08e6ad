"""Label maps for anybody's pictures: palette PNGs and overlays. Called by `cli`; `overlay` also by the report."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from distwsss.config.schema import Config
from distwsss.data.images import decode_image, encode_palette, voc_palette
from distwsss.data.sources.listing import IMAGE_SUFFIXES, stem_of
from distwsss.errors import ConfigError, DataError, report_problems
from distwsss.evaluate.inference import checkpoint_folder, load_segmenter, pick_device, predict_probabilities
from distwsss.evaluate.postprocess import crf_labels
from distwsss.runtime.artifacts import write_bytes
from distwsss.runtime.progress import log, track

LEGEND_ROW = 16  # pixels


@dataclass(frozen=True)
class Picture:
    """One input: the file, and its name below the output folder, without suffix."""

    path: Path
    name: Path


def find_pictures(inputs: list[Path], output: Path) -> tuple[list[Picture], list[str]]:
    """Pictures named by `inputs` (files, and folders searched recursively), and what cannot be used.

    A picture of a folder keeps its path below that folder. Files in `output` itself are no inputs. Two pictures that
    would get the same output name are problems, and so is one that its own output would overwrite.
    """
    found: list[Picture] = []
    problems: list[str] = []
    for given in inputs:
        if given.is_dir():
            paths = [path for path in sorted(given.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
            paths = [path for path in paths if path.is_file() and output.resolve() not in path.resolve().parents]
            found += [Picture(path, Path(stem_of(str(path.relative_to(given))))) for path in paths]
            if not paths:
                allowed = f"{', '.join(IMAGE_SUFFIXES)}, outside the output folder"
                problems.append(f"{given}: no picture in it; allowed: {allowed}")
        elif given.is_file():
            found.append(Picture(given, Path(stem_of(given.name))))
        else:
            problems.append(f"{given}: not found")
    return _without_clashes(found, problems, output)


def _without_clashes(found: list[Picture], problems: list[str], output: Path) -> tuple[list[Picture], list[str]]:
    sources = {picture.path.resolve() for picture in found}
    owner: dict[Path, Picture] = {}
    kept = []
    for picture in found:
        targets = _targets(picture, output)
        first = owner.setdefault(picture.name, picture)
        if first is not picture:
            if first.path.resolve() != picture.path.resolve():
                problems.append(f"{picture.path}: its output would overwrite that of {first.path}; use two folders")
        elif sources & {target.resolve() for target in targets}:
            problems.append(f"{picture.path}: its output would overwrite an input; use another output folder")
        elif not targets[0].parent.resolve().is_relative_to(output.resolve()):
            problems.append(f"{picture.path}: a link leads its output out of {output}; remove the link")
        else:
            kept.append(picture)
    return kept, problems


def _targets(picture: Picture, output: Path) -> tuple[Path, Path]:
    folder = output / picture.name.parent
    return folder / f"{picture.name.name}.png", folder / f"{picture.name.name}.overlay.jpg"


def overlay(image: np.ndarray, labels: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """image uint8[H,W,3] with the colours of the labels uint8[H,W] blended in; background stays as it is."""
    colours = voc_palette()[labels].astype(np.float32)
    mixed = (1 - strength) * image + strength * colours
    return np.where((labels > 0)[..., None], mixed.round(), image).astype(np.uint8)


def with_legend(image: np.ndarray, labels: np.ndarray, classes: list[str]) -> Image.Image:
    """`image` with the names and colours of the classes in `labels` written below it."""
    present = [int(value) for value in np.unique(labels) if 0 < value < len(classes)]
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width, height + LEGEND_ROW * len(present)), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    draw, font, palette = ImageDraw.Draw(canvas), ImageFont.load_default(size=11), voc_palette()
    for row, value in enumerate(present):
        top = height + LEGEND_ROW * row
        draw.rectangle((3, top + 3, 13, top + 13), fill=tuple(map(int, palette[value])))
        draw.text((18, top + 2), classes[value], fill="black", font=font)
    return canvas


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def predict_labels(
    model: nn.Module, image: np.ndarray, config: Config, multi_scale: bool, crf: bool, device: object
) -> np.ndarray:
    """Class ids uint8[H,W] of `image` uint8[H,W,3], as the `evaluate` section of the configuration asks."""
    probabilities = predict_probabilities(model, image, config, multi_scale, device)
    if crf and config.evaluate.crf is not None:
        return crf_labels(image, probabilities.cpu().numpy(), config.evaluate.crf)
    return probabilities.argmax(dim=0).cpu().numpy().astype(np.uint8)


def predict(
    config: Config,
    inputs: list[Path],
    output: Path,
    checkpoint: Path | None = None,
    multi_scale: bool = False,
    crf: bool = False,
) -> list[Path]:
    """Write OUTPUT/NAME.png (palette PNG of class ids) and OUTPUT/NAME.overlay.jpg for each picture; the PNGs' paths.

    A picture that cannot be read does not stop the others: all of them are named in one DataError at the end.
    """
    if crf and config.evaluate.crf is None:
        raise ConfigError("predict --crf: `evaluate.crf` is null in this configuration; name CRF parameters there")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"predict --output {output}: cannot be a folder ({error.strerror}); name another") from error
    device = pick_device(config.hardware.device)
    model = load_segmenter(checkpoint_folder(config, checkpoint), device)
    pictures, problems = find_pictures(inputs, output)
    written = []
    for picture in track(pictures, len(pictures), "predict"):
        try:
            image = decode_image(picture.path.read_bytes(), str(picture.path), config.data.max_pixels)
        except (DataError, OSError) as error:
            problems.append(str(error))
            continue
        labels = predict_labels(model, image, config, multi_scale, crf, device)
        png, jpg = _targets(picture, output)
        write_bytes(png, encode_palette(labels))
        write_bytes(jpg, _jpeg(with_legend(overlay(image, labels), labels, list(model.classes))))
        written.append(png)
    log.info(f"predict: {len(written)} label maps in {output}")
    if problems:
        raise DataError(report_problems(f"predict: {len(written)} pictures done; these could not be", problems))
    return written
