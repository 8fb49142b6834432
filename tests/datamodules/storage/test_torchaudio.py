"""torchaudio works with any build of torch."""

import importlib.util
import os
import subprocess
import sys

import pytest
from program import REPOSITORY

from datamodules.storage.torchaudio import import_torchaudio

MODULE = REPOSITORY / "datamodules" / "storage" / "torchaudio.py"

TONE = """
import math
import sys
import torch
{before}
import runpy

import_torchaudio = runpy.run_path({path!r})["import_torchaudio"]
torchaudio = import_torchaudio()
assert import_torchaudio() is torchaudio is sys.modules["torchaudio"]


def tone(sample_rate, seconds=1.0, hertz=440.0):
    return torch.sin(2 * math.pi * hertz * torch.arange(round(sample_rate * seconds)) / sample_rate)


resampled = torchaudio.functional.resample(tone(44100), 44100, 16000)
assert resampled.shape == (16000,), resampled.shape
error = (resampled - tone(16000))[500:-500].square().mean().sqrt().item()
assert 0 < error < 5e-4, error

import torchaudio.transforms

spectrogram = torchaudio.transforms.MelSpectrogram(16000, n_fft=512, n_mels=64)(tone(16000))
assert spectrogram.shape == (64, 63), spectrogram.shape
loudest = spectrogram.mean(1).argmax().item()
mel = 2595 * math.log10(1 + 8000 / 700) / 65 * (loudest + 1)  # centre of the band
assert abs(700 * (10 ** (mel / 2595) - 1) - 440) < 40, loudest
print("passed")
"""

FAILED_IMPORT = """
try:
    import torchaudio
except (ImportError, OSError, RuntimeError) as error:
    print("plain import failed:", type(error).__name__)
"""


def _python(code):
    """Run code in a new process with warnings as errors and return its output."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stderr == ""
    return finished.stdout


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", FAILED_IMPORT], ids=["first import", "after a plain import"])
def test_resampling_and_spectrogram_work(before):
    assert _python(TONE.format(before=before, path=str(MODULE))).endswith("passed\n")


def test_missing_torchaudio_raises_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # makes the import raise ImportError
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="torchaudio"):
        import_torchaudio()
    assert sys.modules["torchaudio"] is None
