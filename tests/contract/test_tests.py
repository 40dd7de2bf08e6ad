"""Tests know the package by its public names, and each other not at all: what they share lies in tests/helpers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from helpers.paths import REPOSITORY

FILES = sorted((REPOSITORY / "tests").rglob("*.py"))


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def private_names(source: str) -> list[str]:
    """Names with a leading underscore of `distwsss`: imported, read from what is imported, or replaced there."""
    nodes = list(ast.walk(ast.parse(source)))
    imports = [each for each in nodes if isinstance(each, ast.ImportFrom) and str(each.module).startswith("distwsss")]
    found = [name for each in imports for name in (*str(each.module).split("."), *(a.name for a in each.names))]
    ours = {alias.asname or alias.name for each in imports for alias in each.names} | {"distwsss"}
    for node in nodes:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[0] in ours:
            found.append(node.attr)
        elif isinstance(node, ast.Call) and node.args and ast.unparse(node.args[0]).split(".")[0] in ours:
            found += [each.value for each in node.args[1:2] if isinstance(each, ast.Constant)]
        elif isinstance(node, ast.Constant) and str(node.value).startswith("distwsss."):
            found += str(node.value).split(".")
    return [name for name in found if is_private(name)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY / "tests")))
def test_no_private_name_is_used(path: Path) -> None:
    assert private_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "from distwsss.data.shards.reader import _read",
        "from distwsss.data import _shards",
        "from distwsss.train import loop\nloop._fit()",
        "from distwsss.train import loop as other\nmonkeypatch.setattr(other, '_fit', None)",
        "monkeypatch.setattr('distwsss.train.loop._fit', None)",
        "import distwsss.train.loop\ndistwsss.train.loop._fit()",
    ],
)
def test_a_private_name_is_caught(wrong: str) -> None:
    assert len(private_names(wrong)) == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY / "tests")))
def test_no_test_is_imported(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [name for name in names if name == "conftest" or name.startswith("test_")]
