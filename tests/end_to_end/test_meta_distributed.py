"""Two processes train, test and predict as one does, with inner loops of every kind."""

import pytest
import torch
from PIL import Image
from program import NAME, checkpoint, column, keep_every, rows, run, run_two, tiny

from composers.codes import read_code
from datamodules.randomness import generator_at

PHOTOS = ["--data.class_path=program.OddPhotos", "--data.init_args.eval_batch_size=8"]
BF16 = ["--trainer.precision=bf16-mixed"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
HELD_OUT = 33  # 17 and 16 instances: three batches and two
IMAGES = ("a", "b", "c")


def _write_images():
    """Write three images of noise, of different sizes."""
    for number, name in enumerate(IMAGES):
        generator = generator_at("image", number)
        pixels = torch.randint(0, 256, (20 + number, 30, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(f"{name}.png")


def _commands(name, folder, *options):
    """Return the commands that train, test and predict; the last two use the weights of the training with one process."""
    weights = ["--ckpt_path", f"runs/one_{name}/version_0/checkpoints/last.ckpt"]
    images = ["--images", *(f"{image}.png" for image in IMAGES), "--steps", 4]
    size = ["--data.init_args.batch_size=4" if folder == "two" else "--data.init_args.batch_size=8"]
    return [
        ["fit", *tiny(name), *PHOTOS, *size, *options, *keep_every(1), NAME, f"{folder}_{name}"],
        ["test", *tiny(name), *PHOTOS, *size, *options, *weights, NAME, f"{folder}_{name}"],
        ["predict", *weights, *images, *options, "--output", f"{folder}_{name}"],
    ]


def _assert_same_training(name, weights, metrics):
    """Compare weights after two steps, and validation metrics, up to these tolerances."""
    one, two = (checkpoint(f"runs/{folder}_{name}/version_0") for folder in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 2
    assert one["state_dict"].keys() == two["state_dict"].keys()
    earlier = checkpoint(f"runs/one_{name}/version_0", "step-1")["state_dict"]
    for key, weight in one["state_dict"].items():
        assert (two["state_dict"][key] - weight).abs().max() < weights, key
    assert max((weight - earlier[key]).abs().max() for key, weight in one["state_dict"].items()) > max(
        1e-4, 10 * weights
    )
    for metric in ("val/psnr", "val/loss", "val/ssim", "val/gain"):
        [actual], [expected] = (
            column(f"runs/{folder}_{name}/version_0/metrics.csv", metric) for folder in ("two", "one")
        )
        assert actual == pytest.approx(expected, abs=metrics)


def _assert_same_tests(name):
    """Compare the rows of a test, including the curve of the inner loop."""
    actual, expected = (rows(f"runs/{folder}_{name}/version_1/test_instances.csv") for folder in ("two", "one"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected]
    assert len(actual) == HELD_OUT
    assert "psnr@5 of the inner loop" in expected[0]
    for row, other in zip(actual, expected, strict=True):
        for key in row.keys() - {"name", "linear code"}:
            assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-3)


def _assert_same_predictions(name):
    """Compare tables and codes of a prediction."""
    actual, expected = (rows(f"{folder}_{name}/predictions.csv") for folder in ("two", "one"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected] == list(IMAGES)
    for row, other in zip(actual, expected, strict=True):
        assert float(row["psnr"]) == pytest.approx(float(other["psnr"]), abs=2e-3)
    for image in IMAGES:
        latents, others = (read_code(f"{folder}_{name}/{image}.safetensors").latents for folder in ("two", "one"))
        torch.testing.assert_close(latents, others, rtol=0, atol=1e-5)


def _assert_same(names, tmp_path, monkeypatch):
    """Train, test and predict with one process and with two, and compare."""
    monkeypatch.chdir(tmp_path)
    _write_images()
    for name in names:
        for command in _commands(name, "one"):
            run(*command)
    run_two([command for name in names for command in _commands(name, "two", *TWO)], tmp_path)
    for name in names:
        _assert_same_training(name, weights=1e-6, metrics=2e-5)
        _assert_same_tests(name)
        _assert_same_predictions(name)


@pytest.mark.slow
def test_two_processes_equal_one_through_the_program(tmp_path, monkeypatch):
    """Second order with random samples, Reptile, and learned step sizes with recomputed steps."""
    _assert_same(("meta_ipc", "learned_init", "functa"), tmp_path, monkeypatch)


@pytest.mark.slow
def test_two_processes_in_bfloat16_equal_one(tmp_path, monkeypatch):
    """Equal up to the order in which gradients are summed; the inner loop of an instance is the same."""
    monkeypatch.chdir(tmp_path)
    _write_images()
    for command in _commands("meta_ipc", "one", *BF16):
        run(*command)
    run_two(_commands("meta_ipc", "two", *BF16, *TWO), tmp_path)
    _assert_same_training("meta_ipc", weights=1e-3, metrics=0.01)
    _assert_same_tests("meta_ipc")
    _assert_same_predictions("meta_ipc")
