"""Imports respect the order of layers, and doctests pass."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (  # a layer may import only itself and earlier layers
    (
        "datamodules.batch",
        "datamodules.cameras",
        "datamodules.code_size",
        "datamodules.domain",
        "datamodules.enlargement",
        "datamodules.randomness",
        "datamodules.spec",
        "datamodules.tiles",
    ),
    ("datamodules.storage", "datamodules.scenes.raycast"),
    (
        "composers.networks",
        "composers.latents",
        "composers.encoders",
        "composers.rendering",
        "composers.inference.adapt",
    ),
    ("datamodules.base", "datamodules.loading", "datamodules.configuration"),
    ("composers.metrics", "composers.losses", "composers.checkpoint"),
    ("composers.inference",),
    ("composers",),
    ("modalities",),
    ("datamodules",),
    ("callbacks",),
    ("application", "tools", "benchmarks", "studies"),
)
PACKAGES = sorted({module.split(".")[0] for layer in LAYERS for module in layer})
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TORCH_ONLY = (*LAYERS[0], *LAYERS[2])


def _module(path):
    """Return the dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(source, package):
    """Return (module, name) of all imports in a file, at any level; the name is None for ``import module``."""
    imports = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            imports += [(".".join([*start, *filter(None, [node.module])]), alias.name) for alias in node.names]
    return imports


def _within(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _layer(module):
    """Return the index of the layer of a module, by its longest matching name; None for external modules."""
    named = [(len(name), number) for number, layer in enumerate(LAYERS) for name in layer if _within(module, [name])]
    return max(named)[1] if named else None


def _may_import(importer, module, name):
    """Return whether a module may import a name from another module."""
    target = f"{module}.{name}" if name is not None and _is_module(f"{module}.{name}") else module
    importer_layer, target_layer = _layer(importer), _layer(target)
    if target_layer is None:
        return target.split(".")[0] in {*sys.stdlib_module_names, "torch"} or not _within(importer, TORCH_ONLY)
    data_to_composers = _within(importer, ["datamodules"]) and _within(target, ["composers"])
    private = name is not None and name.startswith("_") and _package(importer) != _package(target)
    return target_layer <= importer_layer and not data_to_composers and not private


def _package(module):
    """Return the package that contains a module."""
    return module if ROOT.joinpath(*module.split(".")).is_dir() else module.rpartition(".")[0]


def _is_module(module):
    """Return whether a dotted name is a file or folder of this repository."""
    path = ROOT.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_imports_respect_the_layers(path):
    importer = _module(path)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    imports = _imports(path.read_text(encoding="utf-8"), package)
    assert not [f"{module} {name or ''}" for module, name in imports if not _may_import(importer, module, name)]


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("composers.networks.coordinate_mlp", "import lightning"),
        ("composers.networks.coordinate_mlp", "def f():\n    from lightning.pytorch import Trainer"),
        ("composers.networks.encodings", "from composers.base import Composer"),
        ("composers.encoders.patches", "from datamodules.images.sample_photos import SamplePhotos"),
        ("composers.encoders.patches", "from datamodules import SamplePhotos"),
        ("composers.rendering.renderer", "from composers.networks import _private"),
        ("composers.rendering.renderer", "from ..networks import _private"),
        ("composers.inference.adapt", "from composers.inference.refinement import Latents"),
        ("composers.inference.refinement", "from composers.base import Composer"),
        ("composers.base", "from datamodules import SamplePhotos"),
        ("composers.base", "from modalities.images import to_image"),
        ("composers.checkpoint", "import modalities.audio"),
        ("composers.checkpoint", "from composers.construction import build"),
        ("modalities.images", "from callbacks.results import ResultsTable"),
        ("modalities.images", "from datamodules.images.base import ImageSet"),
        ("modalities.images", "from datamodules import SamplePhotos"),
        ("callbacks.gallery", "from application.runs import RunFolders"),
        ("datamodules.base", "from modalities.images import Images"),
        ("datamodules.spec", "from modalities.images import Images"),
        ("callbacks.results", "from application.runs import RunFolders"),
        ("datamodules.base", "from composers.networks import CoordinateMLP"),
        ("datamodules.base", "from datamodules.images.base import ImageSet"),
        ("datamodules.images.sample_photos", "import composers"),
        ("datamodules.domain", "from datamodules.base import CoordinateDataModule"),
        ("datamodules.batch", "import lightning"),
    ],
)
def test_forbidden_imports_are_detected(importer, source):
    imports = _imports(source, importer.rpartition(".")[0])
    assert not any(_may_import(importer, module, name) for module, name in imports)


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_doctests_pass(path):
    results = doctest.testmod(importlib.import_module(_module(path)))
    assert results.failed == 0


def test_doctests_exist():
    assert sum(">>> " in path.read_text(encoding="utf-8") for path in FILES) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["composers", "datamodules.images.base", "datamodules", "modalities.views", "callbacks.gallery"]
)
def test_any_package_can_be_imported_first(module):
    code = f"import {module}; from datamodules import SamplePhotos; from composers import Composer; import modalities"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
