"""Loading of checkpoints: damaged files, missing keys, and the fallback to the previous checkpoint."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from program import checkpoint, damage, refused, run, tiny

import composers
from application.shortcuts import folder_of_runs
from composers import checkpoint as checkpoints
from composers.checkpoint import WholeFiles, check_state, newest, read

LOGGER = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: %s, name: %s}}"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Return a folder in which a tiny composer was trained for one epoch."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("fit", *tiny("ipc"))
    return folder


@pytest.fixture
def runs(first, tmp_path, monkeypatch):
    """Work in a copy of the folder of that run, and return its last checkpoint."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/unnamed/version_0/checkpoints/last.ckpt")


@pytest.mark.parametrize("way", ["read", "load", "plugin"])
def test_a_flipped_bit_in_a_tensor_raises_an_error(runs, way):
    readers = {"read": read, "load": composers.load, "plugin": WholeFiles().load_checkpoint}
    readers[way](runs)
    record = damage(runs)
    assert torch.load(runs, weights_only=True)  # which does not verify checksums
    with pytest.raises(ValueError, match=rf"last\.ckpt is damaged: its record {record} differs .* use another file"):
        readers[way](runs)


def test_a_flipped_bit_in_bundled_weights_raises_an_error(tmp_path):
    path = Path(shutil.copy(checkpoints.located("photos_ipc"), tmp_path / "weights.ckpt"))
    record = damage(path)
    with pytest.raises(ValueError, match=f"its record {record} differs"):
        composers.load(path)


def test_the_plugin_never_loads_code(tmp_path):
    torch.save({"state_dict": {}, "path": Path()}, tmp_path / "object.ckpt")
    with pytest.raises(ValueError, match="could run code and is not loaded"):
        WholeFiles().load_checkpoint(tmp_path / "object.ckpt", weights_only=False)


def test_checksums_are_verified_once_per_file(runs, monkeypatch):
    verified, testzip = [], zipfile.ZipFile.testzip

    def record(archive):
        verified.append(archive.filename)
        return testzip(archive)

    monkeypatch.setattr(checkpoints, "_verified", set())
    monkeypatch.setattr(zipfile.ZipFile, "testzip", record)
    run("validate", *tiny("ipc"), "--ckpt_path", "last")
    assert len(verified) == 1


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_damaged_last_checkpoint_falls_back_to_the_previous_one(runs, capsys, command):
    shutil.copy(runs, runs.with_name("previous.ckpt"))
    damage(runs)
    assert newest("runs/unnamed") == runs.with_name("previous.ckpt")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {runs} is damaged")
    assert str(runs.with_name("previous.ckpt")) in line
    run(command, *tiny("ipc"), "--ckpt_path", "last", "--trainer.max_epochs", 2)
    ckpt_path = yaml.safe_load(Path("runs/unnamed/version_1/config.yaml").read_text())["ckpt_path"]
    assert ckpt_path == str(runs.with_name("previous.ckpt"))


def test_a_damaged_checkpoint_without_an_intact_previous_one_raises_an_error(runs):
    damage(runs)
    assert "last.ckpt is damaged" in refused("validate", *tiny("ipc"), "--ckpt_path", "last")
    shutil.copy(runs, runs.with_name("previous.ckpt"))
    message = refused("validate", *tiny("ipc"), "--ckpt_path", "last")
    assert "last.ckpt is damaged" in message
    assert "previous.ckpt is damaged" in message


def test_an_explicit_path_has_no_fallback(runs):
    shutil.copy(runs, runs.with_name("previous.ckpt"))
    damage(runs)
    message = refused("fit", *tiny("ipc"), "--ckpt_path", runs, "--trainer.max_epochs", 2)
    assert "last.ckpt is damaged" in message
    assert "previous" not in message


@pytest.mark.parametrize(
    "key", ["lr_schedulers", "loops", "epoch", "global_step", "pytorch-lightning_version", "optimizer_states"]
)
def test_resuming_from_a_checkpoint_without_a_key_raises_an_error(runs, key):
    content = checkpoint("runs/unnamed/version_0")
    del content[key]
    torch.save(content, "part.ckpt")
    message = refused("fit", *tiny("ipc"), "--ckpt_path", "part.ckpt", "--trainer.max_epochs", 2)
    assert len(message.splitlines()) == 2  # the error and the hint on CLI_TRACEBACK
    assert "--weights part.ckpt" in message
    if key != "optimizer_states":
        assert f"part.ckpt cannot be resumed, it lacks {key}" in message


@pytest.mark.slow
def test_evaluation_requires_only_weights(runs):
    content = checkpoint("runs/unnamed/version_0")
    torch.save({key: content[key] for key in ("state_dict", "composer")}, "part.ckpt")
    run("validate", *tiny("ipc"), "--ckpt_path", "part.ckpt")
    torch.save(content | {"loops": {}}, "loops.ckpt")
    message = refused("validate", *tiny("ipc"), "--ckpt_path", "loops.ckpt")
    assert "loops.ckpt cannot be loaded, it lacks loops.validate_loop" in message
    with pytest.raises(ValueError, match=r"lacks loops\.fit_loop"):
        check_state(content | {"loops": {}}, "loops.ckpt", "fit")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"state_dict": {"a": 1}}, "a in its `state_dict` is not a tensor"),
        ({"data": {"coord_range": [0.0, 1.0]}}, "without a domain and a signal_shape"),
        ({"data": {"domain": {"class_path": "os.system"}, "signal_shape": [3, 16, 16]}}, "'os.system' is unknown"),
        ({"data": {"coord_range": 3, "signal_shape": [3, 16, 16]}}, "without a domain and a signal_shape"),
    ],
)
def test_checkpoints_with_invalid_content_raise_a_one_line_error(runs, change, expected):
    torch.save(checkpoint("runs/unnamed/version_0") | change, "invalid.ckpt")
    assert expected in refused("validate", *tiny("ipc"), "--ckpt_path", "invalid.ckpt")


def test_last_is_resolved_with_several_loggers(runs):
    loggers = f"[{LOGGER % ('logs', 'null')}, {LOGGER % ('runs', 'unnamed')}]"
    folder = folder_of_runs([True, Namespace(init_args=Namespace(save_dir="a", name=None)), _logger("b", "c")])
    assert folder == Path("b/c")
    message = refused("validate", *tiny("ipc"), "--trainer.logger", "false", "--ckpt_path", "last")
    assert "a logger with save_dir and name in trainer.logger: add one, or pass the path" in message
    printed = run("validate", *tiny("ipc"), "--trainer.logger", loggers, "--ckpt_path", "last")
    assert "psnr" in printed.lower()


def _logger(save_dir, name):
    return Namespace(class_path="x", init_args=Namespace(save_dir=save_dir, name=name))
