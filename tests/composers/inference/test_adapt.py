"""`adapt` against a loop over instances, against ``vmap(grad)``, and what it promises about graphs, modes and storage."""

import pytest
import torch

from composers.inference.adapt import DivergenceError, adapt, check_finite

B, N = 3, 5
REFERENCES = ["loop", "vmap"]
SIZES = ["number", "tensors", "function"]


@pytest.fixture
def problem():
    """Return a shared weight, learned rates, a start, inputs and targets, in float64: a network of two layers."""
    torch.manual_seed(3)
    made = {
        "shared": torch.randn(4, 3),
        "rate": torch.tensor([[0.3, 0.2], [0.1, 0.25]]),
        "weight": torch.randn(3, 2),
        "bias": torch.randn(2),
        "inputs": torch.randn(B, N, 4),
        "targets": torch.randn(B, N, 2),
    }
    return {name: tensor.double() for name, tensor in made.items()}


@pytest.fixture
def leaves(problem):
    """Return what outer gradients are taken of."""
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
    """Return a step size of each kind that `adapt` takes."""
    rate = problem["rate"]
    if kind == "number":
        return 0.3
    if kind == "tensors":
        return {"weight": rate.mean(0), "bias": rate[0]}
    return lambda latents, step: {
        "weight": rate[step % 2, 0] * latents["weight"].square().sum((1, 2), keepdim=True),
        "bias": rate[step % 2, 1].exp(),
    }


def _naive_size(problem, kind, own, step):
    """Return the same step sizes for the latents of one instance."""
    rate = problem["rate"]
    if kind == "number":
        return {"weight": 0.3, "bias": 0.3}
    if kind == "tensors":
        return {"weight": (rate[0] + rate[1]) / 2, "bias": rate[0]}
    turn = step % 2
    return {"weight": rate[turn][0] * (own["weight"] ** 2).sum(), "bias": torch.exp(rate[turn][1])}


def _naive(problem, kind, steps, reference):
    """Return adapted latents and losses by a loop over instances, or by ``vmap(grad)`` over all."""

    def loss_of(own, inputs, targets):
        hidden = torch.tanh(inputs @ problem["shared"])
        return ((torch.tanh(hidden @ own["weight"] + own["bias"]) - targets) ** 2).mean()

    def adapt_one(inputs, targets):
        own, seen = {"weight": problem["weight"], "bias": problem["bias"]}, []
        for step in range(steps):
            seen.append(loss_of(own, inputs, targets))
            slopes = torch.func.grad(loss_of)(own, inputs, targets)
            sizes = _naive_size(problem, kind, own, step)
            own = {name: own[name] - sizes[name] * slopes[name] for name in own}
        return own, torch.stack([*seen, loss_of(own, inputs, targets)])

    if reference == "vmap":
        adapted, losses = torch.func.vmap(adapt_one)(problem["inputs"], problem["targets"])
        return adapted, losses.mT
    found = [adapt_one(*one) for one in zip(problem["inputs"], problem["targets"], strict=True)]
    adapted = {name: torch.stack([own[name] for own, _ in found]) for name in ("weight", "bias")}
    return adapted, torch.stack([losses for _, losses in found], dim=1)


def _assert_close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_latents_losses_and_outer_gradients_equal_the_reference(problem, leaves, reference, kind, steps, recompute):
    losses_of = _losses(problem)
    results = []
    for found in (
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
        latents, losses = found
        outer = losses_of(latents, steps).mean() + latents["weight"].pow(3).mean()
        gradients = torch.autograd.grad(outer, leaves, allow_unused=True, materialize_grads=True)
        results.append([latents["weight"], latents["bias"], losses.detach(), *gradients])
    _assert_close(*results)
    assert results[0][2].shape == (steps + 1, B)
    assert results[0][4].any() == (steps > 0 and kind != "number")  # the learned rates do get gradients


def test_losses_are_detached_and_latents_attached(problem, leaves):
    latents, losses = adapt(_losses(problem), _start(problem), steps=2, step_size=0.1, create_graph=True)
    assert not losses.requires_grad
    assert all(latent.requires_grad for latent in latents.values())


def test_no_steps_and_steps_of_no_length_change_nothing(problem, leaves):
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
    found = torch.autograd.grad(losses_of(latents, 3).mean(), [problem[name] for name in ("shared", "weight", "bias")])

    end = {name: latent.detach().requires_grad_() for name, latent in _naive(problem, kind, 3, "loop")[0].items()}
    wanted = torch.autograd.grad(losses_of(end, 3).mean(), [problem["shared"], end["weight"], end["bias"]])
    _assert_close(found, [wanted[0], wanted[1].sum(0), wanted[2].sum(0)])
    exact, _ = adapt(losses_of, _start(problem), steps=3, step_size=_step_size(problem, kind), create_graph=True)
    second = torch.autograd.grad(losses_of(exact, 3).mean(), problem["weight"])[0]
    assert (second - found[1]).abs().max() > 1e-3 * second.abs().max()


def test_recomputing_equals_storing_and_does_compute_again(problem, leaves):
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
    assert all(torch.equal(stored, again) for stored, again in zip(*results, strict=True))


def test_recomputed_steps_have_the_precision_of_the_first(problem, leaves):
    """A backward pass runs outside autocast, where a step would be another one."""
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
def test_what_goes_in_is_left_as_it_is(problem, leaves, create_graph, recompute):
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
def test_it_works_where_nothing_is_differentiated(problem, leaves, kind, create_graph, recompute):
    losses_of, options = _losses(problem), {"create_graph": create_graph, "recompute": recompute}
    wanted = adapt(losses_of, _start(problem), steps=2, step_size=_step_size(problem, kind))
    with torch.no_grad():
        plain = adapt(losses_of, _start(problem), steps=2, step_size=_step_size(problem, kind), **options)
    with torch.inference_mode(), torch.inference_mode(False), torch.no_grad():
        left = adapt(losses_of, _start(problem), steps=2, step_size=_step_size(problem, kind), **options)
    for latents, losses in (plain, left):
        assert torch.equal(losses, wanted[1])
        for name, latent in latents.items():
            assert torch.equal(latent, wanted[0][name])
            assert not latent.requires_grad
            assert not latent.is_inference()


def test_latents_without_a_graph_stay_without_one(problem):
    latents, _ = adapt(_losses(problem), _start(problem), steps=2, step_size=0.2)
    assert not any(latent.requires_grad for latent in latents.values())


@pytest.mark.parametrize("recompute", [False, True])
def test_a_latent_that_the_loss_does_not_use_is_refused_by_name(problem, recompute):
    start = _start(problem) | {"spare": torch.zeros(B, 2), "idle": torch.zeros(B, 1)}
    with pytest.raises(ValueError, match="does not depend on spare, idle: compose what is rendered of every latent"):
        adapt(_losses(problem), start, steps=1, step_size=0.1, create_graph=True, recompute=recompute)


@pytest.mark.parametrize("kind", SIZES)
def test_instances_never_mix(problem, leaves, kind):
    results = []
    for disturbed in (False, True):
        if disturbed:
            problem["inputs"][1] += 1
            problem["targets"][1] *= -3
        latents, losses = adapt(
            _losses(problem), _start(problem), steps=3, step_size=_step_size(problem, kind), create_graph=True
        )
        own = _losses(problem)(latents, 3)[0]
        parts = [latents["weight"], latents["bias"], losses.mT]
        results.append([part[0] for part in parts] + list(torch.autograd.grad(own, leaves[2:])))
        results[-1].append(parts[0][1])
    assert not torch.allclose(results[0].pop(), results[1].pop())  # instance 1 itself is another
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=0)


def test_permuting_instances_permutes(problem, leaves):
    order = [2, 0, 1]
    wanted, losses = adapt(_losses(problem), _start(problem), steps=3, step_size=_step_size(problem, "function"))
    moved = problem | {name: problem[name][order] for name in ("inputs", "targets")}
    found, moved_losses = adapt(_losses(moved), _start(moved), steps=3, step_size=_step_size(moved, "function"))
    _assert_close([*found.values(), moved_losses], [wanted["weight"][order], wanted["bias"][order], losses[:, order]])


@pytest.mark.slow
def test_compiled_in_one_graph_it_equals_eager(problem, leaves):
    def outer(shared, rate, weight, bias):
        own = problem | {"shared": shared, "rate": rate, "weight": weight, "bias": bias}
        latents, losses = adapt(
            _losses(own), _start(own), steps=2, step_size=_step_size(own, "function"), create_graph=True, recompute=True
        )
        return _losses(own)(latents, 2).mean(), losses

    results = []
    for function in (outer, torch.compile(outer, backend="aot_eager", fullgraph=True)):
        value, losses = function(*leaves)
        assert not losses.requires_grad
        results.append([value, losses, *torch.autograd.grad(value, leaves)])
    _assert_close(*results)


def test_compiled_without_a_graph_it_equals_eager(problem):
    def found(weight, bias):
        own = problem | {"weight": weight, "bias": bias}
        latents, losses = adapt(_losses(own), _start(own), steps=2, step_size=0.2)
        return latents["weight"], latents["bias"], losses

    with torch.no_grad():
        compiled = torch.compile(found, backend="aot_eager", fullgraph=True)
        _assert_close(compiled(problem["weight"], problem["bias"]), found(problem["weight"], problem["bias"]))


def test_losses_that_are_no_numbers_are_refused_with_the_first_step():
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
