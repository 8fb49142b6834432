"""Public names are unique: no two classes or type aliases share a name."""

import ast
from collections import defaultdict
from pathlib import Path

from test_imports import FILES, ROOT


def _defined(path):
    """Return the public classes and type aliases that a file defines."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[:1].isupper() and not name.isupper() and len(name) > 1:
                yield name


def test_public_names_are_defined_once():
    files_by_name = defaultdict(list)
    for path in [*FILES, ROOT / "cli.py"]:
        for name in _defined(path):
            if not name.startswith("_"):
                files_by_name[name].append(str(Path(path).relative_to(ROOT)))
    assert {name: files for name, files in files_by_name.items() if len(files) > 1} == {}
