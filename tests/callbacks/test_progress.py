"""Progress of a run: lines of text without a terminal, a bar of one line in a terminal."""

import io
import re
from datetime import timedelta
from types import SimpleNamespace

import pytest
import rich
from lightning.pytorch.callbacks import Timer
from program import keep_every, run, run_two, tiny
from rich.console import Console

from callbacks import progress, results
from callbacks.progress import ProgressBar


def _lines(printed, start):
    return [line for line in printed.splitlines() if line.startswith(start)]


def _progress_bar(seconds):
    """Return the arguments that replace the callbacks by a progress bar with this interval."""
    bar = f"{{class_path: callbacks.progress.ProgressBar, init_args: {{seconds: {seconds}}}}}"
    return ["--trainer.callbacks", f"[{bar}]"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_training_and_validation_print_lines_without_a_terminal():
    printed = run("fit", *tiny("ipc"), "--trainer.max_epochs", 2, *_progress_bar(0))
    steps = _lines(printed, "Step ")
    assert len(steps) == 12
    pattern = r"Step 7 of 12, epoch 2 of 2, train/psnr \S+, train/loss \S+, 0:00:\d\d left|"
    pattern += r"Step 7 of 12, epoch 2 of 2, train/loss \S+, train/psnr \S+(, 0:00:\d\d left)?"
    assert re.fullmatch(pattern, steps[6])
    validations = _lines(printed, "Validation at step ")
    assert [
        re.match(r"Validation at step (\d+) of 12, epoch (\d) of 2, val/loss ", line).groups() for line in validations
    ] == [
        ("6", "1"),
        ("12", "2"),
    ]
    assert all("val/psnr" in line for line in validations)
    assert "Validation: batch 3 of 4" in printed


@pytest.mark.slow
def test_lines_are_printed_at_the_interval(monkeypatch):
    clock = iter(range(0, 10**6, 10))  # the clock advances by ten seconds at every reading
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    every_step = len(_lines(run("fit", *tiny("ipc"), "--trainer.max_epochs", 3, *_progress_bar(0)), "Step "))
    every_30_seconds = len(_lines(run("fit", *tiny("ipc"), "--trainer.max_epochs", 3, *_progress_bar(30)), "Step "))
    assert 0 < every_30_seconds < every_step == 18


def test_short_run_prints_only_the_validation_by_default():
    printed = run("fit", *tiny("ipc"))
    assert not _lines(printed, "Step ")
    assert len(_lines(printed, "Validation at step 6 of 6")) == 1
    assert "━" not in printed.split("Checkpoint:")[0].split("┘")[1]


@pytest.mark.slow
def test_evaluations_print_lines_per_batch():
    run("fit", *tiny("ipc"), *keep_every(6))
    weights = ["--ckpt_path", "runs/unnamed/version_0/checkpoints/last.ckpt"]
    for command, name in (("validate", "Validation"), ("test", "Test")):
        printed = run(command, *tiny("ipc"), *weights, *_progress_bar(0))
        assert [line.split(",")[0] for line in _lines(printed, name)] == [
            f"{name}: batch {batch} of 4" for batch in range(1, 5)
        ]


@pytest.mark.slow
def test_two_processes_print_every_line_once(tmp_path):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
    printed = run_two([["fit", *tiny("ipc"), *two, "--trainer.overfit_batches=1", *_progress_bar(0)]], tmp_path)
    assert len(_lines(printed, "Step 1 of 1")) == 1
    assert len(_lines(printed, "Validation at step 1 of 1")) == 1


def test_disabled_bar_prints_nothing(capsys):
    bar = ProgressBar()
    bar._print("first")
    bar.disable()  # as on all processes but the first
    bar._print("second")
    assert capsys.readouterr().out == "first\n"


@pytest.mark.parametrize("epochs", [10, 1000])
def test_bar_fits_one_line_of_80_columns(monkeypatch, epochs):
    monkeypatch.setattr(rich, "_console", Console())  # the bar replaces it
    bar = ProgressBar()
    bar._console_kwargs = {"width": 80, "record": True, "force_terminal": True, "file": io.StringIO()}
    trainer = SimpleNamespace(
        is_global_zero=True,
        max_epochs=epochs,
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        training=True,
        progress_bar_callback=bar,
    )
    bar._trainer = trainer
    bar._init_progress(trainer)
    bar.progress.stop()
    bar.train_progress_bar_id = bar._add_task(1234, bar._get_train_description(epochs - 1))
    bar.progress.update(bar.train_progress_bar_id, completed=1000)
    bar._left = timedelta(hours=30).total_seconds()
    bar._metric_component.update({"train/psnr": 31.4159, "val/psnr": 27.18281})
    console = rich.get_console()
    console.export_text()
    console.print(bar.progress.get_renderable())
    [line] = console.export_text().splitlines()
    assert len(line.rstrip()) <= 80
    for part in (f"Epoch {epochs - 1}/{epochs - 1}", "1000/1234", "30:00:00 left", "train/psnr: 31.42"):
        assert part in line
    if epochs == 10:
        assert "val/psnr: 27.18" in line
        assert "•" not in line


def test_time_left_respects_max_time():
    timer = Timer(duration=timedelta(seconds=50))
    trainer = SimpleNamespace(callbacks=[timer], estimated_stepping_batches=float("inf"), global_step=3)
    assert ProgressBar()._time_left(trainer) == pytest.approx(50, abs=1)


def test_progress_bar_is_available_at_its_earlier_path():
    assert results.ProgressBar is ProgressBar


def test_negative_interval_raises():
    with pytest.raises(ValueError, match="seconds is -1; it must be 0 or more"):
        ProgressBar(-1)
