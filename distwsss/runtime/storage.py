"""Folders of shards wherever they lie: a `pathlib.Path`, or a `Remote` on an object store, named by an fsspec URL.

`runtime.layout` makes one with `folder_at`; the stages go on with `folder / name`. A Remote has the methods of Path
that shards need, and two of its own. Objects appear whole or not at all, so nothing is renamed: one PUT publishes.
fsspec is imported only when a URL is opened.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from distwsss.config.hardware import EXTRAS, without_credentials
from distwsss.errors import ConfigError, DistwsssError, ShardError

# s3fs splits from 100 MB on, unless told that a part may be as large as S3 takes in one PUT
ONE_PUT: dict[str, dict[str, Any]] = {"s3": {"chunksize": 5 << 30}, "s3a": {"chunksize": 5 << 30}}


@dataclass(frozen=True)
class Scratch:
    """A folder on a local disk that keeps whole shards, at most `limit` bytes of them (`data/shards/scratch.py`)."""

    folder: Path
    limit: int


@dataclass(frozen=True)
class Remote:
    """An object, or what shares its prefix. Its methods are those of Path: FileNotFoundError where there is none;
    everything else (bucket, credentials, network) is one ShardError."""

    url: str
    scratch: Scratch | None = field(default=None, compare=False)

    def __truediv__(self, name: str) -> Remote:
        return replace(self, url=f"{self.url}/{name}")

    def __str__(self) -> str:
        return without_credentials(self.url)

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        return replace(self, url=self.url.rpartition("/")[0])

    def with_name(self, name: str) -> Remote:
        return self.parent / name

    def read_bytes(self) -> bytes:
        with _opened(self) as store:
            return bytes(store.cat_file(self.url))

    def read_range(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` in one request; fewer where the object ends before."""
        with _opened(self) as store:
            return bytes(store.cat_file(self.url, start=offset, end=offset + size)) if size else b""

    def write_bytes(self, data: bytes) -> None:
        """The whole object in one PUT: readers see the old one or this one."""
        with _opened(self) as store:
            store.pipe_file(self.url, data, **ONE_PUT.get(_protocol(self.url), {}))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with _opened(self) as store:
                store.rm_file(self.url)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def info(self) -> dict[str, Any]:
        """fsspec's: at least `type` and `size`; of S3 `ETag` too."""
        with _opened(self) as store:
            return dict(store.info(self.url))

    def is_file(self) -> bool:
        return self._type() == "file"

    def is_dir(self) -> bool:
        """Whether any object lies below."""
        return self._type() == "directory"

    def exists(self) -> bool:
        return self._type() is not None

    def _type(self) -> str | None:
        try:
            return str(self.info()["type"])
        except FileNotFoundError:
            return None

    def glob(self, pattern: str) -> list[Remote]:
        """The objects directly below whose name matches; none where there is no such folder."""
        return [found for found in self.rglob(pattern) if found.parent == self]

    def rglob(self, pattern: str) -> list[Remote]:
        """The objects at any depth below whose name matches."""
        with _opened(self) as store:
            root = store._strip_protocol(self.url)
            below = [self / str(name)[len(root) :].lstrip("/") for name in store.find(self.url)]
        return [found for found in below if fnmatchcase(found.name, pattern)]


Folder: TypeAlias = Path | Remote


def folder_at(text: str, scratch: Scratch | None = None) -> Folder:
    """`s3://bucket/prefix` as a Remote, a path or file:// as a Path."""
    protocol, found, rest = text.partition("://")
    if not found or protocol == "file":
        return Path(rest if found else text)
    if not rest.strip("/"):
        raise ConfigError(f"found {text!r} as a folder of shards; allowed: with a bucket, such as s3://BUCKET/PREFIX")
    return Remote(text.rstrip("/"), scratch)


def size_of(path: Folder) -> int:
    """Its bytes. Raises FileNotFoundError."""
    return int(path.info()["size"]) if isinstance(path, Remote) else path.stat().st_size


def version_of(path: Folder) -> str:
    """Differs once the file was written anew: the key under which to keep what was read from it."""
    if isinstance(path, Path):
        return str(path.stat().st_mtime_ns)
    found = path.info()
    return str([found.get(key) for key in ("ETag", "etag", "LastModified", "mtime", "created", "size")])


def remove_tree(folder: Folder) -> None:
    """Everything below, and the folder itself; nothing where there is none."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.rglob("*"):
        path.unlink(missing_ok=True)


def _protocol(url: str) -> str:
    return url.partition("://")[0]


@contextmanager
def _opened(path: Remote) -> Iterator[Any]:
    """The file system of a URL, with every way in which it can fail said in one of ours."""
    try:
        yield _filesystem("/".join(path.url.split("/")[:3]), os.getpid())
    except DistwsssError:
        raise
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error):
            raise ShardError(f"{path}: there is no such bucket; create it, or correct `paths.shards`") from error
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(path)) from error
    except Exception as error:  # the packages raise PermissionError, OSError, botocore's own, aiohttp's own, ...
        found = f"{type(error).__name__}: {error}"
        if str(path) != path.url:  # it holds a password, which packages repeat in their own ways
            found = found.replace(path.url.partition("://")[2].partition("@")[0], "***")
        raise ShardError(
            f"{path}: cannot be reached or used ({found}); check the URL, the credentials and the endpoint "
            "(reading needs the rights to get and list objects, writing those to put and delete them too)"
        ) from error


@lru_cache(maxsize=16)
def _filesystem(root: str, process: int) -> Any:
    """One per process: a forked worker must not use its parent's connections. No listing is kept, as others write."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(root, skip_instance_cache=True, use_listings_cache=False)[0]
    except ImportError as error:
        protocol = _protocol(root)
        extra = f"pip install 'distwsss[{EXTRAS[protocol]}]'" if protocol in EXTRAS else str(error)
        raise ConfigError(f"`paths.shards`: {protocol}:// needs a package that is not installed; {extra}") from error
    except ValueError as error:
        raise ConfigError(
            f"`paths.shards`: found {without_credentials(root)} ({error}); allowed: a folder, or a URL such as s3://BUCKET/PREFIX"
        ) from error
