"""Atomic files, manifests, fingerprints: nothing half-written is seen, any damage is found."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distwsss.errors import CheckpointError, ConfigError, RunError
from distwsss.runtime.artifacts import (
    atomic_path,
    check_same,
    fingerprint,
    free_space_check,
    is_done,
    manifest_problems,
    publish_folder,
    read_pointer,
    write_bytes,
    write_json,
    write_manifest,
    write_pointer,
)
from distwsss.runtime.metrics import append_metrics, read_metrics
from distwsss.runtime.pool import spawn_pool
from distwsss.runtime.run_folder import masked


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail_midway() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        fail_midway()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_and_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(RunError, match="disk full"), atomic_path(path):
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_without_the_room_needed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="make room"):
        free_space_check(tmp_path / "not" / "yet", 10**18, "seeds")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_manifest_finds_any_flipped_bit_truncation_or_missing_file(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "folder"
    if not folder.exists():
        staged = tmp_path / "staged"
        staged.mkdir()
        (staged / "a").write_bytes(bytes(range(200)))
        (staged / "b").write_bytes(b"x" * 50)
        publish_folder(staged, folder)
    assert manifest_problems(folder) == []
    path = data.draw(st.sampled_from([folder / "a", folder / "b"]))
    original = path.read_bytes()
    how = data.draw(st.sampled_from(["flip", "cut", "remove"]))
    position = data.draw(st.integers(0, len(original) - 1))
    if how == "flip":
        flipped = original[position] ^ (1 << data.draw(st.integers(0, 7)))
        path.write_bytes(original[:position] + bytes([flipped]) + original[position + 1 :])
    elif how == "cut":
        path.write_bytes(original[:position])
    else:
        path.unlink()
    problems = manifest_problems(folder)
    path.write_bytes(original)
    assert len(problems) == 1
    assert str(path) in problems[0]


def test_a_missing_manifest_is_a_problem(tmp_path: Path) -> None:
    assert "missing" in manifest_problems(tmp_path)[0]


def test_what_is_no_manifest_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    write_manifest(tmp_path)
    (tmp_path / "MANIFEST.json").write_bytes(b"{}")
    assert "not a manifest" in manifest_problems(tmp_path)[0]


def test_a_stage_is_done_once_its_record_is_there(tmp_path: Path) -> None:
    record = tmp_path / "done.json"
    assert not is_done(record, {"a": 1}, "stage")
    write_json(record, {"parameters": {"a": 1, "b": {"c": [1, 2], "d": None}}})
    assert is_done(record, {"a": 1, "b": {"c": [1, 2], "d": None}}, "stage")


def test_differing_keys_are_named(tmp_path: Path) -> None:
    record = tmp_path / "done.json"
    write_json(record, {"parameters": {"a": 1, "b": {"c": [1, 2], "d": None}}})
    with pytest.raises(ConfigError, match=r"b\.c: was \[1, 2\], now \[1, 3\]") as caught:
        is_done(record, {"a": 1, "b": {"c": [1, 3], "d": None}}, "stage")
    assert "  a:" not in str(caught.value)


def test_a_key_that_was_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="e: was not recorded, now 5"):
        check_same({"a": 1}, {"a": 1, "e": 5}, "stage")


def test_fingerprint_ignores_key_order_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})


def test_a_pointer_names_a_folder(tmp_path: Path) -> None:
    assert read_pointer(tmp_path / "LAST") is None
    write_pointer(tmp_path / "LAST", tmp_path / "step-00000001")
    assert read_pointer(tmp_path / "LAST") == tmp_path / "step-00000001"


def test_a_pointer_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "LAST").write_text("../../etc")
    with pytest.raises(CheckpointError):
        read_pointer(tmp_path / "LAST")


def test_credentials_are_masked() -> None:
    text = masked("x --set a.token=abc password=b s3://me:key@host/path hub_secret=zz train.lr=1")
    assert not {"abc", "me:key", "zz", "=b"} & set(text.replace("@", " ").replace("=", " =").split())
    assert "key@" not in text
    assert "train.lr=1" in text


def test_metrics_survive_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"step": 1, "loss": 2.0})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "lo\xc3')
    append_metrics(path, {"step": 3, "loss": 1.0})
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}, {"step": 3, "loss": 1.0}]


def test_metrics_that_cannot_be_written_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        append_metrics(tmp_path, {"step": 4})


def test_a_pool_left_by_an_interrupt_does_not_wait_for_its_calls() -> None:
    start = time.monotonic()

    def interrupted() -> None:
        with spawn_pool(2) as pool:
            for _ in range(6):
                pool.submit(time.sleep, 60)
            pool.submit(time.sleep, 0)
            time.sleep(2)  # until they run
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - start < 30
