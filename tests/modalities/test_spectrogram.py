"""Spectrograms: their numbers, and the way up they are drawn."""

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
def test_a_sine_has_its_level_at_its_frequency(sample_rate):
    found = levels(_tone(1000, sample_rate), sample_rate)
    middle = found.decibels[:, found.decibels.shape[1] // 2]
    assert int(middle.argmax()) * found.step == pytest.approx(1000, abs=found.step / 2)
    assert float(middle.max()) == pytest.approx(20 * math.log10(0.5), abs=0.1)
    assert found.decibels.shape[0] == round(0.032 * sample_rate) // 2 + 1
    assert float(middle[: round(800 / found.step)].max()) < -60


def test_a_click_is_where_it_was():
    values = torch.zeros(2, 8000)
    values[:, 1920] = 1
    found = levels(values, 8000)
    assert int(found.decibels.amax(0).argmax()) * found.hop == pytest.approx(0.24)
    assert float(found.decibels.min()) == pytest.approx(-100)
    assert found.decibels.shape[1] == 251


def test_channels_are_mixed_and_long_recordings_are_thinned():
    tone = _tone(1000)
    both = torch.cat([tone, torch.zeros_like(tone)])
    assert float(levels(both, 8000).decibels.max()) == pytest.approx(float(levels(tone / 2, 8000).decibels.max()))
    long = levels(torch.zeros(1, 8000 * 60), 8000)
    assert 1900 < long.decibels.shape[1] <= 2001
    assert long.decibels.shape[1] * long.hop == pytest.approx(60, abs=0.1)
    assert levels(torch.zeros(1, 1), 8000).decibels.shape[1] == 1


def _pixels(axes, image):
    """Return the pixels of an image within its axes, top row first, as brightness."""
    height = image.height
    box = axes.get_window_extent()
    part = image.crop((round(box.x0) + 2, height - round(box.y1) + 2, round(box.x1) - 2, height - round(box.y0) - 2))
    return np.asarray(part).astype(float).sum(-1)


def test_low_frequencies_are_below_and_time_runs_to_the_right():
    low, later = _tone(500), _tone(3000)
    later[:, :2000] = 0  # the second half only
    figure = draw([[Waveform("low", low, 8000)], [Waveform("later", later, 8000)]])
    image = figure_image(figure)
    first, second, _ = figure.axes
    rows = _pixels(first, image).mean(1)
    assert rows.argmax() / len(rows) == pytest.approx(1 - 500 / 4000, abs=0.03)
    pixels = _pixels(second, image)
    assert pixels.mean(1).argmax() / len(pixels) == pytest.approx(1 - 3000 / 4000, abs=0.03)
    assert pixels[:, : pixels.shape[1] // 3].max() < 0.5 * pixels[:, -pixels.shape[1] // 3 :].max()


def test_panels_have_one_scale():
    panels = [Waveform("loud", _tone(500, amplitude=1), 8000), Waveform("quiet", _tone(500, 16000, 0.25, 0.1), 16000)]
    figure = draw([panels])
    one, other, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in (one, other)] == ["loud", "quiet"]
    assert (one.get_xlabel(), one.get_ylabel(), bar.get_ylabel()) == ("seconds", "kHz", "dB")
    for axes in (one, other):
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 0.5), (0, 8))
        low, high = axes.images[0].get_clim()
        assert (low, high) == pytest.approx((high - 80, 0), abs=0.5)
    assert other.images[0].get_array().max() == pytest.approx(-20, abs=0.5)
    assert one.images[0].get_extent()[3] == pytest.approx(4, abs=0.02)
