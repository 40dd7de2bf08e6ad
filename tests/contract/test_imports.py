"""One package is one layer, imports go down only (DESIGN, Tree), and optional packages are imported in one file
each."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import REPOSITORY

PACKAGE = REPOSITORY / "distwsss"
# from the bottom up: a file or package of `distwsss` imports those before it, and a package itself
LAYERS = (
    *({"errors"}, {"config"}, {"runtime"}, {"maths"}, {"losses"}, {"models"}, {"data"}, {"inference"}),
    {"evaluate", "saliency", "seeds", "train"},
    *({"report"}, {"planning"}, {"pipeline"}, {"ablate"}, {"cli"}, {"__main__"}),
)
# package -> the files that may import it; all others may not
USERS = {
    "ray": {"runtime/ray_pool.py"},
    "deepspeed": {"train/engine/zero_config.py"},
    "accelerate": {
        *("train/engine/accelerate.py", "train/loop.py", "train/steps.py", "train/meter.py", "train/heldout.py"),
        "train/measure.py",
        "train/estimate/fake_step.py",
    },
    "wandb": set(),  # by accelerate's trackers
    "onnxruntime": {"runtime/onnx.py"},
    "fsspec": {"runtime/storage.py", "config/hardware.py"},
    "s3fs": set(),
    "pycocotools": {"data/sources/coco_mask.py"},
    "scipy": {"data/sources/sbd.py", "losses/set_prediction.py"},
    "transformers": {"models/segformer.py", "models/mask2former.py"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(name: str) -> int:
    """The layer of the file or package `name` at the top of distwsss."""
    found = [number for number, names in enumerate(LAYERS) if name in names]
    assert found, f"{name} stands in no layer"
    return found[0]


def room(path: Path) -> str:
    """The file or package at the top of distwsss that `path` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(source: str, where: object = "") -> set[str]:
    """Dotted names that a file imports, at whatever depth; `from distwsss import a` is distwsss.a."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}: relative import"
            names = {f"distwsss.{alias.name}" for alias in node.names}
            found |= names if node.module == "distwsss" else {node.module or ""}
    return found


def faults(room_of: str, source: str) -> list[str]:
    """The imports of a file in `room_of` that do not go down."""
    names = {name.split(".")[1] for name in imports(source, room_of) if name.startswith("distwsss.")}
    return sorted(name for name in names if name != room_of and layer(name) >= layer(room_of))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", [path for path in FILES if room(path) != "__init__"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_go_down_only(path: Path) -> None:
    assert faults(room(path), read(path)) == []


@pytest.mark.parametrize("name", sorted({room(path) for path in FILES} - {"__init__", "__main__"}))
def test_a_wrong_import_is_caught(name: str) -> None:
    above = next(iter(LAYERS[layer(name) + 1]))
    beside = sorted(LAYERS[layer(name)] - {name})
    for wrong in (above, *beside):
        for text in (f"from distwsss.{wrong} import x", f"import distwsss.{wrong}.x", f"from distwsss import {wrong}"):
            assert faults(name, f"def late():\n    {text}\n") == [wrong]


def test_every_layer_is_there() -> None:
    assert set().union(*LAYERS) == {room(path) for path in FILES} - {"__init__"}


@pytest.mark.parametrize("name", USERS)
def test_optional_packages_stay_in_their_files(name: str) -> None:
    users = {
        str(path.relative_to(PACKAGE)) for path in FILES if name in {i.partition(".")[0] for i in imports(read(path))}
    }
    assert users <= USERS[name]


@pytest.mark.parametrize("path", sorted(set().union(*USERS.values())))
def test_those_files_are_there(path: str) -> None:
    assert (PACKAGE / path).is_file()


def test_transformers_is_imported_when_such_a_network_is_built_only() -> None:
    for name in USERS["transformers"]:
        for node in ast.parse(read(PACKAGE / name)).body:
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(each.startswith("transformers") for each in [*named, str(getattr(node, "module", ""))])


@pytest.mark.parametrize(
    "statement", ["import distwsss", "import distwsss.cli; distwsss.cli.build_parser().format_help()"]
)
def test_what_must_be_fast_loads_no_torch(statement: str) -> None:
    heavy = ["torch", "transformers", "timm"] + (["numpy", "pydantic"] if statement == "import distwsss" else [])
    code = f"{statement}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
