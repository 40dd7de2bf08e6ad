"""DeepSpeed ZeRO against DDP on the same ranks, whole and killed: steps, clipping, accumulation, checkpoints.

Two ranks of two micro-batches each, gradients clipped, augmentation on. Dropout is off where engines are compared: the
activations of ZeRO lie in another order in memory, so that the same random numbers fall on other ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.launching import Run, Start, make_shared
from safetensors.torch import load_file
from torch import Tensor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CLIP = 0.1
OPTIM = {
    "duration": "6 steps", "global_batch": 8, "lr": 0.001, "clip_grad": CLIP, "save_every": "2 steps", "keep_last": 9,
    "keep_optimizer": True,
}  # fmt: skip
OPTIMIZERS = {
    "sgd": {},
    "adamw": {"train.optim.optimizer": "adamw", "train.optim.weight_decay": 0.01},
}
Make = Callable[..., Run]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """run(name, optimizer, zero=None, dropout=0.0) -> a run on shards that all share."""
    train = {"holdout": 0.0, "head_dropout": 0.0, "optim": OPTIM}
    folder = make_shared(tmp_path_factory.mktemp("shared"), train=train, hardware={"micro_batch": 2})

    def make(name: str, optimizer: str, zero: str | None = None, dropout: float = 0.0) -> Run:
        settings = {"hardware.deepspeed": zero} if zero else {}
        return Run(folder, name, {**OPTIMIZERS[optimizer], **settings, "train.head_dropout": dropout})

    return make


@pytest.fixture(scope="module")
def finished(run: Make) -> Callable[[str, str | None], Run]:
    """finished(optimizer, zero) -> a run from start to end, made once."""

    def find(optimizer: str, zero: str | None) -> Run:
        found = run(f"{optimizer}-{zero}", optimizer, zero)
        if not found.train.is_dir():
            assert found(Start()) == 0, found.log
            assert "= 2 rank(s) x 2 micro-batch(es) of 2" in found.log
        return found

    return find


def checkpoint(found: Run, step: int = 6) -> Path:
    return found.train / f"checkpoints/step-{step:08d}"


def weights(found: Run) -> dict[str, Tensor]:
    return load_file(checkpoint(found) / "model.safetensors")


def states(found: Run) -> dict[str, dict[str, Tensor]]:
    return torch.load(checkpoint(found) / "optimizer.pt", weights_only=True)


def check_same_steps(found: Run, wanted: Run) -> None:
    """Losses and gradient norms as of the other engine; clipping had something to do."""
    for name in ("loss", "grad_norm"):
        lines = {line["step"]: line[name] for line in found.lines()}
        assert lines == pytest.approx(wanted.losses(name=name), rel=1e-5)
        assert list(lines) == [1, 2, 3, 4, 5, 6]
    assert min(wanted.losses(name="grad_norm").values()) > CLIP


def check_same_checkpoint(found: Run, wanted: Run) -> None:
    """The files of the other engine: equal descriptions, whole float32 tensors of equal names and near values."""
    files = [sorted(path.name for path in checkpoint(each).iterdir()) for each in (found, wanted)]
    assert files[0] == files[1]
    for name in ("config.json", "trainer.json"):
        texts = [json.loads((checkpoint(each) / name).read_text()) for each in (found, wanted)]
        assert texts[0] == texts[1]
    ours, theirs = weights(found), weights(wanted)
    assert list(ours) == list(theirs)
    assert {name for name, value in theirs.items() if value.dtype != torch.float32} <= {
        name for name in theirs if name.endswith("num_batches_tracked")
    }
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)
    ours_kept, theirs_kept = states(found), states(wanted)
    assert ours_kept.keys() == theirs_kept.keys()
    for name, kept in theirs_kept.items():
        assert ours_kept[name].keys() == kept.keys()
        for key, value in kept.items():
            torch.testing.assert_close(ours_kept[name][key], value, rtol=1e-3, atol=1e-6)


def check_same_bits(found: Run, wanted: Run) -> None:
    assert found.weights() == wanted.weights()
    ours, theirs = states(found), states(wanted)
    assert all(torch.equal(ours[name][key], theirs[name][key]) for name in theirs for key in theirs[name])
    losses = wanted.losses()
    assert all(line["loss"] == losses[line["step"]] for line in found.lines())


@pytest.mark.parametrize(
    ("optimizer", "zero"),
    [
        ("adamw", "zero1"),
        ("sgd", "zero2"),
        ("adamw", "zero3"),
        ("adamw", "zero2_offload"),
        ("sgd", "zero3_offload"),
    ],
)
def test_steps_and_checkpoints_are_those_of_ddp(
    finished: Callable[[str, str | None], Run], optimizer: str, zero: str
) -> None:
    found, wanted = finished(optimizer, zero), finished(optimizer, None)
    check_same_steps(found, wanted)
    check_same_checkpoint(found, wanted)


@pytest.mark.parametrize(("optimizer", "zero"), [("sgd", "zero2"), ("adamw", "zero3")])
def test_a_killed_rank_and_torchruns_restart_give_the_bits_of_the_undisturbed_run(
    run: Make, optimizer: str, zero: str
) -> None:
    wanted, found = (run(f"{name}-{zero}", optimizer, zero, dropout=0.3) for name in ("undisturbed", "killed"))
    assert wanted(Start()) == 0, wanted.log
    hooks = {"in-step:5:rank1": "sleep: 2; kill"}  # rank 0 writes step 4 meanwhile
    assert found(Start(hooks=[hooks], restarts=1)) == 0, found.log
    assert min(found.losses(1)) == 5
    check_same_bits(found, wanted)


def test_ddp_goes_on_where_zero_was_killed(run: Make, finished: Callable[[str, str | None], Run]) -> None:
    """AdamW's moments and step count, which ZeRO-3 had in parts."""
    found = run("left", "adamw")
    hooks = {"in-step:5:rank1": "sleep: 2; kill"}
    assert found(Start(hooks=[hooks]), **{"hardware.deepspeed": "zero3"}) == 1, found.log
    assert "do not answer" in found.log
    assert found(Start()) == 0, found.log
    assert list(found.losses(1)) == [5, 6]
    wanted = finished("adamw", None)
    check_same_steps(found, wanted)
    torch.testing.assert_close(weights(found), weights(wanted), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("launcher", ["deepspeed", "accelerate"])
def test_one_process_trains_a_classifier_after_the_other(run: Make, launcher: str) -> None:
    """Each with a DeepSpeed plugin and trackers of its own, in the process group of the first."""
    folder = run("classified", "sgd").folder
    settings = {"hardware.trackers": "[tensorboard]"}
    wanted = Run(folder, f"ddp-{launcher}", settings, verb="classify")
    found = Run(folder, f"zero3-{launcher}", {**settings, "hardware.deepspeed": "zero3"}, verb="classify")
    for each, start in ((wanted, Start()), (found, Start(launcher))):
        assert each(start) == 0, each.log
    for dropout in ("0.10", "0.30"):
        folders = [folder / each.name / "classify" / dropout for each in (found, wanted)]
        assert all(list(each.rglob("events.out.tfevents.*")) for each in folders)
        ours, theirs = (load_file(each / "checkpoints/step-00000004/model.safetensors") for each in folders)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        scores = [np.load(each / "scores.npy") for each in folders]
        assert (scores[0] > 0).all(), "a photograph that no rank looked at"
        np.testing.assert_allclose(*scores, rtol=1e-4)
