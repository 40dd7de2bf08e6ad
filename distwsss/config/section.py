"""What every section of the configuration is made of: strictness, fingerprints, durations. Read by `config`'s sections.

A field marked `neutral` cannot change a result (how often to log or save) and, like the sections `paths` and
`hardware`, is left out of fingerprints (`parameters`). One marked `later` is left out at its default: runs from before
it was there keep their fingerprints. A default that changes takes the mark away: a run from before is then refused with
the key named, as not recorded (`runtime.artifacts.differences`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

NEUTRAL: dict[str, Any] = {"neutral": True}
LATER: dict[str, Any] = {"later": True}
DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)\s*$")


class Section(BaseModel):
    """Strict (no silent conversion), closed (unknown keys are errors) and frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def parameters(self) -> dict[str, Any]:
        """The fields that can change a result, nested, JSON-ready: what a fingerprint covers."""
        kept: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            marks = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            value = getattr(self, name)
            if marks.get("neutral") or (marks.get("later") and value == field.default):
                continue
            kept[name] = value.parameters() if isinstance(value, Section) else value
        return kept


@dataclass(frozen=True)
class Allowed:
    """In an annotation: what is allowed, in words, where type and bounds do not say it (`describe`)."""

    text: str


DURATIONS = Allowed("a number with a unit, `20000 steps`, `20 epochs` or `10%`")
LENGTHS = Allowed("a number of steps or epochs above 0, `20000 steps` or `20 epochs`")


def _as_text(value: Any) -> Any:
    """A number alone, as those write it who mean epochs, gets the message of a text without a unit."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _duration(text: str, allowed: Allowed = DURATIONS) -> str:
    if not DURATION.match(text):
        number = re.match(r"\s*(\d+)", text)
        hint = f"; did you mean `{number[1]} epochs` or `{number[1]} steps`?" if number else ""
        raise ValueError(f"allowed: {allowed.text}{hint}")
    return text


def _length(text: str) -> str:
    """A training's own length: at least one step, and not a share of itself."""
    if "%" in _duration(text, LENGTHS) or duration_to_steps(text, samples=1, global_batch=1) < 1:
        raise ValueError(f"allowed: {LENGTHS.text}")
    return text


Duration = Annotated[str, BeforeValidator(_as_text), AfterValidator(_duration), DURATIONS]
Length = Annotated[str, BeforeValidator(_as_text), AfterValidator(_length), LENGTHS]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]


def duration_to_steps(text: str, samples: int, global_batch: int, total_steps: int | None = None) -> int:
    """`20000 steps`, `20 epochs` (of `samples`, rounded) or `10%` (of `total_steps`) as a number of steps."""
    number, unit = DURATION.match(text).groups()  # type: ignore[union-attr]
    if unit == "%":
        if total_steps is None:
            raise ValueError("a share of the training makes no sense as its own length; give steps or epochs")
        return round(float(number) / 100 * total_steps)
    if unit.startswith("epoch"):
        return max(1, round(float(number) * samples / global_batch)) if float(number) else 0
    return int(float(number))
