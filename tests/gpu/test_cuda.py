"""What only a machine with a GPU can show: `python -m pytest -m gpu`; no other target runs it.

Processes of `distwsss train` on CUDA, beside the same command on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.command import run_distwsss
from helpers.paths import REPOSITORY
from helpers.small import merged, tiny_tree

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
STEPS = 8
TRAIN = {  # steps so small that differences of rounding stay small
    "holdout": 0.0,
    "optim": {"duration": f"{STEPS} steps", "lr": 1e-4, "save_every": "2 steps", "keep_optimizer": True},
}
# as `distwsss` itself, with the most bytes that were allocated as the last line
MEASURED = """
import sys, torch
from distwsss.cli import main
limit = int(sys.argv.pop(1))
if limit:
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
code = main(sys.argv[1:])
print(torch.cuda.max_memory_allocated())
sys.exit(code)
"""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """labelled(name, device, **hardware) -> arguments of `train`, run `name`, on pseudo-labels that the CPU made."""
    folder = tmp_path_factory.mktemp("labelled")

    def write(name: str, **sections: Any) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(merged(tiny_tree(folder), sections)))
        return path

    for verb in ("prepare", "classify", "seeds"):
        options = ["--executor", "local"] if verb == "seeds" else []
        done = run_distwsss(verb, "--config", write("made"), *options)
        assert done.returncode == 0, done.stderr

    def arguments(name: str, device: str = "cuda", **hardware: Any) -> list[str]:
        hardware = {"device": device, "tf32": False, **hardware}
        paths = {"run": str(folder / name), "shards": str(folder / "shards")}
        return ["train", "--config", str(write(name, train=TRAIN, hardware=hardware, paths=paths))]

    return arguments


def run_of(arguments: list[str]) -> Path:
    return Path(arguments[2]).with_suffix("") / "train"


def losses(arguments: list[str]) -> dict[int, float]:
    lines = [json.loads(line) for line in (run_of(arguments) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def good(arguments: list[str], **options: Any) -> dict[int, float]:
    done = run_distwsss(*arguments, **options)
    assert done.returncode == 0, done.stderr
    assert list(losses(arguments)) == list(range(1, STEPS + 1))
    return losses(arguments)


@pytest.fixture(scope="module")
def on_cpu(labelled: Callable[..., list[str]]) -> dict[int, float]:
    return good(labelled("cpu", "cpu"))


def test_losses_are_those_of_the_cpu(labelled: Callable[..., list[str]], on_cpu: dict[int, float]) -> None:
    assert good(labelled("float32")) == pytest.approx(on_cpu, rel=1e-3)


def test_micro_batches_change_nothing(labelled: Callable[..., list[str]], on_cpu: dict[int, float]) -> None:
    assert good(labelled("cut", micro_batch=1)) == pytest.approx(on_cpu, rel=1e-3)


def test_bf16_keeps_float32_weights(labelled: Callable[..., list[str]], on_cpu: dict[int, float]) -> None:
    arguments = labelled("bf16", mixed_precision="bf16", tf32=True)
    assert good(arguments) == pytest.approx(on_cpu, rel=0.05)
    checkpoints = run_of(arguments) / "checkpoints"
    last = checkpoints / (checkpoints / "LAST").read_text().strip()
    assert {value.dtype for value in load_file(last / "model.safetensors").values()} <= {torch.float32, torch.int64}
    states = torch.load(last / "optimizer.pt", weights_only=True)
    assert {value.dtype for state in states.values() for value in state.values()} == {torch.float32}


def test_the_gpu_goes_on_where_the_cpu_was_killed(labelled: Callable[..., list[str]], on_cpu: dict[int, float]) -> None:
    assert run_distwsss(*labelled("moved", "cpu"), fault="after-publish:step-00000004").returncode < 0
    assert good(labelled("moved")) == pytest.approx(on_cpu, rel=1e-3)


@pytest.mark.parametrize("zero", ["zero2", "zero3"])
def test_zero_on_one_gpu(labelled: Callable[..., list[str]], on_cpu: dict[int, float], zero: str) -> None:
    arguments = labelled(zero, deepspeed=zero)
    environment = {**os.environ, "NPROC": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [REPOSITORY / "launchers/torchrun_local.sh", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(arguments) == pytest.approx(on_cpu, rel=1e-3)


def measured(arguments: list[str], limit: int = 0) -> subprocess.CompletedProcess[str]:
    """The finished process; limit: bytes that torch may take, 0 for all."""
    command = [sys.executable, "-c", MEASURED, str(limit), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_peak_of_memory_is_the_estimated_one(tmp_path: Path, recomputes: bool) -> None:
    """DeepLab on ResNet-101 in bf16. What is allocated lies between the estimate without and with its allowance, less a
    tenth: the context of CUDA, which the allowance covers too, is not allocated by torch."""
    train = {
        "backbone": {"name": "resnet101", "pretrained": False, "output_stride": 8}, "holdout": 0.0,
        "augment": {"crop": 321, "resize_by": "factor"}, "optim": {"duration": "3 steps", "global_batch": 4},
    }  # fmt: skip
    hardware = {"device": "cuda", "card": "h100", "mixed_precision": "bf16", "activation_checkpointing": recomputes}
    data = {"shapes": {"train": 8, "val": 2, "size": 336}}
    tree = merged(tiny_tree(tmp_path), {"train": train, "hardware": hardware, "data": data})
    path = tmp_path / "resnet101.yaml"
    path.write_text(yaml.safe_dump(tree))
    for verb in ("prepare", "classify", "seeds"):
        cpu = ["--set", "hardware.device=cpu", "--set", "hardware.mixed_precision=no"]
        cpu += ["--set", "hardware.activation_checkpointing=false"]
        options = ["--executor", "local"] if verb == "seeds" else []
        assert run_distwsss(verb, "--config", path, *cpu, *options).returncode == 0
    shown = run_distwsss("estimate", "--config", path, "--json")
    memory = json.loads(shown.stdout)["stages"][1]["memory"]
    done = measured(["train", "--config", str(path)])
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.splitlines()[-1])
    print(f"peak {peak:,}, estimated {memory['total'] - memory['allowance']:,} and allowance {memory['allowance']:,}")
    assert 0.9 * (memory["total"] - memory["allowance"]) <= peak <= memory["total"]


def test_out_of_memory_says_what_to_change(labelled: Callable[..., list[str]]) -> None:
    """Weights and states fit into the limit, the first convolution's 12 x 24 x 256 x 256 float32 do not."""
    crop = ["--set", "train.augment.crop=512", "--set", "train.optim.global_batch=12"]
    done = measured([*labelled("out"), *crop], limit=64 << 20)
    assert done.returncode == 1
    places = [done.stderr.find(key) for key in ("hardware.micro_batch", "activation_checkpointing", "mixed_precision")]
    assert -1 < places[0] < places[1] < places[2], done.stderr
