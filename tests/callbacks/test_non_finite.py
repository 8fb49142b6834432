"""A loss or a gradient that is not finite stops training, or its update is skipped."""

from pathlib import Path

import pytest
import torch
from program import NAME, checkpoint, column, refused, run, run_two, tiny

import composers
from datamodules import SamplePhotos

POISONED = "--data.class_path=test_non_finite.PoisonedPhotos"


class PoisonedPhotos(SamplePhotos):
    """`SamplePhotos` with NaN in the pixels of the first instance of batch 2."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        loop = self.trainer.fit_loop.epoch_loop
        if self.trainer.training and loop.batch_idx + 1 == 2 and self.trainer.global_rank == 0:
            batch.query.values[0] = torch.nan
        return batch


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_stop_ends_training_before_the_update():
    message = refused("fit", *tiny("ipc"), POISONED, NAME, "stopped")
    assert "is not finite at step 2, epoch 0" in message
    assert message.startswith("error: The loss of ")
    assert "--non_finite.action skip" in message
    for path in Path("runs").rglob("*.ckpt"):
        assert all(weight.isfinite().all() for weight in torch.load(path)["state_dict"].values())


def test_skip_skips_the_update():
    printed = run("fit", *tiny("ipc"), POISONED, NAME, "skipped", "--non_finite.action", "skip")
    assert "is not finite at step 2, epoch 0: the update is skipped (1 so far)." in printed
    saved = checkpoint("runs/skipped/version_0")
    assert all(weight.isfinite().all() for weight in saved["state_dict"].values())
    steps = {int(state["step"]) for state in saved["optimizer_states"][0]["state"].values()}
    assert steps == {saved["global_step"] - 1}
    assert column("runs/skipped/version_0/metrics.csv", "train/skipped_steps")[-1] == 1


def test_max_skips_ends_training():
    message = refused("fit", *tiny("ipc"), POISONED, "--non_finite.action=skip", "--non_finite.max_skips=1")
    assert "1 step(s) in succession" in message


def test_gradient_that_is_not_finite_ends_training(monkeypatch):
    backward = composers.Composer.on_after_backward

    def poisoned(self):
        backward(self)
        next(part for part in self.parameters() if part.grad is not None).grad.fill_(torch.inf)

    monkeypatch.setattr(composers.Composer, "on_after_backward", poisoned)
    assert "A gradient (with finite losses) is not finite at step 0" in refused("fit", *tiny("ipc"))


@pytest.mark.slow
def test_two_processes_skip_the_same_update(tmp_path):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=4", NAME, "two"]
    run_two([["fit", *tiny("ipc"), POISONED, *two, "--non_finite.action=skip"]], tmp_path)
    saved = checkpoint("runs/two/version_0")
    assert {int(state["step"]) for state in saved["optimizer_states"][0]["state"].values()} == {2}
    assert saved["global_step"] == 3
