"""Two processes train and evaluate what one does."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from program import NAME, checkpoint, column, rows, run, run_process, tiny

from datamodules.randomness import generator_at

# Items of a step are the same for any number of processes; SGD and no dropout, whose draws belong to a process.
PHOTOS = ["--data.class_path=program.OddPhotos", "--data.init_args.eval_batch_size=8"]
FOLDER = [
    *("--data.class_path=datamodules.ImageFolder", "--data.init_args.root=images", "--data.init_args.size=16"),
    *("--data.init_args.crop=random", "--data.init_args.flip=true", "--data.init_args.val_ratio=0.2"),
]
COMMON = [
    "--model.init_args.transformer.init_args.residual_dropout=0",
    "--model.init_args.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.5}}",
]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=4", NAME, "two"]
ONE = ["--data.init_args.batch_size=8", NAME, "one"]
HELD_OUT = 33  # 17 and 16: three batches and two


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _assert_same_training(composer, cwd, data=PHOTOS, for_two=()):
    """Train on one and on two processes, the two with some more arguments, and compare weights and validation."""
    run("fit", *tiny(composer), *data, *COMMON, *ONE)
    printed = run_process("fit", *tiny(composer), *data, *COMMON, *TWO, *for_two, cwd=cwd)
    assert re.search(r"effective batch\s*│ 8 = 4 x 2 device\(s\)", printed)
    assert printed.count("effective batch") == 1
    assert "Checkpoint: runs/two/version_0/checkpoints/last.ckpt" in printed
    one, two = (checkpoint(f"runs/{name}/version_0") for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 3
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for key, weight in one["state_dict"].items():
        assert (two["state_dict"][key] - weight).abs().max() < 1e-6, key
    for name in ("val/psnr", "val/loss", "val/ssim", "val/gain"):
        [found], [wanted] = (column(f"runs/{run_name}/version_0/metrics.csv", name) for run_name in ("two", "one"))
        assert found == pytest.approx(wanted, abs=2e-5)


def test_two_processes_train_what_one_does(tmp_path):
    _assert_same_training("ipc", tmp_path)


@pytest.mark.slow
def test_two_processes_train_what_one_does_with_every_layer_modulated(tmp_path):
    _assert_same_training("transinr", tmp_path)


@pytest.mark.slow
def test_two_processes_train_what_one_does_on_random_crops_of_a_cache(tmp_path):
    for number in range(31):
        pixels = torch.randint(
            0, 256, (20 + number % 5, 30, 3), dtype=torch.uint8, generator=generator_at("image", number)
        )
        Path("images").mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).save(f"images/{number:02}.png")
    _assert_same_training("ipc", tmp_path, FOLDER, ["--data.init_args.cache=another"])
    assert sorted(path.name for path in Path("another").rglob("*.bin")) == ["pixels.bin"] * 2
    assert not list(Path("another").glob("*.lock"))


@pytest.mark.slow
@pytest.mark.parametrize("composer", ["ipc"])
def test_two_processes_write_every_row(composer, tmp_path):
    run("fit", *tiny(composer), *PHOTOS, *COMMON, *ONE)
    weights = ["--ckpt_path", "runs/one/version_0/checkpoints/last.ckpt"]
    run("test", *tiny(composer), *PHOTOS, *COMMON, *ONE, *weights)
    printed = run_process("test", *tiny(composer), *PHOTOS, *COMMON, *TWO, *weights, cwd=tmp_path)
    assert printed.count(f"Mean over {HELD_OUT} instances") == 1
    found, wanted = (rows(f"runs/{folder}/test_instances.csv") for folder in ("two/version_0", "one/version_1"))
    assert [row["name"] for row in found] == [row["name"] for row in wanted]
    assert len(found) == HELD_OUT
    for row, other in zip(found, wanted, strict=True):
        for key in row.keys() - {"name"}:
            assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-3)
    assert "psnr@3 from random" in wanted[0]
    points, others = (rows(f"runs/{folder}/refinement.csv") for folder in ("two/version_0", "one/version_1"))
    assert [float(point["mean"]) for point in points] == pytest.approx([float(p["mean"]) for p in others], abs=1e-3)
    logged, alone = (rows(f"runs/{folder}/metrics.csv")[-1] for folder in ("two/version_0", "one/version_1"))
    for name in ("test/psnr", "test/refined_psnr", "test/loss"):
        assert float(logged[name]) == pytest.approx(float(alone[name]), abs=1e-3)


@pytest.mark.slow
def test_a_run_on_two_processes_is_resumed_on_one(tmp_path):
    saver = (
        "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        "init_args: {filename: middle, every_n_train_steps: 2, enable_version_counter: false}}"
    )
    run_process("fit", *tiny("ipc"), *PHOTOS, *COMMON, *TWO, "--trainer.callbacks+", saver, cwd=tmp_path)
    middle = "runs/two/version_0/checkpoints/middle.ckpt"
    run("fit", *tiny("ipc"), *PHOTOS, *COMMON, *ONE, "--trainer.callbacks+", saver, "--ckpt_path", middle)
    one, two = (checkpoint(f"runs/{name}/version_0")["state_dict"] for name in ("one", "two"))
    for key, weight in one.items():
        assert (two[key] - weight).abs().max() < 1e-6, key
