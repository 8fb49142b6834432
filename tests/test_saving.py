"""Checkpoints of training: the last state, the best, and runs resumed from everywhere that equal uninterrupted ones."""

import contextlib
from pathlib import Path

import pytest
import torch
from lightning import Callback
from program import NAME, assert_same, checkpoint, column, rows, run, tiny

FAST = ["--trainer.limit_val_batches", 1, "--trainer.num_sanity_val_steps", 0]
SETTINGS = {
    "plain": ["--trainer.max_epochs", 3],
    "window": ["--trainer.max_epochs", 3, "--trainer.accumulate_grad_batches", 4],  # of 4 and 2 batches
    "validation": [
        *["--trainer.max_epochs", 3, "--trainer.accumulate_grad_batches", 2],
        *["--trainer.val_check_interval", 3],  # within a window too
    ],
    "seldom": ["--trainer.max_epochs", 3, "--trainer.check_val_every_n_epoch", 2],
    "steps": ["--trainer.max_epochs", -1, "--trainer.max_steps", 8, "--trainer.accumulate_grad_batches", 2],
}
BATCHES = 6
LAST = "runs/{}/version_0/checkpoints/last.ckpt"


class SaveEverywhere(Callback):
    """Saves in every hook of training, as ``<hook>-<batches>.ckpt``."""

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
    stated = ", ".join(f"{name}: {value}" for name, value in arguments.items())
    return ["--trainer.callbacks+", f"{{class_path: {class_path}, init_args: {{{stated}}}}}"]


def fit(setting, *args):
    return run("fit", *tiny("ipc"), *FAST, *SETTINGS[setting], *args)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return a function that gives the folder of an uninterrupted run of a setting, which saved everywhere."""
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


def assert_same_training(found, wanted):
    """Compare what two checkpoints say of training, without paths and without counters that nothing depends on."""
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(found[key], wanted[key])
    one, other = (state["loops"]["fit_loop"] for state in (found, wanted))
    for key in ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.state_dict"):
        assert_same(one[key], other[key])


def resumed(whole, setting, name):
    """Resume a setting from a save and check that all that it saves is what the uninterrupted run saved."""
    fit(
        setting,
        *callback("test_saving.SaveEverywhere"),
        NAME,
        name,
        "--ckpt_path",
        whole / "everywhere" / f"{name}.ckpt",
    )
    folder = Path("runs", name, "version_0")
    wanted = saves(whole)
    if not (folder / "everywhere").exists():  # nothing was left to do
        assert_same(wanted[name]["state_dict"], checkpoint(whole)["state_dict"])
        return
    found = saves(folder)
    begun = wanted[name]["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    assert all(int(key.rpartition("-")[2]) >= begun for key in found)
    for key, content in found.items():
        assert_same_training(content, wanted[key])
    assert_same_training(checkpoint(folder), checkpoint(whole))
    for name in ("train/loss", "val/psnr"):
        logged = [(row["step"], row[name]) for row in rows(folder / "metrics.csv") if name in row]
        assert (
            logged == [(row["step"], row[name]) for row in rows(whole / "metrics.csv") if name in row][-len(logged) :]
        )
    assert column(folder / "metrics.csv", "train/loss")


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("plain", "batch_end-6"),
        ("plain", "epoch_start-6"),
        ("window", "batch_end-3"),
        ("window", "batch_end-12"),
        ("window", "zero_grad-6"),
        ("validation", "batch_end-3"),
        ("validation", "validation_end-9"),
        ("validation", "validation_batch_end-12"),
        ("seldom", "batch_end-6"),
        ("steps", "batch_end-6"),
        ("steps", "epoch_end-6"),
        ("steps", "batch_end-9"),
    ],
)
def test_a_run_resumed_from_any_hook_equals_an_uninterrupted_one(uninterrupted, tmp_path, monkeypatch, setting, name):
    monkeypatch.chdir(tmp_path)
    resumed(uninterrupted(setting), setting, name)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_resumed_from_every_hook_equals_an_uninterrupted_one(uninterrupted, tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    whole = uninterrupted(setting)
    for path in sorted((whole / "everywhere").iterdir()):
        if 5 <= int(path.stem.rpartition("-")[2]) <= 12 or path.stem == "batch_start-0":
            resumed(whole, setting, path.stem)
