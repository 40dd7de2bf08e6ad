"""What the command line answers to signals, wrong paths and full disks; no stage is run."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from distwsss import cli
from distwsss.data.shards.writer import write_index, write_shard
from distwsss.runtime import progress, run_folder
from distwsss.runtime.layout import images_dir
from helpers.small import snapshot


def test_sigterm_outside_training_is_an_interrupt(tiny_file, tmp_path: Path, monkeypatch) -> None:
    def work(config, arguments) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)

    monkeypatch.setitem(cli.VERBS, "prepare", replace(cli.VERBS["prepare"], function=work))
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["prepare", "--config", str(tiny_file())]) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    assert json.loads((tmp_path / "run/exit.json").read_text())["code"] == 130


def test_a_run_folder_that_cannot_be_made_is_one_line(tiny_file, tmp_path: Path, capfd) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["prepare", "--config", str(tiny_file(paths={"run": str(tmp_path / "file" / "run")}))]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "distwsss prepare: " in error
    assert str(tmp_path / "file") in error


def test_a_full_disk_while_exit_json_is_written_hides_nothing(tiny_file, monkeypatch, capfd) -> None:
    def work(config, arguments) -> None:
        monkeypatch.setattr(run_folder, "write_json", fail)
        raise OSError(28, "first")

    def fail(path, value) -> None:
        raise OSError(28, "second")

    monkeypatch.setitem(cli.VERBS, "prepare", replace(cli.VERBS["prepare"], function=work))
    assert cli.main(["prepare", "--config", str(tiny_file())]) == 1
    assert "first" in capfd.readouterr().err


def test_showing_results_does_not_rewrite_what_made_them(tiny_file, tmp_path: Path, monkeypatch) -> None:
    """Nor how the run ended: one that was interrupted has not become complete."""

    def stopped(config, given) -> None:
        raise KeyboardInterrupt

    for verb in ("predict", "submit", "estimate", "verify", "report"):
        monkeypatch.setitem(cli.VERBS, verb, replace(cli.VERBS[verb], function=lambda config, given: None))
    monkeypatch.setitem(cli.VERBS, "prepare", replace(cli.VERBS["prepare"], function=stopped))
    config = ["--config", str(tiny_file())]
    assert cli.main(["prepare", *config]) == 130
    before = snapshot(tmp_path / "run")
    assert {"config.yaml", "command.txt", "env.json", "exit.json"} < before.keys()
    for words in ("predict picture.jpg -o out", "submit -o a.tgz", "estimate", "verify", "report"):
        assert cli.main([*words.split(), *config, "--set", "seed=7"]) == 0
    assert snapshot(tmp_path / "run") == before


def test_verify_takes_a_path_or_a_configuration(tiny_file, tiny, tmp_path: Path, capfd) -> None:
    folder = images_dir(tiny(), "train")
    fields = {"jpg": b"", "json": b"{}"}
    record = write_shard(folder / "images-00000.tar", [("a", fields)])
    write_index(folder, [record], {}, ["background", "cat"], "images")
    for where in (["--config", str(tiny_file())], [str(tmp_path / "shards")]):
        assert cli.main(["verify", *where]) == 3
        assert f"{tmp_path / 'shards'}: damaged" in capfd.readouterr().err
    for where, found in (([], "neither PATH"), (["x", "--config", str(tiny_file())], "both PATH")):
        assert cli.main(["verify", *where]) == 2
        assert f"{found}" in capfd.readouterr().err


def test_lines_and_bars_share_a_terminal(monkeypatch, capfd) -> None:
    assert progress.step_bar(0, 3, "train").disable
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda self: True, raising=False)
    progress.setup_logging()
    bar = progress.step_bar(1, 3, "train")
    assert [(step, progress.log.info(f"line {step}")) for step in bar] == [(1, None), (2, None)]
    error = capfd.readouterr().err
    assert "train:  33%" in error
    assert "line 1\n" in error.replace("\r", "\n")
    assert not list(tqdm._instances)
