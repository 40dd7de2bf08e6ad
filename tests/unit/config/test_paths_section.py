"""`paths`: where shards may lie is known when the configuration is loaded, before any work is done."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from distwsss.config import Config
from distwsss.config.load import check_config
from distwsss.errors import ConfigError


def made(**paths: Any) -> Config:
    return check_config({"name": "n", "data": {"dataset": "shapes"}, "paths": paths})


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """without(package): as if it were not installed, nor its protocol in use."""

    def hide(package: str) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else found(name))
        monkeypatch.setattr(importlib.import_module("fsspec.registry"), "registry", {})

    return hide


@pytest.mark.parametrize("shards", [None, "shards/x", "/data/x", "file:///data/x", "memory://bucket/x", "memory://b"])
def test_where_shards_may_lie(shards: str | None) -> None:
    assert made(shards=shards).paths.shards == shards


def test_a_url_with_credentials_may_name_shards() -> None:
    pytest.importorskip("s3fs")
    assert made(shards="s3://KEY:SECRET@bucket/x").paths.shards == "s3://KEY:SECRET@bucket/x"


@pytest.mark.parametrize(
    ("protocol", "package", "install"),
    [
        ("s3", "s3fs", "distwsss[s3]"),
        ("s3a", "s3fs", "distwsss[s3]"),
        ("gcs", "gcsfs", "gcsfs"),
        ("abfs", "adlfs", "adlfs"),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    protocol: str, package: str, install: str, without: Callable[[str], None]
) -> None:
    without(package)
    text = (
        rf"`paths\.shards`: found '{protocol}://b/x'; {protocol}:// needs a package .*; run `pip install '{install}'`"
    )
    with pytest.raises(ConfigError, match=text.replace("[", r"\[").replace("]", r"\]")):
        made(shards=f"{protocol}://b/x")


@pytest.mark.parametrize("shards", ["nosuch://bucket/x", "S4://bucket", "://bucket"])
def test_an_unknown_protocol_is_refused(shards: str) -> None:
    with pytest.raises(ConfigError, match=r"`paths\.shards`: found '.*'; allowed: a folder, or a URL such as s3://B"):
        made(shards=shards)


@pytest.mark.parametrize("rest", ["", "/", "//", "KEY:***@", "KEY:***@/"])
def test_a_url_without_a_bucket_is_refused(rest: str) -> None:
    with pytest.raises(ConfigError, match=r"`paths\.shards`: found 'memory://.*'; allowed: a URL with a bucket"):
        made(shards=f"memory://{rest}")


@pytest.mark.parametrize("key", ["run", "classifiers"])
def test_only_shards_may_be_a_url(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"`paths\.{key}`: found 's3://b/r'; allowed: a folder on a file system"):
        made(**{key: "s3://b/r"})


@pytest.mark.parametrize(
    "paths", [{"shards": "nosuch://KEY:SECRET@b/x"}, {"shards": "memory://KEY:SECRET@"}, {"run": "s3://KEY:SECRET@b/r"}]
)
def test_credentials_are_masked_in_errors(paths: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"found '\w+://\*\*\*@") as caught:
        made(**paths)
    assert "SECRET" not in str(caught.value)
