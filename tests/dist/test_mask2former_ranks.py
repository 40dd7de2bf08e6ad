"""Mask2Former's step, hybrid and set loss, over two ranks with two micro-batches each is that of one process at once.

Every clean pixel is a point, so nothing is drawn. In float32: masked attention looks where a mask is above a half, and
a number of the other precision might lie on the other side. No parameter is left without a gradient, or DDP would wait.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.launching import make_shards
from helpers.small import last_weights

from distwsss.runtime.layout import run_dir
from distwsss.train.task import segmenter_task

LR = 1e8  # so large that the change of the weights over it is the gradient


def sections(micro_batch: int | None) -> dict[str, Any]:
    optim = {
        "duration": "1 steps", "global_batch": 8, "lr": LR, "schedule": "constant", "momentum": 0.0,
        "weight_decay": 0.0, "head_multiplier": 1.0, "bias_multiplier": 1.0,
    }  # fmt: skip
    sizes = {
        "hidden": 32, "feedforward": 64, "queries": 5, "encoder_layers": 1, "decoder_layers": 2, "points": 100_000,
    }  # fmt: skip
    backbone = {"name": "swin_tiny", "pretrained": False, "output_stride": 32}
    train = {"model": "mask2former", "mask2former": sizes, "backbone": backbone, "optim": optim, "holdout": 0.0}
    return {"train": {**train, "augment": {"resize": [0.5, 1.2]}}, "hardware": {"micro_batch": micro_batch}}


@pytest.mark.slow
def test_gradient_does_not_depend_on_ranks_and_micro_batches(distwsss, tiny, tiny_file, tmp_path: Path) -> None:
    moved = []
    for ranks, micro_batch in ((1, None), (2, 2)):
        folder = tmp_path / f"{ranks}"
        config = tiny(folder, **sections(micro_batch))
        make_shards(config)
        start = segmenter_task(config).model.state_dict()
        done = distwsss("train", "--config", tiny_file(folder, **sections(micro_batch)), ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert f"= {ranks} rank(s) x {ranks} micro-batch(es)" in done.stderr
        end = last_weights(run_dir(config))
        moved.append({name: (end[name] - tensor).double() / LR for name, tensor in start.items()})
    one, two = moved
    # the one is seen only through matrices that start at 0, the others are what softmax does not see: all keys share it
    still = {name for name, value in one.items() if value.norm() == 0 and not name.endswith("k_proj.bias")}
    assert still == {"pixel_decoder.level_embed"}
    size = sum(value.square().sum() for value in one.values()).sqrt()
    difference = sum((one[name] - two[name]).square().sum() for name in one).sqrt()
    assert difference / size < 1e-5
