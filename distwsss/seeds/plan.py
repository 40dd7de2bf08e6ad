"""What the `seeds` stage needs, resolved once at its start: images, classifiers, voters, and the shards to make.

Called by `seeds.generate`. The index is loaded and the classifiers are verified here and nowhere else in this process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distwsss.config import Config
from distwsss.config.stages import SELECTED
from distwsss.data.made_with import check_classifier, check_images, seed_parameters, vote_parameters
from distwsss.data.saliency import open_saliency
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.stage import ShardStage
from distwsss.errors import CheckpointError
from distwsss.models.export import WEIGHTS, verified_checkpoint
from distwsss.runtime.artifacts import read_pointer, recorded_sha256
from distwsss.runtime.layout import (
    checkpoints_dir,
    classifier_dir,
    done_file,
    images_dir,
    pointer,
    pseudo_dir,
    seeds_dir,
)
from distwsss.runtime.storage import Folder
from distwsss.seeds.cams import CamTask
from distwsss.seeds.chunk import SeedTask
from distwsss.seeds.votes import VoteTask


@dataclass(frozen=True)
class SeedsPlan:
    """`seeds` and `vote`: the two folders of shards, each with the parameters its fingerprint covers. `classifiers`: a
    verified checkpoint for each p of `config.classify.dropouts`. `vote_task`: None before the seeds that vote are
    selected, which needs all seeds (`with_voters`)."""

    config: Config
    images: ShardIndex
    classifiers: list[Path]
    vote_task: VoteTask | None
    seeds: ShardStage
    vote: ShardStage
    saliency: Folder | None = None

    def chunk(self, shard: int, quarantine: bool) -> SeedTask:
        """The work on one shard: its CAM tasks in the order of the seeds' names, p outermost."""
        hardware, section = self.config.hardware, self.config.resolved_seeds()
        names = iter(self.config.seed_names())
        options = (section, hardware.device, hardware.mixed_precision, hardware.cam_batch)
        cams = tuple(
            CamTask(next(names), self.images.folder, shard, folder.resolve(), scale, *options)
            for folder in self.classifiers
            for scale in section.scales
        )
        return SeedTask(self.images.folder, shard, section, self.vote_task, cams, quarantine, self.saliency)

    def with_voters(self, selected: dict[str, Any]) -> SeedsPlan:
        """The plan once the seeds that vote are known. selected: as `seeds.select` records it."""
        voters = list(selected["seeds"])
        vote = replace(self.vote, parameters=vote_parameters(self.config, self.seeds.parameters, selected))
        return replace(self, vote_task=vote_task(self.config, voters), vote=vote)


def vote_task(config: Config, voters: list[str]) -> VoteTask:
    """The vote of the seeds named `voters`."""
    maps, label = config.map_names(), config.seeds.label
    return VoteTask(
        tuple(maps.index(name) for name in voters),
        tuple(voters),
        config.vote_threshold() or len(voters),
        None if label == "vote" else maps.index(label),
        config.seeds.ties == "scores",
    )


def plan_seeds(config: Config) -> SeedsPlan:
    """Raises ShardError without image shards, CheckpointError where a classifier is not there or does not verify, and
    ConfigError where they were made with other parameters."""
    images, classifiers = load_index(images_dir(config, "train"), "images"), classifier_folders(config)
    check_images(config, images)
    for p in config.classify.dropouts:
        check_classifier(config, p)
    digests = [recorded_sha256(folder, WEIGHTS) for folder in classifiers]
    weights = {f"{p:.2f}": digest for p, digest in zip(config.classify.dropouts, digests, strict=True)}
    maps = open_saliency(config, images) if config.seeds.uses_saliency() else None
    seeds = seed_parameters(config, images, weights, maps.fingerprint if maps else None)
    known = None if config.seeds.vote_on == SELECTED else vote_task(config, config.voting_seeds())
    return SeedsPlan(
        config,
        images,
        classifiers,
        known,
        ShardStage("seeds", "seeds", seeds_dir(config), seeds),
        ShardStage("vote", "pseudo", pseudo_dir(config), vote_parameters(config, seeds)),
        maps.folder if maps else None,
    )


def classifier_folders(config: Config) -> list[Path]:
    """The checkpoint of each classifier. Raises CheckpointError where one is not there or does not verify."""
    folders = []
    for p in config.classify.dropouts:
        training = classifier_dir(config, p)
        folder = read_pointer(pointer(training))
        if folder is None or not done_file(training).is_file():
            raise CheckpointError(
                f"{checkpoints_dir(training)}: no finished classifier for p = {p:.2f}; run `distwsss classify`"
            )
        folders.append(verified_checkpoint(folder))
    return folders
