"""Metrics of audio besides PSNR, per recording; waveforms are in [-1, 1], and PSNR is at peak 1 (paper section 4)."""

from __future__ import annotations

import importlib.util
import math
import warnings
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality
from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

from composers.metrics import SMALLEST_ERROR, InstanceMetric, instance_mse, psnr_of_mse
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from datamodules.spec import FromData, sample_rate

_MAX_RATIO = 1e12  # bounds SI-SDR to 120 dB for a perfect prediction, as for PSNR, and to -120 dB for an orthogonal one
_SMALLEST = torch.finfo(torch.float32).tiny


class SISDR(InstanceMetric):
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, "SDR - half-baked or well done?").

    Energy of the projection of the prediction onto the target over the energy of the residual, without removing means;
    per channel, then averaged over channels. It is bounded to [-120, 120] dB; a prediction of zeros has -120 dB.
    It is undefined for a silent channel, which is left out, and NaN if all channels are silent. The order of samples does
    not matter, so that a subset of coordinates may be measured.
    """

    heading = "SI-SDR"
    unit = "dB"
    undefined = "for silent recordings"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the SI-SDR of every instance."""
        predicted, true = (
            _to_peak(_signal(values, target.mask)) for values in (reconstruction.values, target.measured)
        )
        energy = true.square().sum(-1)  # (B, C); 0 for silence, else at least 1 because the peak is 1
        gain = (predicted * true).sum(-1) / energy.clamp(min=1)
        residual = (predicted - gain.unsqueeze(-1) * true).square().sum(-1)
        ratio = gain.square() * energy / residual.clamp(min=_SMALLEST)
        decibels = 10 * ratio.clamp(1 / _MAX_RATIO, _MAX_RATIO).log10()
        audible = energy > 0
        return decibels.masked_fill(~audible, 0).sum(-1) / audible.sum(-1)


class LogSpectralDistance(InstanceMetric):
    """Log-spectral distance in dB: per frame, the root mean square over frequencies of the difference of levels.

    A level is ``10 log10(max(P, floor))``, where ``P`` is the power at a frequency in a Hann window, 1 for a sine of
    amplitude 1. The metric is averaged over frames and channels. Frames are centred at every ``hop``-th sample; the signal is
    zero-padded at both ends, and frames centred in masked padding are left out. NaN unless whole recordings are measured.

    Args:
        window: Samples per frame, which has ``window // 2 + 1`` frequencies.
        hop: Samples between frames, at most ``window``.
        floor: Lower bound of the power; the default is -100 dB.

    Raises:
        ValueError: If an argument is out of range.
    """

    heading = "log-spectral distance"
    unit = "dB"

    def __init__(self, window: int = 512, hop: int = 128, floor: float = 1e-10) -> None:
        if not (window >= 2 and 1 <= hop <= window and floor > 0):
            raise ValueError(
                f"window is {window}, hop {hop}, floor {floor}: window must be at least 2, hop between 1 and window, and floor "
                "positive."
            )
        self.window = window
        self.hop = hop
        self.floor = floor

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the log-spectral distance of every instance."""
        if not _whole(shape):
            return _undefined(reconstruction.values)
        predicted, true = (
            self._levels(_signal(values, target.mask)) for values in (reconstruction.values, target.measured)
        )
        distance = (predicted - true).square().mean(-2).sqrt().mean(1)  # (B, frames)
        if target.mask is None:
            return distance.mean(-1)
        counted = target.mask[:, :: self.hop]
        return distance.masked_fill(~counted, 0).sum(-1) / counted.sum(-1)

    def _levels(self, signal: Tensor) -> Tensor:
        """Return the levels in dB, ``(B, C, frequencies, frames)``, of a signal ``(B, C, N)``."""
        window = torch.hann_window(self.window, device=signal.device)
        window *= 2 / window.sum()  # a sine of amplitude 1 has power 1
        spectrum = torch.stft(
            signal.flatten(0, 1), self.window, self.hop, window=window, pad_mode="constant", return_complex=True
        )
        power = spectrum[..., : math.ceil(signal.shape[-1] / self.hop)].abs().square()
        levels = 10 * power.clamp(min=self.floor).log10()
        return levels.view(*signal.shape[:2], *levels.shape[1:])


class Silence(InstanceMetric):
    """PSNR in dB of predicting zeros, the baseline of the PSNR of an instance."""

    heading = "PSNR of silence"
    unit = "dB"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the PSNR of silence for every instance; the prediction is ignored."""
        return psnr_of_mse(instance_mse(torch.zeros_like(reconstruction.values), target))


class OverSilence(Silence):
    """Gain in PSNR in dB over predicting zeros; NaN, which is left out of means, for silence, which zeros predict exactly."""

    heading = "over silence"
    undefined = "for silent recordings, which zeros predict exactly"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the difference for every instance."""
        energy = instance_mse(torch.zeros_like(reconstruction.values), target)
        gain = psnr_of_mse(instance_mse(reconstruction.values, target)) - psnr_of_mse(energy)
        return gain.masked_fill(energy < SMALLEST_ERROR, float("nan"))


class _PerceptualMetric(InstanceMetric):
    """A metric of another package, computed per recording on the CPU without padding and averaged over channels.

    NaN where the package gives no result: for silent and too short recordings, and unless whole recordings are measured. It is
    measured only in tests, because it is slow, and left out with a note if the package is not installed.
    """

    stages: ClassVar[tuple[str, ...]] = ("test",)
    from_data: ClassVar[FromData] = {"sample_rate": sample_rate}

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the metric of every instance."""
        if not _whole(shape):
            return _undefined(reconstruction.values)
        pairs = torch.stack((reconstruction.values.float(), target.measured.float()), -1).cpu()  # (B, N, C, 2)
        masks = [slice(None)] * len(pairs) if target.mask is None else target.mask.cpu()
        numbers = [
            [self._score(*channel.mT) for channel in pair[mask].transpose(0, 1)]
            for pair, mask in zip(pairs, masks, strict=True)
        ]
        return torch.tensor(numbers, device=reconstruction.values.device).nanmean(-1)

    def _score(self, prediction: Tensor, target: Tensor) -> float:
        """Return the metric of one channel ``(N,)``; NaN if it is undefined."""
        if not target.any():
            return math.nan
        with warnings.catch_warnings():
            # pystoi warns and returns 1e-5 for a recording that is too short.
            warnings.simplefilter("error", RuntimeWarning)
            try:
                return self.judge(prediction.contiguous(), target.contiguous())
            except (RuntimeError, RuntimeWarning, ValueError):  # silent prediction, or recording too short
                return math.nan

    @abstractmethod
    def judge(self, prediction: Tensor, target: Tensor) -> float:
        """Return the metric of a prediction ``(N,)`` for a target ``(N,)``."""


class STOI(_PerceptualMetric):
    """Short-time objective intelligibility of speech, at most 1 (Taal et al. 2011), from the package ``pystoi``.

    It requires about 0.4 s that are not silent. NaN for shorter recordings, and unless whole recordings are measured. Left out,
    with a note, if ``pystoi`` is not installed.

    Args:
        sample_rate: Samples per second of the data; set from the data, 16000 if None.

    Raises:
        ValueError: If ``sample_rate`` is not positive.
    """

    heading = "STOI"

    def __init__(self, sample_rate: int | None = None) -> None:
        self.sample_rate = 16000 if sample_rate is None else sample_rate
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate of STOI is {sample_rate}; it must be at least 1.")
        self.missing = _not_installed("pystoi", "STOI")

    def judge(self, prediction: Tensor, target: Tensor) -> float:
        """Return the STOI of a prediction ``(N,)`` for a target ``(N,)``."""
        return float(short_time_objective_intelligibility(prediction, target, self.sample_rate))


class PESQ(_PerceptualMetric):
    """Perceptual evaluation of speech quality, about 1 to 4.6 (ITU-T P.862), from the package ``pesq``.

    Wide-band at 16000 samples per second, narrow-band at 8000; the two are not comparable. NaN for silence, for recordings
    shorter than a quarter of a second, and unless whole recordings are measured. Left out, with a note, if ``pesq`` is not
    installed, and at other sampling rates.

    Args:
        sample_rate: Samples per second of the data; set from the data, 16000 if None.

    Raises:
        ValueError: If ``sample_rate`` is not positive.
    """

    heading = "PESQ"

    def __init__(self, sample_rate: int | None = None) -> None:
        self.sample_rate = 16000 if sample_rate is None else sample_rate
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate of PESQ is {sample_rate}; it must be at least 1.")
        self.missing = _not_installed("pesq", "PESQ")
        if self.sample_rate not in _BANDS:
            self.missing = (
                f"PESQ is defined at 16,000 and 8,000 samples per second, and the data has {self.sample_rate:,}."
            )

    def judge(self, prediction: Tensor, target: Tensor) -> float:
        """Return the PESQ of a prediction ``(N,)`` for a target ``(N,)``."""
        band = _BANDS[self.sample_rate]
        return float(perceptual_evaluation_speech_quality(prediction, target, self.sample_rate, band))


_BANDS = {16000: "wb", 8000: "nb"}


def _not_installed(package: str, metric: str) -> str:
    """Return a sentence if the package of a metric is not installed, else an empty text."""
    if importlib.util.find_spec(package) is not None:
        return ""
    return f"{metric} needs the package {package}, which is not installed: pip install {package}."


def _whole(shape: tuple[int, ...] | None) -> bool:
    """Return whether the samples are whole recordings in order."""
    return shape is not None and len(shape) == 1


def _undefined(prediction: Tensor) -> Tensor:
    """Return NaN for every instance."""
    return torch.full((len(prediction),), math.nan, device=prediction.device)


def _signal(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return values ``(B, N, C)`` as a float32 signal ``(B, C, N)`` with masked samples set to zero."""
    signal = values.float().mT
    return signal if mask is None else signal.masked_fill(~mask.unsqueeze(1), 0)


def _to_peak(signal: Tensor) -> Tensor:
    """Scale every channel of a signal ``(B, C, N)`` to a peak of 1; silent channels stay zero."""
    return signal / signal.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST)
