"""The configuration: every problem at once, strictness, overlays, fingerprints."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distwsss.config import load_config
from distwsss.config.crf import CRF_PARAMS, CRFParams
from distwsss.config.load import dump_yaml
from distwsss.config.section import duration_to_steps
from distwsss.errors import ConfigError
from helpers.paths import CONFIGS

BASE = "name: t\ndata: {dataset: shapes}\n"


def write(folder: Path, text: str = BASE, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# of all folders but `profiles` and `ablations`, which hold no whole configurations
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!ap]*/*.yaml")), ids=lambda path: path.name)
def test_every_configuration_in_the_repository_is_valid(path: Path) -> None:
    assert load_config(path).name


@pytest.mark.parametrize("path", sorted((CONFIGS / "profiles").glob("*.yaml")), ids=lambda path: path.name)
def test_profiles_overlay_hardware_only(path: Path, tmp_path: Path) -> None:
    plain, overlaid = load_config(write(tmp_path)), load_config(write(tmp_path), profile=str(path))
    assert overlaid.hardware != plain.hardware
    assert overlaid.model_copy(update={"hardware": plain.hardware}) == plain


def test_a_file_stands_on_its_base(tmp_path: Path) -> None:
    write(tmp_path, BASE + "seed: 3\ntrain: {loss: positive, optim: {lr: 0.5}}\n", "base.yaml")
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub", "base: ../base.yaml\nname: other\ntrain: {optim: {lr: 0.25, momentum: 0.0}}\n")
    config = load_config(path)
    assert (config.name, config.seed, config.train.loss) == ("other", 3, "positive")
    assert (config.train.optim.lr, config.train.optim.momentum) == (0.25, 0.0)


def test_of_several_bases_a_later_one_is_over_an_earlier_one(tmp_path: Path) -> None:
    write(tmp_path, BASE + "seed: 3\ntrain: {loss: positive}\n", "base.yaml")
    write(tmp_path, "name: late\nseed: 4\n", "late.yaml")
    both = load_config(write(tmp_path, "base: [base.yaml, late.yaml]\nseed: 5\n", "both.yaml"))
    assert (both.name, both.seed, both.train.loss) == ("late", 5, "positive")


def test_bases_in_a_circle_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, "base: c.yaml\n", "base.yaml")
    with pytest.raises(ConfigError, match="found itself again"):
        load_config(write(tmp_path, "base: base.yaml\n"))


def test_a_base_that_is_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`base`: found 3; allowed: YAML files"):
        load_config(write(tmp_path, "base: 3\n" + BASE))


def test_a_problem_of_the_base_is_said_to_be_its(tmp_path: Path) -> None:
    write(tmp_path, BASE + "train: {loss: hybird}\n", "base.yaml")
    with pytest.raises(ConfigError, match=r"base\.yaml: `train\.loss`: found 'hybird'"):
        load_config(write(tmp_path, "base: base.yaml\n"))


def test_all_problems_in_one_report_with_source_key_and_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "train:\n  loss: hybird\n  optim: {lrr: 1}\nseeds: {alpha: -1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=["classify.dropouts=[1.5]", "nme=3", "train.optim.duration=forever"])
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "6 problems" in message
    assert f"{path}: `train.loss`: found 'hybird'" in message
    assert "did you mean `hybrid`?" in message
    assert f"{path}: `train.optim.lrr`: unknown key; did you mean `lr`?" in message
    assert "`seeds.alpha`: found -1" in message
    assert "--set classify.dropouts=[1.5]: `classify.dropouts.0`: found 1.5" in message
    assert "`nme`: unknown key; did you mean `name`?" in message
    assert "`train.optim.duration`: found 'forever'; allowed: a number" in message


SECTIONS = [
    "", "paths.", "hardware.", "data.", "data.shapes.", "prepare.", "classify.", "classify.backbone.",
    "classify.augment.", "classify.optim.", "seeds.", "seeds.crf.", "train.", "evaluate.", "report.",
]  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
def test_unknown_keys_are_refused_at_every_level(section: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        load_config(write(tmp_path), overrides=[f"{section}nonsense=1"])


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("seed=1.5", "seed"), ("seed='3'", "seed"), ("train.optim.lr=-1", "lr"), ("seeds.scales=[]", "scales"),
        ("train.optim.global_batch=true", "global_batch"), ("seeds.vote_on=[0.05-9.00]", "vote_on"),
        ("seeds.threshold=9", "threshold"), ("train.vote_threshold=9", "vote_threshold"),
        ("train.labels=teacher", "labels"), ("seeds.crf=nosuch", "crf"), ("name=a/b", "name"),
        ("data.classes=[cat, cat]", "classes"), ("train.augment.resize=[2.0, 1.0]", "resize"),
        ("classify.optim.duration=10%%", "duration"), ("seeds.scales=[1.0, 1.001]", "collide"),
        ("classify.dropouts=[0.1, 0.101]", "classify.dropouts.*collide"),
        ("classify.optim.duration=10%", "`classify.optim.duration`: found '10%'; allowed: a number of steps or epochs"),
        ("train.optim.duration=0 steps", "`train.optim.duration`"), ("train.optim.duration=0.5 steps", "duration"),
        ("train.optim.duration=0 epochs", "`train.optim.duration`"),
        ("train.backbone={name: tiny, pretrained: false}", "`train.backbone.output_stride`: found 16; .*tiny.*: 8"),
        ("train.backbone={name: tiny, output_stride: 8}", "`train.backbone.pretrained`: found True; .*tiny.*: False"),
        ("classify.backbone.name=tiny", "2 problems"),
        ("train.augment.color_jitter=[0.3, 0.3, 0.3, 0.6]", "`train.augment.color_jitter`: .*hue at most 0.5"),
        ("classify.augment.color_jitter=[-0.1, 0, 0, 0]", "`classify.augment.color_jitter`: .*each 0 or more"),
        ("evaluate.checkpoint=BEST", "--set .*`evaluate.checkpoint`: found 'BEST', but train.evaluate_every is None"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(override: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=found):
        load_config(write(tmp_path), overrides=[override])


def test_sections_that_do_not_fit_are_all_reported_with_source_and_key(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + "seeds: {vote_on: [0.05-1.00, 0.05-1.00, 0.05-9.00], threshold: 9, keep_maps: false}")
    with pytest.raises(ConfigError) as caught:
        load_config(
            path,
            overrides=[
                "train.labels=seed:0.05-7.00", "train.vote_threshold=8", "evaluate.checkpoint=BEST",
                "classify.backbone={name: tiny, pretrained: false, output_stride: 8}", "seeds.output_stride=16",
            ],
        )  # fmt: skip
    message = str(caught.value)
    assert "8 problems" in message
    for line in (
        f"{path}: `seeds.vote_on`: found '0.05-1.00' 2 times",
        f"{path}: `seeds.vote_on`: found '0.05-9.00'; allowed: 0.05-1.00",
        f"{path}: `seeds.threshold`: found 9, but only 3 seeds vote",
        "--set train.vote_threshold=8: `train.vote_threshold`: found 8, but only 3 seeds vote",
        "--set train.labels=seed:0.05-7.00: `train.labels`: found seed '0.05-7.00'",
        f"{path}: `seeds.keep_maps`: found False, but train.labels is 'seed:0.05-7.00'",
        "--set evaluate.checkpoint=BEST: `evaluate.checkpoint`: found 'BEST'",
        "--set seeds.output_stride=16: `seeds.output_stride`: found 16; allowed for backbone `tiny`: null or 8",
    ):
        assert line in message


def test_keys_that_fit_are_accepted(tmp_path: Path) -> None:
    tiny = "classify.backbone={name: tiny, pretrained: false, output_stride: 8}"
    found = load_config(
        write(tmp_path), overrides=[tiny, "seeds.output_stride=8", "evaluate.checkpoint=BEST",
                                    "train.evaluate_every=10%", "train.augment.color_jitter=[2.0, 0, 0, 0.5]",
                                    "train.optim.duration=0.5 epochs", "seeds.keep_maps=false"]
    )  # fmt: skip
    assert found.train.augment.color_jitter == [2.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize("as_profile", [False, True], ids=["--config", "--profile"])
def test_a_file_that_is_not_utf8_is_one_message(as_profile: bool, tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: t\ndata: {dataset: shapes}  # é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: found bytes that are not UTF-8 \(at 35\)"):
        load_config(write(tmp_path) if as_profile else latin, profile=str(latin) if as_profile else None)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--config {tmp_path}: no such file; looked for {tmp_path};"):
        load_config(tmp_path)


def test_a_name_longer_than_a_file_may_have_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--profile x+: no such file"):
        load_config(write(tmp_path), profile="x" * 300)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_config(tmp_path / "missing.yaml")


def test_a_key_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stands twice"):
        load_config(write(tmp_path, BASE + "seed: 1\nseed: 2\n"))


def test_yaml_makes_no_python_objects(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write(tmp_path, "name: !!python/object/apply:os.system ['true']\n"))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.optim.lr=1e-3", 1e-3), ("hardware.mixed_precision=no", "no"), ("seeds.vote_on=null", None),
        ("data.tuning_ids=[2007_000032]", ["2007_000032"]), ("seed=010", 10),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(override: str, value: object, tmp_path: Path) -> None:
    """YAML 1.1 makes text, False and a number of the first, the second and the id, and 8 of 010."""
    found = load_config(write(tmp_path), overrides=[override]).model_dump()
    for part in override.partition("=")[0].split("."):
        found = found[part]
    assert found == value


def test_dump_is_the_resolved_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), overrides=["seeds.crf=irn", "train.temperature=null"])
    again = load_config(write(tmp_path, dump_yaml(config), "again.yaml"))
    assert again == config
    assert yaml.safe_load(dump_yaml(config))["seeds"]["crf"]["bilateral_sxy"] == 50.0


def test_crf_parameters_by_name(tmp_path: Path) -> None:
    assert load_config(write(tmp_path), overrides=["seeds.crf=deeplab_v2"]).seeds.crf == CRF_PARAMS["deeplab_v2"]


def test_single_crf_parameters_are_over_the_sections_default(tmp_path: Path) -> None:
    three = load_config(write(tmp_path), overrides=["evaluate.crf={iterations: 3}"]).evaluate.crf
    assert three == CRFParams(**{**CRF_PARAMS["deeplab_v2"].model_dump(), "iterations": 3})


def test_null_is_no_crf(tmp_path: Path) -> None:
    assert load_config(write(tmp_path), overrides=["evaluate.crf=null"]).evaluate.crf is None


@pytest.mark.parametrize("neutral", ["log_every=3", "keep_last=9", "save_every=1%", "keep_optimizer=true"])
def test_parameters_leave_out_what_cannot_change_a_result(neutral: str, tmp_path: Path) -> None:
    plain, other = (load_config(write(tmp_path), overrides=given) for given in ([], [f"train.optim.{neutral}"]))
    assert other.train != plain.train
    assert other.train.parameters() == plain.train.parameters()


def test_parameters_hold_what_can_change_a_result(tmp_path: Path) -> None:
    plain, other = (load_config(write(tmp_path), overrides=given) for given in ([], ["train.optim.momentum=0.5"]))
    assert other.train.parameters() != plain.train.parameters()


def test_parameters_leave_out_where_the_data_lie(tmp_path: Path) -> None:
    assert "root" not in load_config(write(tmp_path)).data.parameters()


def test_the_default_seeds_are_the_methods(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert config.seed_names() == [f"{p}-{s}" for p in ("0.05", "0.10", "0.20", "0.30") for s in ("1.00", "1.20")]


def test_by_default_all_seeds_must_agree(tmp_path: Path) -> None:
    assert load_config(write(tmp_path)).vote_threshold() == 8


def test_the_default_crf_of_seeds_is_the_methods(tmp_path: Path) -> None:
    crf = load_config(write(tmp_path)).seeds.crf
    assert (crf.iterations, crf.gaussian_sxy, crf.gaussian_compat) == (10, 3.0, 3.0)
    assert (crf.bilateral_sxy, crf.bilateral_srgb, crf.bilateral_compat, crf.clip) == (80.0, 13.0, 10.0, 1e-5)


@pytest.mark.parametrize(
    ("text", "steps"), [("7 steps", 7), ("1 step", 1), ("2 epochs", 25), ("0.5 epochs", 6), ("10%", 20), ("0 steps", 0)]
)
def test_durations(text: str, steps: int) -> None:
    assert duration_to_steps(text, samples=100, global_batch=8, total_steps=200) == steps
