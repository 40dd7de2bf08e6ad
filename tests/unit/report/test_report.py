"""The report page: what it shows, what it says about missing stages, and that data cannot break out of it."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distwsss.config.schema import Config
from distwsss.data.doubtful import Doubt, read_doubts, write_doubts
from distwsss.data.shards.format import name_from_key
from distwsss.data.shards.index import ShardIndex, load_index
from distwsss.errors import CheckpointError, ConfigError, DataError, ShardError
from distwsss.evaluate.evaluate import evaluate
from distwsss.evaluate.stats import seed_quality
from distwsss.report import pictures
from distwsss.report.gallery import choose
from distwsss.report.html import write_report
from distwsss.report.plots import line_plot, series
from distwsss.runtime.artifacts import to_json, write_json
from distwsss.runtime.layout import doubtful_tags_file, images_dir, report_file, run_dir
from distwsss.runtime.metrics import read_metrics
from helpers.small import (
    CLASSES,
    make_config,
    make_truth,
    merged,
    picture,
    write_images,
    write_pseudo,
    write_seeds,
    write_segmenter,
    write_shards,
)

EVIL = "<script>alert('x')</script>\"&"


class Reader(HTMLParser):
    """Tags, text and attribute values as a browser would take them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.said.append(data)

    def text(self) -> str:
        return "\n".join(self.said)


def settings(folder: Path, **sections: Any) -> Config:
    """Two seeds, both of which vote."""
    return make_config(folder, **merged({"seeds": {"scales": [1.0], "threshold": 2}}, sections))


def two_seeds(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Two maps of train image `number`, which differ in one block."""
    first = make_truth(number, 24 + 8 * (number % 2))
    second = first.copy()
    second[8:16, 8:16] = 0
    return first, second


def write_labels(config: Config) -> None:
    """Seed and pseudo-label shards for the train images."""

    def maps(number: int, truth: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        first, second = two_seeds(number)
        return first, np.where(first == second, 2, 1).astype(np.uint8)

    write_seeds(config, two_seeds)
    write_pseudo(config, maps, config.seed_names(), threshold=2)


def write_curves(config: Config) -> None:
    for part in ("classify/0.10", "classify/0.30", "train"):
        path = run_dir(config) / part / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"step": step, "loss": 1 / step, "positive": 0.5, "positive_share": 0.8} for step in range(1, 30)]
        lines.append({"step": 29, "heldout_miou": 0.31})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "lo')


def write_measured(config: Config) -> None:
    """What `classify` says of two classifiers: 11.1 and 22.2 on the first class, the second unknown; two doubtful
    tags."""
    index = load_index(images_dir(config, "train"))
    for p, value in ((0.1, 0.111), (0.3, 0.222)):
        classes = {name: {"average_precision": None, "positives": 0} for name in index.classes[1:]}
        classes[index.classes[1]] = {"average_precision": value, "positives": 7}
        record = {"photographs": 9, "mean": value, "classes": classes, "ids": []}
        write_json(run_dir(config) / f"classify/{p:.2f}/average_precision.json", record)
    ids = list(map(name_from_key, index.all().keys()))
    doubts = [Doubt(ids[0], index.classes[1], True, 0.04, True, index.fingerprint)]
    doubts.append(Doubt(ids[1], index.classes[2], False, 0.93, False, index.fingerprint))
    write_doubts(doubtful_tags_file(config), doubts)


def whole_run(folder: Path, classes: list[str] = CLASSES, names: list[str] | None = None) -> Config:
    config = settings(folder, evaluate={"crf": None})
    write_images(config, "train", 3, classes, names=names)
    write_images(config, "val", 2, classes)
    write_labels(config)
    write_segmenter(config, classes)
    write_curves(config)
    write_measured(config)
    assert seed_quality(config) is not None
    assert evaluate(config) is not None
    (run_dir(config) / "command.txt").write_text("distwsss run --config x.yaml\n")
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str]:
    """A whole run and its page."""
    config = whole_run(tmp_path_factory.mktemp("whole"))
    path = write_report(config)
    assert path == run_dir(config) / "report" / "index.html"
    return config, path.read_text(encoding="utf-8")


def test_no_stage_of_a_whole_run_is_missing(whole: tuple[Config, str]) -> None:
    said = Reader(whole[1]).text()
    assert "not run" not in said
    assert "distwsss run --config x.yaml" in said


def test_the_figures_are_those_of_the_records(whole: tuple[Config, str]) -> None:
    config, said = whole[0], Reader(whole[1]).text()
    record = json.loads((run_dir(config) / "evaluate" / "val.json").read_text())
    quality = json.loads((run_dir(config) / "seeds" / "quality.json").read_text())
    assert f"{100 * record['miou']['multi']:.1f}" in said
    for entry in quality["thresholds"]:
        assert f"{100 * entry['coverage']:.1f}" in said


def test_every_photograph_is_shown_with_its_maps(whole: tuple[Config, str]) -> None:
    reader = Reader(whole[1])
    for title in ("seed 0.10-1.00", "seed 0.30-1.00", "votes", "clean (t = 2) / noisy", "pseudo-label"):
        assert reader.said.count(title) == 2, title  # two train photographs
    # photo, 2 seeds, label, votes, clean, prediction, truth; val; doubtful tags
    assert reader.tags.count("figure") == 2 * 8 + 1 * 3 + 2


def test_an_ablation_that_is_named_opens_the_page(whole: tuple[Config, str], tmp_path: Path) -> None:
    config, report = whole[0], whole[0].report.model_copy(update={"ablation": str(tmp_path)})
    named = config.model_copy(update={"report": report})
    assert "ablate (its table is looked for in" in opened(named)
    line = {"name": "all_pixels", "column": "multi", "mean": 0.4321, "difference": None, "state": "complete"}
    write_json(tmp_path / "table.json", {"baseline": "all_pixels", "split": "val", "variants": [line]})
    said = opened(named)
    assert "not run" not in said
    quality = json.loads((run_dir(config) / "seeds" / "quality.json").read_text())
    for text in ("all pixels", "43.2", f"{100 * quality['aggregate']['miou']:.1f}", "label made of its tags"):
        assert text in said
    write_json(tmp_path / "table.json", {"variants": []})
    with pytest.raises(DataError, match="not the table of an ablation"):
        write_report(named)
    write_report(config)  # the other tests' page


def opened(config: Config) -> str:
    """What stands before the headline numbers."""
    said = Reader(write_report(config).read_text(encoding="utf-8")).text()
    return said[said.index("What each part brings") : said.index("Headline numbers")]


def test_average_precision_of_each_classifier_is_shown(whole: tuple[Config, str]) -> None:
    said = Reader(whole[1]).said
    start = said.index("average precision (%)")
    assert [text for text in said[start:] if text.strip()][:12] == [
        *("average precision (%)", "p = 0.10", "p = 0.30", "photographs", "cat", "11.1", "22.2", "7"),
        *("dog", "-", "-", "0"),
    ]


def test_doubtful_tags_are_shown_with_their_pictures(whole: tuple[Config, str]) -> None:
    said = Reader(whole[1]).said
    first = said.index("train-0: tagged cat, score 0.04 (held out)")
    assert said.index("train-1: not tagged dog, score 0.93") > first


def test_doubts_about_tags_that_have_changed_are_not_shown(tmp_path: Path) -> None:
    config = settings(tmp_path)
    write_images(config, "train", 3)
    write_measured(config)
    doubts = [replace(doubt, images="others") for doubt in read_doubts(doubtful_tags_file(config), fingerprint(config))]
    assert len(doubts) == 2
    write_doubts(doubtful_tags_file(config), doubts)
    assert "score 0." not in Reader(write_report(config).read_text(encoding="utf-8")).text()


def fingerprint(config: Config) -> str:
    return load_index(images_dir(config, "train")).fingerprint


def test_results_of_another_configuration_are_refused(whole: tuple[Config, str]) -> None:
    other = whole[0].model_copy(update={"data": whole[0].data.model_copy(update={"allow_empty": True})})
    with pytest.raises(ConfigError, match=r"data\.allow_empty: was False, now True"):
        write_report(other)


def test_nothing_on_the_page_is_random(whole: tuple[Config, str]) -> None:
    assert write_report(whole[0]).read_text(encoding="utf-8") == whole[1]


def test_the_page_asks_nothing_of_the_network_or_of_scripts(whole: tuple[Config, str]) -> None:
    reader = Reader(whole[1])
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(reader.tags)
    for name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "data", "action"):
            assert value.startswith(("data:image/png", "data:image/jpeg", "data:image/svg+xml"))
    assert any("default-src 'none'" in value for _, value in reader.attributes)


def test_pictures_are_no_larger_than_they_are_shown(whole: tuple[Config, str]) -> None:
    reader = Reader(whole[1])
    for kind, data in re.findall(r"data:(image/[a-z+]+);base64,([^\"]+)", " ".join(v for _, v in reader.attributes)):
        if kind != "image/svg+xml":
            assert max(Image.open(io.BytesIO(base64.b64decode(data.split()[0]))).size) <= pictures.SIDE


def test_strings_from_data_are_escaped(tmp_path: Path) -> None:
    classes = ["background", EVIL, "dog"]
    names = [f"{EVIL}{number}" for number in range(3)]
    config = whole_run(tmp_path, classes, names)
    (run_dir(config) / "command.txt").write_text(EVIL)
    (run_dir(config) / "env.json").write_text(json.dumps({EVIL: EVIL}))
    record_path = run_dir(config) / "evaluate" / "val.json"
    record = json.loads(record_path.read_text())
    record |= {"data": EVIL, "notes": [EVIL]}
    record_path.write_text(json.dumps(record))
    (run_dir(config) / "evaluate" / f"x{EVIL.replace('/', '')}.json").write_text(json.dumps(record))
    quality_path = run_dir(config) / "seeds" / "quality.json"
    quality = json.loads(quality_path.read_text())
    quality["seeds"][EVIL] = quality["seeds"].pop("0.10-1.00")
    quality["selected"] = [EVIL]
    quality_path.write_text(json.dumps(quality))
    page = write_report(config).read_text(encoding="utf-8")
    assert "<script" not in page
    reader = Reader(page)
    assert "script" not in reader.tags
    assert reader.text().count("alert('x')") >= 8  # shown, as text
    assert not any(name.startswith("on") or "alert" in name for name, _ in reader.attributes)


@pytest.mark.parametrize(
    ("stages", "masks", "lines"),
    [
        (["images"], True, ["evaluate and stats: not run", "classify: not run", "seeds: not run", "train: not run"]),
        (["images"], True, ["stats (needs masks on train): not run", "evaluate: not run"]),
        (["images", "labels"], True, ["train: not run", "evaluate: not run"]),
        (["images", "labels"], False, ["train: not run", "No photograph has a mask: nothing can be scored. Look at"]),
    ],
)
def test_missing_stages_are_named(tmp_path: Path, stages: list[str], masks: bool, lines: list[str]) -> None:
    config = settings(tmp_path)
    write_images(config, "train", 2, truth=masks)
    if "labels" in stages:
        write_labels(config)
    said = Reader(write_report(config).read_text(encoding="utf-8")).text()
    for line in lines:
        assert line in said
    assert "prepare: not run" not in said
    assert ("evaluate: not run" in said) == masks  # without masks no stage is missing, there is nothing to score
    assert ("pseudo-label" in said) == ("labels" in stages)


def test_a_run_that_has_left_nothing_is_an_error_not_an_empty_page(tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(DataError, match=f"no stage has left a result in {run_dir(config)}; run `distwsss run` first"):
        write_report(config)
    assert not report_file(config).exists()


def test_a_damaged_segmenter_is_an_error_not_a_missing_stage(tmp_path: Path) -> None:
    config = settings(tmp_path)
    write_images(config, "val", 2)
    (write_segmenter(config) / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="safetensors"):
        write_report(config)


def test_damaged_shards_are_an_error_not_a_missing_stage(tmp_path: Path) -> None:
    config = settings(tmp_path)
    write_images(config, "train", 2)
    index = images_dir(config, "train") / "index.json"
    index.write_bytes(index.read_bytes().replace(b"cat", b"cut"))
    with pytest.raises(ShardError, match=r"index\.json"):
        write_report(config)


def test_another_t_in_training_is_the_one_shown(tmp_path: Path) -> None:
    config = settings(tmp_path, train={"vote_threshold": 1})
    write_images(config, "train", 2)
    write_labels(config)
    assert "clean (t = 1) / noisy" in write_report(config).read_text(encoding="utf-8")


@pytest.fixture
def seven(tmp_path: Path) -> ShardIndex:
    """Photographs of three classes, one with two of them and one with none."""
    labels = [[1], [1], [1], [1, 2], [3], [], [2]]
    abouts = [{"labels": some, "name": str(n), "size": [24, 32]} for n, some in enumerate(labels)]
    samples = [(str(n), {"jpg": picture(n), "json": to_json(about)}) for n, about in enumerate(abouts)]
    write_shards(tmp_path, "images", [samples], ["background", "a", "b", "c"])
    return load_index(tmp_path, "images")


def test_two_photographs_cover_three_classes(seven: ShardIndex) -> None:
    assert choose(seven, 2) == [(0, 3), (0, 4)]


@pytest.mark.parametrize(("count", "found"), [(99, [(0, n) for n in range(7)]), (0, [])])
def test_no_more_photographs_than_there_are(seven: ShardIndex, count: int, found: list[tuple[int, int]]) -> None:
    assert sorted(choose(seven, count)) == found


def test_metrics_survive_a_kill_and_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 3}\n{"step": 20, "loss": 2}\n{"step": 20, "loss": 1.5}\n[]\n{"step": 30, "lo')
    assert series(read_metrics(path), "loss") == [(10, 3), (20, 1.5)]


def test_absent_metrics_are_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "absent") == []


def test_plots_are_the_same_bytes_each_time() -> None:
    lines = {"a < b": [(1.0, 2.0), (2.0, 1.0)], "c": [(1.0, 1.0)]}
    uri = line_plot("loss", lines)
    assert uri == line_plot("loss", lines)
    assert b"<svg" in base64.b64decode(uri.split(",")[1])


LABELS = np.array([[1, 1, 255]], dtype=np.uint8)


def pixels(uri: str) -> list[list[int]]:
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))[0].tolist()


def test_colours_of_clean_and_noisy() -> None:
    wanted = [list(colour) for colour in (pictures.CLEAN, pictures.NOISY, pictures.IGNORED)]
    assert pixels(pictures.clean_map(np.array([[True, False, False]]), LABELS)) == wanted


def test_colours_of_votes() -> None:
    shown = pixels(pictures.votes_map(np.array([[0, 3, 6]], dtype=np.uint8), 6))
    assert shown == [pictures.vote_colours(6)[n].tolist() for n in (0, 3, 6)]


def test_colours_of_labels() -> None:
    assert pixels(pictures.label_map(LABELS)) == [[128, 0, 0], [128, 0, 0], [224, 224, 192]]
