"""Trainer options work with the default config, or raise before anything runs."""

import logging
from pathlib import Path

import pytest
import torch
from lightning import Callback
from program import checkpoint, column, refused, run, tiny

RECORD = ["--trainer.callbacks+", "{class_path: test_trainer_options.Recorder}"]


class Recorder(Callback):
    """Records the batches and data types of a run."""

    records: dict[str, list] = {}  # noqa: RUF012

    def on_fit_start(self, trainer, pl_module):
        Recorder.records = {"train": [], "val": [], "dtype": []}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Recorder.records["train"].append(batch)
        Recorder.records["dtype"].append(pl_module.dtype)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            Recorder.records["val"].append(batch)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _log(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.slow
def test_progress_bar_can_be_disabled():
    printed = run("fit", *tiny("ipc"), "--trainer.enable_progress_bar", "false")
    assert "Validation" not in printed
    assert "Checkpoint: runs/unnamed/version_0/checkpoints/last.ckpt" in printed


def test_checkpoints_can_be_disabled():
    printed = run("fit", *tiny("ipc"), "--trainer.enable_checkpointing", "false")
    assert not list(Path().rglob("*.ckpt"))
    assert "No checkpoint was saved." in printed
    assert "Next:" not in printed


def test_barebones_writes_nothing():
    printed = run("fit", *tiny("ipc"), "--trainer.barebones", "true")
    assert list(Path().iterdir()) == []
    assert "No checkpoint was saved." in printed
    assert "Next:" not in printed


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_true_half_precision_raises(precision):
    message = refused("fit", *tiny("ipc"), "--trainer.precision", precision)
    assert message.startswith(f"error: --trainer.precision is {precision}, ")
    assert "bf16-mixed" in message
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ipc", "learned_init", "objects", "speech"])
def test_double_precision_applies_to_parameters_and_data(config):
    run("fit", *tiny(config), "--trainer.precision", "64-true", *RECORD)
    assert set(Recorder.records["dtype"]) == {torch.float64}
    query = Recorder.records["train"][0].query
    assert query.coords.dtype == query.values.dtype == torch.float64
    state = checkpoint("runs/unnamed/version_0")["state_dict"]
    assert {weight.dtype for weight in state.values() if weight.is_floating_point()} == {torch.float64}
    printed = run(
        *("test", *tiny(config), "--trainer.precision", "64-true"),
        *("--ckpt_path", "runs/unnamed/version_0/checkpoints/last.ckpt"),
    )
    assert "Every instance: runs/unnamed/version_1/test_instances.csv" in printed


@pytest.mark.slow
def test_double_precision_is_not_rounded_to_float32():
    losses = {}
    for precision in ("32-true", "64-true"):
        name = ["--trainer.logger.init_args.name", precision]
        run("fit", *tiny("ipc"), "--trainer.precision", precision, *name)
        losses[precision] = column(f"runs/{precision}/version_0/metrics.csv", "train/loss")
    assert losses["32-true"][0] == pytest.approx(losses["64-true"][0], rel=1e-5)
    assert losses["64-true"][0] != float(torch.tensor(losses["64-true"][0]).float())


@pytest.mark.parametrize("amount", ["2", "0.34"])
def test_overfit_batches_repeats_the_first_batches(amount):
    run("fit", *tiny("ipc"), "--trainer.overfit_batches", amount, "--trainer.max_epochs", 2, *RECORD)
    train, val = Recorder.records["train"], Recorder.records["val"]
    assert len(train) == 4
    for stage, count in (("train", 2), ("val", len(val) // 2)):
        batches = Recorder.records[stage]
        for first, second in zip(batches[:count], batches[count:], strict=True):
            assert first.names == second.names, stage
            assert torch.equal(first.observation.signal, second.observation.signal), stage
    assert len(val) == {"2": 4, "0.34": 2}[amount]
    assert not set(train[0].names) & set(train[1].names)


@pytest.mark.slow
def test_time_limit_and_profile_are_logged(caplog):
    with caplog.at_level(logging.INFO):
        limit = ["--trainer.max_time", "00:00:00:01", "--trainer.max_epochs", -1]
        run("fit", *tiny("ipc"), *limit, "--trainer.profiler", "simple")
    log = "\n".join(_log(caplog))
    assert "Time limit reached" in log
    assert "Profiler Report" in log
    for noise in ("GPU available", "Tip", "stopped: `max", "weights_only"):
        assert noise not in log
