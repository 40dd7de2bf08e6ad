"""`config show --describe`: every key with its text, its default and what is allowed, as the models have them."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from distwsss import cli
from distwsss.config import load_config
from distwsss.config.crf import CRF_PARAMS
from distwsss.config.describe import describe
from distwsss.config.load import check_config
from distwsss.config.schema import Config
from distwsss.errors import ConfigError

KEY = re.compile(r"([a-z0-9_]+(?:\.[a-z0-9_]+)*): (.*)")
GIVEN = {"name": "(the file's own name)", "data.dataset": "(must be given)"}  # the keys without a default


@dataclass
class Entry:
    """What is printed of a key. allowed: beside a configuration's value the default too."""

    value: str
    text: str
    allowed: str


def entries(printed: str) -> dict[str, Entry]:
    """Key -> what is printed of it, each once."""
    found: dict[str, list[str]] = {}
    last = ""
    for line in printed.splitlines():
        if match := KEY.fullmatch(line):
            last = match[1]
            assert last not in found, f"{last} stands twice"
            found[last] = [match[2]]
        elif line.startswith("    "):
            found[last].append(line.strip())
    return {key: Entry(value, *" ".join(lines).split("allowed: ")) for key, (value, *lines) in found.items()}


def in_yaml(text: str) -> Any:
    """A printed value as our YAML has it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def values(config: Config) -> dict[str, Any]:
    """Every key of the resolved configuration with its value; CRF parameters by their name, if they have one."""

    def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            key = f"{prefix}{name}"
            if not isinstance(value, dict) or name == "crf":
                yield key, names.get(str(value), value)
            if isinstance(value, dict):
                yield from flat(value, f"{key}.")

    names = {str(params.model_dump()): name for name, params in CRF_PARAMS.items()}
    return dict(flat(config.model_dump()))


def configuration(key: str = "seed", value: Any = 0) -> Config:
    """That which sets no key but those it must, and `key`."""
    tree: dict[str, Any] = {"name": "x", "data": {"dataset": "shapes"}}
    section = tree
    *above, last = key.split(".")
    for part in above:
        section = section.setdefault(part, {})
    section[last] = value
    return check_config(tree)


def problems(key: str, value: Any) -> str:
    """What is said of that value, of other keys with which it does not go together too."""
    try:
        configuration(key, value)
    except ConfigError as error:
        return str(error)
    return ""


def literals(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """(key, values) of every field that has its values listed in its type, `null` among them."""
    for name, field in model.model_fields.items():
        inner = typing.get_args(field.annotation)
        options = [field.annotation, *(inner if typing.get_origin(field.annotation) is not list else [])]
        sections = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if sections:
            yield from literals(sections[0], f"{prefix}{name}.")
        choices = [option for option in options if typing.get_origin(option) is typing.Literal]
        if choices:
            yield f"{prefix}{name}", [*typing.get_args(choices[0]), *[None for o in options if o is type(None)]]


LITERALS = dict(literals())


@pytest.fixture(scope="module")
def defaults() -> dict[str, Entry]:
    return entries(describe())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    text = "data: {dataset: voc}\nseeds: {crf: {iterations: 3}}\ntrain: {optim: {lr: 0.5}}\nevaluate: {crf: null}\n"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_of_the_resolved_configuration_is_there(defaults: dict[str, Entry]) -> None:
    assert sorted(defaults) == sorted(values(configuration()))


def test_every_key_has_a_text(defaults: dict[str, Entry]) -> None:
    assert not [key for key, entry in defaults.items() if not entry.text.strip()]


def test_every_section_has_a_text() -> None:
    found = re.findall(r"^# ([a-z0-9_.]+): \S", describe(), re.MULTILINE)
    assert sorted(found) == sorted({key.rpartition(".")[0] for key in values(configuration())} - {""})


def test_defaults_are_those_of_the_checked_configuration(defaults: dict[str, Entry]) -> None:
    wanted = {key: value for key, value in values(configuration()).items() if key not in GIVEN}
    assert {key: in_yaml(defaults[key].value) for key in wanted} == wanted


def test_what_has_no_default_says_so(defaults: dict[str, Entry]) -> None:
    assert {key: defaults[key].value for key in GIVEN} == GIVEN


@pytest.mark.parametrize("key", LITERALS)
def test_the_values_printed_are_those_of_the_type(key: str, defaults: dict[str, Entry]) -> None:
    printed = [in_yaml(text) for text in defaults[key].allowed.replace(", or ", ", ").split(", ")]
    assert printed == LITERALS[key]


@pytest.mark.parametrize("key", LITERALS)
def test_each_printed_value_is_accepted_and_no_other(key: str, defaults: dict[str, Entry]) -> None:
    assert f"`{key}`: found 'nonsense'; input should be" in problems(key, "nonsense")
    for text in defaults[key].allowed.replace(", or ", ", ").split(", "):
        assert "; input should be" not in problems(key, in_yaml(text))


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("name", "text matching ^[A-Za-z0-9_-]+$"),
        ("paths.run", "text, or null"),
        ("hardware.micro_batch", "whole number >= 1, or null"),
        ("hardware.ray.cam_gpus", "number > 0 and <= 1"),
        ("hardware.trackers", "list of any of tensorboard, wandb"),
        ("hardware.tf32", "true or false"),
        ("classify.dropouts", "list of one or more numbers >= 0 and < 1"),
        ("train.augment.resize", "list of 2 numbers"),
        ("train.augment.color_jitter", "[brightness, contrast, saturation, hue], each 0 or more, hue at most 0.5"),
        ("train.labels", "vote, truth or seed:NAME"),
        ("train.temperature", "number > 0, or null"),
        ("train.optim.duration", "a number of steps or epochs above 0, `20000 steps` or `20 epochs`"),
        ("train.evaluate_every", "a number with a unit, `20000 steps`, `20 epochs` or `10%`, or null"),
        ("evaluate.crf", f"{', '.join(CRF_PARAMS)}, or a mapping of the keys below, or null"),
    ],
)
def test_what_is_allowed_is_in_words(key: str, allowed: str, defaults: dict[str, Entry]) -> None:
    assert defaults[key].allowed == allowed


def test_with_a_configuration_the_values_are_its_own(file: Path) -> None:
    config = load_config(file)
    wanted = values(config)
    assert wanted.pop("seeds.crf") == config.seeds.crf.model_dump()  # without a name
    printed = entries(describe(config))
    assert printed.pop("seeds.crf").value == "(not a published one)"
    assert {key: in_yaml(entry.value) for key, entry in printed.items()} == wanted


def test_with_a_configuration_the_defaults_are_still_named(file: Path, defaults: dict[str, Entry]) -> None:
    for key, entry in entries(describe(load_config(file))).items():
        assert entry.allowed.endswith(f"; default: {defaults[key].value}"), key


SECRET = "s3://KEY:SECRET@bucket/x"


def test_credentials_are_not_described(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("s3fs")
    assert cli.main(["config", "show", "--describe", "--config", str(file), "--set", f"paths.shards={SECRET}"]) == 0
    shown = capsys.readouterr().out
    assert "paths.shards: s3://***@bucket/x" in shown
    assert "SECRET" not in shown


def test_credentials_are_not_shown(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("s3fs")
    assert cli.main(["config", "show", "--config", str(file), "--set", f"paths.shards={SECRET}"]) == 0
    shown = capsys.readouterr().out
    assert "shards: s3://***@bucket/x" in shown
    assert "SECRET" not in shown


@pytest.mark.parametrize(
    "override",
    [
        "paths.shards=nosuch://KEY:SECRET@bucket/x", "paths.shards=s3://KEY:SECRET@", f"paths.run={SECRET}",
        f"paths.shard={SECRET}", f"seed={SECRET}", f"paths.shards=[{SECRET}", f"paths.shards {SECRET}",
    ],
)  # fmt: skip
def test_credentials_are_not_in_errors(override: str, file: Path) -> None:
    pytest.importorskip("s3fs")
    with pytest.raises(ConfigError, match=r"\*\*\*@") as caught:
        load_config(file, overrides=[override])
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None  # nor in the traceback that --debug shows
