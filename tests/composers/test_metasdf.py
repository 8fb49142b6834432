"""MetaSDF against an independent loop over shapes, steps, layers and tensors in float64, outer gradients included."""

import math

import pytest
import torch

from composers import GradientSteps, MetaSDF
from composers.inference import DifferentiableSGD
from composers.latents import Layout
from composers.losses import MeanAbsoluteError, SignAndDistance
from composers.networks import CoordinateMLP, GeometricReLU, IdentityEncoding, PositionalEncoding
from composers.rendering import SignedDistance
from datamodules.batch import Observation, Samples

B, P, N, D = 3, 7, 5, 3
LAYERS, STEPS, LR = 3, 2, 0.0625  # exact in float32, the precision of scales


def _composer(learned_lr=("step", "parameter"), learned_as="lr", encoding=None, surface="inside", **options):
    """Return a small MetaSDF in float64 whose learned step sizes and uncertainties differ from each other."""
    torch.manual_seed(0)
    network = CoordinateMLP(
        D,
        2,
        hidden_dim=6,
        num_layers=LAYERS,
        modulated_layers="all",
        modulates="both",
        encoding=encoding or IdentityEncoding(),
        activation=GeometricReLU(),
        normalize_weights=False,
        output_offset=0.0,
    )
    rule = DifferentiableSGD(LR, learned_lr, learned_as=learned_as, **options)
    inner = GradientSteps(STEPS, rule, loss=SignAndDistance(surface))
    composer = MetaSDF(network, inner, SignedDistance(), SignAndDistance(unknown=-1.0)).double()
    composer.global_step = 0
    for name, parameter in composer.named_parameters():
        factor = 1 + 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
        noise = 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
        parameter.data = parameter.data * factor + (noise if name.startswith("start") else 0)
    first = next(iter(rule.factors.values()), None)
    if first is not None and learned_as == "lr":
        first.data.view(-1)[0] = -0.02  # a step size may become negative
    return composer


@pytest.fixture
def composer(monkeypatch):
    """Return a maker of composers that are in no trainer."""
    monkeypatch.setattr(MetaSDF, "global_step", 0, raising=False)
    return _composer


def _samples(count, with_surface=False):
    """Return samples of spheres of different radii, some of them unknown (-1) or on the surface."""
    coords = torch.rand(B, count, D, dtype=torch.float64) * 2 - 1
    values = coords.norm(dim=-1, keepdim=True) - torch.linspace(0.3, 0.8, B, dtype=torch.float64)[:, None, None]
    values[:, 0] = -1
    if with_surface:
        values[:, 1:4] = 0
    return Samples(coords, values)


def _naive_outputs(composer, tensors, point):
    """Return logit and distance at one point, from the tensors of one shape by name."""
    features = [point]
    if isinstance(composer.network.encoding, PositionalEncoding):
        octaves = range(composer.network.encoding.num_octaves)
        phases = torch.stack([2**k * coordinate for coordinate in point for k in octaves])
        features += [torch.sin(phases), torch.cos(phases)]
    hidden = torch.cat(features)
    for layer in range(LAYERS):
        hidden = (tensors[f"weight_{layer}"] * hidden[:, None]).sum(0) + tensors[f"bias_{layer}"]
        if layer < LAYERS - 1:
            hidden = torch.where(hidden > 0, hidden, 0 * hidden)
    return hidden


def _naive_loss(composer, tensors, coords, values, sigmas, unknown, surface="inside"):
    """Return the loss of one shape."""
    entropies, errors = [], []
    for point, measured in zip(coords, values[:, 0], strict=True):
        logit, distance = _naive_outputs(composer, tensors, point)
        outside = 1 / (1 + torch.exp(-logit))
        if measured == 0 and surface == "half":
            entropies.append(-(torch.log(outside) + torch.log(1 - outside)) / 2)
        elif measured != 0 or surface == "inside":
            entropies.append(-torch.log(outside if measured > 0 else 1 - outside))
        if measured != unknown:
            errors.append((distance - measured).abs())
    return (
        sum(entropies) / max(len(entropies), 1) / (2 * sigmas[0] ** 2)
        + sum(errors) / len(errors) / (2 * sigmas[1] ** 2)
        + torch.log(sigmas[0] * sigmas[1])
    )


def _naive_tensors(composer, context, shape, surface="inside"):
    """Return the adapted tensors of one shape by a loop over steps and tensors."""
    rule = composer.inner.rule
    tensors = {name: tensor + 0 for name, tensor in composer.start.latents.items()}
    for step in range(STEPS):
        loss = _naive_loss(
            composer,
            tensors,
            context.coords[shape],
            context.values[shape],
            composer.inner.loss.uncertainties,
            None,
            surface,
        )
        gradients = torch.autograd.grad(loss, list(tensors.values()), create_graph=True)
        moved = {}
        for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True):
            rate = LR
            if rule.learned_lr:
                learned = rule.factors[name][step if "step" in rule.learned_lr else 0]
                rate = learned if rule.learned_as == "lr" else LR * learned
            moved[name] = tensor - rate * gradient
        tensors = moved
    return tensors


def _naive_outer(composer, context, query, surface="inside"):
    """Return the outer loss, the mean over shapes."""
    losses = [
        _naive_loss(
            composer,
            _naive_tensors(composer, context, shape, surface),
            query.coords[shape],
            query.values[shape],
            composer.loss.uncertainties,
            -1,
        )
        for shape in range(B)
    ]
    return sum(losses) / B


def _assert_equal(composer, context, query, surface="inside"):
    """Check adapted tensors, outer loss and the gradients of all parameters against the loops."""
    latents = composer.encode(Observation(samples=context))
    for shape in range(B):
        for name, expected in _naive_tensors(composer, context, shape, surface).items():
            actual = latents[name.replace("_", ".")][shape]
            torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)
    actual = composer.loss(composer.reconstruct(composer.compose(latents), query.coords), query).mean()
    expected = _naive_outer(composer, context, query, surface)
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)
    names, parameters = zip(*composer.named_parameters(), strict=True)
    pairs = [
        torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True) for loss in (actual, expected)
    ]
    for name, gradient, naive in zip(names, *pairs, strict=True):
        torch.testing.assert_close(gradient, naive, atol=1e-8, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        assert naive.any(), name  # every learned number matters


@pytest.mark.parametrize(
    ("learned_lr", "learned_as"),
    [(("step", "parameter"), "lr"), (("tensor",), "lr"), (("step",), "factor"), (("parameter",), "factor")],
    ids=str,
)
def test_inner_loop_and_outer_gradients_equal_a_loop(composer, learned_lr, learned_as):
    _assert_equal(composer(learned_lr, learned_as), _samples(P), _samples(N))


def test_recomputed_steps_give_the_same_gradients(composer):
    _assert_equal(composer(recompute=True), _samples(P), _samples(N))


def test_positional_encoding_variant_equals_a_loop(composer):
    _assert_equal(composer(("tensor",), encoding=PositionalEncoding(2)), _samples(P), _samples(N))


@pytest.mark.parametrize("surface", ["inside", "half", "ignored"])
def test_level_set_contexts_equal_a_loop(composer, surface):
    _assert_equal(composer(surface=surface), _samples(P, with_surface=True), _samples(N), surface)


def test_a_shape_does_not_depend_on_its_batch(composer):
    model, context = composer(), _samples(P)
    together = model.encode(Observation(samples=context))
    alone = model.encode(Observation(samples=Samples(context.coords[1:2], context.values[1:2])))
    for name, latent in together.items():
        torch.testing.assert_close(latent[1:2], alone[name], atol=1e-12, rtol=0)


def test_the_optimizer_moves_step_sizes_themselves(composer):
    for learned_as, expected in (("lr", 5e-4), ("factor", 5e-4 * LR)):
        model = composer(learned_as=learned_as)
        rule, context = model.inner.rule, _samples(P)
        before = rule.step_sizes({"bias.1": torch.ones(())}, 0)["bias.1"].detach()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
        latents = model.encode(Observation(samples=context))
        model.loss(model.reconstruct(model.compose(latents), context.coords), context).mean().backward()
        optimizer.step()
        change = (rule.step_sizes({"bias.1": torch.ones(())}, 0)["bias.1"].detach() - before).abs()
        assert change.max().item() == pytest.approx(expected, rel=1e-3)


def test_parts_of_the_preset(composer):
    model = composer()
    assert model.loss.uncertainties is not model.inner.loss.uncertainties
    assert {name: tuple(spec.shape) for name, spec in model.parametrization.latents.items()} == {
        **{f"weight.{layer}": size for layer, size in enumerate(model.network.layer_sizes)},
        **{f"bias.{layer}": size[1:] for layer, size in enumerate(model.network.layer_sizes)},
    }


def test_both_outputs_are_equal_at_the_start_and_grow_with_the_distance():
    torch.manual_seed(0)
    network = CoordinateMLP(
        3,
        2,
        hidden_dim=512,
        num_layers=6,
        modulated_layers="all",
        modulates="both",
        encoding=IdentityEncoding(),
        activation=GeometricReLU(),
        normalize_weights=False,
        output_offset=0.0,
    )
    model = MetaSDF(network, GradientSteps(1, loss=SignAndDistance()), SignedDistance(), SignAndDistance())
    points = torch.nn.functional.normalize(torch.randn(200, 3), dim=-1)
    latents = model.start(Observation(samples=Samples(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1))), Layout())
    for radius in (0.2, 0.9):
        logit, distance = model.bind(latents)(radius * points)[0].unbind(-1)
        assert torch.equal(logit, distance)
        assert distance.mean().item() == pytest.approx(radius, rel=0.25)


def test_a_single_head_needs_no_learned_loss():
    network = CoordinateMLP(
        2, 1, 6, 3, "all", normalize_weights=False, output_offset=0.0, modulates="both", encoding=IdentityEncoding()
    )
    model = MetaSDF(network, GradientSteps(2), SignedDistance("distance"), MeanAbsoluteError())
    coords = torch.rand(2, 9, 2) - 0.5
    context = Samples(coords, coords.norm(dim=-1, keepdim=True) - 0.2)
    latents = model.encode(Observation(samples=context))
    loss = model.loss(model.reconstruct(model.compose(latents), coords), context).mean()
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_network_with_the_wrong_number_of_outputs_is_refused():
    network = CoordinateMLP(2, 1, 6, 3, "all", modulates="both")
    model = MetaSDF(network, GradientSteps(1, loss=SignAndDistance()), SignedDistance(), SignAndDistance())
    with pytest.raises(ValueError, match="The field has 1 outputs, and heads both of SignedDistance needs 2"):
        model.encode(Observation(samples=Samples(torch.rand(1, 4, 2), torch.rand(1, 4, 1))))
