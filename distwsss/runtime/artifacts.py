"""Atomic files, manifests, pointers and fingerprints; called by every stage that writes.

Nothing half-written is ever visible: a file or folder is written beside its final name, synced, then renamed. On an
object store (`runtime/storage.py`) the object is put whole instead.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distwsss.errors import CheckpointError, ConfigError, RunError
from distwsss.runtime.progress import log
from distwsss.runtime.storage import Folder, Remote

MANIFEST = "MANIFEST.json"
REMAKE = "Set them back, choose another `name` (or `paths`), or give --remake, which makes anew what depends on them."
FORMAT_VERSION = 1


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Folder) -> str:
    if isinstance(path, Remote):
        return sha256_bytes(path.read_bytes())
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, so equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def fingerprint(parameters: Any) -> str:
    """sha256 of the canonical JSON of `parameters` (DESIGN, Fingerprints)."""
    return sha256_bytes(to_json(parameters))


def fsync_path(path: Path) -> None:
    """Flush a file or folder to the disk, so that a rename after it is never ahead of the bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it if the block ends well, removed if it raises."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        fsync_path(temporary)
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"{path}: disk full while writing; free space and run the same command again") from error
        raise
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Folder, data: bytes) -> None:
    """`data` at `path`, whole or not at all: by a rename, or by one PUT."""
    if isinstance(path, Remote):
        path.write_bytes(data)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Folder, value: Any) -> None:
    write_bytes(path, to_json(value))


def read_json(path: Folder) -> Any:
    return json.loads(path.read_bytes().decode("utf-8"))


def write_manifest(folder: Path, without: str | None = None) -> None:
    """`MANIFEST.json`: size and sha256 of every file in `folder` (but `without`), each synced first; written last."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name not in (MANIFEST, without):
            fsync_path(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(folder / MANIFEST, {"format": FORMAT_VERSION, "files": files})


def manifest_problems(folder: Path) -> list[str]:
    """What is wrong with `folder` against its manifest; empty when all is well."""
    path = folder / MANIFEST
    if not path.is_file():
        return [f"{path}: missing"]
    try:
        files = read_json(path)["files"]
        expected = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"{path}: not a manifest"]
    problems = []
    for name, (size, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            problems.append(f"{file}: missing")
        elif file.stat().st_size != size:
            problems.append(f"{file}: {file.stat().st_size} bytes, manifest says {size}")
        elif sha256_file(file) != digest:
            problems.append(f"{file}: sha256 differs from the manifest")
    return problems


def recorded_sha256(folder: Path, name: str) -> str:
    """What the manifest of `folder` says of one of its files: after the folder was verified, its sha256."""
    digest: str = read_json(folder / MANIFEST)["files"][name]["sha256"]
    return digest


def publish_folder(temporary: Path, final: Path) -> None:
    """Manifest, sync, rename. `final` must not exist."""
    write_manifest(temporary)
    fsync_path(temporary)
    os.rename(temporary, final)
    fsync_path(final.parent)


def fresh_folder(path: Path) -> Path:
    """An empty folder at `path`, whatever lay there."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def read_pointer(path: Path) -> Path | None:
    """The folder a pointer file (LAST, BEST) names, or None without one."""
    if not path.is_file():
        return None
    name = path.read_text(encoding="utf-8").strip()
    if not name or "/" in name or name.startswith("."):
        raise CheckpointError(f"{path}: found {name!r}; allowed: the name of a folder beside it")
    return path.parent / name


def write_pointer(path: Path, folder: Path) -> None:
    write_bytes(path, f"{folder.name}\n".encode())


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def is_done(record: Folder, parameters: dict[str, Any], what: str, remake: bool = False) -> bool:
    """Whether the stage that wrote `record` is complete for these `parameters`.

    Made with other ones it is refused, as results are never mixed: ConfigError naming the differing keys. With `remake`
    it counts as not done.
    """
    if not record.is_file():
        return False
    found = read_json(record).get("parameters", {})
    if remake and (lines := differences(found, parameters)):
        log.info(f"{what}: made anew, as {', '.join(lines)} changed")
        return False
    check_same(found, parameters, f"{what} ({record.parent})")
    return True


def check_same(found: dict[str, Any], wanted: dict[str, Any], what: str) -> None:
    """Raises ConfigError naming every dotted key in which two sets of parameters differ."""
    lines = list(differences(found, wanted).values())
    if lines:
        raise ConfigError("\n".join([f"{what} was made with other parameters:", *lines[:20], REMAKE]))


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, str]:
    """Every dotted key in which two sets of parameters differ -> a line with both values.

    A key that one of them lacks differs, also from null: what a run did before a key was recorded is not known.
    """
    old, new = flatten(found), flatten(json.loads(to_json(wanted)))

    def said(flat: dict[str, Any], key: str) -> str:
        return repr(flat[key]) if key in flat else "not recorded"

    lacking = old.keys() ^ new.keys()
    keys = [key for key in sorted(old.keys() | new.keys()) if key in lacking or old[key] != new[key]]
    return {key: f"  {key}: was {said(old, key)}, now {said(new, key)}" for key in keys}


def free_space_check(folder: Folder, needed_bytes: int, what: str) -> None:
    """Refuse to start when `folder`'s disk has less free space than the stage is expected to write.

    An object store has no such bound and is not asked.
    """
    if isinstance(folder, Remote):
        return
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise RunError(
            f"{what}: needs about {needed_bytes / 1e9:.2f} GB in {folder}, found {free / 1e9:.2f} GB free; make room"
        )
