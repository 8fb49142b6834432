"""Two processes train and evaluate identically to one."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from program import NAME, checkpoint, column, rows, run, run_process, run_two, tiny

from datamodules.randomness import generator_at

# The items of a step do not depend on the number of processes. SGD without dropout, whose random state is per process.
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
HELD_OUT = 33  # 17 and 16 per process: three and two batches


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _assert_same_training(composer, cwd, data=PHOTOS, two_process_args=()):
    """Train with one and with two processes, and compare weights and validation metrics."""
    run("fit", *tiny(composer), *data, *COMMON, *ONE)
    printed = run_two([["fit", *tiny(composer), *data, *COMMON, *TWO, *two_process_args]], cwd)
    assert re.search(r"effective batch\s*│ 8 = 4 x 2 device\(s\)", printed)
    assert printed.count("effective batch") == 1
    assert "Checkpoint: runs/two/version_0/checkpoints/last.ckpt" in printed
    one, two = (checkpoint(f"runs/{name}/version_0") for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 3
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for key, weight in one["state_dict"].items():
        assert (two["state_dict"][key] - weight).abs().max() < 1e-6, key
    for name in ("val/psnr", "val/loss", "val/ssim", "val/gain"):
        [actual], [expected] = (column(f"runs/{run_name}/version_0/metrics.csv", name) for run_name in ("two", "one"))
        assert actual == pytest.approx(expected, abs=2e-5)


def test_two_processes_train_identically_to_one(tmp_path):
    _assert_same_training("ipc", tmp_path)


@pytest.mark.slow
def test_two_processes_train_identically_to_one_with_all_layers_modulated(tmp_path):
    _assert_same_training("transinr", tmp_path)


@pytest.mark.slow
def test_two_processes_train_identically_to_one_on_cached_random_crops(tmp_path):
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
def test_two_processes_write_every_row_once(composer, tmp_path):
    run("fit", *tiny(composer), *PHOTOS, *COMMON, *ONE)
    weights = ["--ckpt_path", "runs/one/version_0/checkpoints/last.ckpt"]
    run("test", *tiny(composer), *PHOTOS, *COMMON, *ONE, *weights)
    printed = run_process("test", *tiny(composer), *PHOTOS, *COMMON, *TWO, *weights, cwd=tmp_path)
    assert printed.count(f"Mean over {HELD_OUT} instances") == 1
    actual, expected = (rows(f"runs/{folder}/test_instances.csv") for folder in ("two/version_0", "one/version_1"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected]
    assert len(actual) == HELD_OUT
    for row, expected_row in zip(actual, expected, strict=True):
        assert row["linear code"] == expected_row["linear code"]
        for key in row.keys() - {"name", "linear code"}:
            assert float(row[key]) == pytest.approx(float(expected_row[key]), abs=1e-3)
    assert {"psnr@3 from random", "psnr linear"} <= expected[0].keys()
    points, expected_points = (rows(f"runs/{folder}/refinement.csv") for folder in ("two/version_0", "one/version_1"))
    assert [float(point["mean"]) for point in points] == pytest.approx(
        [float(p["mean"]) for p in expected_points], abs=1e-3
    )
    two, one = (rows(f"runs/{folder}/metrics.csv")[-1] for folder in ("two/version_0", "one/version_1"))
    for name in ("test/psnr", "test/refined_psnr", "test/loss"):
        assert float(two[name]) == pytest.approx(float(one[name]), abs=1e-3)


@pytest.mark.slow
def test_run_with_two_processes_resumes_with_one(tmp_path):
    saver = (
        "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
        "init_args: {filename: middle, every_n_train_steps: 2, enable_version_counter: false}}"
    )
    run_two([["fit", *tiny("ipc"), *PHOTOS, *COMMON, *TWO, "--trainer.callbacks+", saver]], tmp_path)
    middle = "runs/two/version_0/checkpoints/middle.ckpt"
    run("fit", *tiny("ipc"), *PHOTOS, *COMMON, *ONE, "--trainer.callbacks+", saver, "--ckpt_path", middle)
    one, two = (checkpoint(f"runs/{name}/version_0")["state_dict"] for name in ("one", "two"))
    for key, weight in one.items():
        assert (two[key] - weight).abs().max() < 1e-6, key
