"""Patch-wise experiments on speech: the linear start, and a training step at full size."""

import math

import pytest
import torch
from program import REPOSITORY, column, run

from benchmarks import cost
from datamodules.audio.sample_speech import SampleSpeech

EXPERIMENTS = REPOSITORY / "configs" / "experiments"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _initialised(name):
    """Return the composer of an experiment before training, initialised from few crops, and a batch of held-out speech."""
    torch.manual_seed(0)
    composer, data, _ = cost.build(EXPERIMENTS / f"{name}.yaml")
    data.crops_per_epoch = 256
    data.setup("fit")
    composer.initialize(data)
    batch = data.to_coordinates(next(iter(data.val_dataloader())), training=False)
    return composer.eval(), batch


def _over_silence(composer, batch, latents):
    """Return the mean gain over silence in dB."""
    with torch.no_grad():
        modulations = composer.compose(latents, composer.layout(batch.observation))
        error = (composer.render(modulations, batch.query.coords) - batch.query.values).square().mean((1, 2))
    return 10 * (batch.query.values.square().mean((1, 2)) / error).log10().mean().item()


def test_patch_codes_of_speech_start_above_linear_coding():
    composer, batch = _initialised("speech_patch_ipc")
    with torch.no_grad():
        latents = composer.encode(batch.observation)
    assert latents["codes"].shape == (12, 80, 25)
    assert 15 < _over_silence(composer, batch, latents) < 17  # KLT with as many numbers has 14.3 dB


def test_inner_steps_on_patch_codes_lower_the_loss_before_training():
    composer, batch = _initialised("speech_meta_patches")
    gains = [
        _over_silence(composer, batch, latents)
        for latents in composer.trajectory(batch.observation, (0, 1, 2, 3)).values()
    ]
    assert gains[0] == pytest.approx(0, abs=0.1)
    assert gains == sorted(gains)
    assert gains[-1] > 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["speech_patch_ipc", "speech_meta_patches"])
def test_experiment_trains_a_step(name):
    settings = {
        "data.init_args.crops_per_epoch": 200,
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
    }
    arguments = [part for option, value in settings.items() for part in (f"--{option}", value)]
    printed = run("fit", "--config", EXPERIMENTS / f"{name}.yaml", *arguments)
    assert "2,000" in printed  # the code size
    [loss] = column(f"runs/{name}/version_0/metrics.csv", "train/loss")
    [over_silence] = column(f"runs/{name}/version_0/metrics.csv", "val/over_silence")
    assert 0 < loss < 0.1
    assert math.isfinite(over_silence)
    assert over_silence > 5


@pytest.mark.parametrize("name", ["speech_patch_ipc", "speech_meta_patches"])
def test_experiments_share_their_data(name):
    _, data, epochs = cost.build(EXPERIMENTS / f"{name}.yaml")
    assert isinstance(data, SampleSpeech)
    assert (data.extended, data.samples, epochs) == (True, 16000, 8)
    assert data.crops_per_epoch >= 200
    assert str(data.augment) == "gain -12 to 6 dB, polarity 0.5, mixing 0.25 at -20 to 0 dB, speed 0.95 to 1.05"
