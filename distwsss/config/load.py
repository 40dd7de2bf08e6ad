"""From a YAML file, a profile and `--set` overrides to one checked `Config`; all problems reported at once.

Called by `cli` and users of Python. A file may stand on others, its `base: FILE` or `base: [FILE, ...]`, relative to
its own folder; every other relative path is relative to the folder where the command was started. Configurations that
ship with the package (`SHIPPED`) are known by name: `voc12/deeplab_v2`, and `rtx3090` as a profile.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from distwsss.config.crf import CRF_PARAMS
from distwsss.config.hardware import without_credentials
from distwsss.config.hints import unknown_key
from distwsss.config.schema import Config
from distwsss.errors import ConfigError, report_problems

# in a wheel beside the other sub-packages, in a checkout beside the package
_PLACES = [Path(__file__).parents[above] / "configs" for above in (1, 2)]
SHIPPED = next((folder for folder in _PLACES if folder.is_dir()), _PLACES[0])


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and knows YAML 1.2's scalars only.

    PyYAML's own YAML 1.1 makes a number of the image id 2007_000032, False of `no` and text of `1e-3`.
    """


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    keys = [loader.construct_object(key) for key in own]
    for position, key in enumerate(keys):
        if key in keys[:position]:
            line = own[position].start_mark.line + 1
            raise yaml.constructor.ConstructorError(None, None, f"line {line}: key {key!r} stands twice", None)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # PyYAML's own makes 8 of 010
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?\d+$", list("-+0123456789")),
    ("float", r"^[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$", list("-+.0123456789")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


Layer = tuple[str, dict[str, Any]]  # where it stands, and a tree to lay over what is below


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
    except yaml.YAMLError as error:
        found = without_credentials(f"{where}: not valid YAML: {' '.join(str(error).split())}")
        raise ConfigError(found) from None  # the error's own text has the lines in the clear


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a file, by YAML 1.2's scalars, no key twice. Raises ConfigError naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path.absolute()}: cannot be read ({error.strerror}); give an existing YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: found bytes that are not UTF-8 (at {error.start}); save it as UTF-8") from error
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: found {type(tree).__name__}; allowed: a mapping of sections at the top")
    return tree


def _overlay_file(tree: dict[str, Any], path: Path, origin: dict[str, str], below: tuple[Path, ...] = ()) -> None:
    """Overlay a file on `tree`, after the file or files that its `base` names (relative to its folder), if any."""
    if path.resolve() in below:
        raise ConfigError(f"{path}: `base`: found itself again through {below[-1]}; allowed: files without a circle")
    own = read_yaml(path)
    base = own.pop("base", None)
    bases = base if isinstance(base, list) else [] if base is None else [base]
    for name in bases:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: `base`: found {name!r}; allowed: YAML files, relative to this one")
        _overlay_file(tree, path.parent / name, origin, (*below, path.resolve()))
    _overlay(tree, own, str(path), origin)


def _overlay(base: dict[str, Any], top: dict[str, Any], where: str, origin: dict[str, str], prefix: str = "") -> None:
    """Overlay `top` on `base` in place; `origin` records which source set each dotted key."""
    for key, value in top.items():
        dotted = f"{prefix}{key}"
        if key == "crf" and isinstance(value, dict) and isinstance(base.get(key), str) and base[key] in CRF_PARAMS:
            base[key] = CRF_PARAMS[base[key]].model_dump()  # single numbers over a name are over that name's
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _overlay(base[key], value, where, origin, f"{dotted}.")
        else:
            base[key] = copy.deepcopy(value)
            origin[dotted] = where


def _override(item: str) -> dict[str, Any]:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {without_credentials(item)}: found no `=`; allowed: --set section.key=value")
    return nested({key.strip(): _parse(text, f"--set {item}")})


def nested(tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` with its dotted keys (`train.optim.lr`) as sections in sections."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        _overlay(found, value, "", {})
    return found


def find_file(option: str, name: str | Path, kind: str, suffix: str = ".yaml") -> Path:
    """The file that `name` means: a path, else one that ships with the package in configs/KIND, with or without suffix.

    Raises ConfigError naming `option` and every place that was looked at.
    """
    shipped = SHIPPED / kind / (str(name) if str(name).endswith(suffix) else f"{name}{suffix}")
    candidates = [Path(name), shipped] if not Path(name).is_absolute() else [Path(name)]
    for candidate in candidates:
        if os.path.isfile(candidate):  # Path.is_file raises where a folder may not be entered
            return candidate
    known = sorted(
        str(path.relative_to(SHIPPED / kind).with_suffix("")) for path in (SHIPPED / kind).rglob(f"*{suffix}")
    )
    close = difflib.get_close_matches(str(name).removesuffix(suffix), known, n=1)
    looked = " and ".join(str(candidate.absolute()) for candidate in candidates)
    hint = f"did you mean `{close[0]}`?" if close else "give an existing file, or a name that ships with distwsss"
    raise ConfigError(f"{option} {name}: no such file; looked for {looked}; {hint}")


def _source(dotted: str, origin: dict[str, str], default: str) -> str:
    """What set `dotted`, or the section around it."""
    parts = dotted.split(".")
    above = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((origin[key] for key in above if key in origin), default)


def _describe(error: dict[str, Any], origin: dict[str, str], default: str) -> list[str]:
    """The problems of one error of pydantic's; several only of `Config` as a whole, a line `key: problem` each."""
    message = error["msg"].removeprefix("Value error, ")
    if error["loc"]:
        return [_describe_key(error, message, origin, default)]
    faults = [line.partition(": ") for line in message.split("\n")]
    return [f"{_source(key, origin, default)}: `{key}`: {text}" for key, _, text in faults]


def _describe_key(error: dict[str, Any], message: str, origin: dict[str, str], default: str) -> str:
    location = error["loc"]
    dotted = ".".join(map(str, location))
    where = _source(dotted, origin, default)
    if error["type"] == "extra_forbidden":
        return f"{where}: `{dotted}`: unknown key; {unknown_key(dotted)}"
    if error["type"] == "missing":
        return f"{where}: `{dotted}`: missing; this key has no default"
    message = message[0].lower() + message[1:] if message[:5] == "Input" else message
    if isinstance(error["input"], dict):  # a check over a whole section: its message names the keys
        return f"{where}: `{dotted}`: {message}"
    hint = ""
    choices = re.findall(r"'([^']*)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else []
    close = difflib.get_close_matches(str(error["input"]), choices, n=1, cutoff=0.5)
    if close:
        hint = f"; did you mean `{close[0]}`?"
    return f"{where}: `{dotted}`: found {error['input']!r}; {message}{hint}"


def _defaults() -> dict[str, Any]:
    """The default tree, so that a file which sets one key of a section keeps that section's other defaults."""
    fields = Config.model_fields
    return {name: fields[name].default.model_dump() for name in fields if isinstance(fields[name].default, BaseModel)}


def load_config(path: str | Path, profile: str | None = None, overrides: list[str] | None = None) -> Config:
    """Read `path` (a file, or the name of one that ships with the package), overlay the profile, then each `key=value`
    of `overrides`. Without a `name` the configuration is called as its file.

    Raises ConfigError naming every problem with its source, dotted key, what was found and what is allowed.
    """
    return load_layered(path, profile, overrides=overrides)


def load_layered(
    path: str | Path,
    profile: str | None = None,
    below: Sequence[Layer] = (),
    overrides: list[str] | None = None,
    above: Sequence[Layer] = (),
) -> Config:
    """`load_config` with trees below and above what the `overrides` say. Raises likewise."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: found {overrides!r}; allowed: a list of `key=value`")
    path = find_file("--config", path, ".")
    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    _overlay_file(tree, path, origin)
    if "name" not in tree:
        tree["name"], origin["name"] = path.stem, f"{path} (the file's own name; `name:` gives another)"
    return _overlaid(tree, origin, profile, [*below, *_said(overrides), *above], str(path))


def config_without_file(
    name: str, data: dict[str, Any], profile: str | None = None, overrides: list[str] | None = None
) -> Config:
    """The defaults called `name`, with `data` as that section, overlaid like `load_config`'s. Raises likewise."""
    return _overlaid({"name": name, "data": data}, {}, profile, _said(overrides), "no --config")


def _said(overrides: list[str] | None) -> list[Layer]:
    return [(f"--set {item}", _override(item)) for item in overrides or []]


def _overlaid(
    tree: dict[str, Any], origin: dict[str, str], profile: str | None, layers: Sequence[Layer], where: str
) -> Config:
    if profile:
        profile_path = find_file("--profile", profile, "profiles")
        _overlay(tree, read_yaml(profile_path), str(profile_path), origin)
    for source, layer in layers:
        _overlay(tree, layer, source, origin)
    return check_config(tree, origin, where)


def check_config(tree: dict[str, Any], origin: dict[str, str] | None = None, where: str = "configuration") -> Config:
    """A `Config` from nested dictionaries, over the defaults. Raises ConfigError with every problem."""
    complete = _defaults()
    _overlay(complete, tree, where, {})
    try:
        return Config.model_validate(complete)
    except ValidationError as error:
        problems = [text for item in error.errors() for text in _describe(dict(item), origin or {}, where)]
        # `from None`: the error's own text has every value in the clear
        raise ConfigError(without_credentials(report_problems("The configuration is not valid", problems))) from None


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML, keys in schema order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def is_dump(text: bytes) -> bool:
    """Whether `text` is YAML as `dump_yaml` writes it: no comment, order or form of somebody's own."""
    try:
        tree = yaml.safe_load(text)
        return isinstance(tree, dict) and yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode() == text
    except (yaml.YAMLError, UnicodeError):
        return False


def shown_yaml(config: Config) -> str:
    """`dump_yaml` for eyes and reports: with stars for credentials in URLs."""
    return without_credentials(dump_yaml(config))
