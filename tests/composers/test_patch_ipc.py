"""Patch-wise IPC: its initialisation from data, and its parts in other combinations."""

import itertools
import math

import numpy as np
import pytest
import torch
from flat_images import FlatData
from lightning import Trainer

from composers import Composer, GradientSteps, PatchIPC, Refinement
from composers.encoders import MixedPatches, Patches, PatchProjection, PerToken, ViewPatches
from composers.inference import DifferentiableSGD, Hypernetwork, LearnedCode, LearnedStart, TorchOptimizer, ZeroStart
from composers.latents import Layout, PatchCodes
from composers.networks import PatchwiseMLP
from datamodules import SamplePhotos
from datamodules.batch import Observation, Samples, Views
from datamodules.domain import Grid
from modalities import Images
from modalities.linear import LinearBaseline

BLOCKS = {"num_blocks": 1, "kernel_size": 3, "mlp_ratio": 1}


def _parts(overlap=0.0625, clusters=1):
    """Return a tiny network, encoder and codes of patches of 4 x 4 pixels."""
    torch.manual_seed(0)
    network = PatchwiseMLP(2, 3, 4, hidden_dim=8, rank=3, overlap=overlap)
    return network, MixedPatches((3, -1, -1), 4, **BLOCKS), PatchCodes(code_dim=6, num_clusters=clusters, **BLOCKS)


def _tiny(clusters=1, **arguments):
    """Return a tiny patch-wise IPC."""
    network, encoder, codes = _parts(clusters=clusters)
    return PatchIPC(network, encoder, codes, **arguments)


def _observation(shape=(13, 10), instances=2):
    """Return smooth random images as an observation."""
    noise = torch.rand(instances, 3, shape[0] + 4, shape[1] + 4, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.avg_pool2d(noise, 5, 1)
    return Observation(images, Samples(Grid.unit(2).coords(shape), images.flatten(2).mT))


def _losses(composer, latents, observation):
    """Return the squared error of every instance."""
    coords, values = observation.samples[:2]
    rendered = composer.render(composer.compose(latents, composer.layout(observation)), coords)
    return (rendered - values).square().mean((1, 2))


@pytest.fixture(scope="module")
def photographs():
    """Return the bundled photographs, and all held-out images."""
    data = SamplePhotos()
    data.setup("fit")
    data.setup("test")
    return data, torch.stack([data.test_set[index].values.float() / 255 for index in range(len(data.test_set))])


# The start from data


def _gains(data, images, composer):
    """Return by how many dB the initial predictions are better than PCA with as many numbers."""
    composer.initialize(data)
    values = composer.eval()(Observation(images), Grid.unit(2).coords(tuple(images.shape[2:])))
    numbers = composer.parametrization.code_dim * math.prod(size // 8 for size in images.shape[2:])
    baseline = LinearBaseline(data, Images.linear)
    gains = []
    for image, actual in zip(images, values.mT.unflatten(-1, images.shape[2:]), strict=True):
        linear = baseline.reconstruct(image, numbers).values
        gains.append(10 * ((linear - image).square().mean() / (actual - image).square().mean()).log10())
    return np.mean(gains)


@torch.no_grad()
@pytest.mark.parametrize(
    ("overlap", "loss"),  # in dB; blending approximations of neighbouring patches
    [
        (0.0625, 0.0),
        (0.5, 2.1),
        *(pytest.param(*values, marks=pytest.mark.slow) for values in [(0.0, 0.0), (0.125, 0.2), (0.25, 0.7)]),
    ],
)
def test_training_starts_from_linear_coding(photographs, overlap, loss):
    data, images = photographs
    torch.manual_seed(0)
    composer = PatchIPC(PatchwiseMLP(2, 3, overlap=overlap), MixedPatches((3, -1, -1)))
    # the regression from all neighbours is better than PCA of single patches
    assert _gains(data, images, composer) > 0.3 - loss


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("clusters", [6, 24])
def test_with_clusters_training_starts_above_linear_coding(photographs, clusters):
    data, images = photographs
    gains = []
    for count in (1, clusters):
        torch.manual_seed(0)
        codes = PatchCodes(16, num_clusters=count, num_blocks=0)
        gains.append(_gains(data, images, PatchIPC(PatchwiseMLP(2, 3), MixedPatches((3, -1, -1)), codes)))
    assert gains[1] > gains[0] + 0.1
    assert gains[1] > 0.5


def _state(composer):
    """Return a copy of all parameters."""
    return {name: value.clone() for name, value in composer.state_dict().items()}


def _same(composer, state):
    return all(torch.equal(value, state[name]) for name, value in composer.state_dict().items())


def _fit(composer):
    """Set a composer up as training does, without taking a step."""
    Trainer(max_steps=0, logger=False, barebones=True, accelerator="cpu").fit(composer, FlatData(batch_size=3))


@pytest.mark.parametrize("clusters", [1, 3])
def test_initialising_draws_no_random_numbers_and_is_deterministic(clusters):
    first, second = _tiny(clusters), _tiny(clusters)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first.initialize(FlatData())
    assert torch.equal(torch.rand(3), expected)
    second.initialize(FlatData())
    assert _same(second, _state(first))


def test_training_initialises_once():
    composer = _tiny()
    constructed = _state(composer)
    _fit(composer)
    assert not _same(composer, constructed)
    composer.load_state_dict(constructed)
    _fit(composer)
    assert _same(composer, constructed)


def test_loaded_weights_are_kept():
    composer = _tiny()
    weights = {name: value + 0.1 for name, value in composer.state_dict().items()}
    composer.load_state_dict(weights)
    _fit(composer)
    assert _same(composer, weights)


class _WithoutTraining(FlatData):
    """Data without training items."""

    def setup(self, stage):
        """Set up other stages only."""
        if stage != "fit":
            super().setup(stage)


class _OfViews(FlatData):
    """Data whose signals are views."""

    def training_batches(self, count=256):
        """Yield batches of views."""
        for batch in super().training_batches(count):
            images = batch.observation.signal
            views = Views(images[:, None], torch.zeros(len(images), 1, 3, 4), torch.ones(len(images), 1, 4))
            yield batch._replace(observation=batch.observation._replace(signal=views))


class _WithoutSignals(FlatData):
    """Data that observes samples only."""

    def training_batches(self, count=256):
        """Yield batches without signals."""
        for batch in super().training_batches(count):
            yield batch._replace(observation=batch.observation._replace(signal=None))


@pytest.mark.parametrize("kind", [_WithoutTraining, _OfViews, _WithoutSignals])
def test_without_training_signals_nothing_is_changed(kind):
    composer = _tiny()
    before = _state(composer)
    composer.initialize(kind())
    assert _same(composer, before)


@pytest.mark.parametrize("clusters", [1, 3, 40])
def test_a_few_signals_suffice_for_the_start(clusters):
    composer = _tiny(clusters)
    composer.initialize(FlatData())  # of constant images
    observation = FlatData(eval_batch_size=2)
    batch = next(iter(observation.training_batches(2))).observation
    with torch.no_grad():
        assert _losses(composer, composer.encode(batch), batch).max() < 1e-3


def test_only_the_first_training_signals_are_read(monkeypatch):
    read = []

    def initialize(signals):
        read.extend(signals)

    composer = _tiny()
    monkeypatch.setattr(composer.parametrization, "initialize", initialize)
    monkeypatch.setattr("composers.base._INITIAL_VALUES", 1)
    composer.initialize(FlatData(eval_batch_size=2))
    assert len(read) == 1


# Any size


@torch.no_grad()
@pytest.mark.parametrize("shape", [(16, 16), (13, 10), (3, 2), (1, 1), (40, 5)])
def test_signals_of_any_size_are_encoded_at_their_own_resolution(shape):
    composer, observation = _tiny(), _observation(shape)
    codes = composer.encode(observation)["codes"]
    assert codes.shape == (2, -(-shape[0] // 4), -(-shape[1] // 4), 6)
    values = composer(observation, observation.samples.coords)
    assert values.shape == (2, shape[0] * shape[1], 3)
    assert values.isfinite().all()


@torch.no_grad()
def test_shifting_an_image_by_a_patch_shifts_codes_and_values_away_from_borders():
    composer = _tiny()
    for parameter in composer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    image = _observation((48, 48), 1).signal
    shifted = image[:, :, 4:, 8:]
    values = [
        composer(Observation(part), Grid.unit(2).coords(part.shape[2:]))[0].unflatten(0, part.shape[2:])
        for part in (image, shifted)
    ]
    codes = [composer.encode(Observation(part))["codes"] for part in (image, shifted)]
    torch.testing.assert_close(codes[1][:, 1:-1, 1:-1], codes[0][:, 2:-1, 3:-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values[1][12:-16, 12:-16], values[0][16:-16, 20:-16], atol=1e-4, rtol=1e-3)


# Other combinations


STARTS = [("hypernetwork", 1), ("projection", 1), ("projection", 3), ("zero", 1), ("learned", 1), ("learned", 3)]


def _started(name, clusters=1):
    """Return a tiny composer with a start, and the inner loop of COIN++."""
    network, encoder, codes = _parts(clusters=clusters)
    inner = GradientSteps(3, DifferentiableSGD(lr=0.5))
    starts = {
        "hypernetwork": lambda: Hypernetwork(encoder, PerToken()),
        "projection": lambda: Hypernetwork(encoder, PatchProjection(clusters)),
        "zero": ZeroStart,
        "learned": LearnedStart,
    }
    return Composer(network, codes, starts[name](), inner)


@pytest.mark.parametrize(("name", "clusters"), STARTS)
def test_inner_steps_lower_the_loss_at_any_size_and_keep_the_index(name, clusters):
    composer = _started(name, clusters).eval()
    for shape in ((13, 10), (8, 20)):
        observation = _observation(shape)
        trajectory = composer.trajectory(observation, (0, 3))
        with torch.no_grad():
            first, last = (_losses(composer, trajectory[step], observation) for step in (0, 3))
        assert trajectory[3]["codes"].shape == (2, *composer.layout(observation).grid, 6)
        assert (last < first).all()
        if clusters > 1:
            assert torch.equal(trajectory[3]["codes"][..., 0], trajectory[0]["codes"][..., 0])


@pytest.mark.parametrize(("name", "clusters"), STARTS)
def test_training_differentiates_through_the_inner_steps(name, clusters):
    composer = _started(name, clusters).train().double()
    for parameter in composer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    observation = _observation()
    observation = Observation(
        observation.signal.double(), Samples(*(part.double() for part in observation.samples[:2]))
    )

    def loss():
        return _losses(composer, composer.encode(observation), observation).mean()

    loss().backward()
    assert all(parameter.grad.any() for parameter in composer.parameters() if parameter.requires_grad)
    weight = composer.parametrization.values.weight
    direction, length = torch.randn_like(weight), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * length * direction
            values.append(loss().item())
            weight -= sign * length * direction
    slope = (weight.grad * direction).sum().item()
    assert slope == pytest.approx((values[0] - values[1]) / (2 * length), rel=1e-4)


@pytest.mark.parametrize("clusters", [1, 3])
@pytest.mark.parametrize("lr", [0.05, 1.0])
def test_refinement_lowers_the_loss_of_a_prediction_and_keeps_the_index(clusters, lr):
    composer, observation = _tiny(clusters), _observation()
    composer.initialize(FlatData())
    with torch.no_grad():
        latents = composer.encode(observation)
    optimizer = TorchOptimizer(lambda parameters: torch.optim.Adam(parameters, lr=lr))
    refined = composer.refine(
        latents, observation.samples, Refinement(30, rule=optimizer), composer.layout(observation)
    )
    assert all(codes["codes"].isfinite().all() for codes in refined.values())
    if clusters > 1:
        assert torch.equal(refined[30]["codes"][..., 0], latents["codes"][..., 0])
        assert len(latents["codes"][..., 0].unique()) > 1
    if lr < 1:
        with torch.no_grad():
            first, last = (_losses(composer, refined[step], observation) for step in (0, 30))
        assert (last < 0.9 * first).all()


@torch.no_grad()
def test_the_index_is_kept_under_autocast():
    composer, observation = _tiny(3), _observation()
    composer.initialize(FlatData())
    expected = composer.encode(observation)["codes"]
    with torch.autocast("cpu", torch.bfloat16):
        actual = composer.encode(observation)["codes"]
        values = composer(observation, observation.samples.coords)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)  # the correction is zero
    torch.testing.assert_close(values.float(), composer(observation, observation.samples.coords), atol=0.03, rtol=0)


@torch.no_grad()
def test_codes_in_float64_are_those_in_float32():
    composer, observation = _tiny(3), _observation()
    composer.initialize(FlatData())
    coords = observation.samples.coords
    expected = composer.encode(observation)["codes"], composer(observation, coords)
    composer, observation = composer.double(), observation._replace(signal=observation.signal.double())
    actual = composer.encode(observation)["codes"], composer(observation, coords.double())
    for first, second in zip(actual, expected, strict=True):
        assert first.dtype == torch.float64
        torch.testing.assert_close(first.float(), second, atol=1e-4, rtol=1e-4)


def test_codes_and_readout_with_other_clusters_are_rejected():
    network, encoder, codes = _parts(clusters=3)
    composer = Composer(network, codes, Hypernetwork(encoder, PatchProjection(2)))
    with pytest.raises(ValueError, match=r"PatchProjection has 2 clusters .*; the parametrization codes 3 clusters"):
        composer.initialize(FlatData())


@torch.no_grad()
def test_patches_without_mixing_are_projected():
    network, _, codes = _parts(clusters=3)
    composer = Composer(network, codes, Hypernetwork(Patches((3, 8, 12), 4), PatchProjection(3)))
    composer.initialize(FlatData())
    observation = _observation((8, 12))
    other = _tiny(3)
    other.initialize(FlatData())
    assert torch.equal(composer.encode(observation)["codes"], other.encode(observation)["codes"])


@pytest.mark.parametrize("kind", [ZeroStart, LearnedStart])
def test_starts_without_an_encoder_take_the_layout_of_the_codes(kind):
    network, _, codes = _parts()
    composer = Composer(network, codes, kind())
    observation = _observation((13, 10))
    assert composer.layout(observation) == Layout((4, 3), (13, 10))
    assert composer.encode(observation)["codes"].shape == (2, 4, 3, 6)
    with pytest.raises(ValueError, match="take the sizes of their -1 axes from the signal"):
        composer.encode(observation._replace(signal=None))


def test_parts_with_other_patches_are_rejected():
    network, encoder, codes = _parts()
    with pytest.raises(
        ValueError, match=r"patch_size of the encoder is \(2, 2\), of the network \(4, 4\): set the same"
    ):
        PatchIPC(network, MixedPatches((3, -1, -1), 2, **BLOCKS), codes)
    with pytest.raises(ValueError, match=r"patch_size of the encoder is \(8, 8\)"):
        PatchIPC(network, ViewPatches((1, 3, 8, 8), 8), codes)
    other = Composer(network, codes, Hypernetwork(MixedPatches((3, -1, -1), 2, **BLOCKS), PerToken()))
    with pytest.raises(
        ValueError, match=r"into a grid \(7, 5\), and the parametrization into \(4, 3\): set patch_size"
    ):
        other.encode(_observation((13, 10)))
    with pytest.raises(ValueError, match="take the sizes of their -1 axes"):
        Composer(
            *(part for part in _parts() if part is not encoder and not isinstance(part, MixedPatches)), LearnedCode(3)
        )


@torch.no_grad()
def test_instances_do_not_interact():
    composer, observation = _tiny(), _observation(instances=3)
    values = composer(observation, observation.samples.coords)
    coords = observation.samples.coords.expand(3, -1, -1)
    torch.testing.assert_close(composer(observation, coords), values, atol=1e-5, rtol=1e-4)
    for index, signal in itertools.islice(enumerate(observation.signal.split(1)), 2):
        torch.testing.assert_close(
            composer(Observation(signal), observation.samples.coords)[0], values[index], atol=1e-5, rtol=1e-4
        )
