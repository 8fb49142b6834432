"""Golden runs: twenty steps of every preset from committed initial weights give the committed losses.

``PYTHONPATH=. python tests/test_golden_runs.py`` writes both anew, which only a deliberate change of a method may do.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from program import TESTS, column, run
from safetensors.torch import load_file, save_file

import composers

GOLDEN = TESTS / "golden" / "training"
LOSSES = GOLDEN / "losses.json"
PRESETS = (
    "ipc",
    "patch_ipc",
    "transinr",
    "meta_ipc",
    "learned_init",
    "functa",
    "speech",
    "objects",
    "meta_speech",
    "meta_objects",
    "liif",
    "metasdf",
    "voxels",
    "pixel_aligned",
    "la_inr",
    "anr",
)
STEPS = 20
SHORT = ["--trainer.max_epochs", -1, "--trainer.limit_val_batches", 0, "--trainer.callbacks", "[]"]
BUNDLED = {  # PSNR in dB, predicted, of the held-out items: 34 images of 64 x 64 pixels, and 12 seconds of speech
    "photos_ipc": 23.82,  # 36,864 numbers per image
    "photos_patch_ipc": 32.17,  # 1,536
    "speech_patch_ipc": 33.79,  # 2,000 per second
}


def train(preset, weights, steps=STEPS):
    """Train a tiny preset from weights in the working directory, and return the losses of its steps."""
    torch.save({"state_dict": weights, "pytorch-lightning_version": "2.6.6"}, "initial.ckpt")
    config = ["--config", TESTS / "configs" / f"tiny_{preset}.yaml"]
    run("fit", *config, *SHORT, "--trainer.max_steps", steps, "--weights", "initial.ckpt")
    return column("runs/unnamed/version_0/metrics.csv", "train/loss")


@pytest.mark.parametrize("preset", PRESETS)
def test_twenty_steps_give_the_committed_losses(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    losses = train(preset, load_file(GOLDEN / f"{preset}.safetensors"))
    golden = json.loads(LOSSES.read_text())[preset]
    assert len(golden) == STEPS
    assert losses == pytest.approx(golden, rel=1e-5)


def test_every_tiny_preset_has_a_golden_run():
    tiny = {path.stem.removeprefix("tiny_") for path in (TESTS / "configs").glob("tiny_*.yaml")}
    tiny -= {"meta", "shapes", "signposts"}  # the base of others, and presets on other data
    assert set(PRESETS) == set(json.loads(LOSSES.read_text())) == tiny


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_weights_predict_as_well_as_they_say(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TESTS.parent / "weights" / name / "config.yaml"
    run("validate", "--config", config, "--trainer.precision", "32-true", "--ckpt_path", name)
    [psnr] = column(next(Path("runs").glob("*/version_0/metrics.csv")), "val/psnr")
    assert psnr == pytest.approx(BUNDLED[name], abs=0.01)


@pytest.mark.slow
def test_the_bundled_super_resolution_exceeds_bicubic_as_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TESTS.parent / "weights" / "photos_liif" / "config.yaml"
    callbacks = ["--trainer.callbacks+", "callbacks.super_resolution.ScaleTable"]
    run("test", "--config", config, *callbacks, "--ckpt_path", "photos_liif")
    [metrics] = Path("runs").glob("*/version_0/metrics.csv")
    for scale, psnr in {2: 32.03, 3: 28.84, 4: 27.16, 6: 25.11, 8: 23.79}.items():
        assert column(metrics, f"test/psnr_x{scale}") == [pytest.approx(psnr, abs=0.01)]
        [bicubic] = column(metrics, f"test/bicubic_psnr_x{scale}")
        assert psnr - bicubic > {2: 0.8, 3: 0.6, 4: 0.5}.get(scale, 0)


@pytest.mark.parametrize("name", [*BUNDLED, "photos_liif"])
def test_bundled_weights_are_small(name):
    assert (TESTS.parent / "weights" / name / "weights.ckpt").stat().st_size < (4e6 if name == "photos_liif" else 8e6)


def _write(presets):
    """Write initial weights and losses of some presets."""
    losses = json.loads(LOSSES.read_text()) if LOSSES.exists() else {}
    torch.set_num_threads(1)
    for preset in presets:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            config = ["--config", TESTS / "configs" / f"tiny_{preset}.yaml"]
            run("fit", *config, "--trainer.max_epochs", -1, "--trainer.max_steps", 1, "--trainer.limit_val_batches", 0)
            config = composers.load("runs/unnamed/version_0/checkpoints/last.ckpt").config
        torch.manual_seed(0)
        weights = {key: value.contiguous().clone() for key, value in composers.build(config).state_dict().items()}
        save_file(weights, GOLDEN / f"{preset}.safetensors")
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            losses[preset] = train(preset, weights)
    LOSSES.write_text(json.dumps(losses, indent=1) + "\n")


if __name__ == "__main__":
    _write(sys.argv[1:] or PRESETS)
