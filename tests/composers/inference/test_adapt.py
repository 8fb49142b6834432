"""`adapt` against a loop over instances and ``vmap(grad)``; graphs, modes, storage and compilation."""

import pytest
import torch

from composers.inference.adapt import DivergenceError, adapt, check_finite

B, N = 3, 5
REFERENCES = ["loop", "vmap"]
SIZES = ["number", "tensors", "function"]


@pytest.fixture
def problem():
    """Return the tensors of a network of two layers in float64: parameters, step sizes, initial latents, inputs, targets."""
    torch.manual_seed(3)
    tensors = {
        "shared": torch.randn(4, 3),
        "rate": torch.tensor([[0.3, 0.2], [0.1, 0.25]]),
        "weight": torch.randn(3, 2),
        "bias": torch.randn(2),
        "inputs": torch.randn(B, N, 4),
        "targets": torch.randn(B, N, 2),
    }
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.fixture
def leaves(problem):
    """Return the tensors that outer gradients are taken of."""
    return [problem[name].requires_grad_() for name in ("shared", "rate", "weight", "bias")]


def _losses(problem):
    """Return the loss function of all instances at once."""

    def losses(latents, step):
        values = (problem["inputs"] @ problem["shared"]).tanh() @ latents["weight"] + latents["bias"][:, None]
        return (values.tanh() - problem["targets"]).square().mean((1, 2))

    return losses


def _start(problem):
    return {name: problem[name].expand(B, *problem[name].shape) for name in ("weight", "bias")}


def _step_size(problem, kind):
    """Return a step size of a type that `adapt` takes."""
    rate = problem["rate"]
    if kind == "number":
        return 0.3
    if kind == "tensors":
        return {"weight": rate.mean(0), "bias": rate[0]}
    return lambda latents, step: {
        "weight": rate[step % 2, 0] * latents["weight"].square().sum((1, 2), keepdim=True),
        "bias": rate[step % 2, 1].exp(),
    }


def _naive_size(problem, kind, latents, step):
    """Return the same step sizes for the latents of one instance."""
    rate = problem["rate"]
    if kind == "number":
        return {"weight": 0.3, "bias": 0.3}
    if kind == "tensors":
        return {"weight": (rate[0] + rate[1]) / 2, "bias": rate[0]}
    turn = step % 2
    return {"weight": rate[turn][0] * (latents["weight"] ** 2).sum(), "bias": torch.exp(rate[turn][1])}


def _naive(problem, kind, steps, reference):
    """Return adapted latents and losses, computed with a loop over instances or with ``vmap(grad)``."""

    def loss_of(latents, inputs, targets):
        hidden = torch.tanh(inputs @ problem["shared"])
        return ((torch.tanh(hidden @ latents["weight"] + latents["bias"]) - targets) ** 2).mean()

    def adapt_instance(inputs, targets):
        latents, losses = {"weight": problem["weight"], "bias": problem["bias"]}, []
        for step in range(steps):
            losses.append(loss_of(latents, inputs, targets))
            gradients = torch.func.grad(loss_of)(latents, inputs, targets)
            sizes = _naive_size(problem, kind, latents, step)
            latents = {name: latents[name] - sizes[name] * gradients[name] for name in latents}
        return latents, torch.stack([*losses, loss_of(latents, inputs, targets)])

    if reference == "vmap":
        adapted, losses = torch.func.vmap(adapt_instance)(problem["inputs"], problem["targets"])
        return adapted, losses.mT
    results = [adapt_instance(*data) for data in zip(problem["inputs"], problem["targets"], strict=True)]
    adapted = {name: torch.stack([latents[name] for latents, _ in results]) for name in ("weight", "bias")}
    return adapted, torch.stack([losses for _, losses in results], dim=1)


def _assert_close(actual, expected):
    for left, right in zip(actual, expected, strict=True):
        assert left.shape == right.shape
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_latents_losses_and_outer_gradients_equal_the_reference(problem, leaves, reference, kind, steps, recompute):
    losses_of = _losses(problem)
    results = []
    for latents, losses in (
        adapt(
            losses_of,
            _start(problem),
            steps=steps,
            step_size=_step_size(problem, kind),
            create_graph=True,
            recompute=recompute,
        ),
        _naive(problem, kind, steps, reference),
    ):
        outer = losses_of(latents, steps).mean() + latents["weight"].pow(3).mean()
        gradients = torch.autograd.grad(outer, leaves, allow_unused=True, materialize_grads=True)
        results.append([latents["weight"], latents["bias"], losses.detach(), *gradients])
    _assert_close(*results)
    assert results[0][2].shape == (steps + 1, B)
    assert results[0][4].any() == (steps > 0 and kind != "number")  # learned step sizes have gradients


def test_losses_are_detached_and_latents_attached(problem, leaves):
    latents, losses = adapt(_losses(problem), _start(problem), steps=2, step_size=0.1, create_graph=True)
    assert not losses.requires_grad
    assert all(latent.requires_grad for latent in latents.values())


def test_zero_steps_and_steps_of_zero_size_change_nothing(problem, leaves):
    start, losses_of = _start(problem), _losses(problem)
    for steps, size in ((0, 0.5), (3, 0.0), (3, {name: torch.zeros(()) for name in start})):
        latents, losses = adapt(losses_of, start, steps=steps, step_size=size, create_graph=True)
        assert all(torch.equal(latents[name], start[name]) for name in start)
        assert torch.equal(losses, losses_of(start, 0).detach().expand(steps + 1, B))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("recompute", [False, True])
def test_without_a_graph_the_outer_gradient_is_that_of_first_order(problem, leaves, kind, recompute):
    losses_of = _losses(problem)
    latents, _ = adapt(losses_of, _start(problem), steps=3, step_size=_step_size(problem, kind), recompute=recompute)
    actual = torch.autograd.grad(losses_of(latents, 3).mean(), [problem[name] for name in ("shared", "weight", "bias")])

    end = {name: latent.detach().requires_grad_() for name, latent in _naive(problem, kind, 3, "loop")[0].items()}
    shared, weight, bias = torch.autograd.grad(
        losses_of(end, 3).mean(), [problem["shared"], end["weight"], end["bias"]]
    )
    _assert_close(actual, [shared, weight.sum(0), bias.sum(0)])
    exact, _ = adapt(losses_of, _start(problem), steps=3, step_size=_step_size(problem, kind), create_graph=True)
    second = torch.autograd.grad(losses_of(exact, 3).mean(), problem["weight"])[0]
    assert (second - actual[1]).abs().max() > 1e-3 * second.abs().max()


def test_recomputed_steps_equal_stored_ones(problem, leaves):
    losses_of, results, calls = _losses(problem), [], []

    def counted(latents, step):
        calls.append(step)
        return losses_of(latents, step)

    for recompute, backward in ((False, []), (True, [2, 1, 0])):
        calls.clear()
        latents, losses = adapt(
            counted,
            _start(problem),
            steps=3,
            step_size=_step_size(problem, "function"),
            create_graph=True,
            recompute=recompute,
        )
        assert calls == [0, 1, 2, 3]
        calls.clear()
        gradients = torch.autograd.grad(losses_of(latents, 3).mean(), leaves)
        assert calls == backward
        results.append([*latents.values(), losses, *gradients])
    assert all(torch.equal(stored, recomputed) for stored, recomputed in zip(*results, strict=True))


def test_recomputed_steps_use_the_autocast_of_the_forward_pass(problem, leaves):
    precisions = []

    def losses(latents, step):
        product = (problem["inputs"].float() @ problem["shared"].float()) @ latents["weight"].float()
        precisions.append(product.dtype)
        return (product.float() + latents["bias"][:, None]).square().mean((1, 2))

    with torch.autocast("cpu", torch.bfloat16):
        latents, _ = adapt(losses, _start(problem), steps=2, step_size=0.1, create_graph=True, recompute=True)
    assert len(precisions) == 3
    torch.autograd.grad(sum(latent.sum() for latent in latents.values()), problem["shared"])
    assert precisions == 5 * [torch.bfloat16]


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_arguments_are_not_modified(problem, leaves, create_graph, recompute):
    start = _start(problem)
    before = {name: (latent, latent.detach().clone(), latent._version) for name, latent in start.items()}
    kept = {name: tensor.detach().clone() for name, tensor in problem.items()}
    latents, _ = adapt(_losses(problem), start, steps=2, step_size=0.2, create_graph=create_graph, recompute=recompute)
    assert latents is not start
    assert list(start) == list(before)
    for name, (same, values, version) in before.items():
        assert start[name] is same
        assert same._version == version
        assert torch.equal(same, values)
        assert not torch.equal(latents[name], values)
    assert all(torch.equal(problem[name], values) for name, values in kept.items())
    assert all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("kind", SIZES)
def test_works_without_gradients_and_in_inference_mode(problem, leaves, kind, create_graph, recompute):
    losses_of, options = _losses(problem), {"create_graph": create_graph, "recompute": recompute}
    expected, expected_losses = adapt(losses_of, _start(problem), steps=2, step_size=_step_size(problem, kind))
    with torch.no_grad():
        without_gradients = adapt(losses_of, _start(problem), steps=2, step_size=_step_size(problem, kind), **options)
    with torch.inference_mode(), torch.inference_mode(False), torch.no_grad():
        in_inference_mode = adapt(losses_of, _start(problem), steps=2, step_size=_step_size(problem, kind), **options)
    for latents, losses in (without_gradients, in_inference_mode):
        assert torch.equal(losses, expected_losses)
        for name, latent in latents.items():
            assert torch.equal(latent, expected[name])
            assert not latent.requires_grad
            assert not latent.is_inference()


def test_latents_without_a_graph_do_not_get_one(problem):
    latents, _ = adapt(_losses(problem), _start(problem), steps=2, step_size=0.2)
    assert not any(latent.requires_grad for latent in latents.values())


@pytest.mark.parametrize("recompute", [False, True])
def test_unused_latents_raise_an_error(problem, recompute):
    start = _start(problem) | {"spare": torch.zeros(B, 2), "idle": torch.zeros(B, 1)}
    with pytest.raises(ValueError, match="does not depend on spare, idle: compose the modulations from all latents"):
        adapt(_losses(problem), start, steps=1, step_size=0.1, create_graph=True, recompute=recompute)


@pytest.mark.parametrize("kind", SIZES)
def test_instances_do_not_interact(problem, leaves, kind):
    results = []
    for changed in (False, True):
        if changed:
            problem["inputs"][1] += 1
            problem["targets"][1] *= -3
        latents, losses = adapt(
            _losses(problem), _start(problem), steps=3, step_size=_step_size(problem, kind), create_graph=True
        )
        first = _losses(problem)(latents, 3)[0]
        parts = [latents["weight"], latents["bias"], losses.mT]
        results.append([part[0] for part in parts] + list(torch.autograd.grad(first, leaves[2:])))
        results[-1].append(parts[0][1])
    assert not torch.allclose(results[0].pop(), results[1].pop())  # of instance 1 itself
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-14, rtol=0)


def test_permuting_instances_permutes_results(problem, leaves):
    order = [2, 0, 1]
    expected, losses = adapt(_losses(problem), _start(problem), steps=3, step_size=_step_size(problem, "function"))
    permuted = problem | {name: problem[name][order] for name in ("inputs", "targets")}
    actual, permuted_losses = adapt(
        _losses(permuted), _start(permuted), steps=3, step_size=_step_size(permuted, "function")
    )
    _assert_close(
        [*actual.values(), permuted_losses], [expected["weight"][order], expected["bias"][order], losses[:, order]]
    )


@pytest.mark.slow
def test_compiled_with_a_graph_equals_eager(problem, leaves):
    def outer(shared, rate, weight, bias):
        tensors = problem | {"shared": shared, "rate": rate, "weight": weight, "bias": bias}
        size = _step_size(tensors, "function")
        latents, losses = adapt(
            _losses(tensors), _start(tensors), steps=2, step_size=size, create_graph=True, recompute=True
        )
        return _losses(tensors)(latents, 2).mean(), losses

    results = []
    for function in (outer, torch.compile(outer, backend="aot_eager", fullgraph=True)):
        value, losses = function(*leaves)
        assert not losses.requires_grad
        results.append([value, losses, *torch.autograd.grad(value, leaves)])
    _assert_close(*results)


def test_compiled_without_a_graph_equals_eager(problem):
    def adapted(weight, bias):
        tensors = problem | {"weight": weight, "bias": bias}
        latents, losses = adapt(_losses(tensors), _start(tensors), steps=2, step_size=0.2)
        return latents["weight"], latents["bias"], losses

    with torch.no_grad():
        compiled = torch.compile(adapted, backend="aot_eager", fullgraph=True)
        _assert_close(compiled(problem["weight"], problem["bias"]), adapted(problem["weight"], problem["bias"]))


def test_losses_that_are_not_finite_raise_an_error_with_the_first_step():
    losses = torch.zeros(4, 3)
    check_finite(losses)
    losses[2, 1] = torch.inf
    losses[3] = torch.nan
    with pytest.raises(DivergenceError, match="diverged after 2 steps on instance 1 of the batch") as caught:
        check_finite(losses)
    assert (caught.value.step, caught.value.instance) == (2, 1)
    losses[0, 2] = torch.nan
    with pytest.raises(DivergenceError) as caught:
        check_finite(losses)
    assert (caught.value.step, caught.value.instance) == (0, 2)
