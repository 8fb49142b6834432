"""Gradient steps: sampling, reports, losses, modes, and the outer losses of Reptile."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from composers import GradientSteps, Refinement
from composers.inference import DifferentiableSGD, TorchOptimizer
from composers.inference.adapt import DivergenceError, check_finite
from composers.inference.gradient_steps import outside_inference, subset_of
from composers.losses import Loss, MeanSquaredError
from composers.networks import TensorSpec
from composers.rendering import Reconstruction
from datamodules.batch import Samples

B, N = 3, 8
SPECS = {"weight.0": TensorSpec((2, 4), partial(torch.zeros, 2, 4))}


class _Weighted(Loss):
    """A squared error with a learned weight per channel."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, reconstruction, target):
        return ((reconstruction.values - target.values).square() * self.weights).mean((1, 2))


@pytest.fixture
def latents():
    return {"weight.0": torch.randn(B, 2, 4).requires_grad_()}


@pytest.fixture(params=["shared", "per_instance"])
def samples(request):
    """Return samples with coordinates of both kinds, some of which are padding."""
    coords = torch.rand(N, 2) if request.param == "shared" else torch.rand(B, N, 2)
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1, 5:] = False
    return Samples(coords, torch.rand(B, N, 4), mask)


def _reconstruct(latents, coords):
    return Reconstruction.of_values(coords @ latents["weight.0"])


def _ones(latents):
    return {name: torch.ones(()) for name in latents}


def _take(gradient_steps, latents, samples, loss=None, **options):
    gradient_steps.connect(SPECS)
    return gradient_steps(latents, samples, _reconstruct, loss or MeanSquaredError(), _ones, **options)


def _naive(latents, samples, chosen, lr):
    """Return the latents after one step per entry of ``chosen (steps, B, K)``, instance by instance."""
    results = []
    for instance in range(B):
        weight = latents["weight.0"][instance].detach().double()
        coords = (samples.coords if samples.coords.dim() == 2 else samples.coords[instance]).double()
        for indices in chosen:
            gradient, count = torch.zeros_like(weight), 0
            for index in indices[instance]:
                if samples.mask[instance, index]:
                    error = coords[index] @ weight - samples.values[instance, index].double()
                    gradient += 2 * coords[index][:, None] * error / 4
                    count += 1
            weight = weight - lr * gradient / max(count, 1)
        results.append(weight)
    return torch.stack(results)


def _naive_largest_errors(weight, samples, count):
    """Return the indices of the samples of largest error of every instance, without padding."""
    chosen = []
    for instance in range(B):
        coords = samples.coords if samples.coords.dim() == 2 else samples.coords[instance]
        errors = ((coords @ weight[instance].float() - samples.values[instance]) ** 2).mean(1)
        errors = [float(error) if valid else -1 for error, valid in zip(errors, samples.mask[instance], strict=True)]
        chosen.append(sorted(range(N), key=lambda index, errors=errors: -errors[index])[:count])
    return chosen


@pytest.mark.parametrize("training", [True, False])
def test_steps_on_all_samples_equal_a_loop(latents, samples, training):
    trajectory = _take(GradientSteps(3, DifferentiableSGD(0.5)), latents, samples, training=training)
    expected = _naive(latents, samples, [[range(N)] * B] * 3, 0.5)
    torch.testing.assert_close(trajectory.last["weight.0"].double(), expected, atol=1e-5, rtol=0)
    assert trajectory.losses.shape == (4, B)
    assert trajectory.last["weight.0"].requires_grad == training


def test_random_samples_are_shared_by_instances_and_depend_on_seed_address_and_step(latents, samples, monkeypatch):
    inner = GradientSteps(2, DifferentiableSGD(0.5), samples_per_step=5)
    draws = inner.draws(samples, 3, training=True, address=(7,))
    assert all(draw.shape == (5,) and draw.min() >= 0 and draw.max() < N for draw in draws)
    assert not torch.equal(draws[0], draws[1])
    assert all(map(torch.equal, draws, inner.draws(samples, 3, training=True, address=(7,))))
    assert not all(map(torch.equal, draws, inner.draws(samples, 3, training=True, address=(8,))))
    refinement = Refinement(2, samples_per_step=5)
    assert not all(map(torch.equal, draws, refinement.draws(samples, 3, training=True, address=(7,))))
    trajectory = _take(inner, latents, samples, training=True, address=(7,))
    expected = _naive(latents, samples, [[draw.tolist()] * B for draw in draws[:2]], 0.5)
    torch.testing.assert_close(trajectory.last["weight.0"].double(), expected, atol=1e-5, rtol=0)
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    assert not all(map(torch.equal, draws, inner.draws(samples, 3, training=True, address=(7,))))


def test_global_random_state_is_not_used(latents, samples):
    state = torch.get_rng_state()
    _take(GradientSteps(2, samples_per_step=5), latents, samples, training=True)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count", [1, 3, N, 2 * N])
def test_samples_of_largest_error_are_chosen_per_instance(latents, samples, count):
    inner = GradientSteps(3, DifferentiableSGD(0.5), samples_per_step=count, choose="error")
    trajectory = _take(inner, latents, samples, training=True, report=(0, 1, 2))
    chosen = [
        _naive_largest_errors(trajectory.latents[step]["weight.0"].detach(), samples, min(count, N))
        for step in range(3)
    ]
    expected = _naive(latents, samples, chosen, 0.5)
    torch.testing.assert_close(trajectory.last["weight.0"].double(), expected, atol=1e-5, rtol=0)


def test_numbers_of_steps_and_samples_may_differ_in_evaluation(latents, samples):
    inner = GradientSteps(2, test_steps=4, samples_per_step=3, test_samples_per_step="all")
    assert len(_take(inner, latents, samples, training=True).losses) == 3
    assert len(_take(inner, latents, samples).losses) == 5
    assert len(_take(inner, latents, samples, steps=6).losses) == 7
    assert inner.draws(samples, 1, training=True)[0].shape == (3,)
    assert inner.draws(samples, 1, training=False) == [None]
    same = GradientSteps(2, samples_per_step=3)
    assert (same.test_steps, same.test_samples_per_step) == (2, 3)


def test_reported_latents_equal_those_of_fewer_steps(latents, samples):
    inner = GradientSteps(5, DifferentiableSGD(0.5), samples_per_step=4)
    trajectory = _take(inner, latents, samples, report=(0, 2, 3))
    assert sorted(trajectory.latents) == [0, 2, 3, 5]
    assert torch.equal(trajectory.latents[0]["weight.0"], latents["weight.0"])
    for step in (2, 3):
        expected = _take(inner, latents, samples, steps=step).last["weight.0"]
        assert torch.equal(trajectory.latents[step]["weight.0"], expected)
    assert torch.equal(trajectory.last["weight.0"], trajectory.latents[5]["weight.0"])


def test_own_loss_replaces_that_of_the_composer_and_is_trained(latents, samples):
    samples = samples._replace(mask=None)
    loss = _Weighted()
    inner = GradientSteps(2, DifferentiableSGD(0.5), loss=loss)
    trajectory = _take(inner, latents, samples, training=True)
    expected = latents["weight.0"]
    for _ in range(2):
        errors = samples.coords @ expected - samples.values
        coords = samples.coords.expand(B, N, 2)
        expected = expected - 0.5 * coords.mT @ (2 * errors * loss.weights) / (4 * N)
    torch.testing.assert_close(trajectory.last["weight.0"], expected)
    actual_gradient, expected_gradient = (
        torch.autograd.grad(last.square().sum(), loss.weights)[0] for last in (trajectory.last["weight.0"], expected)
    )
    torch.testing.assert_close(actual_gradient, expected_gradient)
    assert "loss.weights" in dict(inner.named_parameters())


@pytest.mark.parametrize("rule", [DifferentiableSGD(outer="first_order"), DifferentiableSGD(outer="reptile")])
def test_own_loss_with_parameters_that_would_not_be_trained_raises_an_error(rule):
    with pytest.raises(ValueError, match=r"_Weighted has parameters.*second_order"):
        GradientSteps(rule=rule, loss=_Weighted())
    assert GradientSteps(rule=rule, loss=MeanSquaredError()).loss is not None


def test_refinement_with_a_loss_that_has_parameters_raises_an_error():
    with pytest.raises(ValueError, match=r"_Weighted has parameters"):
        Refinement(loss=_Weighted())


@pytest.mark.parametrize("rule", [DifferentiableSGD(0.5), TorchOptimizer(partial(torch.optim.SGD, lr=0.5))])
@pytest.mark.parametrize("choose", ["random", "error"])
def test_works_in_inference_mode_and_without_gradients(latents, samples, rule, choose):
    gradient_steps = GradientSteps(3, rule, samples_per_step=4, choose=choose)
    expected = _take(gradient_steps, latents, samples).last["weight.0"]
    assert not expected.requires_grad
    with torch.inference_mode():
        inside = {"weight.0": latents["weight.0"].clone()}
        copied = Samples(*(None if part is None else part.clone() for part in samples))
        for start, target in ((inside, copied), (latents, samples)):
            assert torch.equal(_take(gradient_steps, start, target).last["weight.0"], expected)
        assert not any(part.is_inference() for part in outside_inference(copied) if part is not None)
    with torch.no_grad():
        assert torch.equal(_take(gradient_steps, latents, samples, training=True).last["weight.0"], expected)


def test_latents_are_not_modified_and_results_have_their_own_storage(latents, samples):
    before = latents["weight.0"].detach().clone()
    for rule in (DifferentiableSGD(0.5), TorchOptimizer()):
        trajectory = _take(GradientSteps(2, rule), latents, samples, report=(0,))
        assert torch.equal(latents["weight.0"], before)
        storages = {step["weight.0"].data_ptr() for step in (latents, *trajectory.latents.values())}
        assert len(storages) == 3


def test_steps_are_taken_in_float32(latents, samples):
    low = {"weight.0": latents["weight.0"].detach().bfloat16()}
    for training in (True, False):
        trajectory = _take(GradientSteps(2), low, samples, training=training)
        assert trajectory.last["weight.0"].dtype == torch.float32


def test_losses_that_are_not_finite_are_returned_per_instance(latents, samples):
    samples.values[2, 0] = torch.nan
    losses = _take(GradientSteps(2), latents, samples).losses
    assert losses.isfinite().all(0).tolist() == [instance != 2 for instance in range(B)]
    with pytest.raises(DivergenceError) as caught:
        check_finite(losses)
    assert (caught.value.step, caught.value.instance) == (0, 2)


def test_attention_in_the_field_has_second_order_gradients():
    """The fused attention of CPUs has no double backward."""
    tokens = torch.randn(B, 1, 6, 8, requires_grad=True)
    coords, values = torch.randn(N, 8), torch.rand(B, N, 8)

    def reconstruct(latents, coords):
        query = coords.expand(B, 1, -1, -1)
        return Reconstruction.of_values(
            functional.scaled_dot_product_attention(query, latents["tokens"], latents["tokens"])[:, 0]
        )

    def naive(tokens):
        scores = coords @ tokens[:, 0].mT / math.sqrt(8)
        return scores.softmax(-1) @ tokens[:, 0]

    inner = GradientSteps(1, DifferentiableSGD(0.5))
    actual = inner({"tokens": tokens}, Samples(coords, values), reconstruct, MeanSquaredError(), _ones, training=True)
    loss = (naive(tokens) - values).square().mean((1, 2)).sum()
    expected = tokens - 0.5 * torch.autograd.grad(loss, tokens, create_graph=True)[0]
    torch.testing.assert_close(actual.last["tokens"], expected, atol=1e-5, rtol=0)
    actual_gradient, expected_gradient = (
        torch.autograd.grad(last.square().sum(), tokens)[0] for last in (actual.last["tokens"], expected)
    )
    torch.testing.assert_close(actual_gradient, expected_gradient, atol=1e-4, rtol=0)


def test_outer_losses_of_reptile_pull_the_start_towards_the_adapted_latents(latents):
    inner = GradientSteps(rule=DifferentiableSGD(outer="reptile"))
    adapted = {"weight.0": torch.randn(B, 2, 4)}
    losses = torch.rand(B, requires_grad=True)
    outer = inner.outer_losses(losses, latents, adapted)
    assert torch.equal(outer, losses)
    [gradient] = torch.autograd.grad(outer.sum(), latents["weight.0"])
    torch.testing.assert_close(gradient, latents["weight.0"].detach() - adapted["weight.0"])
    assert GradientSteps().outer_losses(losses, latents, adapted) is losses


def test_reptile_adapts_without_a_graph(latents, samples):
    inner = GradientSteps(2, DifferentiableSGD(0.5, outer="reptile"))
    trajectory = _take(inner, latents, samples, training=True)
    assert not trajectory.last["weight.0"].requires_grad
    expected = _naive(latents, samples, [[range(N)] * B] * 2, 0.5)
    torch.testing.assert_close(trajectory.last["weight.0"].double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("coords", [torch.arange(16.0).reshape(8, 2), torch.arange(48.0).reshape(3, 8, 2)])
def test_subset_has_the_same_samples_of_all_instances(coords):
    samples = Samples(coords, torch.rand(B, N, 4), torch.rand(B, N) > 0.5)
    subset = subset_of(samples, torch.tensor([5, 0, 5]))
    for index, position in enumerate((5, 0, 5)):
        assert torch.equal(subset.coords[..., index, :], coords[..., position, :])
        assert torch.equal(subset.values[:, index], samples.values[:, position])
        assert torch.equal(subset.mask[:, index], samples.mask[:, position])
    assert subset_of(Samples(coords), torch.tensor([1])).values is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"test_steps": 0}, "test_steps 0"),
        ({"report": (-1,)}, r"report is \[-1\]"),
        ({"samples_per_step": 0}, "samples_per_step is 0"),
        ({"test_samples_per_step": 0}, "test_samples_per_step 0"),
        ({"choose": "first"}, "choose is first; allowed are random and error"),
    ],
    ids=str,
)
def test_arguments_out_of_range_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        GradientSteps(**arguments)


def test_settings_in_words():
    assert GradientSteps(1).describe() == "1 inner step; step size 0.003; second order; all samples per step"
    inner = GradientSteps(2, DifferentiableSGD(0.1), 1000, 2048, "all", choose="error")
    assert inner.describe() == (
        "2 inner steps in training, 1000 at test; step size 0.1; second order; "
        "the 2,048 samples of largest error per step, all samples at test"
    )


def test_refinement_uses_adam_and_reports_first_and_last_step(latents, samples):
    refinement = Refinement(4, report=(2, 9))
    assert isinstance(refinement.rule, TorchOptimizer)
    assert refinement.report == (0, 2, 4)
    trajectory = _take(refinement, latents, samples, report=refinement.report)
    assert sorted(trajectory.latents) == [0, 2, 4]
    assert refinement.with_steps(6).report == (0, 6)
    assert len(_take(refinement.with_steps(6), latents, samples).losses) == 7
    assert len(_take(Refinement(0), latents, samples).losses) == 1
