"""Imports run one way, and the examples in docstrings are true."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("composers", "datamodules") for path in (ROOT / package).rglob("*.py"))
LEAF_PACKAGES = ("composers.hypernet", "composers.inr", "composers.rendering")
DATA_LEAVES = ("datamodules.batch", "datamodules.cameras", "datamodules.coordinates", "datamodules.tiles")
FOR_COMPOSERS = (
    *DATA_LEAVES,
    "datamodules.base",
    "datamodules.clips",
    "datamodules.configuration",
    "datamodules.images",
    "datamodules.files",
    "datamodules.randomness",
)
STANDARD = ("__future__", "abc", "collections", "contextlib", "functools", "itertools", "math", "typing")


def _module(path):
    """Return the dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(source, package):
    """Return (module, name) of everything that a file imports anywhere in it; name is None for ``import module``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found += [(".".join([*start, *filter(None, [node.module])]), alias.name) for alias in node.names]
    return found


def _within(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _may_import(importer, module, name):
    """Return whether a module of ours may import this."""
    if _within(importer, ["datamodules"]):
        leaf = _within(importer, DATA_LEAVES)
        return _within(module, (*STANDARD, "torch", *DATA_LEAVES)) if leaf else not _within(module, ["composers"])
    own = next((package for package in LEAF_PACKAGES if _within(importer, [package])), None)
    if own is None and importer != "composers.inner_loop":
        return not _within(module, ["datamodules"]) or _within(module, FOR_COMPOSERS)
    if own is not None and _within(module, [own]):
        return True
    if module in LEAF_PACKAGES:  # through the front door only
        return name is not None and not name.startswith("_")
    return _within(module, (*STANDARD, "torch", *DATA_LEAVES))


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_imports_run_one_way(path):
    importer = _module(path)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    imports = _imports(path.read_text(encoding="utf-8"), package)
    assert not [f"{module} {name or ''}" for module, name in imports if not _may_import(importer, module, name)]


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("composers.inr.coordinate_mlp", "import lightning"),
        ("composers.inr.coordinate_mlp", "def f():\n    from lightning.pytorch import Trainer"),
        ("composers.inr.encodings", "from composers.base import Composer"),
        ("composers.hypernet.tokenizers", "from datamodules.samples import SamplePhotos"),
        ("composers.hypernet.tokenizers", "from datamodules import SamplePhotos"),
        ("composers.rendering.renderer", "from composers.inr.coordinate_mlp import Field"),
        ("composers.rendering.renderer", "from composers.inr import _private"),
        ("composers.rendering.renderer", "from ..inr.coordinate_mlp import Field"),
        ("composers.inner_loop", "from composers.refinement import Latents"),
        ("composers.base", "from datamodules import SamplePhotos"),
        ("composers.callbacks", "import datamodules.samples"),
        ("datamodules.base", "from composers.inr import CoordinateMLP"),
        ("datamodules.samples", "import composers"),
        ("datamodules.coordinates", "from datamodules.base import CoordinateDataModule"),
        ("datamodules.batch", "import lightning"),
    ],
)
def test_the_rule_refuses(importer, source):
    imports = _imports(source, importer.rpartition(".")[0])
    assert not any(_may_import(importer, module, name) for module, name in imports)


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_examples_in_docstrings(path):
    results = doctest.testmod(importlib.import_module(_module(path)))
    assert results.failed == 0


def test_there_are_examples():
    assert sum(">>> " in path.read_text(encoding="utf-8") for path in FILES) >= 4
