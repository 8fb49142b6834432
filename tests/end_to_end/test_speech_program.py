"""Training, evaluation and prediction on speech, with one and two processes."""

from pathlib import Path

import pytest
import soundfile
import torch
from program import NAME, REPOSITORY, TESTS, checkpoint, column, refused, rows, run, run_two

from datamodules.audio.sample_speech import HELD_OUT_RECORDINGS, SPEECH
from modalities import audio_metrics
from modalities.audio_metrics import PESQ, STOI

TINY = ["--config", str(TESTS / "configs" / "tiny_speech.yaml")]
TWO_PROCESSES = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
METRICS = ("psnr", "silence", "over_silence", "si_sdr", "lsd")
PERCEPTUAL = {
    name for name, metric in (("stoi", STOI), ("pesq", PESQ)) if not metric().missing
}  # measured in tests only
STFT = ["--config", str(REPOSITORY / "configs" / "overlays" / "stft_loss.yaml")]
PARTS = "--model.init_args.loss.init_args.parts"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_fit_validate_test_and_predict(tmp_path):
    assert "SampleSpeech (1, 16000), 24 training and 12" in run("fit", *TINY)
    weights = ["--ckpt_path", "runs/unnamed/version_0/checkpoints/last.ckpt"]
    run("validate", *TINY, *weights)
    [validated] = rows("runs/unnamed/version_1/metrics.csv")
    [logged] = [row for row in rows("runs/unnamed/version_0/metrics.csv") if "val/psnr" in row]
    for name in METRICS:
        assert float(validated[f"val/{name}"]) == pytest.approx(float(logged[f"val/{name}"]), abs=1e-4)
    assert float(logged["val/over_silence"]) == pytest.approx(
        float(logged["val/psnr"]) - float(logged["val/silence"]), abs=1e-4
    )
    printed = run("test", *TINY, *weights)
    assert "Mean over 12 instances" in printed
    instances = rows("runs/unnamed/version_2/test_instances.csv")
    assert {row["name"].rpartition("-")[0] for row in instances} == set(HELD_OUT_RECORDINGS)
    for row in instances:
        assert float(row["psnr@2"]) > float(row["psnr@0"])
        assert {*METRICS, *PERCEPTUAL} == {key.partition("@")[0] for key in row if "@" in key}
        assert {*METRICS, *PERCEPTUAL} == {key.removesuffix(" linear") for key in row if key.endswith(" linear")}
    assert (tmp_path / "runs/unnamed/version_2/gallery.png").stat().st_size > 10_000
    recording = SPEECH / f"{HELD_OUT_RECORDINGS[0]}.flac"
    run("predict", *weights, "--audio", recording, "--sample_rate", 8000)
    written = soundfile.info(f"predictions/{HELD_OUT_RECORDINGS[0]}.wav")
    assert written.samplerate == 8000
    assert abs(written.frames - soundfile.info(recording).frames / 2) <= 1


def test_a_run_states_which_frequencies_it_cannot_reach_and_which_metrics_it_leaves_out(monkeypatch):
    monkeypatch.setattr(audio_metrics.importlib.util, "find_spec", lambda name: None)
    printed = run("fit", *TINY, "--trainer.max_steps", 1, "--trainer.limit_val_batches", 0)
    warning = "warning: FourierFeatures reaches 1,024 Hz, and 16,000 samples per second hold up to 8,000 Hz"
    assert printed.count(warning) == 1
    folder = "runs/unnamed/version_0"
    options = ["--trainer.limit_test_batches", 1, "--data.init_args.eval_batch_size", 1]
    printed = run("test", *TINY, "--ckpt_path", f"{folder}/checkpoints/last.ckpt", *options)
    for metric, package in (("STOI", "pystoi"), ("PESQ", "pesq")):
        assert (
            printed.count(f"{metric} needs the package {package}, which is not installed: pip install {package}.") == 1
        )
    assert "stoi" not in Path("runs/unnamed/version_1/test_instances.csv").read_text()


@pytest.mark.slow
def test_the_stft_loss_is_ramped_in_and_resumed():
    few = ["--trainer.limit_val_batches", 1, "--data.init_args.augment", "null"]
    ramp = [f"{PARTS}.stft.init_args.{name}={value}" for name, value in (("weight", 0.5), ("start", 1), ("ramp", 4))]
    run("fit", *TINY, *STFT, *ramp, *few, NAME, "whole")
    run("fit", *TINY, *few, "--data.init_args.coordinate_subset", "null", NAME, "wave")
    losses, waves = (column(f"runs/{name}/version_0/metrics.csv", "train/loss") for name in ("whole", "wave"))
    assert losses[:2] == waves[:2]  # steps 0 and 1
    assert losses[2] > waves[2] + 0.01
    run("fit", *TINY, *STFT, *ramp, *few, NAME, "cut", "--trainer.max_steps", 3)
    folder = "runs/cut/version_0/checkpoints/last.ckpt"
    run("fit", *TINY, *STFT, *ramp, *few, NAME, "resumed", "--ckpt_path", folder)
    assert column("runs/resumed/version_0/metrics.csv", "train/loss") == losses[3:]
    [validated] = column("runs/whole/version_0/metrics.csv", "val/loss")
    assert validated > 0.1  # at the final weight


def test_the_stft_loss_refuses_subsets_of_coordinates():
    message = refused("fit", *TINY, *STFT, "--data.init_args.coordinate_subset", 0.05)
    assert "coordinate_subset is 0.05" in message
    assert "MultiResolutionSTFT" in message
    assert "set data.init_args.coordinate_subset to null" in message


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    run("fit", *TINY, NAME, "one")
    run_two([["fit", *TINY, *TWO_PROCESSES, NAME, "two"]], tmp_path)
    one, two = (checkpoint(f"runs/{name}/version_0")["state_dict"] for name in ("one", "two"))
    assert all((two[key] - weight).abs().max() < 1e-5 for key, weight in one.items())
    for name in METRICS:
        [actual], [expected] = (
            column(f"runs/{folder}/version_0/metrics.csv", f"val/{name}") for folder in ("two", "one")
        )
        assert actual == pytest.approx(expected, abs=1e-3)
    weights = ["--ckpt_path", "runs/one/version_0/checkpoints/last.ckpt"]
    run("test", *TINY, NAME, "one", *weights)
    run_two([["test", *TINY, *TWO_PROCESSES, NAME, "two", *weights]], tmp_path)
    actual, expected = (rows(f"runs/{folder}/version_1/test_instances.csv") for folder in ("two", "one"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected]
    for row, other in zip(actual, expected, strict=True):
        assert all(
            float(row[key]) == pytest.approx(float(other[key]), abs=1e-3, nan_ok=True)
            for key in row.keys() - {"name", "linear code"}
        )
    recordings = [SPEECH / f"{name}.flac" for name in HELD_OUT_RECORDINGS[:2]]
    run("predict", *weights, "--audio", *recordings, "--output", "one")
    run_two([["predict", *weights, "--audio", *recordings, "--output", "two", *TWO_PROCESSES[:2]]], tmp_path)
    for name in HELD_OUT_RECORDINGS[:2]:
        expected, actual = (torch.from_numpy(soundfile.read(f"{folder}/{name}.wav")[0]) for folder in ("one", "two"))
        assert (actual - expected).abs().max() < 1e-3
