"""Sound in and out: ``cli.py predict --audio``, ``python -m tools.codes`` and the same in Python, on tiny models."""

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
from program import refused, rows, run, run_process

import composers
from application.shortcuts import expand_shortcuts
from composers import Refinement
from composers.checkpoint import build, save
from composers.codes import InstanceCode, fingerprint, read_code
from datamodules.audio.prediction import AudioFiles
from datamodules.batch import Observation, Samples
from datamodules.domain import Grid
from datamodules.tiles import whole
from modalities.audio import AudioWriter, audio_psnr, encode, input_shape, render, save_wav
from tools import codes

RATE = 400
HALF_LEVEL = 0.5 / 2**15 + 1e-6


def _predict(weights, *args):
    """Predict from recordings with a model whose rate is 400 Hz, and return what that printed."""
    return run("predict", "--ckpt_path", weights, "--data.rate", RATE, "--audio", *args)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return the checkpoint of a tiny model of one second at 400 Hz."""
    path = tmp_path_factory.mktemp("weights") / "sound.ckpt"
    save(build_ipc(), path)
    return path


@pytest.fixture
def composer(weights):
    """Return the model of the checkpoint."""
    return composers.load(weights)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _recording(samples=RATE, channels=1, seed=0):
    """Return a recording ``(C, n)`` of a chirp and noise."""
    times = torch.arange(samples) / RATE
    noise = torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))
    return 0.5 * torch.sin(60 * times**2 + 20 * times) + 0.05 * noise


def _write(path, values, rate=RATE):
    """Write a recording as a WAV of floating point, and return it as it was written."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, values.T.numpy(), rate, subtype="FLOAT")
    return values


def _heard(path):
    """Return a sound file as ``(C, n)`` and its rate."""
    values, rate = soundfile.read(path, dtype="float64", always_2d=True)
    return torch.from_numpy(values.T), rate


def _psnr(seen, true):
    """Return the PSNR in dB."""
    return -10 * math.log10(np.mean((np.asarray(seen, np.float64) - np.asarray(true, np.float64)) ** 2))


def _field(composer, code, naive_network, coords, tile=0):
    """Return the values of one tile at coordinates ``(n,)``, by loops."""
    with torch.no_grad():
        modulations = composer.compose({name: latent[tile : tile + 1] for name, latent in code.latents.items()})
    return naive_network(composer.network, torch.as_tensor(coords, dtype=torch.float64)[:, None], modulations, 1)[
        0, :, 0
    ]


def test_one_recording(weights, composer):
    true = _write("speech.wav", _recording())
    printed = _predict(weights, "speech.wav")
    found = {path.name for path in Path("predictions").iterdir()}
    assert found == {"speech.wav", "speech.png", "speech.safetensors", "predictions.csv"}
    assert soundfile.info("predictions/speech.wav").subtype == "PCM_16"
    seen, rate = _heard("predictions/speech.wav")
    assert (rate, seen.shape) == (RATE, (1, RATE))
    code = encode(composer, "speech.wav", RATE)
    assert (seen - render(composer, code).clamp(-1, 1)).abs().max() <= HALF_LEVEL
    [row] = rows("predictions/predictions.csv")
    assert list(row)[:4] == ["name", "seconds", "rate", "tiles"]
    assert (row["name"], row["seconds"], row["rate"], row["tiles"]) == ("speech", "1.000", "400", "1")
    assert float(row["psnr"]) == pytest.approx(_psnr(seen, true), abs=2e-3)
    assert float(row["silence"]) == pytest.approx(_psnr(0 * true, true), abs=6e-4)
    for key, steps in (("psnr predicted", 0), ("psnr refined", 2)):
        found = encode(composer, "speech.wav", RATE, refinement=composer.refinement.with_steps(steps))
        assert float(row[key]) == pytest.approx(_psnr(render(composer, found), true), abs=2e-3)
    assert float(row["psnr refined"]) > float(row["psnr predicted"])
    written = read_code("predictions/speech.safetensors")
    assert torch.allclose(written.latents["patterns.1"], code.latents["patterns.1"], atol=1e-5)
    assert (written.facts["rate"], written.facts["samples"], written.domain) == ("400", "400", Grid.unit(1))
    assert "PSNR in dB of 1 file(s)" in printed


def test_every_rate_is_the_same_function(composer, naive_network):
    code = encode(composer, _recording(), RATE)
    own, double = render(composer, code), render(composer, code, 2 * RATE)
    assert (own.shape, double.shape) == ((1, RATE), (1, 2 * RATE))
    assert torch.allclose(double[:, ::2], own, atol=1e-6)
    for rate, values in ((RATE, own), (2 * RATE, double), (300, render(composer, code, 300))):
        times = np.arange(values.shape[1]) / rate + 0.5 / RATE  # sample 0 stays where the model saw sample 0
        assert np.abs(values[0].numpy() - _field(composer, code, naive_network, 2 * times - 1).numpy()).max() < 1e-5
    with torch.no_grad():
        seen = composer.render(composer.compose(code.latents), grid((RATE,)))
    assert torch.allclose(own, seen[0].mT, atol=1e-6)


def test_three_seconds_have_coordinates_of_three(naive_network):
    composer = build_ipc(signal_shape=(1, 1200))
    code = encode(composer, _recording(1200), RATE)
    assert code.domain == Grid(((-3.0, 3.0),))
    code.save("long.safetensors")
    again = read_code("long.safetensors")
    assert again.domain == code.domain
    values = render(composer, again, 100)
    times = np.arange(300) / 100 + 0.5 / RATE
    assert np.abs(values[0].numpy() - _field(composer, code, naive_network, 2 * times - 3).numpy()).max() < 5e-5
    assert render(composer, again).shape == (1, 1200)


def test_tiles_are_blended(composer, naive_network):
    code = encode(composer, _recording(550), RATE)
    assert code.boxes == [((0, 400),), ((150, 550),)]
    for rate in (RATE, 1000):
        values = render(composer, code, rate)[0].numpy()
        assert len(values) == 550 * rate // RATE
        places = np.arange(len(values)) * RATE / rate + 0.5
        left, right = (_field(composer, code, naive_network, 2 * (places - start) / 400 - 1, tile).numpy()
                       for tile, start in enumerate((0, 150)))  # fmt: skip
        ramp = ((places - 150) / 250).clip(0, 1)
        share = ramp**2 * (3 - 2 * ramp)
        share[places < 150], share[places >= 400] = 0, 1
        assert np.abs(values - ((1 - share) * left + share * right)).max() < 1e-5


@pytest.mark.parametrize("rate", [400, 137, 1000])
def test_tiles_of_a_constant_are_the_constant(composer, rate):
    with torch.no_grad():
        composer.network.weights["2"].zero_()
        composer.network.biases["2"].fill_(0.25)
    code = encode(composer, _recording(1333), RATE, refinement=Refinement(steps=0))
    assert len(code.boxes) == 5
    values = render(composer, code, rate)
    assert values.shape == (1, round(1333 * rate / 400))
    assert (values - 0.25).abs().max() < 1e-6


def test_a_long_recording_does_not_need_memory(composer):
    code = encode(composer, _recording(900), RATE)
    assert torch.allclose(render(composer, code, max_memory=0.01), render(composer, code), atol=1e-6)
    with pytest.raises(ValueError, match="max_memory is 1e-05 MB"):
        render(composer, code, max_memory=1e-5)


def test_padding_counts_nowhere(composer):
    true = _recording(250)
    code = encode(composer, true, RATE)
    assert (code.shape, code.boxes) == ((250,), [((0, 400),)])
    assert render(composer, code).shape == (1, 250)
    signal = torch.cat([true, torch.zeros(1, 150)], dim=1)[None]
    with torch.no_grad():
        predicted = composer.encode(Observation(signal))
    wanted = composer.refine(predicted, Samples(grid((400,))[:250], true.mT[None]))[2]
    assert torch.allclose(code.latents["patterns.1"], wanted["patterns.1"], atol=1e-5)
    padded = composer.refine(predicted, Samples(grid((400,)), signal.mT))[2]
    assert not torch.allclose(code.latents["patterns.1"], padded["patterns.1"], atol=1e-3)
    _write("short.wav", true)
    data = AudioFiles(["short.wav"], (1, 400), RATE)
    data.setup("predict")
    [batch] = [data.to_coordinates(batch) for batch in data.predict_dataloader()]
    with torch.no_grad():
        found = composer.predict_step(batch, 0)["latents"][2]
    assert torch.allclose(found["patterns.1"], wanted["patterns.1"], atol=1e-5)


def test_a_folder_of_all_kinds_at_another_rate(weights, composer):
    _write("in/sub/stereo.wav", _recording(801, channels=2), 2 * RATE)
    true = _write("in/long.wav", _recording(1000))
    soundfile.write("in/long.flac", _recording(300)[0].numpy(), RATE)
    Path("in/text.wav").write_text("hello")
    Path("in/empty.wav").touch()
    _write("in/out/long.wav", _recording(100))  # of an earlier prediction
    Path("in/out/predictions.csv").touch()
    given = ["--output", "in/out", "--steps", 0, "--rate", 1200, "--bits", 24]
    printed = _predict(weights, "in", *given)
    table = {row["name"]: row for row in rows("in/out/predictions.csv")}
    assert list(table) == ["long_flac", "long_wav", "sub/stereo"]
    assert [row["tiles"] for row in table.values()] == ["1", "3", "2"]
    assert [row["rate"] for row in table.values()] == ["400", "400", "800"]
    assert table["sub/stereo"]["notes"] == "2 channels mixed to one; 800 Hz made 400"
    assert table["long_wav"]["notes"] == "from in/long.wav"
    for name, samples in (("sub/stereo", 1202), ("long_wav", 3000), ("long_flac", 900)):
        assert soundfile.info(f"in/out/{name}.wav").subtype == "PCM_24"
        values, rate = _heard(f"in/out/{name}.wav")
        assert (rate, tuple(values.shape)) == (1200, (1, samples))
    code = encode(composer, "in/long.wav", RATE, refinement=Refinement(steps=0))
    values, _ = _heard("in/out/long_wav.wav")
    assert (values - render(composer, code, 1200).clamp(-1, 1)).abs().max() <= 0.5 / 2**23 + 1e-6
    row = table["long_wav"]
    assert (row["refinement steps"], row["psnr predicted"]) == ("0", row["psnr refined"])
    assert float(row["psnr"]) == pytest.approx(_psnr(render(composer, code).clamp(-1, 1), true), abs=2e-3)
    assert "Skipped 2:" in printed
    assert "in/text.wav" in printed
    assert "in/empty.wav is empty" in printed


def test_the_rate_of_the_model_is_the_users():
    _write("speech.wav", _recording(500))
    data = AudioFiles("speech.wav", (1, 400), 200)
    data.setup("predict")
    assert (data.spec.domain, data.rates) == (Grid(((-2.0, 2.0),)), {"speech": 400})
    [batch] = [data.to_coordinates(batch) for batch in data.predict_dataloader()]
    assert torch.equal(batch.query.coords, grid((400,), -2, 2))
    assert batch.query.mask.sum().item() == 250
    assert not batch.observation.signal[..., 250:].any()


@pytest.mark.slow
def test_two_runs_write_the_same(weights):
    _write("speech.wav", _recording(700))
    for folder in ("one", "two"):
        _predict(weights, "speech.wav", "--output", folder)
    names = sorted(path.name for path in Path("one").iterdir())
    assert len(names) == 4
    for name in names:
        if not name.endswith(".safetensors"):  # whose metadata have no order
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    one, two = (read_code(f"{folder}/speech.safetensors") for folder in ("one", "two"))
    assert torch.equal(one.latents["patterns.1"], two.latents["patterns.1"])
    assert (one.facts, one.boxes) == (two.facts, two.boxes)


@pytest.mark.slow
def test_the_recordings_of_a_data_set_are_predicted_too(tmp_path):
    save(build_ipc(signal_shape=(1, 200)), "half.ckpt")
    Path("hums.yaml").write_text(f"data: {{class_path: {Hums.__module__}.Hums}}\n")
    run("predict", "--ckpt_path", "half.ckpt", "--config", "hums.yaml")
    first, second = rows("predictions/predictions.csv")
    assert (first["name"], first["seconds"], first["rate"]) == ("hum0", "0.500", "400")
    assert (second["name"], second["seconds"], second["rate"]) == ("hum1", "0.375", "400")
    assert float(second["silence"]) == pytest.approx(_psnr(0, HumItems()[1].values[:, :150]), abs=1e-3)
    assert _heard("predictions/hum1.wav")[0].shape == (1, 150)


@pytest.mark.slow
def test_two_processes_predict_the_same(weights, tmp_path):
    for index in range(3):
        _write(f"in/{index}.wav", _recording(300 + 400 * index, seed=index))
    given = ["--audio", "in", "--ckpt_path", weights, "--data.batch_size", 2, "--data.rate", RATE]
    run("predict", *given, "--output", "one")
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    printed = run_process("predict", *given, "--output", "two", *two, cwd=tmp_path)
    assert printed.count("Audio, spectrograms, codes") == 1
    assert [row["name"] for row in rows("two/predictions.csv")] == ["0", "1", "2"]
    for row in rows("one/predictions.csv"):
        seen, wanted = (_heard(f"{folder}/{row['name']}.wav")[0] for folder in ("two", "one"))
        assert (seen - wanted).abs().max() < 1e-3


def test_mistakes_with_recordings(weights):
    Path("text.wav").write_text("hello")
    given = ["--ckpt_path", weights, "--audio"]
    message = refused("predict", *given, "text.wav")
    assert "No recording to predict from in text.wav: name files or folders with --audio.\n  text.wav" in message
    assert not Path("predictions").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio": ["a.wav"], "size": 9}, "--size is of images, and this predicts from audio: leave it out."),
        ({"audio": ["a.wav"], "tile": True}, "--tile is of images, and this predicts from audio: leave it out."),
        ({"audio": ["a.wav"], "images": ["a.png"]}, "--images is of images"),
        ({"images": ["a.png"], "rate": 8000}, "--rate is of audio, and this predicts from images: leave it out."),
        (
            {"audio": ["a.wav"]},
            "--audio serves datamodules.audio.prediction.AudioFiles, which this --config replaces",
        ),
    ],
    ids=["size", "tile", "images", "rate", "replaced"],
)
def test_options_of_the_other_kind(options, message):
    names = ("images", "size", "scale", "tile", "tile_size", "audio", "rate", "output", "steps")
    config = Namespace(dict.fromkeys(names) | options)
    config.trainer, config.model = Namespace(callbacks=[]), Namespace(init_args=Namespace())
    config.data = Namespace(class_path="datamodules.SamplePhotos", init_args=Namespace())
    with pytest.raises(ValueError, match=re.escape(message)):
        expand_shortcuts(config)


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="rate is 0; give the samples per second that the model was trained with"):
        AudioFiles(rate=0)
    with pytest.raises(ValueError, match="rate is 0; it must be at least 1"):
        AudioWriter(rate=0)
    with pytest.raises(ValueError, match="bits is 8; a WAV is written with 16 or 24"):
        AudioWriter(bits=8)


def test_recordings_need_a_model_of_sound():
    with pytest.raises(ValueError, match=r"signal_shape is \[3, 64, 64\]: recordings go to a model of audio"):
        AudioFiles(signal_shape=[3, 64, 64]).signal_shape  # noqa: B018 - it is a property
    with pytest.raises(ValueError, match="takes signals of shape"):
        encode(build(ipc_config((3, 100, 100))), _recording(), RATE)
    assert input_shape(build_ipc()) == (1, 400)
    with pytest.raises(ValueError, match="There is no sound file none"):
        encode(build_ipc(), "none.wav", RATE)


def test_channels(composer):
    stereo = build_ipc(signal_shape=(2, 400))
    _write("mono.wav", _recording())
    _write("three.wav", _recording(channels=3))
    both = _write("both.wav", _recording(channels=2))
    data = AudioFiles(["both.wav", "mono.wav", "three.wav"], (2, 400), RATE)
    data.setup("predict")
    assert data.notes == {"both": "", "mono": "one channel repeated 2 times"}
    assert "three.wav has 3 channels, the model takes 2" in data.skipped["three.wav"]
    assert torch.equal(data.original("both"), both)
    values = render(stereo, encode(stereo, "both.wav", RATE))
    save_wav(values, RATE, Path("out.wav"))
    assert (_heard("out.wav")[0] - values.clamp(-1, 1)).abs().max() <= HALF_LEVEL
    with pytest.raises(ValueError, match=r"The recording has shape \(2, 400\): this model takes \(1, n\)"):
        encode(composer, both, RATE)
    with pytest.raises(ValueError, match="AudioFiles serves prediction, not fit"):
        data.setup("fit")


@pytest.mark.parametrize(("bits", "subtype"), [(16, "PCM_16"), (24, "PCM_24")])
def test_a_wav_is_what_was_written(bits, subtype):
    values = torch.rand(2, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    values[:, :4] = torch.tensor([[1.5, -1.5, 0.0, -1.0], [1.0, 1e-9, -1e-9, 0.5]])
    save_wav(values, 44100, Path("new/out.wav"), bits)
    seen, rate = _heard("new/out.wav")
    assert (rate, soundfile.info("new/out.wav").subtype) == (44100, subtype)
    full = 2 ** (bits - 1)
    assert (seen - values.clamp(-1, 1 - 1 / full)).abs().max() <= 0.5 / full
    assert [path.name for path in Path("new").iterdir()] == ["out.wav"]
    with pytest.raises(ValueError, match="longer than a WAV can be"):
        save_wav(torch.zeros(1).expand(1, 2**32), 44100, Path("huge.wav"), bits)


def test_psnr_is_that_of_what_is_heard():
    seen, true = torch.tensor([[2.0, -2.0, 0.3]]), torch.tensor([[1.0, -1.0, 0.0]])
    assert audio_psnr(seen, true) == pytest.approx(-10 * math.log10(0.09 / 3), abs=1e-5)


def _codes(capsys, *args):
    """Run ``python -m tools.codes`` and return what it printed."""
    codes.main([str(argument) for argument in args])
    return capsys.readouterr().out


def _codes_refused(*args):
    """Return the message of a command that a user got wrong."""
    with pytest.raises(SystemExit) as ended:
        codes.main([str(argument) for argument in args])
    message = ended.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_codes_are_rendered_without_their_recording(weights, composer, capsys):
    _write("speech.wav", _recording(801), 2 * RATE)
    code = encode(composer, "speech.wav", RATE)
    code.save("speech.safetensors")
    given = ["speech.safetensors", "--checkpoint", weights]
    assert "Wrote speech.800.wav: 1.00 s at 800 Hz" in _codes(capsys, "render", *given)
    for rate, frames in ((800, 801), (1200, 1202)):
        _codes(capsys, "render", *given, "--rate", rate, "--output", f"out/{rate}.wav")
        seen, found = _heard(f"out/{rate}.wav")
        assert (found, seen.shape[1]) == (rate, frames)
        assert (seen - render(composer, code, rate).clamp(-1, 1)).abs().max() <= HALF_LEVEL
    printed = _codes(capsys, "info", *given)
    for line in ("shape:             401\n", "rate:              800\n", "samples:           801", "that of"):
        assert line in printed


def test_frames_between_two_sounds(weights, composer, capsys):
    ends = [encode(composer, _recording(seed=seed), RATE) for seed in range(2)]
    for name, code in zip("ab", ends, strict=True):
        code.save(f"{name}.safetensors")
    given = ["a.safetensors", "b.safetensors", "--checkpoint", weights, "--frames", 3, "--rate", 800]
    assert "Wrote 3 frames of 1.00 s at 800 Hz into interpolation." in _codes(capsys, "interpolate", *given)
    assert sorted(path.name for path in Path("interpolation").iterdir()) == ["000.wav", "001.wav", "002.wav"]
    halfway = {name: (latent + ends[1].latents[name]) / 2 for name, latent in ends[0].latents.items()}
    wanted = [
        ends[0],
        InstanceCode(halfway, ends[0].boxes, (400,), fingerprint(composer), domain=Grid.unit(1)),
        ends[1],
    ]
    for frame, code in enumerate(wanted):
        seen, rate = _heard(f"interpolation/{frame:03d}.wav")
        assert rate == 800
        assert (seen - render(composer, code, 800).clamp(-1, 1)).abs().max() <= HALF_LEVEL + 1e-5


def test_mistakes_with_codes_of_sound(weights, composer, capsys):
    code = encode(composer, _recording(), RATE)
    code.save("a.safetensors")
    given = ["render", "a.safetensors", "--checkpoint", weights]
    assert "This code is a code of audio, which has no --size: give --rate, or nothing." in _codes_refused(
        *given, "--size", 9
    )
    for rate, message in ((0, "rate is 0; it must be at least 1"), (10**15, "do not fit into memory")):
        with pytest.raises(ValueError, match=message):
            render(composer, code, rate)
    images = build(ipc_config((3, 100, 100)))
    save(images, "images.ckpt")
    latents = {"patterns.1": torch.zeros(1, *code.latents["patterns.1"].shape[1:])}
    image = InstanceCode(latents, [whole((9, 9))], (9, 9), fingerprint(images), "cat", domain=Grid.unit(2))
    image.save("p.safetensors")
    given = ["render", "p.safetensors", "--checkpoint", "images.ckpt"]
    assert "cat is a code of images, which has no --rate: give --size or --scale, or nothing." in _codes_refused(
        *given, "--rate", 8000
    )
    with pytest.raises(ValueError, match="not for sound"):
        render(images, image)
