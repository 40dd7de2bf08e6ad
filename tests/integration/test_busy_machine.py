"""Threads that wait must sleep, unless the user says otherwise: asked of OpenMP itself, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from helpers.paths import REPOSITORY


@pytest.mark.parametrize(("users", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_where_the_user_says_nothing(users: str | None, found: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE", "PYTHONPATH": str(REPOSITORY)}
    if users:
        environment["OMP_WAIT_POLICY"] = users
    command = [sys.executable, "-c", "import distwsss.train.loop"]  # which imports torch, and torch OpenMP
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    policies = re.findall(r"OMP_WAIT_POLICY *= *'(\w+)'", shown)
    assert set(policies) == {found}  # none at all: a torch without OpenMP, which would need another way
