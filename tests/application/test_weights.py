"""``cli.py fit --weights``: a new run initialised from weights, with a new optimizer, schedule and counters."""

import contextlib
from pathlib import Path

import pytest
import torch
import yaml
from program import asked, assert_same, checkpoint, column, refused, run, tiny

import composers
from composers.checkpoint import read

STEPS = 6
ZERO_LR = ["--model.init_args.optimizer.init_args.lr", 0.0]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Train a tiny composer for an epoch and return the path of its last checkpoint."""
    folder = tmp_path_factory.mktemp("first")
    with contextlib.chdir(folder):
        run("fit", *tiny("ipc"))
    return folder / "runs" / "unnamed" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_weights_are_loaded_and_the_training_state_is_new(first):
    run("fit", *tiny("ipc"), "--weights", first, *ZERO_LR)
    folder = Path("runs/unnamed/version_0")
    before = column(first.parents[1] / "metrics.csv", "val/psnr")
    assert column(folder / "metrics.csv", "val/psnr") == before
    content = checkpoint(folder)
    assert_same(dict(content["state_dict"]), read(first)["state_dict"])
    assert content["global_step"] == STEPS
    assert {float(state["step"]) for state in content["optimizer_states"][0]["state"].values()} == {STEPS}
    assert column(folder / "metrics.csv", "step")[0] == 0
    assert yaml.safe_load((folder / "config.yaml").read_text())["weights"] == str(first)
    assert yaml.safe_load((folder / "config.yaml").read_text())["ckpt_path"] is None


@pytest.mark.slow
def test_training_starts_from_the_weights(first):
    run("fit", *tiny("ipc"), "--weights", first)
    run("fit", *tiny("ipc"))
    initialised, random = (column(f"runs/unnamed/version_{version}/metrics.csv", "train/loss") for version in (0, 1))
    assert initialised[0] < random[0]


def test_model_is_read_from_the_checkpoint(first):
    saved = yaml.safe_load((first.parents[1] / "config.yaml").read_text())
    content = {key: saved[key] for key in ("data", "trainer")}
    Path("data.yaml").write_text(yaml.safe_dump(content))
    run("fit", "--config", "data.yaml", "--weights", first, *ZERO_LR)
    used = yaml.safe_load(Path("runs/unnamed/version_0/config.yaml").read_text())
    assert used["model"]["class_path"] == saved["model"]["class_path"]
    assert_same(dict(checkpoint("runs/unnamed/version_0")["state_dict"]), read(first)["state_dict"])


@pytest.mark.slow
def test_bundled_weights_are_loaded_by_name():
    arguments = [
        "--data",
        "datamodules.SamplePhotos",
        "--data.init_args.crops_per_epoch",
        4,
        "--data.init_args.batch_size",
        4,
    ]
    run("fit", *arguments, "--weights", "photos_ipc", "--trainer.max_epochs", 1, "--trainer.limit_val_batches", 1)
    used = yaml.safe_load(Path("runs/unnamed/version_0/config.yaml").read_text())
    assert used["weights"] == "photos_ipc"
    assert composers.load("runs/unnamed/version_0/checkpoints/last.ckpt").config == used["model"]


@pytest.mark.slow
def test_other_models_and_data_raise(first):
    assert "belongs to another model" in refused("fit", *tiny("transinr"), "--weights", first)
    content = read(first)
    torch.save(content | {"data": {"coord_range": [-3.0, 3.0], "signal_shape": [3, 16, 16]}}, "far.ckpt")
    assert "was trained with coordinates from -3 to 3" in refused("fit", *tiny("ipc"), "--weights", "far.ckpt")
    assert "There is no checkpoint nowhere" in refused("fit", *tiny("ipc"), "--weights", "nowhere")


def test_weights_and_ckpt_path_are_mutually_exclusive(first):
    message = refused("fit", *tiny("ipc"), "--weights", first, "--ckpt_path", first)
    assert "they are mutually exclusive: --weights initialises a new run, --ckpt_path resumes" in message


@pytest.mark.slow
def test_command_line_overrides_the_weights_of_a_saved_config(first):
    run("fit", *tiny("ipc"), "--weights", first)
    saved = ["--config", "runs/unnamed/version_0/config.yaml", "--trainer.max_epochs", 2]
    run("fit", *saved, "--ckpt_path", "last")
    assert checkpoint("runs/unnamed/version_1")["global_step"] == 2 * STEPS
    used = yaml.safe_load(Path("runs/unnamed/version_1/config.yaml").read_text())
    assert used["weights"] is None
    run("fit", "--config", "runs/unnamed/version_1/config.yaml", "--trainer.max_epochs", 1, "--weights", first)
    assert checkpoint("runs/unnamed/version_2")["global_step"] == STEPS


@pytest.mark.slow
def test_other_commands_ignore_weights_of_a_config_and_reject_the_option(first):
    run("fit", *tiny("ipc"), "--weights", first)
    saved = ["--config", "runs/unnamed/version_0/config.yaml", "--ckpt_path", "last"]
    for command in ("test", "validate"):
        run(command, *saved)
        assert f"pass the weights of {command} with --ckpt_path" in refused(command, *saved, "--weights", first)
    used = yaml.safe_load(Path("runs/unnamed/version_1/config.yaml").read_text())
    assert used.get("weights") is None


def test_only_the_help_of_fit_lists_weights():
    text = " ".join(asked("fit", "--help").split())
    assert "--weights WEIGHTS" in text
    assert "Initialise a new run from these weights" in text
    assert "--weights WEIGHTS" not in asked("validate", "--help")
