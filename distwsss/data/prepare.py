"""The stage `prepare`: checks a data set as a whole, then writes its image shards. Called by `pipeline` and by
`evaluate`.

A first pass decodes every image and mask and finds all problems of both splits; only then is anything written: nothing
(`--on-bad fail`), or all but the images that have problems (`quarantine`), whose ids the index records. Masks travel as
`truth.png`; their digest is kept beside the parameters, not among them, so that no fingerprint of a later stage depends
on masks. A killed attempt keeps its shards: `data/image_shards.py` makes the others.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distwsss.config import Config
from distwsss.data.agreement import masks_against_tags
from distwsss.data.changes import SOURCES, changes, mask_digests, source_size, sources
from distwsss.data.check import check_listing
from distwsss.data.doubtful import first_doubts, read_doubts
from distwsss.data.image_shards import plan_shards, write_shards
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.stage import ShardStage
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import Item, Listing
from distwsss.data.sources.summary import classes_line, holding_others, problem_lines
from distwsss.errors import ConfigError, DataError, report_problems
from distwsss.runtime.artifacts import (
    REMAKE,
    differences,
    fingerprint,
    free_space_check,
    read_json,
    write_bytes,
    write_json,
)
from distwsss.runtime.layout import (
    ROLES,
    Role,
    doubtful_tags_file,
    images_dir,
    quarantine_file,
    report_file,
    source_file,
)
from distwsss.runtime.progress import log
from distwsss.runtime.storage import Folder

OF_MASKS = ("masks", "mask_values", "contradicting_masks", "crowd")  # keys of `data` that concern nothing else
QUARANTINED = "quarantined"


@dataclass(frozen=True)
class _Split:
    """One split on its way into image shards. `reasons`: per item of the listing, why it is left out, if it is;
    `contradiction`: why its masks cannot be those of these images."""

    name: str
    listing: Listing
    folder: Folder
    labelled: bool  # labels are required
    reasons: list[list[str]]
    contradiction: str | None = None

    @property
    def items(self) -> list[Item]:
        """Those that are written."""
        return [item for item, why in zip(self.listing.items, self.reasons, strict=True) if not why]

    @property
    def bad(self) -> list[tuple[str, list[str]]]:
        return [(item.name, why) for item, why in zip(self.listing.items, self.reasons, strict=True) if why]


def _split(name: str, listing: Listing, folder: Folder, labelled: bool) -> _Split:
    return _Split(name, listing, folder, labelled, [[] for _ in listing.items])


def prepare(config: Config, on_bad: str = "fail", remake: bool = False) -> None:
    """Image shards of the train split and, where there is one, of the val split, under shard_dir/images.

    `on_bad`: an image with a problem ends the stage (`fail`), or is left out and listed in
    run_dir/prepare/quarantine.jsonl, a line {id, split, reasons} each (`quarantine`). `remake`: shards made from other
    data, masks or parameters are replaced by what a fresh `prepare` would write; those of the same bytes stay.
    Raises DataError with every problem of the data, or where a split has no good image, and ConfigError when the shards
    were made from other data, masks or parameters, or with images left out and now `fail`.
    """
    splits = _splits(config)
    _say_classes(splits[0].name, splits[0].listing)
    _prepare(config, splits, on_bad, remake)
    write_json(source_file(config), {"root": _absolute_root(config)})
    _show_doubts(config)


def changed_splits(config: Config) -> dict[str, list[str]]:
    """Of the roles whose image shards are complete, but of other data, masks or parameters: a line for each kind of
    change."""
    found = {split.folder.name: _differences(config, split) for split in _splits(config)}
    return {role: lines for role, lines in found.items() if lines}


def _splits(config: Config) -> list[_Split]:
    """That of train, and that of val where there is one."""
    splits = []
    for role in ROLES:
        name = split_of(config, role)
        listing = DATASETS[config.data.dataset](config.data, name)
        if listing.items:
            splits.append(_split(name, listing, images_dir(config, role), labelled=role == "train"))
        elif role == "train":
            raise DataError(_empty(name, listing))
        else:
            log.info(f"prepare: {_empty(name, listing)}; skipped")
    return splits


def _show_doubts(config: Config) -> None:
    """The tags of these images that classifiers trained on them contradicted."""
    path = doubtful_tags_file(config)
    doubts = read_doubts(path, load_index(images_dir(config, "train"), "images").fingerprint)
    if doubts:
        first = first_doubts(doubts, 10)
        log.info(f"prepare: tags that the classifiers contradict most, of {len(doubts)} in {path}:\n{first}")


def _say_classes(name: str, listing: Listing) -> None:
    log.info(f"prepare: {name}: {classes_line(listing)}")
    if odd := holding_others(listing.classes):
        log.warning(f"prepare: classes that hold the name of another: {', '.join(odd)}; separate tags by `;` or `,`")


def split_of(config: Config, role: Role) -> str:
    """The name of the list of what is trained on, or evaluated on."""
    return config.data.train_split if role == "train" else config.data.val_split


def prepare_split(config: Config, split: str, folder: Folder | Callable[[str], Folder]) -> Folder:
    """Image shards of any split of `config.data`, labels not required, in `folder`; returns that folder.

    `folder` may be a function of the content's digest, which gives each content a folder of its own.
    """
    listing = DATASETS[config.data.dataset](config.data, split)
    if not listing.items:
        raise DataError(_empty(split, listing))
    if callable(folder):
        content = _without_split_names(_parameters(config, split, listing, []))
        folder = folder(fingerprint([content, _truth_digest(mask_digests(listing.items))]))
    _prepare(config, [_split(split, listing, folder, labelled=False)], "fail")
    return folder


def holds_split(index: ShardIndex, config: Config, split: str) -> bool:
    """Whether a run's image shards hold `split` of `config.data`.

    They do if they are of that split with the same keys, and from this `data.root` (or none is named). Of another root
    the images and masks must be the same; where it is gone and it is not known from which they were made, they are
    taken.
    """
    known = _without_split_names(index.parameters)
    longest_side = known.get("prepare", {}).get("longest_side", config.prepare.longest_side)
    if (
        known.get("split") != split
        or longest_side != config.prepare.longest_side
        or known.get("data") != _without_split_names({"data": data_parameters(config)})["data"]
    ):
        return False
    root, source = _absolute_root(config), source_file(config)
    made_from = read_json(source)["root"] if source.is_file() else None
    if root is None or root == made_from:
        return True
    if made_from is None and not Path(root).is_dir():
        log.info(f"{index.folder}: taken for split `{split}` of `data.root` {root}, which is gone")
        return True
    listing = DATASETS[config.data.dataset](config.data, split)
    left_out = index.parameters.get(QUARANTINED, [])
    wanted = _without_split_names(_parameters(config, split, listing, left_out))
    same = fingerprint(known) == fingerprint(wanted)
    return same and index.extra.get("truth") == _truth_digest(mask_digests(_without(listing.items, left_out)))


def _without_split_names(parameters: dict[str, Any]) -> dict[str, Any]:
    """What lists are called that are trained on and evaluated on says nothing about one of them."""
    data = {key: value for key, value in parameters.get("data", {}).items() if key not in ("train_split", "val_split")}
    return {**parameters, "data": data}


def _absolute_root(config: Config) -> str | None:
    return config.data.root and os.path.abspath(config.data.root)


def _empty(name: str, listing: Listing) -> str:
    return f"split `{name}` has no images (looked in {listing.where})"


def _prepare(config: Config, splits: list[_Split], on_bad: str, remake: bool = False) -> None:
    found = [(split, _differences(config, split)) for split in splits]
    if not remake:
        _refuse_changed(found, on_bad)
    pending = [_checked(config, split) for split, changed in found if not _is_complete(split, changed, on_bad)]
    contradictions = [f"{split.name}: {split.contradiction}" for split in pending if split.contradiction]
    problems = contradictions if on_bad == "quarantine" else [*contradictions, *_problems(pending)]
    if problems:
        raise DataError(report_problems("The data cannot be used; nothing was written", problems))
    if on_bad == "quarantine":
        _quarantine(config, pending)
    plans = [plan_shards(_stage(config, split), split.items, config) for split in pending]
    for split, plan in zip(pending, plans, strict=True):
        free_space_check(split.folder, plan.bytes_needed(), f"prepare, split {split.name}")
    if remake and pending:
        report_file(config).unlink(missing_ok=True)  # it shows what is replaced
    for split, plan in zip(pending, plans, strict=True):
        masks = mask_digests(split.items)
        extra = {"labels_from": split.listing.labels_from, "truth": _truth_digest(masks), **split.listing.extra}
        extra[SOURCES] = sources(split.items, masks)
        write_shards(plan, split.listing.classes, extra, config.hardware.workers, remake)
    if on_bad == "quarantine":
        for split in splits:
            _print_counts(split)


def _stage(config: Config, split: _Split) -> ShardStage:
    parameters = _parameters(config, split.name, split.listing, [name for name, _ in split.bad])
    return ShardStage(f"prepare: {split.name}", "images", split.folder, parameters)


def _checked(config: Config, split: _Split) -> _Split:
    what = f"prepare: checking {split.name}"
    workers, longest_side = config.hardware.workers, config.prepare.longest_side
    found = check_listing(split.listing, config.data, split.labelled, workers, what, longest_side)
    contradiction = masks_against_tags(split.name, split.listing, found, config.data)
    return replace(split, reasons=[one.problems for one in found], contradiction=contradiction)


def _problems(splits: list[_Split]) -> list[str]:
    return [f"{split.name}: {line}" for split in splits for line in problem_lines(split.bad)]


def _quarantine(config: Config, pending: list[_Split]) -> None:
    """Write down what is left out, before any shard is. Raises DataError for a split with no good image."""
    for split in pending:
        if not split.items:
            title = f"split `{split.name}`: none of {len(split.reasons)} images can be used; nothing was written"
            raise DataError(report_problems(title, _problems([split])))
    path = quarantine_file(config, "prepare")
    anew = {split.name for split in pending}
    old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = [line for line in old if json.loads(line)["split"] not in anew]  # of splits that are complete
    for split in pending:
        for name, why in split.bad:
            lines.append(json.dumps({"id": name, "split": split.name, "reasons": why}, ensure_ascii=False))
    if lines or old:
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def _print_counts(split: _Split) -> None:
    index = load_index(split.folder, "images")
    left_out = len(index.parameters.get(QUARANTINED, []))
    log.info(f"prepare: {split.name}: {len(split.reasons)} in = {len(index)} out + {left_out} quarantined")


def data_parameters(config: Config) -> dict[str, Any]:
    """The keys of `data` that image shards depend on."""
    return {key: value for key, value in config.data.parameters().items() if key not in OF_MASKS}


def _parameters(config: Config, split: str, listing: Listing, quarantined: list[str]) -> dict[str, Any]:
    """What the index records and its fingerprint covers; without masks. The content is that of the whole listing."""
    items = sorted(listing.items, key=lambda item: item.name)
    content = [[item.name, item.labels, source_size(item.image)] for item in items]
    parameters = {
        "data": data_parameters(config),
        "prepare": config.prepare.parameters(),
        "split": split,
        "classes": listing.classes,
        "content": fingerprint(content),
    }
    return {**parameters, QUARANTINED: sorted(quarantined)} if quarantined else parameters


def _truth_digest(masks: dict[str, str]) -> str | None:
    """Digest of all masks' bytes; None without masks."""
    return fingerprint([[name, digest] for name, digest in masks.items()]) if masks else None


def _differences(config: Config, split: _Split) -> list[str]:
    """Why the shards that are complete there are not those of this split, a line each; none where they are, or where
    none are complete."""
    if not (split.folder / INDEX).is_file():
        return []
    index = load_index(split.folder, "images")
    left_out = index.parameters.get(QUARANTINED, [])
    found = differences(index.parameters, _parameters(config, split.name, split.listing, left_out))
    lines = [line.strip() for key, line in found.items() if key not in ("content", "classes")]
    masks = mask_digests(_without(split.listing.items, left_out))
    if len(lines) < len(found) or index.extra.get("truth") != _truth_digest(masks):
        lines += changes(index, split.listing, masks, left_out)
    return lines


def _refuse_changed(found: list[tuple[_Split, list[str]]], on_bad: str) -> None:
    """Raises ConfigError where shards are complete that are not those wanted now. `found`: with their differences."""
    refused = []
    for split, changed in found:
        title = f"prepare: {split.folder} was made from other data, masks or parameters:"
        refused += [title, *(f"  {line}" for line in changed)] if changed else []
    if refused:
        raise ConfigError("\n".join([*refused, REMAKE]))
    for split, _ in found:
        left_out = _left_out(split) if on_bad == "fail" else []
        if left_out:
            some = ", ".join(left_out[:5]) + ", ..." * (len(left_out) > 5)
            raise ConfigError(
                f"prepare: {split.folder} was made without {len(left_out)} bad images ({some}), by --on-bad "
                "quarantine. Give it again, or repair the images and give --remake."
            )


def _left_out(split: _Split) -> list[str]:
    """The ids that complete shards were made without."""
    there = (split.folder / INDEX).is_file()
    return load_index(split.folder, "images").parameters.get(QUARANTINED, []) if there else []


def _is_complete(split: _Split, changed: list[str], on_bad: str) -> bool:
    """Whether the folder holds these shards.

    The same content has the same bad images, so nothing is decoded again: those recorded are taken as left out.
    """
    if changed:
        log.info(f"prepare: {split.name}: made anew: {'; '.join(changed)}")
    if changed or not (split.folder / INDEX).is_file() or (_left_out(split) and on_bad == "fail"):
        return False
    ShardStage("prepare", "images", split.folder, {}).remove_stale()
    log.info(f"prepare: {split.name} complete, skipped")
    return True


def _without(items: list[Item], names: list[str]) -> list[Item]:
    """The items but those named; of an id that stands twice the last ones go, as `check_listing` blames those."""
    left_out, kept = Counter(names), []
    for item in reversed(items):
        if left_out[item.name]:
            left_out[item.name] -= 1
        else:
            kept.append(item)
    return kept
