"""Starts `hooked_rank.py` as the launchers of this project start `distwsss`, and reads what a run left."""

from __future__ import annotations

import functools
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.torch import save

from distwsss.config import Config
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.runtime.layout import images_dir
from helpers.paths import REPOSITORY
from helpers.small import last_weights, make_config, write_config, write_pseudo

COMPILE = "from deepspeed.ops.op_builder import ShareMemCommBuilder; ShareMemCommBuilder().load()"
RANK = Path(__file__).with_name("hooked_rank.py")
Samples = list[tuple[str, str]]
BLANK = 5  # every so many images one has no valid pixel


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@functools.cache
def shown(name: str) -> list[str]:
    """The words of the command that launchers/NAME.sh shows, with names for the numbers."""
    environment = {
        **variables(),
        "DRY_RUN": "1",
        "NPROC": "NPROC",
        "MAX_RESTARTS": "RESTARTS",
        "SHUTDOWN_TIMEOUT": "30",
    }
    done = subprocess.run(
        [REPOSITORY / f"launchers/{name}.sh", "train", "--config", "FILE"],
        env=environment, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    return shlex.split(done.stdout)


def variables() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@functools.cache
def compile_deepspeed() -> None:
    """What DeepSpeed compiles at its first start on a CPU, into TORCH_EXTENSIONS_DIR; no rank should be killed then."""
    subprocess.run([sys.executable, "-c", COMPILE], env=variables(), capture_output=True, timeout=400, check=True)


@dataclass(frozen=True)
class Start:
    """How the ranks of a run are started, and what happens to them (`hooked_rank`)."""

    launcher: str = "torchrun_local"
    ranks: int = 2
    restarts: int = 0
    shutdown: int = 30
    hooks: list[dict[str, str]] = field(default_factory=list)
    rank1: list[str] = field(default_factory=list)
    timeout: float = 120.0

    def command(self) -> tuple[dict[str, str], list[str]]:
        """The launcher's variables and its command, up to the program."""
        port = str(free_port())
        values = {"NPROC": str(self.ranks), "RESTARTS": str(self.restarts), "30": str(self.shutdown), "29500": port}
        words = [values.get(word, word) for word in shown(self.launcher)]
        first = next(number for number, word in enumerate(words) if "=" not in word)
        return dict(word.split("=", 1) for word in words[:first]), words[first : words.index("distwsss") - 1]


@dataclass
class Run:
    """A run folder below `folder`, trained on what `folder` holds; `verb`: train or classify."""

    folder: Path
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    log: str = ""
    verb: str = "train"

    @property
    def train(self) -> Path:
        return self.folder / self.name / "train"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}-record"

    def __call__(self, start: Start, **settings: Any) -> int:
        """The exit code of the launcher; what all processes printed is `log`. None of them is left."""
        launched, command = start.command()
        environment = {**variables(), **launched, "RECORD": str(self.record), "HOOKS": json.dumps(start.hooks)}
        environment["RANK1_ARGUMENTS"] = json.dumps(start.rank1)
        wanted = {"paths.run": self.folder / self.name, **self.settings, **settings}
        sets = [part for key, value in wanted.items() for part in ("--set", f"{key}={value}")]
        command += [str(RANK), self.verb, "--config", str(self.folder / "tiny.yaml"), *sets]
        if "hardware.deepspeed" in wanted:
            compile_deepspeed()
        self.record.mkdir(parents=True, exist_ok=True)
        with (self.record / "log").open("w+") as file:
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=file)
            try:
                code = process.wait(start.timeout)
            finally:
                self._end(process)
                file.seek(0)
                self.log = file.read()
        return code

    def _end(self, process: subprocess.Popen) -> None:
        """Kill what a start that took too long, or a killed agent, has left."""
        left = [found for found in psutil.process_iter(["environ"]) if self._is_ours(found)]
        for found in left:
            found.kill()
        process.wait(20)
        psutil.wait_procs(left, 20)

    def _is_ours(self, process: psutil.Process) -> bool:
        return (process.info["environ"] or {}).get("RECORD") == str(self.record)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.train / "metrics.jsonl").read_text().splitlines()]

    def losses(self, attempt: int = 0, name: str = "loss") -> dict[int, float]:
        return {line["step"]: line[name] for line in self.lines() if line["attempt"] == attempt and name in line}

    def last(self) -> str:
        return (self.train / "checkpoints/LAST").read_text().strip()

    def weights(self) -> bytes:
        return save(last_weights(self.folder / self.name))

    def exit(self) -> dict[str, Any]:
        return json.loads((self.folder / self.name / "exit.json").read_text())

    def order(self) -> list[Samples]:
        """The samples of each step, rank by rank: (key, digest of the augmented image). Of a step made twice the last.

        Raises KeyError where a rank lacks a step that another one has.
        """
        steps: dict[int, dict[int, dict[str, Any]]] = {}
        for path in sorted(self.record.glob("keys-rank*.jsonl")):
            rank = int(path.stem.removeprefix("keys-rank"))
            for line in map(json.loads, path.read_text().splitlines()):
                found = steps.setdefault(line["step"], {})
                if found.get(rank, {}).get("process") == line["process"]:  # another micro-batch
                    line["samples"] = found[rank]["samples"] + line["samples"]
                found[rank] = line
        return [
            [tuple(sample) for rank in range(steps[step][0]["world"]) for sample in steps[step][rank]["samples"]]
            for step in range(len(steps))
        ]


def runs_in(folder: Path) -> Callable[..., Run]:
    """run(name, **settings) -> a `Run` on the shards of `folder`."""
    return lambda name, **settings: Run(folder, name, settings)


def make_shards(config: Config) -> None:
    """Image shards, and pseudo-label shards whose images differ in valid and clean pixels.

    Of image n of N the first n / N of the rows are noisy; every fifth image is ignored altogether.
    """
    prepare(config)
    count = len(load_index(images_dir(config, "train"), "images"))

    def maps(number: int, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = np.full_like(truth, 255) if number % BLANK == BLANK - 1 else truth
        votes = np.full_like(labels, 2)
        votes[: len(votes) * number // count] = 1
        votes[labels == 255] = 0
        return labels, votes

    write_pseudo(config, maps, ["a", "b"])


def make_shared(folder: Path, **sections: Any) -> Path:
    """`folder` with tiny.yaml and the shards to train on."""
    write_config(folder, **sections)
    make_shards(make_config(folder, **sections))
    return folder
