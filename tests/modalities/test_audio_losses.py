"""Losses of audio against explicit Fourier transforms and finite differences."""

import cmath
import math

import pytest
import torch

from composers import Composer
from composers.inference import GradientSteps, Refinement, ZeroStart
from composers.latents import Direct
from composers.losses import LossSum, MeanSquaredError, WeightedLoss
from composers.networks import CoordinateMLP
from composers.rendering import Reconstruction
from datamodules import SampleSpeech
from datamodules.batch import Samples
from datamodules.domain import Grid
from modalities.audio_losses import MultiResolutionSTFT, mel_bands

SIZES = (16, 10)
TERMS = {
    "convergence": (1.0, 0.0, 0.0),
    "log_magnitude": (0.0, 1.0, 0.0),
    "magnitude": (0.0, 0.0, 1.0),
    "all": (0.5, 2.0, 3.0),
}


def _pair(channels=2, samples=37, dtype=torch.float64, lengths=None):
    """Return a prediction and a target of noise in float64, with large values in the padding."""
    generator = torch.Generator().manual_seed(0)
    prediction, values = torch.randn(2, 3, samples, channels, generator=generator, dtype=dtype) / 5
    coords = Grid.unit(1).coords((samples,))
    if lengths is None:
        return prediction, Samples(coords, values)
    mask = torch.arange(samples) < torch.tensor(lengths)[:, None]
    prediction[~mask], values[~mask] = 50, -70
    return prediction, Samples(coords, values, mask)


def _naive_spectrum(signal, size, floor):
    """Return the magnitudes of a list of samples by frame and frequency, by sums over samples."""
    window = [0.5 - 0.5 * math.cos(2 * math.pi * n / size) for n in range(size)]
    frames = []
    for centre in range(0, len(signal), size // 4):
        indices = [centre - size // 2 + n for n in range(size)]
        frame = [
            w * (signal[index] if 0 <= index < len(signal) else 0.0) for w, index in zip(window, indices, strict=True)
        ]
        sums = [
            sum(value * cmath.exp(-2j * math.pi * frequency * n / size) for n, value in enumerate(frame))
            for frequency in range(size // 2 + 1)
        ]
        frames.append([max(abs(total) * 2 / sum(window), math.sqrt(floor)) for total in sums])
    return frames


def _naive(predicted, true, sizes, weights, floor):
    """Return the loss of one channel without padding."""
    distances = []
    for size in sizes:
        pairs = [
            (b, a)
            for frames in zip(_naive_spectrum(predicted, size, floor), _naive_spectrum(true, size, floor), strict=True)
            for a, b in zip(*frames, strict=True)
        ]
        error = math.sqrt(sum((s - p) ** 2 for s, p in pairs))
        convergence = error / math.sqrt(sum(s**2 for s, _ in pairs))
        logarithms = sum(abs(math.log(s) - math.log(p)) for s, p in pairs) / len(pairs)
        magnitude = sum(abs(s - p) for s, p in pairs) / len(pairs) + error / math.sqrt(len(pairs))
        terms = zip(weights, (convergence, logarithms, magnitude), strict=True)
        distances.append(sum(weight * term for weight, term in terms))
    return sum(distances) / len(distances)


@pytest.mark.parametrize("lengths", [None, [37, 20, 3]], ids=["all", "masked"])
@pytest.mark.parametrize("weights", TERMS.values(), ids=TERMS.keys())
def test_the_loss_equals_explicit_fourier_transforms(weights, lengths):
    prediction, target = _pair(lengths=lengths)
    loss = MultiResolutionSTFT(SIZES, *weights, floor=1e-3)
    actual = loss(Reconstruction.of_values(prediction), target)
    for index, length in enumerate(lengths or [37] * 3):
        channels = [
            _naive(
                prediction[index, :length, channel].tolist(),
                target.values[index, :length, channel].tolist(),
                SIZES,
                weights,
                1e-3,
            )
            for channel in range(2)
        ]
        assert actual[index].item() == pytest.approx(sum(channels) / 2, rel=1e-6)


def test_mel_bands_are_sums_over_frequencies():
    prediction, target = _pair(channels=1, samples=100)
    loss = MultiResolutionSTFT((64,), 0.0, 0.0, 1.0, num_mels=8, sample_rate=8000)
    plain = MultiResolutionSTFT((64,))
    bands = mel_bands(64, 8, 8000)
    spectra = [plain.spectrum(values[..., 0], 64) for values in (prediction, target.values)]
    errors = torch.stack(
        [
            sum(weight * (spectra[1] - spectra[0])[:, frequency] for frequency, weight in enumerate(band))
            for band in bands
        ],
        1,
    )
    expected = errors.abs().mean((1, 2)) + errors.square().mean((1, 2)).sqrt()
    torch.testing.assert_close(loss(Reconstruction.of_values(prediction), target), expected)


def test_no_mel_band_is_empty():
    for size in (2048, 256, 128):
        bands = mel_bands(size, 128, 16000)
        assert bands.shape[1] == size // 2 + 1
        assert len(bands) <= 128
        assert bands.amax(1).min() > 0


def test_a_sine_of_amplitude_1_has_magnitude_1():
    time = torch.arange(4000) / 1000
    spectrum = MultiResolutionSTFT((200,)).spectrum((2 * math.pi * 50 * time).sin(), 200)
    assert spectrum.shape == (101, 80)
    assert spectrum[10, 40].item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("decibels", [-20.0, 6.0])
def test_the_logarithmic_term_measures_levels(decibels):
    _, target = _pair(samples=500)
    scaled = target.values * 10 ** (decibels / 20)
    actual = MultiResolutionSTFT((64,), floor=1e-30)(Reconstruction.of_values(scaled), target)
    torch.testing.assert_close(actual, torch.full((3,), abs(decibels) / 20 * math.log(10), dtype=torch.float64))


def test_the_gradient_equals_finite_differences():
    prediction, target = _pair(channels=1, samples=12)
    loss = MultiResolutionSTFT((8, 4), 1.0, 1.0, 1.0)

    def of_values(values):
        return loss(Reconstruction.of_values(values), target)

    assert torch.autograd.gradcheck(of_values, prediction.requires_grad_())
    assert torch.autograd.gradgradcheck(of_values, prediction)


def test_gradients_of_perfect_and_silent_predictions_are_finite():
    _, target = _pair()
    loss = MultiResolutionSTFT(SIZES, 1.0, 1.0, 1.0)
    for values in (target.values.clone(), torch.zeros_like(target.values)):
        losses = loss(Reconstruction.of_values(values.requires_grad_()), target)
        (gradient,) = torch.autograd.grad(losses.sum(), values, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), values, allow_unused=True)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()
        assert second is None or second.isfinite().all()


def test_padding_has_no_influence_and_no_gradient():
    prediction, target = _pair(lengths=[37, 20, 3])
    loss = MultiResolutionSTFT(SIZES, 1.0, 1.0, 1.0)
    expected = loss(Reconstruction.of_values(prediction), target)
    other = torch.where(target.mask.unsqueeze(-1), prediction, 7.0).requires_grad_()
    actual = loss(Reconstruction.of_values(other), target)
    assert torch.equal(actual, expected)
    (gradient,) = torch.autograd.grad(actual.sum(), other)
    assert not gradient[~target.mask].any()
    assert gradient[1, 10:20].abs().min() > 0


def test_windows_may_be_longer_than_a_patch():
    prediction, target = _pair(channels=1, samples=20)
    actual = MultiResolutionSTFT((64,))(Reconstruction.of_values(prediction), target)
    expected = _naive(prediction[0, :, 0].tolist(), target.values[0, :, 0].tolist(), (64,), (0, 1, 0), 1e-10)
    assert actual[0].item() == pytest.approx(expected, rel=1e-6)


def test_values_are_compared_in_float32_under_autocast():
    prediction, target = _pair(dtype=torch.float32, samples=600)
    loss = MultiResolutionSTFT()
    half = prediction.bfloat16()
    expected = loss(Reconstruction.of_values(half.float()), target)
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(Reconstruction.of_values(half), target)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_there_is_nothing_to_store():
    assert not MultiResolutionSTFT(num_mels=16, sample_rate=8000).state_dict()


@pytest.mark.parametrize("case", ["subset", "order", "noise", "image", "reversed"])
def test_samples_out_of_order_raise(case):
    prediction, target = _pair()
    coords = {
        "subset": target.coords[torch.tensor([*range(10), *range(11, 37), 36])],
        "order": target.coords[torch.randperm(37, generator=torch.Generator().manual_seed(0))],
        "noise": target.coords + (torch.rand(37, 1, generator=torch.Generator().manual_seed(0)) - 0.5) * 2 / 37,
        "image": target.coords.expand(-1, 2),
        "reversed": target.coords.flip(0),
    }[case]
    with pytest.raises(ValueError, match=r"coordinate_subset of the data to null.*MeanSquaredError"):
        MultiResolutionSTFT()(Reconstruction.of_values(prediction), target._replace(coords=coords))


def test_coordinates_of_a_minute_are_evenly_spaced():
    samples = 60 * 48000
    values = torch.zeros(1, samples, 1)
    target = Samples(Grid(((-60.0, 60.0),)).coords((samples,)), values)
    assert MultiResolutionSTFT((64,))(Reconstruction.of_values(values), target).tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fft_sizes": ()}, r"fft_sizes is \[\]"),
        ({"fft_sizes": (512, 2)}, r"fft_sizes is \[512, 2\].*at least 4"),
        ({"floor": 0.0}, r"floor 0\.0.*positive floor"),
        ({"log_magnitude": 0.0}, r"log_magnitude 0\.0.*one of them positive"),
        ({"magnitude": -1.0}, r"magnitude -1\.0; weights must be at least 0"),
        ({"num_mels": 80}, r"num_mels is 80 and sample_rate None.*in Python pass it"),
        ({"num_mels": 0, "sample_rate": 16000}, "num_mels is 0"),
    ],
)
def test_arguments_out_of_range_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiResolutionSTFT(**arguments)


def _composer(**arguments):
    """Return a tiny composer of audio with an STFT loss."""
    network = CoordinateMLP(1, 1, 8, 3, output_offset=0.0, modulates="shifts")
    loss = LossSum({"wave": MeanSquaredError(), "stft": WeightedLoss(MultiResolutionSTFT(SIZES), 0.1)})
    return Composer(network, Direct(), ZeroStart(), **({"loss": loss} | arguments))


@pytest.mark.parametrize(
    ("arguments", "slot"),
    [
        ({"inner": GradientSteps(samples_per_step=10)}, "samples_per_step of inner is 10"),
        ({"inner": GradientSteps(test_samples_per_step=9)}, "test_samples_per_step of inner is 9"),
        ({"refinement": Refinement(steps=3, samples_per_step=8)}, "samples_per_step of refinement is 8"),
    ],
)
def test_gradient_steps_on_random_samples_raise(arguments, slot):
    with pytest.raises(ValueError, match=rf"{slot}.*MultiResolutionSTFT, compares whole signals.*loss of their own"):
        _composer(**arguments)


def test_gradient_steps_may_have_a_loss_of_samples_of_their_own():
    steps = GradientSteps(samples_per_step=10, loss=MeanSquaredError())
    assert _composer(inner=steps).inner is steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinate_subset": 0.5}, r"coordinate_subset is 0\.5.*set data\.init_args\.coordinate_subset to null"),
        ({"coordinate_noise": "shared"}, r"coordinate_noise is shared.*coordinate_noise to none"),
    ],
)
def test_data_with_a_subset_or_noise_of_coordinates_raises(arguments, message):
    data = SampleSpeech(**arguments)
    with pytest.raises(ValueError, match=message):
        _composer().check_sizes(data)
    _composer(loss=MeanSquaredError()).check_sizes(data)
    _composer().check_sizes(SampleSpeech())


def test_an_inner_loop_on_all_samples_trains_through_spectra():
    torch.manual_seed(0)
    composer = _composer(inner=GradientSteps(steps=2))
    _, target = _pair(channels=1, samples=40, dtype=torch.float32)
    steps = composer.inner
    latents = {name: spec.initial().expand(3, *spec.shape) for name, spec in composer.parametrization.latents.items()}

    def reconstruct(moved, coords):
        return composer.renderer.reconstruct(composer.bind(moved), coords)

    trajectory = steps(latents, target, reconstruct, composer.loss, composer.parametrization.step_scales, training=True)
    composer.loss(reconstruct(trajectory.last, target.coords), target).sum().backward()
    gradients = [parameter.grad for parameter in composer.network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert (trajectory.losses[1] != trajectory.losses[0]).all()
