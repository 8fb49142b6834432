"""Metrics of audio against loops, closed forms and torchmetrics."""

import importlib.machinery
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from composers.metrics import PSNR
from composers.rendering import Reconstruction
from datamodules.batch import Samples
from modalities import audio_metrics
from modalities.audio_metrics import PESQ, SISDR, STOI, LogSpectralDistance, OverSilence, Silence


def _samples(values, mask=None):
    return Samples(torch.zeros(values.shape[1], 1), values, mask)


def _recordings(num_instances=3, num_samples=40, channels=2, *, lengths=None, seed=0):
    """Return a prediction, half of it noise, and a target of noise; both have large values after ``lengths``."""
    generator = torch.Generator().manual_seed(seed)
    values, noise = torch.randn(2, num_instances, num_samples, channels, generator=generator)
    prediction = 0.5 * values + 0.5 * noise
    if lengths is None:
        return prediction, _samples(values)
    mask = torch.arange(num_samples) < torch.tensor(lengths)[:, None]
    prediction[~mask], values[~mask] = 50, -70
    return prediction, _samples(values, mask)


def _channels(prediction, target):
    """Yield, for every instance, the pairs of predicted and true channels without padding in float64."""
    for instance in range(len(prediction)):
        mask = slice(None) if target.mask is None else target.mask[instance].numpy()
        predicted, true = (signal[instance].double().numpy()[mask] for signal in (prediction, target.values))
        yield [(predicted[:, channel], true[:, channel]) for channel in range(predicted.shape[1])]


def _by_channel(function, prediction, target):
    """Return the mean over channels of a function, for every instance."""
    means = [np.mean([function(*pair) for pair in pairs]) for pairs in _channels(prediction, target)]
    return torch.tensor(means, dtype=torch.float32)


def _naive_sdr(predicted, true):
    """Return the SI-SDR of two signals by a loop over samples."""
    inner = sum(a * b for a, b in zip(predicted, true, strict=True))
    factor = inner / sum(b * b for b in true)
    projection = sum((factor * b) ** 2 for b in true)
    residual = sum((a - factor * b) ** 2 for a, b in zip(predicted, true, strict=True))
    return 10 * math.log10(projection / residual)


def _naive_levels(signal, centre, window, floor):
    """Return the levels of one frame in dB by sums over samples; the signal is zero-padded."""
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    indices = [centre - window // 2 + n for n in range(window)]
    frame = [signal[index] if 0 <= index < len(signal) else 0.0 for index in indices]
    levels = []
    for frequency in range(window // 2 + 1):
        phases = [2 * math.pi * frequency * n / window for n in range(window)]
        real = sum(w * x * math.cos(phase) for w, x, phase in zip(hann, frame, phases, strict=True))
        imaginary = sum(w * x * math.sin(phase) for w, x, phase in zip(hann, frame, phases, strict=True))
        levels.append(10 * math.log10(max((real**2 + imaginary**2) * (2 / sum(hann)) ** 2, floor)))
    return levels


def _naive_distance(window, hop, floor):
    """Return a function that computes the log-spectral distance of two signals by a loop over frames."""

    def distance(predicted, true):
        distances = []
        for centre in range(0, len(true), hop):
            pair = zip(*(_naive_levels(signal, centre, window, floor) for signal in (predicted, true)), strict=True)
            squares = [(a - b) ** 2 for a, b in pair]
            distances.append(math.sqrt(sum(squares) / len(squares)))
        return sum(distances) / len(distances)

    return distance


def _assert_close(actual, expected, atol=1e-3):
    expected = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0, equal_nan=True)


def _measure(metric, prediction, target):
    return metric.measure(Reconstruction.of_values(prediction), target, prediction.shape[1:2])


@given(st.integers(1, 3), st.integers(2, 30), st.integers(1, 2), st.booleans(), st.integers(0, 100))
def test_si_sdr_equals_a_loop(num_instances, num_samples, channels, padded, seed):
    lengths = [max(2, num_samples - 3 * instance) for instance in range(num_instances)] if padded else None
    prediction, target = _recordings(num_instances, num_samples, channels, lengths=lengths, seed=seed)
    _assert_close(_measure(SISDR(), prediction, target), _by_channel(_naive_sdr, prediction, target), atol=5e-3)


def test_si_sdr_equals_torchmetrics():
    prediction, target = _recordings(num_samples=2000)
    expected = scale_invariant_signal_distortion_ratio(prediction.mT, target.values.mT).mean(-1)
    _assert_close(_measure(SISDR(), prediction, target), expected)


@pytest.mark.parametrize(("wave", "error", "decibels"), [(1.0, 0.1, 20), (0.5, 0.5, 0), (-0.01, 0.1, -20)])
@pytest.mark.parametrize("amplitude", [1.0, 1e-6])
def test_si_sdr_of_a_sine_and_an_orthogonal_error(wave, error, decibels, amplitude):
    phase = 2 * math.pi * 7 * torch.arange(16000) / 16000
    prediction = (wave * phase.sin() + error * phase.cos())[None, :, None]
    result = _measure(SISDR(), amplitude * prediction, _samples(phase.sin()[None, :, None]))
    assert result.item() == pytest.approx(decibels, abs=1e-3)


@pytest.mark.parametrize(("prediction_scale", "target_scale"), [(1e-8, 1.0), (1.0, 1e-8), (-3e5, 7e4)])
def test_si_sdr_does_not_depend_on_scale(prediction_scale, target_scale):
    prediction, target = _recordings()
    scaled = _measure(SISDR(), prediction_scale * prediction, _samples(target_scale * target.values))
    _assert_close(scaled, _measure(SISDR(), prediction, target))


def test_si_sdr_does_not_depend_on_order():
    prediction, target = _recordings()
    order = torch.randperm(40)
    result = SISDR().measure(Reconstruction.of_values(prediction[:, order]), _samples(target.values[:, order]), None)
    _assert_close(result, _measure(SISDR(), prediction, target))


def test_si_sdr_is_bounded_and_undefined_for_silence():
    silence, first, second = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]])
    cases = {  # prediction, target, SI-SDR
        "perfect": (first, first, 120),
        "orthogonal": (second, first, -120),
        "silent prediction": (silence, first, -120),
        "silent target": (first, silence, math.nan),
    }
    for name, (prediction, target, expected) in cases.items():
        actual = SISDR().measure(Reconstruction.of_values(prediction), _samples(target), None).item()
        assert actual == pytest.approx(expected, nan_ok=True), name


def test_si_sdr_leaves_out_silent_channels():
    prediction, target = _recordings()
    target.values[0, :, 1] = 0
    first_channel = _measure(SISDR(), prediction[..., :1], _samples(target.values[..., :1]))
    both_channels = _measure(SISDR(), prediction, target)
    assert both_channels[0] == first_channel[0]
    assert (both_channels[1:] != first_channel[1:]).all()


@pytest.mark.parametrize(("window", "hop", "floor"), [(16, 4, 1e-10), (9, 9, 1e-10), (8, 3, 0.05)])
@pytest.mark.parametrize("lengths", [None, [40, 31, 5]])
def test_log_spectral_distance_equals_a_loop(window, hop, floor, lengths):
    prediction, target = _recordings(lengths=lengths)
    expected = _by_channel(_naive_distance(window, hop, floor), prediction, target)
    _assert_close(_measure(LogSpectralDistance(window, hop, floor), prediction, target), expected)


@pytest.mark.parametrize("length", [300, 512, 16000])
def test_tenfold_amplitude_is_a_distance_of_20_db(length):
    _, target = _recordings(2, length, 1)
    _assert_close(_measure(LogSpectralDistance(), 10 * target.values, target), [20.0, 20.0])
    _assert_close(_measure(LogSpectralDistance(), -target.values, target), [0.0, 0.0])


def test_levels_below_the_floor_do_not_differ():
    _, target = _recordings(2, 1000, 1)
    quiet = _samples(1e-6 * target.values)
    _assert_close(_measure(LogSpectralDistance(), torch.zeros(2, 1000, 1), quiet), [0.0, 0.0], atol=0)
    assert (_measure(LogSpectralDistance(floor=1e-20), torch.zeros(2, 1000, 1), quiet) > 20).all()


def test_sine_of_amplitude_1_has_a_level_of_0_db():
    sine = (2 * math.pi * 5 * torch.arange(6400) / 64).sin()[None, :, None]
    metric = LogSpectralDistance(window=64, hop=64, floor=1.0)
    _assert_close(_measure(metric, sine, _samples(torch.zeros_like(sine))), [0.0], atol=1e-2)
    # At twice the amplitude, one of 33 frequencies is 6.02 dB above the floor; its neighbours have half the amplitude and are
    # at the floor. Half of the first of 100 frames is padding.
    expected = 0.99 * 20 * math.log10(2) / math.sqrt(33)
    _assert_close(_measure(metric, 2 * sine, _samples(torch.zeros_like(sine))), [expected], atol=1e-3)


@pytest.mark.parametrize("length", [1, 37, 384, 385, 1000])
def test_log_spectral_distance_ignores_masked_padding(length):
    prediction, target = _recordings(1, 1000, lengths=[length])
    expected = _measure(LogSpectralDistance(), prediction[:, :length], _samples(target.values[:, :length]))
    _assert_close(_measure(LogSpectralDistance(), prediction, target), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 1}, "window is 1"),
        ({"hop": 0}, "hop 0"),
        ({"hop": 513}, "hop 513"),
        ({"floor": 0.0}, r"floor 0\.0"),
    ],
    ids=["window", "zero hop", "hop above window", "floor"],
)
def test_log_spectral_distance_checks_its_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LogSpectralDistance(**arguments)


@pytest.mark.parametrize("lengths", [None, [40, 31, 5]])
def test_silence_is_the_psnr_of_zeros(lengths):
    prediction, target = _recordings(lengths=lengths)
    energies = [np.mean([np.mean(true**2) for _, true in pairs]) for pairs in _channels(prediction, target)]
    silence = torch.tensor([-10 * math.log10(energy) for energy in energies], dtype=torch.float32)
    _assert_close(_measure(Silence(), prediction, target), silence)
    _assert_close(_measure(OverSilence(), prediction, target), _measure(PSNR(), prediction, target) - silence)
    _assert_close(_measure(OverSilence(), torch.zeros_like(prediction), target), torch.zeros(3), atol=0)


def _stub(monkeypatch, package, function):
    """Replace a package by a module with one function."""
    module = types.ModuleType(package)
    module.__spec__ = importlib.machinery.ModuleSpec(package, None)
    setattr(module, {"pystoi": "stoi"}.get(package, package), function)
    monkeypatch.setitem(sys.modules, package, module)
    flag = {"pystoi": "stoi._PYSTOI_AVAILABLE", "pesq": "pesq._PESQ_AVAILABLE"}[package]
    monkeypatch.setattr(f"torchmetrics.functional.audio.{flag}", True)


def _checksum(predicted, true):
    """Return a number that depends on every sample, their order, and the order of the signals."""
    return float(np.dot(predicted, np.arange(1, len(predicted) + 1)) + np.sum(true**2)) / 1000


@pytest.fixture
def perceptual_metrics(monkeypatch):
    """Return STOI and PESQ with stubs for their packages."""

    def stoi(true, predicted, sample_rate, extended):
        return _checksum(predicted, true) + sample_rate * (1 + extended)

    def pesq(sample_rate, true, predicted, mode):
        return _checksum(predicted, true) + sample_rate + 1000 * (mode == "nb")

    _stub(monkeypatch, "pystoi", stoi)
    _stub(monkeypatch, "pesq", pesq)
    return [STOI(sample_rate=12000), PESQ(), PESQ(sample_rate=8000)]


@pytest.mark.parametrize("lengths", [None, [40, 31, 5]])
def test_perceptual_metrics_measure_every_channel_without_padding(perceptual_metrics, lengths):
    prediction, target = _recordings(lengths=lengths)
    expected = _by_channel(_checksum, prediction, target)
    for metric, offset in zip(perceptual_metrics, (12000, 16000, 9000), strict=True):
        _assert_close(_measure(metric, prediction, target) - offset, expected, atol=3e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_perceptual_metrics_are_nan_for_silent_and_short_recordings(monkeypatch):
    def too_short(*signals):
        raise RuntimeError("too short")

    def warn(*signals):
        np.log(np.zeros(1))
        return 1e-5

    prediction, target = _recordings()
    for function in (too_short, warn):
        _stub(monkeypatch, "pesq", function)
        assert _measure(PESQ(), prediction, target).isnan().tolist() == [True] * 3
    _stub(monkeypatch, "pesq", lambda sample_rate, true, predicted, mode: 1.0)
    target.values[0], target.values[1, :, 0] = 0, 0
    _assert_close(_measure(PESQ(), prediction, target), [math.nan, 1.0, 1.0])


@pytest.mark.parametrize(("metric", "package"), [(STOI, "pystoi"), (PESQ, "pesq")])
def test_a_missing_package_is_stated_in_a_sentence(metric, package, monkeypatch):
    monkeypatch.setattr(audio_metrics.importlib.util, "find_spec", lambda name: None)
    assert metric().missing == (
        f"{metric.__name__} needs the package {package}, which is not installed: pip install {package}."
    )


def test_only_a_test_measures_perceptual_metrics(perceptual_metrics):
    assert {metric.missing for metric in perceptual_metrics} == {""}
    assert {metric.stages for metric in perceptual_metrics} == {("test",)}
    assert "val" in SISDR.stages


def test_pesq_is_left_out_at_other_sampling_rates(perceptual_metrics):
    assert PESQ(sample_rate=22050).missing == (
        "PESQ is defined at 16,000 and 8,000 samples per second, and the data has 22,050."
    )
    assert STOI(sample_rate=22050).missing == ""


@pytest.mark.parametrize("metric", [STOI, PESQ])
def test_sampling_rates_out_of_range_raise(metric):
    with pytest.raises(ValueError, match=rf"sample_rate of {metric.__name__} is 0; it must be at least 1\."):
        metric(sample_rate=0)


def _voice():
    """Return a second of a modulated hum with noise, and the hum alone as target."""
    time = torch.arange(16000) / 16000
    hum = sum((2 * math.pi * 140 * k * time).sin() / k for k in range(1, 20)) * (2 * math.pi * 3 * time).sin().square()
    clean = 0.2 * hum[None, :, None]
    return clean + 0.05 * torch.randn(clean.shape), _samples(clean)


def test_stoi_of_the_package():
    pytest.importorskip("pystoi")
    noisy, target = _voice()
    assert _measure(STOI(), target.values, target).item() == pytest.approx(1, abs=1e-4)
    assert 0.2 < _measure(STOI(), noisy, target).item() < 0.99
    for length in (100, 2000):
        short = _samples(target.values[:, :length])
        assert _measure(STOI(), noisy[:, :length], short).isnan()


def test_pesq_of_the_package():
    pytest.importorskip("pesq")
    noisy, target = _voice()
    assert _measure(PESQ(), target.values, target).item() == pytest.approx(4.64, abs=0.01)
    assert 1 < _measure(PESQ(), noisy, target).item() < 3
    assert _measure(PESQ(), torch.zeros_like(noisy), target).isnan()
    assert _measure(PESQ(), noisy[:, :1000], _samples(target.values[:, :1000])).isnan()


def _all_metrics(perceptual_metrics):
    return [SISDR(), LogSpectralDistance(window=16, hop=4), Silence(), OverSilence(), *perceptual_metrics]


def test_padding_has_no_influence(perceptual_metrics):
    prediction, target = _recordings(lengths=[40, 31, 5])
    other, values = prediction.clone(), target.values.clone()
    other[~target.mask], values[~target.mask] = -1e5, 1e3
    for metric in _all_metrics(perceptual_metrics):
        result = _measure(metric, other, _samples(values, target.mask))
        assert torch.equal(result, _measure(metric, prediction, target)), metric
        assert result.isfinite().all(), metric


def test_full_mask_equals_no_mask(perceptual_metrics):
    prediction, target = _recordings()
    masked = target._replace(mask=torch.ones(3, 40, dtype=torch.bool))
    for metric in _all_metrics(perceptual_metrics):
        _assert_close(_measure(metric, prediction, masked), _measure(metric, prediction, target), atol=1e-5)


def test_permuted_instances_have_permuted_metrics(perceptual_metrics):
    prediction, target = _recordings(lengths=[40, 31, 5])
    order = [2, 0, 1]
    permuted = _samples(target.values[order], target.mask[order])
    for metric in _all_metrics(perceptual_metrics):
        result = _measure(metric, prediction, target)
        assert len(set(result.tolist())) == 3, metric
        _assert_close(_measure(metric, prediction[order], permuted), result[order], atol=1e-4)


def test_metrics_that_depend_on_order_are_nan_unless_recordings_are_whole(perceptual_metrics):
    prediction, target = _recordings()
    for metric in _all_metrics(perceptual_metrics):
        needs_order = not isinstance(metric, (SISDR, Silence))
        for shape in (None, (8, 5), (2, 4, 5)):
            assert (
                metric.measure(Reconstruction.of_values(prediction), target, shape).isnan().tolist()
                == [needs_order] * 3
            )


def test_nan_predictions_have_nan_metrics(perceptual_metrics):
    prediction, target = _recordings()
    prediction[1, 7, 0] = math.nan
    for metric in (SISDR(), LogSpectralDistance(), OverSilence()):
        assert _measure(metric, prediction, target).isnan().tolist() == [False, True, False]


def test_metrics_are_computed_in_float32(perceptual_metrics):
    prediction, target = _recordings()
    half = prediction.bfloat16()
    for metric in _all_metrics(perceptual_metrics):
        result = _measure(metric, half, target)
        assert result.dtype == torch.float32
        _assert_close(result, _measure(metric, half.float(), target), atol=0)
