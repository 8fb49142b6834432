"""Rate-distortion curves: sizes of headers, alignment, and settings."""

import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from benchmarks.rate_distortion import RateSettings, _aligned, _jpeg_header, _opus_payload, pooled_entropy


def test_the_header_of_a_jpeg_ends_where_its_scan_begins():
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(content, "JPEG")
    stored = content.getvalue()
    header = stored[: _jpeg_header(stored)]
    assert header[-14:-12] == b"\xff\xda"  # three components: a marker, and 12 bytes
    assert 0 < len(header) < len(stored)


def test_packets_of_opus_are_smaller_than_the_file():
    content, wave = io.BytesIO(), np.sin(np.arange(16000) / 10)
    soundfile.write(content, wave, 16000, format="OGG", subtype="OPUS")
    assert 0.5 < _opus_payload(content.getvalue()) / len(content.getvalue()) < 1


@pytest.mark.parametrize("lag", [-300, 0, 57])
def test_delayed_recordings_are_aligned(lag):
    signal = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    delayed = torch.zeros_like(signal)
    if lag >= 0:
        delayed[:, lag:] = signal[:, : 3000 - lag]
        kept = slice(0, 3000 - lag)
    else:
        delayed[:, :lag] = signal[:, -lag:]
        kept = slice(-lag, 3000)
    assert torch.equal(_aligned(delayed, signal)[:, kept], signal[:, kept])


@pytest.mark.parametrize("wrong", [{"checkpoints": ("photos_ipc",)}, {"bits": (5,)}, {"items": 0}, {"steps": -1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RateSettings(**wrong)


def test_the_pooled_entropy_is_that_of_the_histograms_of_all_codes():
    codes = [
        {"tokens": [np.array([0, 1]), np.array([5, 5])], "index": [np.array([1])]},
        {"tokens": [np.array([2, 3]), np.array([5, 5])], "index": [np.array([2])]},
    ]
    entropy, corrected = pooled_entropy(codes)
    assert entropy == pytest.approx(4 * 2 + 0 + 2 * 1)
    assert corrected - entropy == pytest.approx((3 + 0 + 1) / (2 * np.log(2)))
