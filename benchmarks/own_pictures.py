"""A new user's folder made of voc_mini, and the score of what was predicted for photographs not in it.

    python benchmarks/own_pictures.py make --voc PATH --output FOLDER [--draw test|tune|tune2] [--photographs 40]
    distwsss new FOLDER/pictures -o mine.yaml && distwsss run --config mine.yaml
    distwsss predict --config mine.yaml FOLDER/unseen -o FOLDER/predicted
    python benchmarks/own_pictures.py score --voc PATH --output FOLDER

The five classes are those that leave the most train photographs with no tag besides them. `test` draws 40 of these
photographs, by a fixed seed, to be scored on val once; rules and defaults were chosen with `tune` and `tune2`, which
draw from the others and score on what is left of train. Names, sub-folders, suffixes and tags are as phones and
spreadsheets write them; no mask lies in the folder. `--photographs 0`: every train photograph, all 20 classes.
`--longest-side 4000`: enlarged to twelve megapixels.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from distwsss.maths.miou import ConfusionMatrix

CLASSES = ("aeroplane", "bird", "boat", "car", "cat")
DRAWS = {"test": 14, "tune": 1, "tune2": 2}
FOLDERS = ("DCIM/100APPLE", "DCIM/101APPLE", "Holiday 2024")


class Voc:
    """voc_mini's lists: names of the classes, tags and ids."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = (root / "classes.txt").read_text().split()
        with open(root / "cls_labels.csv", newline="") as file:
            self.tags = {row["id"]: sorted(map(int, row["labels"].split())) for row in csv.DictReader(file)}

    def ids(self, split: str, classes: set[int]) -> list[str]:
        """Of a list, the photographs all of whose tags are among `classes`."""
        listed = (self.root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        return [name for name in listed if set(self.tags[name]) <= classes]


def drawn(voc: Voc, draw: str, photographs: int) -> tuple[list[int], list[str], list[str]]:
    """Class ids, ids to train on and ids to score."""
    if not photographs:
        classes = list(range(1, len(voc.names)))
        return classes, voc.ids("train", set(classes)), voc.ids("val", set(classes))
    classes = [voc.names.index(name) for name in CLASSES]
    train = sorted(voc.ids("train", set(classes)))
    test = random.Random(DRAWS["test"]).sample(train, 40)
    if draw == "test":
        return classes, test[:photographs], voc.ids("val", set(classes))
    others = [name for name in train if name not in test]
    chosen = random.Random(DRAWS[draw]).sample(others, photographs)
    return classes, chosen, [name for name in others if name not in chosen]


def make(voc: Voc, output: Path, draw: str, photographs: int, longest_side: int | None) -> None:
    _, train, scored = drawn(voc, draw, photographs)
    rows = []
    for number, name in enumerate(train):
        suffix = ".JPG" if number % 3 else ".jpg"
        phone = f"{FOLDERS[number % len(FOLDERS)]}/IMG_{1000 + number}{suffix}"
        _write(voc.root / "JPEGImages" / f"{name}.jpg", output / "pictures" / "images" / phone, longest_side)
        rows.append((phone, ", ".join(voc.names[tag] for tag in voc.tags[name])))
    for name in scored:
        _write(voc.root / "JPEGImages" / f"{name}.jpg", output / "unseen" / f"{name}.jpg", longest_side)
    with open(output / "pictures" / "tags.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("filename", "labels"), *rows])
    print(f"{len(train)} photographs to train on in {output / 'pictures'}, {len(scored)} in {output / 'unseen'}")


def _write(source: Path, target: Path, longest_side: int | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if longest_side is None:
        shutil.copyfile(source, target)
        return
    image = Image.open(source).convert("RGB")
    factor = longest_side / max(image.size)
    image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS).save(
        target, quality=90
    )


def score(voc: Voc, output: Path, draw: str, photographs: int) -> None:
    """mIoU over background and the classes, 255 left out; classes of the predictions in alphabetical order."""
    classes, _, scored = drawn(voc, draw, photographs)
    to_own = np.full(256, 255, np.uint8)
    to_own[[0, *classes]] = range(len(classes) + 1)
    counts = ConfusionMatrix(len(classes) + 1)
    for name in scored:
        truth = to_own[np.array(Image.open(voc.root / "SegmentationClass" / f"{name}.png"))]
        found = Image.open(output / "predicted" / f"{name}.png")
        found = found.resize(truth.shape[::-1], Image.Resampling.NEAREST)  # of enlarged photographs
        counts.update(np.array(found), truth)
    names = ["background", *(voc.names[index] for index in classes)]
    print(", ".join(f"{name} {100 * value:.1f}" for name, value in zip(names, counts.iou(), strict=True)))
    print(f"mIoU {100 * counts.miou():.2f} on {len(scored)} photographs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("make", "score"))
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--draw", choices=tuple(DRAWS), default="test")
    parser.add_argument("--photographs", type=int, default=40)
    parser.add_argument("--longest-side", type=int)
    given = parser.parse_args()
    voc = Voc(given.voc)
    if given.action == "make":
        make(voc, given.output, given.draw, given.photographs, given.longest_side)
    else:
        score(voc, given.output, given.draw, given.photographs)


if __name__ == "__main__":
    main()
