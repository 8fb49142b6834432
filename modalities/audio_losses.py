"""Losses of audio, which compare spectra; waveforms are in [-1, 1]."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from composers.losses import Loss
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from datamodules.domain import exact
from datamodules.spec import FromData, sample_rate
from datamodules.storage.torchaudio import import_torchaudio

_MAX_UNEVENNESS = 0.25  # of the distance between samples; rounding stays below, and noise within cells does not
_SMALLEST = torch.finfo(torch.float32).tiny


class MultiResolutionSTFT(Loss):
    """Distance between magnitude spectra in Hann windows of several sizes, averaged over sizes and channels.

    Magnitudes are normalised so that a sine of amplitude 1 has magnitude 1; smaller ones than the square root of ``floor`` are
    replaced by it. With ``S`` those of the target and ``P`` those of the reconstruction, the loss is the weighted sum of

    - the spectral convergence ``|S - P|_F / |S|_F``, with Frobenius norms over frequencies and frames (Yamamoto et al. 2020,
      Parallel WaveGAN, equation 4);
    - the mean of ``|log S - log P|`` (equation 5 there), 0.115 per dB of difference in level;
    - ``mean |S - P| + sqrt(mean (S - P)^2)`` (HyperSound, arXiv 2302.04959, there of 128 mel bands).

    Phases are not compared, so that energy is restored where the waveform cannot be predicted; under the squared error alone,
    the best prediction is silence there. Use it beside a loss of the waveform.

    Frames are centred at every ``size // 4``-th sample, and the signal is zero-padded at both ends. Frames centred in masked
    padding are left out, and masked samples count as zeros. Windows may be longer than the signal.

    Args:
        fft_sizes: Samples per window, each at least 4; the defaults last 64, 32 and 16 ms at 16,000 samples per second, about
            as long as those of Parallel WaveGAN. HyperSound has 2048, 1024, 512, 256 and 128.
        convergence: Weight of the spectral convergence, which is large for targets near silence.
        log_magnitude: Weight of the difference of logarithms.
        magnitude: Weight of the differences of magnitudes.
        num_mels: Number of triangular mel bands up to half the sampling rate, which are compared in place of frequencies; None
            for all frequencies. A size whose frequencies are too few for so many has the largest number without an empty band.
        sample_rate: Samples per second, for mel bands; set from the data.
        floor: Lower bound of the power at a frequency; the default is -100 dB, as in the log-spectral distance.

    Raises:
        ValueError: If an argument is out of range, or ``sample_rate`` is missing.
    """

    from_data: ClassVar[FromData] = {"sample_rate": sample_rate}

    def __init__(
        self,
        fft_sizes: Sequence[int] = (1024, 512, 256),
        convergence: float = 0.0,
        log_magnitude: float = 1.0,
        magnitude: float = 0.0,
        num_mels: int | None = None,
        sample_rate: int | None = None,
        floor: float = 1e-10,
    ) -> None:
        super().__init__()
        if not fft_sizes or min(fft_sizes) < 4 or not 0 < floor < math.inf:
            raise ValueError(
                f"fft_sizes is {list(fft_sizes)} and floor {floor}: give sizes of at least 4, and a positive floor."
            )
        weights = (convergence, log_magnitude, magnitude)
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(
                f"convergence is {convergence}, log_magnitude {log_magnitude} and magnitude {magnitude}; weights must be at "
                "least 0, and one of them positive."
            )
        if num_mels is not None and (num_mels < 1 or sample_rate is None or sample_rate < 1):
            raise ValueError(
                f"num_mels is {num_mels} and sample_rate {sample_rate}; both must be at least 1. The command line sets "
                "sample_rate from the data; in Python pass it."
            )
        self.fft_sizes = tuple(fft_sizes)
        self.convergence, self.log_magnitude, self.magnitude = weights
        self.num_mels = num_mels
        self.sample_rate = sample_rate
        self.floor = floor
        for size in self.fft_sizes:
            window = torch.hann_window(size, dtype=torch.float64)
            self.register_buffer(f"window_{size}", window * (2 / window.sum()), persistent=False)
            if num_mels is not None and sample_rate is not None:
                self.register_buffer(f"mels_{size}", mel_bands(size, num_mels, sample_rate), persistent=False)

    @property
    def needs_order(self) -> tuple[str, ...]:
        """Return the name of this loss."""
        return (type(self).__name__,)

    def forward(self, reconstruction: Reconstruction, target: Samples) -> Tensor:
        """Return the distance of every instance.

        Raises:
            ValueError: If the samples are not those of whole recordings, evenly spaced and in order.
        """
        _check_order(target.coords)
        with torch.autocast(target.coords.device.type, enabled=False):
            predicted, true = (
                _signal(values, target.mask) for values in (reconstruction.values, target.measured)
            )  # (B, C, N)
            distances = [self._distance(predicted, true, target.mask, size) for size in self.fft_sizes]
        return torch.stack(distances).mean(0)

    def spectrum(self, signal: Tensor, size: int) -> Tensor:
        """Return the magnitudes of a signal, ``(..., N)``, in windows of one of ``fft_sizes``.

        Returns:
            ``(..., size // 2 + 1, ceil(N / (size // 4)))``, with mel bands in place of frequencies where they are compared.
        """
        window, hop = self.get_buffer(f"window_{size}").to(signal.dtype), size // 4
        waves = signal.reshape(-1, signal.shape[-1])
        spectrum = torch.stft(waves, size, hop, window=window, pad_mode="constant", return_complex=True)
        spectrum = spectrum[..., : math.ceil(signal.shape[-1] / hop)]
        magnitudes: Tensor = (spectrum.real.square() + spectrum.imag.square()).clamp(min=self.floor).sqrt()
        if self.num_mels is not None:
            magnitudes = self.get_buffer(f"mels_{size}").to(signal.dtype) @ magnitudes
        return magnitudes.reshape(*signal.shape[:-1], *magnitudes.shape[-2:])

    def _distance(self, predicted: Tensor, true: Tensor, mask: Tensor | None, size: int) -> Tensor:
        """Return the distances ``(B,)`` of signals ``(B, C, N)`` in windows of one size, averaged over channels."""
        prediction, target = self.spectrum(predicted, size), self.spectrum(true, size)  # (B, C, F, frames)
        frames = (
            target.new_ones(len(true), target.shape[-1]) if mask is None else mask[:, :: size // 4].to(target.dtype)
        )
        weights = frames / frames.sum(-1, keepdim=True).clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return (values.mean(-2) * weights.unsqueeze(1)).sum(-1)  # (B, C)

        def norm(values: Tensor) -> Tensor:
            return mean(values.square()).clamp(min=_SMALLEST).sqrt()

        errors, distance = target - prediction, torch.zeros_like(true[..., 0])
        if self.convergence:
            distance = distance + self.convergence * norm(errors) / norm(target)
        if self.log_magnitude:
            distance = distance + self.log_magnitude * mean((target.log() - prediction.log()).abs())
        if self.magnitude:
            distance = distance + self.magnitude * (mean(errors.abs()) + norm(errors))
        return distance.mean(-1)


def mel_bands(size: int, num_mels: int, sample_rate: int) -> Tensor:
    """Return triangular bands that are equally spaced in mel up to half the sampling rate, none of them empty.

    Args:
        size: Samples per window, which has ``size // 2 + 1`` frequencies.
        num_mels: Largest number of bands; fewer are returned where one would lie between two frequencies.
        sample_rate: Samples per second.

    Returns:
        ``(bands, size // 2 + 1)``, in float64.

    Example:
        >>> [len(mel_bands(size, 128, 22050)) for size in (2048, 1024, 512, 256, 128)]
        [128, 128, 93, 47, 24]
    """
    melscale_fbanks = import_torchaudio().functional.melscale_fbanks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on empty bands
        for count in range(num_mels, 0, -1):
            bands: Tensor = melscale_fbanks(size // 2 + 1, 0.0, sample_rate / 2, count, sample_rate).mT
            if bool((bands.amax(-1) > 0).all()):
                break
    return bands.double()


def _check_order(coords: Tensor) -> None:
    """Raise a ``ValueError`` if coordinates are not those of recordings: one axis, evenly spaced, ascending."""
    steps = coords.diff(dim=-2)
    spacing = steps.mean(-2, keepdim=True)
    uneven = (steps - spacing).abs() > _MAX_UNEVENNESS * spacing
    if coords.shape[-1] != 1 or bool(uneven.any()):
        raise ValueError(
            f"MultiResolutionSTFT compares whole recordings, and coords {tuple(coords.shape)} are not evenly spaced along one "
            "axis: set coordinate_subset of the data to null, coordinate_noise to none, and samples_per_step of inner loops "
            "and refinement to all, or give these a loss of their own, such as composers.losses.MeanSquaredError."
        )


def _signal(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return values ``(B, N, C)`` as signals ``(B, C, N)``, at least in float32, with masked samples set to zero."""
    signal = exact(values).mT
    return signal if mask is None else signal.masked_fill(~mask.unsqueeze(1), 0)
