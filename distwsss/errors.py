"""Every error a user can cause, with the exit code it ends the process with.

Raised anywhere, caught once in `cli.main`, which prints the message without a traceback (`--debug` shows it).
A message says what was found, where (file, key or image id), what is allowed and what to do.
"""

from __future__ import annotations

from pathlib import Path


class DistwsssError(Exception):
    """Base of the errors below; `exit_code` is what the process returns."""

    exit_code = 1


class RunError(DistwsssError):
    """The run failed: non-finite loss, retry budget spent, disk full, folder locked."""

    exit_code = 1


class ConfigError(DistwsssError):
    """Wrong usage or configuration."""

    exit_code = 2


class LaunchError(DistwsssError):
    """The processes were started in a way that cannot work."""

    exit_code = 2


class DataError(DistwsssError):
    """Images, labels or masks are missing or wrong."""

    exit_code = 3


class ShardError(DistwsssError):
    """A shard or its index is missing, damaged or of another kind than expected."""

    exit_code = 3


class CheckpointError(DistwsssError):
    """A checkpoint or weight file is missing, damaged or does not fit."""

    exit_code = 4


def no_cuda(where: str) -> ConfigError:
    """The error of a configuration that asks for CUDA where there is none: this machine, a Ray cluster."""
    return ConfigError(f"device (`hardware.device`): found 'cuda', but {where} offers none; allowed: auto or cpu")


def counted(number: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def relative_to(given: object) -> str:
    """What to put behind a path that was not found, and was given as `given`: what a relative one is relative to."""
    relative = not Path(str(given)).is_absolute()
    return f" (relative to the folder where the command was started, {Path.cwd()})" if relative else ""


def report_problems(title: str, problems: list[str], most: int = 50) -> str:
    """One message for many problems: a title, then a line each (the first `most`, then a count)."""
    lines = [f"  {problem}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"  ... and {len(problems) - most} more")
    return "\n".join([f"{title} ({counted(len(problems), 'problem')}):", *lines])
