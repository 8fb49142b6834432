"""Numbers per recording of audio, beside the PSNR: of waveforms in [-1, 1], at peak 1 like it (paper section 4)."""

from __future__ import annotations

import importlib.util
import math
import warnings
from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics.functional.audio.pesq import perceptual_evaluation_speech_quality
from torchmetrics.functional.audio.stoi import short_time_objective_intelligibility

from composers.metrics import InstanceMetric, instance_mse, psnr_of_mse
from datamodules.batch import Samples

_LARGEST_RATIO = (
    1e12  # an SI-SDR of 120 dB stands for perfect, as a PSNR of 120 dB does, and -120 dB for nothing in common
)
_SMALLEST = torch.finfo(torch.float32).tiny


class SISDR(InstanceMetric):
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, "SDR - half-baked or well done?").

    Energy of the part of the prediction that is a multiple of the target over that of the rest, without removing means;
    per channel, then the mean over channels. It is bounded to -120 and 120 dB; a prediction of zeros counts as -120.
    A silent channel has none and is left out; NaN where all are silent. Any samples will do, in any order.
    """

    heading = "SI-SDR"
    unit = "dB"

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the SI-SDR of every instance."""
        assert target.values is not None
        seen, true = (_to_peak(_measured(values, target.mask)) for values in (prediction, target.values))
        energy = true.square().sum(-1)  # (B, C), of a peak of 1: 0 for silence, else at least 1
        gain = (seen * true).sum(-1) / energy.clamp(min=1)
        rest = (seen - gain.unsqueeze(-1) * true).square().sum(-1)
        ratio = gain.square() * energy / rest.clamp(min=_SMALLEST)
        decibels = 10 * ratio.clamp(1 / _LARGEST_RATIO, _LARGEST_RATIO).log10()
        sounding = energy > 0
        return decibels.masked_fill(~sounding, 0).sum(-1) / sounding.sum(-1)


class LogSpectralDistance(InstanceMetric):
    """Distance of spectra in dB: for every frame the root of the mean over frequencies of the squared difference of levels.

    A level is ``10 log10(max(P, floor))``, where ``P`` is the power at a frequency in a Hann window, 1 for a sine of
    amplitude 1. The number is the mean over frames and channels. Frames lie around every ``hop``-th sample, beyond both
    ends of a recording is silence, and frames around padding do not count. Only for whole recordings, else NaN.

    Args:
        window: Samples of a frame; it has ``window // 2 + 1`` frequencies.
        hop: Samples from one frame to the next, at most ``window``.
        floor: The power that lower ones count as; -100 dB if left alone.

    Raises:
        ValueError: If a number is out of range.
    """

    heading = "log-spectral distance"
    unit = "dB"

    def __init__(self, window: int = 512, hop: int = 128, floor: float = 1e-10) -> None:
        if not (window >= 2 and 1 <= hop <= window and floor > 0):
            raise ValueError(
                f"window is {window}, hop {hop}, floor {floor}: a window has at least 2 samples, a hop 1 to as many as the "
                "window, and the floor is positive."
            )
        self.window = window
        self.hop = hop
        self.floor = floor

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the log-spectral distance of every instance."""
        assert target.values is not None
        if not _whole(shape):
            return _undefined(prediction)
        seen, true = (self._levels(_measured(values, target.mask)) for values in (prediction, target.values))
        distance = (seen - true).square().mean(-2).sqrt().mean(1)  # (B, frames)
        if target.mask is None:
            return distance.mean(-1)
        counted = target.mask[:, :: self.hop]
        return distance.masked_fill(~counted, 0).sum(-1) / counted.sum(-1)

    def _levels(self, signal: Tensor) -> Tensor:
        """Return the levels in dB, ``(B, C, frequencies, frames)``, of a signal ``(B, C, N)``."""
        bell = torch.hann_window(self.window, device=signal.device)
        bell *= 2 / bell.sum()  # a sine of amplitude 1 has power 1
        spectrum = torch.stft(
            signal.flatten(0, 1), self.window, self.hop, window=bell, pad_mode="constant", return_complex=True
        )
        power = spectrum[..., : math.ceil(signal.shape[-1] / self.hop)].abs().square()
        levels = 10 * power.clamp(min=self.floor).log10()
        return levels.view(*signal.shape[:2], *levels.shape[1:])


class Silence(InstanceMetric):
    """PSNR in dB of predicting zeros: what an instance gives away for nothing, to be read beside its PSNR."""

    heading = "PSNR of silence"
    unit = "dB"

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the PSNR of silence for every instance; the prediction plays no part."""
        return psnr_of_mse(instance_mse(torch.zeros_like(prediction), target))


class OverSilence(Silence):
    """PSNR in dB over that of silence: over predicting zeros."""

    heading = "over silence"

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the difference for every instance."""
        return psnr_of_mse(instance_mse(prediction, target)) - super().measure(prediction, target, shape)


class _Listener(InstanceMetric):
    """A measure by another package, recording by recording on the CPU, without padding; the mean over channels.

    NaN where it gives no number: for silence, recordings that are too short, and anything but whole recordings.
    """

    def measure(self, prediction: Tensor, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the measure of every instance."""
        assert target.values is not None
        if not _whole(shape):
            return _undefined(prediction)
        pairs = torch.stack((prediction.float(), target.values.float()), -1).cpu()  # (B, N, C, 2)
        masks = [slice(None)] * len(pairs) if target.mask is None else target.mask.cpu()
        numbers = [
            [self._listen(*channel.mT) for channel in pair[mask].transpose(0, 1)]
            for pair, mask in zip(pairs, masks, strict=True)
        ]
        return torch.tensor(numbers, device=prediction.device).nanmean(-1)

    def _listen(self, seen: Tensor, true: Tensor) -> float:
        """Return what is heard in two signals ``(N,)``; NaN where there is nothing to hear."""
        if not true.any():
            return math.nan
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", RuntimeWarning
            )  # pystoi returns 1e-5 with one where a recording is too short
            try:
                return self.judge(seen.contiguous(), true.contiguous())
            except (RuntimeError, RuntimeWarning, ValueError):  # silent predictions, and recordings too short to frame
                return math.nan

    @abstractmethod
    def judge(self, seen: Tensor, true: Tensor) -> float:
        """Return the measure of a prediction ``(N,)`` of a signal ``(N,)``."""


class STOI(_Listener):
    """Short-time objective intelligibility of speech, 1 at best (Taal et al. 2011), by the package ``pystoi``.

    It needs about 0.4 s that are not silent; NaN where there are fewer, and for anything but whole recordings.

    Args:
        rate: Samples per second of the data.

    Raises:
        ValueError: If ``rate`` is not positive, or ``pystoi`` is not installed.
    """

    heading = "STOI"

    def __init__(self, rate: int = 16000) -> None:
        if rate < 1:
            raise ValueError(f"rate of STOI is {rate}; it must be positive.")
        _require("pystoi", "STOI")
        self.rate = rate

    def judge(self, seen: Tensor, true: Tensor) -> float:
        """Return the STOI of a prediction ``(N,)`` of a signal ``(N,)``."""
        return float(short_time_objective_intelligibility(seen, true, self.rate))


class PESQ(_Listener):
    """Perceptual evaluation of speech quality, about 1 to 4.6 (ITU-T P.862), by the package ``pesq``.

    Wide-band at 16000 samples per second, narrow-band at 8000: their numbers do not compare. NaN for silence, for recordings
    under a quarter of a second, and for anything but whole recordings.

    Args:
        rate: Samples per second of the data: 16000 or 8000.

    Raises:
        ValueError: If ``rate`` is another, or ``pesq`` is not installed.
    """

    heading = "PESQ"

    def __init__(self, rate: int = 16000) -> None:
        if rate not in _BANDS:
            raise ValueError(f"rate of PESQ is {rate}; it is defined for {' and '.join(map(str, _BANDS))}.")
        _require("pesq", "PESQ")
        self.rate = rate

    def judge(self, seen: Tensor, true: Tensor) -> float:
        """Return the PESQ of a prediction ``(N,)`` of a signal ``(N,)``."""
        return float(perceptual_evaluation_speech_quality(seen, true, self.rate, _BANDS[self.rate]))


_BANDS = {16000: "wb", 8000: "nb"}


def _require(package: str, metric: str) -> None:
    """Refuse a metric whose package is missing."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{metric} needs the package {package}, which is not installed: pip install {package}, or leave {metric} out."
        )


def _whole(shape: tuple[int, ...] | None) -> bool:
    """Return whether samples are those of whole recordings, in order."""
    return shape is not None and len(shape) == 1


def _undefined(prediction: Tensor) -> Tensor:
    """Return NaN for every instance."""
    return torch.full((len(prediction),), math.nan, device=prediction.device)


def _measured(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return values ``(B, N, C)`` as a signal ``(B, C, N)`` in float32, with zeros for padding."""
    signal = values.float().mT
    return signal if mask is None else signal.masked_fill(~mask.unsqueeze(1), 0)


def _to_peak(signal: Tensor) -> Tensor:
    """Scale every channel of a signal ``(B, C, N)`` to a peak of 1; silence stays silence."""
    return signal / signal.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST)
