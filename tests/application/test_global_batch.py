"""A global batch is split over devices and accumulated batches; impossible splits are refused."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from program import NAME, checkpoint, column, refused, run, tiny

from application.global_batch import BatchSplit, apply_global_batch, split

DETERMINISTIC = [
    "--model.init_args.transformer.init_args.residual_dropout=0",
    "--model.init_args.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.5}}",
]


def _trainer(devices=1, accumulated=1, limit=None, callbacks=()):
    return SimpleNamespace(
        num_devices=devices,
        num_nodes=1,
        accumulate_grad_batches=accumulated,
        limit_train_batches=limit,
        fast_dev_run=False,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("largest", [1, 3, 16, 100])
def test_split_takes_as_few_batches_as_fit(devices, largest):
    for size in range(devices, 100, devices):
        batch_size, accumulated = split(size, devices, largest)
        assert batch_size * devices * accumulated == size
        assert batch_size <= largest
        shares = [count for count in range(1, size + 1) if size % (devices * count) == 0]
        assert accumulated == min(count for count in shares if size // (devices * count) <= largest)


def test_split_is_applied_to_trainer_and_data():
    trainer, data = _trainer(devices=2), SimpleNamespace(batch_size=16)
    apply_global_batch(trainer, data, 64)
    assert (
        (data.batch_size, trainer.accumulate_grad_batches) == (data.batch_size, data.accumulated) == BatchSplit(16, 2)
    )


@pytest.mark.parametrize(
    ("trainer", "size", "message"),
    [
        (_trainer(8), 60, "global_batch_size is 60, which 8 devices cannot share equally: use 56 or 64, or another number"),
        (_trainer(8), 3, "global_batch_size is 3, which 8 devices cannot share equally: use 8, or another number of devices"),
        (_trainer(2, 4), 64, r"accumulate_grad_batches is 4, but --global_batch_size 64 determines it \(2 batches of 16 on 2 "),
        (_trainer(2, limit=5), 64, "limit_train_batches is 5, but a step of .* takes 2 batches of 16 .*: use 4 or 6"),
        (_trainer(2, limit=1), 64, r"limit_train_batches is 1, but .*: use 2\."),
        (_trainer(callbacks=[GradientAccumulationScheduler({0: 2})]), 64, "remove it, or the callback GradientAccumulation"),
    ],
    ids=["indivisible", "fewer than devices", "accumulation", "limit", "small limit", "schedule"],
)  # fmt: skip
def test_impossible_split_is_refused(trainer, size, message):
    with pytest.raises(ValueError, match=message):
        apply_global_batch(trainer, SimpleNamespace(batch_size=16), size)


def test_global_batch_trains_as_one_batch_of_its_size(tmp_path, monkeypatch):
    """Of 30 items, the last 6 are left out in both runs; losses are those of complete optimizer steps."""
    monkeypatch.chdir(tmp_path)
    data = ["--data.init_args.crops_per_epoch=30", "--data.init_args.coordinate_noise=shared", *DETERMINISTIC]
    run("fit", *tiny("ipc"), *data, "--data.init_args.batch_size=8", NAME, "whole")
    printed = run("fit", *tiny("ipc"), *data, "--global_batch_size=8", NAME, "split")
    assert "8 = 4 x 1 device(s) x 2 accumulated" in printed
    stored = yaml.safe_load(Path("runs/split/version_0/config.yaml").read_text())
    assert stored["global_batch_size"] == 8
    assert (stored["data"]["init_args"]["batch_size"], stored["trainer"]["accumulate_grad_batches"]) == (4, 1)
    whole, parts = (checkpoint(f"runs/{name}/version_0") for name in ("whole", "split"))
    assert whole["global_step"] == parts["global_step"] == 3
    for key, weight in whole["state_dict"].items():
        assert (parts["state_dict"][key] - weight).abs().max() < 1e-6, key
    for name in ("train/loss", "train/psnr"):
        expected, actual = (column(f"runs/{run_name}/version_0/metrics.csv", name) for run_name in ("whole", "split"))
        assert len(expected) == 3
        assert actual == pytest.approx(expected, rel=1e-5)


def test_global_batch_larger_than_the_data_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused("fit", *tiny("ipc"), "--global_batch_size=60")
    assert "batch_size 4 on 1 device(s) x 15 accumulated exceeds the 24 training items" in message
    assert "at most 24" in message


def test_last_step_of_an_epoch_averages_the_batches_that_it_has(tmp_path, monkeypatch):
    """An epoch of two batches, of which a step would accumulate four, equals one step of a batch of both."""
    monkeypatch.chdir(tmp_path)
    data = ["--data.init_args.crops_per_epoch=8", "--data.init_args.coordinate_noise=shared", *DETERMINISTIC]
    run("fit", *tiny("ipc"), *data, "--data.init_args.batch_size=8", NAME, "whole")
    run("fit", *tiny("ipc"), *data, "--trainer.accumulate_grad_batches=4", NAME, "split")
    whole, parts = (checkpoint(f"runs/{name}/version_0") for name in ("whole", "split"))
    assert whole["global_step"] == parts["global_step"] == 1
    for key, weight in whole["state_dict"].items():
        assert (parts["state_dict"][key] - weight).abs().max() < 1e-6, key
