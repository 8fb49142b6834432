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
WITHOUT_ROOT = {"Digits", "SamplePhotos", "SampleSpeech", "SuperResolution"}  # bundled data, or wrappers of others
WITH_CACHE = {"CelebA", "DIV2K", "FFHQ", "ImageFolder", "ImageNette", "SRBenchmark"}
FILES = (datamodules.ImageFiles, datamodules.LowResolutionFiles)  # of prediction
COMPOSER_OPTIONS = {"network", "renderer", "loss", "metrics", "optimizer", "scheduler", "inner", "refinement"}


def _exported(package, base):
    """Return the concrete classes that a package exports."""
    kinds = (getattr(package, name) for name in package.__all__)
    return [kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, base) and not inspect.isabstract(kind)]


DATA = [kind for kind in _exported(datamodules, CoordinateDataModule) if kind not in FILES]
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
    """Return the call of the base constructor; None if there is no constructor."""
    if "__init__" not in vars(kind):
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.__init__)))
    [call] = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"
    ]
    return call


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


def test_data_modules_pass_arguments_to_the_base_by_name():
    calls = {kind.__name__: _forwarded(kind) for kind in dict.fromkeys(_family(CoordinateDataModule))}
    assert len(calls) > 5
    assert [name for name, call in calls.items() if call is not None and call.args] == []


@pytest.mark.parametrize("preset", [kind for kind in COMPOSERS if kind is not Composer])
def test_presets_pass_their_parts_in_the_order_of_the_base_and_all_else_by_name(preset):
    call = _forwarded(preset)
    slots = list(inspect.signature(Composer.__init__).parameters)[1:]
    assert slots[:4] == ["network", "parametrization", "start", "inner"]
    assert 3 <= len(call.args) <= 4
    assert ast.unparse(call.args[0]) == "network"
    assert [ast.unparse(argument) for argument in call.args[3:]] in ([], ["inner"])
    *named, rest = call.keywords
    assert (rest.arg, ast.unparse(rest.value)) == (None, "kwargs")
    assert all(ast.unparse(keyword.value) == keyword.arg for keyword in named)  # parts that the preset requires


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
