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
from distwsss.config.hardware import without_credentials
from distwsss.config.schema import Config
from distwsss.config.section import Allowed

WIDTH = 110
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
HEADING = (
    "KEY: {shown}, then what it is for and what is allowed. Set a key in the file of --config, or with --set KEY=VALUE."
)
# keys that must be given, unless something else gives them
GIVEN_BY = {"name": "(the file's own name)"}


def describe(config: Config | None = None) -> str:
    """Two or three lines a key: key and value (that of `config`, else the default); what it is for; what is allowed,
    and beside a configuration's value the default. A section's own keys come before the sections in it.
    """
    heading = HEADING.format(shown="default" if config is None else "value in this configuration")
    return "\n".join([*_comment(heading), *_section(Config, config, None, "")])


def _section(model: type[BaseModel], values: Any, defaults: Any, prefix: str) -> Iterator[str]:
    """values: of the configuration, None without one; defaults: of the section around, None where it has none."""
    inner = {name: model_of(field.annotation) for name, field in model.model_fields.items()}
    for name, field in model.model_fields.items():
        if inner[name] in (None, CRFParams) or _is_null(field, values, defaults, name):
            yield from _key(f"{prefix}{name}", field, values, _default(field, defaults, name), name)
    for name, section in inner.items():
        if section is None:
            continue
        value = getattr(values, name, None)
        if _is_null(model.model_fields[name], values, defaults, name):
            continue  # it has no keys
        yield ""
        yield from _comment(f"{prefix}{name}: {_own_words(section)}")
        yield from _section(section, value, _default(model.model_fields[name], defaults, name), f"{prefix}{name}.")


def _is_null(field: FieldInfo, values: Any, defaults: Any, name: str) -> bool:
    """Whether a section that may be null is shown as null."""
    if field.is_required():
        return False
    return (_default(field, defaults, name) if values is None else getattr(values, name)) is None


def _key(dotted: str, field: FieldInfo, values: Any, default: Any, name: str) -> Iterator[str]:
    is_given = field.is_required()
    missing = GIVEN_BY.get(dotted, "(must be given)")
    shown = _text(getattr(values, name)) if values is not None else missing if is_given else _text(default)
    yield f"{dotted}: {shown}"
    if field.description:
        yield from _indented(field.description)
    beside = "" if values is None else f"; default: {missing if is_given else _text(default)}"
    yield from _indented(f"allowed: {_kind(field.annotation, field.metadata)}{beside}")


def _default(field: FieldInfo, around: Any, name: str) -> Any:
    """That of the section around, which may set others than its model (`train.optim`), else the field's own."""
    if around is not None:
        return getattr(around, name)
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _own_words(model: type[BaseModel]) -> str:
    """The first paragraph of a section's docstring, nothing where it inherits `Section`'s."""
    return " ".join((model.__doc__ or "").split("\n\n")[0].split()) if "__doc__" in vars(model) else ""


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation names, if it does."""
    options = [annotation, *typing.get_args(annotation)]
    options += [typing.get_args(option)[0] for option in options if typing.get_origin(option) is typing.Annotated]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _text(value: Any) -> str:
    """As YAML would have it on one line; CRF parameters by the name they are published under."""
    if isinstance(value, CRFParams):
        names = [name for name, params in CRF_PARAMS.items() if params == value]
        return names[0] if names else "(not a published one)"
    return without_credentials(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _kind(annotation: Any, constraints: Iterable[Any]) -> str:
    """What a value may be, in words: the type, its bounds, and what an annotation says beside them."""
    parts = [part for item in constraints for part in getattr(item, "metadata", [item])]
    said = [part.text for part in parts if isinstance(part, Allowed)]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if said:
        return said[0]
    if annotation is CRFParams:
        return f"{', '.join(CRF_PARAMS)}, or a mapping of the keys below"
    if origin is typing.Annotated:
        return _kind(inner[0], [*inner[1:], *parts])
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_kind(option, [] if option is type(None) else parts) for option in inner)
    if origin is typing.Literal:
        return ", ".join(str(value) for value in inner)
    if origin is list:
        return _list(inner[0], parts)
    return KINDS.get(annotation, str(annotation)) + _bounds(parts)


def _list(annotation: Any, parts: list[Any]) -> str:
    least = next((part.min_length for part in parts if hasattr(part, "min_length")), 0)
    most = next((part.max_length for part in parts if hasattr(part, "max_length")), None)
    number = f"{least} " if least == most else "one or more " if least == 1 else ""
    one = _kind(annotation, [])
    choice = typing.get_origin(annotation) is typing.Literal
    return f"list of {number}{f'any of {one}' if choice else one.replace('number', 'numbers', 1)}"


def _bounds(parts: list[Any]) -> str:
    found = [f"{sign} {getattr(part, key):g}" for part in parts for key, sign in BOUNDS.items() if hasattr(part, key)]
    found += [f"matching {part.pattern}" for part in parts if getattr(part, "pattern", None)]
    return f" {' and '.join(found)}" if found else ""
