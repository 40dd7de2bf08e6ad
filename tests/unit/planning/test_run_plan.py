"""The plan of a run while a stage works: what the stage says of itself corrects it, and is said when it matters."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from distwsss.planning import plan as module
from distwsss.planning.plan import Plan
from distwsss.runtime.artifacts import write_json
from distwsss.runtime.layout import classifier_dir, done_file
from distwsss.runtime.progress import expect, track
from helpers.small import make_config

RULES = {"classify": 100.0, "seeds": 300.0, "train": 200.0}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Of two classifiers, seeds and a segmenter; nothing is done. Lines may follow each other at once."""
    monkeypatch.setattr(module, "QUIET", 0.0)
    return Plan(make_config(tmp_path), list(RULES), RULES, dict.fromkeys(RULES, False))


def left_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.message for entry in caplog.records if entry.message.startswith("left:")]


def test_a_stage_s_own_rate_corrects_what_follows(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "distwsss"), plan.stage("classify"):
        expect("classify 0.10", 150.0, 200.0)  # and another one of 200 s
        assert plan.seconds("classify") == pytest.approx(350)
        assert plan.seconds("train") == pytest.approx(200 * 3.5, rel=0.01)
        assert plan.seconds("seeds") == 300
        assert len(left_lines(caplog)) == 1
        assert "classify about 6 min" in left_lines(caplog)[0]
        expect("classify 0.10", 149.0, 200.0)  # as it was said
        expect("count of labels", 1000.0, 1000.0)  # not the stage itself
        assert len(left_lines(caplog)) == 1
    assert "classify" not in left_lines(caplog)[1]


def test_classifiers_that_are_done_are_not_waited_for(plan: Plan) -> None:
    config = plan.config
    write_json(done_file(classifier_dir(config, 0.3)), {})
    with plan.stage("classify"):
        expect("classify 0.10", 50.0, 60.0)
        assert plan.seconds("classify") == pytest.approx(50)


def test_what_was_begun_says_nothing_of_the_others(plan: Plan) -> None:
    plan.begun.add("classify")
    with plan.stage("classify"):
        expect("classify 0.30", 10.0, 1000.0)
        assert plan.seconds("classify") == 10
    assert plan.seconds("train") == 200


def test_lines_keep_their_distance(plan: Plan, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(module, "QUIET", 60.0)
    with caplog.at_level(logging.INFO, "distwsss"), plan.stage("classify"):
        expect("classify 0.30", 1000.0, 2000.0)
    assert len(left_lines(caplog)) == 1  # at the end of the stage


def test_nobody_hears_after_a_stage_even_a_failed_one(plan: Plan) -> None:
    with pytest.raises(RuntimeError), plan.stage("classify"):
        raise RuntimeError
    expect("classify 0.30", 1000.0, 2000.0)
    assert plan.seconds("classify") == 100


def test_progress_of_items_is_heard(plan: Plan) -> None:
    plan.left = ["seeds"]
    with plan.stage("seeds"):
        for number in track(range(100), 100, "seeds", every=0.0):
            if number == 99:
                assert 0 <= plan.seconds("seeds") < 1
