"""Which tagged classes got no pixel in the pseudo-labels, counted without truth. Called by `seeds.generate`.

The CRF and the vote may leave a class of an image no pixel. A few such images cost little; a class that is mostly
missing is not learnt, and a set without any foreground teaches that everything is background.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from distwsss.config import Config
from distwsss.data.images import IGNORE, decode_mask
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import iter_shard, read_json_field
from distwsss.errors import RunError
from distwsss.runtime.artifacts import read_json, sha256_file, write_json
from distwsss.runtime.layout import classifier_dir, labels_file, metrics_file, pseudo_dir
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import log, track

FEW = 1000  # images that are counted before processes for it would have started


def check_labels(config: Config) -> dict[str, Any]:
    """The count of the finished pseudo-labels, said, and kept in the run folder for the report.

    Raises RunError where no tagged image has a pixel of any class.
    """
    path, folder = labels_file(config), pseudo_dir(config)
    digest = sha256_file(folder / INDEX)
    record = read_json(path) if path.is_file() else {}
    if record.get("index") != digest:
        record = {"index": digest, **count_labels(load_index(folder, "pseudo"), config.hardware.workers)}
        write_json(path, record)
    if record["images"] and not record["with_foreground"]:
        raise RunError(_no_foreground(config, record["images"]))
    _say(record)
    return record


def count_labels(index: ShardIndex, workers: int = 0) -> dict[str, Any]:
    """`images`: tagged ones; `with_foreground`: of these, those with a pixel of any class; `classes`: class -> {tagged:
    images tagged with it, without: of these, those without a pixel of it}."""
    tagged: Counter[int] = Counter()
    without: Counter[int] = Counter()
    images = foreground = 0
    shards = list(range(len(index.shards)))
    counts = spread(partial(_shard_labels, index), shards, workers if len(index) > FEW else 0)
    for _, found in track(counts, len(shards), "count of labels", "shard"):
        for labels, present in found:
            images += 1
            foreground += bool(present)
            tagged.update(labels)
            without.update(set(labels) - set(present))
    names = enumerate(index.classes[1:], start=1)
    classes = {name: {"tagged": tagged[label], "without": without[label]} for label, name in names}
    return {"images": images, "with_foreground": foreground, "classes": classes}


def _shard_labels(index: ShardIndex, shard: int) -> list[tuple[list[int], list[int]]]:
    """(labels, foreground classes with a pixel) of every tagged image of a shard."""
    found = []
    for key, fields in iter_shard(index, shard, ["label.png", "json"]):
        where = f"{index.folder}: {key}"
        labels = read_json_field(fields["json"], f"{where}.json").get("labels") or []
        if labels:
            present = np.unique(decode_mask(fields["label.png"], f"{where}.label.png")).tolist()
            found.append((labels, [label for label in present if label not in (0, IGNORE)]))
    return found


def worst_first(record: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(class, images tagged with it that have no pixel of it, images tagged with it), the largest share first."""
    rows = [(name, count["without"], count["tagged"]) for name, count in record["classes"].items() if count["tagged"]]
    return sorted(rows, key=lambda row: (-row[1] / row[2], -row[2], row[0]))


def _say(record: dict[str, Any]) -> None:
    missing = [row for row in worst_first(record) if row[1]]
    if not missing:
        log.info("pseudo-labels: every tagged photograph has pixels of each of its classes")
        return
    text = "; ".join(f"{name}: {n} of {m} tagged photographs have no pixel of it" for name, n, m in missing)
    log.info(f"pseudo-labels: {text}")
    mostly = [name for name, n, m in missing if 2 * n > m]
    if mostly:
        log.warning(
            f"pseudo-labels: {', '.join(mostly)}: no pixel in more than half of the photographs tagged with it, so "
            "that the segmenter will hardly learn it; are its tags right, and are there enough photographs of it?"
        )


def _no_foreground(config: Config, images: int) -> str:
    seeds, metrics = config.seeds, metrics_file(classifier_dir(config, config.classify.dropouts[0]))
    return (
        f"pseudo-labels: none of {images} tagged photographs has a pixel of any class, all is background; nothing "
        "after `seeds` was run. Look at\n"
        f"  the classifiers: did the loss fall ({metrics}), is their average precision above chance? If not, mend "
        "`classify` (a lower classify.optim.lr, more steps, pretrained weights)\n"
        f"  seeds.alpha: found {seeds.alpha:g}; a higher one leaves less to the background\n"
        f"  seeds.normalise: found {seeds.normalise}; `sum` gives classes more weight against the background"
    )
