"""Checkpoints of training: the last and the best, and runs resumed from any hook that equal uninterrupted runs."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from program import NAME, assert_same, checkpoint, column, rows, run, start_fork, tiny

from callbacks.saving import BestCheckpoint, LastCheckpoint

FAST = ["--trainer.limit_val_batches", 1, "--trainer.num_sanity_val_steps", 0]
SETTINGS = {
    "plain": ["--trainer.max_epochs", 3],
    "window": ["--trainer.max_epochs", 3, "--trainer.accumulate_grad_batches", 4],  # steps of 4 and 2 batches
    "validation": [
        *["--trainer.max_epochs", 3, "--trainer.accumulate_grad_batches", 2],
        *["--trainer.val_check_interval", 3],  # within an accumulation window, too
    ],
    "seldom": ["--trainer.max_epochs", 3, "--trainer.check_val_every_n_epoch", 2],
    "steps": ["--trainer.max_epochs", -1, "--trainer.max_steps", 8, "--trainer.accumulate_grad_batches", 2],
}
BATCHES = 6
LAST = "runs/{}/version_0/checkpoints/last.ckpt"


class SaveEverywhere(Callback):
    """Save a checkpoint in every hook of training, as ``<hook>-<batches>.ckpt``."""

    def _save(self, trainer, hook):
        if not trainer.sanity_checking:
            folder = Path(trainer.log_dir, "everywhere")
            done = trainer.fit_loop.epoch_loop.batch_progress.total.processed
            trainer.save_checkpoint(folder / f"{hook}-{done}.ckpt")

    def on_train_epoch_start(self, trainer, module):
        self._save(trainer, "epoch_start")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._save(trainer, "batch_start")

    def on_before_zero_grad(self, trainer, module, optimizer):
        self._save(trainer, "zero_grad")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self._save(trainer, "batch_end")

    def on_validation_start(self, trainer, module):
        self._save(trainer, "validation_start")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self._save(trainer, "validation_batch_end")

    def on_validation_end(self, trainer, module):
        self._save(trainer, "validation_end")

    def on_train_epoch_end(self, trainer, module):
        self._save(trainer, "epoch_end")

    def on_train_end(self, trainer, module):
        self._save(trainer, "end")


def callback(class_path, **arguments):
    """Return the arguments that add a callback."""
    init_args = ", ".join(f"{name}: {value}" for name, value in arguments.items())
    return ["--trainer.callbacks+", f"{{class_path: {class_path}, init_args: {{{init_args}}}}}"]


def fit(setting, *args):
    return run("fit", *tiny("ipc"), *FAST, *SETTINGS[setting], *args)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return a function that returns the folder of an uninterrupted run of a setting, with a checkpoint per hook."""
    folders = {}

    def get(setting):
        if setting not in folders:
            folder = tmp_path_factory.mktemp(setting)
            with contextlib.chdir(folder):
                fit(setting, *callback("test_saving.SaveEverywhere"))
            folders[setting] = folder / "runs/unnamed/version_0"
        return folders[setting]

    return get


def saves(folder):
    return {path.stem: torch.load(path, weights_only=True) for path in Path(folder, "everywhere").iterdir()}


def assert_same_training(actual, expected):
    """Compare the training states of two checkpoints, without paths and unused counters."""
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(actual[key], expected[key])
    for key in ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict"):
        assert_same(actual["loops"]["fit_loop"][key], expected["loops"]["fit_loop"][key])


def assert_resumed_equals(reference, setting, name):
    """Resume a setting from a checkpoint, and compare all its checkpoints with those of the uninterrupted run."""
    fit(
        setting,
        *callback("test_saving.SaveEverywhere"),
        NAME,
        name,
        "--ckpt_path",
        reference / "everywhere" / f"{name}.ckpt",
    )
    folder = Path("runs", name, "version_0")
    expected = saves(reference)
    if not (folder / "everywhere").exists():  # training was complete
        assert_same(expected[name]["state_dict"], checkpoint(reference)["state_dict"])
        return
    actual = saves(folder)
    resumed_at = expected[name]["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    assert all(int(key.rpartition("-")[2]) >= resumed_at for key in actual)
    for key, content in actual.items():
        assert_same_training(content, expected[key])
    assert_same_training(checkpoint(folder), checkpoint(reference))
    for column_name in ("train/loss", "val/psnr"):
        resumed, uninterrupted = (
            [(row["step"], row[column_name]) for row in rows(run_folder / "metrics.csv") if column_name in row]
            for run_folder in (folder, reference)
        )
        assert resumed == uninterrupted[len(uninterrupted) - len(resumed) :]
    assert column(folder / "metrics.csv", "train/loss")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        pytest.param("plain", "batch_end-6", marks=pytest.mark.slow),
        pytest.param("plain", "epoch_start-6", marks=pytest.mark.slow),
        pytest.param("plain", "batch_start-11", marks=pytest.mark.slow),
        pytest.param("validation", "batch_end-3", marks=pytest.mark.slow),
        pytest.param("validation", "validation_end-9", marks=pytest.mark.slow),
        pytest.param("validation", "validation_batch_end-12", marks=pytest.mark.slow),
        pytest.param("seldom", "batch_end-6", marks=pytest.mark.slow),
        pytest.param("steps", "batch_end-6", marks=pytest.mark.slow),
        pytest.param("steps", "epoch_end-6", marks=pytest.mark.slow),
        pytest.param("steps", "batch_end-9", marks=pytest.mark.slow),
    ],
)
def test_run_resumed_from_a_hook_equals_an_uninterrupted_run(uninterrupted, tmp_path, monkeypatch, setting, name):
    monkeypatch.chdir(tmp_path)
    assert_resumed_equals(uninterrupted(setting), setting, name)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["window"])
def test_run_resumed_from_every_hook_equals_an_uninterrupted_run(uninterrupted, tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    reference = uninterrupted(setting)
    for path in sorted((reference / "everywhere").iterdir()):
        if (
            int(path.stem.rpartition("-")[2]) in (9, 12) or path.stem == "batch_start-0"
        ):  # within an epoch and at its end
            assert_resumed_equals(reference, setting, path.stem)


def test_minutes_that_are_not_positive_raise():
    with pytest.raises(ValueError, match=r"minutes is 0; it must be positive"):
        LastCheckpoint(minutes=0)


def only(*savers):
    """Return the arguments that replace the callbacks by classes of `callbacks.saving`, with their arguments."""
    entries = [f"{{class_path: callbacks.saving.{name}, init_args: {arguments}}}" for name, arguments in savers]
    return ["--trainer.callbacks", f"[{{class_path: callbacks.summary.StartSummary}}, {', '.join(entries)}]"]


OFTEN = ("LastCheckpoint", "{minutes: 1.0e-9}")
FIRST = (
    "BestCheckpoint",
    "{monitor: epoch, mode: min, filename: best, enable_version_counter: false}",
)  # the first epoch is the best


def test_last_checkpoint_is_saved_after_the_validation_of_every_epoch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("fit", *tiny("ipc"), *FAST, "--trainer.max_epochs", 2)
    folder = Path("runs/unnamed/version_0")
    assert [checkpoint(folder, name)["global_step"] for name in ("previous", "last")] == [BATCHES, 2 * BATCHES]
    logged = column(folder / "metrics.csv", "val/psnr")
    for name, values in (("previous", logged[:1]), ("last", logged)):
        [best] = [state for key, state in checkpoint(folder, name)["callbacks"].items() if "BestCheckpoint" in key]
        assert float(best["best_model_score"]) == pytest.approx(max(values))


def test_last_checkpoint_is_saved_at_intervals_after_optimizer_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = []

    def save(saver, trainer):
        saved.append((trainer.fit_loop.epoch_loop.batch_progress.current.ready, trainer.global_step))
        return original(saver, trainer)

    original = LastCheckpoint.save
    monkeypatch.setattr(LastCheckpoint, "save", save)
    run("fit", *tiny("ipc"), *FAST, *only(OFTEN), "--trainer.accumulate_grad_batches", 4)
    assert saved == [(4, 1), (6, 2)]  # the latter after the validation of the epoch


@pytest.mark.parametrize("due", [True, False])
def test_first_process_decides_when_to_save(monkeypatch, due):
    saver, saved = LastCheckpoint(minutes=1e9 if due else 1e-9), []
    monkeypatch.setattr(saver, "save", saved.append)
    loop = SimpleNamespace(_should_accumulate=lambda: False, batch_progress=SimpleNamespace(is_last_batch=False))
    strategy = SimpleNamespace(broadcast=lambda local: due)
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=loop), strategy=strategy)
    saver.on_train_batch_end(trainer, None, None, None, 0)
    assert bool(saved) == due


@pytest.mark.slow
def test_training_that_ends_within_an_epoch_is_saved_and_resumed_there(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = [*tiny("ipc"), *FAST, "--trainer.max_epochs", -1, "--trainer.max_steps"]
    printed = run("fit", *steps, BATCHES + 2)
    assert "Checkpoint: runs/unnamed/version_0/checkpoints/last.ckpt" in printed
    assert checkpoint("runs/unnamed/version_0")["global_step"] == BATCHES + 2
    run("fit", *steps, 3 * BATCHES, "--ckpt_path", "last")
    assert_same_training(checkpoint("runs/unnamed/version_1"), checkpoint(uninterrupted("plain")))


@pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
def test_resuming_a_finished_run_trains_no_further(tmp_path, monkeypatch, limit):
    monkeypatch.chdir(tmp_path)
    arguments = [*tiny("ipc"), *FAST, f"--trainer.{limit}", 1 if limit == "max_epochs" else 4]
    run("fit", *arguments)
    before = Path(LAST.format("unnamed")).read_bytes()
    printed = run("fit", *arguments, "--ckpt_path", "last")
    assert "Checkpoint: runs/unnamed/version_0/checkpoints/last.ckpt" in printed
    metrics = Path("runs/unnamed/version_1/metrics.csv")
    assert not metrics.exists() or not column(metrics, "train/loss")
    assert Path(LAST.format("unnamed")).read_bytes() == before


@pytest.mark.parametrize("links", [True, False])
def test_complete_last_checkpoint_exists_at_all_times(tmp_path, monkeypatch, links):
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    path.write_text("1")
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("no hard links")))
    during_save = []

    def save(target):
        during_save.append((path.read_text(), path.with_name("previous.ckpt").read_text()))
        path.with_name("new").write_text(str(int(path.read_text()) + 1))
        path.with_name("new").replace(path)

    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"),
        sanity_checking=False,
        fast_dev_run=False,
        log_dir=str(tmp_path),
        is_global_zero=True,
        global_step=1,
        save_checkpoint=save,
    )
    saver = LastCheckpoint()
    assert saver.save(trainer) == saver.save(trainer) == path
    assert during_save == [("1", "1"), ("2", "2")]
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"last.ckpt": "3", "previous.ckpt": "2"}


@pytest.mark.parametrize(
    "state", ["kept", *(pytest.param(state, marks=pytest.mark.slow) for state in ("moved", "deleted", "damaged"))]
)
def test_best_checkpoint_is_kept_across_runs(tmp_path, monkeypatch, capsys, state):
    monkeypatch.chdir(tmp_path)
    arguments = [*tiny("ipc"), *FAST, *only(FIRST, ("LastCheckpoint", "{}"))]
    run("fit", *arguments)
    best = Path("runs/unnamed/version_0/checkpoints/best.ckpt")
    content = best.read_bytes()
    if state == "moved":
        best = Path("runs/unnamed/version_0").rename("elsewhere") / "checkpoints/best.ckpt"
    elif state == "deleted":
        best.unlink()
    elif state == "damaged":
        best.write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    run("fit", *arguments, "--trainer.max_epochs", 2, NAME, "on", "--ckpt_path", best.with_name("last.ckpt"))
    messages = [line for line in capsys.readouterr().err.splitlines() if "best" in line]
    kept = state in ("kept", "moved")
    assert checkpoint("runs/on/version_0", "best")["global_step"] == (BATCHES if kept else 2 * BATCHES)
    assert (Path("runs/on/version_0/checkpoints/best.ckpt").read_bytes() == content) == kept
    [saver] = [state for key, state in checkpoint("runs/on/version_0")["callbacks"].items() if "BestCheckpoint" in key]
    assert saver["best_model_path"] == saver["kth_best_model_path"] == "runs/on/version_0/checkpoints/best.ckpt"
    assert saver["best_model_score"] == saver["kth_value"] == saver["best_k_models"][saver["best_model_path"]]
    assert int(saver["best_model_score"]) == (0 if kept else 1)
    if kept:
        assert messages == []
    else:
        assert messages == [
            "The earlier best checkpoint, runs/unnamed/version_0/checkpoints/best.ckpt (epoch 0), no longer exists, "
            "was replaced by a later one or cannot be read: the best checkpoint is selected from the resumed run only."
        ]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_metric_that_is_not_finite_is_never_the_best(mode):
    saver = BestCheckpoint(monitor="val/psnr", mode=mode)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision: decision, broadcast=lambda value: value)
    trainer = SimpleNamespace(strategy=strategy, is_global_zero=True)
    values = {"nan": False, "inf": False, "-inf": False, "1.0": True}
    assert {value: saver.check_monitor_top_k(trainer, torch.tensor(float(value))) for value in values} == values
    assert not saver.check_monitor_top_k(trainer, None)


def start(folder, args):
    """Start the program in a new process that prints to a file."""
    return start_fork([args], folder, ["printed.txt", "errors.txt"])


def kill(process, folder, version, delay, while_writing):
    """Kill the program during training, if possible while it writes a checkpoint; return whether it was still running."""
    checkpoints = folder / f"runs/unnamed/version_{version}/checkpoints"
    while process.is_alive() and not (checkpoints.parent / "config.yaml").exists():
        time.sleep(0.005)
    time.sleep(delay)
    deadline = time.monotonic() + 2
    while while_writing and process.is_alive() and time.monotonic() < deadline:
        if any(checkpoints.glob(".last.ckpt.*.part")):
            break
    alive = process.is_alive()
    process.kill()
    process.join()
    if not alive:
        assert process.exitcode == 0, (folder / "errors.txt").read_text()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("composer", "num_workers", "accumulated"), [("ipc", 0, 1), ("ipc", 2, 3), ("meta_ipc", 2, 1), ("meta_ipc", 0, 3)]
)
def test_run_killed_at_random_times_ends_like_an_uninterrupted_run(tmp_path, composer, num_workers, accumulated):
    arguments = [
        "fit",
        *tiny(composer),
        *FAST,
        "--trainer.max_epochs",
        4,
        "--trainer.accumulate_grad_batches",
        accumulated,
    ]
    arguments += ["--data.init_args.num_workers", num_workers, "--trainer.enable_progress_bar", "false"]
    arguments += only(("BestCheckpoint", "{monitor: val/psnr, mode: max, filename: best}"), OFTEN)
    reference = tmp_path / "reference"
    reference.mkdir()
    process = start(reference, arguments)
    process.join()
    assert process.exitcode == 0, (reference / "errors.txt").read_text()
    expected = checkpoint(reference / "runs/unnamed/version_0")
    started_at = (reference / "runs/unnamed/version_0/config.yaml").stat().st_mtime
    duration = (reference / LAST.format("unnamed")).stat().st_mtime - started_at
    generator = random.Random(f"{composer}, {num_workers}, {accumulated}")
    kills, required_kills, chain = 0, 3 if num_workers == 0 else 2, 0
    while kills < required_kills:
        assert chain < 10
        folder = tmp_path / f"chain-{chain}"
        folder.mkdir()
        chain += 1
        finished, runs = False, 0
        while not finished:
            resume = ["--ckpt_path", "last"] if list(folder.glob("runs/unnamed/*/checkpoints/last.ckpt")) else []
            process = start(folder, [*arguments, *resume])
            if kills < required_kills:
                was_killed = kill(process, folder, runs, generator.uniform(0, duration), while_writing=kills % 2 == 1)
                kills += was_killed
                finished = not was_killed
            else:
                process.join()
                assert process.exitcode == 0, (folder / "errors.txt").read_text()
                finished = True
            runs += 1
        last = max(folder.glob("runs/unnamed/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        actual = torch.load(last, weights_only=True)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            assert_same(actual[key], expected[key])
