"""The run folder: lock, resolved configuration, command line, environment and exit code. Called by `cli` and
`pipeline`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import distwsss
from distwsss.config import Config
from distwsss.config.hardware import without_credentials
from distwsss.config.load import dump_yaml
from distwsss.errors import DistwsssError, RunError
from distwsss.runtime import ranks
from distwsss.runtime.artifacts import write_bytes, write_json
from distwsss.runtime.layout import describing_files

PACKAGES = ["torch", "torchvision", "timm", "accelerate", "webdataset", "numpy", "pillow", "pydensecrf2", "pydantic"]
ENVIRONMENT = ["OMP_NUM_THREADS", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"]
FROM_PYTHON = "(from Python, no command line)"
SECRET = re.compile(r"(token|secret|password)([^=\s]*)=\S+", re.IGNORECASE)


def masked(text: str) -> str:
    """Credentials in URLs and values of keys named token, secret or password, replaced by stars."""
    return without_credentials(SECRET.sub(r"\1\2=***", text))


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


@contextmanager
def open_run(config: Config, command: str | None, describe: bool = True) -> Iterator[None]:
    """Lock the run folder, `describe` what is run in it, and record how it ends; rank 0 only, others go straight on.

    command: what command.txt says, None where Python called. Raises RunError when another process holds the lock.
    """
    if ranks.rank() != 0:
        yield
        return
    files = describing_files(config)
    files["lock"].parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(files["lock"])
    try:
        lock.acquire(timeout=0)
    except Timeout:
        folder = files["lock"].parent
        raise RunError(f"{folder}: locked, another distwsss works on it; wait for it or choose another name") from None
    try:
        if describe:
            write_bytes(files["configuration"], config_text(config))
            write_bytes(files["command"], f"{masked(command or FROM_PYTHON)}\n".encode())
            write_json(files["environment"], environment())
        with _exit_recorded(files["exit"]):
            yield
    finally:
        lock.release()


@contextmanager
def _exit_recorded(path: Path) -> Iterator[None]:
    """`exit.json`: torchrun and `ray job submit` return 1 for any of our codes."""
    code, message = 1, "ended unexpectedly"
    try:
        yield
        code, message = 0, "ok"
    except DistwsssError as error:
        code, message = error.exit_code, str(error)
        raise
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with suppress(OSError, RunError):  # a full disk: the error that ends the run is the one to show
            write_json(path, {"code": code, "message": masked(message), "time": now})
