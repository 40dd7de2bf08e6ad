"""Rank and world size as a launcher's environment says, and what of it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distwsss.errors import LaunchError
from distwsss.runtime import ranks

LAUNCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
Environment = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """environment(**variables): these alone of a launcher's."""

    def set_to(**variables: str) -> None:
        for name in LAUNCH:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    set_to()
    return set_to


def test_without_a_launcher_there_is_one_rank(environment: Environment) -> None:
    ranks.check_launched()
    assert (ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.is_launched()) == (0, 1, 0, False)


def test_a_launcher_says_which_rank_this_is(environment: Environment) -> None:
    environment(**LAUNCH)
    ranks.check_launched()
    assert (ranks.rank(), ranks.world_size(), ranks.local_rank(), ranks.is_launched()) == (3, 4, 1, True)
    assert ranks.meeting_point() == "127.0.0.1:1"


@pytest.mark.parametrize("missing", sorted(LAUNCH))
def test_a_partly_set_environment_is_an_error(environment: Environment, missing: str) -> None:
    environment(**{name: value for name, value in LAUNCH.items() if name != missing})
    with pytest.raises(LaunchError, match=rf"found .*=.*, but no {missing}; allowed: all of them or none") as caught:
        ranks.check_launched()
    assert all(f"{name}={LAUNCH[name]}" in str(caught.value) for name in LAUNCH if name != missing)


def test_work_of_one_process_is_refused_on_several_ranks(environment: Environment) -> None:
    ranks.check_single_process("prepare")
    environment(**{**LAUNCH, "WORLD_SIZE": "1", "RANK": "0"})
    ranks.check_single_process("prepare")
    environment(**LAUNCH)
    with pytest.raises(LaunchError, match=r"prepare was started by torchrun with several ranks; start it plainly"):
        ranks.check_single_process("prepare")
