"""Imports go down only (DESIGN, Tree), and optional packages are imported in one file each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "distwsss"
LAYERS = [
    {"errors", "__init__", "__main__"},
    {"runtime.storage"},
    {"config"},
    {"runtime"},
    {"losses", "models", "seeds.cam", "seeds.crf", "seeds.vote", "seeds.select", "seeds", "evaluate.miou", "evaluate"},
    {"data"},
    {"evaluate.*"},
    {"seeds.generate", "seeds.chunk", "seeds.on_ray", "seeds.progress", "train"},
    {"report"},
    {"cli"},
]
ONE_FILE = {
    "fsspec": "runtime/storage.py",
    "s3fs": None,
    "ray": "runtime/ray_pool.py",
    "deepspeed": None,
    "wandb": None,
    "accelerate": None,
    "pycocotools": "data/sources/coco_mask.py",
    "scipy": None,
    "transformers": None,
}
TRANSFORMERS = {"models/segformer.py", "models/mask2former.py"}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(module: str) -> int:
    """The layer of `a.b` (below distwsss): by its full name, its package's modules, its package."""
    package = module.partition(".")[0]
    for name in (module, f"{package}.*" if "." in module else module, package):
        for number, names in enumerate(LAYERS):
            if name in names:
                return number
    raise AssertionError(f"{module} stands in no layer")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down_only(path: Path) -> None:
    module = module_of(path)
    if module == "__main__":
        return
    for name in imports(path):
        if name.startswith("distwsss."):
            target = name.removeprefix("distwsss.")
            same_package = target.partition(".")[0] == module.partition(".")[0]
            assert layer(target) < layer(module) or (layer(target) == layer(module) and same_package), (
                f"{module} imports {target}"
            )


def test_optional_packages_stay_in_their_file() -> None:
    users = {name: {str(p.relative_to(PACKAGE)) for p in FILES if name in {i.partition(".")[0] for i in imports(p)}}
             for name in ONE_FILE}  # fmt: skip
    assert users["ray"] <= {"runtime/ray_pool.py"}
    assert users["fsspec"] <= {"runtime/storage.py"}
    assert users["pycocotools"] <= {"data/sources/coco_mask.py"}
    assert users["scipy"] <= {"data/sources/sbd.py", "losses/set_prediction.py"}
    assert users["transformers"] == TRANSFORMERS
    assert not users["s3fs"]
    assert users["deepspeed"] <= {"train/engine/zero.py", "train/engine/zero_config.py"}
    assert not users["wandb"]
    assert all(user.startswith("train/") for user in users["accelerate"])


def test_transformers_is_imported_when_such_a_network_is_built_only() -> None:
    for name in TRANSFORMERS:
        for node in ast.parse((PACKAGE / name).read_text(encoding="utf-8")).body:
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(each.startswith("transformers") for each in [*named, str(getattr(node, "module", ""))])


def test_configuration_and_help_need_no_torch() -> None:
    for path in [*(PACKAGE / "config").glob("*.py"), PACKAGE / "errors.py", PACKAGE / "seeds/crf.py"]:
        assert "torch" not in {name.partition(".")[0] for name in imports(path)}, path
