"""The photographs of the report: which images, and every map made of them. Called by `report.html`."""

from __future__ import annotations

from dataclasses import dataclass, field

from distwsss.config.schema import Config
from distwsss.config.stages import MEANS
from distwsss.data.images import IGNORE, decode_clean, decode_image, decode_mask
from distwsss.data.scoring import own_threshold
from distwsss.data.shards.index import ShardIndex
from distwsss.data.shards.reader import read_fields, read_json_field, read_truth
from distwsss.inference.segmenter import Segmenter
from distwsss.report import pictures

LOOKED_AT = 500  # images considered for showing


@dataclass
class Row:
    """One image on the page: its name, its image-level labels, and (title, data: URI) of each picture."""

    name: str
    labels: list[str]
    tiles: list[tuple[str, str]] = field(default_factory=list)


def describe(index: ShardIndex, shard: int, position: int) -> tuple[str, list[int] | None]:
    """Original name and image-level labels."""
    data = read_fields(index, shard, position, ["json"])["json"]
    value = read_json_field(data, f"{index.folder}: {index.key(shard, position)}.json")
    return value["name"], value["labels"]


def choose(index: ShardIndex, count: int) -> list[tuple[int, int]]:
    """(shard, position) of `count` images that show many classes: each next one adds the most classes not yet shown.

    Where none adds any, counting starts anew, so classes are shown about equally often. Ties: first in the index.
    """
    places = [(shard, position) for shard, size in enumerate(index.counts) for position in range(size)][:LOOKED_AT]
    labels = {place: set(describe(index, *place)[1] or []) for place in places} if count else {}
    chosen: list[tuple[int, int]] = []
    shown: set[int] = set()
    while labels and len(chosen) < count:
        best = max(labels, key=lambda place: len(labels[place] - shown))
        if shown and not labels[best] - shown:
            shown = set()
            continue
        shown |= labels.pop(best)
        chosen.append(best)
    return chosen


def _places(index: ShardIndex | None) -> dict[str, tuple[int, int]]:
    if index is None:
        return {}
    return {key: (shard, i) for shard, record in enumerate(index.shards) for i, key in enumerate(record.keys)}


def _seed_tiles(index: ShardIndex, place: tuple[int, int]) -> list[tuple[str, str]]:
    names = list(index.extra["seeds"])
    fields = read_fields(index, *place, [f"s{number}.png" for number in range(len(names))])
    where = f"{index.folder}: {index.key(*place)}"
    maps = {f"s{number}.png": name for number, name in enumerate(names)}
    return [
        (name if name in MEANS else f"seed {name}", pictures.label_map(decode_mask(fields[field], f"{where}.{field}")))
        for field, name in maps.items()
        if field in fields
    ]


def _vote_tiles(index: ShardIndex, place: tuple[int, int], config: Config) -> list[tuple[str, str]]:
    fields = read_fields(index, *place, ["label.png", "votes.png", "clean.png"])
    where = f"{index.folder}: {index.key(*place)}"
    labels = decode_mask(fields["label.png"], f"{where}.label.png")
    votes = decode_mask(fields["votes.png"], f"{where}.votes.png")
    t = config.train.vote_threshold
    if t is None:
        t = own_threshold(index)
        clean = decode_clean(fields["clean.png"], f"{where}.clean.png")
    else:
        clean = (votes >= t) & (labels != IGNORE)
    return [
        ("pseudo-label", pictures.label_map(labels)),
        ("votes", pictures.votes_map(votes, len(index.extra["seeds"]))),
        (f"clean (t = {t}) / noisy", pictures.clean_map(clean, labels)),
    ]


def gallery(
    config: Config,
    images: ShardIndex,
    seeds: ShardIndex | None,
    pseudo: ShardIndex | None,
    segmenter: Segmenter | None,
    count: int,
) -> list[Row]:
    """Rows for `count` images of `images`: photo, each seed, pseudo-label, votes, clean / noisy, prediction, truth.

    `seeds`, `pseudo` and `segmenter` are None where their stage was not run; then their pictures are left out.
    """
    in_seeds, in_pseudo = _places(seeds), _places(pseudo)
    rows = []
    for place in choose(images, count):
        key = images.key(*place)
        name, labels = describe(images, *place)
        image = decode_image(read_fields(images, *place, ["jpg"])["jpg"], f"{images.folder}: {key}.jpg")
        row = Row(name, [images.classes[label] for label in labels or []], [("photo", pictures.photo(image))])
        if seeds is not None and key in in_seeds:
            row.tiles += _seed_tiles(seeds, in_seeds[key])
        if pseudo is not None and key in in_pseudo:
            row.tiles += _vote_tiles(pseudo, in_pseudo[key], config)
        if segmenter is not None:
            row.tiles.append(("prediction", pictures.label_map(segmenter.predict(image).labels)))
        truth = read_truth(images, *place)
        if truth is not None:
            row.tiles.append(("truth", pictures.label_map(truth)))
        rows.append(row)
    return rows
