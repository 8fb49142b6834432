"""Invalid input raises one error message with the argument, the actual and the expected value, and the fix."""

import contextlib
import errno
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from program import COMPOSERS, NAME, SAVE_DIR, checkpoint, column, refused, run, tiny

import composers

MODEL = "--model.init_args"
INR = f"{MODEL}.network.init_args"
DATA = "--data.init_args"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the checkpoint of a tiny IPC."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        run("fit", *tiny("ipc"))
    return folder / "runs" / "unnamed" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modle: {rank: 4}", ["modle.rank"]),
        ("trainer: {max_epoch: 1}", ["trainer.max_epoch"]),
        ("model: {init_args: {rnk: 4}}", ["model", "composers.TransformerIPC", "'rnk' is not accepted"]),
        ("model: {init_args: {network: {init_args: {hiden_dim: 4}}}}", ["network", "CoordinateMLP", "'hiden_dim'"]),
        ("model: {init_args: {rank: many}}", ["rank", "int", "many"]),
        ("data: {init_args: {size: 8.5}}", ["data", "size", "int", "8.5"]),
        ("trainer: {precision: 15}", ["trainer.precision", "bf16-mixed", "15"]),
        ("data: {init_args: {coordinate_noise: some}}", ["coordinate_noise", "per_instance", "some"]),
        ("model: {init_args: {optimizer: {init_args: {lr: fast}}}}", ["optimizer", "lr", "float", "fast"]),
        ("model: {class_path: composers.TransformerICP}", ["model", "composers", "'TransformerICP'"]),
        ("model: {init_args: {encoder: {class_path: composers.encoders.Patchez}}}", ["encoder", "'Patchez'"]),
        ("data: {class_path: composers.TransformerIPC}", ["data", "composers.TransformerIPC", "CoordinateDataModule"]),
        ("model: {init_args: {optimizer: {class_path: torch.optim.Adm}}}", ["optimizer", "torch.optim", "'Adm'"]),
        ("trainer: {callbacks+: [{class_path: callbacks.results.Tabel}]}", ["trainer.callbacks", "'Tabel'"]),
        ("seed_everything: 0\nmodel: [1,\n", ["The config wrong.yaml is not valid YAML", "line 3"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_config_raises_a_short_error(text, expected):
    Path("wrong.yaml").write_text(text)
    message = refused("fit", *tiny("ipc"), "--config", "wrong.yaml")
    for part in expected:
        assert part in message
    assert "--help" in message or "is not valid YAML" in message
    assert len(message) < 700


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fitt"], ["fitt", "fit", "validate", "test"]),
        (["fit", "--confg", "x.yaml"], ["--confg"]),
        (["fit", *tiny("ipc"), "--trainer.max_epoch", 1], ["--trainer.max_epoch"]),  # abbreviations are not allowed
        (["fit", *tiny("ipc"), f"{MODEL}.rnk", 4], ["composers.TransformerIPC", "'rnk' is not accepted"]),
        (["fit", "--config", "nowhere.yaml"], ["nowhere.yaml", "not exist"]),
        (["fit"], ["required", "data", "model"]),
    ],
    ids=lambda value: " ".join(str(part) for part in value if "/" not in str(part)),
)
def test_an_invalid_command_line_raises_an_error(arguments, expected):
    message = refused(*arguments)
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("composer", "arguments", "expected"),
    [
        ("ipc", [f"{MODEL}.encoder.init_args.patch_size", 5], ["patch_size 5", "16 samples", "remainder to reflect"]),
        ("ipc", [f"{INR}.coord_dim", 3], ["CoordinateMLP", "coord_dim 3", "the data has 2", "leave coord_dim out"]),
        ("ipc", [f"{MODEL}.encoder.init_args.signal_shape", "[3, 24, 24]"], ["(3, 24, 24)", "(3, 16, 16)", "leave"]),
        ("ipc", [f"{INR}.hidden_dim", "[8, 8, 8]"], ["hidden_dim", "[8, 8, 8]", "num_layers 3", "2 of them"]),
        ("ipc", [f"{INR}.modulated_layers", "[3]"], ["modulated_layers", "[3]", "3 layers", "0 to 2"]),
        ("ipc", [f"{MODEL}.num_weight_tokens", 3], ["weight tokens is 3", "8 columns", "divisor"]),
        ("ipc", [f"{MODEL}.transformer.init_args.num_heads", 5], ["num_heads 5", "embed_dim 12", "divisor"]),
        ("transinr", [f"{MODEL}.num_groups", 3], ["num_groups 3", "8 outputs", "divisor"]),
        ("ipc", [f"{MODEL}.refinement.init_args.stages", "[vall]"], ["['vall']", "val, test and predict"]),
        ("ipc", [f"{DATA}.batch_size", 25], ["batch_size 25", "24 training items", "reduce it"]),
        ("ipc", [f"{DATA}.batch_size", 0], ["batch_size is 0", "at least 1"]),
        ("ipc", [f"{DATA}.scales", "[0.5]"], ["scales [0.5]", "1"]),
    ],
    ids=lambda value: (
        f"{value[0].rpartition('.')[2]} {value[1]}" if isinstance(value, list) and len(value) == 2 else ""
    ),
)
def test_inconsistent_sizes_raise_a_short_error(composer, arguments, expected):
    message = refused("fit", *tiny(composer), *arguments)
    for part in expected:
        assert part in message
    assert len(message) < 500


def test_a_missing_base_config_raises_an_error():
    Path("child.yaml").write_text("_base_: [nowhere.yaml]\n")
    message = refused("fit", "--config", "child.yaml")
    assert "_base_ names nowhere.yaml" in message
    assert str(Path("nowhere.yaml").resolve()) in message
    assert "relative to the file that contains _base_" in message


@pytest.mark.parametrize(
    ("text", "expected"), [("- 1\n", "contains a list; it must contain a mapping"), ("a: [1,\n", "is not valid YAML")]
)
def test_an_invalid_base_config_raises_an_error(text, expected):
    Path("base.yaml").write_text(text)
    Path("child.yaml").write_text("_base_: base.yaml\n")
    message = refused("fit", "--config", "child.yaml")
    assert "base.yaml, which is _base_ of child.yaml, " in message
    assert expected in message


def _cut(content):
    return content[: len(content) // 2]


def test_a_missing_checkpoint_raises_an_error():
    message = refused("fit", *tiny("ipc"), "--ckpt_path", "nowhere.ckpt")
    assert "There is no checkpoint nowhere.ckpt" in message
    assert "train one with `cli.py fit`" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_cut, "truncated"),
        (lambda content: b"hello world, this is text", "not a checkpoint"),
        (lambda content: content[:200] + b"\x55" * 3000 + content[3200:], "damaged"),
    ],
    ids=["half", "text", "overwritten"],
)
def test_a_damaged_checkpoint_raises_an_error(trained, damage, expected):
    Path("bad.ckpt").write_bytes(damage(trained.read_bytes()))
    message = refused("test", *tiny("ipc"), "--ckpt_path", "bad.ckpt")
    assert "bad.ckpt is " in message
    assert expected in message
    assert "copy or download it again" in message
    assert "weights_only" not in message  # must not suggest loading the file anyway


class _Harmful:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("created",)


def test_a_checkpoint_with_an_object_is_not_loaded(trained):
    torch.save(torch.load(trained, weights_only=True) | {"extra": _Harmful()}, "harmful.ckpt")
    message = refused("test", *tiny("ipc"), "--ckpt_path", "harmful.ckpt")
    assert "harmful.ckpt holds an object" in message
    assert "mkdir" in message
    assert not Path("created").exists()
    torch.load("harmful.ckpt", weights_only=False)
    assert Path("created").exists()  # unpickling runs the code


@pytest.mark.parametrize("content", [{"weights": torch.zeros(2)}, [1, 2]], ids=["a dictionary", "a list"])
def test_a_file_of_other_software_raises_an_error(content):
    torch.save(content, "other.ckpt")
    assert "other.ckpt is not a checkpoint of this software: it has no `state_dict`" in refused(
        "test", *tiny("ipc"), "--ckpt_path", "other.ckpt"
    )


@pytest.mark.parametrize(
    ("command", "composer", "arguments", "expected"),
    [
        (
            "fit",
            "transinr",
            [],
            ["TransINR", "start.readout.weight_tokens: (8, 12) in the file, (19, 12) in the model"],
        ),
        (
            "validate",
            "ipc",
            [f"{MODEL}.rank", 4],
            ["TransformerIPC", "bases.1: (8, 8) in the file, (4, 8) in the model"],
        ),
        ("validate", "ipc", [f"{MODEL}.base_weight", "true"], ["base_weights.1: missing in the file"]),
        ("validate", "ipc", [f"{MODEL}.factorized", "false"], ["bases.1: not in the model"]),
    ],
    ids=["another composer", "another rank", "more", "less"],
)
def test_a_checkpoint_of_another_model_raises_an_error(trained, command, composer, arguments, expected):
    message = refused(command, *tiny(composer), *arguments, "--ckpt_path", trained)
    for part in (*expected, str(trained), "belongs to another model", "Use the config it was trained with"):
        assert part in message


@pytest.mark.slow
def test_weights_without_training_state_can_be_tested_but_not_resumed(trained):
    composers.save(composers.load(trained), "weights.ckpt")
    message = refused("fit", *tiny("ipc"), "--ckpt_path", "weights.ckpt")
    assert "weights.ckpt holds weights but no state of training" in message
    assert "Mean over 34 instances" in run("test", *tiny("ipc"), "--ckpt_path", "weights.ckpt")


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluation_without_a_checkpoint_raises_an_error(command):
    message = refused(command, *tiny("ipc"))
    assert "--ckpt_path" in message
    assert "last" in message


def test_last_without_runs_raises_an_error():
    message = refused("fit", *tiny("ipc"), "--ckpt_path", "last", NAME, "never")
    assert "There is no */checkpoints/last.ckpt in runs/never" in message
    assert "train first, or pass the path" in message


def test_last_without_a_logger_raises_an_error():
    message = refused("test", *tiny("ipc"), "--ckpt_path", "last", "--trainer.logger", "false")
    assert "pass the path" in message


def test_an_output_folder_that_is_a_file_raises_an_error():
    Path("file").write_text("x")
    message = refused("fit", *tiny("ipc"), SAVE_DIR, "file/below")
    assert "The output folder file/below/unnamed/version_0 cannot be written: it is a file" in message
    assert "--trainer.logger.init_args.save_dir" in message


def test_a_read_only_output_folder_raises_an_error(monkeypatch):
    def fail(**kwargs):  # file permissions do not apply to the superuser
        raise PermissionError(errno.EACCES, "Permission denied", str(kwargs))

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    message = refused("fit", *tiny("ipc"), SAVE_DIR, "locked")
    assert "The output folder locked/unnamed/version_0 cannot be written: Permission denied" in message
    assert "--trainer.logger.init_args.save_dir" in message
    assert not Path("locked").exists()


def test_too_little_disk_space_raises_an_error(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    message = refused("fit", *tiny("ipc"), f"{MODEL}.transformer.init_args.embed_dim", 192)
    free, needed = (float(number) for number in re.search(r"has ([\d.]+) MB free.*about ([\d.]+) MB", message).groups())
    blocks = 2 * 12 * 192**2  # most parameters are weights of the two blocks
    assert free == 1
    assert needed == pytest.approx(3 * 3 * 4 * blocks / 1e6, rel=0.2)  # 3 files; a weight and 2 moments; 4 bytes
    assert "--trainer.logger.init_args.save_dir" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize("composer", COMPOSERS)
def test_a_full_disk_keeps_the_earlier_checkpoint(composer, monkeypatch):
    written = []

    def fill_up(path, content):
        is_complete = len(written) < 2  # best and last of the first epoch
        with path.open("wb") as file:
            file.write(content if is_complete else content[: len(content) // 2])
        written.append(path)
        if not is_complete:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    message = refused("fit", *tiny(composer), "--trainer.max_epochs", 3)
    assert len(written) == 3
    folder = Path("runs/unnamed/version_0")
    assert f"{folder}/checkpoints/best.ckpt cannot be written: No space left on device. Free some space" in message
    assert (
        f"Resume: python cli.py fit --config {folder}/config.yaml --ckpt_path {folder}/checkpoints/last.ckpt" in message
    )
    assert checkpoint(folder)["epoch"] == 0
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert len(column(folder / "metrics.csv", "train/loss")) >= 6
    monkeypatch.undo()


def test_cli_traceback_shows_the_traceback_of_an_error(monkeypatch):
    monkeypatch.setenv("CLI_TRACEBACK", "1")
    with pytest.raises(ValueError, match="batch_size is 0"):
        run("fit", *tiny("ipc"), f"{DATA}.batch_size", 0)


def test_unexpected_errors_keep_their_traceback(monkeypatch):
    def fail(*args):
        raise RuntimeError("unexpected")

    monkeypatch.setattr(composers.TransformerIPC, "encode", fail)
    with pytest.raises(RuntimeError, match="unexpected"):
        run("fit", *tiny("ipc"))
