"""``cli.py predict`` with a model of super-resolution, end to end."""

from pathlib import Path

import numpy as np
import pytest
from patches import random_pixels
from PIL import Image
from program import TESTS, refused, rows, run, run_two
from super_resolvers import tiny_liif

import composers
from modalities.enlarging import super_resolve


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the checkpoint of a tiny LIIF."""
    path = tmp_path_factory.mktemp("trained") / "liif.ckpt"
    composers.save(tiny_liif(), path)
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder with two images."""
    monkeypatch.chdir(tmp_path)
    for name, shape in (("wide", (18, 40)), ("tall", (25, 12))):
        Image.fromarray(random_pixels(*shape).permute(1, 2, 0).numpy()).save(f"{name}.png")


def _pixels(path):
    """Return the pixels of an image file."""
    return np.asarray(Image.open(path))


def test_predict_writes_the_enlarged_image_and_a_table(trained):
    printed = run("predict", "--images", "wide.png", "--scale", 3, "--ckpt_path", trained)
    assert {path.name for path in Path("predictions").iterdir()} == {"wide.png", "predictions.csv"}
    expected = super_resolve(composers.load(trained), "wide.png", scale=3)
    assert np.array_equal(_pixels("predictions/wide.png"), np.asarray(expected))
    [row] = rows("predictions/predictions.csv")
    assert row == {
        "name": "wide",
        "rows": "18",
        "columns": "40",
        "enlarged rows": "54",
        "enlarged columns": "120",
        "tiles": "1",
    }
    assert "18 x 40 to 54 x 120" in printed
    assert "PSNR" not in printed


def test_tiles_bound_the_memory_and_change_nothing(trained):
    run("predict", "--images", "wide.png", "tall.png", "--size", 90, "--max_pixels", 100, "--ckpt_path", trained)
    tiles = {row["name"]: int(row["tiles"]) for row in rows("predictions/predictions.csv")}
    assert tiles == {"wide": 8, "tall": 6}
    for name in tiles:
        expected = np.asarray(super_resolve(composers.load(trained), f"{name}.png", size=90)).astype(int)
        assert np.abs(_pixels(f"predictions/{name}.png") - expected).max() <= 1


def test_mixed_precision_works(trained):
    run("predict", "--images", "wide.png", "--scale", 2, "--ckpt_path", trained, "--trainer.precision", "bf16-mixed")
    expected = np.asarray(super_resolve(composers.load(trained), "wide.png", scale=2)).astype(int)
    assert np.abs(_pixels("predictions/wide.png") - expected).max() <= 4


def test_test_items_are_enlarged_too(trained):
    config = ["--config", TESTS / "configs" / "tiny_liif.yaml", "--trainer.limit_predict_batches", 2]
    run("fit", *config[:2], "--trainer.max_steps", 1, "--trainer.limit_val_batches", 1)
    run("predict", *config, "--ckpt_path", next(Path("runs").rglob("last.ckpt")))
    written = rows("predictions/predictions.csv")
    assert len(written) == 2
    for row in written:
        assert _pixels(f"predictions/{row['name']}.png").shape[:2] == (
            int(row["enlarged rows"]),
            int(row["enlarged columns"]),
        )


def test_absurd_sizes_are_refused_before_any_work(trained):
    message = refused("predict", "--images", "wide.png", "--scale", 4000, "--ckpt_path", trained)
    assert "wide.png has 18 x 40 pixels" in message
    assert "pass a smaller size or scale" in message


@pytest.mark.slow
def test_two_processes_write_what_one_writes(trained, tmp_path):
    arguments = ["predict", "--images", "wide.png", "tall.png", "--ckpt_path", trained, "--max_pixels", 200]
    run(*arguments, "--output", "one")
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    run_two([[*arguments, "--output", "two", *devices]], tmp_path)
    assert rows("one/predictions.csv") == sorted(rows("two/predictions.csv"), key=lambda row: row["name"], reverse=True)
    for name in ("wide", "tall"):
        assert np.array_equal(_pixels(f"one/{name}.png"), _pixels(f"two/{name}.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scale", 0.5], "scale of at least 1"),
        (["--size", 30], r"more than the result"),
        (["--scale", 2, "--size", 80], "pass only one"),
        (["--steps", 3], "--steps does not apply to super-resolution models"),
        (["--tile"], "--tile does not apply to super-resolution models"),
        (["--max_memory", 100], "--max_memory does not apply to super-resolution models"),
        (["--seconds_of_silence", 1], "seconds_of_silence"),
    ],
)
def test_options_that_do_not_apply_are_refused(trained, options, message):
    assert message in refused("predict", "--images", "wide.png", "--ckpt_path", trained, *options)


def test_weights_of_another_encoder_are_refused(trained):
    message = refused(
        "predict", "--images", "wide.png", "--ckpt_path", trained, "--model.encoder.init_args.num_blocks", 3
    )
    assert "belongs to another model" in message
    assert "encoder.blocks.2" in message


def test_unreadable_images_are_reported_and_skipped(trained):
    Path("broken.png").write_bytes(Path("wide.png").read_bytes()[:200])
    printed = run("predict", "--images", ".", "--ckpt_path", trained)
    assert "Skipped 1" in printed
    assert "broken.png" in printed
    assert {row["name"] for row in rows("predictions/predictions.csv")} == {"tall", "wide"}
