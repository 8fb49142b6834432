"""Refinement: its steps against closed forms, its independence of batches, and what it leaves unchanged."""

from functools import partial

import pytest
import torch

from composers import Refinement
from composers.evaluation import measure_codes
from composers.inference import DifferentiableSGD, TorchOptimizer
from composers.inference.rules import unit_scales
from composers.losses import Loss
from composers.metrics import PSNR
from composers.networks import CoordinateMLP, IdentityEncoding
from composers.rendering import Reconstruction
from datamodules.batch import Observation, Samples


def _sgd(lr=0.5, **options):
    """Return the rule of plain gradient descent."""
    return TorchOptimizer(partial(torch.optim.SGD, lr=lr), **options)


class _OfValues(Loss):
    """A loss that is a function of the reconstructed values alone.

    Args:
        function: From values ``(B, N, C)`` to losses ``(B,)``.
    """

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, reconstruction, target):
        """Return the function of the values."""
        return self.function(reconstruction.values)


def _minimise(refinement, function, start):
    """Return the latents ``(B, N)`` by step where a function ``(B, N) -> (B,)`` of one latent is minimised."""
    samples = Samples(torch.zeros(start.shape[1], 1), torch.zeros(*start.shape, 1))
    trajectory = refinement(
        {"code": start},
        samples,
        lambda latents, coords: Reconstruction.of_values(latents["code"]),
        _OfValues(function),
        unit_scales,
        report=refinement.report,
    )
    return {step: latents["code"] for step, latents in trajectory.latents.items()}


@pytest.fixture
def latents(tiny_ipc, tiny_batch):
    """Return the latents that the tiny composer predicts."""
    with torch.no_grad():
        return tiny_ipc.encode(tiny_batch.observation)


def _loss(composer, latents, samples):
    return composer.loss(composer.reconstruct(composer.compose(latents), samples.coords), samples)


def _largest_difference(first, second):
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_steps_of_sgd_on_a_quadratic_have_a_closed_form():
    curvature, minimum = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0, -1.0], [0.5, 4.0]])
    trajectory = _minimise(
        Refinement(4, _sgd(lr=0.1), report=(1, 2, 3)),
        lambda code: (curvature * (code - minimum).square()).sum(1),
        torch.zeros(2, 2),
    )
    assert list(trajectory) == [0, 1, 2, 3, 4]
    for step, code in trajectory.items():  # every step multiplies the distance by 1 - 2 lr c
        torch.testing.assert_close(code, minimum - (1 - 0.2 * curvature) ** step * minimum)


@pytest.mark.parametrize("make", ["make_ipc", "make_transinr"])
def test_a_step_of_sgd_follows_the_gradient_of_each_instance(make, request, tiny_batch):
    composer = request.getfixturevalue(make)().eval()
    latents = composer.encode(tiny_batch.observation)
    samples = tiny_batch.query
    refined = composer.refine(latents, samples, Refinement(1, _sgd()))[1]
    for instance in range(3):

        def loss(single, instance=instance):
            target = Samples(samples.coords, samples.values[instance : instance + 1])
            return _loss(composer, {name: latent.unsqueeze(0) for name, latent in single.items()}, target).sum()

        single = {name: latent[instance].detach() for name, latent in latents.items()}
        for name, gradient in torch.func.grad(loss)(single).items():
            assert gradient.any()
            torch.testing.assert_close(refined[name][instance], single[name] - 0.5 * gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_size_of_zero_changes_nothing(tiny_ipc, tiny_batch, latents, make):
    refined = tiny_ipc.refine(latents, tiny_batch.query, Refinement(3, TorchOptimizer(partial(make, lr=0.0))))
    assert all(_largest_difference(step, latents) == 0 for step in refined.values())


@pytest.mark.parametrize("rule", [None, _sgd(), DifferentiableSGD(lr=0.01)], ids=["adam", "sgd", "differentiable_sgd"])
@pytest.mark.parametrize("make", ["make_ipc", "make_transinr"])
def test_the_loss_of_every_instance_decreases(make, request, tiny_batch, rule):
    composer = request.getfixturevalue(make)().eval()
    latents = composer.encode(tiny_batch.observation)
    refined = composer.refine(latents, tiny_batch.query, Refinement(20, rule, report=(5,)))
    losses = torch.stack([_loss(composer, step, tiny_batch.query) for step in refined.values()])
    assert (losses[1:] < losses[:-1]).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("autocast", [False, True])
def test_refinement_works_in_every_gradient_mode(tiny_ipc, tiny_batch, mode, autocast):
    results = []
    for context in (torch.enable_grad, mode):
        with context(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            observation = tiny_batch.observation._replace(signal=tiny_batch.observation.signal.clone())
            samples = Samples(tiny_batch.query.coords.clone(), tiny_batch.query.values.clone())
            latents = tiny_ipc.encode(observation)
            tiny_ipc.render(tiny_ipc.compose(latents), samples.coords)  # fills the cache of autocast
            results.append(tiny_ipc.refine(latents, samples, Refinement(3, _sgd()))[3])
    assert _largest_difference(*results) < (1e-2 if autocast else 1e-6)
    assert _largest_difference(results[1], latents) > 1e-3


def test_samples_created_in_inference_mode_are_accepted(make_ipc, make_network):
    composer = make_ipc(network=make_network(encoding=IdentityEncoding())).eval()
    with torch.inference_mode():
        latents = composer.encode(Observation(torch.rand(2, 3, 8, 12)))
        samples = Samples(torch.rand(5, 2), torch.rand(2, 5, 3), torch.rand(2, 5) < 0.5)
        refined = composer.refine(latents, samples, Refinement(2, _sgd()))
    assert _largest_difference(refined[2], latents) > 0


def test_refining_a_batch_equals_refining_each_instance_alone(tiny_ipc, tiny_batch, latents):
    refinement = Refinement(5)
    together = tiny_ipc.refine(latents, tiny_batch.query, refinement)
    for instance in range(3):
        single = {name: latent[instance : instance + 1] for name, latent in latents.items()}
        samples = Samples(tiny_batch.query.coords, tiny_batch.query.values[instance : instance + 1])
        alone = tiny_ipc.refine(single, samples, refinement)
        for step, batched in together.items():
            selected = {name: latent[instance : instance + 1] for name, latent in batched.items()}
            assert _largest_difference(selected, alone[step]) < 1e-4


def test_masked_samples_are_ignored(tiny_ipc, tiny_batch, latents):
    mask = torch.rand(tiny_batch.query.values.shape[:2]) < 0.5
    disturbed = torch.where(mask.unsqueeze(-1), tiny_batch.query.values, 50.0)
    refinement = Refinement(3)
    actual, expected = (
        tiny_ipc.refine(latents, Samples(tiny_batch.query.coords, values, mask), refinement)[3]
        for values in (disturbed, tiny_batch.query.values)
    )
    assert _largest_difference(actual, expected) == 0
    assert _largest_difference(actual, tiny_ipc.refine(latents, tiny_batch.query, refinement)[3]) > 0


def test_per_instance_coordinates_equal_shared_ones(tiny_ipc, tiny_batch, latents):
    repeated = tiny_batch.query._replace(coords=tiny_batch.query.coords.expand(3, -1, -1))
    refinement = Refinement(3, _sgd())
    shared, expanded = (tiny_ipc.refine(latents, samples, refinement)[3] for samples in (tiny_batch.query, repeated))
    assert _largest_difference(shared, expanded) < 1e-5


def test_only_the_returned_latents_change(tiny_ipc, tiny_batch):
    latents = tiny_ipc.encode(tiny_batch.observation)
    before = {name: latent.detach().clone() for name, latent in latents.items()}
    weights = {name: weight.clone() for name, weight in tiny_ipc.state_dict().items()}
    values = tiny_batch.query.values.clone()
    refined = tiny_ipc.refine(latents, tiny_batch.query, Refinement(3))
    assert all(parameter.grad is None for parameter in tiny_ipc.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in tiny_ipc.state_dict().items())
    assert _largest_difference(latents, before) == 0
    assert _largest_difference(refined[0], before) == 0
    assert torch.equal(tiny_batch.query.values, values)
    assert not any(latent.requires_grad for step in refined.values() for latent in step.values())
    assert all(parameter.requires_grad for parameter in tiny_ipc.parameters())


@pytest.mark.parametrize(
    ("steps", "report", "expected"),
    [
        (0, (1, 3), [0]),
        (5, (), [0, 5]),
        (5, (3, 1, 10), [0, 1, 3, 5]),
        (3, (3, 0), [0, 3]),
        (1, (1, 3, 10, 30), [0, 1]),
    ],
)
@pytest.mark.parametrize("rule", [_sgd(), DifferentiableSGD()], ids=["torch", "differentiable"])
def test_reported_steps(steps, report, expected, rule):
    trajectory = _minimise(Refinement(steps, rule, report), lambda code: code.square().sum(1), torch.ones(2, 3))
    assert list(trajectory) == expected


def test_reported_steps_equal_fewer_steps(tiny_ipc, tiny_batch, latents):
    four = tiny_ipc.refine(latents, tiny_batch.query, Refinement(4, report=(2,)))
    two = tiny_ipc.refine(latents, tiny_batch.query, Refinement(2))
    assert _largest_difference(four[2], two[2]) == 0
    assert _largest_difference(four[2], four[4]) > 0


def test_the_refinement_of_the_composer_is_the_default(make_ipc, tiny_batch):
    composer = make_ipc(refinement=Refinement(2, report=(1,))).eval()
    latents = composer.encode(tiny_batch.observation)
    assert list(composer.refine(latents, tiny_batch.query)) == [0, 1, 2]
    assert list(make_ipc().refine(latents, tiny_batch.query)) == [0]


def test_latents_of_low_precision_are_refined_in_float32():
    start = torch.ones(1, 4, dtype=torch.bfloat16)
    code = _minimise(Refinement(20, _sgd(lr=1e-3)), lambda code: code.float().square().sum(1), start)[20]
    assert code.dtype == torch.float32
    torch.testing.assert_close(code, torch.full((1, 4), (1 - 2e-3) ** 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"report": (1, -3)}, r"report \[1, -3\]"),
        ({"stages": ("test", "train")}, r"stages names \['train'\]"),
        ({"starts": ("prediction", "zero")}, r"starts names \['zero'\]; allowed are prediction, mean and random"),
        ({"samples_per_step": 0}, "samples_per_step is 0"),
        ({"rule": DifferentiableSGD(learned_lr=["step"])}, r"learned_lr of a refinement is \['step'\]; no training"),
        ({"starts": ("mean",)}, r"starts is \['mean'\]; prediction is required, mean and random are optional"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        Refinement(**arguments)


def test_the_learning_rate_warms_up():
    refinement = Refinement(4, _sgd(warmup_steps=2), report=(1, 2, 3))
    trajectory = _minimise(refinement, lambda code: code.sum(1), torch.zeros(1, 1))  # a gradient of 1 everywhere
    assert [code.item() for code in trajectory.values()] == pytest.approx([0, -0.25, -0.75, -1.25, -1.75])
    longer = refinement.with_steps(5)
    assert list(_minimise(longer, lambda code: code.sum(1), torch.zeros(1, 1))) == [0, 5]
    assert (longer.rule, longer.starts, longer.stages) == (refinement.rule, refinement.starts, refinement.stages)
    assert refinement.steps == 4
    with pytest.raises(ValueError, match="warmup_steps is -1"):
        TorchOptimizer(warmup_steps=-1)


def test_the_loss_of_the_refinement_replaces_that_of_the_composer(tiny_ipc, tiny_batch, latents):
    towards_black = _OfValues(lambda values: values.square().mean((1, 2)))
    refined = tiny_ipc.refine(latents, tiny_batch.query, Refinement(20, loss=towards_black))
    norms = [tiny_ipc.render(tiny_ipc.compose(step), tiny_batch.query.coords).norm() for step in refined.values()]
    assert norms[-1] < norms[0]


# Random samples of every step


def _used(refinement, samples, step):
    """Return the samples that a step uses."""
    return refinement.chosen(
        samples, None, training=False, drawn=refinement.draws(samples, step + 1, training=False)[step]
    )


def test_every_step_draws_its_samples_whatever_the_batch(tiny_ipc, tiny_batch, latents):
    refinement = Refinement(3, _sgd(), samples_per_step=5)
    first, again, second = (_used(refinement, tiny_batch.query, step) for step in (0, 0, 1))
    assert first.coords.shape == (5, 2)
    assert first.values.shape == (3, 5, 3)
    assert torch.equal(first.coords, again.coords)
    assert not torch.equal(first.coords, second.coords)
    positions = {tuple(position): index for index, position in enumerate(tiny_batch.query.coords.tolist())}
    chosen = [positions[tuple(position)] for position in first.coords.tolist()]
    assert torch.equal(first.values, tiny_batch.query.values[:, chosen])
    together = tiny_ipc.refine(latents, tiny_batch.query, refinement)[3]
    alone = Samples(tiny_batch.query.coords, tiny_batch.query.values[1:2])
    single = tiny_ipc.refine({name: latent[1:2] for name, latent in latents.items()}, alone, refinement)[3]
    for name, latent in single.items():
        torch.testing.assert_close(latent[0], together[name][1], atol=1e-5, rtol=1e-4)


def test_masks_are_drawn_with_their_samples():
    values = torch.arange(4.0).view(1, 4, 1)
    samples = Samples(torch.arange(4.0).view(4, 1), values, torch.tensor([[True, True, False, False]]))
    used = _used(Refinement(1, samples_per_step=50), samples, 0)
    assert torch.equal(used.mask, used.values[..., 0] < 2)
    assert set(used.values.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}


# Other curves of a test: from the mean of the training codes, from random codes, and of all weights of the network


def test_curves_begin_at_the_mean_code_and_at_random_codes_of_its_scale(make_ipc, tiny_batch, monkeypatch):
    refinement = Refinement(4, report=(1,))
    composer = make_ipc(refinement=refinement).eval()
    statistics = measure_codes(composer, [tiny_batch])
    monkeypatch.setattr("composers.base.measure_training_codes", lambda model: statistics)
    composer.on_test_start()
    with torch.no_grad():
        evaluation = composer._evaluate(tiny_batch, "test")
        codes = composer.encode(tiny_batch.observation)["patterns.1"]
        assert list(evaluation["starts"]) == ["mean", "random"]
        mean = {"patterns.1": codes.mean(0).expand(3, -1, -1)}
        expected = composer.refine(mean, tiny_batch.query, refinement)
        for step, metrics in evaluation["starts"]["mean"].items():
            values = composer.render(composer.compose(expected[step]), tiny_batch.query.coords)
            psnr = PSNR().measure(Reconstruction.of_values(values), tiny_batch.query, None)
            torch.testing.assert_close(metrics["psnr"], psnr, atol=1e-3, rtol=0)
    for curve in evaluation["starts"].values():
        assert list(curve) == [0, 1, 4]
        assert (curve[4]["psnr"] > curve[0]["psnr"]).all()
    mean_psnr, random_psnr = (evaluation["starts"][name][0]["psnr"].mean() for name in ("mean", "random"))
    assert mean_psnr > random_psnr
    torch.testing.assert_close(statistics.mean["patterns.1"], codes.double().mean(0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", ["make_ipc", "make_transinr"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_free_network_begins_as_the_same_field(make, normalize, request, tiny_batch):
    composer = request.getfixturevalue(make)().eval()
    composer.network.normalize_weights = normalize
    modulations = composer.modulate(tiny_batch.observation)
    free = composer.network.free(modulations)
    assert len(free.latents) == 2 * composer.network.num_layers
    actual = composer.renderer(free.field(free.latents), tiny_batch.query.coords)
    torch.testing.assert_close(actual, composer.render(modulations, tiny_batch.query.coords), atol=1e-5, rtol=0)


def test_a_network_without_modulated_layers_cannot_be_freed():
    with pytest.raises(ValueError, match="no modulated_layers"):
        CoordinateMLP(2, 3, 8, 3, ()).free({})


def test_steps_on_all_weights_are_not_scaled(make_ipc, tiny_batch):
    network = Refinement(1, DifferentiableSGD(lr=0.1), report=())
    composer = make_ipc(refinement=Refinement(1, report=(), starts=("prediction",), network=network)).eval()
    curve = composer._evaluate(tiny_batch, "test")["starts"]["network"]
    free = composer.network.free(composer.modulate(tiny_batch.observation))
    weights = {name: latent.detach().clone().requires_grad_() for name, latent in free.latents.items()}
    error = (free.field(weights)(tiny_batch.query.coords) - tiny_batch.query.values).square().mean((1, 2))
    gradients = torch.autograd.grad(error.sum(), list(weights.values()))
    moved = {name: weight - 0.1 * step for (name, weight), step in zip(weights.items(), gradients, strict=True)}
    values = free.field(moved)(tiny_batch.query.coords).detach()
    expected = PSNR().measure(Reconstruction.of_values(values), tiny_batch.query, None)
    torch.testing.assert_close(curve[1]["psnr"], expected, atol=1e-3, rtol=0)


def test_all_weights_and_biases_are_refined_from_those_of_the_prediction(make_ipc, tiny_batch):
    network = Refinement(6, TorchOptimizer(partial(torch.optim.Adam, lr=1e-3)), report=(2,), samples_per_step=30)
    composer = make_ipc(refinement=Refinement(4, report=(), starts=("prediction",), network=network)).eval()
    composer.on_test_start()
    evaluation = composer._evaluate(tiny_batch, "test")
    curve = evaluation["starts"]["network"]
    assert list(curve) == [0, 2, 6]
    torch.testing.assert_close(curve[0]["psnr"], evaluation["metrics"][0]["psnr"], atol=1e-4, rtol=0)
    assert (curve[6]["psnr"] > curve[0]["psnr"]).all()
    assert not composer._evaluate(tiny_batch, "val")["starts"]
    free = composer.network.free(composer.modulate(tiny_batch.observation))
    weights = {name: latent.detach().clone().requires_grad_() for name, latent in free.latents.items()}
    optimizer = torch.optim.Adam(list(weights.values()), lr=1e-3)
    for step in range(6):
        used = _used(network, tiny_batch.query, step)
        optimizer.zero_grad()
        (free.field(weights)(used.coords) - used.values).square().mean((1, 2)).sum().backward()
        optimizer.step()
    values = free.field(weights)(tiny_batch.query.coords).detach()
    expected = PSNR().measure(Reconstruction.of_values(values), tiny_batch.query, None)
    torch.testing.assert_close(curve[6]["psnr"], expected, atol=1e-3, rtol=0)
