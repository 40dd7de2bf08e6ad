"""What a run still has to do and how long that takes: by rules first, then by what its stages take. Called by
`pipeline` and, through it, by `config validate --data`.

    prepare   complete
    classify  about 12 min
    ...
    about 21 min in all, by rules; measured times correct it

A stage corrects what is left while it works, by its own rate, and when it has ended, by the time it took.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from distwsss.config import Config
from distwsss.data.shards.format import INDEX
from distwsss.errors import DistwsssError
from distwsss.planning.facts import DataFacts, read_data, read_machine, read_shards
from distwsss.planning.times import stage_times
from distwsss.runtime.artifacts import read_json, write_json
from distwsss.runtime.layout import (
    classifier_dir,
    done_file,
    evaluation_file,
    images_dir,
    pseudo_dir,
    quality_file,
    saliency_dir,
    seeds_dir,
    segmenter_dir,
    times_file,
)
from distwsss.runtime.progress import heard_by, log, silent
from distwsss.runtime.storage import Folder

# stages whose measured time says how fast the machine is at the others of the kind
KINDS = {"classify": "network", "train": "network", "seeds": "crf", "evaluate": "crf"}
QUIET = 60.0  # seconds from one line of what is left to the next, inside a stage
OTHER = 0.25, 30.0  # share and seconds by which what is left must differ from what was said, to be said anew


def complete_stages(config: Config) -> dict[str, bool]:
    """Stage -> whether its results lie there. Of which configuration each stage finds out itself."""
    classifiers = [done_file(classifier_dir(config, p)) for p in config.classify.dropouts]
    asked = config.saliency.name is not None
    return {
        "prepare": (images_dir(config, "train") / INDEX).is_file(),
        "saliency": not asked or (saliency_dir(config) / INDEX).is_file(),
        "classify": all(path.is_file() for path in classifiers),
        "seeds": (pseudo_dir(config) / INDEX).is_file(),
        "stats": quality_file(config).is_file(),
        "train": done_file(segmenter_dir(config)).is_file(),
        "evaluate": evaluation_file(config, "val").is_file(),
        "report": False,  # always written anew
    }


def _begun_stages(config: Config) -> set[str]:
    """Those of which an earlier attempt left a part: their time says nothing about the others'."""
    folders: dict[str, list[Folder]] = {
        "prepare": [images_dir(config, "train")],
        "saliency": [saliency_dir(config)] if config.saliency.name is not None else [],
        "classify": [*(classifier_dir(config, p) for p in config.classify.dropouts)],
        "seeds": [seeds_dir(config), pseudo_dir(config)],
        "train": [segmenter_dir(config)],
    }
    return {name for name, paths in folders.items() if any(path.is_dir() for path in paths)}


class Plan:
    """The stages of a run with the seconds that each is expected to take; `stage` measures them as they run.

    stages: their names in order; rules: seconds by the rules; complete: what need not be done.
    """

    def __init__(self, config: Config, stages: list[str], rules: dict[str, float], complete: dict[str, bool]) -> None:
        self.config, self.rules, self.left = config, rules, list(stages)
        self.complete = {name for name in stages if complete[name]}
        self.begun = _begun_stages(config) - self.complete
        self.factors: dict[str, float] = {}  # kind -> measured / rule
        self.began = self.said_at = time.monotonic()
        self.measured: float | None = None  # seconds left of the stage that runs, by its own rate
        path = times_file(config)
        self.known: dict[str, Any] = read_json(path) if path.is_file() else {}
        for name in self.complete & self.known.keys():
            self._learn(name)
        self.said = self.total()

    def seconds(self, name: str) -> float:
        """What a stage is expected to take; of the one that runs, what is left where it has said so."""
        if name in self.complete:
            return 0.0
        if self.measured is not None and name == self.left[0]:
            return self.measured
        return self.rules.get(name, 0.0) * self.factors.get(KINDS.get(name, name), 1.0)

    def total(self) -> float:
        return sum(self.seconds(name) for name in self.left)

    def lines(self) -> list[str]:
        """One a stage, and the sum; nothing of times where the data is not known yet."""
        if not self.rules:
            return ["plan: the data could not be listed, so that no time is known; `prepare` says why"]
        width = max(len(name) for name in self.left)
        each = [f"  {name:<{width}}  {self._expected(name)}" for name in self.left]
        return ["plan:", *each, f"  {about(self.total())} in all, by rules; measured times correct it"]

    def _expected(self, name: str) -> str:
        if name in self.complete:
            return "complete"
        return about(self.seconds(name)) + (", begun already" if name in self.begun else "")

    def line(self) -> str:
        """What is left, in one line."""
        parts = [f"{name} {about(self.seconds(name))}" for name in self.left if name not in self.complete]
        return f"left: {', '.join(parts)}; {about(self.total())} in all" if parts else "left: nothing"

    def hear(self, what: str, left: float, whole: float) -> None:
        """What the stage that runs expects by its own rate: `what` begins with its name. Corrects the stages of its
        kind, and is said where it differs from what was."""
        name = self.left[0]
        if not self.rules or what.split()[0] != name or name in self.complete:
            return
        self.measured = left + whole * (_classifiers_after(self.config, what) if name == "classify" else 0)
        if self.rules[name] and name not in self.begun:
            self.factors[KINDS.get(name, name)] = (time.monotonic() - self.began + self.measured) / self.rules[name]
        passed, total = time.monotonic() - self.said_at, self.total()
        share, seconds = OTHER
        if passed >= QUIET and abs(total - (self.said - passed)) > max(share * total, seconds):
            self._say()

    def _say(self) -> None:
        log.info(self.line())
        self.said, self.said_at = self.total(), time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around a stage: measures it, keeps its time in the run folder and says what is left."""
        self.began = time.monotonic()
        with heard_by(self.hear):
            yield
        seconds, self.measured = time.monotonic() - self.began, None
        self.left.remove(name)
        if name not in self.complete:
            expected = round(self.rules.get(name, 0.0), 1)
            self.known[name] = {"seconds": round(seconds, 1), "expected": expected, "begun": name in self.begun}
            write_json(times_file(self.config), self.known)
            self._learn(name)
        if self.left and self.rules and name not in self.complete:
            self._say()

    def _learn(self, name: str) -> None:
        """From a stage that was done in one go: measured over expected by the rules."""
        record = self.known[name]
        if record["expected"] and not record["begun"]:
            self.factors[KINDS.get(name, name)] = record["seconds"] / record["expected"]


def _classifiers_after(config: Config, training: str) -> int:
    """How many are to be trained after that which `training` names as its task does."""
    names = [f"classify {p:.2f}" for p in config.classify.dropouts]
    after = config.classify.dropouts[names.index(training) + 1 :] if training in names else []
    return sum(not done_file(classifier_dir(config, p)).is_file() for p in after)


def not_complete(config: Config, stages: Collection[str], anew: Collection[str] = ()) -> list[str]:
    """Those of `stages` that have work to do; anew: whose results are replaced."""
    complete = complete_stages(config)
    return [name for name in stages if name in anew or not complete[name]]


def known_facts(config: Config) -> DataFacts | None:
    """Of the image shards where they are there, else of the data; None where that cannot be listed."""
    try:
        ready = (images_dir(config, "train") / INDEX).is_file()
        if ready:
            return read_shards(config)
        with silent():  # `prepare` says all of it again
            return read_data(config)
    except (DistwsssError, OSError):  # `prepare` says why
        return None


def make_plan(config: Config, stages: list[str], data: DataFacts | None, anew: Collection[str] = ()) -> Plan:
    """The plan of the stages named; without times where the data is not known. anew: whose results are replaced."""
    complete = {name: there and name not in anew for name, there in complete_stages(config).items()}
    rules = stage_times(config, data, read_machine(config.hardware.device)) if data else {}
    if data and not data.scored:
        complete["evaluate"] = True  # the data set has no split for it
    return Plan(config, stages, rules, complete)


def about(seconds: float) -> str:
    """`about 40 s`, `about 6 min`, `about 2.5 h`."""
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
