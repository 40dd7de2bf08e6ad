"""Names that others use are there: what benchmarks import, and what other tools call."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

from helpers.paths import REPOSITORY


def imported(path: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that a file takes from the package."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = [node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("distwsss")]
    return [(str(node.module), alias.name) for node in found for alias in node.names]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_import_what_there_is(path: Path) -> None:
    assert imported(path)
    for module, name in imported(path):
        assert _below(importlib.import_module(module), name) is not None


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("maths.crf.refine", ["image", "probabilities", "params"]),
        ("maths.vote.vote", ["seeds", "scores"]),
        ("maths.select.select_seeds", ["iou"]),
        ("maths.miou.ConfusionMatrix", ["num_classes", "ignore_index"]),
        ("losses.hybrid.positive_loss", ["logits", "labels", "mask", "temperature"]),
        ("losses.hybrid.negative_loss", ["logits", "complements", "mask", "temperature"]),
        ("losses.hybrid.cross_entropy_term", ["logits", "labels", "mask"]),
        ("losses.hybrid.constrained_log_softmax", ["logits", "temperature"]),
        ("losses.hybrid.sample_complements", ["labels", "num_classes", "generator"]),
        (
            "losses.hybrid.hybrid_loss",
            ["logits", "labels", "clean", "complements", "generator", "temperature", "ignore_index"],
        ),
        ("load_config", ["path", "profile", "overrides"]),
        ("run", ["config", "stages"]),
        ("Segmenter.from_pretrained", ["path", "device"]),
        ("Segmenter.predict", ["self", "image", "multi_scale", "crf"]),
    ],
)
def test_names_that_other_tools_call(name: str, parameters: list[str]) -> None:
    found = importlib.import_module("distwsss")
    for part in name.split("."):
        found = importlib.import_module(f"distwsss.{part}") if part in ("maths", "losses") else _below(found, part)
    assert list(inspect.signature(found).parameters) == parameters


def _below(found: object, part: str) -> object:
    if inspect.ismodule(found) and not hasattr(found, part):
        return importlib.import_module(f"{found.__name__}.{part}")
    return getattr(found, part)


def test_the_crf_parameters_are_where_they_were() -> None:
    from distwsss.maths.crf import CRFParams

    assert CRFParams().iterations == 10
