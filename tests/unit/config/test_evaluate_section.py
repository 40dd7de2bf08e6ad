"""The keys of `evaluate`: CRF parameters by name against the published table, sliding windows, old fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distwsss.config.crf import CRF_PARAMS
from distwsss.config.load import check_config, load_config
from distwsss.config.stages import EvaluateSection
from distwsss.errors import ConfigError

TABLE = {  # name: Gaussian sxy, compat, bilateral sxy, srgb, compat, iterations
    "cam_label": (3, 3, 80, 13, 10, 10),
    "ppc": (3, 3, 80, 13, 10, 5),
    "irn": (3, 3, 50, 5, 10, 10),
    "puzzlecam": (3, 3, 50, 5, 10, 1),
    "toco_coco": (3, 3, 36, 3, 4, 10),
    "deeplab_v2": (1, 3, 67, 3, 4, 10),
    "codebase": (3, 3, 32, 13, 10, 1),
    "afa": (3, 3, 64, 5, 4, 10),
    "toco": (1, 1, 121, 5, 4, 10),
    "mctformer": (4, 3, 83, 5, 3, 10),
}


def section(**keys: Any) -> EvaluateSection:
    return check_config({"name": "x", "data": {"dataset": "shapes"}, "evaluate": keys}).evaluate


def test_no_name_without_a_row_of_the_table() -> None:
    assert set(CRF_PARAMS) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_crf_parameters_are_the_published_ones(name: str) -> None:
    crf = section(crf=name).crf
    assert crf is not None
    found = (crf.gaussian_sxy, crf.gaussian_compat, crf.bilateral_sxy, crf.bilateral_srgb, crf.bilateral_compat)
    assert (*found, crf.iterations) == TABLE[name]
    assert all(isinstance(value, float) for value in found)  # 3 and 3.0 are two fingerprints
    assert crf.clip == 1e-5


def test_single_numbers_over_a_name_are_over_that_names(tmp_path: Path) -> None:
    base, file = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("name: x\ndata: {dataset: shapes}\nevaluate: {crf: toco}\nseeds: {crf: irn}\n", encoding="utf-8")
    file.write_text("base: base.yaml\nevaluate: {crf: {iterations: 5}}\n", encoding="utf-8")
    config = load_config(file, overrides=["evaluate.crf.bilateral_srgb=7", "seeds.crf.gaussian_sxy=2"])
    assert config.evaluate.crf is not None
    assert list(config.evaluate.crf.model_dump().values()) == [5, 1, 1, 121, 7, 4, 1e-5]
    assert list(config.seeds.crf.model_dump().values()) == [10, 2, 3, 50, 5, 10, 1e-5]


def test_an_unknown_name_over_a_name_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {dataset: shapes}\nevaluate: {crf: toco}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"evaluate\.crf.*'toko'"):
        load_config(file, overrides=["evaluate.crf=toko"])


def test_an_unknown_name_is_answered_with_all_of_them() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.crf.*'densecrf'") as caught:
        section(crf="densecrf")
    for name in TABLE:
        assert name in str(caught.value)


def test_at_their_defaults_the_windows_keys_leave_fingerprints_alone() -> None:
    old = {"scales", "crf", "probabilities", "average", "checkpoint"}
    assert set(section().parameters()) == old
    slid = section(mode="slide", crop_size=512, stride=341).parameters()
    assert {key: slid[key] for key in set(slid) - old} == {"mode": "slide", "crop_size": 512, "stride": 341}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mode": "slide", "stride": 341}, "`crop_size` is missing; allowed for mode slide"),
        ({"mode": "slide", "crop_size": 512}, "`stride` is missing; allowed for mode slide"),
        ({"crop_size": 512}, "`crop_size` is 512, but `mode` is 'whole'; allowed: null, or mode: slide"),
        ({"stride": 341}, "`stride` is 341, but `mode` is 'whole'"),
        ({"mode": "slide", "crop_size": 512, "stride": 513}, "`stride` is 513.*seen by none; allowed: 1..512"),
    ],
)
def test_windows_that_cannot_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        section(**keys)
