"""Who may ask what: no part outside the owning ones tests a rank, ``coord_dim``, views, a modality or a kind of composer.

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
# Files of these parts that own what they test, and why.
OWNERS = {
    "composers/checkpoint.py": "says in words what the coordinates of a checkpoint mean",
    "composers/encoders": "an encoder is built for signals of one rank",
    "composers/metrics.py": "SSIM is defined on two axes",
    "composers/networks": "a network tells coordinates that instances share from coordinates of each",
    "composers/rendering": "a renderer refuses coordinates that it does not render",
    "tools/activations": "draws the layers of models of images, and refuses others",
    "tools/released": "converts released weights of one method per module",
}
RANKS = ("dim", "ndimension")
SHAPES = ("shape", "signal_shape", "size")


def _subclasses(kind):
    """Return the names of all classes derived from one."""
    return {name for one in kind.__subclasses__() for name in (one.__name__, *_subclasses(one))}


KINDS = {
    "Views",
    "PosedImages",
    *(_subclasses(Composer) & {*composers.__all__, "MetaLearned"}),
    *(type(one).__name__ for one in MODALITIES),
}


def _is_number(node):
    """Return whether an operand is a number, or several."""
    parts = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return all(isinstance(part, ast.Constant) and isinstance(part.value, int) for part in parts)


def _is_rank(node):
    """Return whether an operand is the number of axes of a tensor or a shape, or of a coordinate."""
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
    """Return the lines of a file that test what it does not own."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            if any(map(_is_rank, operands)) and any(map(_is_number, operands)):
                found.append(ast.unparse(node))
        is_asked = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass")
        if is_asked and _names(node.args[1]) & KINDS:
            found.append(ast.unparse(node))
    return found


def _files():
    """Return the files that own none of this."""
    paths = [
        path for part in PARTS for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))
    ]
    names = sorted(path.relative_to(ROOT).as_posix() for path in paths)
    return [name for name in names if not any(name == owner or name.startswith(f"{owner}/") for owner in OWNERS)]


@pytest.mark.parametrize("name", _files())
def test_what_differs_is_asked_of_the_part_that_knows(name):
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
        "x = isinstance(composer, MetaLearned)",
        "x = isinstance(composer, (LearnedInit, MetaIPC))",
        "x = isinstance(data.modality, Images)",
        "x = issubclass(kind, TransformerIPC)",
    ],
)
def test_the_rule_refuses(source):
    assert len(offences(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "x = isinstance(module, Composer)",
        "if len(first.shape) == len(last.shape): pass",
        "if composer.inner is None: pass",
    ],
)
def test_the_rule_allows(source):
    assert offences(source) == []


def test_the_kinds_are_known():
    assert {"TransformerIPC", "TransINR", "MetaIPC", "LearnedInit", "Functa", "Images", "Audio", "PosedViews"} <= KINDS


@pytest.mark.parametrize("owner", OWNERS)
def test_every_owner_tests_what_it_owns(owner):
    path = ROOT / owner
    files = path.rglob("*.py") if path.is_dir() else [path]
    assert any(offences(file.read_text(encoding="utf-8")) for file in files)
