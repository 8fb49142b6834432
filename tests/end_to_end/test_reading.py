"""What is read is what was written: damaged checkpoints, missing parts, and the one before a damaged one."""

import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from program import checkpoint, refused, run, tiny

import composers
from application.shortcuts import folder_of_runs
from composers import checkpoint as checkpoints
from composers.checkpoint import WholeFiles, check_state, newest, read

LOGGER = "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: %s, name: %s}}"


def damage(path):
    """Flip a bit in the largest record of a checkpoint, a tensor, and return the name of the record."""
    with zipfile.ZipFile(path) as archive:
        record = max(
            (info for info in archive.infolist() if "/data/" in info.filename), key=lambda info: info.file_size
        )
    content = bytearray(path.read_bytes())
    name, extra = struct.unpack("<HH", content[record.header_offset + 26 : record.header_offset + 30])
    content[record.header_offset + 30 + name + extra + record.file_size // 2] ^= 1
    path.write_bytes(content)
    return record.filename


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Return a folder in which a tiny composer was trained for an epoch."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("fit", *tiny("ipc"))
    return folder


@pytest.fixture
def runs(first, tmp_path, monkeypatch):
    """Return the last checkpoint of that run, in a copy of its folder that is the current one."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/unnamed/version_0/checkpoints/last.ckpt")


@pytest.mark.parametrize("way", ["read", "load", "plugin"])
def test_a_flipped_bit_in_a_tensor_is_refused(runs, way):
    readers = {"read": read, "load": composers.load, "plugin": WholeFiles().load_checkpoint}
    readers[way](runs)
    record = damage(runs)
    assert torch.load(runs, weights_only=True)  # which does not look
    with pytest.raises(ValueError, match=rf"last\.ckpt is damaged: its record {record} differs .* name another file"):
        readers[way](runs)


def test_a_flipped_bit_in_shipped_weights_is_refused(tmp_path):
    path = Path(shutil.copy(checkpoints.located("photos_ipc"), tmp_path / "weights.ckpt"))
    record = damage(path)
    with pytest.raises(ValueError, match=f"its record {record} differs"):
        composers.load(path)


def test_the_plugin_loads_no_code_whatever_it_is_told(tmp_path):
    torch.save({"state_dict": {}, "path": Path()}, tmp_path / "object.ckpt")
    with pytest.raises(ValueError, match="could run code and is not loaded"):
        WholeFiles().load_checkpoint(tmp_path / "object.ckpt", weights_only=False)


def test_a_file_is_compared_with_its_checksums_once(runs, monkeypatch):
    done, testzip = [], zipfile.ZipFile.testzip

    def counted(archive):
        done.append(archive.filename)
        return testzip(archive)

    monkeypatch.setattr(checkpoints, "_whole", set())
    monkeypatch.setattr(zipfile.ZipFile, "testzip", counted)
    run("validate", *tiny("ipc"), "--ckpt_path", "last")
    assert len(done) == 1


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before(runs, capsys, command):
    shutil.copy(runs, runs.with_name("previous.ckpt"))
    damage(runs)
    assert newest("runs/unnamed") == runs.with_name("previous.ckpt")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {runs} is damaged")
    assert str(runs.with_name("previous.ckpt")) in line
    run(command, *tiny("ipc"), "--ckpt_path", "last", "--trainer.max_epochs", 2)
    used = yaml.safe_load(Path("runs/unnamed/version_1/config.yaml").read_text())["ckpt_path"]
    assert used == str(runs.with_name("previous.ckpt"))


def test_without_a_whole_checkpoint_before_a_damaged_one_is_refused(runs):
    damage(runs)
    assert "last.ckpt is damaged" in refused("validate", *tiny("ipc"), "--ckpt_path", "last")
    shutil.copy(runs, runs.with_name("previous.ckpt"))
    message = refused("validate", *tiny("ipc"), "--ckpt_path", "last")
    assert "last.ckpt is damaged" in message
    assert "previous.ckpt is damaged" in message


def test_a_path_is_never_replaced(runs):
    shutil.copy(runs, runs.with_name("previous.ckpt"))
    damage(runs)
    message = refused("fit", *tiny("ipc"), "--ckpt_path", runs, "--trainer.max_epochs", 2)
    assert "last.ckpt is damaged" in message
    assert "previous" not in message


@pytest.mark.parametrize(
    "key", ["lr_schedulers", "loops", "epoch", "global_step", "pytorch-lightning_version", "optimizer_states"]
)
def test_a_checkpoint_without_a_part_is_not_resumed(runs, key):
    content = checkpoint("runs/unnamed/version_0")
    del content[key]
    torch.save(content, "part.ckpt")
    message = refused("fit", *tiny("ipc"), "--ckpt_path", "part.ckpt", "--trainer.max_epochs", 2)
    assert len(message.splitlines()) == 2  # and CLI_TRACEBACK
    assert "--weights part.ckpt" in message
    if key != "optimizer_states":
        assert f"part.ckpt cannot be resumed, it lacks {key}" in message


def test_an_evaluation_needs_weights_alone(runs):
    content = checkpoint("runs/unnamed/version_0")
    torch.save({key: content[key] for key in ("state_dict", "composer")}, "part.ckpt")
    run("validate", *tiny("ipc"), "--ckpt_path", "part.ckpt")
    torch.save(content | {"loops": {}}, "loops.ckpt")
    message = refused("validate", *tiny("ipc"), "--ckpt_path", "loops.ckpt")
    assert "loops.ckpt cannot be loaded, it lacks loops.validate_loop" in message
    with pytest.raises(ValueError, match=r"lacks loops\.fit_loop"):
        check_state(content | {"loops": {}}, "loops.ckpt", "fit")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state_dict": {"a": 1}}, "a in its state_dict is no tensor"),
        ({"data": {"coord_range": [0.0, 1.0]}}, "without a domain and a signal_shape"),
        ({"data": {"domain": {"class_path": "os.system"}, "signal_shape": [3, 16, 16]}}, "'os.system' is unknown"),
        ({"data": {"coord_range": 3, "signal_shape": [3, 16, 16]}}, "without a domain and a signal_shape"),
    ],
)
def test_checkpoints_with_odd_content_end_in_a_line(runs, change, words):
    torch.save(checkpoint("runs/unnamed/version_0") | change, "odd.ckpt")
    assert words in refused("validate", *tiny("ipc"), "--ckpt_path", "odd.ckpt")


def test_last_is_found_with_several_loggers(runs):
    loggers = f"[{LOGGER % ('logs', 'null')}, {LOGGER % ('runs', 'unnamed')}]"
    found = folder_of_runs([True, Namespace(init_args=Namespace(save_dir="a", name=None)), _logger("b", "c")])
    assert found == Path("b/c")
    message = refused("validate", *tiny("ipc"), "--trainer.logger", "false", "--ckpt_path", "last")
    assert "a logger with save_dir and name in trainer.logger: add one, or pass the path" in message
    printed = run("validate", *tiny("ipc"), "--trainer.logger", loggers, "--ckpt_path", "last")
    assert "psnr" in printed.lower()


def _logger(save_dir, name):
    return Namespace(class_path="x", init_args=Namespace(save_dir=save_dir, name=name))
