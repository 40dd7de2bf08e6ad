"""Runs what an ablation misses, one child process after another. Called by `cli`.

Each run is `distwsss run` with a configuration that lies beside its folder, so that one which is killed (by hand, for
memory) harms no other, and a later call goes on: stages skip what is complete. What is complete for the same
configuration and the same shards is not started again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distwsss.ablate.plan import Ablation, Row, configuration, plan_ablation
from distwsss.ablate.results import compared, record_of, remember_scored
from distwsss.ablate.tables import write_tables
from distwsss.config.load import dump_yaml
from distwsss.data.shards.format import INDEX
from distwsss.data.shards.index import load_index
from distwsss.errors import ConfigError, RunError, report_problems
from distwsss.evaluate.scores import print_table
from distwsss.planning.plan import about
from distwsss.runtime.artifacts import read_json, write_bytes, write_json
from distwsss.runtime.faults import fault_point
from distwsss.runtime.layout import ablation_files, beside_run, describing_files, images_dir, pseudo_dir
from distwsss.runtime.progress import log
from distwsss.runtime.signature import not_ours, signed


def ablate(
    path: str | Path,
    profile: str | None = None,
    overrides: list[str] | None = None,
    output: Path | None = None,
    only: Sequence[str] = (),
    dry_run: bool = False,
    remake: bool = False,
) -> None:
    """Run what is missing of the ablation in `path`, write its tables and print the comparison.

    `only`: the names of the variants to run; `dry_run`: nothing is run or written, what would be is printed; `remake`:
    runs whose configuration changed are made anew. Raises ConfigError for the file, RunError where a run failed, after
    the others were run and the tables written.
    """
    ablation = plan_ablation(path, profile, overrides, output)
    known = [variant.name for variant in ablation.variants]
    if unknown := [name for name in only if name not in known]:
        raise ConfigError(f"ablate --only: found {', '.join(unknown)}; allowed: {', '.join(known)}")
    if dry_run:
        print_table(_outlook(ablation, only))
        return
    with _locked(ablation.folder):
        failures = {}
        for row in ablation.rows(only):
            if problem := _run_missing(ablation, row, remake):
                failures[row.label(ablation.folder)] = problem
        write_tables(compared(ablation, is_complete, failures), ablation.folder)
    if failures:
        lines = [f"{label}: {text}" for label, text in failures.items()]
        raise RunError(report_problems("these runs failed; the same command goes on with them", lines))


def is_complete(row: Row) -> bool:
    """Whether the run was ended for this very configuration, on the shards that lie there now."""
    done = beside_run(row.run)["done"]
    return done.is_file() and record_of(row).is_file() and read_json(done) == _made_of(row)


def _made_of(row: Row) -> dict[str, Any]:
    """As JSON has it."""
    config = row.config
    folders = {"train": images_dir(config, "train"), "val": images_dir(config, "val"), "pseudo": pseudo_dir(config)}
    read = {name for name in folders if name != "pseudo" or "seeds" in row.stages}
    inputs = {name: load_index(folders[name]).fingerprint for name in read if (folders[name] / INDEX).is_file()}
    found: dict[str, Any] = {"configuration": configuration(config), "stages": list(row.stages), "inputs": inputs}
    return found


def _outlook(ablation: Ablation, only: Sequence[str]) -> list[list[str]]:
    """A line for each variant and random seed: what there is, and what would be run, where."""
    first: dict[Path, str] = {}
    lines = [["variant", ablation.file.random_seeds.key, "state", "stages", "shards"]]
    for variant in ablation.variants:
        for row in variant.rows:
            label = first.setdefault(row.run, variant.name)
            state = "complete" if is_complete(row) else "begun" if row.run.is_dir() else "to run"
            if label != variant.name:
                state = f"the run of {label}"
            elif only and variant.name not in only and state != "complete":
                state = "not asked for"
            place = str(row.config.paths.shards)
            lines.append([variant.name, str(row.seed), state, " ".join(row.stages), place])
    return lines


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises ConfigError for a folder that no ablation made, RunError where another one works in it."""
    files = ablation_files(folder)
    others = [path for path in folder.iterdir() if path != files["lock"]] if folder.is_dir() else []
    if others and not files["scored"].is_file():
        raise ConfigError(f"{folder}: holds files that no ablation wrote; give --output FOLDER, or another `name`")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(files["lock"])
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{folder}: locked, another ablate works in it; wait for it or give --output") from None
    try:
        if not files["scored"].is_file():
            write_json(files["scored"], {})  # first: from here on the folder is ours
        yield
    finally:
        lock.release()


def _run_missing(ablation: Ablation, row: Row, remake: bool) -> str | None:
    """None, or why the run failed."""
    label, files = row.label(ablation.folder), beside_run(row.run)
    _wait_for_orphan(row, label)
    if is_complete(row):
        log.info(f"ablate: {label}: complete, skipped")
        remember_scored(ablation, row)
        return None
    if not_ours(files["configuration"]):
        return f"{files['configuration']} is not as distwsss wrote it; move it away"
    write_bytes(files["configuration"], signed(dump_yaml(row.config).encode()))
    log.info(f"ablate: {label}: {' '.join(row.stages)}, told in {files['log']}")
    began = time.monotonic()
    for command in _commands(row, files["configuration"], ablation.file.score == "held_out", remake):
        if problem := _child(command, files["log"]):
            log.error(f"ablate: {label} failed: {problem}")
            return problem
    if not record_of(row).is_file():
        return f"nothing was scored: no masks on {row.score}? {files['log']}"
    remember_scored(ablation, row)
    write_json(files["done"], _made_of(row))
    log.info(f"ablate: {label}: done in {about(time.monotonic() - began)}")
    fault_point(f"ablate-done:{label}")
    return None


def _commands(row: Row, file: Path, held_out: bool, remake: bool) -> list[list[str]]:
    given = ["--config", str(file), *(["--remake"] if remake else [])]
    stages = [stage for stage in row.stages if not (held_out and stage == "evaluate")]
    commands = [["run", *given, "--stages", *stages]]
    if held_out:
        commands.append(["evaluate", *given, "--held-out"])
    return [[sys.executable, "-m", "distwsss", *words] for words in commands]


def _child(command: list[str], told: Path) -> str | None:
    """None, or why the command failed: the last line that it said. An interrupt is passed on, and waited for."""
    told.parent.mkdir(parents=True, exist_ok=True)
    with told.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, start_new_session=True, **streams)  # Ctrl-C is for us alone
        fault_point("ablate-started")
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)  # it saves
            process.wait()
            raise
    if code == 0:
        return None
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}; {told}"
    lines = [line for line in told.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"exit code {code}: {lines[-1].strip()}; {told}"


def _wait_for_orphan(row: Row, label: str) -> None:
    """The child of an `ablate` that was killed goes on, and what it does is wanted: its end is waited for."""
    path = describing_files(row.config)["lock"]
    if not path.is_file():
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(f"ablate: {label}: another process works on it; waiting for its end")
        lock.acquire()
    lock.release()
