"""DeepSpeed's JSON: checked, and filled from our configuration; the only file that imports deepspeed. Called by
`train.loop` and `zero`.

No "auto" is left to Accelerate, whose own values differ (clipping 1.0), and no precision to DeepSpeed: weights,
gradients and optimizer states are float32, the loop autocasts the forward, so the master weights are the weights.
"""

from __future__ import annotations

import difflib
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distwsss.config.hardware import HardwareSection
from distwsss.data.batches.loader import Share
from distwsss.errors import ConfigError, report_problems
from distwsss.train.engine.accelerate import deepspeed_file

OURS = "the configuration's: leave it out"
REFUSED = {
    "optimizer": f"the optimizer is {OURS}",
    "scheduler": f"the schedule is {OURS}",
    "amp": "set hardware.mixed_precision instead",
    "torch_autocast": "set hardware.mixed_precision instead",
}
KNOWN = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("bf16", "fp16", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
    *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "communication_data_type"),
    *("comms_logger", "aio", "activation_checkpointing", "flops_profiler"),
)
PRECISION = (
    *("enabled", "auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis"),
    *("consecutive_hysteresis", "min_loss_scale", "fp16_master_weights_and_grads", "immediate_grad_update"),
    *("check_overflow", "bf16_master_weights_and_grads", "bf16_optimizer_states"),
)


def deepspeed_config(hardware: HardwareSection, share: Share, clip: float | None) -> dict[str, Any] | None:
    """hardware.deepspeed's JSON with batch, accumulation, clipping and precision as the configuration has them.

    None without one. Raises ConfigError naming every key that contradicts it, is unknown, or is left "auto".
    """
    path = deepspeed_file(hardware)
    if path is None:
        return None
    tree = _read(path)
    import_deepspeed()
    problems = _problems(tree) + _zero_problems(tree) + _fill(tree, share, clip)
    if hardware.mixed_precision == "fp16":
        problems.append("hardware.mixed_precision: found fp16; allowed with DeepSpeed: bf16 or no")
    if problems:
        raise ConfigError(report_problems(f"{path} does not fit the configuration", problems))
    return tree


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"hardware.deepspeed: {path.absolute()}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"hardware.deepspeed: {path}: not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"hardware.deepspeed: {path}: found {type(tree).__name__}; allowed: an object")
    return tree


def _problems(tree: dict[str, Any]) -> list[str]:
    """Keys that DeepSpeed would skip without a word, keys that the configuration has, and the stage."""
    problems = [f"{key}: {REFUSED[key]}" for key in tree if key in REFUSED]
    problems += [_unknown(key, key, KNOWN) for key in tree if key not in (*REFUSED, *KNOWN)]
    for name in ("bf16", "fp16", "zero_optimization"):
        if not isinstance(tree.get(name, {}), dict):
            raise ConfigError(f"hardware.deepspeed: {name}: found {tree[name]!r}; allowed: an object")
    for name in ("bf16", "fp16"):
        problems += [_unknown(f"{name}.{key}", key, PRECISION) for key in tree.get(name, {}) if key not in PRECISION]
    stage = tree.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        problems.append(f"zero_optimization.stage: found {stage!r}; allowed: 1, 2 or 3")
    return problems


def _unknown(name: str, key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"{name}: unknown key; " + (f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}")


def _zero_problems(tree: dict[str, Any]) -> list[str]:
    """What DeepSpeed's own check of zero_optimization, which ends in a traceback, would refuse."""
    zero_section = import_deepspeed().runtime.zero.config.DeepSpeedZeroConfig
    try:
        zero_section(**tree.get("zero_optimization", {}))
    except ValidationError as error:
        known = [str(field.alias or name) for name, field in zero_section.model_fields.items()]
        problems = []
        for item in error.errors():
            name, key = ".".join(map(str, ["zero_optimization", *item["loc"]])), str(item["loc"][-1])
            if item["type"] == "extra_forbidden":
                problems.append(_unknown(name, key, known) if len(item["loc"]) == 1 else f"{name}: unknown key")
            elif key != "stage":
                problems.append(f"{name}: found {item['input']!r}; {item['msg']}")
        return problems
    return []


def _fill(tree: dict[str, Any], share: Share, clip: float | None) -> list[str]:
    """Set what is missing or "auto" in place; returns what contradicts and what is "auto" without a value of ours.

    train_batch_size is DeepSpeed's product of the other two; slices of ranks may hold a sample less.
    """
    ours = {
        "train_micro_batch_size_per_gpu": share.micro_batch,
        "gradient_accumulation_steps": share.accumulation,
        "train_batch_size": share.micro_batch * share.accumulation * share.world,
        "gradient_clipping": clip or 0.0,
    }
    problems = []
    for key, value in ours.items():
        found = tree.get(key, "auto")
        if found not in ("auto", value):
            problems.append(f"{key}: found {found}, but the configuration says {value}; allowed: auto or {value}")
        tree[key] = value
    for key in ("bf16", "fp16"):
        section = tree.setdefault(key, {})
        if section.get("enabled", "auto") not in ("auto", False):
            problems.append(
                f"{key}.enabled: found {section['enabled']}; allowed: auto or false: weights stay float32, "
                "hardware.mixed_precision is what the forward computes in"
            )
        section["enabled"] = False
    tree.setdefault("steps_per_print", 10**9)
    tree.setdefault("zero_force_ds_cpu_optimizer", False)  # the configuration's optimizer, not DeepSpeed's
    tree["zero_allow_untested_optimizer"] = True
    zero = tree.get("zero_optimization")
    if isinstance(zero, dict) and zero.get("stage3_gather_16bit_weights_on_model_save") == "auto":
        zero["stage3_gather_16bit_weights_on_model_save"] = False  # checkpoints gather float32
    problems += [f"{key}: found auto; allowed: a value, or leave it out" for key in _autos(tree)]
    return problems


def _autos(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _autos(value, f"{prefix}{key}.")
        elif value == "auto":
            yield f"{prefix}{key}"


def import_deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            "hardware.deepspeed is set, but deepspeed is not installed; run `pip install 'distwsss[deepspeed]'`"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # of torch's functions that DeepSpeed calls under their old names, several a step
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    return deepspeed
