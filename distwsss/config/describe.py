"""Every key of the configuration with its text, default and allowed values: `config show --describe`. Called by
`cli`."""

from __future__ import annotations

import json
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distwsss.config.crf import CRF_PARAMS, CRFParams
from distwsss.config.schema import Config

WIDTH = 110
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def describe(config: Config | None = None) -> str:
    """Two or three lines a key, in the order of `config show`: key and value (that of `config`, else the default); what
    is allowed; what it is for."""
    return "\n".join(_section(Config, config, ""))


def _section(model: type[BaseModel], values: Any, prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        dotted, value = f"{prefix}{name}", getattr(values, name, None)
        inner = _model_of(field.annotation)
        if inner is not None and inner is not CRFParams:
            yield f"\n# {dotted}: {_first_paragraph(inner)}"
            yield from _section(inner, value, f"{dotted}.")
            continue
        default = _text(field.get_default(call_default_factory=True)) if not field.is_required() else None
        shown = _text(value) if values is not None else default
        yield f"{dotted}: {'(no default: must be given)' if shown is None else shown}"
        same = "" if values is None or default is None or shown == default else f"; default {default}"
        yield textwrap.indent(textwrap.fill(f"allowed: {_allowed(field)}{same}", WIDTH), "    ")
        if field.description:
            yield textwrap.indent(textwrap.fill(field.description, WIDTH), "    ")


def _first_paragraph(model: type[BaseModel]) -> str:
    """A section's own words, none where it inherits `Section`'s."""
    return " ".join((model.__doc__ or "").split("\n\n")[0].split()) if "__doc__" in vars(model) else ""


def _model_of(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *typing.get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _text(value: Any) -> str:
    """As YAML would have it on one line; CRF parameters by the name they are published under."""
    if isinstance(value, CRFParams):
        names = [name for name, params in CRF_PARAMS.items() if params == value]
        return names[0] if names else json.dumps(value.model_dump())
    return value if isinstance(value, str) else json.dumps(value)


def _allowed(field: FieldInfo) -> str:
    """The type's values, and its bounds."""
    if _model_of(field.annotation) is CRFParams:
        keys = ", ".join(CRFParams.model_fields)
        null = " or null" if type(None) in typing.get_args(field.annotation) else ""
        return f"one of {', '.join(CRF_PARAMS)}, a mapping of {keys}{null}"
    bounds = _bounds(field.metadata)
    patterns = [f"matching {part.pattern}" for part in field.metadata if getattr(part, "pattern", None)]
    return ", ".join([_kind(field.annotation), *bounds, *patterns])


KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}


def _kind(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = _bounds([part for item in inner[1:] for part in getattr(item, "metadata", [item])])
        return " ".join([_kind(inner[0]), *bounds])
    if origin is typing.Literal:
        return ", ".join(str(value) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in inner)
    if origin is list:
        return f"list of {_kind(inner[0])}"
    return KINDS.get(annotation, str(annotation))


def _bounds(constraints: Iterable[Any]) -> list[str]:
    known = [(part, key) for part in constraints for key in BOUNDS if hasattr(part, key)]
    return [f"{BOUNDS[key]} {getattr(part, key)}" for part, key in known]
