"""Fixtures over the builders of `helpers.small`, and what every test starts with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distwsss.config import Config
from distwsss.runtime.progress import log
from helpers.command import run_distwsss
from helpers.small import make_config, write_config


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
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The package's log, from INFO on."""
    caplog.set_level(logging.INFO, logger="distwsss")
    return caplog


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """tiny(**sections) -> Config, its run and shards below tmp_path."""

    def make(folder: Path = tmp_path, **sections: Any) -> Config:
        return make_config(folder, **sections)

    return make


@pytest.fixture
def tiny_file(tmp_path: Path) -> Callable[..., Path]:
    """tiny_file(**sections) -> path of a YAML file with that configuration."""

    def make(folder: Path = tmp_path, **sections: Any) -> Path:
        return write_config(folder, **sections)

    return make


@pytest.fixture
def prepared(tiny) -> Config:
    """A configuration of `tiny` whose image shards are there."""
    from distwsss.data.prepare import prepare

    config = tiny()
    prepare(config)
    return config


@pytest.fixture
def distwsss():
    """`run_distwsss`."""
    return run_distwsss
