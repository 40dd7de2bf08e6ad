"""Choose alpha (and the normalisation) of the seeds on the tuning ids of a configuration.

    python benchmarks/sweep_alpha.py --config configs/voc_mini/lite.yaml --set data.root=PATH

Needs `prepare` and `classify`. CAMs are computed once per image; each setting refines the voting seeds, and the vote is
scored with the train masks of `data.tuning_ids` only. Prints a table; what it measured is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distwsss.config import Config, load_config
from distwsss.data.holdout import tuning_keys
from distwsss.data.images import decode_image
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.inference.postprocess import bounded_pool
from distwsss.maths.cam import compute_cam
from distwsss.maths.miou import ConfusionMatrix
from distwsss.maths.vote import vote
from distwsss.models.export import from_pretrained
from distwsss.runtime.layout import images_dir
from distwsss.runtime.progress import setup_logging, track
from distwsss.seeds.chunk import refine_cams
from distwsss.seeds.plan import classifier_folders

SETTINGS = [f"softmax:{alpha:g}" for alpha in (0.25, 0.5, 1, 2, 4, 8, 16)]
SETTINGS += [f"sum:{alpha:g}" for alpha in (2, 4, 8, 16)]


@dataclass(frozen=True)
class Place:
    shard: int
    position: int


@lru_cache(maxsize=8)
def _classifier(folder: Path, output_stride: int | None) -> Any:
    return from_pretrained(folder, "cpu", output_stride)


def voting_cams(config: Config, folders: list[Path], image: np.ndarray, labels: list[int]) -> list[np.ndarray]:
    """The CAM of each voting seed, float16[L,h,w]."""
    section, cams = config.seeds, []
    for name in config.voting_seeds():
        p, scale = divmod(config.seed_names().index(name), len(section.scales))
        model = _classifier(folders[p], section.output_stride)
        scales = (section.scales[scale], section.base_size, section.cam_scales)
        cams.append(compute_cam(model, image, labels, *scales))
    return cams


def score_image(config: Config, folders: list[Path], settings: list[str], place: Place) -> np.ndarray:
    """Confusion matrices of the vote, of its unanimous pixels and of each voter: int64[settings,2+m,K,K+1]."""
    torch.set_num_threads(1)
    index = load_index(images_dir(config, "train"), "images")
    members = read_fields(index, place.shard, place.position, ["jpg", "json"])
    image, labels = decode_image(members["jpg"], "image"), json.loads(members["json"])["labels"]
    truth = read_truth(index, place.shard, place.position)
    cams = voting_cams(config, folders, image, labels)
    found = []
    for setting in settings:
        normalise, alpha = setting.split(":")
        section = config.seeds.model_copy(update={"alpha": float(alpha), "normalise": normalise})
        seeds = refine_cams(image, labels, cams, section)
        voted, votes = vote(seeds)
        agreed = np.where(votes == len(seeds), truth, 255)
        matrices = []
        for prediction, target in [(voted, truth), (voted, agreed), *((seed, truth) for seed in seeds)]:
            confusion = ConfusionMatrix(len(index.classes))
            confusion.update(prediction, target)
            matrices.append(confusion.matrix)
        found.append(np.stack(matrices))
    return np.stack(found)


def _miou(matrix: np.ndarray) -> float:
    confusion = ConfusionMatrix(len(matrix))
    confusion.matrix = matrix
    return 100 * confusion.miou()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", dest="overrides", action="append")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="NORMALISE:ALPHA ..., default: the whole grid")
    arguments = parser.parse_args()
    setup_logging()
    config = load_config(arguments.config, overrides=arguments.overrides)
    index = load_index(images_dir(config, "train"), "images")
    tuning = tuning_keys(config, index)
    places = [Place(s, i) for s, ids in enumerate(index.select(tuning.__contains__).positions) for i in ids]
    folders = classifier_folders(config)
    totals: list[np.ndarray] = []
    with bounded_pool(config.hardware.workers) as submit:
        for place in track(places, len(places), "sweep"):
            submit(totals.append, score_image, config, folders, arguments.settings, place)
    total = np.sum(totals, axis=0)
    print(f"{len(places)} tuning images; mIoU of the vote of {len(config.voting_seeds())} seeds, of its unanimous")
    print("pixels, the coverage of these, and the best single seed")
    for setting, matrices in zip(arguments.settings, total, strict=True):
        single = [_miou(matrix) for matrix in matrices[2:]]
        best = config.voting_seeds()[int(np.argmax(single))]
        coverage = 100 * matrices[1].sum() / matrices[0].sum()
        print(
            f"| {setting.replace(':', ' | ')} | {_miou(matrices[0]):.2f} | {_miou(matrices[1]):.2f} | {coverage:.1f} "
            f"| {max(single):.2f} ({best}) | {' '.join(f'{value:.1f}' for value in single)} |"
        )


if __name__ == "__main__":
    main()
