"""The pseudo-labels of a shard, a pure function of its seed shard: another vote needs no other seeds. Called by
`seeds.chunk` and `seeds.sweep_chunk` for maps in memory and by `seeds.generate` for stored ones; all give the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distwsss.data.images import decode_mask, encode_clean, encode_gray, encode_palette
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.stage import Packed
from distwsss.data.shards.writer import shard_bytes
from distwsss.maths.vote import ABSTAIN, agreement, vote
from distwsss.runtime.artifacts import to_json
from distwsss.runtime.storage import Folder
from distwsss.seeds.cams import checked_index
from distwsss.seeds.maps import LabelMaps


@dataclass(frozen=True)
class VoteTask:
    """Which of the seed shard's maps vote, in order (`names` are theirs), and how many votes make a pixel clean.

    label: the map that is the label under another rule than the vote, whose votes are then those that agree with it;
    by_score: tied classes are told apart by the marginals.
    """

    voters: tuple[int, ...]
    names: tuple[str, ...]
    threshold: int
    label: int | None = None
    by_score: bool = True

    def fields(self) -> list[str]:
        """The members of a seed sample that the vote reads."""
        maps = [*self.voters, *([] if self.label is None else [self.label])]
        scores = self.voters if self.label is None and self.by_score else ()
        return [*(f"s{k}.png" for k in dict.fromkeys(maps)), *(f"m{k}.png" for k in scores)]


def vote_sample(photo: dict[str, bytes], maps: LabelMaps, task: VoteTask) -> dict[str, bytes]:
    """The members of one pseudo-label sample (the photograph and its labels are carried over). `maps`: all those of the
    seed sample, in its order."""
    labels, votes = label_and_votes(maps, task)
    return {
        "jpg": photo["jpg"],
        "label.png": encode_palette(labels),
        "votes.png": encode_gray(votes),
        "clean.png": encode_clean((votes >= task.threshold) & (labels != ABSTAIN)),
        "json": to_json({**json.loads(photo["json"]), "seeds": list(task.names)}),
    }


def label_and_votes(maps: LabelMaps, task: VoteTask) -> tuple[np.ndarray, np.ndarray]:
    """uint8[H,W] each: the label of every pixel, and how many of those that vote have it."""
    voters = list(task.voters)
    if task.label is not None:
        labels = maps.labels[task.label]
        return labels, agreement(maps.labels[voters], labels)
    # uint8 would overflow in the sums over seeds
    scores = maps.scores[voters].astype(np.uint16) if task.by_score else None
    return vote(maps.labels[voters], scores)


def vote_shard(images_folder: Folder, seeds_folder: Folder, task: VoteTask, shard: int) -> Packed:
    """The pseudo-label shard of an existing seed shard."""
    seeds_index = checked_index(seeds_folder, "seeds", shard)
    images_index = checked_index(images_folder, "images", shard)
    fields = task.fields()

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        photos = iter_shard(images_index, shard, ["jpg", "json"])
        for (key, photo), (_, found) in zip(photos, iter_shard(seeds_index, shard, fields), strict=True):
            yield key, vote_sample(photo, _stored(found, fields, key), task)

    return Packed(*shard_bytes(f"pseudo-{shard:05d}.tar", samples()))


def _stored(found: dict[str, bytes], fields: list[str], key: str) -> LabelMaps:
    """The maps among `fields`, each at its own number; those that the vote does not read stay empty."""
    decoded = {field: decode_mask(found[field], f"{key}.{field}") for field in fields}
    shape = (1 + max(int(field[1:-4]) for field in fields), *next(iter(decoded.values())).shape)
    maps = LabelMaps(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8))
    for field, values in decoded.items():
        (maps.labels if field[0] == "s" else maps.scores)[int(field[1:-4])] = values
    return maps
