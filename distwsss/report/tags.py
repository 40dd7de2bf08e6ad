"""The classifiers on the page: average precision on photographs held out, and the tags that they contradict, with
pictures. Called by `report.html`."""

from __future__ import annotations

from typing import Any

from distwsss.config import Config
from distwsss.data.doubtful import Doubt, read_doubts
from distwsss.data.images import decode_image
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.index import ShardIndex
from distwsss.data.shards.reader import read_fields
from distwsss.evaluate.scores import percent
from distwsss.report import page, pictures
from distwsss.runtime.artifacts import read_json
from distwsss.runtime.layout import average_precision_file, classifier_dir, doubtful_tags_file

SHOWN = 24  # doubtful tags with their pictures


def classifiers(config: Config, images: ShardIndex | None) -> str:
    """The section; `images`: the train split."""
    files = {f"p = {p:.2f}": average_precision_file(classifier_dir(config, p)) for p in config.classify.dropouts}
    records = {name: read_json(file) for name, file in files.items() if file.is_file()}
    if not records or images is None:
        return page.section("Classifiers", page.missing("classify"))
    return page.section("Classifiers", *_precision(records), *_doubtful(config, images))


def _precision(records: dict[str, Any]) -> list[str]:
    """A table of classes by classifiers."""
    first = next(iter(records.values()))
    if not first["photographs"]:
        return [page.paragraph("Average precision was not measured: no photograph was held out.", "quiet")]
    rows = [["average precision (%)", *records, "photographs"]]
    for name, each in first["classes"].items():
        values = [record["classes"][name]["average_precision"] for record in records.values()]
        rows.append([name, *map(percent, values), str(each["positives"])])
    rows.append(["mean", *(percent(record["mean"]) for record in records.values()), str(first["photographs"])])
    note = (
        f"On {first['photographs']} photographs held out of the classifiers' training; a class that none of them has "
        "has no value."
    )
    return [page.paragraph(note, "quiet"), page.table(rows, totals=1)]


def _doubtful(config: Config, images: ShardIndex) -> list[str]:
    """What to look at in the tags, most doubtful first."""
    path = doubtful_tags_file(config)
    doubts = read_doubts(path, images.fingerprint)
    title = "<h3>Tags that the classifiers contradict most</h3>"
    if not doubts:
        return [title, page.paragraph("None is known.", "quiet")]
    note = (
        f"{min(SHOWN, len(doubts))} of {len(doubts)}; all are in {path}. The tag may be wrong or missing, or the "
        "classifier is. The score is the mean over the classifiers; those of photographs that they were trained on "
        "lean towards the tags, those held out do not."
    )
    return [title, page.paragraph(note, "quiet"), page.figures(_tiles(images, doubts[:SHOWN]))]


def _tiles(images: ShardIndex, doubts: list[Doubt]) -> list[tuple[str, str]]:
    places, tiles = dict(zip(images.all().keys(), images.all().places(), strict=True)), []
    for doubt in doubts:
        place = places[key_from_name(doubt.id)]
        image = decode_image(read_fields(images, *place, ["jpg"])["jpg"], doubt.id)
        tiles.append((str(doubt), pictures.photo(image)))
    return tiles
