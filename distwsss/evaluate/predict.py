"""Label maps for anybody's pictures: palette PNGs and overlays. Called by `pipeline`."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

from distwsss.data.sources.listing import IMAGE_SUFFIXES, stem_of
from distwsss.errors import ConfigError, DataError, counted, relative_to, report_problems
from distwsss.inference.segmenter import Segmenter, check_outputs, prediction_files
from distwsss.runtime.progress import log, track

PHONES = {".heic", ".heif", ".avif"}  # pictures that Pillow alone does not read


@dataclass(frozen=True)
class Picture:
    """One input: the file, and its name below the output folder, without suffix."""

    path: Path
    name: Path


def find_pictures(inputs: list[Path], output: Path) -> tuple[list[Picture], list[str]]:
    """Pictures named by `inputs` (files, and folders searched recursively), and what cannot be used.

    A picture of a folder keeps its path below that folder. Files in `output` itself are no inputs. Two pictures that
    would get the same output name are problems, and so is one that its own output would overwrite. A line of the log
    counts what a folder holds beside pictures.
    """
    found: list[Picture] = []
    problems: list[str] = []
    for path in inputs:
        given = path.absolute()
        if given.is_dir():
            paths, others = _search(given, output)
            found += [Picture(path, Path(stem_of(str(path.relative_to(given))))) for path in paths]
            left_out = _left_out(others)
            if not paths:
                allowed = f"{', '.join(IMAGE_SUFFIXES)}, outside the output folder"
                problems.append(f"{given}: no picture in it; allowed: {allowed}{f'; {left_out}' if left_out else ''}")
            elif left_out:
                log.warning(f"predict: {given}: {left_out}")
        elif given.is_file():
            found.append(Picture(given, Path(stem_of(given.name))))
        else:
            what = "a link that leads nowhere" if path.is_symlink() else f"not found{relative_to(path)}"
            problems.append(f"{given}: {what}")
    return _without_clashes(found, problems, output)


def _search(top: Path, output: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """The pictures below `top`, and the names of all else by kind. Linked folders are followed after the others, each
    folder once, so that circles end."""
    pictures: list[Path] = []
    others: dict[str, list[str]] = defaultdict(list)
    seen: set[Path] = set()
    waiting = deque([top])
    while waiting:
        folder = waiting.popleft()
        real = folder.resolve()
        if real == output.resolve():
            continue
        if real in seen:
            others["linked folder seen already"].append(str(folder.relative_to(top)))
            continue
        seen.add(real)
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            others["folder that may not be read"].append(str(folder.relative_to(top)))
            continue
        folders = [entry for entry in entries if entry.is_dir()]
        waiting.extendleft(entry for entry in reversed(folders) if not entry.is_symlink())
        waiting.extend(entry for entry in folders if entry.is_symlink())
        for entry in entries:
            if (kind := _kind(entry)) is None:
                pictures.append(entry)
            elif kind:
                others[kind].append(str(entry.relative_to(top)))
    return sorted(pictures), others


def _kind(path: Path) -> str | None:
    """None for a picture, "" for a folder, else what it is, in words."""
    if path.is_dir():
        return ""
    if not path.exists():
        return "link that leads nowhere"
    if not path.is_file():
        return "no file"
    if path.name.startswith("."):
        return "hidden"
    suffix = path.suffix.lower()
    return None if suffix in IMAGE_SUFFIXES else suffix or "without suffix"


def _left_out(others: dict[str, list[str]]) -> str:
    """One line: how many of each kind, with the names of the first ones."""
    if not others:
        return ""
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in sorted(others.items())
    ]
    advice = "; save .heic and such as JPEG first (phones: Settings, Camera, Most Compatible)"
    said = advice if PHONES & set(others) else ""
    return f"left out {sum(map(len, others.values()))}: {', '.join(parts)}{said}"


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

    A picture that cannot be read does not stop the others: all of them are named in one DataError at the end. Raises
    ConfigError, before anything is written, where files lie in the way that this did not write.
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
    check_outputs([target for each in pictures for target in prediction_files(output, str(each.name))])
    written = []
    for picture in track(pictures, len(pictures), "predict"):
        try:
            prediction = segmenter.predict(picture.path, multi_scale, crf)
        except DataError as error:
            problems.append(str(error))
            continue
        written.append(prediction.save(output, str(picture.name)))
    log.info(f"predict: {counted(len(written), 'label map')} in {output}")
    if problems:
        raise DataError(
            report_problems(f"predict: {counted(len(written), 'picture')} done; these could not be", problems)
        )
    return written
