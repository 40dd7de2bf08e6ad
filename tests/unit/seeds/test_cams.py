"""CAMs of several passes with dropout active, against explicitly masked features in float64; batches and order."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from distwsss.data.images import decode_image
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import iter_shard
from distwsss.errors import ConfigError
from distwsss.maths.cam import scaled_input
from distwsss.models.export import from_pretrained
from distwsss.runtime.layout import images_dir
from distwsss.seeds.cams import cam_shard, kept_channels
from distwsss.seeds.plan import plan_seeds
from helpers.small import make_config, write_classifiers, write_images

CLASSES = ["background", "cat", "dog", "hat"]
LABELS = [[1, 3], [2]]


def made(folder, images=2, **seeds):
    """One size, so that photographs share a batch; two a shard."""
    config = make_config(folder, seeds={"scales": [1.0], "threshold": 2, **seeds})
    if not images_dir(config, "train").exists():
        write_images(config, "train", images, CLASSES, labels=[LABELS[n % 2] for n in range(images)], sizes=[(24, 32)])
        write_classifiers(config, CLASSES)
    return config


def cams_of(config, seed=1, **changes):
    """Key -> the CAM of a seed, of the photographs of the first shard."""
    task = replace(plan_seeds(config).chunk(0, False).cams[seed], **changes)
    index = load_index(images_dir(config, "train"), "images")
    keys = [key for key in index.shards[0].keys if task.keys is None or key in task.keys]
    return dict(zip(keys, cam_shard(task).cams, strict=True))


@pytest.mark.parametrize(("passes", "reduce"), [(0, "mean"), (1, "mean"), (5, "mean"), (5, "max")])
def test_a_cam_is_of_the_features_whose_channels_are_dropped(tmp_path, passes, reduce):
    """Of p = 0.3: every pass drops channels of the features and reads w_i^T f of the rest; without passes none does."""
    config = made(tmp_path, dropout_passes=passes, dropout_reduce=reduce)
    model = from_pretrained(plan_seeds(config).classifiers[1])
    weight = model.head.weight.detach()[:, :, 0, 0].double()
    index = load_index(images_dir(config, "train"), "images")
    found = cams_of(config)
    for key, members in iter_shard(index, 0, ["jpg", "json"]):
        pixels = scaled_input(decode_image(members["jpg"], key), 1.0, model)
        kept = kept_channels(model, key, passes).double() if passes else torch.ones(1, weight.shape[1]).double()
        total = 0
        for flipped in (False, True):
            with torch.inference_mode():
                features = model.backbone(pixels.flip(-1) if flipped else pixels)[0].double()
            maps = torch.stack([torch.einsum("nc,chw->nhw", weight, features * k[:, None, None]).relu() for k in kept])
            reduced = maps.amax(0) if reduce == "max" else maps.mean(0)
            total = total + (reduced.flip(-1) if flipped else reduced)
        wanted = total[[label - 1 for label in json.loads(members["json"])["labels"]]].numpy()
        np.testing.assert_allclose(found[key], wanted, rtol=2e-3, atol=1e-3 * wanted.max())  # float16 holds 11 bits
        assert wanted.max() > 0


def test_channels_are_drawn_by_photograph_and_p(tmp_path):
    classifiers = plan_seeds(made(tmp_path)).classifiers
    low, high = (from_pretrained(folder) for folder in classifiers)
    draws = kept_channels(high, "a", 400)
    keep = np.float32(1 / 0.7)
    assert set(np.unique(draws.numpy()).tolist()) == {0.0, float(keep)}
    assert abs((draws == 0).double().mean().item() - 0.3) < 4 * (0.3 * 0.7 / draws.numel()) ** 0.5
    assert torch.equal(kept_channels(high, "a", 400), draws)
    assert not torch.equal(kept_channels(high, "b", 400), draws)
    assert not torch.equal(kept_channels(low, "a", 400) == 0, draws == 0)


def test_neither_batch_nor_company_changes_a_byte(tmp_path):
    config = made(tmp_path, dropout_passes=3)
    keys = load_index(images_dir(config, "train"), "images").shards[0].keys
    whole = cams_of(config)
    together = cams_of(config, batch=2)
    for key in keys:
        (alone,) = cams_of(config, keys=(key,)).values()
        assert alone.tobytes() == whole[key].tobytes() == together[key].tobytes()
    assert whole[keys[0]].tobytes() != cams_of(made(tmp_path, dropout_passes=2))[keys[0]].tobytes()


def test_passes_are_refused_where_nothing_is_dropped_before_the_last_layer(tmp_path):
    backbone = {"name": "resnet38", "pretrained": False, "output_stride": 8}
    with pytest.raises(ConfigError, match=r"seeds\.dropout_passes`: found 2, .*'b7'; allowed: 0, or with dropout7"):
        make_config(tmp_path, classify={"dropout_layer": "b7", "backbone": backbone}, seeds={"dropout_passes": 2})
