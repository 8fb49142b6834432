"""Prediction of audio and codes of audio, from the command line and in Python, with tiny models."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from coordinates import grid
from hums import HumItems, Hums, build_ipc, ipc_config
from jsonargparse import Namespace
from program import refused, rows, run, run_two

import composers
from application.shortcuts import expand_shortcuts
from composers import Refinement
from composers.codes import InstanceCode, fingerprint, read_code
from composers.construction import build, save
from datamodules.audio.prediction import AudioFiles
from datamodules.batch import Observation, Samples
from datamodules.domain import Grid
from datamodules.tiles import whole
from modalities.audio import AudioWriter, audio_psnr, encode, input_shape, render, save_wav
from tools import codes

SAMPLE_RATE = 400
HALF_LEVEL = 0.5 / 2**15 + 1e-6  # rounding error of 16-bit PCM


def _predict(weights, *args):
    """Predict from recordings with a model whose sampling rate is 400 Hz, and return the output."""
    return run("predict", "--ckpt_path", weights, "--data.sample_rate", SAMPLE_RATE, "--audio", *args)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return the checkpoint of a tiny model of one second at 400 Hz."""
    path = tmp_path_factory.mktemp("weights") / "audio.ckpt"
    save(build_ipc(), path)
    return path


@pytest.fixture
def composer(weights):
    """Return the model of the checkpoint."""
    return composers.load(weights)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _recording(samples=SAMPLE_RATE, channels=1, seed=0):
    """Return a recording ``(C, n)`` of a chirp and noise."""
    times = torch.arange(samples) / SAMPLE_RATE
    noise = torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))
    return 0.5 * torch.sin(60 * times**2 + 20 * times) + 0.05 * noise


def _write(path, values, sample_rate=SAMPLE_RATE):
    """Write a recording as a floating-point WAV file, and return it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, values.T.numpy(), sample_rate, subtype="FLOAT")
    return values


def _read(path):
    """Return the samples ``(C, n)`` and the sampling rate of an audio file."""
    values, sample_rate = soundfile.read(path, dtype="float64", always_2d=True)
    return torch.from_numpy(values.T), sample_rate


def _psnr(prediction, target):
    """Return the PSNR in dB."""
    return -10 * math.log10(np.mean((np.asarray(prediction, np.float64) - np.asarray(target, np.float64)) ** 2))


def _field(composer, code, naive_network, coords, tile=0):
    """Return the values of one tile at coordinates ``(n,)``, computed by loops."""
    with torch.no_grad():
        modulations = composer.compose({name: latent[tile : tile + 1] for name, latent in code.latents.items()})
    return naive_network(composer.network, torch.as_tensor(coords, dtype=torch.float64)[:, None], modulations, 1)[
        0, :, 0
    ]


def test_outputs_of_one_recording(weights, composer):
    target = _write("speech.wav", _recording())
    printed = _predict(weights, "speech.wav")
    names = {path.name for path in Path("predictions").iterdir()}
    assert names == {"speech.wav", "speech.png", "speech.safetensors", "predictions.csv"}
    assert soundfile.info("predictions/speech.wav").subtype == "PCM_16"
    values, sample_rate = _read("predictions/speech.wav")
    assert (sample_rate, values.shape) == (SAMPLE_RATE, (1, SAMPLE_RATE))
    code = encode(composer, "speech.wav", SAMPLE_RATE)
    assert (values - render(composer, code).clamp(-1, 1)).abs().max() <= HALF_LEVEL
    [row] = rows("predictions/predictions.csv")
    assert list(row)[:4] == ["name", "seconds", "sample_rate", "tiles"]
    assert (row["name"], row["seconds"], row["sample_rate"], row["tiles"]) == ("speech", "1.000", "400", "1")
    assert float(row["psnr"]) == pytest.approx(_psnr(values, target), abs=2e-3)
    assert float(row["silence"]) == pytest.approx(_psnr(0 * target, target), abs=6e-4)
    for key, steps in (("psnr predicted", 0), ("psnr refined", 2)):
        expected = encode(composer, "speech.wav", SAMPLE_RATE, refinement=composer.refinement.with_steps(steps))
        assert float(row[key]) == pytest.approx(_psnr(render(composer, expected), target), abs=2e-3)
    assert float(row["psnr refined"]) > float(row["psnr predicted"])
    written = read_code("predictions/speech.safetensors")
    assert torch.allclose(written.latents["patterns.1"], code.latents["patterns.1"], atol=1e-5)
    assert (written.facts["sample_rate"], written.facts["samples"], written.domain) == ("400", "400", Grid.unit(1))
    assert "PSNR in dB of 1 file(s)" in printed


def test_decoding_at_any_sampling_rate_evaluates_the_same_field(composer, naive_network):
    code = encode(composer, _recording(), SAMPLE_RATE)
    original, double = render(composer, code), render(composer, code, 2 * SAMPLE_RATE)
    assert (original.shape, double.shape) == ((1, SAMPLE_RATE), (1, 2 * SAMPLE_RATE))
    assert torch.allclose(double[:, ::2], original, atol=1e-6)
    for sample_rate, values in ((SAMPLE_RATE, original), (2 * SAMPLE_RATE, double), (300, render(composer, code, 300))):
        # Sample 0 keeps the time of sample 0 of the model.
        times = np.arange(values.shape[1]) / sample_rate + 0.5 / SAMPLE_RATE
        assert np.abs(values[0].numpy() - _field(composer, code, naive_network, 2 * times - 1).numpy()).max() < 1e-5
    with torch.no_grad():
        expected = composer.render(composer.compose(code.latents), grid((SAMPLE_RATE,)))
    assert torch.allclose(original, expected[0].mT, atol=1e-6)


def test_three_seconds_have_the_domain_minus_three_to_three(naive_network):
    composer = build_ipc(signal_shape=(1, 1200))
    code = encode(composer, _recording(1200), SAMPLE_RATE)
    assert code.domain == Grid(((-3.0, 3.0),))
    code.save("long.safetensors")
    loaded = read_code("long.safetensors")
    assert loaded.domain == code.domain
    values = render(composer, loaded, 100)
    times = np.arange(300) / 100 + 0.5 / SAMPLE_RATE
    assert np.abs(values[0].numpy() - _field(composer, code, naive_network, 2 * times - 3).numpy()).max() < 5e-5
    assert render(composer, loaded).shape == (1, 1200)


def test_overlapping_tiles_are_blended(composer, naive_network):
    code = encode(composer, _recording(550), SAMPLE_RATE)
    assert code.boxes == [((0, 400),), ((150, 550),)]
    for sample_rate in (SAMPLE_RATE, 1000):
        values = render(composer, code, sample_rate)[0].numpy()
        assert len(values) == 550 * sample_rate // SAMPLE_RATE
        positions = np.arange(len(values)) * SAMPLE_RATE / sample_rate + 0.5
        left, right = (_field(composer, code, naive_network, 2 * (positions - start) / 400 - 1, tile).numpy()
                       for tile, start in enumerate((0, 150)))  # fmt: skip
        ramp = ((positions - 150) / 250).clip(0, 1)
        weight = ramp**2 * (3 - 2 * ramp)
        weight[positions < 150], weight[positions >= 400] = 0, 1
        assert np.abs(values - ((1 - weight) * left + weight * right)).max() < 1e-5


@pytest.mark.parametrize("sample_rate", [400, 137, 1000])
def test_blended_tiles_of_a_constant_are_constant(composer, sample_rate):
    with torch.no_grad():
        composer.network.weights["2"].zero_()
        composer.network.biases["2"].fill_(0.25)
    code = encode(composer, _recording(1333), SAMPLE_RATE, refinement=Refinement(steps=0))
    assert len(code.boxes) == 5
    values = render(composer, code, sample_rate)
    assert values.shape == (1, round(1333 * sample_rate / 400))
    assert (values - 0.25).abs().max() < 1e-6


def test_decoding_memory_is_bounded(composer):
    code = encode(composer, _recording(900), SAMPLE_RATE)
    assert torch.allclose(render(composer, code, max_memory=0.01), render(composer, code), atol=1e-6)
    with pytest.raises(ValueError, match="max_memory is 1e-05 MB"):
        render(composer, code, max_memory=1e-5)


def test_padding_is_masked(composer):
    values = _recording(250)
    code = encode(composer, values, SAMPLE_RATE)
    assert (code.shape, code.boxes) == ((250,), [((0, 400),)])
    assert render(composer, code).shape == (1, 250)
    signal = torch.cat([values, torch.zeros(1, 150)], dim=1)[None]
    with torch.no_grad():
        predicted = composer.encode(Observation(signal))
    expected = composer.refine(predicted, Samples(grid((400,))[:250], values.mT[None]))[2]
    assert torch.allclose(code.latents["patterns.1"], expected["patterns.1"], atol=1e-5)
    unmasked = composer.refine(predicted, Samples(grid((400,)), signal.mT))[2]
    assert not torch.allclose(code.latents["patterns.1"], unmasked["patterns.1"], atol=1e-3)
    _write("short.wav", values)
    data = AudioFiles(["short.wav"], (1, 400), SAMPLE_RATE)
    data.setup("predict")
    [batch] = [data.to_coordinates(batch) for batch in data.predict_dataloader()]
    with torch.no_grad():
        latents = composer.predict_step(batch, 0)["latents"][2]
    assert torch.allclose(latents["patterns.1"], expected["patterns.1"], atol=1e-5)


def test_folder_with_mixed_formats_at_another_sampling_rate(weights, composer):
    _write("in/sub/stereo.wav", _recording(801, channels=2), 2 * SAMPLE_RATE)
    target = _write("in/long.wav", _recording(1000))
    soundfile.write("in/long.flac", _recording(300)[0].numpy(), SAMPLE_RATE)
    Path("in/text.wav").write_text("hello")
    Path("in/empty.wav").touch()
    _write("in/out/long.wav", _recording(100))  # of an earlier prediction
    Path("in/out/predictions.csv").touch()
    options = ["--output", "in/out", "--steps", 0, "--sample_rate", 1200, "--wav_bits", 24]
    printed = _predict(weights, "in", *options)
    table = {row["name"]: row for row in rows("in/out/predictions.csv")}
    assert list(table) == ["long_flac", "long_wav", "sub/stereo"]
    assert [row["tiles"] for row in table.values()] == ["1", "3", "2"]
    assert [row["sample_rate"] for row in table.values()] == ["400", "400", "800"]
    assert table["sub/stereo"]["notes"] == "2 channels mixed to one; resampled from 800 to 400 Hz"
    assert table["long_wav"]["notes"] == "from in/long.wav"
    for name, samples in (("sub/stereo", 1202), ("long_wav", 3000), ("long_flac", 900)):
        assert soundfile.info(f"in/out/{name}.wav").subtype == "PCM_24"
        values, sample_rate = _read(f"in/out/{name}.wav")
        assert (sample_rate, tuple(values.shape)) == (1200, (1, samples))
    code = encode(composer, "in/long.wav", SAMPLE_RATE, refinement=Refinement(steps=0))
    values, _ = _read("in/out/long_wav.wav")
    assert (values - render(composer, code, 1200).clamp(-1, 1)).abs().max() <= 0.5 / 2**23 + 1e-6
    row = table["long_wav"]
    assert (row["refinement steps"], row["psnr predicted"]) == ("0", row["psnr refined"])
    assert float(row["psnr"]) == pytest.approx(_psnr(render(composer, code).clamp(-1, 1), target), abs=2e-3)
    assert "Skipped 2:" in printed
    assert "in/text.wav" in printed
    assert "in/empty.wav is empty" in printed


def test_sampling_rate_of_the_model_can_be_set():
    _write("speech.wav", _recording(500))
    data = AudioFiles("speech.wav", (1, 400), 200)
    data.setup("predict")
    assert (data.spec.domain, data.sample_rates) == (Grid(((-2.0, 2.0),)), {"speech": 400})
    [batch] = [data.to_coordinates(batch) for batch in data.predict_dataloader()]
    assert torch.equal(batch.query.coords, grid((400,), -2, 2))
    assert batch.query.mask.sum().item() == 250
    assert not batch.observation.signal[..., 250:].any()


@pytest.mark.slow
def test_predictions_are_reproducible(weights):
    _write("speech.wav", _recording(700))
    for folder in ("first", "second"):
        _predict(weights, "speech.wav", "--output", folder)
    names = sorted(path.name for path in Path("first").iterdir())
    assert len(names) == 4
    for name in names:
        if not name.endswith(".safetensors"):  # its metadata is unordered
            assert Path("first", name).read_bytes() == Path("second", name).read_bytes()
    first, second = (read_code(f"{folder}/speech.safetensors") for folder in ("first", "second"))
    assert torch.equal(first.latents["patterns.1"], second.latents["patterns.1"])
    assert (first.facts, first.boxes) == (second.facts, second.boxes)


@pytest.mark.slow
def test_predict_on_the_test_split_of_a_data_set(tmp_path):
    save(build_ipc(signal_shape=(1, 200)), "half.ckpt")
    Path("hums.yaml").write_text(f"data: {{class_path: {Hums.__module__}.Hums}}\n")
    run("predict", "--ckpt_path", "half.ckpt", "--config", "hums.yaml")
    first, second = rows("predictions/predictions.csv")
    assert (first["name"], first["seconds"], first["sample_rate"]) == ("hum0", "0.500", "400")
    assert (second["name"], second["seconds"], second["sample_rate"]) == ("hum1", "0.375", "400")
    assert float(second["silence"]) == pytest.approx(_psnr(0, HumItems()[1].values[:, :150]), abs=1e-3)
    assert _read("predictions/hum1.wav")[0].shape == (1, 150)


@pytest.mark.slow
def test_predictions_of_two_processes_equal_those_of_one(weights, tmp_path):
    for index in range(3):
        _write(f"in/{index}.wav", _recording(300 + 400 * index, seed=index))
    options = ["--audio", "in", "--ckpt_path", weights, "--data.batch_size", 2, "--data.sample_rate", SAMPLE_RATE]
    run("predict", *options, "--output", "one")
    two_processes = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    printed = run_two([["predict", *options, "--output", "two", *two_processes]], tmp_path)
    assert printed.count("Audio, spectrograms, codes") == 1
    assert [row["name"] for row in rows("two/predictions.csv")] == ["0", "1", "2"]
    for row in rows("one/predictions.csv"):
        actual, expected = (_read(f"{folder}/{row['name']}.wav")[0] for folder in ("two", "one"))
        assert (actual - expected).abs().max() < 1e-3


def test_predict_without_a_readable_recording_raises(weights):
    Path("text.wav").write_text("hello")
    message = refused("predict", "--ckpt_path", weights, "--audio", "text.wav")
    assert "No readable recording in text.wav: pass audio files or folders with --audio.\n  text.wav" in message
    assert not Path("predictions").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio": ["a.wav"], "size": 9}, "--size is an option for images, but the input is audio: remove it."),
        ({"audio": ["a.wav"], "tile": True}, "--tile is an option for images, but the input is audio: remove it."),
        ({"audio": ["a.wav"], "images": ["a.png"]}, "--images is an option for images"),
        (
            {"images": ["a.png"], "sample_rate": 8000},
            "--sample_rate is an option for audio, but the input is images: remove it.",
        ),
        (
            {"audio": ["a.wav"]},
            "--audio sets an argument of datamodules.audio.prediction.AudioFiles, which this --config replaces",
        ),
    ],
    ids=["size", "tile", "images", "sample_rate", "replaced"],
)
def test_options_of_another_modality_raise(options, message):
    names = ("images", "size", "scale", "tile", "tile_size", "audio", "sample_rate", "output", "steps")
    config = Namespace(dict.fromkeys(names) | options)
    config.trainer, config.model = Namespace(callbacks=[]), Namespace(init_args=Namespace())
    config.data = Namespace(class_path="datamodules.SamplePhotos", init_args=Namespace())
    with pytest.raises(ValueError, match=re.escape(message)):
        expand_shortcuts(config)


def test_arguments_out_of_range_raise():
    with pytest.raises(ValueError, match="sample_rate is 0; it must be at least 1, the samples per second"):
        AudioFiles(sample_rate=0)
    with pytest.raises(ValueError, match="sample_rate is 0; it must be at least 1"):
        AudioWriter(sample_rate=0)
    with pytest.raises(ValueError, match="wav_bits is 8; it must be 16 or 24"):
        AudioWriter(wav_bits=8)


def test_recordings_require_a_model_of_audio():
    with pytest.raises(ValueError, match=r"signal_shape is \[3, 64, 64\]; a model of audio has \[channels, samples\]"):
        AudioFiles(signal_shape=[3, 64, 64]).signal_shape  # noqa: B018 - it is a property
    with pytest.raises(ValueError, match="takes signals of shape"):
        encode(build(ipc_config((3, 100, 100))), _recording(), SAMPLE_RATE)
    assert input_shape(build_ipc()) == (1, 400)
    with pytest.raises(ValueError, match=r"The audio file none\.wav does not exist"):
        encode(build_ipc(), "none.wav", SAMPLE_RATE)


def test_channels_are_mixed_or_repeated(composer):
    stereo = build_ipc(signal_shape=(2, 400))
    _write("mono.wav", _recording())
    _write("three.wav", _recording(channels=3))
    both = _write("both.wav", _recording(channels=2))
    data = AudioFiles(["both.wav", "mono.wav", "three.wav"], (2, 400), SAMPLE_RATE)
    data.setup("predict")
    assert data.notes == {"both": "", "mono": "one channel repeated 2 times"}
    assert "three.wav has 3 channels, but the model takes 2" in data.skipped["three.wav"]
    assert torch.equal(data.original("both"), both)
    values = render(stereo, encode(stereo, "both.wav", SAMPLE_RATE))
    save_wav(values, SAMPLE_RATE, Path("out.wav"))
    assert (_read("out.wav")[0] - values.clamp(-1, 1)).abs().max() <= HALF_LEVEL
    with pytest.raises(ValueError, match=r"The recording has shape \(2, 400\); this model takes \(1, n\)"):
        encode(composer, both, SAMPLE_RATE)
    with pytest.raises(ValueError, match="AudioFiles supports prediction only, not fit"):
        data.setup("fit")


@pytest.mark.parametrize(("bits", "subtype"), [(16, "PCM_16"), (24, "PCM_24")])
def test_written_wav_is_read_back(bits, subtype):
    values = torch.rand(2, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    values[:, :4] = torch.tensor([[1.5, -1.5, 0.0, -1.0], [1.0, 1e-9, -1e-9, 0.5]])
    save_wav(values, 44100, Path("new/out.wav"), bits)
    actual, sample_rate = _read("new/out.wav")
    assert (sample_rate, soundfile.info("new/out.wav").subtype) == (44100, subtype)
    full = 2 ** (bits - 1)
    assert (actual - values.clamp(-1, 1 - 1 / full)).abs().max() <= 0.5 / full
    assert [path.name for path in Path("new").iterdir()] == ["out.wav"]
    with pytest.raises(ValueError, match="would exceed 4 GB"):
        save_wav(torch.zeros(1).expand(1, 2**32), 44100, Path("huge.wav"), bits)


def test_psnr_is_computed_on_clipped_values():
    prediction, target = torch.tensor([[2.0, -2.0, 0.3]]), torch.tensor([[1.0, -1.0, 0.0]])
    assert audio_psnr(prediction, target) == pytest.approx(-10 * math.log10(0.09 / 3), abs=1e-5)


def _codes(capsys, *args):
    """Run ``python -m tools.codes`` and return its output."""
    codes.main([str(argument) for argument in args])
    return capsys.readouterr().out


def _codes_error(*args):
    """Return the error message of ``python -m tools.codes``."""
    with pytest.raises(SystemExit) as caught:
        codes.main([str(argument) for argument in args])
    message = caught.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_codes_are_decoded_without_the_recording(weights, composer, capsys):
    _write("speech.wav", _recording(801), 2 * SAMPLE_RATE)
    code = encode(composer, "speech.wav", SAMPLE_RATE)
    code.save("speech.safetensors")
    options = ["speech.safetensors", "--checkpoint", weights]
    assert "Wrote speech.800.wav: 1.00 s at 800 Hz" in _codes(capsys, "render", *options)
    for sample_rate, frames in ((800, 801), (1200, 1202)):
        _codes(capsys, "render", *options, "--sample_rate", sample_rate, "--output", f"out/{sample_rate}.wav")
        values, actual_sample_rate = _read(f"out/{sample_rate}.wav")
        assert (actual_sample_rate, values.shape[1]) == (sample_rate, frames)
        assert (values - render(composer, code, sample_rate).clamp(-1, 1)).abs().max() <= HALF_LEVEL
    printed = _codes(capsys, "info", *options)
    for line in ("shape:             401\n", "sample_rate:       800\n", "samples:           801", "that of"):
        assert line in printed


def test_interpolation_between_two_recordings(weights, composer, capsys):
    ends = [encode(composer, _recording(seed=seed), SAMPLE_RATE) for seed in range(2)]
    for name, code in zip("ab", ends, strict=True):
        code.save(f"{name}.safetensors")
    options = ["a.safetensors", "b.safetensors", "--checkpoint", weights, "--frames", 3, "--sample_rate", 800]
    assert "Wrote 3 frames of 1.00 s at 800 Hz into interpolation." in _codes(capsys, "interpolate", *options)
    assert sorted(path.name for path in Path("interpolation").iterdir()) == ["000.wav", "001.wav", "002.wav"]
    halfway = {name: (latent + ends[1].latents[name]) / 2 for name, latent in ends[0].latents.items()}
    expected = [
        ends[0],
        InstanceCode(halfway, ends[0].boxes, (400,), fingerprint(composer), domain=Grid.unit(1)),
        ends[1],
    ]
    for frame, code in enumerate(expected):
        values, sample_rate = _read(f"interpolation/{frame:03d}.wav")
        assert sample_rate == 800
        assert (values - render(composer, code, 800).clamp(-1, 1)).abs().max() <= HALF_LEVEL + 1e-5


def test_codes_of_audio_with_wrong_options_raise(weights, composer, capsys):
    code = encode(composer, _recording(), SAMPLE_RATE)
    code.save("a.safetensors")
    options = ["render", "a.safetensors", "--checkpoint", weights]
    assert "--size does not apply to codes of audio: pass --sample_rate, or omit the option." in _codes_error(
        *options, "--size", 9
    )
    for sample_rate, message in ((0, "sample_rate is 0; it must be at least 1"), (10**15, "do not fit into memory")):
        with pytest.raises(ValueError, match=message):
            render(composer, code, sample_rate)
    images = build(ipc_config((3, 100, 100)))
    save(images, "images.ckpt")
    latents = {"patterns.1": torch.zeros(1, *code.latents["patterns.1"].shape[1:])}
    image = InstanceCode(latents, [whole((9, 9))], (9, 9), fingerprint(images), "cat", domain=Grid.unit(2))
    image.save("cat.safetensors")
    options = ["render", "cat.safetensors", "--checkpoint", "images.ckpt"]
    assert (
        "--sample_rate does not apply to codes of images: pass --size or --scale, or omit the option."
        in _codes_error(*options, "--sample_rate", 8000)
    )
    with pytest.raises(ValueError, match="not of audio"):
        render(images, image)
