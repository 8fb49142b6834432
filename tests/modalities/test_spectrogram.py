"""Spectrograms: values and orientation."""

import math

import numpy as np
import pytest
import torch

from modalities.drawing import Waveform
from modalities.spectrogram import draw, figure_image, levels


def _tone(hertz, sample_rate=8000, seconds=0.5, amplitude=0.5):
    """Return a sine ``(1, n)``."""
    return amplitude * torch.sin(
        2 * math.pi * hertz * torch.arange(round(sample_rate * seconds)) / sample_rate
    ).unsqueeze(0)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
def test_sine_has_its_level_at_its_frequency(sample_rate):
    spectrum = levels(_tone(1000, sample_rate), sample_rate)
    middle = spectrum.decibels[:, spectrum.decibels.shape[1] // 2]
    assert int(middle.argmax()) * spectrum.step == pytest.approx(1000, abs=spectrum.step / 2)
    assert float(middle.max()) == pytest.approx(20 * math.log10(0.5), abs=0.1)
    assert spectrum.decibels.shape[0] == round(0.032 * sample_rate) // 2 + 1
    assert float(middle[: round(800 / spectrum.step)].max()) < -60


def test_click_is_at_its_time():
    values = torch.zeros(2, 8000)
    values[:, 1920] = 1
    spectrum = levels(values, 8000)
    assert int(spectrum.decibels.amax(0).argmax()) * spectrum.hop == pytest.approx(0.24)
    assert float(spectrum.decibels.min()) == pytest.approx(-100)
    assert spectrum.decibels.shape[1] == 251


def test_channels_are_mixed_and_long_recordings_have_a_larger_hop():
    tone = _tone(1000)
    both = torch.cat([tone, torch.zeros_like(tone)])
    assert float(levels(both, 8000).decibels.max()) == pytest.approx(float(levels(tone / 2, 8000).decibels.max()))
    long = levels(torch.zeros(1, 8000 * 60), 8000)
    assert 1900 < long.decibels.shape[1] <= 2001
    assert long.decibels.shape[1] * long.hop == pytest.approx(60, abs=0.1)
    assert levels(torch.zeros(1, 1), 8000).decibels.shape[1] == 1


def _pixels(axes, image):
    """Return the brightness of the pixels within axes, top row first."""
    height = image.height
    box = axes.get_window_extent()
    part = image.crop((round(box.x0) + 2, height - round(box.y1) + 2, round(box.x1) - 2, height - round(box.y0) - 2))
    return np.asarray(part).astype(float).sum(-1)


def test_frequency_increases_upwards_and_time_to_the_right():
    low, later = _tone(500), _tone(3000)
    later[:, :2000] = 0  # only the second half is not silent
    figure = draw([[Waveform("low", low, 8000)], [Waveform("later", later, 8000)]])
    image = figure_image(figure)
    first, second, _ = figure.axes
    rows = _pixels(first, image).mean(1)
    assert rows.argmax() / len(rows) == pytest.approx(1 - 500 / 4000, abs=0.03)
    pixels = _pixels(second, image)
    assert pixels.mean(1).argmax() / len(pixels) == pytest.approx(1 - 3000 / 4000, abs=0.03)
    assert pixels[:, : pixels.shape[1] // 3].max() < 0.5 * pixels[:, -pixels.shape[1] // 3 :].max()


def test_panels_share_one_scale():
    panels = [Waveform("loud", _tone(500, amplitude=1), 8000), Waveform("quiet", _tone(500, 16000, 0.25, 0.1), 16000)]
    figure = draw([panels])
    left, right, colour_bar = figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["loud", "quiet"]
    assert (left.get_xlabel(), left.get_ylabel(), colour_bar.get_ylabel()) == ("seconds", "kHz", "dB")
    for axes in (left, right):
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 0.5), (0, 8))
        low, high = axes.images[0].get_clim()
        assert (low, high) == pytest.approx((high - 80, 0), abs=0.5)
    assert right.images[0].get_array().max() == pytest.approx(-20, abs=0.5)
    assert left.images[0].get_extent()[3] == pytest.approx(4, abs=0.02)
