"""Only the parts that own a rank, ``coord_dim``, views, a modality or a type of composer may test for it.

What differs between signals or methods is a method of the part that knows: a modality, a domain, a renderer, a composer.
"""

import ast
from pathlib import Path

import pytest

import composers
from composers import Composer
from modalities import MODALITIES

ROOT = Path(__file__).parent.parent
PARTS = ("application", "callbacks", "composers", "tools", "cli.py")
# Files that may test for these, and why.
OWNERS = {
    "composers/checkpoint.py": "describes the coordinates of a checkpoint in error messages",
    "composers/encoders": "an encoder is built for signals of one rank",
    "composers/metrics.py": "SSIM is defined on two axes",
    "composers/networks": "a network distinguishes shared coordinates from coordinates per instance",
    "composers/rendering": "a renderer rejects coordinates that it does not support",
    "tools/activations": "draws the layers of image models, and rejects others",
    "tools/released": "converts released weights of one method per module",
}
RANKS = ("dim", "ndimension")
SHAPES = ("shape", "signal_shape", "size")


def _subclasses(kind):
    """Return the names of all subclasses, recursively."""
    return {name for child in kind.__subclasses__() for name in (child.__name__, *_subclasses(child))}


KINDS = {
    "Views",
    "PosedImages",
    *(_subclasses(Composer) & {*composers.__all__}),
    *(type(modality).__name__ for modality in MODALITIES),
}


def _is_number(node):
    """Return whether an operand is an integer or a collection of integers."""
    parts = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return all(isinstance(part, ast.Constant) and isinstance(part.value, int) for part in parts)


def _is_rank(node):
    """Return whether an operand is the rank of a tensor or shape, or ``coord_dim``."""
    if isinstance(node, ast.Attribute):
        return node.attr in ("ndim", "coord_dim")
    if isinstance(node, ast.Name):
        return node.id == "coord_dim"
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in RANKS
    named = [
        argument.attr if isinstance(argument, ast.Attribute) else getattr(argument, "id", "") for argument in node.args
    ]
    return isinstance(node.func, ast.Name) and node.func.id == "len" and bool({*named} & {*SHAPES})


def _names(node):
    """Return the names in an expression."""
    return {part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "") for part in ast.walk(node)}


def offences(source):
    """Return the expressions in a source file that test a rank or a type in `KINDS`."""
    result = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            if any(map(_is_rank, operands)) and any(map(_is_number, operands)):
                result.append(ast.unparse(node))
        is_type_test = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass")
        if is_type_test and _names(node.args[1]) & KINDS:
            result.append(ast.unparse(node))
    return result


def _files():
    """Return the files that are not in `OWNERS`."""
    paths = [
        path for part in PARTS for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
    ]
    names = sorted(path.relative_to(ROOT).as_posix() for path in paths)
    return [name for name in names if not any(name == owner or name.startswith(f"{owner}/") for owner in OWNERS)]


@pytest.mark.parametrize("name", _files())
def test_only_owners_test_ranks_and_types(name):
    assert offences((ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "if len(batch.shape) == 2: pass",
        "if 1 != len(code.shape): pass",
        "if values.dim() == 3: pass",
        "if values.ndim > 2: pass",
        "if values.dim() in (2, 3): pass",
        "if data.coord_dim != 6: pass",
        "x = isinstance(signal, Views)",
        "x = isinstance(signal, batch.Views)",
        "x = isinstance(composer, TransINR)",
        "x = isinstance(composer, (LearnedInit, MetaIPC))",
        "x = isinstance(data.modality, Images)",
        "x = issubclass(kind, TransformerIPC)",
    ],
)
def test_forbidden_tests_are_detected(source):
    assert len(offences(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "x = isinstance(module, Composer)",
        "if len(first.shape) == len(last.shape): pass",
        "if composer.inner is None: pass",
    ],
)
def test_allowed_tests_are_accepted(source):
    assert offences(source) == []


def test_kinds_contain_all_types():
    assert {"TransformerIPC", "TransINR", "MetaIPC", "LearnedInit", "Functa", "Images", "Audio", "PosedViews"} <= KINDS


@pytest.mark.parametrize("owner", OWNERS)
def test_every_owner_contains_such_a_test(owner):
    path = ROOT / owner
    files = path.rglob("*.py") if path.is_dir() else [path]
    assert any(offences(file.read_text(encoding="utf-8")) for file in files)
