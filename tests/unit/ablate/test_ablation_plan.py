"""What an ablation's file becomes: configurations, folders that equal stages share, every problem at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distwsss.ablate.plan import Ablation, plan_ablation
from distwsss.config import Config, load_config
from distwsss.errors import ConfigError
from helpers.paths import CONFIGS
from helpers.small import write_config

Plan = Callable[..., Ablation]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """plan(variants, **keys) -> what the file tmp_path/own.yaml with them wants, its base being `tiny.yaml`."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, paths={"run": None, "shards": None})

    def make(variants: dict[str, Any], overrides: list[str] | None = None, **keys: Any) -> Ablation:
        text = yaml.safe_dump({"base": "tiny.yaml", **keys, "variants": variants}, sort_keys=False)
        (tmp_path / "own.yaml").write_text(text)
        return plan_ablation(tmp_path / "own.yaml", None, overrides)

    return make


def configs(ablation: Ablation) -> dict[str, Config]:
    """Of each variant's first random seed."""
    return {variant.name: variant.rows[0].config for variant in ablation.variants}


def test_every_variant_is_run_with_every_random_seed(plan: Plan, tmp_path: Path) -> None:
    variants = {"a": {"train.loss": "positive"}, "b": {"train": {"loss": "hybrid"}}, "c": {"once": True}}
    ablation = plan(variants, random_seeds={"values": [3, 5]}, set={"train.optim.lr": 0.5})
    found = {variant.name: [(row.seed, row.config.train.seed) for row in variant.rows] for variant in ablation.variants}
    assert found == {"a": [(3, 3), (5, 5)], "b": [(3, 3), (5, 5)], "c": [(3, 3)]}
    assert [config.train.loss for config in configs(ablation).values()] == ["positive", "hybrid", "hybrid"]
    assert {config.train.optim.lr for config in configs(ablation).values()} == {0.5}
    assert configs(ablation)["a"].paths.run == str(tmp_path / "runs/own/a/3")


def test_a_variant_goes_before_what_is_set_for_all(plan: Plan) -> None:
    ablation = plan({"a": {"seed": 4}, "b": {}}, ["seed=3"], set={"seed": 2, "train.holdout": 0.1})
    assert [config.seed for config in configs(ablation).values()] == [4, 3]
    assert configs(ablation)["b"].train.holdout == 0.1


def test_another_key_may_hold_the_random_seeds(plan: Plan) -> None:
    ablation = plan({"a": {}}, random_seeds={"key": "seed", "values": [7, 8]})
    assert [row.config.seed for row in ablation.rows()] == [7, 8]
    assert len({row.config.paths.classifiers for row in ablation.rows()}) == 2


def test_variants_that_are_the_same_are_one_run(plan: Plan) -> None:
    variants = {"a": {}, "b": {"column": "multi"}, "c": {"train.loss": "hybrid"}, "d": {"train.loss": "positive"}}
    ablation = plan(variants)
    assert [row.run.parent.name for row in ablation.rows()] == ["a", "d"]
    assert [variant.column for variant in ablation.variants] == ["single", "multi", "single", "single"]


@pytest.mark.parametrize(
    ("keys", "classifiers", "shards"),
    [
        ({"train.optim.lr": 0.5}, True, True),
        ({"evaluate.scales": [1.0]}, True, True),
        ({"hardware.workers": 1}, True, True),
        ({"seeds.alpha": 3.0}, True, False),
        ({"seeds.vote_on": ["0.10-1.00", "0.10-1.20", "0.30-1.20"]}, True, True),  # votes lie beside each other
        ({"seeds.label": "vote"}, True, True),
        ({"classify.dropouts": [0.1, 0.2]}, True, False),
        ({"classify.optim.lr": 0.5}, False, False),
        ({"prepare.longest_side": 256}, False, False),
        ({"data.shapes.seed": 100}, False, False),
        ({"seed": 9}, False, False),
    ],
    ids=str,
)
def test_what_is_made_of_the_same_lies_in_one_place(
    plan: Plan, tmp_path: Path, keys: dict[str, Any], classifiers: bool, shards: bool
) -> None:
    """The base's own places where nothing differs, else others."""
    found = configs(plan({"base": {}, "other": keys}))
    own = found["base"].paths
    assert (own.shards, own.classifiers) == (str(tmp_path / "shards/tiny"), str(tmp_path / "runs/tiny/classify"))
    assert (found["other"].paths.shards == own.shards) == shards
    assert (found["other"].paths.classifiers == own.classifiers) == classifiers


def test_a_file_of_weights_is_part_of_what_classifiers_are_made_of(plan: Plan) -> None:
    keys = [{"classify.backbone.pretrained": True, "classify.backbone.weights": name} for name in ("a.pth", "b.pth")]
    found = configs(plan(dict(zip("ab", keys, strict=True)), set={"classify.backbone.name": "resnet18"}))
    assert found["a"].paths.classifiers != found["b"].paths.classifiers
    assert found["a"].paths.shards != found["b"].paths.shards


def test_ablations_of_one_base_share_what_is_equal(plan: Plan) -> None:
    keys = {"seeds.alpha": 3.0}
    variant, everywhere = configs(plan({"a": keys}))["a"], configs(plan({"b": {}}, set=keys))["b"]
    assert variant.paths.shards == everywhere.paths.shards
    assert variant.paths.classifiers == everywhere.paths.classifiers


def test_where_the_data_lie_makes_no_other_shards(plan: Plan, tmp_path: Path) -> None:
    found = configs(plan({"a": {}}, set={"data.root": "elsewhere"}))
    assert found["a"].paths.shards == str(tmp_path / "shards/tiny")


@pytest.mark.parametrize("labels", ["truth", "vote"])
def test_true_masks_need_no_seeds(plan: Plan, labels: str) -> None:
    (row,) = plan({"a": {"train.labels": labels}}).rows()
    assert row.stages == ("prepare", *(("classify", "seeds") if labels == "vote" else ()), "train", "evaluate")


def test_the_labels_are_scored_without_a_segmenter(plan: Plan) -> None:
    ablation = plan({"vote": {}, "one": {"column": "0.30-1.20"}}, score="train")
    assert [row.stages for row in ablation.rows()] == [("prepare", "classify", "seeds", "stats")]
    assert [variant.column for variant in ablation.variants] == ["aggregate", "0.30-1.20"]


def test_saliency_maps_are_a_stage_of_the_rows_that_use_them(plan: Plan) -> None:
    """They separate the seeds' shards, not the classifiers that do not learn from them."""
    unary = {"saliency.folder": "maps", "seeds.saliency_unary": True}
    ablation = plan({"tags": {}, "unary": unary, "other": {**unary, "saliency.folder": "others"}})
    tags, one, other = ablation.rows()
    assert ("saliency" in tags.stages, one.stages[:3]) == (False, ("prepare", "saliency", "classify"))
    assert len({row.config.paths.shards for row in (tags, one, other)}) == 3
    assert len({row.config.paths.classifiers for row in (tags, one, other)}) == 1


def test_problems_of_the_file_are_said_at_once(plan: Plan) -> None:
    with pytest.raises(ConfigError) as error:
        plan({"a": {}}, bsaeline="a", score="validation", random_seeds={"value": [0]})
    for text in (
        "own.yaml: not a valid ablation (3 problems)",
        "`bsaeline`: unknown key; did you mean `baseline`?",
        "`random_seeds.value`: unknown key; did you mean `values`?",
        "`score`: found 'validation'",
    ):
        assert text in str(error.value)
    with pytest.raises(ConfigError) as error:
        plan({"a/b": {"once": 1}, "c": {"column": "singel"}}, baseline="d", random_seeds={"values": [1, 1]})
    for text in (
        "(5 problems)",
        "`variants.a/b`",
        "`baseline`: found 'd'",
        "[1, 1]",
        "`variants.a/b.once`",
        "'singel'",
    ):
        assert text in str(error.value)


def test_problems_of_the_configurations_are_said_at_once_with_their_variants(plan: Plan) -> None:
    with pytest.raises(ConfigError) as error:
        plan({"a": {"train.los": "hybrid"}, "b": {"train.loss": "positiv"}, "c": {"paths.run": "x", "seed": 1}})
    said = str(error.value)
    assert "(3 problems)" in said
    assert "own.yaml: variants.a: `train.los`: unknown key; did you mean" in said
    assert "own.yaml: variants.b: `train.loss`: found 'positiv'" in said
    assert "own.yaml: variants.c: `paths`: found in a variant" in said


def test_a_column_that_will_not_be_there_is_named(plan: Plan) -> None:
    with pytest.raises(
        ConfigError, match=r"variants\.a: `column`: found '0\.05-1\.00'; allowed: aggregate, clean, 0\.10"
    ):
        plan({"a": {"column": "0.05-1.00"}}, score="train")
    with pytest.raises(ConfigError, match="found 'single_crf'; allowed: single, multi"):
        plan({"a": {}}, column="single_crf", set={"evaluate.crf": None})


SHIPPED = sorted((CONFIGS / "ablations").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_ships_is_valid_and_found_by_name(path: Path) -> None:
    ablation = plan_ablation(f"ablations/{path.stem}")
    assert ablation.file.name == path.stem
    assert len(ablation.rows()) >= 1
    for row in ablation.rows():
        assert load_config(CONFIGS / f"{ablation.file.base}.yaml").data.dataset == row.config.data.dataset


def test_the_papers_tables_ship_for_every_base() -> None:
    names = {path.stem for path in SHIPPED}
    assert {f"{base}_table{n}" for base in ("demo", "voc_mini", "voc12") for n in (5, 6, 7, 8)} <= names
