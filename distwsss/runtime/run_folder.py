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
from distwsss.config.load import dump_yaml, is_dump
from distwsss.errors import ConfigError, DataError, DistwsssError, RunError
from distwsss.runtime import ranks
from distwsss.runtime.artifacts import read_json, write_bytes, write_json
from distwsss.runtime.layout import (
    METRICS,
    RUN_CONTENTS,
    describing_files,
    done_file,
    pointers_below,
    run_dir,
    source_file,
    training_config_file,
)
from distwsss.runtime.signature import not_ours, signed

PACKAGES = ["torch", "torchvision", "timm", "accelerate", "webdataset", "numpy", "pillow", "pydensecrf2", "pydantic"]
ENVIRONMENT = ["OMP_NUM_THREADS", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"]
FROM_PYTHON = "(from Python, no command line)"
SECRET = re.compile(r"(token|secret|password)([^=\s]*)=\S+", re.IGNORECASE)


def masked(text: str) -> str:
    """Credentials in URLs and values of keys named token, secret or password, replaced by stars."""
    return without_credentials(SECRET.sub(r"\1\2=***", text))


def config_text(config: Config) -> bytes:
    """The resolved configuration as it is stored beside results, with the mark that it is ours."""
    return signed(masked(dump_yaml(config)).encode())


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
    """Lock the run folder and, with `describe`, write there what is run and how it ends; rank 0 only, others go
    straight on.

    command: what command.txt says, None where Python called. Raises ConfigError, before anything is written, for a
    folder with files of these names that are not ours, DataError without `describe` where there is no run, and RunError
    when another process holds the lock.
    """
    if ranks.rank() != 0:
        yield
        return
    files = describing_files(config)
    if not describe and not run_dir(config).is_dir():
        raise DataError(f"{run_dir(config)}: no such run; run `distwsss run` first (`name` and `paths.run` say where)")
    check_run_folder(config)
    files["lock"].parent.mkdir(parents=True, exist_ok=True)
    if describe and not files["environment"].exists():
        write_json(files["environment"], environment())  # first: from here on the folder is ours
    lock = FileLock(files["lock"])
    try:
        lock.acquire(timeout=0)
    except Timeout:
        folder = files["lock"].parent
        raise RunError(f"{folder}: locked, another distwsss works on it; wait for it or choose another name") from None
    try:
        if not describe:
            yield
            return
        write_bytes(files["configuration"], config_text(config))
        write_bytes(files["command"], f"{masked(command or FROM_PYTHON)}\n".encode())
        write_json(files["environment"], environment())
        with _exit_recorded(files["exit"], masked(command or FROM_PYTHON)):
            yield
    finally:
        lock.release()


def check_run_folder(config: Config) -> None:
    """Raises ConfigError where the run folder holds files that a run would write over and that are not ours."""
    folder = run_dir(config)
    found = [name for name in RUN_CONTENTS if _holds_files(folder / name)]
    if found and not _is_run(config):
        raise ConfigError(
            f"{folder}: holds {', '.join(found)}, which distwsss did not write and would write over; nothing was "
            "written. Name a folder of its own (`--set paths.run=FOLDER`, or another `name`), or move these away"
        )
    _check_own(describing_files(config)["configuration"])


def _holds_files(path: Path) -> bool:
    """A file, or a folder with one: empty folders may be those of another rank, which was here first."""
    if path.is_symlink() or not path.is_dir():
        return os.path.lexists(path)
    return any(not below.is_dir() for below in path.rglob("*"))


def check_training_folder(folder: Path) -> None:
    """Likewise for a training's folder, which `paths.classifiers` may have put anywhere."""
    own = training_config_file(folder)
    found = [path.name for path in (own, folder / METRICS, done_file(folder)) if os.path.lexists(path)]
    begun = any(path.is_file() for path in pointers_below(folder)[:2])
    if found and not begun and not own.is_file():
        raise ConfigError(
            f"{folder}: holds {', '.join(found)}, which distwsss did not write; nothing was written. Name another "
            "folder (`paths.classifiers`, `paths.run`), or move these away"
        )
    _check_own(own)


def _is_run(config: Config) -> bool:
    """Whether the run folder is one of ours, by what only a run has: runs of earlier versions too."""
    files, folder = describing_files(config), run_dir(config)
    trained = [*folder.glob("classify/*/checkpoints/LAST"), *folder.glob("train/checkpoints/LAST")]
    if trained or source_file(config).is_file():
        return True
    return _has_keys(files["environment"], {"distwsss", "packages"}) or _has_keys(files["exit"], {"code", "message"})


def _has_keys(path: Path, keys: set[str]) -> bool:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and keys <= found.keys()


def _check_own(path: Path) -> None:
    """Raises ConfigError for a config.yaml that is not as we wrote it; earlier versions wrote it without a mark."""
    if not not_ours(path):
        return
    if path.is_symlink() or not path.is_file() or not is_dump(path.read_bytes()):
        raise ConfigError(
            f"{path}: not as distwsss wrote it, and would be written over; nothing was written. Keep your own file "
            "elsewhere: move it, and give the new place as --config; or name another folder (`--set paths.run=FOLDER`)"
        )


@contextmanager
def _exit_recorded(path: Path, command: str) -> Iterator[None]:
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
            write_json(path, {"code": code, "message": masked(message), "time": now, "command": command})
