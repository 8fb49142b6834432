"""Constructors of data modules and composers take their own arguments and pass the others by name."""

import ast
import inspect
import textwrap

import pytest
from jsonargparse import ArgumentParser
from program import refused, tiny

import composers
import datamodules
from composers import Composer
from datamodules import CoordinateDataModule

DATA_OPTIONS = {"batch_size", "eval_batch_size", "num_workers"}
WITHOUT_ROOT = {"SamplePhotos", "SampleSpeech"}  # which contain bundled data
WITH_CACHE = {"CelebA", "FFHQ", "ImageFolder", "ImageNette"}
COMPOSER_OPTIONS = {"network", "renderer", "loss", "metrics", "optimizer", "scheduler", "inner", "refinement"}


def _exported(package, base):
    """Return the concrete classes that a package exports."""
    kinds = (getattr(package, name) for name in package.__all__)
    return [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, base) and not inspect.isabstract(kind)]


DATA = [kind for kind in _exported(datamodules, CoordinateDataModule) if kind is not datamodules.ImageFiles]
COMPOSERS = _exported(composers, Composer)


def _options(kind):
    """Return the help of the command line options of a class, by name."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind)
    return {action.dest: action.help for action in parser._actions if action.dest != "help"}


def _family(base):
    """Yield a class and all its subclasses in this project."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__.partition(".")[0] in ("composers", "datamodules"):
            yield from _family(kind)


def _forwarded(kind):
    """Return the positional arguments of the call of the base constructor; None if there is no constructor."""
    if "__init__" not in vars(kind):
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.__init__)))
    [call] = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"
    ]
    return [ast.unparse(argument) for argument in call.args]


@pytest.mark.parametrize("kind", DATA)
def test_data_modules_have_and_document_the_common_arguments(kind):
    options = _options(kind)
    expected = DATA_OPTIONS | (set() if kind.__name__ in WITHOUT_ROOT else {"root"})
    expected |= {"cache"} if kind.__name__ in WITH_CACHE else set()
    assert expected <= options.keys()
    assert [name for name, text in options.items() if not text] == []


@pytest.mark.parametrize("kind", COMPOSERS)
def test_composers_have_and_document_the_common_arguments(kind):
    options = _options(kind)
    assert {name.partition(".")[0] for name in options} >= COMPOSER_OPTIONS
    assert [name for name, text in options.items() if not text] == []


@pytest.mark.parametrize(
    ("base", "allowed"), [(CoordinateDataModule, []), (Composer, ["inr", "inner_loop"])], ids=["data", "composers"]
)
def test_arguments_are_passed_to_the_base_by_name(base, allowed):
    by_position = {kind.__name__: _forwarded(kind) for kind in dict.fromkeys(_family(base))}
    assert len(by_position) > 5
    for name, arguments in by_position.items():
        assert arguments is None or arguments == allowed[: len(arguments)], name


@pytest.mark.parametrize("kind", DATA)
def test_unknown_keyword_is_a_type_error(kind):
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        kind(batchsize=3)


def test_unknown_option_on_the_command_line_is_reported():
    message = refused("fit", *tiny("ipc"), "--data.init_args.batchsize", 3)
    assert "datamodules.SamplePhotos: Option 'batchsize' is not accepted" in message


def test_positional_options_are_rejected():
    with pytest.raises(TypeError, match="positional argument"):
        datamodules.ImageNette(64)  # 64 would set download
