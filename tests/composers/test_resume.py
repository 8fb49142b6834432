"""Runs resumed with another configuration: changes that are applied, changes that raise, and unchanged states."""

import contextlib
import copy
from pathlib import Path

import pytest
import torch
from program import assert_same, checkpoint, keep_every, refused, run, tiny
from torch.optim import lr_scheduler

from composers.training import resume
from composers.training.schedules import EpochWarmup, WarmupCosine

STEPS, LR = 6, 1e-2  # steps per epoch and learning rate of the tiny config
OPTIMIZER = "--model.init_args.optimizer"
SCHEDULE = "--model.init_args.scheduler"
COSINE = [SCHEDULE, "composers.training.schedules.WarmupCosine", f"{SCHEDULE}.init_args.warmup_steps"]
STEP = [SCHEDULE, "torch.optim.lr_scheduler.StepLR", f"{SCHEDULE}.init_args.step_size"]
GAMMA = f"{SCHEDULE}.init_args.gamma"
MESSAGE = "Resumed with changed settings: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with runs of one epoch, ``plain``, ``cosine`` and ``step``, with a checkpoint of step 4 each."""
    folder = tmp_path_factory.mktemp("first")
    with contextlib.chdir(folder):
        for name, arguments in {"plain": [], "cosine": [*COSINE, 4], "step": [*STEP, 4, GAMMA, 0.5]}.items():
            run("fit", *tiny("ipc"), *arguments, *keep_every(2), "--trainer.logger.init_args.name", name)
    return folder / "runs"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _last(folder, name):
    return folder / name / "version_0" / "checkpoints" / "last.ckpt"


def _resume(path, *arguments):
    """Resume for another epoch with a checkpoint per step; return the printed text."""
    return run("fit", *tiny("ipc"), *keep_every(1), "--trainer.max_epochs", 2, "--ckpt_path", path, *arguments)


def _state(step):
    """Return the states of the parameter group and of the schedule, if any, after a step of the resumed run."""
    content = checkpoint("runs/unnamed/version_0", f"step-{step}")
    [group] = content["optimizer_states"][0]["param_groups"]
    return group, next(iter(content["lr_schedulers"]), None)


def test_changed_hyperparameters_are_applied_and_moments_are_kept(folder):
    printed = _resume(
        _last(folder, "plain"),
        *(f"{OPTIMIZER}.init_args.lr", 0.0, f"{OPTIMIZER}.init_args.betas", "[0.9999999, 0.99]"),
    )
    [line] = [line for line in printed.splitlines() if MESSAGE in line]
    assert line == f"{MESSAGE}lr 0.01 -> 0, betas [0.9, 0.999] -> [0.9999999, 0.99]."
    group, _ = _state(STEPS + 1)
    assert group["lr"] == 0.0
    assert tuple(group["betas"]) == (0.9999999, 0.99)
    before, after = checkpoint(folder / "plain/version_0"), checkpoint("runs/unnamed/version_0")
    assert_same(after["state_dict"], before["state_dict"])  # the learning rate is 0
    moments = [
        {name: state["exp_avg"] for name, state in content["optimizer_states"][0]["state"].items()}
        for content in (before, after)
    ]
    torch.testing.assert_close(*moments, rtol=0, atol=1e-6)  # beta is almost 1
    assert max(moment.abs().max() for moment in moments[0].values()) > 1e-4


@pytest.mark.parametrize("name", ["plain", "cosine", "step"])
def test_unchanged_configuration_keeps_the_states(folder, name, monkeypatch):
    calls, apply = [], resume.apply_configuration

    def checked_apply(trainer, content, now):
        before = copy.deepcopy({key: content[key] for key in ("optimizer_states", "lr_schedulers")})
        apply(trainer, content, now)
        assert_same({key: content[key] for key in before}, before)
        calls.append(now)

    monkeypatch.setattr(resume, "apply_configuration", checked_apply)
    arguments = {"plain": [], "cosine": [*COSINE, 4], "step": [*STEP, 4, GAMMA, 0.5]}[name]
    assert MESSAGE not in _resume(_last(folder, name), *arguments)
    assert len(calls) == 1


@pytest.mark.slow
def test_learning_rates_of_a_torch_schedule_are_scaled(folder):
    printed = _resume(_last(folder, "step"), *STEP, 4, GAMMA, 0.5, f"{OPTIMIZER}.init_args.lr", LR / 10)
    assert f"{MESSAGE}lr 0.01 -> 0.001." in printed.splitlines()
    for step, factor in ((STEPS + 1, 0.5), (STEPS + 2, 0.25)):
        group, schedule = _state(step)
        assert group["lr"] == pytest.approx(LR / 10 * factor)
        assert group["initial_lr"] == pytest.approx(LR / 10)
        assert schedule["base_lrs"] == pytest.approx([LR / 10])
        assert schedule["_last_lr"] == pytest.approx([LR / 10 * factor])


@pytest.mark.slow
def test_changed_arguments_of_a_run_schedule_are_applied(folder):
    printed = _resume(_last(folder, "cosine"), *COSINE, 10, f"{OPTIMIZER}.init_args.lr", 2 * LR)
    [line] = [line for line in printed.splitlines() if MESSAGE in line]
    assert "warmup_steps 4 -> 10" in line
    assert "lr 0.01 -> 0.02" in line
    group, schedule = _state(STEPS + 1)
    assert schedule["warmup_steps"] == 10
    assert schedule["last_epoch"] == STEPS + 1
    assert schedule["base_lrs"] == [2 * LR]
    assert group["lr"] == pytest.approx(2 * LR * (STEPS + 2) / 10)


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        ("plain", [OPTIMIZER, "torch.optim.SGD", f"{OPTIMIZER}.init_args.lr", 0.1], ("torch.optim.sgd.SGD", "Adam")),
        (
            "plain",
            [*COSINE, 4],
            ("schedule of this configuration is composers.training.schedules.WarmupCosine", "is none"),
        ),
        ("cosine", [*STEP, 4], ("torch.optim.lr_scheduler.StepLR", "composers.training.schedules.WarmupCosine")),
        ("cosine", [], ("schedule of this configuration is none", "WarmupCosine")),
        (
            "step",
            [*STEP, 3, GAMMA, 0.1],
            ("step_size 4 in the checkpoint, 3 in the", "gamma 0.5 in the checkpoint, 0.1"),
        ),
    ],
    ids=["optimizer", "new schedule", "other schedule", "no schedule", "arguments"],
)
def test_changes_that_cannot_be_applied_raise_before_training(folder, name, arguments, parts):
    path = _last(folder, name)
    message = refused("fit", *tiny("ipc"), *arguments, "--trainer.max_epochs", 2, "--ckpt_path", path)
    for part in (*parts, f"start a new run from its weights with `--weights {path}`"):
        assert part in message
    assert not list(Path("runs").glob("*/*/checkpoints/*"))


BATCHES = [
    (["--data.init_args.batch_size", 2], "batch_size 4 in the checkpoint, 2 here", "--data.init_args.batch_size 4"),
    (["--trainer.accumulate_grad_batches", 2], "accumulate_grad_batches 1 in", "--trainer.accumulate_grad_batches 1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "difference", "fix"), BATCHES, ids=["batch_size", "accumulate_grad_batches"])
def test_changed_batches_within_an_epoch_raise(folder, arguments, difference, fix):
    path = _last(folder, "plain").with_name("step-4.ckpt")
    message = refused("fit", *tiny("ipc"), *arguments, "--ckpt_path", path)
    assert "step-4.ckpt was saved within an epoch" in message
    assert difference in message
    assert fix in message
    _resume(_last(folder, "plain"), *arguments)  # saved at the end of an epoch


def test_changed_number_of_devices_within_an_epoch_raises(folder, monkeypatch):
    path = _last(folder, "plain").with_name("step-4.ckpt")
    content = torch.load(path, weights_only=True)
    assert content[resume.KEY]["batches"] == {"batch_size": 4, "devices": 1, "accumulate_grad_batches": 1}
    content[resume.KEY]["batches"]["devices"] = 2
    torch.save(content, "two.ckpt")
    message = refused("fit", *tiny("ipc"), "--ckpt_path", "two.ckpt")
    assert "devices 2 in the checkpoint, 1 here. Set `--trainer.devices 2`" in message


@pytest.mark.slow
def test_settings_of_earlier_checkpoints_are_read_from_their_states(folder):
    content = torch.load(_last(folder, "step"), weights_only=True)
    del content[resume.KEY]
    torch.save(content, "earlier.ckpt")
    assert MESSAGE not in _resume("earlier.ckpt", *STEP, 4, GAMMA, 0.5)
    printed = _resume("earlier.ckpt", *STEP, 4, GAMMA, 0.5, f"{OPTIMIZER}.init_args.lr", LR / 10)
    assert f"{MESSAGE}lr 0.01 -> 0.001." in printed.splitlines()


def test_run_schedule_restores_progress_but_not_arguments():
    old = WarmupCosine(torch.optim.SGD([torch.zeros(1)], lr=1.0), warmup_steps=3, total_steps=9)
    for _ in range(2):
        old.optimizer.step()
        old.step()
    new = WarmupCosine(torch.optim.SGD([torch.zeros(1)], lr=2.0), warmup_steps=5, total_steps=20)
    new.load_state_dict(old.state_dict())
    assert (new.warmup_steps, new.total_steps, new.base_lrs, new.last_epoch) == (5, 20, [2.0], 2)


def test_settings_are_plain_data_with_the_learning_rate_without_schedule():
    def make_optimizer():
        return torch.optim.SGD([torch.zeros(1)], lr=2.0, momentum=0.9)

    schedules = {
        "warmup": lambda optimizer: EpochWarmup(optimizer, steps_per_epoch=8),
        "onecycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 1.0, 10),
        "milestones": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [2, 3]),
        "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        "sequential": lambda optimizer: lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)], [2]
        ),
        "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer),
    }
    for make_schedule in schedules.values():
        first, second = make_optimizer(), make_optimizer()
        assert resume.settings(first, make_schedule(first)) == resume.settings(second, make_schedule(second))
    optimizer = make_optimizer()
    assert resume.settings(optimizer, schedules["warmup"](optimizer))["groups"][0]["lr"] == 2.0
    assert optimizer.param_groups[0]["lr"] == 0.0
