"""A patch-wise composer from training to export, over images and audio of any size, with one and two processes."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from patches import random_pixels
from PIL import Image
from program import NAME, TESTS, checkpoint, column, refused, rows, run, run_two

import composers
from composers.codes import read_code
from datamodules import SamplePhotos, SampleSpeech
from datamodules.batch import Observation
from modalities import audio
from modalities.images import encode, render
from tools import codes
from tools.export import __main__ as export

IMAGES, SPEECH = ("images", "speech")
NO_REFINEMENT = ["--model.init_args.refinement.init_args.steps", 0]
SGD = "--model.init_args.optimizer={class_path: torch.optim.SGD, init_args: {lr: 1.0e-4}}"
FOUR, EIGHT = (["--data.init_args.batch_size", size, "--model.init_args.scheduler", "null"] for size in (4, 8))
TWO_PROCESSES = ["--trainer.devices=2", "--trainer.strategy=ddp"]


class FewPhotos(SamplePhotos):
    """`SamplePhotos` with five held-out images, an odd number for two processes."""

    def setup(self, stage):
        super().setup(stage)
        self.val_set = self.test_set = torch.utils.data.Subset(self.test_set, range(5))


class FewSpeech(SampleSpeech):
    """`SampleSpeech` with three held-out items."""

    def setup(self, stage):
        super().setup(stage)
        self.val_set = self.test_set = torch.utils.data.Subset(self.test_set, range(3))


DATA = {
    IMAGES: "--data.class_path=test_patch_program.FewPhotos",
    SPEECH: "--data.class_path=test_patch_program.FewSpeech",
}


def _config(name):
    """Return the arguments for a tiny config with few held-out items."""
    return ["--config", TESTS / "configs" / "patches" / f"{name}.yaml", DATA[name]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a function from the name of a config to its checkpoint, trained once."""
    folder, paths = tmp_path_factory.mktemp("patches"), {}

    def train(name):
        if name not in paths:
            with contextlib.chdir(folder):
                run("fit", *_config(name), NAME, name)
            paths[name] = folder / "runs" / name / "version_0" / "checkpoints" / "last.ckpt"
        return paths[name]

    return train


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _write_photo(name="photo.png", rows=61, columns=90):
    """Write a smooth image with noise."""
    ramp = torch.linspace(20, 180, rows * columns).view(1, rows, columns)
    pixels = (ramp + random_pixels(rows, columns) / 8).to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(name)
    return pixels


def _write_tone(name="tone.wav", samples=24_001, sample_rate=16_000, channels=1):
    """Write a tone."""
    values = 0.3 * np.sin(0.05 * np.arange(samples))
    soundfile.write(name, np.stack([values] * channels, axis=1), sample_rate, subtype="PCM_16")


@pytest.mark.parametrize("name", [IMAGES, SPEECH])
def test_validation_test_and_gallery(trained, name):
    weights = ["--ckpt_path", trained(name)]
    run("validate", *_config(name), *weights, NAME, "validated")
    [psnr] = column("runs/validated/version_0/metrics.csv", "val/psnr")
    run("test", *_config(name), *weights, NAME, "tested")
    folder = Path("runs/tested/version_0")
    table = rows(folder / "test_instances.csv")
    assert len(table) == {IMAGES: 5, SPEECH: 3}[name]
    assert np.mean([float(row["psnr@0"]) for row in table]) == pytest.approx(psnr, abs=1e-3)
    for row in table:
        assert float(row["psnr@3"]) > float(row["psnr@0"])
        assert "psnr linear" in row
        assert row["linear code"].startswith({IMAGES: "PCA, 32 per 8 x 8", SPEECH: "KLT, 8 per 200"}[name])
    assert (folder / "gallery.png").stat().st_size > 1000


def test_images_are_predicted_whole(trained):
    pixels = _write_photo()
    printed = run("predict", "--images", "photo.png", "--ckpt_path", trained(IMAGES))
    composer = composers.load(trained(IMAGES))
    assert composer.start.signal_shape == (3, -1, -1)
    [row] = rows("predictions/predictions.csv")
    assert (row["rows"], row["columns"], row["tiles"]) == ("61", "90", "1")
    assert int(row["code size"]) == 16 * 23 * 8
    assert f"{row['bits per pixel'][:4]}" in printed
    code = read_code("predictions/photo.safetensors")
    expected = encode(composer, "photo.png")
    torch.testing.assert_close(code.latents["codes"], expected.latents["codes"], rtol=1e-3, atol=1e-3)
    image = np.asarray(Image.open("predictions/photo.png")).astype(int)
    assert np.abs(image - np.asarray(render(composer, expected)).astype(int)).max() <= 1
    psnr = 10 * np.log10(255**2 / np.mean((image - pixels.permute(1, 2, 0).numpy().astype(float)) ** 2))
    assert float(row["psnr"]) == pytest.approx(psnr, abs=1e-3)
    assert float(row["psnr refined"]) > float(row["psnr predicted"]) > 20


def test_large_images_and_images_smaller_than_a_patch(trained):
    _write_photo()
    _write_photo("dot.png", 1, 1)
    _write_photo("line.png", 2, 30)
    options = ["--steps", 0, "--scale", 4, "--max_pixels", 2000]
    run("predict", "--images", "photo.png", "dot.png", "line.png", "--ckpt_path", trained(IMAGES), *options)
    table = {row["name"]: row for row in rows("predictions/predictions.csv")}
    assert int(table["photo"]["tiles"]) > 1
    assert "above max_pixels 2,000" in table["photo"]["notes"]
    assert (table["dot"]["tiles"], table["line"]["tiles"]) == ("1", "1")
    sizes = {"photo": (360, 244), "dot": (4, 4), "line": (120, 8)}
    for name, size in sizes.items():
        with Image.open(f"predictions/{name}.png") as image:
            assert image.size == size
    run("predict", "--images", "photo.png", "--ckpt_path", trained(IMAGES), "--steps", 0, "--tile", "--output", "tiled")
    assert rows("tiled/predictions.csv")[0]["tiles"] == "1"  # of 512 x 512 pixels


def test_audio_is_predicted_whole(trained):
    _write_tone()
    _write_tone("one.wav", 1)
    _write_tone("stereo.wav", 12_345, 22_050, channels=2)
    Path("empty.wav").touch()
    paths = ["tone.wav", "one.wav", "stereo.wav", "empty.wav"]
    printed = run("predict", "--audio", *paths, "--ckpt_path", trained(SPEECH))
    assert "empty.wav is empty" in printed
    table = {row["name"]: row for row in rows("predictions/predictions.csv")}
    assert {name: row["tiles"] for name, row in table.items()} == {"tone": "1", "one": "1", "stereo": "1"}
    assert int(table["tone"]["code size"]) == 121 * 8
    assert float(table["tone"]["kbit/s"]) == pytest.approx(121 * 8 * 32 / (24_001 / 16), abs=1e-3)
    assert "resampled from 22,050 to 16,000 Hz" in table["stereo"]["notes"]
    code = read_code("predictions/stereo.safetensors")
    assert audio.code_sample_rate(code) == 16_000
    for name, samples in {"tone": 24_001, "one": 1, "stereo": 12_345}.items():
        assert soundfile.info(f"predictions/{name}.wav").frames == samples
    run("predict", "--audio", "tone.wav", "--max_seconds", 0.6, "--ckpt_path", trained(SPEECH), "--output", "split")
    [row] = rows("split/predictions.csv")
    assert (row["tiles"], row["notes"]) == ("3", "3 tiles of 0.525 s, above max_seconds 0.6")


def test_codes_are_decoded_and_interpolated_at_any_size(trained, capsys):
    for name in ("a.png", "b.png", "c.png"):
        _write_photo(name, 21, 34 if name != "c.png" else 30)
    run("predict", "--images", "a.png", "b.png", "c.png", "--steps", 0, "--ckpt_path", trained(IMAGES))
    weights = ["--checkpoint", str(trained(IMAGES))]
    paths = [f"predictions/{name}.safetensors" for name in "abc"]
    codes.main(["render", paths[0], *weights, "--size", "50x70", "--output", "large.png"])
    with Image.open("large.png") as image:
        assert image.size == (70, 50)
    codes.main(["interpolate", *paths[:2], *weights, "--frames", "2", "--scale", "2"])
    with Image.open("interpolation/001.png") as image:
        assert image.size == (68, 42)
    codes.main(["info", paths[0]])
    assert "codes (1, 6, 9, 8)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="encode both signals at one size"):
        codes.main(["interpolate", paths[0], paths[2], *weights])
    content = Path(paths[0]).read_bytes()
    Path("cut.safetensors").write_bytes(content[:-100])
    with pytest.raises(SystemExit, match=r"cut\.safetensors is damaged"):
        codes.main(["render", "cut.safetensors", *weights])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [(IMAGES, "[18, 25]"), (SPEECH, "[701]")])
def test_encoder_and_decoder_are_exported_for_a_stated_shape(trained, name, shape, capsys):
    with pytest.raises(SystemExit, match="where -1 is open: state all sizes"):
        export.main([str(trained(name)), "open"])
    export.main([str(trained(name)), "exported", "--shape", shape])
    description = json.loads(Path("exported/export.json").read_text())
    assert description["layout"]["extent"] == json.loads(shape)
    for program in ("encoder", "decoder"):
        assert max(description[program]["largest_difference"].values()) < 1e-5
    loaded = torch.export.load("exported/encoder.pt2").module()
    signal = torch.rand(3, *description["encoder"]["inputs"]["signal"][1:])
    composer = composers.load(trained(name))
    with torch.no_grad():
        expected = composer.encode(Observation(signal))["codes"]
        torch.testing.assert_close(loaded(signal)["codes"], expected, rtol=1e-5, atol=1e-5)


def test_models_of_other_signals_are_refused(trained):
    _write_photo()
    _write_tone()
    message = refused("predict", "--images", "photo.png", "--ckpt_path", trained(SPEECH))
    assert "signal_shape is [1, -1], but images require a model of" in message
    message = refused("predict", "--audio", "tone.wav", "--ckpt_path", trained(IMAGES))
    assert "signal_shape is [3, -1, -1]; a model of audio has [channels, samples], with -1 samples" in message
    message = refused("predict", "--audio", "tone.wav", "--ckpt_path", trained(SPEECH), "--data.sample_rate", 8000)
    assert "was trained with coordinates from -1 to 1 (1 s at 16,000 Hz); this AudioFiles has" in message
    assert "use `--data.init_args.sample_rate 16000`" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", [IMAGES, SPEECH])
def test_two_processes_equal_one(name, tmp_path):
    run("fit", *_config(name), SGD, *EIGHT, NAME, "one")
    run_two([["fit", *_config(name), SGD, *FOUR, *TWO_PROCESSES, NAME, "two"]], tmp_path)
    one, two = (checkpoint(f"runs/{folder}/version_0") for folder in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 3
    for key, weight in one["state_dict"].items():
        assert (two["state_dict"][key] - weight).abs().max() < 1e-5 * (1 + weight.abs().max()), key
    weights = ["--ckpt_path", "runs/one/version_0/checkpoints/last.ckpt"]
    writer = {IMAGES: _write_photo, SPEECH: _write_tone}[name]
    option, ending = {IMAGES: ("--images", "png"), SPEECH: ("--audio", "wav")}[name]
    files = [f"{stem}.{ending}" for stem in "abc"]
    for file in files:
        writer(file)
    run("predict", option, *files, *weights, "--output", "alone")
    run_two([["predict", option, *files, *weights, "--output", "shared", *TWO_PROCESSES]], tmp_path)
    alone, shared = (rows(f"{folder}/predictions.csv") for folder in ("alone", "shared"))
    assert [row["name"] for row in shared] == [row["name"] for row in alone] == list("abc")
    for row, expected in zip(shared, alone, strict=True):
        assert float(row["psnr refined"]) == pytest.approx(float(expected["psnr refined"]), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [IMAGES, SPEECH])
def test_two_processes_test_every_item_once(trained, name, tmp_path):
    weights = ["--ckpt_path", trained(name)]
    run("test", *_config(name), *weights, NAME, "one")
    run_two([["test", *_config(name), *TWO_PROCESSES, *weights, NAME, "two"]], tmp_path)
    actual, expected = (rows(f"runs/{folder}/version_0/test_instances.csv") for folder in ("two", "one"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected]
    for row, other in zip(actual, expected, strict=True):
        for key in row.keys() - {"name", "linear code"}:
            assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-3)
