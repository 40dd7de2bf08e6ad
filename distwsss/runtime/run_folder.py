"""The run folder: lock, resolved configuration, command line, environment and exit code. Called by `cli`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import distwsss
from distwsss.config import Config
from distwsss.config.load import dump_yaml
from distwsss.errors import ConfigError, RunError, report_problems
from distwsss.runtime.artifacts import write_bytes, write_json
from distwsss.runtime.storage import CREDENTIALS

PACKAGES = ["torch", "torchvision", "timm", "accelerate", "webdataset", "numpy", "pillow", "pydensecrf2", "pydantic"]
ENVIRONMENT = ["OMP_NUM_THREADS", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"]
SECRET = re.compile(r"(token|secret|password)([^=\s]*)=\S+", re.IGNORECASE)


def masked(text: str) -> str:
    """Credentials in URLs and values of keys named token, secret or password, replaced by stars."""
    return CREDENTIALS.sub(r"\1***@", SECRET.sub(r"\1\2=***", text))


def config_text(config: Config) -> bytes:
    """The resolved configuration as it is stored beside results."""
    return masked(dump_yaml(config)).encode()


def _git_state() -> str | None:
    folder = Path(distwsss.__file__).parent
    try:
        command = ["git", "describe", "--always", "--dirty"]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Versions, platform, git state and the environment variables of the allow-list."""
    return {
        "distwsss": distwsss.__version__,
        "git": _git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {package: _version(package) for package in PACKAGES},
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def check_absolute_roots(config: Config) -> None:
    """For a Ray cluster, where a relative folder would lie in some process's own working folder. Raises ConfigError."""
    roots: dict[str, Any] = {"paths.run": config.run_dir, "paths.shards": config.shard_dir}
    if config.classify.backbone.weights:
        roots["classify.backbone.weights"] = Path(config.classify.backbone.weights)
    problems = [
        f"`{key}`: found {folder}; allowed: an absolute path on storage that all nodes share"
        + (", or a URL such as s3://BUCKET/PREFIX" if key == "paths.shards" else "")
        for key, folder in roots.items()
        if isinstance(folder, Path) and not folder.is_absolute()
    ]
    if problems:
        raise ConfigError(report_problems("work on the Ray cluster at RAY_ADDRESS", problems))


@contextmanager
def open_run(config: Config, describe: bool = True) -> Iterator[Path]:
    """Lock the run folder and `describe` what is run in it; rank 0 only, the other ranks go straight on.

    Raises RunError when another process holds the lock. `exit.json` is written by `record_exit`.
    """
    folder = config.run_dir
    if int(os.environ.get("RANK", "0")) != 0:
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder}: locked, another distwsss works on it; wait for it or choose another name") from None
    try:
        if describe:
            write_bytes(folder / "config.yaml", config_text(config))
            write_bytes(folder / "command.txt", f"{masked(' '.join(sys.argv))}\n".encode())
            write_json(folder / "env.json", environment())
        yield folder
    finally:
        lock.release()


def record_exit(folder: Path, code: int, message: str) -> None:
    """`exit.json`: torchrun and `ray job submit` return 1 for any of our codes."""
    if folder.is_dir() and int(os.environ.get("RANK", "0")) == 0:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with suppress(OSError, RunError):  # a full disk: the error that ends the run is the one to show
            write_json(folder / "exit.json", {"code": code, "message": masked(message), "time": now})
