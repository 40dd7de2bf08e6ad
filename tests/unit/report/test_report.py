"""The report page: what it shows, what it says about missing stages, and that data cannot break out of it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distwsss.config.schema import Config
from distwsss.data.images import encode_clean, encode_gray, encode_palette
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.index import load_index
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.errors import CheckpointError, ShardError
from distwsss.evaluate.evaluate import evaluate
from distwsss.evaluate.stats import seed_quality
from distwsss.report import pictures
from distwsss.report.gallery import choose
from distwsss.report.html import write_report
from distwsss.report.plots import line_plot, series
from distwsss.runtime.artifacts import to_json
from distwsss.runtime.layout import images_dir, pseudo_dir, run_dir, seeds_dir
from distwsss.runtime.metrics import read_metrics
from helpers.evaluation_run import CLASSES, make_config, make_truth, picture, write_images, write_segmenter

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


def write_labels(config: Config, classes: list[str] = CLASSES) -> None:
    """Seed and pseudo-label shards for the train images: two seeds, which differ in one block."""
    index, names = load_index(images_dir(config, "train"), "images"), config.seed_names()
    seed_records, pseudo_records = [], []
    for folder in (seeds_dir(config), pseudo_dir(config)):
        folder.mkdir(parents=True)
    for number, record in enumerate(index.shards):
        seeds, pseudo = [], []
        for position, key in enumerate(record.keys):
            height = 24 + 8 * ((2 * number + position) % 2)
            first = np.minimum(make_truth(number, height), 2)
            second = first.copy()
            second[8:16, 8:16] = 0
            votes = np.where(first == second, 2, 1).astype(np.uint8)
            seeds.append((key, {"s0.png": encode_palette(first), "s1.png": encode_palette(second)}))
            fields = {"label.png": encode_palette(first), "votes.png": encode_gray(votes)}
            fields |= {"clean.png": encode_clean(votes >= 2), "json": b"{}", "jpg": picture(0)}
            pseudo.append((key, fields))
        seed_records.append(write_shard(seeds_dir(config) / f"seeds-{number:05d}.tar", seeds))
        pseudo_records.append(write_shard(pseudo_dir(config) / f"pseudo-{number:05d}.tar", pseudo))
    write_index(seeds_dir(config), seed_records, {}, classes, "seeds", {"seeds": names})
    write_index(pseudo_dir(config), pseudo_records, {"threshold": 2}, classes, "pseudo", {"seeds": names})


def write_curves(config: Config) -> None:
    for part in ("classify/0.10", "classify/0.20", "train"):
        path = run_dir(config) / part / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"step": step, "loss": 1 / step, "positive": 0.5, "positive_share": 0.8} for step in range(1, 30)]
        lines.append({"step": 29, "heldout_miou": 0.31})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "lo')


def whole_run(folder: Path, classes: list[str] = CLASSES, names: list[str] | None = None) -> Config:
    config = make_config(folder, evaluate={"crf": None})
    write_images(config, "train", 3, classes, names=names)
    write_images(config, "val", 2, classes)
    write_labels(config, classes)
    write_segmenter(config, classes)
    write_curves(config)
    assert seed_quality(config) is not None
    assert evaluate(config) is not None
    (run_dir(config) / "command.txt").write_text("distwsss run --config x.yaml\n")
    return config


def test_a_whole_run(tmp_path: Path) -> None:
    config = whole_run(tmp_path)
    path = write_report(config)
    assert path == run_dir(config) / "report" / "index.html"
    page = path.read_text(encoding="utf-8")
    reader = Reader(page)
    said = reader.text()
    assert "not run" not in said
    record = json.loads((run_dir(config) / "evaluate" / "val.json").read_text())
    quality = json.loads((run_dir(config) / "seeds" / "quality.json").read_text())
    assert f"{100 * record['miou']['multi']:.1f}" in said
    for entry in quality["thresholds"]:
        assert f"{100 * entry['coverage']:.1f}" in said
    for title in ("seed 0.10-1.00", "seed 0.20-1.00", "votes", "clean (t = 2) / noisy", "pseudo-label"):
        assert reader.said.count(title) == 2, title  # two train photographs
    assert reader.tags.count("figure") == 2 * 8 + 1 * 3  # photo, 2 seeds, label, votes, clean, prediction, truth; val
    assert "distwsss run --config x.yaml" in said
    assert write_report(config).read_text(encoding="utf-8") == page  # nothing random in it


def test_the_page_asks_nothing_of_the_network_or_of_scripts(tmp_path: Path) -> None:
    reader = Reader(write_report(whole_run(tmp_path)).read_text(encoding="utf-8"))
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(reader.tags)
    for name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "data", "action"):
            assert value.startswith(("data:image/png", "data:image/jpeg", "data:image/svg+xml"))
    assert any("default-src 'none'" in value for _, value in reader.attributes)
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
    ("stages", "absent"),
    [
        ([], ["evaluate and stats: not run", "prepare: not run", "classify: not run", "train: not run"]),
        (["images"], ["seeds: not run", "train: not run", "stats (needs masks on train): not run"]),
        (["images", "labels"], ["train: not run", "evaluate: not run"]),
    ],
)
def test_missing_stages_are_named(tmp_path: Path, stages: list[str], absent: list[str]) -> None:
    config = make_config(tmp_path)
    if "images" in stages:
        write_images(config, "train", 2, truth=False)
    if "labels" in stages:
        write_labels(config)
    said = Reader(write_report(config).read_text(encoding="utf-8")).text()
    for line in absent:
        assert line in said
    assert ("prepare: not run" in said) == ("images" not in stages)
    assert ("pseudo-label" in said) == ("labels" in stages)


def test_damage_is_an_error_not_a_missing_stage(tmp_path: Path) -> None:
    config = whole_run(tmp_path)
    (run_dir(config) / "train/checkpoints/step-00000010/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="safetensors"):
        write_report(config)
    index = images_dir(config, "train") / "index.json"
    index.write_bytes(index.read_bytes().replace(b"cat", b"cut"))
    with pytest.raises(ShardError, match=r"index\.json"):
        write_report(config)


def test_another_t_in_training_is_the_one_shown(tmp_path: Path) -> None:
    config = make_config(tmp_path, train={"vote_threshold": 1})
    write_images(config, "train", 2)
    write_labels(config)
    assert "clean (t = 1) / noisy" in write_report(config).read_text(encoding="utf-8")


def test_photographs_cover_the_classes(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    images_dir(config, "train").mkdir(parents=True)
    labels = [[1], [1], [1], [1, 2], [3], [], [2]]
    samples = [
        (
            key_from_name(str(n)),
            {"jpg": picture(n), "json": to_json({"labels": some, "name": str(n), "size": [24, 32]})},
        )
        for n, some in enumerate(labels)
    ]
    record = write_shard(images_dir(config, "train") / "images-00000.tar", samples)
    write_index(images_dir(config, "train"), [record], {}, ["background", "a", "b", "c"], "images")
    index = load_index(images_dir(config, "train"), "images")
    assert choose(index, 2) == [(0, 3), (0, 4)]  # all three classes with two images
    assert sorted(choose(index, 99)) == [(0, n) for n in range(7)]
    assert choose(index, 0) == []


def test_metrics_survive_a_kill_and_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 3}\n{"step": 20, "loss": 2}\n{"step": 20, "loss": 1.5}\n[]\n{"step": 30, "lo')
    assert series(read_metrics(path), "loss") == [(10, 3), (20, 1.5)]
    assert read_metrics(tmp_path / "absent") == []


def test_plots_are_the_same_bytes_each_time() -> None:
    lines = {"a < b": [(1.0, 2.0), (2.0, 1.0)], "c": [(1.0, 1.0)]}
    uri = line_plot("loss", lines)
    assert uri == line_plot("loss", lines)
    assert b"<svg" in base64.b64decode(uri.split(",")[1])


def test_colours_of_the_maps() -> None:
    clean = np.array([[True, False, False]])
    labels = np.array([[1, 1, 255]], dtype=np.uint8)

    def pixels(uri: str) -> list[list[int]]:
        return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))[0].tolist()

    assert pixels(pictures.clean_map(clean, labels)) == [
        list(c) for c in (pictures.CLEAN, pictures.NOISY, pictures.IGNORED)
    ]
    shown = pixels(pictures.votes_map(np.array([[0, 3, 6]], dtype=np.uint8), 6))
    assert shown == [pictures.vote_colours(6)[n].tolist() for n in (0, 3, 6)]
    assert pixels(pictures.label_map(labels)) == [[128, 0, 0], [128, 0, 0], [224, 224, 192]]
