"""Small runs that the tests share: generated data, `tiny` networks, seconds each."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distwsss.config import Config
from distwsss.config.load import check_config
from distwsss.data.prepare import prepare
from distwsss.runtime.progress import log

os.environ.setdefault("OMP_NUM_THREADS", "1")
# what DeepSpeed compiles at its first start, once for all tests
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(__file__).resolve().parents[1] / "build" / "torch_extensions"))

TINY_OPTIM = {"duration": "4 steps", "global_batch": 4, "lr": 0.01, "log_every": 1}
TINY_BACKBONE = {"name": "tiny", "pretrained": False, "output_stride": 8}
TINY_AUGMENT = {"crop": 48, "resize": [0.8, 1.2], "resize_by": "factor"}


def tiny_tree(folder: Path) -> dict[str, Any]:
    """The configuration of a run of seconds: 12 generated images of 64 pixels, two classifiers, four seeds."""
    return {
        "name": "tiny",
        "paths": {"run": str(folder / "run"), "shards": str(folder / "shards")},
        "hardware": {"device": "cpu", "workers": 0, "loader_workers": 0, "timeout_seconds": 60},
        "data": {"dataset": "shapes", "shapes": {"train": 12, "val": 4, "size": 64}},
        "prepare": {"shard_size": 4},
        "classify": {
            "dropouts": [0.1, 0.3], "backbone": TINY_BACKBONE, "augment": TINY_AUGMENT, "optim": TINY_OPTIM,
        },
        "seeds": {"threshold": 3},
        "train": {"backbone": TINY_BACKBONE, "augment": TINY_AUGMENT, "optim": TINY_OPTIM, "head_dropout": 0.0},
        "report": {"images": 2},
    }  # fmt: skip


def merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in top.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and key in result else value
    return result


@pytest.fixture(autouse=True)
def _own_logger() -> Iterator[None]:
    """The package's logger as `import` leaves it, so that caplog sees its lines; the command line changes it."""
    before = log.handlers[:], log.level, log.propagate
    log.handlers[:], log.propagate = [], True
    log.setLevel(logging.NOTSET)
    yield
    log.handlers[:], level, log.propagate = before
    log.setLevel(level)


@pytest.fixture
def tiny(tmp_path: Path):
    """tiny(**sections) -> Config, its run and shards below tmp_path."""

    def make(folder: Path = tmp_path, **sections: Any) -> Config:
        return check_config(merged(tiny_tree(folder), sections))

    return make


@pytest.fixture
def tiny_file(tmp_path: Path):
    """tiny_file(**sections) -> path of a YAML file with that configuration."""

    def make(folder: Path = tmp_path, **sections: Any) -> Path:
        path = folder / "tiny.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(merged(tiny_tree(folder), sections)), encoding="utf-8")
        return path

    return make


@pytest.fixture
def prepared(tiny) -> Config:
    """A configuration of `tiny` whose image shards are there."""
    config = tiny()
    prepare(config)
    return config


def run_distwsss(
    *arguments: object, ranks: int = 1, fault: str | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished process `distwsss ARGUMENTS` (under torchrun for several ranks), its output as text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    if fault:
        environment |= {"DISTWSSS_ENABLE_FAULTS": "1", "DISTWSSS_FAULT": fault}
    launch = [sys.executable, "-m"]
    if ranks > 1:
        launch += ["torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
        launch += ["--rdzv-endpoint=localhost:0", "-m"]
    command = [*launch, "distwsss", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False, cwd=cwd)


@pytest.fixture
def distwsss():
    """`run_distwsss`."""
    return run_distwsss
