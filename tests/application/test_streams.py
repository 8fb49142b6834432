"""Output never ends a run: file names that are not UTF-8, limited terminal encodings, closed pipes."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from program import REPOSITORY, rows, run, tiny

from application.streams import quiet_lightning, robust_output
from composers.codes import InstanceCode, read_code
from datamodules.batch import Observation
from datamodules.domain import Grid
from datamodules.storage.audio import read_recording
from modalities.audio import save_wav
from modalities.drawing import Waveform
from modalities.spectrogram import draw, save_figure
from tools.activations.page import Page

NAME = os.fsdecode(b"caf\xe9")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _images(folder, names, size=24):
    Path(folder).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in names:
        pixels = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(folder, f"{name}.png"))


def _process(*args, encoding=None, **options):
    """Run the program in a subprocess."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LANG": "C"}
    if encoding:
        environment |= {"PYTHONIOENCODING": encoding}
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, args)]
    return subprocess.run(command, env=environment, timeout=120, **options)


@pytest.mark.parametrize(
    "encoding", [pytest.param(name, marks=pytest.mark.slow) for name in ("latin-1", "utf-8", "ascii")]
)
def test_non_utf_8_file_names_are_predicted_and_printed(encoding):
    _images("in", ["plain", NAME])
    process = _process("predict", "--images", "in", "--steps", 1, encoding=encoding, capture_output=True)
    assert process.returncode == 0, process.stderr
    assert b"plain" in process.stdout
    assert b"caf?" in process.stdout
    predictions = rows("predictions/predictions.csv")
    assert [row["name"] for row in predictions] == ["caf?", "plain"]
    assert predictions[0]["notes"] == "from in/caf\\udce9.png"
    assert read_code("predictions/caf?.safetensors").name == "caf?"


@pytest.mark.slow
def test_non_utf_8_file_names_are_tested():
    _images("images", [NAME, *"abcdefg"])
    data = ["--data.class_path=datamodules.ImageFolder", "--data.init_args.root=images", "--data.init_args.size=16"]
    data += ["--data.init_args.val_ratio=0.5", "--data.init_args.batch_size=2"]
    data += ["--data.init_args.split_seed=4"]
    run("fit", *tiny("ipc"), *data)
    run("test", *tiny("ipc"), *data, "--ckpt_path", "runs/unnamed/version_0/checkpoints/last.ckpt")
    with Path("runs/unnamed/version_1/test_instances.csv").open(encoding="utf-8") as file:
        assert "caf\\udce9" in file.read()


def test_audio_with_a_non_utf_8_name_is_read_written_and_drawn():
    samples = torch.rand(1, 800) - 0.5
    save_wav(samples, 800, Path(f"{NAME}.wav"))
    assert read_recording(f"{NAME}.wav").values.shape == (1, 800)
    save_figure(draw([[Waveform(NAME, samples, 800)]]), Path("figure.png"))
    page = Page(3)
    page.text(0, 0, NAME)
    page.save(Path("page.png"))


def test_code_with_a_non_utf_8_name_can_be_read(tiny_ipc):
    latents = tiny_ipc.encode(Observation(torch.rand(1, 3, 8, 12)))
    InstanceCode(latents, [((0, 8), (0, 12))], (8, 12), "0123456789abcdef", NAME, domain=Grid.unit(2)).save(
        "code.safetensors"
    )
    assert read_code("code.safetensors").name == "caf\\udce9"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["predict", "fit"])
def test_closed_pipe_loses_no_result(command):
    _images("in", ["plain"])
    args = ["predict", "--images", "in", "--steps", 1] if command == "predict" else ["fit", *tiny("ipc")]
    reading, writing = os.pipe()
    os.close(reading)
    process = _process(*args, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert process.returncode == 0, process.stderr
    assert b"BrokenPipe" not in process.stderr
    if command == "predict":
        assert rows("predictions/predictions.csv")[0]["name"] == "plain"
    else:
        assert Path("runs/unnamed/version_0/checkpoints/last.ckpt").is_file()


def test_streams_are_restored(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with robust_output():
        print("caf\xe9 \u2022", NAME)
    assert sys.stdout is stream
    assert stream.errors == "strict"
    assert stream.buffer.getvalue() == b"caf\\xe9 \\u2022 caf\\udce9\n"


def test_in_memory_streams_are_unchanged(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with robust_output():
        assert sys.stdout is stream


def test_log_keeps_requested_messages(monkeypatch):
    quiet_lightning()
    quiet_lightning()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    assert len(logger.filters) == 1
    messages = {
        "GPU available: True (cuda), used: True": False,
        "💡 Tip: For seamless cloud uploads": False,
        "`Trainer.fit` stopped: `max_epochs=1` reached.": False,
        "Time limit reached. Elapsed time is 0:00:01. Signaling Trainer to stop.": True,
    }
    for text, expected in messages.items():
        record = logger.makeRecord(logger.name, logging.INFO, __file__, 1, text, (), None)
        assert bool(logger.filter(record)) == expected, text
