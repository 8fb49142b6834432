"""Numbers per recording of audio against loops, closed forms and torchmetrics."""

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
from datamodules.batch import Samples
from modalities import audio_metrics as audio_metrics_of
from modalities.audio_metrics import PESQ, SISDR, STOI, LogSpectralDistance, OverSilence, Silence


def _samples(values, mask=None):
    return Samples(torch.zeros(values.shape[1], 1), values, mask)


def _sound(num_instances=3, num_samples=40, channels=2, *, lengths=None, seed=0):
    """Return a target of noise and a prediction half made of it; beyond ``lengths`` both are far off."""
    generator = torch.Generator().manual_seed(seed)
    values, noise = torch.randn(2, num_instances, num_samples, channels, generator=generator)
    prediction = 0.5 * values + 0.5 * noise
    if lengths is None:
        return prediction, _samples(values)
    mask = torch.arange(num_samples) < torch.tensor(lengths)[:, None]
    prediction[~mask], values[~mask] = 50, -70
    return prediction, _samples(values, mask)


def _channels(prediction, target):
    """Yield for every instance the pairs of its channels, predicted and true, without padding, in float64."""
    for instance in range(len(prediction)):
        counted = slice(None) if target.mask is None else target.mask[instance].numpy()
        pair = (signal[instance].double().numpy()[counted] for signal in (prediction, target.values))
        seen, true = pair
        yield [(seen[:, channel], true[:, channel]) for channel in range(seen.shape[1])]


def _by_channel(number, prediction, target):
    """Return the mean over channels of a number, for every instance."""
    means = [np.mean([number(*pair) for pair in pairs]) for pairs in _channels(prediction, target)]
    return torch.tensor(means, dtype=torch.float32)


def _naive_sdr(seen, true):
    """Return the SI-SDR of two signals by a loop over their samples."""
    inner = sum(a * b for a, b in zip(seen, true, strict=True))
    factor = inner / sum(b * b for b in true)
    kept = sum((factor * b) ** 2 for b in true)
    lost = sum((a - factor * b) ** 2 for a, b in zip(seen, true, strict=True))
    return 10 * math.log10(kept / lost)


def _naive_levels(signal, centre, window, floor):
    """Return the levels of one frame in dB by sums over its samples; what lies beyond the signal is 0."""
    bell = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    places = [centre - window // 2 + n for n in range(window)]
    frame = [signal[place] if 0 <= place < len(signal) else 0.0 for place in places]
    levels = []
    for frequency in range(window // 2 + 1):
        turns = [2 * math.pi * frequency * n / window for n in range(window)]
        real = sum(w * x * math.cos(turn) for w, x, turn in zip(bell, frame, turns, strict=True))
        imaginary = sum(w * x * math.sin(turn) for w, x, turn in zip(bell, frame, turns, strict=True))
        levels.append(10 * math.log10(max((real**2 + imaginary**2) * (2 / sum(bell)) ** 2, floor)))
    return levels


def _naive_distance(window, hop, floor):
    """Return the log-spectral distance of two signals, frame by frame."""

    def number(seen, true):
        distances = []
        for centre in range(0, len(true), hop):
            pair = zip(*(_naive_levels(signal, centre, window, floor) for signal in (seen, true)), strict=True)
            squares = [(a - b) ** 2 for a, b in pair]
            distances.append(math.sqrt(sum(squares) / len(squares)))
        return sum(distances) / len(distances)

    return number


def _assert_close(found, wanted, atol=1e-3):
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=torch.float32), atol=atol, rtol=0, equal_nan=True)


def _measure(metric, prediction, target):
    return metric.measure(prediction, target, prediction.shape[1:2])


@given(st.integers(1, 3), st.integers(2, 30), st.integers(1, 2), st.booleans(), st.integers(0, 100))
def test_si_sdr_equals_a_loop(num_instances, num_samples, channels, padded, seed):
    lengths = [max(2, num_samples - 3 * instance) for instance in range(num_instances)] if padded else None
    prediction, target = _sound(num_instances, num_samples, channels, lengths=lengths, seed=seed)
    _assert_close(_measure(SISDR(), prediction, target), _by_channel(_naive_sdr, prediction, target), atol=5e-3)


def test_si_sdr_equals_torchmetrics():
    prediction, target = _sound(num_samples=2000)
    wanted = scale_invariant_signal_distortion_ratio(prediction.mT, target.values.mT).mean(-1)
    _assert_close(_measure(SISDR(), prediction, target), wanted)


@pytest.mark.parametrize(("wave", "error", "decibels"), [(1.0, 0.1, 20), (0.5, 0.5, 0), (-0.01, 0.1, -20)])
@pytest.mark.parametrize("amplitude", [1.0, 1e-6])
def test_si_sdr_of_a_sine_and_an_orthogonal_error(wave, error, decibels, amplitude):
    phase = 2 * math.pi * 7 * torch.arange(16000) / 16000
    prediction = (wave * phase.sin() + error * phase.cos())[None, :, None]
    found = _measure(SISDR(), amplitude * prediction, _samples(phase.sin()[None, :, None]))
    assert found.item() == pytest.approx(decibels, abs=1e-3)


@pytest.mark.parametrize(("of_prediction", "of_target"), [(1e-8, 1.0), (1.0, 1e-8), (-3e5, 7e4)])
def test_si_sdr_does_not_depend_on_scales(of_prediction, of_target):
    prediction, target = _sound()
    scaled = _measure(SISDR(), of_prediction * prediction, _samples(of_target * target.values))
    _assert_close(scaled, _measure(SISDR(), prediction, target))


def test_si_sdr_needs_no_order():
    prediction, target = _sound()
    order = torch.randperm(40)
    found = SISDR().measure(prediction[:, order], _samples(target.values[:, order]), None)
    _assert_close(found, _measure(SISDR(), prediction, target))


def test_si_sdr_is_bounded_and_silence_has_none():
    silence, one, other = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]])
    pairs = {"perfect": (one, one), "orthogonal": (other, one), "of nothing": (silence, one), "none": (one, silence)}
    found = {name: SISDR().measure(seen, _samples(true), None).item() for name, (seen, true) in pairs.items()}
    assert found == pytest.approx(
        {"perfect": 120, "orthogonal": -120, "of nothing": -120, "none": math.nan}, nan_ok=True
    )


def test_a_silent_channel_is_left_out_of_the_si_sdr():
    prediction, target = _sound()
    target.values[0, :, 1] = 0
    wanted = _measure(SISDR(), prediction[..., :1], _samples(target.values[..., :1]))
    found = _measure(SISDR(), prediction, target)
    assert found[0] == wanted[0]
    assert (found[1:] != wanted[1:]).all()


@pytest.mark.parametrize(("window", "hop", "floor"), [(16, 4, 1e-10), (9, 9, 1e-10), (8, 3, 0.05)])
@pytest.mark.parametrize("lengths", [None, [40, 31, 5]])
def test_the_log_spectral_distance_equals_a_loop(window, hop, floor, lengths):
    prediction, target = _sound(lengths=lengths)
    wanted = _by_channel(_naive_distance(window, hop, floor), prediction, target)
    _assert_close(_measure(LogSpectralDistance(window, hop, floor), prediction, target), wanted)


@pytest.mark.parametrize("length", [300, 512, 16000])
def test_ten_times_as_loud_is_a_distance_of_20_db(length):
    _, target = _sound(2, length, 1)
    _assert_close(_measure(LogSpectralDistance(), 10 * target.values, target), [20.0, 20.0])
    _assert_close(_measure(LogSpectralDistance(), -target.values, target), [0.0, 0.0])


def test_below_the_floor_all_is_the_same():
    _, target = _sound(2, 1000, 1)
    quiet = _samples(1e-6 * target.values)
    _assert_close(_measure(LogSpectralDistance(), torch.zeros(2, 1000, 1), quiet), [0.0, 0.0], atol=0)
    assert (_measure(LogSpectralDistance(floor=1e-20), torch.zeros(2, 1000, 1), quiet) > 20).all()


def test_a_sine_of_amplitude_1_has_a_level_of_0_db():
    sine = (2 * math.pi * 5 * torch.arange(6400) / 64).sin()[None, :, None]
    metric = LogSpectralDistance(window=64, hop=64, floor=1.0)
    _assert_close(_measure(metric, sine, _samples(torch.zeros_like(sine))), [0.0], atol=1e-2)
    # Of twice the amplitude one of 33 frequencies is 6.02 dB over the floor, its neighbours, half as high, are not; of the
    # first of 100 frames one half is silence.
    wanted = 0.99 * 20 * math.log10(2) / math.sqrt(33)
    _assert_close(_measure(metric, 2 * sine, _samples(torch.zeros_like(sine))), [wanted], atol=1e-3)


@pytest.mark.parametrize("length", [1, 37, 384, 385, 1000])
def test_a_padded_recording_is_as_far_as_the_recording_alone(length):
    prediction, target = _sound(1, 1000, lengths=[length])
    alone = _measure(LogSpectralDistance(), prediction[:, :length], _samples(target.values[:, :length]))
    _assert_close(_measure(LogSpectralDistance(), prediction, target), alone, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 1}, "window is 1"),
        ({"hop": 0}, "hop 0"),
        ({"hop": 513}, "hop 513"),
        ({"floor": 0.0}, r"floor 0\.0"),
    ],
    ids=["window", "no hop", "gaps", "floor"],
)
def test_frames_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        LogSpectralDistance(**wrong)


@pytest.mark.parametrize("lengths", [None, [40, 31, 5]])
def test_silence_is_the_psnr_of_zeros(lengths):
    prediction, target = _sound(lengths=lengths)
    energies = [np.mean([np.mean(true**2) for _, true in pairs]) for pairs in _channels(prediction, target)]
    silence = torch.tensor([-10 * math.log10(energy) for energy in energies], dtype=torch.float32)
    _assert_close(_measure(Silence(), prediction, target), silence)
    _assert_close(_measure(OverSilence(), prediction, target), _measure(PSNR(), prediction, target) - silence)
    _assert_close(_measure(OverSilence(), torch.zeros_like(prediction), target), torch.zeros(3), atol=0)


def _stub(monkeypatch, package, function):
    """Install a package of one function for this test."""
    module = types.ModuleType(package)
    module.__spec__ = importlib.machinery.ModuleSpec(package, None)
    setattr(module, {"pystoi": "stoi"}.get(package, package), function)
    monkeypatch.setitem(sys.modules, package, module)
    flag = {"pystoi": "stoi._PYSTOI_AVAILABLE", "pesq": "pesq._PESQ_AVAILABLE"}[package]
    monkeypatch.setattr(f"torchmetrics.functional.audio.{flag}", True)


def _odd(seen, true):
    """Return a number that depends on every sample, on their order, and on which signal is which."""
    return float(np.dot(seen, np.arange(1, len(seen) + 1)) + np.sum(true**2)) / 1000


@pytest.fixture
def listeners(monkeypatch):
    """Return STOI and PESQ with stubs for their packages."""
    _stub(
        monkeypatch, "pystoi", lambda true, seen, sample_rate, extended: _odd(seen, true) + sample_rate * (1 + extended)
    )
    _stub(
        monkeypatch,
        "pesq",
        lambda sample_rate, true, seen, mode: _odd(seen, true) + sample_rate + 1000 * (mode == "nb"),
    )
    return [STOI(sample_rate=12000), PESQ(), PESQ(sample_rate=8000)]


@pytest.mark.parametrize("lengths", [None, [40, 31, 5]])
def test_listeners_hear_every_channel_without_its_padding(listeners, lengths):
    prediction, target = _sound(lengths=lengths)
    heard = _by_channel(_odd, prediction, target)
    for metric, offset in zip(listeners, (12000, 16000, 9000), strict=True):
        _assert_close(_measure(metric, prediction, target) - offset, heard, atol=3e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_silence_and_what_cannot_be_heard_have_no_number(monkeypatch):
    def too_short(*signals):
        raise RuntimeError("too short")

    def warned(*signals):
        np.log(np.zeros(1))
        return 1e-5

    prediction, target = _sound()
    for function in (too_short, warned):
        _stub(monkeypatch, "pesq", function)
        assert _measure(PESQ(), prediction, target).isnan().tolist() == [True] * 3
    _stub(monkeypatch, "pesq", lambda sample_rate, true, seen, mode: 1.0)
    target.values[0], target.values[1, :, 0] = 0, 0
    _assert_close(_measure(PESQ(), prediction, target), [math.nan, 1.0, 1.0])


@pytest.mark.parametrize(("metric", "package"), [(STOI, "pystoi"), (PESQ, "pesq")])
def test_a_missing_package_is_named_at_construction(metric, package, monkeypatch):
    monkeypatch.setattr(audio_metrics_of.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=f"^{metric.__name__} needs the package {package}.*pip install {package},"
    ) as told:
        metric()
    assert "\n" not in str(told.value)


def test_rates_that_cannot_be_are_refused(listeners):
    with pytest.raises(ValueError, match=r"sample_rate of PESQ is 22050; it is defined for 16000 and 8000\."):
        PESQ(sample_rate=22050)
    with pytest.raises(ValueError, match=r"sample_rate of STOI is 0"):
        STOI(sample_rate=0)


def _voice():
    """Return a second of a hum with a rhythm, and the same with noise."""
    time = torch.arange(16000) / 16000
    hum = sum((2 * math.pi * 140 * k * time).sin() / k for k in range(1, 20)) * (2 * math.pi * 3 * time).sin().square()
    clean = 0.2 * hum[None, :, None]
    return clean + 0.05 * torch.randn(clean.shape), _samples(clean)


def test_real_stoi():
    pytest.importorskip("pystoi")
    noisy, target = _voice()
    assert _measure(STOI(), target.values, target).item() == pytest.approx(1, abs=1e-4)
    assert 0.2 < _measure(STOI(), noisy, target).item() < 0.99
    for length in (100, 2000):
        short = _samples(target.values[:, :length])
        assert _measure(STOI(), noisy[:, :length], short).isnan()


def test_real_pesq():
    pytest.importorskip("pesq")
    noisy, target = _voice()
    assert _measure(PESQ(), target.values, target).item() == pytest.approx(4.64, abs=0.01)
    assert 1 < _measure(PESQ(), noisy, target).item() < 3
    assert _measure(PESQ(), torch.zeros_like(noisy), target).isnan()
    assert _measure(PESQ(), noisy[:, :1000], _samples(target.values[:, :1000])).isnan()


def _all(listeners):
    return [SISDR(), LogSpectralDistance(window=16, hop=4), Silence(), OverSilence(), *listeners]


def test_what_padding_holds_plays_no_part(listeners):
    prediction, target = _sound(lengths=[40, 31, 5])
    other, values = prediction.clone(), target.values.clone()
    other[~target.mask], values[~target.mask] = -1e5, 1e3
    for metric in _all(listeners):
        found = _measure(metric, other, _samples(values, target.mask))
        assert torch.equal(found, _measure(metric, prediction, target)), metric
        assert found.isfinite().all(), metric


def test_a_mask_of_everything_is_no_mask(listeners):
    prediction, target = _sound()
    masked = target._replace(mask=torch.ones(3, 40, dtype=torch.bool))
    for metric in _all(listeners):
        _assert_close(_measure(metric, prediction, masked), _measure(metric, prediction, target), atol=1e-5)


def test_instances_do_not_mix_and_keep_their_order(listeners):
    prediction, target = _sound(lengths=[40, 31, 5])
    order = [2, 0, 1]
    moved = _samples(target.values[order], target.mask[order])
    for metric in _all(listeners):
        numbers = _measure(metric, prediction, target)
        assert len(set(numbers.tolist())) == 3, metric
        _assert_close(_measure(metric, prediction[order], moved), numbers[order], atol=1e-4)


def test_where_the_order_of_samples_counts_only_whole_recordings_have_a_number(listeners):
    prediction, target = _sound()
    for metric in _all(listeners):
        needs_order = not isinstance(metric, (SISDR, Silence))
        for shape in (None, (8, 5), (2, 4, 5)):
            assert metric.measure(prediction, target, shape).isnan().tolist() == [needs_order] * 3


def test_a_prediction_that_is_no_number_is_not_hidden(listeners):
    prediction, target = _sound()
    prediction[1, 7, 0] = math.nan
    for metric in (SISDR(), LogSpectralDistance(), OverSilence()):
        assert _measure(metric, prediction, target).isnan().tolist() == [False, True, False]


def test_numbers_are_measured_in_float32(listeners):
    prediction, target = _sound()
    low = prediction.bfloat16()
    for metric in _all(listeners):
        found = _measure(metric, low, target)
        assert found.dtype == torch.float32
        _assert_close(found, _measure(metric, low.float(), target), atol=0)
