"""`seeds.vote_on: selected`: the seeds that are the best of a class on the train masks. Called by `seeds.generate`.

The masks decide only who votes, on the ids named in runs/NAME/seeds/selected.json: those of `data.tuning_ids`, or all
with a mask.
"""

from __future__ import annotations

from typing import Any

from distwsss.data.holdout import tuning_keys
from distwsss.data.scoring import add_counts, count_tasks, shard_counts
from distwsss.data.shards.format import name_from_key
from distwsss.data.shards.index import load_index
from distwsss.maths.miou import class_counts, iou_of
from distwsss.maths.select import select_seeds
from distwsss.runtime.artifacts import fingerprint, read_json, write_json
from distwsss.runtime.layout import seeds_dir, selected_file
from distwsss.runtime.pool import spread
from distwsss.runtime.progress import log
from distwsss.seeds.plan import SeedsPlan


def known_voters(plan: SeedsPlan) -> SeedsPlan:
    """The plan with the voters that an earlier selection of these seeds found; unchanged without one."""
    path = selected_file(plan.config)
    if plan.vote_task is not None or not path.is_file():
        return plan
    record = read_json(path)
    return plan.with_voters(record["selected"]) if record["parameters"] == _parameters(plan) else plan


def select_voters(plan: SeedsPlan) -> SeedsPlan:
    """The plan with its voters; selected now where no record knows them. Without any mask all vote, after a warning."""
    plan = known_voters(plan)
    if plan.vote_task is not None:
        return plan
    config, ids = plan.config, _ids(plan)
    names = config.possible_voters()
    if ids:
        seeds = load_index(seeds_dir(config), "seeds")
        tasks = count_tasks(plan.images, None, seeds, set(ids))
        counts = add_counts([found for _, found in spread(shard_counts, tasks, config.hardware.workers)])
        iou = dict(zip(config.map_names(), iou_of(class_counts(counts.seeds)), strict=True))
        names = select_seeds({name: list(iou[name]) for name in names})
        source = "data.tuning_ids" if config.data.tuning_ids else "all that have one"
        log.info(f"vote: {', '.join(names)} vote, selected by the masks of {len(ids)} photographs ({source})")
    else:
        log.warning("vote: seeds.vote_on is `selected`, but there are no masks to select by: all seeds vote")
    selected = {"seeds": names, "ids": fingerprint(ids), "truth": plan.images.extra.get("truth")}
    record = {"parameters": _parameters(plan), "selected": selected, "ids": [name_from_key(key) for key in ids]}
    write_json(selected_file(config), record)
    return plan.with_voters(selected)


def _ids(plan: SeedsPlan) -> list[str]:
    """The shard keys whose masks select."""
    masked = set(plan.images.with_truth().keys())
    return sorted(masked & tuning_keys(plan.config, plan.images) if plan.config.data.tuning_ids else masked)


def _parameters(plan: SeedsPlan) -> dict[str, Any]:
    inputs = {"seeds": fingerprint(plan.seeds.parameters), "truth": plan.images.extra.get("truth")}
    return {**inputs, "ids": fingerprint(_ids(plan))}
