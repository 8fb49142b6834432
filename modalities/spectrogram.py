"""Spectrograms of recordings and their reconstructions."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from datamodules.storage.files import written_whole
from datamodules.storage.text import printable
from modalities.drawing import Waveform, fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_WINDOW, _HOP = 0.032, 0.004  # seconds; at 16 kHz the window is 512 samples
_MAX_FRAMES = 2000  # longer recordings get a larger hop
_RANGE = 80.0  # dB between the brightest and the darkest colour
_FLOOR = 1e-10  # power that silence is raised to
_LETTER = 0.09  # width of a letter of a title in hundreds of pixels


class Levels(NamedTuple):
    """A spectrogram.

    Attributes:
        decibels: ``(frequencies, frames)``; a sine of amplitude 1 has 0 dB.
        hop: Seconds between frames; the first frame is centred at time 0.
        step: Hertz between frequencies; the first is 0.
    """

    decibels: Tensor
    hop: float
    step: float


def levels(values: Tensor, sample_rate: int) -> Levels:
    """Return the spectrogram of the mean channel of a recording ``(C, n)``, with Hann windows of 32 ms."""
    mono = values.detach().cpu().float().mean(0)
    size = max(2, round(_WINDOW * sample_rate))
    hop = max(1, round(_HOP * sample_rate), math.ceil(len(mono) / _MAX_FRAMES))
    window = torch.hann_window(size)
    spectrum = torch.stft(mono, size, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    power = (2 * spectrum.abs() / window.sum()).square()
    return Levels(10 * power.clamp(min=_FLOOR).log10(), hop / sample_rate, sample_rate / size)


def draw(rows: Sequence[Sequence[Waveform]], width: float = 7.2, height: float = 2.2) -> Figure:
    """Draw a grid of spectrograms with common axes (seconds and kHz) and a common colour scale.

    Args:
        rows: Rows of recordings, of equal length. The colour scale ends at the loudest point in the first column.
        width: Width of a panel in hundreds of pixels.
        height: Height of a panel in hundreds of pixels.
    """
    from matplotlib.figure import Figure  # here, because most commands do not draw

    columns = len(rows[0])
    figure = Figure(figsize=(width * columns + 0.8, height * len(rows) + 0.4), dpi=100, layout="constrained")
    grid = figure.subplots(len(rows), columns, sharex=True, sharey=True, squeeze=False)
    recordings = [recording for row in rows for recording in row]
    spectra = [levels(recording.values, recording.sample_rate) for recording in recordings]
    loudest = max(float(spectrum.decibels.max()) for spectrum in spectra[::columns])
    for axes, recording, spectrum in zip(grid.flat, recordings, spectra, strict=True):
        image = _show(axes, recording, spectrum, loudest, width)
    # All panels share these limits: the longest recording and the highest Nyquist frequency.
    grid[0, 0].set_xlim(0, max(recording.values.shape[-1] / recording.sample_rate for recording in recordings))
    grid[0, 0].set_ylim(0, max(recording.sample_rate for recording in recordings) / 2000)
    grid[0, 0].locator_params(nbins=5, steps=[1, 2, 4, 5, 10])
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=12)
    for axes in grid[:, 0]:
        axes.set_ylabel("kHz", fontsize=12)
    figure.colorbar(image, ax=grid, label="dB", pad=0.01, fraction=0.05 / columns)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with written_whole(path) as part:
        figure.savefig(part, format="png")


def figure_image(figure: Figure) -> Image.Image:
    """Return a figure as an image."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def _show(axes: Axes, recording: Waveform, spectrum: Levels, loudest: float, width: float) -> AxesImage:
    """Draw one spectrogram; every value is at the centre of its cell, and frequencies increase upwards."""
    frequencies, frames = spectrum.decibels.shape
    extent = (
        -0.5 * spectrum.hop,
        (frames - 0.5) * spectrum.hop,
        -0.5e-3 * spectrum.step,
        (frequencies - 0.5) * 1e-3 * spectrum.step,
    )
    axes.set_title(fitted(printable(recording.label), width, lambda text: len(text) * _LETTER), loc="left", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.set_facecolor("#bbbbbb")  # outside the recording: after its end, or above its Nyquist frequency
    return axes.imshow(
        spectrum.decibels.numpy(),
        origin="lower",
        aspect="auto",
        extent=extent,
        cmap="magma",
        vmin=loudest - _RANGE,
        vmax=loudest,
        interpolation="nearest",
    )
