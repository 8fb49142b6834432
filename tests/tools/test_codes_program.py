"""Compressed codes through the program: ``cli.py predict --bits``, and the commands of ``python -m tools.codes``."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from program import refused, run

import composers
from composers.codes import decode, read_code
from datamodules import SamplePhotos
from datamodules.audio.sample_speech import HELD_OUT_RECORDINGS, read_prompt
from modalities.images import to_uint8
from tools import codes

IMAGES, SPEECH = "photos_patch_ipc", "speech_patch_ipc"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with two photographs, a recording, and the predictions of the photographs without ``--bits``."""
    folder = tmp_path_factory.mktemp("compressed")
    data = SamplePhotos(size=64)
    data.setup("test")
    for index in (0, 20):
        pixels = torch.as_tensor(data.test_set[index].values)
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(folder / f"photo{index}.png")
    soundfile.write(folder / "speech.wav", read_prompt(HELD_OUT_RECORDINGS[0])[0, :9000].numpy(), 16000)
    run("predict", "--images", *folder.glob("*.png"), "--output", folder / "plain")
    return folder


def _commands(*args):
    codes.main([str(argument) for argument in args])


def _error(*args):
    with pytest.raises(SystemExit) as exit_info:
        _commands(*args)
    return str(exit_info.value.code)


def _rows(path):
    with (path / "predictions.csv").open(encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("bits", [8, 4])
def test_images_are_those_of_the_compressed_code(folder, tmp_path, bits, capsys):
    output = tmp_path / "out"
    printed = run("predict", "--images", *folder.glob("*.png"), "--output", output, "--bits", bits)
    assert "kB compressed" in printed
    rows, plain, composer = _rows(output), _rows(folder / "plain"), composers.load(IMAGES)
    losses = []
    for name, row in rows.items():
        file, image = output / f"{name}.inr", output / f"{name}.png"
        assert not file.with_suffix(".safetensors").exists()
        _commands("render", file, "--checkpoint", IMAGES, "--output", tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == image.read_bytes()
        code = read_code(file)
        values = torch.cat(list(decode(composer, code)))
        original = np.asarray(Image.open(folder / f"{name}.png"))
        assert np.array_equal(to_uint8(values).numpy(), np.asarray(Image.open(image)))
        mse = np.square(values.numpy() - original / 255).mean()  # of values that are not clipped
        assert float(row["psnr refined"]) == pytest.approx(-10 * np.log10(mse), abs=2e-3)
        losses.append(float(plain[name]["psnr refined"]) - float(row["psnr refined"]))
        assert float(row["kB"]) == file.stat().st_size / 1000
        assert float(row["bits per pixel"]) == pytest.approx(8 * file.stat().st_size / 64**2, abs=1e-3)
        assert row["bits"] == str(bits)
    assert sum(losses) / len(losses) <= 0.1 if bits == 8 else min(losses) > 0.1


@pytest.mark.slow
def test_refined_tiles_are_those_of_the_compressed_code(folder, tmp_path):
    photo, output = folder / "photo0.png", tmp_path / "out"
    options = ["--tile", "--tile_size", 40, "--steps", 2, "--scale", 2]
    run("predict", "--images", photo, "--output", output, "--bits", 8, *options)
    code = read_code(output / "photo0.inr")
    assert len(code.boxes) > 1
    assert code.facts["refinement steps"] == "2"
    _commands("render", output / "photo0.inr", "--checkpoint", IMAGES, "--scale", 2, "--output", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (output / "photo0.png").read_bytes()
    row = _rows(output)["photo0"]
    assert float(row["psnr predicted"]) < float(row["psnr refined"])


def test_audio_is_that_of_the_compressed_code(folder, tmp_path):
    output = tmp_path / "out"
    run("predict", "--audio", folder / "speech.wav", "--output", output, "--bits", 8, "--wav_bits", 24)
    run("predict", "--audio", folder / "speech.wav", "--output", tmp_path / "plain")
    assert soundfile.info(output / "speech.wav").subtype == "PCM_24"
    row, plain = _rows(output)["speech"], _rows(tmp_path / "plain")["speech"]
    assert float(plain["psnr refined"]) - float(row["psnr refined"]) <= 0.1
    assert float(row["kbit/s"]) == pytest.approx(
        8 * (output / "speech.inr").stat().st_size / (1000 * 9000 / 16000), abs=1e-3
    )
    run("predict", "--audio", folder / "speech.wav", "--output", tmp_path / "short", "--bits", 8)
    _commands("render", tmp_path / "short" / "speech.inr", "--checkpoint", SPEECH, "--output", tmp_path / "again.wav")
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "short" / "speech.wav").read_bytes()


def test_a_table_is_learned_used_and_copied(folder, tmp_path, capsys):
    plain, table = sorted((folder / "plain").glob("*.safetensors")), tmp_path / "table.safetensors"
    _commands("table", *plain, "--checkpoint", IMAGES, "--bits", 6, "--output", table)
    assert "6 bits per number, learned from 2 codes" in capsys.readouterr().out
    _commands("compress", *plain, "--checkpoint", IMAGES, "--bits", 6, "--table", table, "--output", tmp_path / "own")
    printed = capsys.readouterr().out
    assert printed.count("kB compressed") == 2
    run("predict", "--images", *folder.glob("*.png"), "--output", tmp_path / "out", "--bits", 6, "--table", table)
    table.unlink()
    for path in plain:
        compressed = tmp_path / "own" / f"{path.stem}.inr"
        predicted = read_code(tmp_path / "out" / compressed.name)
        assert torch.equal(read_code(compressed).latents["codes"], predicted.latents["codes"])
        capsys.readouterr()
        _commands("info", compressed, "--checkpoint", IMAGES)
        printed = capsys.readouterr().out
        assert f"the file has {compressed.stat().st_size:,} bytes" in printed
        assert "to 6 bits" in printed
        assert "bytes of side information" in printed
        assert "shared by all codes" in printed
        assert "psnr" not in printed  # that of the code before it was quantised
    [copy] = (tmp_path / "own").glob("table.*.safetensors")
    _commands(
        "interpolate",
        *(tmp_path / "own").glob("*.inr"),
        "--checkpoint",
        IMAGES,
        "--frames",
        2,
        "--output",
        tmp_path / "f",
    )
    copy.unlink()
    assert "there is no table." in _error("info", compressed)
    [copy] = (tmp_path / "out").glob("table.*.safetensors")
    _commands("render", compressed, "--checkpoint", IMAGES, "--table", copy, "--output", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "out" / f"{path.stem}.png").read_bytes()


def test_errors_name_the_argument_and_the_fix(folder, tmp_path):
    photo, plain = next(folder.glob("*.png")), sorted((folder / "plain").glob("*.safetensors"))
    table, predict = tmp_path / "t.safetensors", ["predict", "--images", photo, "--output", tmp_path / "out"]
    _commands("table", *plain, "--checkpoint", IMAGES, "--bits", 8, "--output", table)
    assert "--bits is 5; codes are quantised with 16, 8, 6, 4" in refused(*predict, "--bits", 5)
    assert "without --bits: pass both" in refused(*predict, "--table", table)
    assert "learned for 8 bits, but --bits is 4: learn one with" in refused(*predict, "--bits", 4, "--table", table)
    missing = refused(*predict, "--bits", 8, "--table", tmp_path / "missing")
    assert "missing does not exist: learn it again" in missing
    audio = ["predict", "--audio", folder / "speech.wav", "--output", tmp_path / "out", "--bits"]
    assert "pass --wav_bits 24" in refused(*audio, 24)
    assert "was learned for the model" in refused(*audio, 8, "--table", table)
    enlarged = refused(
        "predict", "--images", photo, "--ckpt_path", "photos_liif", "--output", tmp_path / "out", "--bits", 8
    )
    assert "--bits does not apply to super-resolution models" in enlarged
    assert not (tmp_path / "out").exists()
    options = ["--checkpoint", IMAGES, "--bits"]
    assert "--bits is 3; codes" in _error("compress", *plain, *options, 3)
    assert "belongs to the model" in _error("compress", *plain, "--checkpoint", "photos_ipc", "--bits", 8)
    assert "learned for 8 bits, but --bits is 6" in _error("compress", *plain, *options, 6, "--table", table)
    _commands("compress", plain[0], *options, 8, "--output", tmp_path)
    compressed = tmp_path / f"{plain[0].stem}.inr"
    assert f"{compressed} is quantised already" in _error("compress", compressed, *options, 4)
    assert f"{compressed} is quantised already" in _error("table", compressed, *options, 4)
    compressed.write_bytes(compressed.read_bytes()[:-40])
    assert f"{compressed} is damaged or truncated" in _error("render", compressed, "--checkpoint", IMAGES)
    assert Path(table).is_file()
