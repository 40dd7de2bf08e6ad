"""Checkpoints: copied before they are written in the background, never executed, states by name as torch has them."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distwsss.config.training import OptimSection
from distwsss.errors import CheckpointError, RunError
from distwsss.runtime.artifacts import write_manifest
from distwsss.train import checkpoint
from distwsss.train.checkpoint import (
    CheckpointWriter,
    bytes_to_come,
    load_checkpoint,
    load_optimizer_states,
    newest_checkpoint,
    optimizer_states,
    write_checkpoint,
)

OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "plain sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1),
}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def groups(self) -> list[dict[str, Any]]:
        """Not in the order of `parameters`."""
        return [{"params": [self.last.weight, self.last.bias]}, {"params": [self.first.weight, self.norm.weight]}]


def step(network: Network, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    network.last(network.norm(network.first(images))).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_by_name_are_those_of_torch(name: str) -> None:
    """Through torch's own state_dict into one copy, by names into another, whose groups are the other way round."""
    network = Network()
    optimizer = OPTIMIZERS[name](network.groups())
    for seed in range(3):
        step(network, optimizer, seed)
    states = optimizer_states(network, optimizer)
    assert states.keys() <= {"last.weight", "last.bias", "first.weight", "norm.weight"}
    theirs, ours = Network(), Network().to(memory_format=torch.channels_last)
    reference, found = OPTIMIZERS[name](theirs.groups()), OPTIMIZERS[name](ours.groups()[::-1])
    reference.load_state_dict(optimizer.state_dict())
    load_optimizer_states(ours, found, states)
    assert len(found.state) == len(states)
    for its, own in zip(theirs.parameters(), ours.parameters(), strict=True):
        wanted = {key: value for key, value in reference.state[its].items() if value is not None}
        assert {key: value for key, value in found.state[own].items() if value is not None}.keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(found.state[own][key], value)
            assert value.ndim == 0 or found.state[own][key].stride() == own.stride()
    step(ours, found, 3)


def trainer(number: int) -> dict[str, Any]:
    return {"step": number, "total": 9, "attempt": 0, "parameters": {"seed": 1}}


def saved(folder: Path, network: Network, states: dict[str, Any], number: int = 2) -> Path:
    return write_checkpoint(folder, network.state_dict(), {"of": "a test"}, states, trainer(number), keep_last=9)


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_checkpoint_runs_no_code(name: str, form: str, tmp_path: Path) -> None:
    """With a manifest that fits: who writes the checkpoint writes that too."""
    network = Network()
    pickle.loads(pickle.dumps(Harm(tmp_path / "harm")))
    (tmp_path / "harm").unlink()
    folder = saved(tmp_path, network, {})
    if form == "torch":
        torch.save({"first.weight": {"exp_avg": Harm(tmp_path / "harm")}}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm"), protocol=2))
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder, network, {"seed": 1})
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"nowhere": {"exp_avg": torch.zeros(3)}}, "another layout"),
        ({"first.weight": {"exp_avg": torch.zeros(3)}}, "another layout"),
        ({"first.weight": torch.zeros(4, 3, 3, 3)}, "another layout"),
        ({"nowhere": {"step": torch.tensor(3.0)}}, "states of nowhere"),
        ([1, 2], "another layout"),
    ],
)
def test_other_states_are_refused(states: Any, message: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, Network(), states)
    with pytest.raises(CheckpointError, match=rf"optimizer\.pt: found {message}; allowed: states of this run's"):
        load_checkpoint(folder, Network(), {"seed": 1})


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_bytes_to_come_are_those_that_checkpoints_take(name: str, tmp_path: Path) -> None:
    section = OptimSection(optimizer=name, keep_last=3)
    model = nn.Sequential(nn.Conv2d(64, 256, 3), nn.BatchNorm2d(256), nn.Conv2d(256, 256, 3))
    model[0].weight.requires_grad_(False)
    optimizer = OPTIMIZERS[name]([p for p in model.parameters() if p.requires_grad])
    model(torch.randn(2, 64, 5, 5)).sum().backward()
    optimizer.step()
    before = bytes_to_come(tmp_path, model, section)
    found = write_checkpoint(
        tmp_path, model.state_dict(), {"of": "a test"}, optimizer_states(model, optimizer), trainer(1), keep_last=3
    )
    taken = sum(path.stat().st_size for path in found.iterdir())
    assert before == pytest.approx(4 * taken, rel=0.02)
    assert before - bytes_to_come(tmp_path, model, section) == taken


def test_what_is_trained_on_meanwhile_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save` returns once everything is copied, and the next one waits: its copies go to the same memory."""
    write, go = checkpoint.write_checkpoint, threading.Event()

    def late(*arguments: Any) -> Path:
        assert go.wait(30)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write_checkpoint", late)
    network, writer = Network(), CheckpointWriter(tmp_path, keep_last=9)
    wanted = {}
    for number in (1, 2):
        with torch.no_grad():
            network.first.weight.fill_(number)
        states = {"first.weight": {"exp_avg": torch.full((4, 3, 3, 3), float(number))}}
        threading.Timer(0.2, go.set).start()
        writer.save(network.state_dict(), {"of": "a test"}, states, trainer(number))
        wanted[number] = {name: value.clone() for name, value in network.state_dict().items()}
        with torch.no_grad():
            network.first.weight.fill_(-1)
            states["first.weight"]["exp_avg"].fill_(-1)
    writer.wait()
    writer.close()
    for number, weights in wanted.items():
        found = load_file(tmp_path / f"step-{number:08d}" / "model.safetensors")
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        _, states = load_checkpoint(tmp_path / f"step-{number:08d}", Network(), {"seed": 1})
        assert (states["first.weight"]["exp_avg"] == number).all()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000002"
    assert writer.slowest() >= 0.2


def test_what_goes_wrong_in_the_thread_is_raised_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise RunError("no room")

    monkeypatch.setattr(checkpoint, "write_checkpoint", full)
    writer = CheckpointWriter(tmp_path, keep_last=1)
    for ask in (writer.wait, lambda: writer.save({}, {}, None, trainer(2))):
        writer.save({}, {}, None, trainer(1))
        with pytest.raises(RunError, match="no room"):
            ask()
        assert writer.failed() is None  # it was said
    writer.close()
