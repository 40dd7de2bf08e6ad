"""Seed quality against counting pixel by pixel, from shards with known maps."""

import json
import math
import re

import numpy as np
import pytest

from distwsss.data.images import encode_palette
from distwsss.data.scoring import add_counts, count_tasks, read_image_counts, shard_counts
from distwsss.data.shards.index import load_index
from distwsss.errors import DataError, ShardError
from distwsss.evaluate.stats import print_quality, seed_quality
from distwsss.maths.miou import miou_of
from distwsss.maths.vote import vote
from distwsss.runtime.artifacts import to_json, write_json
from distwsss.runtime.layout import images_dir, pseudo_dir, run_dir, seeds_dir
from helpers.small import make_config, picture, write_pseudo, write_seeds, write_shards

CLASSES = ["background", "cat", "dog", "owl"]  # no owl anywhere
NAMES = ["0.10-1.00", "0.20-1.00", "0.30-1.00", "0.40-1.00"]
VOTERS = [0, 3, 1]
SHAPE = (6, 7)


def make_maps(number):
    """Truth with ignored pixels, four seeds that agree with it more or less often, the first with abstentions."""
    rng = np.random.default_rng(number)
    truth = rng.integers(0, 3, SHAPE, dtype=np.uint8)
    seeds = np.stack([np.where(rng.random(SHAPE) < p, truth, rng.integers(0, 3, SHAPE)) for p in (0.3, 0.5, 0.6, 0.7)])
    seeds = seeds.astype(np.uint8)
    seeds[:, 0, 0] = 255
    seeds[0, 1] = 255
    truth[-1] = 255
    return truth, seeds


def build(folder, truth=True, **hardware):
    """Five images in three shards with their seeds and pseudo-labels; the last has no mask."""
    seeds = {"scales": [1.0], "vote_on": [NAMES[k] for k in VOTERS], "threshold": 2}
    config = make_config(folder, classify={"dropouts": [0.1, 0.2, 0.3, 0.4]}, seeds=seeds, hardware=hardware)
    images = []
    for number in range(5):
        fields = {"jpg": picture(number, *SHAPE), "json": to_json({"labels": [1, 2]})}
        masked = {"truth.png": encode_palette(make_maps(number)[0])} if truth and number < 4 else {}
        images.append((f"k{number}", {**fields, **masked}))
    shards = [images[:2], images[2:4], images[4:]]
    write_shards(images_dir(config, "train"), "images", shards, CLASSES, {"split": "train"}, truth="digest")
    write_seeds(config, lambda number: make_maps(number)[1])
    write_pseudo(config, lambda number, _: vote(make_maps(number)[1][VOTERS]), config.seeds.vote_on, threshold=2)
    return config


def pixels(numbers=range(4)):
    """(truth, seeds, label, votes) of every labelled pixel."""
    found = []
    for number in numbers:
        truth, seeds = make_maps(number)
        labels, votes = vote(seeds[VOTERS])
        for place in zip(*np.nonzero(truth != 255), strict=True):
            of_seeds = seeds[(slice(None), *place)].tolist()
            found.append((int(truth[place]), of_seeds, int(labels[place]), int(votes[place])))
    return found


def iou(pairs):
    values = []
    for c in range(len(CLASSES)):
        either = sum(t == c or p == c for t, p in pairs)
        values.append(sum(t == c and p == c for t, p in pairs) / either if either else None)
    return values


def mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return build(tmp_path_factory.mktemp("run"))


def test_what_was_scored(config):
    quality = seed_quality(config)
    assert (quality["images"], quality["split"], quality["classes"]) == (4, "train", CLASSES)
    assert list(quality["seeds"]) == NAMES


def scores(config):
    """Of the vote and of every seed: what was found, and (truth, label) of every labelled pixel."""
    quality, everything = seed_quality(config), pixels()
    yield quality["aggregate"], [(t, label) for t, _, label, _ in everything]
    for k, name in enumerate(NAMES):
        yield quality["seeds"][name], [(t, seeds[k]) for t, seeds, _, _ in everything]


def test_iou_of_seeds_and_vote(config):
    for found, pairs in scores(config):
        assert found["iou"] == pytest.approx(iou(pairs))
        assert found["miou"] == pytest.approx(mean(iou(pairs)))


def test_an_absent_class_has_no_iou(config):
    assert all(found["iou"][3] is None for found, _ in scores(config))


def test_agreement_of_seeds_and_vote(config):
    for found, pairs in scores(config):
        assert found["agreement"] == pytest.approx(sum(t == p for t, p in pairs) / len(pairs))


def test_selected_is_the_best_of_each_class(config):
    quality = seed_quality(config)
    winners = {max(NAMES, key=lambda name: quality["seeds"][name]["iou"][c]) for c in range(3)}
    assert quality["selected"] == [name for name in NAMES if name in winners]


def rows(config):
    """Of every threshold: its row, and (truth, label) of the clean and of the noisy pixels."""
    everything = pixels()
    for row in seed_quality(config)["thresholds"]:
        clean = [(t, label) for t, _, label, votes in everything if votes >= row["t"]]
        noisy = [(t, label) for t, _, label, votes in everything if votes < row["t"]]
        yield row, clean, noisy


def test_every_threshold_has_a_row(config):
    assert [row["t"] for row, _, _ in rows(config)] == [1, 2, 3]


def test_miou_and_coverage_of_the_clean_pixels(config):
    for row, clean, noisy in rows(config):
        assert row["miou"] == pytest.approx(mean(iou(clean)))
        assert row["coverage"] == pytest.approx(len(clean) / len(clean + noisy))


def test_shares_of_agreement_and_cleanness(config):
    for row, clean, noisy in rows(config):
        a, d = (sum((t == p) == same for t, p in clean) for same in (True, False))
        b, c = (sum((t == p) == same for t, p in noisy) for same in (True, False))
        shares = [count / len(clean + noisy) for count in (a, b, c, d)]
        assert row["cells"] == pytest.approx(dict(zip("abcd", shares, strict=True)))
        assert sum(row["cells"].values()) == pytest.approx(1)
        within = {
            "clean_agree": a / (a + d),
            "noisy_disagree": c / (b + c),
            "agree_clean": a / (a + b),
            "disagree_noisy": c / (c + d),
        }
        assert row["within"] == pytest.approx(within)


def test_restricted_to_some_images(config):
    only = seed_quality(config, keys={"k0", "k4"})
    assert only["images"] == 1  # k4 has no mask
    assert only["aggregate"]["iou"] == pytest.approx(iou([(t, label) for t, _, label, _ in pixels([0])]))


def test_restricted_to_images_without_masks(config):
    assert seed_quality(config, keys={"k4"}) is None


def test_without_some_images(config):
    rest = seed_quality(config, keys={"k0", "k1", "k3"}, exclude={"k0"})
    assert rest["aggregate"]["iou"] == pytest.approx(iou([(t, label) for t, _, label, _ in pixels([1, 3])]))


def test_workers_do_not_change_a_figure(tmp_path):
    assert (
        seed_quality(build(tmp_path / "a", workers=2))["thresholds"]
        == seed_quality(build(tmp_path / "b"))["thresholds"]
    )


def test_written_and_read_back(tmp_path):
    config = build(tmp_path)
    path = run_dir(config) / "seeds" / "quality.json"
    first = seed_quality(config)
    assert json.loads(path.read_text()) == first
    before = path.stat().st_mtime_ns
    assert seed_quality(config) == first
    assert path.stat().st_mtime_ns == before


def test_some_images_are_not_written(tmp_path):
    config = build(tmp_path)
    seed_quality(config, keys={"k0"})
    assert not (run_dir(config) / "seeds" / "quality.json").exists()


def test_images_left_out_make_the_record_anew(tmp_path):
    config = build(tmp_path)
    seed_quality(config)
    assert seed_quality(config, exclude={"k0"})["images"] == 3
    assert json.loads((run_dir(config) / "seeds" / "quality.json").read_text())["images"] == 3


def test_no_masks(tmp_path):
    assert seed_quality(build(tmp_path, truth=False)) is None


def test_dropped_seed_shards(tmp_path):
    config = build(tmp_path)
    (seeds_dir(config) / "index.json").unlink()
    quality = seed_quality(config)
    assert quality["seeds"] == {}
    assert quality["selected"] == []
    assert quality["aggregate"]["miou"] == pytest.approx(mean(iou([(t, label) for t, _, label, _ in pixels()])))
    print_quality(quality)


def test_without_pseudo_labels(tmp_path):
    config = build(tmp_path)
    (pseudo_dir(config) / "index.json").unlink()
    with pytest.raises(ShardError, match="distwsss seeds"):
        seed_quality(config)


def test_printed(config, capsys):
    quality = seed_quality(config)
    print_quality(quality)
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
    assert rows["mIoU"][1:] == [f"{100 * s['miou']:.1f}" for s in [*quality["seeds"].values(), quality["aggregate"]]]
    assert rows["owl"][1:] == ["-"] * 5
    assert rows["2"][1] == "*"
    cells = [float(value) for value in rows["3"][3:7]]
    assert math.isclose(sum(cells), 100, abs_tol=0.21)
    for phrase in ("4 images scored", "1 train images are not scored", "selection rule would keep", *CLASSES):
        assert phrase in text


def test_the_columns_stand_under_their_headings_also_when_they_are_read_back(config, capsys):
    """As text, counted anew and from the file: inside clean and noisy, and across, of every t."""
    printed = []
    for _ in range(2):
        print_quality(seed_quality(config))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    lines = printed[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("t  ") or line.startswith("t "))
    headings = ["clean: agree", "noisy: disagree", "agree: clean", "disagree: noisy"]
    assert [name for name in re.split(r"\s{2,}", lines[start]) if ": " in name] == headings
    for t in range(1, 4):
        found = lines[start + 1 + t].replace(" *", "").split()
        right = [(label == truth, votes >= t) for truth, _, label, votes in pixels()]
        shares = [
            [agrees for agrees, clean in right if clean],
            [not agrees for agrees, clean in right if not clean],
            [clean for agrees, clean in right if agrees],
            [not clean for agrees, clean in right if not agrees],
        ]
        wanted = [f"{100 * sum(share) / len(share):.1f}" if share else "-" for share in shares]
        assert found[0] == str(t)
        assert found[-4:] == wanted


def by_hand(number, column):
    """Hits, predicted and true pixels of each class in one image."""
    at_own_threshold = [pixel for pixel in pixels([number]) if column != "clean" or pixel[3] >= 2]
    pairs = [(t, seeds[NAMES.index(column)] if column in NAMES else label) for t, seeds, label, _ in at_own_threshold]
    hits = [sum(t == p == c for t, p in pairs) for c in range(len(CLASSES))]
    predicted = [sum(p == c for _, p in pairs) for c in range(len(CLASSES))]
    return [hits, predicted, [sum(t == c for t, _ in pairs) for c in range(len(CLASSES))]]


def test_counts_of_each_image_lie_beside_the_record(config):
    quality = seed_quality(config)
    found = read_image_counts(run_dir(config) / "seeds" / quality["per_image"])
    assert found.keys == ["k0", "k1", "k2", "k3"]
    assert list(found.columns) == [*NAMES, "aggregate", "clean"]
    for name, counts in found.columns.items():
        assert counts.tolist() == [by_hand(number, name) for number in range(4)]
    assert miou_of(found.columns["aggregate"].sum(axis=0)) == pytest.approx(quality["aggregate"]["miou"])


def test_seeds_are_counted_without_a_vote(config):
    images, seeds = load_index(images_dir(config, "train"), "images"), load_index(seeds_dir(config), "seeds")
    found = add_counts([shard_counts(task) for task in count_tasks(images, None, seeds, {"k1", "k2"})])
    assert found.votes is None
    assert found.each.keys == ["k1", "k2"]
    assert list(found.each.columns) == NAMES
    assert found.each.columns[NAMES[0]].tolist() == [by_hand(1, NAMES[0]), by_hand(2, NAMES[0])]


def test_a_record_without_counts_is_read(tmp_path):
    config = build(tmp_path)
    first = seed_quality(config)
    path = run_dir(config) / "seeds" / "quality.json"
    (path.parent / first.pop("per_image")).unlink()
    write_json(path, first)
    assert seed_quality(config) == first


def test_a_file_that_holds_no_counts_is_named(tmp_path):
    (tmp_path / "val.counts.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="found no counts of images"):
        read_image_counts(tmp_path / "val.counts.npz")
