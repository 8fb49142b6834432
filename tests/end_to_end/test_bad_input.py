"""Mistakes of a user end with one message that names what is wrong, both values and the way out."""

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
INR = f"{MODEL}.inr.init_args"
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
    ("text", "told"),
    [
        ("modle: {rank: 4}", ["modle.rank"]),
        ("trainer: {max_epoch: 1}", ["trainer.max_epoch"]),
        ("model: {init_args: {rnk: 4}}", ["model", "composers.TransformerIPC", "'rnk' is not accepted"]),
        ("model: {init_args: {inr: {init_args: {hiden_dim: 4}}}}", ["inr", "CoordinateMLP", "'hiden_dim'"]),
        ("model: {init_args: {rank: many}}", ["rank", "int", "many"]),
        ("data: {init_args: {size: 8.5}}", ["data", "size", "int", "8.5"]),
        ("trainer: {precision: 15}", ["trainer.precision", "bf16-mixed", "15"]),
        ("data: {init_args: {coordinate_noise: some}}", ["coordinate_noise", "per_instance", "some"]),
        ("model: {init_args: {optimizer: {init_args: {lr: fast}}}}", ["optimizer", "lr", "float", "fast"]),
        ("model: {class_path: composers.TransformerICP}", ["model", "composers", "'TransformerICP'"]),
        ("model: {init_args: {tokenizer: {class_path: composers.encoders.Patchez}}}", ["tokenizer", "'Patchez'"]),
        ("data: {class_path: composers.TransformerIPC}", ["data", "composers.TransformerIPC", "CoordinateDataModule"]),
        ("model: {init_args: {optimizer: {class_path: torch.optim.Adm}}}", ["optimizer", "torch.optim", "'Adm'"]),
        ("trainer: {callbacks+: [{class_path: callbacks.results.Tabel}]}", ["trainer.callbacks", "'Tabel'"]),
        ("seed_everything: 0\nmodel: [1,\n", ["parsing config", "line 3"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_config(text, told):
    Path("wrong.yaml").write_text(text)
    message = refused("fit", *tiny("ipc"), "--config", "wrong.yaml")
    for part in told:
        assert part in message
    assert "--help" in message
    assert len(message) < 700


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fitt"], ["fitt", "fit", "validate", "test"]),
        (["fit", "--confg", "x.yaml"], ["--confg"]),
        (["fit", *tiny("ipc"), "--trainer.max_epoch", 1], ["--trainer.max_epoch"]),  # no abbreviation either
        (["fit", *tiny("ipc"), f"{MODEL}.rnk", 4], ["composers.TransformerIPC", "'rnk' is not accepted"]),
        (["fit", "--config", "nowhere.yaml"], ["nowhere.yaml", "not exist"]),
        (["fit"], ["required", "data", "model"]),
    ],
    ids=lambda value: " ".join(str(part) for part in value if "/" not in str(part)),
)
def test_a_wrong_command(arguments, told):
    message = refused(*arguments)
    for part in told:
        assert part in message


@pytest.mark.parametrize(
    ("composer", "arguments", "told"),
    [
        ("ipc", [f"{MODEL}.tokenizer.init_args.patch_size", 5], ["patch_size 5", "16 samples", "remainder: reflect"]),
        ("ipc", [f"{INR}.coord_dim", 3], ["CoordinateMLP", "coord_dim 3", "for 2", "leave coord_dim out"]),
        ("ipc", [f"{MODEL}.tokenizer.init_args.signal_shape", "[3, 24, 24]"], ["(3, 24, 24)", "(3, 16, 16)", "leave"]),
        ("ipc", [f"{INR}.hidden_dim", "[8, 8, 8]"], ["hidden_dim", "[8, 8, 8]", "num_layers 3", "2 of them"]),
        ("ipc", [f"{INR}.modulated_layers", "[3]"], ["modulated_layers", "[3]", "3 layers", "0 to 2"]),
        ("ipc", [f"{MODEL}.num_weight_tokens", 3], ["3 weight tokens", "8 columns", "divisor"]),
        ("ipc", [f"{MODEL}.transformer.init_args.num_heads", 5], ["num_heads 5", "embed_dim 12", "divisor"]),
        ("transinr", [f"{MODEL}.num_groups", 3], ["num_groups 3", "8 outputs", "divisor"]),
        ("ipc", [f"{MODEL}.refinement.init_args.stages", "[vall]"], ["['vall']", "val, test and predict"]),
        ("ipc", [f"{DATA}.batch_size", 25], ["batch_size 25", "24 training items", "lower it"]),
        ("ipc", [f"{DATA}.batch_size", 0], ["batch_size is 0", "at least 1"]),
        ("ipc", [f"{DATA}.scales", "[0.5]"], ["scales [0.5]", "1"]),
    ],
    ids=lambda value: (
        f"{value[0].rpartition('.')[2]} {value[1]}" if isinstance(value, list) and len(value) == 2 else ""
    ),
)
def test_sizes_that_do_not_fit(composer, arguments, told):
    message = refused("fit", *tiny(composer), *arguments)
    for part in told:
        assert part in message
    assert len(message) < 500


def test_a_base_that_is_missing():
    Path("child.yaml").write_text("_base_: [nowhere.yaml]\n")
    message = refused("fit", "--config", "child.yaml")
    assert "_base_ names nowhere.yaml" in message
    assert str(Path("nowhere.yaml").resolve()) in message
    assert "relative to the file that names them" in message


@pytest.mark.parametrize(("text", "told"), [("- 1\n", "holds no mapping but list"), ("a: [1,\n", "YAML")])
def test_a_base_that_is_no_config(text, told):
    Path("base.yaml").write_text(text)
    Path("child.yaml").write_text("_base_: base.yaml\n")
    message = refused("fit", "--config", "child.yaml")
    assert str(Path("base.yaml").resolve()) in message
    assert told in message


def _cut(content):
    return content[: len(content) // 2]


def test_a_checkpoint_that_is_missing():
    message = refused("fit", *tiny("ipc"), "--ckpt_path", "nowhere.ckpt")
    assert "There is no checkpoint nowhere.ckpt" in message
    assert "train one with cli.py fit" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_cut, "cut off"),
        (lambda content: b"hello world, this is text", "no checkpoint"),
        (lambda content: content[:200] + b"\x55" * 3000 + content[3200:], "damaged"),
    ],
    ids=["half", "text", "overwritten"],
)
def test_a_checkpoint_that_is_damaged(trained, damage, told):
    Path("bad.ckpt").write_bytes(damage(trained.read_bytes()))
    message = refused("test", *tiny("ipc"), "--ckpt_path", "bad.ckpt")
    assert "bad.ckpt is " in message
    assert told in message
    assert "from its source again" in message
    assert "weights_only" not in message  # no advice to load it all the same


class _Harmful:
    """What a checkpoint must not make."""

    def __reduce__(self):
        return os.mkdir, ("made",)


def test_a_checkpoint_that_holds_an_object(trained):
    torch.save(torch.load(trained, weights_only=True) | {"extra": _Harmful()}, "harmful.ckpt")
    message = refused("test", *tiny("ipc"), "--ckpt_path", "harmful.ckpt")
    assert "harmful.ckpt holds an object" in message
    assert "mkdir" in message
    assert not Path("made").exists()
    torch.load("harmful.ckpt", weights_only=False)
    assert Path("made").exists()  # it would have been harmful


@pytest.mark.parametrize("content", [{"weights": torch.zeros(2)}, [1, 2]], ids=["a dictionary", "a list"])
def test_a_file_of_other_software(content):
    torch.save(content, "other.ckpt")
    assert "other.ckpt is no checkpoint of this software: it has no state_dict" in refused(
        "test", *tiny("ipc"), "--ckpt_path", "other.ckpt"
    )


@pytest.mark.parametrize(
    ("command", "composer", "arguments", "told"),
    [
        ("fit", "transinr", [], ["TransINR", "hypernet.weight_tokens: (8, 12) in the file, (19, 12) in the model"]),
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
def test_a_checkpoint_of_another_model(trained, command, composer, arguments, told):
    message = refused(command, *tiny(composer), *arguments, "--ckpt_path", trained)
    for part in (*told, str(trained), "belongs to another model", "Use the config it was trained with"):
        assert part in message


def test_weights_alone_cannot_be_resumed_but_tested(trained):
    composers.save(composers.load(trained), "weights.ckpt")
    message = refused("fit", *tiny("ipc"), "--ckpt_path", "weights.ckpt")
    assert "weights.ckpt holds weights but no state of training" in message
    assert "Mean over 34 instances" in run("test", *tiny("ipc"), "--ckpt_path", "weights.ckpt")


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_evaluation_without_a_checkpoint(command):
    message = refused(command, *tiny("ipc"))
    assert "--ckpt_path" in message
    assert "last" in message


def test_last_without_runs():
    message = refused("fit", *tiny("ipc"), "--ckpt_path", "last", NAME, "never")
    assert "There is no */checkpoints/last.ckpt in runs/never" in message
    assert "train first, or give the path" in message


def test_last_without_a_logger():
    message = refused("test", *tiny("ipc"), "--ckpt_path", "last", "--trainer.logger", "false")
    assert "pass the path" in message


def test_an_output_folder_that_is_a_file():
    Path("file").write_text("x")
    message = refused("fit", *tiny("ipc"), SAVE_DIR, "file/below")
    assert "The output folder file/below/unnamed/version_0 cannot be written: it is a file" in message
    assert "--trainer.logger.init_args.save_dir" in message


def test_an_output_folder_that_is_read_only(monkeypatch):
    def refuse(**where):  # the superuser may write everywhere
        raise PermissionError(errno.EACCES, "Permission denied", str(where))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    message = refused("fit", *tiny("ipc"), SAVE_DIR, "locked")
    assert "The output folder locked/unnamed/version_0 cannot be written: Permission denied" in message
    assert "--trainer.logger.init_args.save_dir" in message
    assert not Path("locked").exists()


def test_a_disk_that_is_too_small(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    message = refused("fit", *tiny("ipc"), f"{MODEL}.transformer.init_args.embed_dim", 192)
    free, needed = (float(number) for number in re.search(r"has ([\d.]+) MB free.*about ([\d.]+) MB", message).groups())
    blocks = 2 * 12 * 192**2  # the weights of two blocks are most of the parameters
    assert free == 1
    assert needed == pytest.approx(3 * 3 * 4 * blocks / 1e6, rel=0.2)  # 3 files; a weight and 2 moments; 4 bytes
    assert "--trainer.logger.init_args.save_dir" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize("composer", COMPOSERS)
def test_a_disk_that_fills_up_leaves_the_earlier_checkpoint(composer, monkeypatch):
    written = []

    def fill_up(path, content):
        whole = len(written) < 2  # best and last of the first epoch
        with path.open("wb") as file:
            file.write(content if whole else content[: len(content) // 2])
        written.append(path)
        if not whole:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    message = refused("fit", *tiny(composer), "--trainer.max_epochs", 3)
    assert len(written) == 3
    assert "The disk is full" in message
    assert "No space left on device" in message
    assert "Earlier checkpoints are intact" in message
    folder = Path("runs/unnamed/version_0")
    assert checkpoint(folder)["epoch"] == 0
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert len(column(folder / "metrics.csv", "train/loss")) >= 6
    monkeypatch.undo()


def test_the_traceback_of_a_mistake_can_be_seen(monkeypatch):
    monkeypatch.setenv("CLI_TRACEBACK", "1")
    with pytest.raises(ValueError, match="batch_size is 0"):
        run("fit", *tiny("ipc"), f"{DATA}.batch_size", 0)


def test_a_fault_of_the_software_keeps_its_traceback(monkeypatch):
    def fail(*args):
        raise RuntimeError("a fault")

    monkeypatch.setattr(composers.TransformerIPC, "encode", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        run("fit", *tiny("ipc"))
