"""Constructors of data modules and composers take their own arguments and pass the others on by name."""

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

LOADING = {"batch_size", "eval_batch_size", "num_workers"}
WITHOUT_FILES = {"SamplePhotos", "SampleSpeech"}  # these read no folder of the user
FROM_IMAGES = {"CelebA", "FFHQ", "ImageFolder", "ImageNette"}
OF_COMPOSERS = {"inr", "renderer", "loss", "metrics", "optimizer", "scheduler", "refinement"}


def _exported(package, base):
    """Return the concrete classes that a package exports."""
    kinds = (getattr(package, name) for name in package.__all__)
    return [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, base) and not inspect.isabstract(kind)]


DATA = [kind for kind in _exported(datamodules, CoordinateDataModule) if kind is not datamodules.ImageFiles]
COMPOSERS = _exported(composers, Composer)


def _options(kind):
    """Return the options of a class on the command line, and the help of each."""
    parser = ArgumentParser()
    parser.add_class_arguments(kind)
    return {action.dest: action.help for action in parser._actions if action.dest != "help"}


def _family(base):
    """Return a class of this project and all that inherit from it."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__.partition(".")[0] in ("composers", "datamodules"):
            yield from _family(kind)


def _forwarded(kind):
    """Return what a constructor passes to that of its base by position; None where it has no constructor."""
    if "__init__" not in vars(kind):
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.__init__)))
    [call] = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"
    ]
    return [ast.unparse(argument) for argument in call.args]


@pytest.mark.parametrize("kind", DATA)
def test_a_data_module_offers_and_documents_the_arguments_of_all(kind):
    options = _options(kind)
    expected = LOADING | (set() if kind.__name__ in WITHOUT_FILES else {"root"})
    expected |= {"cache"} if kind.__name__ in FROM_IMAGES else set()
    assert expected <= options.keys()
    assert [name for name, text in options.items() if not text] == []


@pytest.mark.parametrize("kind", COMPOSERS)
def test_a_composer_offers_and_documents_the_arguments_of_all(kind):
    options = _options(kind)
    assert {name.partition(".")[0] for name in options} >= OF_COMPOSERS
    assert [name for name, text in options.items() if not text] == []


@pytest.mark.parametrize(
    ("base", "allowed"), [(CoordinateDataModule, []), (Composer, ["inr", "inner_loop"])], ids=["data", "composers"]
)
def test_constructors_pass_arguments_of_their_base_by_name(base, allowed):
    by_position = {kind.__name__: _forwarded(kind) for kind in dict.fromkeys(_family(base))}
    assert len(by_position) > 5
    for name, arguments in by_position.items():
        assert arguments is None or arguments == allowed[: len(arguments)], name


@pytest.mark.parametrize("kind", DATA)
def test_an_unknown_keyword_is_a_type_error(kind):
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        kind(batchsize=3)


def test_an_unknown_argument_on_the_command_line_is_named():
    message = refused("fit", *tiny("ipc"), "--data.init_args.batchsize", 3)
    assert "datamodules.SamplePhotos: Option 'batchsize' is not accepted" in message


def test_an_argument_of_the_old_order_is_refused():
    with pytest.raises(TypeError, match="positional argument"):
        datamodules.ImageNette(64)  # which would turn downloads on
