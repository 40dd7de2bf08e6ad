"""What a mistyped key or name most likely was meant to be. Called by `load` and `pipeline`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache

from pydantic import BaseModel

from distwsss.config.describe import model_of
from distwsss.config.schema import Config

NEAR, FAR = 0.5, 0.75  # how alike a key of the same section, and one of another, must be


@cache
def dotted_keys() -> list[str]:
    """Every key and section of the configuration, `train.optim` and `train.optim.lr`."""

    def below(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield f"{prefix}{name}"
            if section := model_of(field.annotation):
                yield from below(section, f"{prefix}{name}.")

    return list(below(Config, ""))


def unknown_key(dotted: str) -> str:
    """What to say of a key that there is none of: what it may mean, else what is allowed beside it."""
    section, dot, last = dotted.rpartition(".")
    inside = [key.removeprefix(section + dot) for key in dotted_keys() if key.startswith(section + dot)]
    beside = [key for key in inside if "." not in key]
    deeper = [f"{section}{dot}{key}" for key in inside if key.endswith(f".{last}")]
    elsewhere = [key for key in dotted_keys() if key.endswith(f".{dotted}")]
    meant = deeper or elsewhere or _alike(last, beside)
    return f"did you mean {_quoted(meant)}?" if meant else f"allowed: {', '.join(beside)}"


def _alike(last: str, beside: list[str]) -> list[str]:
    """The key of the same section that is most alike, or those of any other that are more so."""
    near = difflib.get_close_matches(last, beside, n=1, cutoff=NEAR)
    names = {key.rpartition(".")[2] for key in dotted_keys()}
    far = difflib.get_close_matches(last, names - set(beside), n=1, cutoff=FAR)
    if far and (not near or _ratio(last, far[0]) > _ratio(last, near[0])):
        return [key for key in dotted_keys() if key.rpartition(".")[2] == far[0]]
    return near


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _quoted(keys: list[str]) -> str:
    *first, last = [f"`{key}`" for key in keys[:3]]
    return f"{', '.join(first)} or {last}" if first else last


def mistyped(given: str, words: tuple[str, ...]) -> str | None:
    """The word of `words` that `given` most likely is, or None where it is like none of them."""
    return next(iter(difflib.get_close_matches(given.lower(), words, n=1, cutoff=NEAR)), None)
