"""Schedules that depend on the length of the run: learning rates, lengths set by the trainer, and resumed runs."""

import pytest
import torch
from program import checkpoint, run, tiny

from composers.training.schedules import EpochDecay, EpochWarmup, WarmupCosine

LR, STEPS = 1e-2, 6  # learning rate and steps per epoch of the tiny config
SCHEDULE = "--model.init_args.scheduler"
WARMUP = [SCHEDULE, "composers.training.schedules.EpochWarmup", f"{SCHEDULE}.init_args.warmup_epochs"]


def _optimizer():
    return torch.optim.SGD([torch.zeros(1)], lr=2.0)


def _lrs(schedule, steps):
    """Return the learning rates of the first steps."""
    lrs = []
    for _ in range(steps):
        lrs += schedule.get_last_lr()
        schedule.optimizer.step()
        schedule.step()
    return lrs


def test_epoch_warmup_rises_from_zero_and_stays_constant():
    schedule = EpochWarmup(_optimizer(), warmup_epochs=0.5, steps_per_epoch=8)
    assert _lrs(schedule, 7) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_epoch_warmup_over_a_fraction_of_a_step():
    schedule = EpochWarmup(_optimizer(), warmup_epochs=0.5, steps_per_epoch=5)
    assert _lrs(schedule, 5) == pytest.approx([0.0, 0.8, 1.6, 2.0, 2.0])


def test_epoch_warmup_without_steps_per_epoch_raises():
    schedule = EpochWarmup(_optimizer())
    with pytest.raises(ValueError, match="steps_per_epoch of EpochWarmup is None; pass it"):
        _lrs(schedule, 1)


def test_epoch_decay_multiplies_after_every_few_epochs():
    schedule = EpochDecay(_optimizer(), epochs=2, decay=0.5, steps_per_epoch=3)
    assert _lrs(schedule, 13) == [2.0] * 6 + [1.0] * 6 + [0.5]


def test_epoch_decay_takes_the_length_of_an_epoch_from_the_trainer():
    schedule = EpochDecay(_optimizer(), epochs=1, decay=0.1)
    schedule.set_length(100, 2)
    assert _lrs(schedule, 4) == pytest.approx([2.0, 2.0, 0.2, 0.2])
    with pytest.raises(ValueError, match="steps_per_epoch of EpochDecay is None; pass it"):
        _lrs(EpochDecay(_optimizer()), 2)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"decay": 0.0}, {"decay": 1.5}])
def test_epoch_decay_out_of_range_is_refused(options):
    with pytest.raises(ValueError, match="they must be at least 1 and in"):
        EpochDecay(_optimizer(), **options)


def test_explicit_lengths_take_precedence_over_those_of_the_trainer():
    warmup = EpochWarmup(_optimizer(), steps_per_epoch=8)
    warmup.set_length(100, 10)
    assert (warmup.total_steps, warmup.steps_per_epoch) == (100, 8)
    cosine = WarmupCosine(_optimizer(), total_steps=50)
    cosine.set_length(100, 10)
    assert cosine.total_steps == 50


def test_warmup_cosine_of_an_infinite_run_does_not_decay():
    schedule = WarmupCosine(_optimizer(), warmup_steps=2)
    schedule.set_length(float("inf"), 10)
    assert _lrs(schedule, 4) == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("make_schedule", "message"),
    [
        (lambda: EpochWarmup(_optimizer(), warmup_epochs=0), "warmup_epochs is 0; it must be positive"),
        (lambda: EpochWarmup(_optimizer(), warmup_epochs=float("inf")), "warmup_epochs is inf"),
        (lambda: EpochWarmup(_optimizer(), steps_per_epoch=0), "steps_per_epoch is 0; it must be at least 1"),
        (lambda: WarmupCosine(_optimizer(), warmup_steps=0), "warmup_steps is 0; it must be at least 1"),
        (lambda: WarmupCosine(_optimizer(), total_steps=-1), "total_steps is -1; it must be at least 1"),
    ],
    ids=["no epochs", "infinite epochs", "no steps", "no warm-up", "negative steps"],
)
def test_arguments_out_of_range_raise(make_schedule, message):
    with pytest.raises(ValueError, match=message):
        make_schedule()


@pytest.mark.slow
def test_steps_per_epoch_come_from_the_trainer_of_the_current_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = [*tiny("ipc"), *WARMUP, 4.0, "--trainer.limit_val_batches", 1]
    run("fit", *short, "--trainer.accumulate_grad_batches", 2)
    [first] = checkpoint("runs/unnamed/version_0")["lr_schedulers"]
    assert (first["last_epoch"], first["steps_per_epoch"]) == (3, STEPS / 2)
    assert first["_last_lr"] == pytest.approx([LR / 4])
    run("fit", *short, "--trainer.max_epochs", 2, "--ckpt_path", "last")
    [second] = checkpoint("runs/unnamed/version_1")["lr_schedulers"]
    assert (second["last_epoch"], second["steps_per_epoch"]) == (3 + STEPS, STEPS)
    assert second["_last_lr"] == pytest.approx([LR * (3 + STEPS) / (4 * STEPS)])


def test_steps_per_epoch_are_set_with_max_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    often = ["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", 3]
    ends = ["--trainer.max_epochs", "null", "--trainer.max_steps", 3, "--trainer.limit_val_batches", 1]
    run("fit", *tiny("ipc"), *WARMUP, 1.0, *often, *ends)
    [state] = checkpoint("runs/unnamed/version_0")["lr_schedulers"]
    assert (state["total_steps"], state["steps_per_epoch"]) == (3, STEPS)
    assert state["_last_lr"] == pytest.approx([LR / 2])
