"""The rules of `distwsss new`: every row on either side of its limits, the recipes they add up to, the table."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from distwsss.config.load import check_config
from distwsss.planning.facts import DataFacts, MachineFacts
from distwsss.planning.rules import ROWS, Choice, Facts, Row, choose, rules_table
from helpers.paths import REPOSITORY

DATA = DataFacts(
    photographs=40,
    scored=0,
    masks=0,
    longest=4000,
    pixels=12_000_000,
    most_pixels=12_000_000,
    classes={"a": 20, "b": 20},
)
LAPTOP = MachineFacts(cores=2, memory=8.0)
WORKSTATION = MachineFacts(cores=16, memory=64.0, gpus=1, gpu_memory=24.0, gpu="RTX 3090")
CLUSTER = replace(WORKSTATION, gpus=8, gpu_memory=80.0, gpu="H100")


def facts_of(fact: str, value: float, gpu: bool) -> Facts:
    """Facts in which `fact` has `value`."""
    data, machine = DATA, WORKSTATION if gpu else LAPTOP
    if fact == "photographs":
        data = replace(data, photographs=int(value))
    elif fact == "photographs_per_core":
        data = replace(data, photographs=int(value) * machine.cores)
    elif fact == "masks":
        data = replace(data, masks=int(value))
    elif fact == "gpu_memory":
        machine = replace(machine, gpu_memory=value)
    else:
        raise AssertionError(f"{fact}: no way to make it; add one")
    return Facts(data, machine)


LIMITS = [
    pytest.param(row, number, id=f"{row.key}-{row.machine}-{row.bands[number][0]:g}")
    for row in ROWS
    for number in range(len(row.bands) - 1)
]


@pytest.mark.parametrize(("row", "number"), LIMITS)
def test_a_row_changes_at_its_limit(row: Row, number: int) -> None:
    (limit, below, _), (_, above, _) = row.bands[number : number + 2]
    at, before = (facts_of(row.fact, value, row.machine == "gpu") for value in (limit, limit - 1))
    assert getattr(at, row.fact) == limit
    assert row.choose(before) is not None
    assert row.choose(before)[0] == below != above == row.choose(at)[0]  # type: ignore[index]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.key}-{row.machine}")
def test_a_row_is_whole(row: Row) -> None:
    limits = [limit for limit, _, _ in row.bands]
    assert limits == sorted(limits)
    assert limits[-1] == inf
    assert all(why for _, _, why in row.bands)


def tree(choices: list[Choice]) -> dict[str, object]:
    return {choice.key: choice.value for choice in choices}


RECIPES = {
    "a few dozen on a laptop": (DATA, LAPTOP),
    "a few hundred on a laptop": (replace(DATA, photographs=500, classes={"a": 500}), LAPTOP),
    "thousands on one GPU": (replace(DATA, photographs=5000, masks=100), WORKSTATION),
    "tens of thousands on many": (replace(DATA, photographs=80_000), CLUSTER),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("online", [True, False])
def test_every_recipe_is_a_valid_configuration(name: str, online: bool) -> None:
    nested: dict[str, object] = {"name": "a", "data": {"dataset": "folder", "root": "p"}}
    for key, value in tree(choose(Facts(*RECIPES[name]), lambda _: online)).items():
        *parents, last = key.split(".")
        section: dict[str, object] = nested
        for part in parents:
            section = section.setdefault(part, {})  # type: ignore[assignment]
        section[last] = value
    check_config(nested)


def test_without_its_weights_a_network_gives_way_to_the_one_that_comes_along() -> None:
    facts = Facts(*RECIPES["thousands on one GPU"])
    assert tree(choose(facts, lambda _: True))["train.backbone.name"] == "mit_b2"
    offline = tree(choose(facts, lambda _: False))
    assert (offline["train.model"], offline["train.backbone.name"]) == ("deeplab", "lite")
    assert "train.backbone.drop_path" not in offline


def test_a_laptop_gets_no_value_for_gpus() -> None:
    chosen = tree(choose(Facts(DATA, LAPTOP), lambda _: True))
    assert not {"train.model", "hardware.mixed_precision"} & chosen.keys()


def test_the_documents_table_is_the_codes() -> None:
    assert rules_table() in (REPOSITORY / "docs/new.md").read_text(encoding="utf-8")
