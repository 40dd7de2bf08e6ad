"""What is trained: the classifier task and the segmenter task. The loop knows only this interface:

`weights`   w of each loss term: a step's loss is the sum of w S / C, S and C over the whole global batch;
`counts`    batch -> C of each term on this micro-batch, from labels and masks alone;
`sums`      (outputs, batch) -> S of each term, float32[terms] with graph, and parts to log as (sum, count);
`model`, `samples` (loads one image), `selection` (which images), and optionally `held_out` (mIoU on ids kept out).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distwsss.config import Config
from distwsss.config.section import duration_to_steps
from distwsss.config.stages import TrainSection
from distwsss.config.training import AugmentSection, OptimSection
from distwsss.data.batches.loader import Batch, ClassifierSamples, LoadSample, SegmenterSamples
from distwsss.data.holdout import classifier_held_out_keys, held_out_keys
from distwsss.data.made_with import check_images, check_seeds, check_vote, classifier_section
from distwsss.data.shards.format import name_from_key
from distwsss.data.shards.index import Selection, ShardIndex, load_index
from distwsss.data.shards.verify import verified
from distwsss.errors import ConfigError, DataError, report_problems
from distwsss.losses.classification import multilabel_loss
from distwsss.models.classifier import Classifier
from distwsss.models.segmenters import build_segmenter
from distwsss.models.weights.network import weights_origin, weights_read
from distwsss.runtime.layout import images_dir, pseudo_dir, seeds_dir
from distwsss.runtime.progress import log
from distwsss.runtime.seeding import derive_seed
from distwsss.train.terms import Parts, segmenter_terms


@dataclass
class Task:
    """See the module's docstring. `seed`: of sample order, augmentation and dropout; `parameters` are what the stage's
    fingerprint covers, `origin` where what training starts from was found, for the record."""

    name: str
    model: nn.Module
    samples: LoadSample
    selection: Selection
    optim: OptimSection
    augment: AugmentSection
    seed: int
    parameters: dict[str, Any]
    counts: Callable[[Batch], list[float]]
    sums: Callable[[Any, Batch], tuple[Tensor, Parts]]
    weights: tuple[float, ...] = (1.0,)
    origin: dict[str, str] = field(default_factory=dict)
    held_out: Selection | None = None
    evaluate_every: str | None = None


def classifier_task(config: Config, dropout: float) -> Task:
    """Classifier of dropout probability `dropout`, Eq. 1, on the train images not held out. Raises ShardError for
    damaged shards, ConfigError for those of other data."""
    section, index = config.classify, verified(load_index(images_dir(config, "train"), "images"))
    check_images(config, index)
    kept_out = classifier_held_out_keys(index, section.holdout)
    torch.manual_seed(derive_seed(config.seed, "classify", dropout))  # initial weights of the new layers
    model = Classifier(section.backbone, index.classes, dropout, section.dropout_layer)
    seed = config.seed if section.streams == "shared" else derive_seed(config.seed, "streams", dropout)
    parameters = {
        "seed": config.seed,
        "classify": classifier_section(config),
        "dropout": dropout,
        "inputs": {"images": index.fingerprint, **weights_read(section.backbone)},
    }
    return Task(
        name=f"classify {dropout:.2f}",
        model=model,
        samples=ClassifierSamples(index, section.augment, model.mean, model.std, seed),
        selection=index.select(lambda key: key not in kept_out),
        optim=section.optim,
        augment=section.augment,
        seed=seed,
        parameters=parameters,
        counts=lambda batch: [len(batch.image)],
        sums=classifier_sums,
        origin=weights_origin(section.backbone),
    )


def classifier_sums(outputs: list[Tensor], batch: Batch) -> tuple[Tensor, Parts]:
    losses = [multilabel_loss(scores, batch.targets) for scores in outputs]
    return torch.stack([loss for loss, _ in losses]).sum()[None], {}


def segmenter_task(config: Config) -> Task:
    """The segmenter on pseudo-labels with the loss that `train.loss` names, on the ids not held out.

    `train.labels: truth` and `seed:NAME` need no pseudo-label shards. Raises ShardError for damaged shards, DataError
    where `truth` lacks masks.
    """
    section, images = config.train, load_index(images_dir(config, "train"), "images")
    check_images(config, images)
    photos, seeds, inputs = _labelled(config, images)
    holdout = _holdout(config, images)
    kept_out = held_out_keys(photos, holdout)
    selection = photos.select(lambda key: key not in kept_out)
    held_out = images.select(kept_out.__contains__) if kept_out and section.evaluate_every else None
    if section.labels == "truth":
        _check_truth(images, selection)
    inputs |= weights_read(section.backbone, section.weights)
    if fault := section.complements_fault(len(photos.classes)):
        raise ConfigError(f"train.{fault}")
    for index in (photos, seeds, images if held_out and photos is not images else None):
        if index is not None:
            verified(index)
    torch.manual_seed(derive_seed(config.segmenter_seed(), "train"))
    model = build_segmenter(section, photos.classes)
    model.longest_side = images.parameters.get("prepare", {}).get("longest_side")  # for whoever predicts with it
    terms = segmenter_terms(section, model, _falls(section, len(selection)))
    return Task(
        name="train",
        model=model,
        samples=SegmenterSamples(photos, seeds, section, model.mean, model.std, config.segmenter_seed()),
        selection=selection,
        optim=section.optim,
        augment=section.augment,
        seed=config.segmenter_seed(),
        # what was held out, not what was asked for: masks that came or went make it another run
        parameters={
            "seed": config.segmenter_seed(),
            "train": {**section.parameters(), "holdout": holdout},
            "inputs": inputs,
        },
        counts=terms.counts,
        sums=terms.sums,
        weights=terms.weights,
        origin=weights_origin(section.backbone, section.weights),
        held_out=held_out,
        evaluate_every=section.evaluate_every,
    )


def _labelled(config: Config, images: ShardIndex) -> tuple[ShardIndex, ShardIndex | None, dict[str, Any]]:
    """What `train.labels` asks for: the shards with the photographs, those with seeds, and the inputs' fingerprints."""
    section = config.train
    if section.labels == "truth":
        # no other fingerprint depends on masks
        return images, None, {"images": images.fingerprint, "truth": images.extra.get("truth")}
    if section.labels.startswith("seed:"):
        seeds = load_index(seeds_dir(config), "seeds")
        images.check_same_images(seeds)
        check_seeds(config, images, seeds.parameters, f"the seeds ({seeds.folder})")
        if section.labels.removeprefix("seed:") not in seeds.extra["seeds"]:
            allowed = ", ".join(f"seed:{name}" for name in seeds.extra["seeds"])
            raise ConfigError(f"train.labels: found {section.labels}, not in {seeds.folder}; allowed: {allowed}")
        return images, seeds, {"seeds": seeds.fingerprint}
    pseudo = load_index(pseudo_dir(config), "pseudo")
    check_vote(config, images, pseudo)
    voters = len(pseudo.extra["seeds"])
    if section.vote_threshold is not None and section.vote_threshold > voters:
        raise ConfigError(f"train.vote_threshold is {section.vote_threshold}; allowed: 1..{voters}, as many vote")
    return pseudo, None, {"pseudo": pseudo.fingerprint}


def _falls(section: TrainSection, images: int) -> int:
    """Steps in which the temperature falls."""
    if section.temperature_from is None or section.loss == "cross_entropy":
        return 0
    batch = section.optim.global_batch
    total = duration_to_steps(section.optim.duration, images, batch)
    steps = duration_to_steps(section.temperature_until, images, batch, total)
    log.info(
        f"train: temperature {section.temperature_from:g} falls to {section.temperature:g} in {steps} of {total} steps"
    )
    return steps


def _check_truth(images: ShardIndex, selection: Selection) -> None:
    """Raises DataError naming the selected images without a mask, before the first step rather than at some later."""
    keys, masked = selection.keys(), set(images.with_truth().keys())
    missing = [f"{name_from_key(key)}: no mask" for key in keys if key not in masked]
    if missing:
        what = f"train.labels is 'truth', but {images.folder} lacks masks of images to train on"
        raise DataError(report_problems(f"{what}; add masks and prepare anew, or use train.labels: vote", missing))


def _holdout(config: Config, images: ShardIndex) -> float:
    """`train.holdout`; 0 without masks, where what is kept out could not be scored. Raises ConfigError where BEST, the
    best of these scores, is to be evaluated."""
    if len(images.with_truth()) or not config.train.holdout:
        return config.train.holdout
    if config.evaluate.checkpoint == "BEST":
        raise ConfigError(
            f"evaluate.checkpoint: found 'BEST', but there is no mask in {images.folder}, so that there will be none; "
            "allowed: LAST, or give masks and prepare anew"
        )
    log.info(f"train: no masks, so nothing is held out (train.holdout {config.train.holdout:g} is not used)")
    return 0.0
