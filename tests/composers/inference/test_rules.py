"""Update rules against loops over instances and steps."""

from functools import partial

import pytest
import torch

from composers.inference import DifferentiableSGD, TorchOptimizer
from composers.inference.adapt import DivergenceError, check_finite
from composers.networks import TensorSpec

B = 3
SPECS = {
    "weight.0": TensorSpec((2, 4), partial(torch.randn, 2, 4), normalized=True),
    "bias.0": TensorSpec((4,), partial(torch.zeros, 4)),
}
INPUTS = torch.linspace(-1, 1, 2 * 5 * B).reshape(B, 5, 2).sin().double()
TARGETS = torch.linspace(0, 3, 4 * 5 * B).reshape(B, 5, 4).cos().double()


def _losses(latents, step):
    """Return the losses of all instances; the target depends on the step."""
    values = (INPUTS @ latents["weight.0"] + latents["bias.0"][:, None]).tanh()
    return (values - TARGETS / (step + 1)).square().mean((1, 2))


def _loss(weight, bias, instance, step):
    """Return the loss of one instance."""
    values = torch.tanh(INPUTS[instance] @ weight + bias)
    return ((values - TARGETS[instance] / (step + 1)) ** 2).mean()


def _scales(latents):
    """Return the squared norms of weights, and 1 for biases."""
    return {"weight.0": latents["weight.0"].square().sum((1, 2), keepdim=True), "bias.0": torch.ones(())}


@pytest.fixture
def latents():
    """Return the initial latents, which are leaves."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(B, *spec.shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, spec in SPECS.items()
    }


def _sgd(steps=3, **arguments):
    """Return a rule with random factors, or random step sizes of either sign."""
    rule = DifferentiableSGD(0.1, **arguments)
    rule.connect(SPECS, steps)
    bounds = (0.5, 2) if rule.learned_as == "factor" else (-0.05, 0.2)
    for factor in rule.factors.values():
        torch.nn.init.uniform_(factor.data, *bounds)
    return rule.double()


def _naive_sgd(rule, latents, steps, second_order):
    """Return the latents after every step and the losses ``(steps + 1, B)``, instance by instance."""
    trajectories, losses = [], []
    for instance in range(B):
        weight, bias = latents["weight.0"][instance], latents["bias.0"][instance]
        trajectory, instance_losses = [(weight, bias)], []
        for step in range(steps):
            loss = _loss(weight, bias, instance, step)
            gradients = torch.autograd.grad(loss, (weight, bias), create_graph=second_order)
            scale = (weight**2).sum() if second_order else (weight.detach() ** 2).sum()
            lr = 0.1 if rule.learned_as == "factor" else 1.0
            sizes = [lr * scale, torch.tensor(lr).double()]
            if rule.learned_lr:
                for index, name in enumerate(("weight_0", "bias_0")):
                    factors = rule.factors[name]
                    row = min(step, 2) if "step" in rule.learned_lr else 0
                    sizes[index] = sizes[index] * factors[row]
            weight, bias = weight - sizes[0] * gradients[0], bias - sizes[1] * gradients[1]
            trajectory.append((weight, bias))
            instance_losses.append(loss.detach())
        instance_losses.append(_loss(weight, bias, instance, steps).detach())
        trajectories.append(trajectory)
        losses.append(torch.stack(instance_losses))
    stacked = [
        {name: torch.stack([part[step][index] for part in trajectories]) for index, name in enumerate(SPECS)}
        for step in range(steps + 1)
    ]
    return stacked, torch.stack(losses, dim=1)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("outer", ["second_order", "first_order"])
@pytest.mark.parametrize(
    ("learned_lr", "learned_as"),
    [
        ((), "factor"),
        (("step",), "factor"),
        (("parameter",), "factor"),
        (("step", "parameter"), "factor"),
        (("tensor",), "factor"),
        (("tensor",), "lr"),
        (("step", "parameter"), "lr"),
    ],
    ids=str,
)
def test_sgd_and_its_outer_gradients_equal_a_loop(latents, learned_lr, learned_as, outer, steps, recompute):
    rule = _sgd(learned_lr=learned_lr, outer=outer, recompute=recompute, learned_as=learned_as)
    trajectory = rule.take(_losses, latents, steps, [0, 2], _scales, training=True)
    expected, expected_losses = _naive_sgd(rule, latents, steps, outer == "second_order")
    assert sorted(trajectory.latents) == sorted({0, *(step for step in (2,) if step < steps), steps})
    for step, reported in trajectory.latents.items():
        for name in SPECS:
            torch.testing.assert_close(reported[name], expected[step][name], atol=1e-12, rtol=0)
    torch.testing.assert_close(trajectory.losses, expected_losses, atol=1e-12, rtol=0)
    leaves = [*latents.values(), *rule.parameters()]
    actual_gradients, expected_gradients = (
        torch.autograd.grad(_losses(last, 9).mean(), leaves, allow_unused=True, materialize_grads=True)
        for last in (trajectory.last, expected[steps])
    )
    for actual, naive in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(actual, naive, atol=1e-10, rtol=0)
    learned = any(gradient.any() for gradient in actual_gradients[2:])
    assert learned == bool(learned_lr)


@pytest.mark.parametrize(
    ("learned_lr", "shapes"),
    [
        ((), {}),
        (("step",), {"weight_0": (3, 1, 1), "bias_0": (3, 1)}),
        (("parameter",), {"weight_0": (1, 2, 4), "bias_0": (1, 4)}),
        (("step", "parameter"), {"weight_0": (3, 2, 4), "bias_0": (3, 4)}),
        (("tensor",), {"weight_0": (1, 1, 1), "bias_0": (1, 1)}),
        (("step", "tensor"), {"weight_0": (3, 1, 1), "bias_0": (3, 1)}),
    ],
    ids=str,
)
def test_learned_factors_start_at_one_and_learned_step_sizes_at_lr(learned_lr, shapes):
    for learned_as, initial in (("factor", 1.0), ("lr", 0.25)):
        if not learned_lr and learned_as == "lr":
            continue
        rule = DifferentiableSGD(0.25, learned_lr, learned_as=learned_as)
        rule.connect(SPECS, 3)
        assert {name: tuple(factor.shape) for name, factor in rule.factors.items()} == shapes
        assert all(torch.equal(factor, torch.full_like(factor, initial)) for factor in rule.factors.values())
        sizes = rule.step_sizes({"weight.0": torch.full((3, 1, 1), 2.0), "bias.0": torch.ones(())}, 1)
        assert sizes["weight.0"].unique().tolist() == [0.5]
        assert sizes["bias.0"].unique().tolist() == [0.25]


def test_learned_factors_of_maps_are_shared_over_the_grid():
    rule = DifferentiableSGD(learned_lr=("parameter",))
    rule.connect({"map": TensorSpec((5, -1, -1), partial(torch.zeros, 5, 1, 1))}, 2)
    assert rule.factors["map"].shape == (1, 5, 1, 1)
    assert rule.step_sizes({"map": torch.ones(())}, 7)["map"].shape == (5, 1, 1)


def test_evaluation_keeps_no_graph(latents):
    constants = {name: latent.detach() for name, latent in latents.items()}
    rule = _sgd(learned_lr=("step",))
    with torch.no_grad():
        last = rule.take(_losses, constants, 2, [], _scales, training=False).last
    assert not any(latent.requires_grad for latent in last.values())
    expected = _naive_sgd(rule, latents, 2, second_order=True)[0][2]
    assert all(torch.allclose(last[name], expected[name], atol=1e-12) for name in SPECS)


def test_divergence_shows_in_the_losses_of_its_instance(latents):
    def losses(current, step):
        losses = _losses(current, step)
        return losses * torch.tensor([1.0, torch.inf if step == 2 else 1.0, 1.0]).double()

    for report in ([], [1], [2]):
        trajectory = _sgd().take(losses, latents, 3, report, _scales, training=True)
        with pytest.raises(DivergenceError, match="after 2 steps on instance 1"):
            check_finite(trajectory.losses)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"learned_lr": ["layer"]}, r"learned_lr names \['layer'\]; allowed are step, parameter and tensor"),
        ({"learned_lr": ["parameter", "tensor"]}, "name parameter or tensor, not both"),
        ({"learned_lr": ["step"], "learned_as": "size"}, "learned_as is size; allowed are factor and lr"),
        ({"learned_as": "lr"}, "learned_as is lr, but learned_lr is empty"),
        ({"outer": "maml"}, "outer is maml; allowed are second_order, first_order and reptile"),
    ],
    ids=str,
)
def test_arguments_of_sgd_out_of_range_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        DifferentiableSGD(**arguments)


def test_settings_in_words():
    assert DifferentiableSGD(0.003).describe() == ["step size 0.003", "second order"]
    rule = DifferentiableSGD(0.1, ["step", "parameter"], recompute=True)
    assert rule.describe() == [
        "step size 0.1, factors learned per step and parameter",
        "second order",
        "recomputed in the backward pass",
    ]
    rule = DifferentiableSGD(0.1, ["tensor"], learned_as="lr")
    assert rule.describe() == ["step size 0.1, learned per tensor", "second order"]
    assert DifferentiableSGD(0.1, outer="reptile", recompute=True).describe() == ["step size 0.1", "Reptile"]
    assert TorchOptimizer().describe() == []


def _naive_optimizer(make, latents, steps, warmup_steps):
    """Return the latents after every step of an optimizer per instance, with a linear warm-up of the learning rate."""
    trajectories = []
    for instance in range(B):
        parameters = [latent[instance].detach().clone().requires_grad_() for latent in latents.values()]
        optimizer = make(parameters)
        [group] = optimizer.param_groups
        lr = group["lr"]
        trajectory = [[parameter.detach().clone() for parameter in parameters]]
        for step in range(steps):
            optimizer.zero_grad()
            _loss(*parameters, instance, step).backward()
            group["lr"] = lr * (step + 1) / warmup_steps if step < warmup_steps else lr
            optimizer.step()
            trajectory.append([parameter.detach().clone() for parameter in parameters])
        trajectories.append(trajectory)
    return [
        {name: torch.stack([part[step][index] for part in trajectories]) for index, name in enumerate(SPECS)}
        for step in range(steps + 1)
    ]


@pytest.mark.parametrize("warmup_steps", [0, 1, 3, 10])
@pytest.mark.parametrize(
    ("optimizer", "expected_optimizer"),
    [
        (None, partial(torch.optim.Adam, lr=0.01)),
        (partial(torch.optim.Adam, lr=0.2), partial(torch.optim.Adam, lr=0.2)),
        (partial(torch.optim.SGD, lr=0.3, momentum=0.9), partial(torch.optim.SGD, lr=0.3, momentum=0.9)),
    ],
    ids=["default", "adam", "sgd"],
)
def test_torch_optimizer_equals_a_loop(latents, optimizer, expected_optimizer, warmup_steps):
    rule = TorchOptimizer(optimizer, warmup_steps)
    before = {name: latent.detach().clone() for name, latent in latents.items()}
    with torch.no_grad():
        trajectory = rule.take(_losses, latents, 6, [2, 9], _scales, training=False)
    expected = _naive_optimizer(expected_optimizer, latents, 6, warmup_steps)
    assert sorted(trajectory.latents) == [0, 2, 6]
    for step, reported in trajectory.latents.items():
        for name in SPECS:
            torch.testing.assert_close(reported[name], expected[step][name], atol=1e-12, rtol=0)
            assert not reported[name].requires_grad
    losses = torch.stack([_losses(step_latents, step).detach() for step, step_latents in enumerate(expected)])
    torch.testing.assert_close(trajectory.losses, losses, atol=1e-12, rtol=0)
    assert all(torch.equal(latents[name], values) and latents[name].grad is None for name, values in before.items())


def test_torch_optimizer_does_not_accumulate_gradients_of_parameters(latents):
    shared = torch.ones((), dtype=torch.float64, requires_grad=True)
    TorchOptimizer().take(
        lambda current, step: shared * _losses(current, step), latents, 2, [], _scales, training=False
    )
    assert shared.grad is None


def test_torch_optimizer_is_not_differentiable():
    assert not TorchOptimizer().differentiable
    assert DifferentiableSGD().differentiable
    with pytest.raises(ValueError, match="warmup_steps is -1"):
        TorchOptimizer(warmup_steps=-1)
