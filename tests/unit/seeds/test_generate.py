"""The stage `seeds` on tiny generated shards: what it writes, that only its inputs decide the bytes, resuming."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from distwsss.config.load import dump_yaml
from distwsss.data.images import decode_clean, decode_image, decode_mask
from distwsss.data.shards.format import key_from_name
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.data.shards.verify import verify
from distwsss.data.shards.writer import write_index
from distwsss.errors import CheckpointError, ConfigError, RunError, ShardError
from distwsss.maths.cam import cam_to_full, compute_cam, probabilities
from distwsss.maths.crf import refine
from distwsss.maths.vote import vote
from distwsss.models.export import from_pretrained
from distwsss.runtime.artifacts import read_json, write_json
from distwsss.runtime.layout import images_dir, pseudo_dir, run_dir, seeds_dir, selected_file, shard_dir
from distwsss.seeds.generate import generate_seeds, run_seeds, vote_seeds
from distwsss.seeds.plan import plan_seeds
from helpers.small import flip_a_bit, make_config, merged, write_classifiers, write_images, write_saliency

CLASSES = ["background", "cat", "dog", "hat"]
LABELS = [[1], [2, 3], [], [1, 3], [2]]  # one image without labels
SIZES = [(40 + 3 * number, 60 - 5 * number) for number in range(5)]
NAMES = ["0.10-1.00", "0.10-1.20", "0.30-1.00", "0.30-1.20"]
VOTERS = [NAMES[0], NAMES[3], NAMES[1]]
SEEDS = {"scales": [1.0, 1.2], "alpha": 1.0, "label": "vote", "vote_on": VOTERS, "threshold": 2}


def settings(folder, **sections):
    """Four seeds, of which three vote."""
    return make_config(folder, **merged({"seeds": SEEDS}, sections))


def made(folder, truth=True, gain=1.0, **sections):
    """Five photographs of different sizes in three shards, and the classifiers."""
    config = settings(folder, **sections)
    names = [f"photo.{number}" for number in range(5)]
    write_images(config, "train", 5, CLASSES, truth, names, LABELS, SIZES)
    write_classifiers(config, CLASSES, gain=gain)
    return config


def bytes_of(config):
    folders = (seeds_dir(config), pseudo_dir(config))
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for folder in folders for path in folder.iterdir()}


def times_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def samples_of(folder, kind, fields):
    index = load_index(folder, kind)
    return {key: found for shard in range(len(index.shards)) for key, found in iter_shard(index, shard, fields)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    config = made(tmp_path_factory.mktemp("reference"))
    run_seeds(config)
    return config


def test_every_seed_is_cam_crf_argmax(reference):
    """Each seed anew and by itself: its CAM at its scale, its own CRF, the class of the largest marginal; then the CRF
    of the mean of their CAMs, and the mean of their marginals."""
    config, index = reference, load_index(seeds_dir(reference), "seeds")
    assert index.extra["seeds"] == [*NAMES, "mean_cam", "mean_marginals"]
    assert index.classes == CLASSES
    photos = samples_of(images_dir(config, "train"), "images", ["jpg", "json"])
    found = samples_of(seeds_dir(config), "seeds", [f"{kind}{k}.png" for kind in "sm" for k in range(7)])
    assert list(found) == list(photos)
    seen = set()
    for key, members in found.items():
        assert sorted(members) == sorted(f"{kind}{k}.png" for kind in "sm" for k in range(6))
        image, labels = decode_image(photos[key]["jpg"], key), json.loads(photos[key]["json"])["labels"]
        for k, marginals in enumerate(marginals_alone(config, image, labels)):
            seed, score = decode_mask(members[f"s{k}.png"], key), decode_mask(members[f"m{k}.png"], key)
            assert seed.shape == image.shape[:2]
            top = np.sort(marginals, axis=0)
            decided = top[-1] - top[-2] > 1e-3 if labels else np.ones(seed.shape, bool)
            np.testing.assert_array_equal(seed[decided], np.array([0, *labels])[marginals.argmax(axis=0)][decided])
            np.testing.assert_allclose(score, 255 * top[-1], atol=0.6)
            seen |= set(np.unique(seed).tolist())
    assert len(seen) > 1


def marginals_alone(config, image, labels):
    """float32[L+1,H,W] of each seed, of the mean of their CAMs, and the seeds' mean."""
    if not labels:
        return [np.ones((1, *image.shape[:2]))] * 6
    cams = []
    for p, scale in (name.split("-") for name in NAMES):
        classifier = from_pretrained(run_dir(config) / "classify" / p / "checkpoints" / "step-00000001")
        cam = compute_cam(classifier, image, labels, float(scale), None, [1.0])
        cams.append(cam_to_full(cam, *image.shape[:2]))
    mean = sum(cams) / 4
    mean /= mean.max(axis=(1, 2), keepdims=True) + 1e-5
    alone = [refine(image, probabilities(cam, 1.0, "sum")[None], config.seeds.crf)[0] for cam in [*cams, mean]]
    return [*alone, sum(alone[:4]) / 4]


def test_pseudo_labels_are_the_vote_of_the_named_seeds(reference):
    photos = samples_of(images_dir(reference, "train"), "images", ["jpg", "json"])
    fields = ["s0.png", "s3.png", "s1.png"]
    seeds = samples_of(seeds_dir(reference), "seeds", [*fields, "m0.png", "m3.png", "m1.png"])
    index = load_index(pseudo_dir(reference), "pseudo")
    assert index.extra["seeds"] == VOTERS
    wanted = ["jpg", "label.png", "votes.png", "clean.png", "json"]
    for key, found in samples_of(pseudo_dir(reference), "pseudo", wanted).items():
        voters = np.stack([decode_mask(seeds[key][field], key) for field in fields])
        scores = np.stack([decode_mask(seeds[key][f"m{field[1:]}"], key) for field in fields])
        labels, votes = vote(voters, scores.astype(np.float64))
        np.testing.assert_array_equal(decode_mask(found["label.png"], key), labels)
        np.testing.assert_array_equal(decode_mask(found["votes.png"], key), votes)
        np.testing.assert_array_equal(decode_clean(found["clean.png"], key), votes >= 2)
        assert found["jpg"] == photos[key]["jpg"]
        assert json.loads(found["json"]) == {**json.loads(photos[key]["json"]), "seeds": index.extra["seeds"]}


def test_shards_verify_and_nothing_else_is_left(reference):
    assert verify(shard_dir(reference)) == []
    assert sorted(times_of(seeds_dir(reference))) == sorted(
        ["index.json", "index.json.sha256", *(f"seeds-{i:05d}.tar" for i in range(3))]
    )


@pytest.mark.parametrize(
    ("seeds", "votes"),
    [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)],
    ids=["two, one that votes", "one, two that vote"],
)
def test_workers_do_not_change_a_byte(tmp_path, seeds, votes):
    """With everything that a worker may be asked for."""
    section = {"dropout_passes": 2, "saliency_unary": True, "saliency_voter": True, "vote_on": [*VOTERS, "saliency"]}
    options = {"seeds": section, "saliency": {"folder": str(tmp_path / "maps")}}
    alone = made(tmp_path / "alone", **options)
    write_saliency(alone)
    run_seeds(alone)
    config = made(tmp_path / "workers", **options, hardware={"workers": seeds})
    write_saliency(config)
    before = torch.get_num_threads()
    generate_seeds(plan_seeds(config))
    vote_seeds(plan_seeds(settings(tmp_path / "workers", **options, hardware={"workers": votes})))
    assert torch.get_num_threads() == before
    assert bytes_of(config) == bytes_of(alone)


def test_masks_do_not_change_a_byte(reference, tmp_path):
    config = made(tmp_path, truth=False)
    run_seeds(config)
    assert bytes_of(config) == bytes_of(reference)


def test_a_second_run_writes_nothing(reference):
    before = times_of(seeds_dir(reference)), times_of(pseudo_dir(reference))
    run_seeds(reference)
    assert (times_of(seeds_dir(reference)), times_of(pseudo_dir(reference))) == before


def copy_of(reference, folder, **sections):
    shutil.copytree(shard_dir(reference), folder / "shards")
    shutil.copytree(run_dir(reference), folder / "run")
    return settings(folder, **sections)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"seeds": {"alpha": 2.0}}, "seeds.alpha: was 1.0, now 2.0"),
        ({"classify": {"dropouts": [0.3, 0.1]}}, "dropouts"),  # the same seeds in another order
    ],
)
def test_other_parameters_are_refused_by_name(reference, tmp_path, sections, key):
    config = copy_of(reference, tmp_path, **sections)
    before = bytes_of(config)
    with pytest.raises(ConfigError, match=key):
        run_seeds(config)
    assert bytes_of(config) == before


OTHER_VOTES = {
    "t": {"threshold": 3},
    "order": {"vote_on": [NAMES[0], NAMES[1], NAMES[3]]},
    "ties": {"ties": "first"},
    "mean_cam": {"label": "mean_cam"},
    "mean_marginals": {"label": "mean_marginals"},
}


@pytest.mark.parametrize("seeds", OTHER_VOTES.values(), ids=OTHER_VOTES)
def test_another_vote_lies_beside_the_first(reference, tmp_path, seeds):
    """It is made of the seeds that are there, and the first stays as it is, complete."""
    config = copy_of(reference, tmp_path, seeds=seeds)
    first = pseudo_dir(settings(tmp_path))
    before = times_of(seeds_dir(config)), times_of(first)
    run_seeds(config)
    assert (times_of(seeds_dir(config)), times_of(first)) == before
    assert verify(shard_dir(config)) == []
    maps = samples_of(seeds_dir(config), "seeds", [f"{kind}{k}.png" for kind in "sm" for k in range(6)])
    section, voters = config.seeds, [NAMES.index(name) for name in config.voting_seeds()]
    for key, members in samples_of(pseudo_dir(config), "pseudo", ["label.png", "votes.png", "clean.png"]).items():
        found = {field: decode_mask(data, key) for field, data in maps[key].items()}
        seeds_there = [found[f"s{k}.png"] for k in voters]
        scores = np.stack([found[f"m{k}.png"] for k in voters]).astype(float) if section.ties == "scores" else None
        if section.label == "vote":
            labels, votes = vote(np.stack(seeds_there), scores)
        else:
            labels = found[f"s{4 + ['mean_cam', 'mean_marginals'].index(section.label)}.png"]
            votes = sum((seed == labels).astype(int) for seed in seeds_there)
        np.testing.assert_array_equal(decode_mask(members["label.png"], key), labels)
        np.testing.assert_array_equal(decode_mask(members["votes.png"], key), votes)
        np.testing.assert_array_equal(decode_clean(members["clean.png"], key), votes >= section.threshold)


@pytest.mark.parametrize("tuning", [[], ["photo.0", "photo.3"]], ids=["all", "tuning ids"])
def test_selected_seeds_are_the_best_of_a_class(reference, tmp_path, caplog, tuning):
    """By the masks of the tuning ids, where some are named, and only of those."""
    caplog.set_level("INFO", "distwsss")
    config = copy_of(reference, tmp_path, seeds={"vote_on": "selected", "threshold": None}, data={"tuning_ids": tuning})
    run_seeds(config)
    ids = tuning or [f"photo.{number}" for number in range(5)]
    keys = [key_from_name(name) for name in ids]
    truth = samples_of(images_dir(config, "train"), "images", ["truth.png"])
    maps = samples_of(seeds_dir(config), "seeds", [f"s{k}.png" for k in range(4)])
    best = set()
    for label in range(len(CLASSES)):
        iou = []
        for k in range(4):
            given = [(maps[key][f"s{k}.png"], truth[key]["truth.png"]) for key in keys]
            pairs = [(decode_mask(seed, ""), decode_mask(mask, "")) for seed, mask in given]
            hits = sum(((seed == label) & (mask == label)).sum() for seed, mask in pairs)
            either = sum((((seed == label) & (mask != 255)) | (mask == label)).sum() for seed, mask in pairs)
            iou.append(hits / either if either else -1)
        if max(iou) >= 0:
            best.add(NAMES[int(np.argmax(iou))])
    names = [name for name in NAMES if name in best]
    index = load_index(pseudo_dir(config), "pseudo")
    assert index.extra["seeds"] == names
    record = read_json(selected_file(config))
    assert (record["ids"], record["selected"]["seeds"]) == (ids, names)
    assert f"{', '.join(names)} vote, selected by the masks of {len(ids)} photographs" in caplog.text
    for key, members in samples_of(pseudo_dir(config), "pseudo", ["votes.png", "clean.png"]).items():
        unanimous = decode_mask(members["votes.png"], key) == len(names)
        np.testing.assert_array_equal(decode_clean(members["clean.png"], key), unanimous)
    before = times_of(pseudo_dir(config))
    run_seeds(config)
    assert times_of(pseudo_dir(config)) == before


def test_without_masks_all_seeds_vote(reference, tmp_path, caplog):
    config = made(tmp_path, truth=False, seeds={"vote_on": "selected"})
    run_seeds(config)
    assert load_index(pseudo_dir(config), "pseudo").extra["seeds"] == NAMES
    assert "no masks to select by: all seeds vote" in caplog.text


def test_retrained_classifiers_are_read_anew_in_one_process(reference, tmp_path):
    config = copy_of(reference, tmp_path)
    shutil.rmtree(seeds_dir(config))
    generate_seeds(plan_seeds(config))
    first = (seeds_dir(config) / "seeds-00000.tar").read_bytes()
    write_classifiers(config, CLASSES, seed=10)
    shutil.rmtree(seeds_dir(config))
    shutil.rmtree(pseudo_dir(config))
    generate_seeds(plan_seeds(config))
    assert (seeds_dir(config) / "seeds-00000.tar").read_bytes() != first


def test_seeds_of_other_classifiers_are_refused(reference, tmp_path):
    config = copy_of(reference, tmp_path)
    write_classifiers(config, CLASSES, seed=20)
    with pytest.raises(ConfigError, match="classifiers"):
        generate_seeds(plan_seeds(config))


def test_killed_and_run_again(reference, tmp_path):
    """kill -9 after the first shard: it is kept, the rest is made, and no byte differs."""
    config = made(tmp_path)
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    code = (
        "import sys; from distwsss.config import load_config; from distwsss.seeds.generate import run_seeds; "
        "run_seeds(load_config(sys.argv[1]))"
    )
    fault = {"DISTWSSS_ENABLE_FAULTS": "1", "DISTWSSS_FAULT": "after-shard:seeds-00000.tar"}
    command = [sys.executable, "-c", code, str(tmp_path / "config.yaml")]
    ended = subprocess.run(command, env={**os.environ, **fault}, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (seeds_dir(config) / "index.json").exists()
    before = times_of(seeds_dir(config))["seeds-00000.tar"]
    run_seeds(config)
    assert times_of(seeds_dir(config))["seeds-00000.tar"] == before
    assert bytes_of(config) == bytes_of(reference)


def test_a_half_made_stage_with_other_parameters_is_refused(reference, tmp_path):
    config = copy_of(reference, tmp_path)
    index = load_index(seeds_dir(config), "seeds")
    record = {"parameters": index.parameters, "record": index.shards[0].to_json()}
    write_json(seeds_dir(config) / "seeds-00000.tar.json", record)
    (seeds_dir(config) / "index.json").unlink()
    with pytest.raises(ConfigError, match=r"seeds\.alpha"):
        generate_seeds(plan_seeds(settings(tmp_path, seeds={"alpha": 4.0})))


def test_cams_without_activation_give_background(tmp_path):
    config = made(tmp_path, gain=0.0)
    with pytest.raises(RunError, match="all is background"):
        run_seeds(config)
    for key, members in samples_of(pseudo_dir(config), "pseudo", ["label.png", "votes.png"]).items():
        assert (decode_mask(members["label.png"], key) == 0).all()
        assert (decode_mask(members["votes.png"], key) == 3).all()


def test_maps_can_be_dropped(reference, tmp_path):
    config = copy_of(reference, tmp_path, seeds={"keep_maps": False})
    run_seeds(config)
    assert not seeds_dir(config).exists()
    before = times_of(pseudo_dir(config))
    run_seeds(config)
    assert times_of(pseudo_dir(config)) == before


@pytest.fixture(scope="module")
def dropped(reference, tmp_path_factory):
    """The folder of the reference without its seed shards."""
    folder = tmp_path_factory.mktemp("dropped")
    run_seeds(copy_of(reference, folder, seeds={"keep_maps": False}))
    return folder


@pytest.mark.parametrize(
    ("section", "key"),
    [({"alpha": 2.0}, r"seeds\.alpha: was 1\.0, now 2"), ({"base_size": 48}, r"seeds\.base_size: was None, now 48")],
)
def test_dropped_maps_do_not_hide_other_parameters(dropped, section, key):
    config = settings(dropped, seeds={"keep_maps": False, **section})
    before = times_of(pseudo_dir(config))
    with pytest.raises(ConfigError, match=key):
        run_seeds(config)
    assert times_of(pseudo_dir(config)) == before


def test_dropped_maps_do_not_hide_other_classifiers(reference, tmp_path):
    config = copy_of(reference, tmp_path, seeds={"keep_maps": False})
    run_seeds(config)
    write_classifiers(config, CLASSES, seed=10)
    with pytest.raises(ConfigError, match=r"inputs\.classifiers\.0\.10"):
        run_seeds(config)


def test_a_vote_made_before_it_recorded_the_seeds_is_complete_or_refused(dropped, tmp_path):
    shutil.copytree(dropped, tmp_path, dirs_exist_ok=True)
    config = settings(tmp_path, seeds={"keep_maps": False})
    index = load_index(pseudo_dir(config), "pseudo")
    write_index(index.folder, index.shards, index.parameters, CLASSES, "pseudo", {"seeds": index.extra["seeds"]})
    before = times_of(index.folder)
    run_seeds(config)
    assert times_of(index.folder) == before
    with pytest.raises(ConfigError, match=r"inputs\.seeds"):
        run_seeds(settings(tmp_path, seeds={"keep_maps": False, "alpha": 2.0}))


def test_the_vote_refuses_seeds_of_other_parameters(reference, tmp_path):
    config = copy_of(reference, tmp_path, seeds={"alpha": 2.0})
    shutil.rmtree(pseudo_dir(config))
    with pytest.raises(ConfigError, match=r"seeds\.alpha"):
        vote_seeds(plan_seeds(config))


def test_the_vote_is_bound_to_the_fingerprint_of_the_seeds(reference):
    seeds, pseudo = load_index(seeds_dir(reference), "seeds"), load_index(pseudo_dir(reference), "pseudo")
    assert pseudo.parameters["inputs"] == {"seeds": seeds.fingerprint}
    assert pseudo.extra["seed_parameters"] == seeds.parameters


def test_a_damaged_photograph_is_not_copied(reference, tmp_path):
    config = copy_of(reference, tmp_path)
    shutil.rmtree(pseudo_dir(config))
    flip_a_bit(images_dir(config, "train") / "images-00001.tar")
    with pytest.raises(ShardError, match=r"images-00001\.tar: sha256 differs"):
        vote_seeds(plan_seeds(config))


def test_a_damaged_classifier_makes_no_seeds(tmp_path):
    config = made(tmp_path)
    flip_a_bit(run_dir(config) / "classify/0.30/checkpoints/step-00000001/model.safetensors")
    with pytest.raises(CheckpointError, match=r"0\.30.*model\.safetensors: sha256 differs"):
        run_seeds(config)
    assert not seeds_dir(config).exists()


@pytest.mark.parametrize("missing", ["checkpoints/LAST", "done.json"])
def test_without_a_finished_classifier(tmp_path, missing):
    config = made(tmp_path)
    (run_dir(config) / "classify" / "0.30" / missing).unlink()
    with pytest.raises(CheckpointError, match=r"0\.30.*run `distwsss classify`"):
        run_seeds(config)


def test_batches_of_equal_size_change_no_pixel(tmp_path):
    """Photographs of two sizes, alternating, in batches of two: the seeds of one at a time, for CPU float32 sums."""

    def seeds(folder, batch):
        config = settings(folder, hardware={"cam_batch": batch})
        write_images(config, "train", 5, CLASSES, labels=[[1 + n % 3] for n in range(5)], sizes=[(40, 56), (40, 64)])
        write_classifiers(config, CLASSES)
        generate_seeds(plan_seeds(config))
        return samples_of(seeds_dir(config), "seeds", ["s0.png", "s1.png", "s2.png", "s3.png"])

    one, two = seeds(tmp_path / "one", 1), seeds(tmp_path / "two", 2)
    assert list(one) == list(two)
    different = total = 0
    for key, members in one.items():
        for field, data in members.items():
            maps = decode_mask(data, key), decode_mask(two[key][field], key)
            different, total = different + int((maps[0] != maps[1]).sum()), total + maps[0].size
    assert different <= total / 1000
