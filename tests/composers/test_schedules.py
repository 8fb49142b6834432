"""Schedules in proportion to the run: their numbers, what a trainer tells them, and resumed runs."""

import pytest
import torch
from program import checkpoint, run, tiny

from composers.training.schedules import EpochWarmup, WarmupCosine

RATE, STEPS = 1e-2, 6  # of the tiny config: its rate, its steps an epoch
SCHEDULE = "--model.init_args.scheduler"
WARMUP = [SCHEDULE, "composers.training.schedules.EpochWarmup", f"{SCHEDULE}.init_args.warmup_epochs"]


def _optimizer():
    return torch.optim.SGD([torch.zeros(1)], lr=2.0)


def _rates(schedule, steps):
    """Return the rates with which so many steps are made."""
    rates = []
    for _ in range(steps):
        rates += schedule.get_last_lr()
        schedule.optimizer.step()
        schedule.step()
    return rates


def test_the_rate_rises_from_zero_and_stays():
    schedule = EpochWarmup(_optimizer(), warmup_epochs=0.5, steps_per_epoch=8)
    assert _rates(schedule, 7) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_a_part_of_a_step_counts():
    schedule = EpochWarmup(_optimizer(), warmup_epochs=0.5, steps_per_epoch=5)
    assert _rates(schedule, 5) == pytest.approx([0.0, 0.8, 1.6, 2.0, 2.0])


def test_without_the_steps_of_an_epoch_nothing_is_guessed():
    schedule = EpochWarmup(_optimizer())
    with pytest.raises(ValueError, match="give steps_per_epoch"):
        _rates(schedule, 1)


def test_what_was_given_stays_when_a_trainer_tells():
    given = EpochWarmup(_optimizer(), steps_per_epoch=8)
    given.tell(100, 10)
    assert (given.total_steps, given.steps_per_epoch) == (100, 8)
    cosine = WarmupCosine(_optimizer(), total_steps=50)
    cosine.tell(100, 10)
    assert cosine.total_steps == 50


def test_a_run_without_an_end_does_not_fall():
    schedule = WarmupCosine(_optimizer(), warmup_steps=2)
    schedule.tell(float("inf"), 10)
    assert _rates(schedule, 4) == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: EpochWarmup(_optimizer(), warmup_epochs=0), "warmup_epochs is 0; it must be positive"),
        (lambda: EpochWarmup(_optimizer(), warmup_epochs=float("inf")), "warmup_epochs is inf"),
        (lambda: EpochWarmup(_optimizer(), steps_per_epoch=0), "steps_per_epoch is 0; it counts from 1"),
        (lambda: WarmupCosine(_optimizer(), warmup_steps=0), "warmup_steps is 0; it counts from 1"),
        (lambda: WarmupCosine(_optimizer(), total_steps=-1), "total_steps is -1; it counts from 1"),
    ],
    ids=["no epochs", "endless", "no steps", "no warm-up", "negative"],
)
def test_numbers_out_of_range_are_refused(made, words):
    with pytest.raises(ValueError, match=words):
        made()


@pytest.mark.slow
def test_epochs_become_steps_of_the_trainer_and_a_resumed_run_counts_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [*tiny("ipc"), *WARMUP, 4.0, "--trainer.limit_val_batches", 1]
    run("fit", *short, "--trainer.accumulate_grad_batches", 2)
    [first] = checkpoint("runs/unnamed/version_0")["lr_schedulers"]
    assert (first["last_epoch"], first["steps_per_epoch"]) == (3, STEPS / 2)
    assert first["_last_lr"] == pytest.approx([RATE / 4])
    run("fit", *short, "--trainer.max_epochs", 2, "--ckpt_path", "last")
    [second] = checkpoint("runs/unnamed/version_1")["lr_schedulers"]
    assert (second["last_epoch"], second["steps_per_epoch"]) == (3 + STEPS, STEPS)
    assert second["_last_lr"] == pytest.approx([RATE * (3 + STEPS) / (4 * STEPS)])


def test_a_run_of_so_many_steps_knows_its_epochs_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    often = ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", 3]
    ends = ["--trainer.max_epochs", "null", "--trainer.max_steps", 3, "--trainer.limit_val_batches", 1]
    run("fit", *tiny("ipc"), *WARMUP, 1.0, *often, *ends)
    [state] = checkpoint("runs/unnamed/version_0")["lr_schedulers"]
    assert (state["total_steps"], state["steps_per_epoch"]) == (3, STEPS)
    assert state["_last_lr"] == pytest.approx([RATE / 2])
