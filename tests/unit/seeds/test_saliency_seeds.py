"""Seeds with a saliency map: in the CRF's distribution, and as one more voter."""

import json
import shutil

import numpy as np
import pytest

from distwsss.data.images import decode_image, decode_mask, encode_gray
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.errors import ConfigError, ShardError
from distwsss.maths.cam import cam_to_full, compute_cam
from distwsss.maths.crf import refine
from distwsss.maths.saliency import salient_label, with_saliency
from distwsss.models.export import from_pretrained
from distwsss.runtime.layout import images_dir, pseudo_dir, saliency_dir, seeds_dir
from distwsss.saliency.maps import make_saliency
from distwsss.seeds.generate import run_seeds
from distwsss.seeds.plan import plan_seeds
from helpers.small import make_config, write_classifiers, write_images, write_saliency

CLASSES = ["background", "cat", "dog", "hat"]
LABELS = [[1, 3], [], [2]]
NAMES = ["0.10-1.00", "0.30-1.00"]


def settings(folder):
    """Two seeds and the saliency map vote."""
    seeds = {"scales": [1.0], "saliency_unary": True, "saliency_voter": True, "label": "vote", "threshold": 2}
    return make_config(folder, seeds=seeds, saliency={"folder": str(folder / "maps")})


@pytest.fixture
def made(tmp_path):
    config = settings(tmp_path)
    write_images(config, "train", 3, CLASSES, labels=LABELS, sizes=[(24, 32), (28, 24)])
    write_classifiers(config, CLASSES)
    return config, write_saliency(config)


def samples_of(folder, kind, fields):
    index = load_index(folder, kind)
    return {key: found for shard in range(len(index.shards)) for key, found in iter_shard(index, shard, fields)}


def test_seeds_and_voter_are_what_the_map_says(made):
    config, maps = made
    run_seeds(config)
    assert load_index(seeds_dir(config), "seeds").extra["seeds"] == [*NAMES, "mean_cam", "mean_marginals", "saliency"]
    assert load_index(pseudo_dir(config), "pseudo").extra["seeds"] == [*NAMES, "saliency"]
    models = [from_pretrained(folder) for folder in plan_seeds(config).classifiers]
    photos = samples_of(images_dir(config, "train"), "images", ["jpg", "json"])
    votes = samples_of(pseudo_dir(config), "pseudo", ["label.png", "votes.png"])
    found = samples_of(seeds_dir(config), "seeds", [f"{kind}{k}.png" for kind in "sm" for k in range(5)])
    for (key, members), grey in zip(found.items(), maps, strict=True):
        decoded = {field: decode_mask(data, key) for field, data in members.items()}
        image, labels = decode_image(photos[key]["jpg"], key), json.loads(photos[key]["json"])["labels"]
        if not labels:
            assert all((decoded[f"s{k}.png"] == 0).all() for k in range(5))
            continue
        cams = [cam_to_full(compute_cam(model, image, labels), *image.shape[:2]) for model in models]
        salient = grey.astype(np.float32) / 255
        mean = (cams[0] + cams[1]) / 2
        mean /= mean.max(axis=(1, 2), keepdims=True) + 1e-5
        for k, cam in enumerate([*cams, mean]):
            marginals = refine(image, with_saliency(cam, salient)[None], config.seeds.crf)[0]
            top = np.sort(marginals, axis=0)
            decided = top[-1] - top[-2] > 1e-3
            assert decided.mean() > 0.9
            wanted = np.array([0, *labels])[marginals.argmax(axis=0)]
            np.testing.assert_array_equal(decoded[f"s{k}.png"][decided], wanted[decided])
            np.testing.assert_allclose(decoded[f"m{k}.png"], 255 * top[-1], atol=0.6)
        np.testing.assert_array_equal(decoded["s4.png"], salient_label(mean, labels, salient))
        np.testing.assert_array_equal(decoded["m4.png"], np.maximum(grey, 255 - grey))
        assert set(np.unique(decoded["s4.png"])) - {0} <= set(labels)
        voters = np.stack([decoded[f"s{k}.png"] for k in (0, 1, 4)])
        labels_found, counts = (decode_mask(votes[key][field], key) for field in ("label.png", "votes.png"))
        np.testing.assert_array_equal(counts, (voters == labels_found).sum(axis=0))


def test_other_maps_are_refused_by_name(made, tmp_path):
    """Those of the folder that changed, and shards that were made anew from it."""
    config, _ = made
    run_seeds(config)
    before = {path: path.read_bytes() for path in seeds_dir(config).iterdir()}
    darken(tmp_path / "maps")
    with pytest.raises(ConfigError, match=r"saliency .*\n  inputs\.folder: was"):
        run_seeds(config)
    make_saliency(config, remake=True)
    with pytest.raises(ConfigError, match=r"inputs\.saliency: was"):
        run_seeds(config)
    assert {path: path.read_bytes() for path in seeds_dir(config).iterdir()} == before


def darken(folder):
    for path in folder.iterdir():
        grey = decode_mask(path.read_bytes(), path.name)
        path.write_bytes(encode_gray(np.minimum(grey, 200)))


def test_without_maps_there_are_no_seeds(made):
    config, _ = made
    shutil.rmtree(saliency_dir(config))
    with pytest.raises(ShardError, match="distwsss saliency"):
        run_seeds(config)
