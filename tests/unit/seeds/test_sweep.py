"""`seeds sweep` on tiny generated shards: the counts of what the stages make under the same keys, its caches, its
choice of a row."""

import csv
import itertools
import shutil

import numpy as np
import pytest

from distwsss import cli
from distwsss.config.load import dump_yaml
from distwsss.config.stages import SeedsSection
from distwsss.data.holdout import halves
from distwsss.data.scoring import ImageCounts, read_image_counts
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.index import load_index
from distwsss.errors import ConfigError, DataError
from distwsss.evaluate.stats import seed_quality
from distwsss.maths.bootstrap import paired_bootstrap
from distwsss.maths.miou import miou_of
from distwsss.runtime.artifacts import read_json
from distwsss.runtime.layout import counts_file, images_dir, quality_file, run_dir, seeds_dir, shard_dir, sweep_dir
from distwsss.seeds.generate import run_seeds
from distwsss.seeds.sweep import LABELS, SweepOptions, sweep_seeds
from distwsss.seeds.sweep_chunk import Setting, blocks, sweep_shard, thresholds
from distwsss.seeds.sweep_table import Sweep, two_folds
from helpers.small import make_config, merged, write_classifiers, write_images

CLASSES = ["background", "cat", "dog", "hat"]
LABELS_OF = [[1], [2, 3], [], [1, 3], [2]]  # one photograph without tags
NAMES = ["0.10-1.00", "0.10-1.20", "0.30-1.00", "0.30-1.20"]
VOTERS = [NAMES[0], NAMES[3], NAMES[1]]
ALPHAS = (1.0, 4.0)
SEEDS = {"scales": [1.0, 1.2], "alpha": 1.0, "vote_on": VOTERS, "threshold": 2, "crf": {"iterations": 3}}


def settings(folder, **sections):
    return make_config(folder, **merged({"seeds": SEEDS}, sections))


def made(folder, truth=True, **sections):
    """Five photographs of different sizes in three shards, and the classifiers; no seeds."""
    config = settings(folder, **sections)
    sizes = [(24 + 3 * number, 40 - 3 * number) for number in range(5)]
    write_images(config, "train", 5, CLASSES, truth, [f"photo.{n}" for n in range(5)], LABELS_OF, sizes)
    write_classifiers(config, CLASSES)
    return config


def copy_of(config, folder, **sections):
    shutil.copytree(shard_dir(config), folder / "shards")
    shutil.copytree(run_dir(config), folder / "run")
    return settings(folder, **sections)


def counts_of(config):
    return read_image_counts(sweep_dir(config) / "sweep.counts.npz")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    config = made(tmp_path_factory.mktemp("swept"))
    found = sweep_seeds(config, SweepOptions(ALPHAS, folds=True))
    return config, found


@pytest.mark.parametrize("alpha", ALPHAS)
def test_counts_are_those_of_the_seeds_and_votes_of_the_same_keys(swept, tmp_path, alpha):
    """Labels, each seed, and the clean pixels at t = 2, image by image, as `seeds` and `stats` give them."""
    found = counts_of(swept[0])
    first = copy_of(swept[0], tmp_path, seeds={"alpha": alpha})
    name = f"configured:sum:{alpha:g}"
    for label in LABELS:
        config = settings(tmp_path, seeds={"alpha": alpha, "label": label})
        run_seeds(config)
        seed_quality(config)
        wanted = read_image_counts(counts_file(quality_file(config)))
        assert found.keys == wanted.keys
        columns = {seed: f"{name} {seed}" for seed in NAMES}
        columns |= {"aggregate": f"{name} {label}", "clean": f"{name} {label} t=2"}
        for theirs, ours in columns.items():
            np.testing.assert_array_equal(found.columns[ours], wanted.columns[theirs], err_msg=ours)
    assert seeds_dir(first).exists()


def test_the_table_says_what_the_counts_are(swept):
    config, found = swept
    counts = counts_of(config)
    total = {name: each.sum(axis=0, dtype=np.int64) for name, each in counts.columns.items()}
    assert found["ids"] == [f"photo.{number}" for number in range(5)]
    assert [(row["alpha"], row["label"]) for row in found["rows"]] == list(itertools.product(ALPHAS, LABELS))
    for row in found["rows"]:
        name = f"configured:sum:{row['alpha']:g}"
        labels = total[f"{name} {row['label']}"]
        assert row["miou"] == pytest.approx(miou_by_hand(labels))
        seeds = {seed: miou_by_hand(total[f"{name} {seed}"]) for seed in NAMES}
        assert row["best_seed"]["miou"] == pytest.approx(max(seeds.values()))
        assert seeds[row["best_seed"]["name"]] == max(seeds.values())
        assert [each["t"] for each in row["thresholds"]] == [2, 3]
        for each in row["thresholds"]:
            clean = total[f"{name} {row['label']} t={each['t']}"]
            assert each["coverage"] == pytest.approx(clean[2].sum() / labels[2].sum())
            assert each["precision"] == pytest.approx(clean[0].sum() / clean[2].sum())
            assert each["miou"] == pytest.approx(miou_by_hand(clean))
    assert found["rows"][found["best"]["row"]]["miou"] == max(row["miou"] for row in found["rows"])
    assert found == read_json(sweep_dir(config) / "sweep.json")
    with (sweep_dir(config) / "sweep.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [float(row[rows[0].index("mIoU")]) for row in rows[1:]] == [round(100 * r["miou"], 1) for r in found["rows"]]
    assert [number for number, row in enumerate(rows[1:]) if row[0] == "*"] == [found["best"]["row"]]
    assert (sweep_dir(config) / "sweep.png").read_bytes().startswith(b"\x89PNG")


def miou_by_hand(counts):
    iou = [h / (p + t - h) for h, p, t in zip(*counts.tolist(), strict=True) if p + t - h]
    return sum(iou) / len(iou)


def test_what_is_there_is_not_computed_again(swept, tmp_path, monkeypatch):
    """Interrupted at the second shard: the first one's CAMs and counts are kept. Another alpha takes no CAMs, fewer
    photographs take nothing."""
    config = copy_of(swept[0], tmp_path)
    shutil.rmtree(sweep_dir(config))
    worked, fail_at = [], 1

    def sweep_or_stop(task):
        worked.append((task.shard, [setting.alpha for setting in task.settings]))
        if task.shard == fail_at:
            raise KeyboardInterrupt
        return sweep_shard(task)

    monkeypatch.setattr("distwsss.seeds.sweep.sweep_shard", sweep_or_stop)
    with pytest.raises(KeyboardInterrupt):
        sweep_seeds(config, SweepOptions(ALPHAS))
    assert not (sweep_dir(config) / "sweep.json").exists()
    before, fail_at = times_below(sweep_dir(config)), None
    assert len(before) == 2 + len(ALPHAS)  # CAMs of two photographs, counts of a shard under two settings
    sweep_seeds(config, SweepOptions(ALPHAS))
    assert worked == [(0, [1.0, 4.0]), (1, [1.0, 4.0]), (1, [1.0, 4.0]), (2, [1.0, 4.0])]
    cams = times_below(sweep_dir(config) / "cams")
    sweep_seeds(config, SweepOptions((4.0, 2.0)))
    assert worked[4:] == [(shard, [2.0]) for shard in range(3)]
    sweep_seeds(config, SweepOptions((2.0, 1.0), images=2))
    assert len(worked) == 7
    assert times_below(sweep_dir(config) / "cams") == cams
    assert len(cams) == 5
    assert before.items() <= times_below(sweep_dir(config)).items()
    again = counts_of(config)
    assert len(again.keys) == 2
    for name in ("configured:sum:1 vote", "configured:sum:1 mean_cam t=3"):
        whole = dict(zip(counts_of(swept[0]).keys, counts_of(swept[0]).columns[name], strict=True))
        np.testing.assert_array_equal(again.columns[name], np.stack([whole[key] for key in again.keys]))


def times_below(folder):
    return {path.relative_to(folder.parent): path.stat().st_mtime_ns for path in folder.rglob("*.npz")}


def test_cams_of_other_classifiers_are_not_used(swept, tmp_path):
    config = copy_of(swept[0], tmp_path)
    write_classifiers(config, CLASSES, seed=10)
    sweep_seeds(config, SweepOptions(ALPHAS))
    fresh = made(tmp_path / "fresh")
    write_classifiers(fresh, CLASSES, seed=10)
    sweep_seeds(fresh, SweepOptions(ALPHAS))
    ours, theirs, old = (counts_of(each).columns for each in (config, fresh, swept[0]))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert not all(np.array_equal(ours[name], old[name]) for name in theirs)


def test_the_masks_of_the_tuning_ids_are_used_and_said(swept, tmp_path, caplog):
    caplog.set_level("INFO", "distwsss")
    config = copy_of(swept[0], tmp_path, data={"tuning_ids": ["photo.0", "photo.3"]})
    found = sweep_seeds(config, SweepOptions((1.0,), labels=("mean_cam",), output=tmp_path / "out"))
    assert (found["ids"], found["masks_of"]) == (["photo.0", "photo.3"], "data.tuning_ids")
    assert "scored by the masks of 2 photographs (data.tuning_ids)" in caplog.text
    assert read_json(tmp_path / "out" / "sweep.json") == found
    assert [row["label"] for row in found["rows"]] == ["mean_cam"]


def test_without_masks_it_is_refused(tmp_path):
    with pytest.raises(DataError, match="found no mask"):
        sweep_seeds(made(tmp_path, truth=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SweepOptions((2.0, 0.0)), "--alpha: found 0; allowed"),
        (SweepOptions(crfs=("cam_labels",)), "--crf: found 'cam_labels'; allowed: cam_label, "),
        (SweepOptions(labels=("votes",)), "--label: found 'votes'; allowed: vote, mean_cam, mean_marginals"),
        (SweepOptions(images=0), "--images: found 0"),
        (SweepOptions(images=1, folds=True), "--folds: found 1 photograph"),
    ],
)
def test_other_values_are_refused_by_name(swept, options, message):
    with pytest.raises(ConfigError, match=message):
        sweep_seeds(swept[0], options)


def test_the_verb(swept, tmp_path, capfd):
    """Its options reach the sweep, a stage's are refused with it, and what describes the run stays as it is."""
    config = copy_of(swept[0], tmp_path)
    (tmp_path / "tiny.yaml").write_text(dump_yaml(config))
    command = ["seeds", "sweep", "--config", str(tmp_path / "tiny.yaml")]
    before = sorted(path.name for path in run_dir(config).iterdir())
    options = "--alpha 1,4 --crf afa,irn --normalise sum --label vote --folds --images 4"
    assert cli.main([*command, *options.split()]) == 0
    found = read_json(sweep_dir(config) / "sweep.json")
    assert [(row["crf"], row["alpha"]) for row in found["rows"]] == list(itertools.product(("afa", "irn"), ALPHAS))
    assert (found["images"], [fold["scored_on"] for fold in found["folds"]["folds"]]) == (4, [2, 2])
    assert "two folds" in capfd.readouterr().out
    assert sorted(path.name for path in run_dir(config).iterdir()) == sorted({*before, "lock"})
    assert cli.main([*command, "--remake"]) == 2
    assert cli.main(["seeds", "--config", str(tmp_path / "tiny.yaml"), "--folds"]) == 2
    assert "found --folds; allowed: with `distwsss seeds sweep`" in capfd.readouterr().err
    assert not seeds_dir(config).exists()


def test_two_folds_choose_on_one_half_and_score_the_other():
    """Four images of one true class; label and seed each good on one half only, so that what is chosen is bad where it
    is scored."""
    keys = [key_from_name(f"photo.{number}") for number in range(4)]
    first = np.array([key in halves(set(keys))[0] for key in keys])
    assert first.sum() == 2

    def counts(hits):
        """hits: of ten pixels of class 1; the others are taken for background."""
        hits = np.asarray(hits)
        zero = np.zeros_like(hits)
        rows = ((zero, hits), (10 - hits, hits), (zero, zero + 10))  # hits, predicted, true
        return np.stack([np.stack(row, -1) for row in rows], 1)

    label = {"a": counts(np.where(first, 9, 1)), "b": counts(np.where(first, 2, 8))}
    seed = {"a": counts(np.where(first, 7, 3)), "b": counts(np.where(first, 4, 6))}
    ts = {f"vote t={t}": label["a"] for t in thresholds(1)}
    each = {name: ImageCounts(keys, {"vote": label[name], "s": seed[name], **ts}) for name in "ab"}
    alphas = [Setting(name, "sum", 1.0, None) for name in "ab"]
    renamed = {setting.name: each[setting.crf] for setting in alphas}
    found = two_folds(Sweep(["background", "cat"], alphas, ("vote",), ["s"], 1, renamed))
    assert [fold["label"] for fold in found["folds"]] == ["a:sum:1 vote", "b:sum:1 vote"]
    chosen = np.concatenate([label["a"][~first], label["b"][first]])
    seeds = np.concatenate([seed["a"][~first], seed["b"][first]])
    after = np.concatenate([seed["b"][~first], seed["a"][first]])
    assert found["miou"] == pytest.approx(miou_of(chosen.sum(axis=0)))
    for name, other in (("against_chosen_seed", seeds), ("against_best_seed_afterwards", after)):
        interval = paired_bootstrap(chosen, other)
        assert found[name]["difference"]["value"] == pytest.approx(miou_of(chosen.sum(0)) - miou_of(other.sum(0)))
        assert (found[name]["difference"]["low"], found[name]["difference"]["high"]) == (interval.low, interval.high)
    assert found["against_chosen_seed"]["difference"]["value"] < 0


def test_one_crf_call_takes_few_settings_of_one_crf():
    """The memory of a call is bounded, and none mixes CRF parameters."""
    given = tuple(Setting(crf, "sum", float(alpha), SeedsSection()) for alpha in range(1, 6) for crf in ("a", "b"))
    found = list(blocks(given, 2))
    assert [[setting.name for setting in block] for block in found] == [
        [f"{crf}:sum:{alpha}" for alpha in alphas] for crf in "ab" for alphas in ((1, 2), (3, 4), (5,))
    ]


def test_a_smaller_block_changes_no_count(swept, tmp_path, monkeypatch):
    config = copy_of(swept[0], tmp_path)
    shutil.rmtree(sweep_dir(config) / "counts")
    monkeypatch.setattr("distwsss.seeds.sweep_chunk.STACK_BYTES", 1)
    sweep_seeds(config, SweepOptions(ALPHAS))
    ours, theirs = counts_of(config).columns, counts_of(swept[0]).columns
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert load_index(images_dir(config, "train"), "images").counts == [2, 2, 1]
