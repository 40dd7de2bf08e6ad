"""What a launcher's environment, Accelerate's and DeepSpeed's JSON may say: contradictions are refused, all named."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from distwsss.config.hardware import HardwareSection
from distwsss.data.batches.loader import share_batch
from distwsss.data.prepare import prepare
from distwsss.errors import ConfigError, LaunchError
from distwsss.train.engine.accelerate import check_environment, deepspeed_file, make_accelerator
from distwsss.train.engine.zero_config import deepspeed_config
from distwsss.train.loop import fit
from distwsss.train.task import classifier_task
from helpers.paths import CONFIGS

LAUNCH = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
CPU = HardwareSection(device="cpu")

DEEPSPEED = CONFIGS / "deepspeed"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    """environment(**variables): these alone of a launcher's and Accelerate's; what a test changes is taken back."""
    before = dict(os.environ)

    def set_to(**variables: str) -> None:
        for name in [name for name in os.environ if name.startswith("ACCELERATE_") or name in LAUNCH]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    set_to()
    yield set_to
    monkeypatch.undo()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def test_what_contradicts_accelerates_environment_is_listed(environment, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    environment(
        ACCELERATE_MIXED_PRECISION="fp16",
        ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4",
        ACCELERATE_USE_FSDP="true",
        ACCELERATE_USE_DEEPSPEED="true",
        ACCELERATE_DEEPSPEED_CONFIG_FILE=str(other),
    )
    hardware = HardwareSection(device="cpu", mixed_precision="bf16", deepspeed=str(DEEPSPEED / "zero2.json"))
    with pytest.raises(ConfigError) as caught:
        make_accelerator(hardware, accumulation=2)
    text = str(caught.value)
    assert "ACCELERATE_MIXED_PRECISION: found fp16, but hardware.mixed_precision is bf16" in text
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS: found 4, but accumulation from hardware.micro_batch is 2" in text
    assert "ACCELERATE_USE_FSDP: found true" in text
    assert f"ACCELERATE_DEEPSPEED_CONFIG_FILE: found {other}, but hardware.deepspeed is {DEEPSPEED}/zero2.json" in text


def test_accelerates_deepspeed_without_ours_is_refused(environment) -> None:
    environment(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="2")
    with pytest.raises(ConfigError, match=r"found none, but hardware\.deepspeed is None"):
        make_accelerator(CPU)


def test_accelerates_cpu_on_a_machine_with_cuda_is_refused(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(ACCELERATE_USE_CPU="true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"ACCELERATE_USE_CPU: found true, but hardware\.device is auto and CUDA"):
        make_accelerator(HardwareSection())


def test_what_agrees_or_was_not_asked_for_is_accepted(environment) -> None:
    environment(ACCELERATE_MIXED_PRECISION="no", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="2")
    check_environment(HardwareSection(device="cpu", mixed_precision="bf16"), 2, on_cpu=True)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"


def test_accelerates_deepspeed_variables_go_once_they_agree(environment) -> None:
    """They would override the JSON that was filled from the configuration."""
    environment(
        ACCELERATE_USE_DEEPSPEED="true",
        ACCELERATE_DEEPSPEED_CONFIG_FILE=os.path.relpath(DEEPSPEED / "zero2.json"),
        ACCELERATE_DEEPSPEED_ZERO_STAGE="3",
    )
    check_environment(HardwareSection(device="cpu", deepspeed=str(DEEPSPEED / "zero2.json")), 1, on_cpu=True)
    assert not [name for name in os.environ if name.startswith("ACCELERATE_") and "DEEPSPEED" in name]


@pytest.fixture
def new_state() -> Iterator[None]:
    """Accelerate's state is one for the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_port_in_use_is_one_message(environment, new_state: None) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        environment(**{**LAUNCH, "MASTER_PORT": port})
        with pytest.raises(LaunchError, match=rf"127\.0\.0\.1:{port} .*EADDRINUSE.*; allowed: .* free port"):
            make_accelerator(CPU)
    assert not torch.distributed.is_initialized()


def test_deepspeed_needs_a_launcher(environment) -> None:
    hardware = HardwareSection(device="cpu", deepspeed="zero2")
    with pytest.raises(LaunchError, match=r"hardware\.deepspeed is zero2, but no launcher .*torchrun_local\.sh"):
        make_accelerator(hardware, 1, zero={})


def test_a_global_batch_smaller_than_the_world_names_the_nearest_settings(environment, tiny, tmp_path: Path) -> None:
    environment(**{**LAUNCH, "RANK": "10", "WORLD_SIZE": "11"})
    config = tiny(classify={"optim": {"global_batch": 10}})
    prepare(config)
    with pytest.raises(ConfigError, match=r"some of 11 ranks .* allowed: global_batch 11 or more, or at most 10 ranks"):
        fit(classifier_task(config, 0.1), config.hardware, tmp_path / "a", seed=0)


def test_without_a_name_there_is_no_file() -> None:
    assert deepspeed_file(CPU) is None


@pytest.mark.parametrize("given", ["zero2", str(DEEPSPEED / "zero2.json")])
def test_a_name_or_a_path_is_a_file_of_configs(given: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert deepspeed_file(HardwareSection(deepspeed=given)) == DEEPSPEED / "zero2.json"


def test_a_file_here_goes_before_that_of_configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero2").write_text("{}")
    assert deepspeed_file(HardwareSection(deepspeed="zero2")) == Path("zero2")


def test_a_file_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"hardware\.deepspeed nowhere: no such file; looked for .*/nowhere and .*/nowhere\.json"
    ):
        filled("nowhere")


def filled(path: Path | str, clip: float | None = None, world: int = 2, **hardware: Any) -> dict[str, Any]:
    """DeepSpeed's JSON for a global batch of 12 in micro-batches of 2."""
    section = HardwareSection(device="cpu", deepspeed=str(path), **hardware)
    found = deepspeed_config(section, share_batch(12, 2, 0, world), clip)
    assert found is not None
    return found


def made(tmp_path: Path, **keys: Any) -> Path:
    path = tmp_path / "ours.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **keys}))
    return path


FILES = pytest.mark.parametrize("path", sorted(DEEPSPEED.glob("*.json")), ids=lambda path: path.stem)


@FILES
def test_the_files_of_configs_are_filled_as_deepspeed_reads_them(path: Path) -> None:
    """DeepSpeed's own reader, which checks that the batch is micro-batch x accumulation x ranks."""
    from deepspeed.runtime.config import DeepSpeedConfig

    read = DeepSpeedConfig(filled(path, clip=0.5, world=1, mixed_precision="bf16"))
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (12, 2, 6)
    assert read.gradient_clipping == 0.5
    assert not read.bfloat16_config.enabled
    assert not read.float16_config.enabled
    assert read.zero_config.stage == int(path.stem[4])
    assert (read.zero_config.offload_optimizer is not None) == path.stem.endswith("_offload")


@FILES
def test_every_auto_of_a_file_is_filled(path: Path) -> None:
    found = filled(path)
    assert '"auto"' not in json.dumps(found)
    assert found["gradient_clipping"] == 0.0
    assert found["train_batch_size"] == 12


def test_every_contradiction_of_the_json_is_listed(tmp_path: Path) -> None:
    path = made(
        tmp_path,
        train_batch_size=16,
        train_micro_batch_size_per_gpu=4,
        gradient_accumulation_steps=1,
        gradient_clipping=1.0,
        bf16={"enabled": True},
        fp16={"enabled": True, "loss_scale": "auto"},
        optimizer={"type": "Adam"},
        scheduler={"type": "WarmupLR"},
        amp={"enabled": True},
        zero_optimization={"stage": 4, "overlap_comm": "auto", "reduce_bucket_size": "many"},
    )
    with pytest.raises(ConfigError) as caught:
        filled(path, clip=0.5, mixed_precision="fp16")
    text = str(caught.value)
    for line in (
        "train_batch_size: found 16, but the configuration says 12; allowed: auto or 12",
        "train_micro_batch_size_per_gpu: found 4, but the configuration says 2",
        "gradient_accumulation_steps: found 1, but the configuration says 3",
        "gradient_clipping: found 1.0, but the configuration says 0.5",
        "bf16.enabled: found True; allowed: auto or false",
        "fp16.enabled: found True; allowed: auto or false",
        "fp16.loss_scale: found auto; allowed: a value, or leave it out",
        "optimizer: the optimizer is the configuration's: leave it out",
        "scheduler: the schedule is the configuration's: leave it out",
        "amp: set hardware.mixed_precision instead",
        "zero_optimization.stage: found 4; allowed: 1, 2 or 3",
        "zero_optimization.overlap_comm: found auto",
        "zero_optimization.reduce_bucket_size: found 'many'; ",
        "hardware.mixed_precision: found fp16; allowed with DeepSpeed: bf16 or no",
    ):
        assert text.count(line) == 1, text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gradient_cliping": 1.0}, "gradient_cliping: unknown key; did you mean gradient_clipping?"),
        ({"zero_optimisation": {"stage": 1}}, "zero_optimisation: unknown key; did you mean zero_optimization?"),
        ({"bf16": {"enable": True}}, "bf16.enable: unknown key; did you mean enabled?"),
        ({"quux": 1}, "quux: unknown key; allowed: train_batch_size, "),
        (
            {"zero_optimization": {"stage": 2, "overlapcomm": True}},
            "zero_optimization.overlapcomm: unknown key; did you mean overlap_comm?",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin": True}}},
            "zero_optimization.offload_optimizer.pin: unknown key",
        ),
        ({"zero_optimization": {}}, "zero_optimization.stage: found None; allowed: 1, 2 or 3"),
        ({"zero_optimization": 2}, "zero_optimization: found 2; allowed: an object"),
    ],
)
def test_a_misspelt_key_is_an_error(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        filled(made(tmp_path, **keys))
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "found list; allowed: an object")])
def test_what_is_no_json_object_is_an_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        filled(tmp_path / "bad.json")
