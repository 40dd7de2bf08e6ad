"""Label maps for anybody's pictures: palette PNGs and overlays. Called by `pipeline`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distwsss.data.sources.listing import IMAGE_SUFFIXES, stem_of
from distwsss.errors import ConfigError, DataError, report_problems
from distwsss.inference.segmenter import Segmenter, prediction_files
from distwsss.runtime.progress import log, track


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
    for given in map(Path.absolute, inputs):
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
        targets = prediction_files(output, str(picture.name))
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


def predict(
    segmenter: Segmenter, inputs: list[Path], output: Path, multi_scale: bool = False, crf: bool = False
) -> list[Path]:
    """Write OUTPUT/NAME.png (palette PNG of class ids) and OUTPUT/NAME.overlay.jpg for each picture; the PNGs' paths.

    A picture that cannot be read does not stop the others: all of them are named in one DataError at the end.
    """
    if crf and segmenter.section.crf is None:
        raise ConfigError("predict --crf: `evaluate.crf` is null in this configuration; name CRF parameters there")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"predict --output {output.absolute()}: cannot be a folder ({error.strerror}); name another"
        ) from error
    pictures, problems = find_pictures(inputs, output)
    written = []
    for picture in track(pictures, len(pictures), "predict"):
        try:
            prediction = segmenter.predict(picture.path, multi_scale, crf)
        except DataError as error:
            problems.append(str(error))
            continue
        written.append(prediction.save(output, str(picture.name)))
    log.info(f"predict: {len(written)} label maps in {output}")
    if problems:
        raise DataError(report_problems(f"predict: {len(written)} pictures done; these could not be", problems))
    return written
