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


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!p]*/*.yaml")), ids=lambda path: path.name)
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
    write(tmp_path, "name: late\nseed: 4\n", "late.yaml")
    both = write(tmp_path, "base: [base.yaml, late.yaml]\nseed: 5\n", "both.yaml")
    assert (load_config(both).name, load_config(both).seed, load_config(both).train.loss) == ("late", 5, "positive")
    write(tmp_path, "base: sub/c.yaml\n", "base.yaml")
    with pytest.raises(ConfigError, match="found itself again"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"`base`: found 3; allowed: YAML files"):
        load_config(write(tmp_path, "base: 3\n" + BASE))
    write(tmp_path, BASE + "train: {loss: hybird}\n", "base.yaml")
    with pytest.raises(ConfigError, match=r"base\.yaml: `train\.loss`: found 'hybird'"):
        load_config(path)


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


def test_a_file_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: t\ndata: {dataset: shapes}  # é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: found bytes that are not UTF-8 \(at 35\)"):
        load_config(latin)
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(write(tmp_path), profile=str(latin))
    with pytest.raises(ConfigError, match=rf"--config {tmp_path}: no such file; looked for {tmp_path};"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match=r"--profile x+: no such file"):
        load_config(write(tmp_path), profile="x" * 300)


def test_yaml_traps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stands twice"):
        load_config(write(tmp_path, BASE + "seed: 1\nseed: 2\n"))
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write(tmp_path, "name: !!python/object/apply:os.system ['true']\n"))
    assert load_config(write(tmp_path), overrides=["train.optim.lr=1e-3"]).train.optim.lr == 1e-3
    assert load_config(write(tmp_path), overrides=["hardware.mixed_precision=no"]).hardware.mixed_precision == "no"
    ids = load_config(write(tmp_path), overrides=["data.tuning_ids=[2007_000032]"]).data.tuning_ids
    assert ids == ["2007_000032"]
    assert load_config(write(tmp_path), overrides=["seeds.vote_on=null", "seed=010"]).seed in (8, 10)
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_config(tmp_path / "missing.yaml")


def test_dump_is_the_resolved_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), overrides=["seeds.crf=irn", "train.temperature=null"])
    again = load_config(write(tmp_path, dump_yaml(config), "again.yaml"))
    assert again == config
    assert yaml.safe_load(dump_yaml(config))["seeds"]["crf"]["bilateral_sxy"] == 50.0


def test_named_and_spelled_out_crf_parameters(tmp_path: Path) -> None:
    assert load_config(write(tmp_path), overrides=["seeds.crf=deeplab_v2"]).seeds.crf == CRF_PARAMS["deeplab_v2"]
    three = load_config(write(tmp_path), overrides=["evaluate.crf={iterations: 3}"]).evaluate.crf
    assert three == CRFParams(**{**CRF_PARAMS["deeplab_v2"].model_dump(), "iterations": 3})
    assert load_config(write(tmp_path), overrides=["evaluate.crf=null"]).evaluate.crf is None


def test_parameters_leave_out_what_cannot_change_a_result(tmp_path: Path) -> None:
    plain = load_config(write(tmp_path))
    neutral = load_config(
        write(tmp_path), overrides=["train.optim.log_every=3", "train.optim.keep_last=9", "train.optim.save_every=1%"]
    )
    assert neutral.train.parameters() == plain.train.parameters()
    changed = load_config(write(tmp_path), overrides=["train.optim.momentum=0.5"])
    assert changed.train.parameters() != plain.train.parameters()
    assert "root" not in plain.data.parameters()


def test_paper_defaults_are_the_methods(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert config.seed_names() == [f"{p}-{s}" for p in ("0.05", "0.10", "0.20", "0.30") for s in ("1.00", "1.20")]
    crf = config.seeds.crf
    assert (crf.iterations, crf.gaussian_sxy, crf.gaussian_compat) == (10, 3.0, 3.0)
    assert (crf.bilateral_sxy, crf.bilateral_srgb, crf.bilateral_compat, crf.clip) == (80.0, 13.0, 10.0, 1e-5)
    assert config.vote_threshold() == 8


@pytest.mark.parametrize(
    ("text", "steps"), [("7 steps", 7), ("1 step", 1), ("2 epochs", 25), ("0.5 epochs", 6), ("10%", 20), ("0 steps", 0)]
)
def test_durations(text: str, steps: int) -> None:
    assert duration_to_steps(text, samples=100, global_batch=8, total_steps=200) == steps
