"""The gradient of a step does not depend on how its global batch is shared: Eq. 10 over all its images at once.

`distwsss train` makes one step of plain SGD with so large a learning rate that the change of the weights over the rate
is the gradient; it is compared with autograd through `hybrid_loss` on the whole batch in float64, without Accelerate.
The network has BatchNorm (frozen) and no kinks: at a ReLU float32 and float64 may take different sides.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.launching import make_shards
from helpers.small import last_weights
from torch import Tensor
from torch.nn.functional import interpolate

from distwsss.data.batches.loader import Batch
from distwsss.runtime.layout import run_dir
from distwsss.config import Config
from distwsss.data.batches.plan import plan
from distwsss.losses.hybrid import hybrid_loss
from distwsss.train.task import segmenter_task

LR = 1e12
TOLERANCE = 1e-5
SMOOTH = {"name": "test_efficientnet", "pretrained": False, "output_stride": 8, "norm": "frozen"}
Gradient = dict[str, Tensor]


def sections(global_batch: int, micro_batch: int | None) -> dict[str, Any]:
    optim = {
        "duration": "1 steps", "global_batch": global_batch, "lr": LR, "schedule": "constant", "momentum": 0.0,
        "weight_decay": 0.0, "head_multiplier": 1.0, "bias_multiplier": 1.0,
    }  # fmt: skip
    train = {"optim": optim, "holdout": 0.0, "temperature": 1.0, "head_dropout": 0.0, "augment": {"resize": [0.5, 1.2]}}
    return {"train": {**train, "backbone": SMOOTH}, "hardware": {"micro_batch": micro_batch}}


def first_batch(config: Config) -> Batch:
    """All samples of step 0, image by image."""
    task = segmenter_task(config)
    samples = plan(task.selection, config.seed, 0, config.train.optim.global_batch)
    loaded = [task.samples(sample, task.selection.index.key(sample.shard, sample.position)) for sample in samples]
    return Batch([], **{name: torch.stack([each[name] for each in loaded]) for name in loaded[0]})


def reference(config: Config, batch: Batch) -> Gradient:
    """Eq. 10 on `batch` and its gradient in float64."""
    model = segmenter_task(config).model.double()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    size = batch.labels.shape[-2:]
    logits = interpolate(model(batch.image.double()), size=size, mode="bilinear", align_corners=False)
    loss = hybrid_loss(logits, batch.labels, batch.clean, complements=batch.complements).value
    gradients = torch.autograd.grad(loss, list(trained.values()))
    return dict(zip(trained, gradients, strict=True))


def difference(found: Gradient, wanted: Gradient) -> float:
    """The largest relative difference over the parameters, each as a vector."""
    return max(float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)


def check(config: Config) -> None:
    """The step that the finished run of `config` made against the reference."""
    start = {name: value.double() for name, value in segmenter_task(config).model.state_dict().items()}
    moved = {name: (start[name] - value.double()) / LR for name, value in last_weights(run_dir(config)).items()}
    wanted = reference(config, first_batch(config))
    assert len(wanted) > 10
    assert all(value.norm() > 0 for value in wanted.values())
    assert difference(moved, wanted) < TOLERANCE
    frozen = moved.keys() - wanted.keys()
    assert any("bn" in name for name in frozen)
    assert all(torch.equal(moved[name], torch.zeros_like(moved[name])) for name in frozen)


@pytest.fixture
def trained(distwsss, tiny, tiny_file):
    """trained(ranks, global_batch, micro_batch) -> the configuration of a run of one step, and what it printed."""

    def run(ranks: int, global_batch: int, micro_batch: int | None) -> tuple[Config, str]:
        config = tiny(**sections(global_batch, micro_batch))
        make_shards(config)
        done = distwsss("train", "--config", tiny_file(**sections(global_batch, micro_batch)), ranks=ranks)
        assert done.returncode == 0, done.stderr
        return config, done.stderr

    return run


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "accumulation"),
    [
        (1, None, 1),
        (2, None, 1),
        (2, 2, 2),
        pytest.param(1, 2, 4, marks=pytest.mark.slow),
        pytest.param(3, 2, 2, marks=pytest.mark.slow),
    ],
)
def test_gradient_is_that_of_the_whole_batch(trained, ranks: int, micro_batch: int | None, accumulation: int) -> None:
    """Ranks x micro-batches of a global batch of 8, also where their sizes differ (3 x 2: two of 2, four of 1)."""
    config, log = trained(ranks, 8, micro_batch)
    assert f"= {ranks} rank(s) x {accumulation} micro-batch(es)" in log
    check(config)


@pytest.mark.slow
def test_a_slice_without_samples_adds_nothing(trained) -> None:
    """3 images on 2 ranks x 2 micro-batches of at most 1: one of the four is empty."""
    config, log = trained(2, 3, 1)
    assert "= 2 rank(s) x 2 micro-batch(es) of 1" in log
    check(config)


def test_the_slices_differ_so_that_wrong_counts_would_show(tiny) -> None:
    """The mean of the slices' own losses, what a loop without shared counts would step on, is far off."""
    for global_batch, parts in ((8, 2), (8, 4), (3, 3)):
        config = tiny(run_dir(tiny()).parent / f"{global_batch}x{parts}", **sections(global_batch, None))
        make_shards(config)
        batch = first_batch(config)
        valid = batch.labels != 255
        for mask in (valid, valid & batch.clean, valid & ~batch.clean):
            assert len({int(part.sum()) for part in mask.chunk(parts)}) == parts
        slices = [batch.map(lambda tensor, i=i: tensor.chunk(parts)[i]) for i in range(parts)]
        each = [reference(config, part) for part in slices]
        mean = {name: torch.stack([gradient[name] for gradient in each]).mean(0) for name in each[0]}
        assert difference(mean, reference(config, batch)) > 100 * TOLERANCE
