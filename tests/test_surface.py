"""The command line and the checkpoints are a promise: their names change on purpose only, with a line in ``CHANGELOG.md``.

``PYTHONPATH=. python tests/test_surface.py`` writes the promise anew.
"""

import contextlib
import importlib
import inspect
import json
import pkgutil
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import Callback
from program import TESTS, run, tiny
from torch import nn

import cli
import composers
import datamodules
from composers.metrics import InstanceMetric

SURFACE = TESTS / "surface.json"
PACKAGES = ("callbacks", "composers", "datamodules", "modalities")
COMMANDS = ("fit", "validate", "test", "predict")
CONFIGURABLE = (Callback, InstanceMetric, composers.Composer, datamodules.CoordinateDataModule, nn.Module)


def _classes():
    """Return every class that a config can name, by its path."""
    found = {}
    for package in PACKAGES:
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            for name, kind in vars(importlib.import_module(module.name)).items():
                public = inspect.isclass(kind) and kind.__module__ == module.name and not name.startswith("_")
                if public and issubclass(kind, CONFIGURABLE) and not inspect.isabstract(kind):
                    found[f"{module.name}.{name}"] = kind
    return found


def _arguments(kind):
    """Return the arguments that a config can give to a class, with their defaults."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "x", fail_untyped=False, sub_configs=True)
    stated = {action.dest.removeprefix("x."): action.default for action in parser._actions}
    return {name: repr(default) for name, default in sorted(stated.items()) if name not in ("help", "x")}


def _options(command):
    """Return the options of a command without those of the trainer, which are Lightning's."""
    made = []

    def stop(program, parser, args):
        made.append(program)
        raise InterruptedError

    with mock.patch.object(cli.CLI, "parse_arguments", stop), pytest.raises(SystemExit):
        cli.run([command])
    parser = made[0]._subcommand_parsers[command]
    return sorted({action.dest for action in parser._actions if not action.dest.startswith("trainer")} - {"help"})


def _checkpoint_keys():
    """Return the names at the top of a checkpoint, and of what this software stores in it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run("fit", *tiny("ipc"), "--trainer.max_steps", 1, "--trainer.max_epochs", -1, "--trainer.limit_val_batches", 0)
        content = torch.load("runs/unnamed/version_0/checkpoints/last.ckpt", weights_only=True)
    own = {key: sorted(content[key]) for key in ("data", "composer") if isinstance(content.get(key), dict)}
    return {"top": sorted(content), "state_dict": sorted(content["state_dict"])} | own


def surface():
    """Return the whole promise."""
    return {
        "commands": {command: _options(command) for command in COMMANDS},
        "classes": {path: _arguments(kind) for path, kind in sorted(_classes().items())},
        "checkpoint": _checkpoint_keys(),
    }


@pytest.fixture(scope="module")
def promised():
    """Return what was promised."""
    return json.loads(SURFACE.read_text())


HOW = "If that is meant: PYTHONPATH=. python tests/test_surface.py, and a line in CHANGELOG.md."


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_commands(promised, command):
    assert _options(command) == promised["commands"][command], HOW


def test_arguments_of_classes(promised):
    found = {path: _arguments(kind) for path, kind in _classes().items()}
    assert {path for path in found if found[path] != promised["classes"].get(path)} == set(), HOW
    assert set(promised["classes"]) - set(found) == set(), HOW


def test_keys_of_checkpoints(promised):
    assert _checkpoint_keys() == promised["checkpoint"], HOW


def test_frozen_names(promised):
    assert {"images", "audio", "views", "output", "steps", "scale", "size", "ckpt_path"} <= {
        name.split(".")[-1] for name in promised["commands"]["predict"]
    }
    for tool in ("codes", "export", "released", "activations", "check", "render_views"):
        assert pkgutil.resolve_name(f"tools.{tool}")


if __name__ == "__main__":
    SURFACE.write_text(json.dumps(surface(), indent=1, sort_keys=True) + "\n")
    print(Path(SURFACE))
