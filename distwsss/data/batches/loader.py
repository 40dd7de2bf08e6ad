"""From shards to micro-batches, which `workers` reads in processes. Called by `train.task` and `train.loop`.

Item i of `MicroBatches` is micro-batch i % accumulation of step i // accumulation on this rank, whole and collated, so
the order of samples does not depend on the number of workers, and resuming needs only the step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from distwsss.config.stages import TrainSection
from distwsss.config.training import AugmentSection
from distwsss.data.batches.plan import Sample, plan, rank_slice
from distwsss.data.batches.transforms import augment_sample
from distwsss.data.images import decode_clean, decode_image, decode_mask
from distwsss.data.shards.index import Selection, ShardIndex
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.errors import DistwsssError, ShardError
from distwsss.losses.hybrid import sample_several
from distwsss.runtime import shared_memory
from distwsss.runtime.seeding import numpy_generator, torch_generator

Loaded = dict[str, Tensor]  # one sample's fields of `Batch`
LoadSample = Callable[[Sample, str], Loaded]


@dataclass
class Batch:
    """A micro-batch of B images of h x w pixels: a classifier's, with `targets`, or a segmenter's, with `labels` and
    `clean`; the others are None.

    image: float32 B,3,h,w, normalised; targets: float32 B,N, 1 where the class is among the image-level labels; labels:
    uint8 B,h,w class ids, 255 = ignore; clean: bool B,h,w; complements: uint8 B,h,w complementary labels, for the
    hybrid loss only, or B,n,h,w for n a pixel, 255 = no further one. `step`: the training's, from 0. `empty`: of a
    slice without samples, a batch that stands in for them and counts nowhere.
    """

    keys: list[str]
    image: Tensor
    targets: Tensor = None
    labels: Tensor = None
    clean: Tensor = None
    complements: Tensor | None = None
    empty: bool = False
    step: int = 0

    def map(self, change: Callable[[Any], Any], kind: type = Tensor) -> Batch:
        """The same batch with `change` applied to its tensors, or to what is of another `kind`."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, kind)}
        return replace(self, **{name: change(value) for name, value in found.items()})

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def to_send(self) -> Batch:
        """This batch as a worker hands it over: in shared memory, or, where that has no room for twice as much, with
        arrays for tensors, which go through the worker's pipe. torch would move tensors later, where an error loses the
        batch and the rank waits for ever."""
        size = sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))
        if shared_memory.room()[0] >= 2 * size:
            with suppress(RuntimeError):  # another process was faster
                return self.map(Tensor.share_memory_)
        return self.map(Tensor.numpy)

    def pin_memory(self) -> Batch:
        """For torch's DataLoader, which asks this of types that it does not know."""
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True)
class Share:
    """How a global batch is shared: `accumulation` micro-batches on each of `world` ranks."""

    rank: int
    world: int
    micro_batch: int
    accumulation: int


def share_batch(global_batch: int, micro_batch: int | None, rank: int, world: int) -> Share:
    """As few micro-batches of at most `micro_batch` images as cover `global_batch` on `world` ranks."""
    micro = min(micro_batch or global_batch, -(-global_batch // world))
    return Share(rank, world, micro, -(-global_batch // (world * micro)))


class MicroBatches(Dataset[Batch | Exception]):
    """The micro-batches of one rank. A slice without samples (more slices than samples) holds one marked `empty`.

    An error of the data is the item: raised in a worker, torch would make its traceback the message (`read_batches`).
    """

    def __init__(self, selection: Selection, load: LoadSample, seed: int, global_batch: int, share: Share, steps: int):
        self.selection, self.load, self.seed = selection, load, seed
        self.global_batch, self.share, self.steps = global_batch, share, steps

    def __len__(self) -> int:
        return self.steps * self.share.accumulation

    def __getitem__(self, item: int) -> Batch | Exception:
        try:
            batch = self._load(item)
            return batch if get_worker_info() is None else batch.to_send()
        except (DistwsssError, OSError) as error:
            return error

    def _load(self, item: int) -> Batch:
        step, micro = divmod(item, self.share.accumulation)
        samples = plan(self.selection, self.seed, step, self.global_batch)
        mine = rank_slice(samples, self.share.rank, self.share.world, micro, self.share.accumulation)
        empty = not mine
        mine = mine or samples[:1]
        keys = [self.selection.index.shards[sample.shard].keys[sample.position] for sample in mine]
        loaded = [self.load(sample, key) for sample, key in zip(mine, keys, strict=True)]
        tensors = {name: torch.stack([sample[name] for sample in loaded]) for name in loaded[0]}
        return Batch(keys, **tensors, empty=empty, step=step)


@dataclass(frozen=True)
class ClassifierSamples:
    """Loads one image with its image-level labels: `image` float32[3,h,w], `targets` float32[N]."""

    images: ShardIndex
    augment: AugmentSection
    mean: list[float]
    std: list[float]
    seed: int

    def __call__(self, sample: Sample, key: str) -> Loaded:
        members = read_fields(self.images, sample.shard, sample.position, ["jpg", "json"])
        targets = torch.zeros(len(self.images.classes) - 1)
        targets[[label - 1 for label in json.loads(members["json"])["labels"]]] = 1.0
        rng = numpy_generator(self.seed, sample.epoch, key, "augment")
        image = decode_image(members["jpg"], key)
        tensor, _ = augment_sample(image, {}, self.augment, self.mean, self.std, rng, bicubic=True)
        return {"image": tensor, "targets": targets}


@dataclass(frozen=True)
class SegmenterSamples:
    """Loads one image with its labels: `image` float32[3,h,w], `labels` uint8[h,w], `clean` bool[h,w],
    `complements` uint8[h,w] (hybrid loss with negative learning only), or uint8[n,h,w] for n > 1 of a pixel.

    `section.labels` says whose labels: the vote's (`photos` are then the pseudo-label shards), one seed's (`seeds`),
    or, upper bound only, the true masks; `photos` are then the image shards.
    """

    photos: ShardIndex
    seeds: ShardIndex | None
    section: TrainSection
    mean: list[float]
    std: list[float]
    seed: int

    def _maps(self, sample: Sample, key: str) -> tuple[bytes, dict[str, Any]]:
        """The photograph's bytes and its label and clean maps at full size."""
        place = (sample.shard, sample.position)
        if self.section.labels == "vote":
            return self._voted(place, key)
        photo = read_fields(self.photos, *place, ["jpg"])["jpg"]
        labels = self._truth(place, key) if self.seeds is None else self._seed(self.seeds, place, key)
        return photo, {"labels": labels, "clean": labels != 255}

    def _voted(self, place: tuple[int, int], key: str) -> tuple[bytes, dict[str, Any]]:
        threshold = self.section.vote_threshold
        members = read_fields(
            self.photos, *place, ["jpg", "label.png", "clean.png" if threshold is None else "votes.png"]
        )
        labels = decode_mask(members["label.png"], key)
        if threshold is None:
            clean = decode_clean(members["clean.png"], key)
        else:
            clean = (decode_mask(members["votes.png"], key) >= threshold) & (labels != 255)
        return members["jpg"], {"labels": labels, "clean": clean}

    def _truth(self, place: tuple[int, int], key: str) -> np.ndarray:
        truth = read_truth(self.photos, *place)
        if truth is None:
            raise ShardError(f"{key}: train.labels is `truth`, but this image has no mask; give masks or drop it")
        return truth

    def _seed(self, seeds: ShardIndex, place: tuple[int, int], key: str) -> np.ndarray:
        field = f"s{seeds.extra['seeds'].index(self.section.labels.removeprefix('seed:'))}.png"
        return decode_mask(read_fields(seeds, *place, [field])[field], key)

    def __call__(self, sample: Sample, key: str) -> Loaded:
        photo, maps = self._maps(sample, key)
        rng = numpy_generator(self.seed, sample.epoch, key, "augment")
        image, placed = augment_sample(decode_image(photo, key), maps, self.section.augment, self.mean, self.std, rng)
        loaded = {"image": image, **placed}
        if self.section.learns_negatively:
            loaded["complements"] = self._complements(placed["labels"], sample, key)
        return loaded

    def _complements(self, labels: Tensor, sample: Sample, key: str) -> Tensor:
        section = self.section
        if section.complement == "assigned":
            return labels
        among = self._absent(labels, sample) if section.complement == "absent" else None
        generator = torch_generator(self.seed, sample.epoch, key, "complements")
        drawn = sample_several(
            labels, len(self.photos.classes), section.complements, among=among, generator=generator
        ).to(torch.uint8)
        if section.complement == "assigned_uniform":
            drawn = torch.cat([labels[None], drawn])
        return drawn if len(drawn) > 1 else drawn[0]

    def _absent(self, labels: Tensor, sample: Sample) -> list[int] | None:
        """The classes without a tag of the image, less background, which is always there, and what `labels` name all
        the same (imported seeds may); None, all others, where no class is left."""
        about = json.loads(read_fields(self.photos, sample.shard, sample.position, ["json"])["json"])
        there = {0, *about["labels"], *labels.unique().tolist()}
        return [label for label in range(len(self.photos.classes)) if label not in there] or None
