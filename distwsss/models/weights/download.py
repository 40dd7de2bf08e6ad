"""Files from web servers: whole or not at all, once also where several ranks want them. Called by `published`."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from filelock import FileLock

from distwsss.errors import CheckpointError, RunError
from distwsss.models.weights.looks import check_looks
from distwsss.runtime.artifacts import atomic_path, sha256_file
from distwsss.runtime.progress import log, track

SECONDS = 30.0  # without an answer
BLOCK = 1_000_000
FAULTS = (OSError, HTTPException, ValueError)  # what urllib raises: URLError is an OSError


def download(places: dict[str, Path]) -> tuple[Path | None, str]:
    """The first of some addresses that a server has, at its path: (path, ""), or (None, why not)."""
    if offline():
        return None, offline()
    reason = "no address"
    for address, target in places.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if not target.is_file():  # another rank had it meanwhile
                    _write(address, target)
            return target, ""
        except FAULTS as error:
            reason = _said(error)
            if not _is_absent(error):
                break
        except (CheckpointError, RunError) as error:
            return None, str(error)
    return None, reason


def asked(addresses: list[str]) -> str:
    """Why none of the addresses would give a file; empty where one does."""
    reason = offline()
    for address in addresses if not reason else []:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=SECONDS):
                return ""
        except FAULTS as error:
            reason = _said(error)
            if not _is_absent(error):
                break
    return reason


def offline() -> str:
    """Why the network is not to be asked; empty where it may be."""
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""


def _write(address: str, target: Path) -> None:
    with urllib.request.urlopen(address, timeout=SECONDS) as answer, atomic_path(target) as temporary:
        size = int(answer.headers.get("Content-Length") or 0)
        log.info(f"fetching {address}{f', {size / 1e6:.0f} MB' if size else ''}, to {target}")
        with temporary.open("wb") as file:
            for block in track(_blocks(answer), -(-size // BLOCK) or 1, target.parent.name, unit="MB"):
                file.write(block)
        found = os.path.getsize(temporary)
        if size and found != size:
            raise OSError(f"{found} of {size} bytes came")
        check_looks(temporary)  # a network that wants a login answers with a page
    log.info(f"{target}: sha256 {sha256_file(target)}")


def _blocks(answer: HTTPResponse) -> Iterator[bytes]:
    while block := answer.read(BLOCK):
        yield block


def _said(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    return f"no download: {getattr(error, 'reason', None) or error or type(error).__name__}"


def _is_absent(error: BaseException) -> bool:
    return isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404)  # the hub hides what it has not
