"""The stage `saliency`: image shard i of train -> saliency shard i, by a network or from a folder. Called by
`pipeline`.

A chunk of work is a shard (`saliency.chunk`), done by local processes. Finished shards are recorded beside them, so
that a rerun makes only what is missing; the index comes last. A folder's maps are all checked before the
first is written.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

from distwsss.config import Config
from distwsss.data.made_with import check_images
from distwsss.data.saliency import map_files, saliency_parameters, source_digest
from distwsss.data.shards.format import INDEX, name_from_key
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.data.shards.reader import iter_shard, read_json_field
from distwsss.data.shards.stage import ShardStage
from distwsss.models.weights.saliency import network_file
from distwsss.runtime.artifacts import free_space_check, is_done, read_json
from distwsss.runtime.layout import images_dir, report_file, saliency_dir
from distwsss.runtime.onnx import open_network
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import log, track
from distwsss.saliency.chunk import MapTask, saliency_shard
from distwsss.saliency.folder import INVERTED, Found, MapFile, check_maps, map_file, refuse

MAP_BYTES = 20_000  # of one map's PNG and its place in the shard: those of u2netp for 375 pixels have 11,000
UNUSED = "saliency: nothing uses these maps; seeds.saliency_unary, seeds.saliency_voter and classify.saliency would"


def make_saliency(config: Config, remake: bool = False) -> None:
    """Saliency shards of the train split, to shards/NAME/saliency/MODEL.

    `remake`: those of other images, another network or other maps are replaced instead of being refused.
    Raises ConfigError where the configuration names neither network nor folder, CheckpointError for a network's file,
    DataError for a folder's maps that cannot be used, all in one report.
    """
    folder = saliency_dir(config)
    images = load_index(images_dir(config, "train"), "images")
    check_images(config, images)
    stage = ShardStage("saliency", "saliency", folder, saliency_parameters(config, images, _digest(config, images)))
    if is_done(folder / INDEX, stage.parameters, "saliency", remake):
        stage.remove_stale()
        log.info("saliency: complete, skipped")
    else:
        _make(config, images, stage, remake)
    if not config.saliency_users():
        log.info(UNUSED)


def _digest(config: Config, images: ShardIndex) -> str:
    """`source_digest`; raises what says that network or folder is missing."""
    section, digest = config.saliency, source_digest(config, images)
    if digest is None and section.model is not None:
        network_file(section.model)
    elif digest is None:
        map_files(section.folder or "", images)
    return digest or ""


def _make(config: Config, images: ShardIndex, stage: ShardStage, remake: bool) -> None:
    files = _checked_files(config, images)
    network = network_file(config.saliency.model) if config.saliency.model else None
    if network:
        open_network(network)  # says what is wrong with it before anything is written
    count = len(images.shards)
    free_space_check(stage.folder, len(images) * MAP_BYTES, "saliency")
    stage.remove_stale()
    if remake:
        report_file(config).unlink(missing_ok=True)  # it shows what is replaced
        stage.reopen(count)
    todo = [shard for shard in range(count) if stage.finished(shard, remake) is None]
    if len(todo) < count:
        log.info(f"saliency: {count - len(todo)} of {count} shards are there already")
    options = (config.saliency.normalise, config.data.max_pixels)
    tasks = [MapTask(images.folder, shard, network, files[shard] if files else (), *options) for shard in todo]
    with closing(spread(saliency_shard, tasks, config.hardware.workers)) as made:
        for task, result in track(made, len(todo), "saliency", unit="shard"):
            stage.publish(task.shard, result.packed, means=result.means, flat=result.flat)
    _complete(config, images, stage)


def _complete(config: Config, images: ShardIndex, stage: ShardStage) -> None:
    records = [read_json(stage.record_path(shard)) for shard in range(len(images.shards))]
    mean = sum(record["means"] for record in records) / len(images)
    flat = [name for record in records for name in record["flat"]]
    stage.complete(len(images.shards), images.classes, {"mean": mean, "flat": flat})
    name = config.saliency.name
    log.info(f"saliency: {len(images)} maps ({name}), their mean {mean:.2f} of 1")
    if flat:
        some = ", ".join(flat[:5]) + ", ..." * (len(flat) > 5)
        log.warning(f"saliency: {name} finds nothing in {len(flat)} photographs ({some}): their maps are 0 everywhere")


def _checked_files(config: Config, images: ShardIndex) -> list[tuple[MapFile, ...]]:
    """Of each shard the map files, all of which can be used; none where a network makes the maps."""
    folder = config.saliency.folder
    if folder is None:
        return []
    known = map_files(folder, images)
    shards = [_files_of(images, shard, known) for shard in range(len(images.shards))]
    work, found = partial(check_maps, config.data.max_pixels), Found()
    with closing(spread(work, shards, config.hardware.workers)) as checked:
        for _, part in track(checked, len(shards), "saliency: checking", unit="shard"):
            found.add(part)
    refuse(found.problems, len(images), str(Path(folder).absolute()))
    mean = found.means / len(images)
    if mean > INVERTED:
        log.warning(
            f"saliency: {folder}: the mean of all maps is {mean:.2f} of 1: inverted? White must be what stands out, "
            "commonly less than half of a photograph; turn the values around if it is the background"
        )
    return shards


def _files_of(images: ShardIndex, shard: int, known: dict[str, list[Path]]) -> tuple[MapFile, ...]:
    return tuple(
        map_file(name_from_key(key), known[name_from_key(key)], read_json_field(members["json"], f"{key}.json"))
        for key, members in iter_shard(images, shard, ["json"])
    )
