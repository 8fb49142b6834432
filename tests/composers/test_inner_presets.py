"""Presets with an inner loop: against a loop over instances, learned step sizes, samples, Reptile, divergence, compilation."""

import math
from types import SimpleNamespace

import pytest
import torch

from composers import Composer, Functa, GradientSteps, LearnedInit, MetaIPC
from composers.inference import DifferentiableSGD, LearnedStart
from composers.latents import ColumnScales, Direct, LowRank, Shifts
from composers.metrics import instance_mse
from composers.networks import FourierFeatures, IdentityEncoding, Sine, TensorSpec
from datamodules.batch import Observation, Samples

SMOOTH = {"activation": Sine(1.0)}  # the gradients of a ReLU jump where rounding moves an input across zero
SIREN = {"encoding": IdentityEncoding(), "activation": Sine(3.0), "normalize_weights": False}


def _meta_transinr(network, inner, num_groups):
    """Return a TransINR whose scales an inner loop finds, which is no preset."""
    return Composer(network, ColumnScales(num_groups), LearnedStart(), inner)


KINDS = {  # class, network, other arguments, lr of the inner loop
    "ipc": (MetaIPC, SMOOTH | {"modulated_layers": (1,)}, {"rank": 5}, 0.02),
    "ipc_plain": (MetaIPC, SMOOTH | {"modulated_layers": (0, 2), "normalize_weights": False}, {}, 0.2),
    "learned_init": (LearnedInit, SMOOTH | {"modulated_layers": "all"}, {}, 0.02),
    "learned_init_biases": (LearnedInit, SMOOTH | {"modulated_layers": (1, 3), "modulates": "both"}, {}, 0.02),
    "siren": (LearnedInit, SIREN | {"modulated_layers": "all", "modulates": "both"}, {}, 0.02),
    "functa": (Functa, SIREN | {"modulated_layers": "hidden", "modulates": "shifts"}, {"latent_dim": 5}, 0.3),
    "transinr": (_meta_transinr, SMOOTH | {"modulated_layers": "all"}, {"num_groups": 4}, 0.01),
}
LEARNED = {"none": (), "step": ("step",), "parameter": ("parameter",), "both": ("step", "parameter")}
RULE = ("lr", "learned_lr", "outer", "recompute")


def _gradient_steps(**options):
    """Return gradient steps from options of the steps and of their rule."""
    rule = DifferentiableSGD(**{name: options.pop(name) for name in RULE if name in options})
    return GradientSteps(rule=rule, **options)


@pytest.fixture
def make(make_network):
    """Return a maker of tiny composers with an inner loop, by kind; keywords are options of the inner loop."""

    def make_composer(kind, network=None, arguments=None, **inner):
        torch.manual_seed(1)
        preset, kind_network, kind_arguments, lr = KINDS[kind]
        steps = _gradient_steps(**{"lr": lr} | inner)
        return preset(make_network(**kind_network | (network or {})), steps, **kind_arguments | (arguments or {}))

    return make_composer


@pytest.fixture
def batch(tiny_batch):
    """Return three images without an encoder's signal, to adapt to."""
    return tiny_batch._replace(observation=tiny_batch.observation._replace(signal=None))


@pytest.fixture
def logged(monkeypatch):
    """Return the values that composers log, by name, without a trainer."""
    values = {}
    monkeypatch.setattr(Composer, "log", lambda self, name, value, **options: values.update({name: value}))
    return values


@pytest.fixture
def set_global_step(monkeypatch):
    """Return a function that sets the step of training, without a trainer."""
    return lambda step: monkeypatch.setattr(Composer, "global_step", step)


def _disturb_factors(composer):
    """Set every learned factor of a step size to a random value."""
    for factor in composer.inner.rule.factors.values():
        torch.nn.init.uniform_(factor, 0.5, 2)


def _initial(composer):
    """Return the latents of one instance before the inner loop, as parameters where they are learned."""
    if isinstance(composer.start, LearnedStart):
        return {name: composer.start.latents[name.replace(".", "_")] for name in composer.parametrization.latents}
    return {name: torch.zeros(spec.shape) for name, spec in composer.parametrization.latents.items()}


def _naive_layer(composer, latents, layer):
    """Return the weight and the bias of a layer for one instance, before normalisation."""
    key, network, parametrization = str(layer), composer.network, composer.parametrization
    weight = network.weights.get(key)
    bias = network.biases.get(key)
    if layer not in network.modulated_layers:
        return weight, bias
    if isinstance(parametrization, LowRank):
        return latents[f"patterns.{layer}"].mm(parametrization.bases[key]), bias
    if isinstance(parametrization, ColumnScales):
        base, scales = parametrization.base_weights[key], latents[f"scales.{layer}"]
        columns = [base[:, j] * scales[:, j % scales.shape[1]] for j in range(base.shape[1])]
        return torch.stack(columns, dim=1), bias
    if isinstance(parametrization, Direct):
        return latents[f"weight.{layer}"], latents.get(f"bias.{layer}", bias)
    assert isinstance(parametrization, Shifts)
    first = sum(network.layer_sizes[other][1] for other in network.modulated_layers if other < layer)
    columns = parametrization.shifts[:, first : first + network.layer_sizes[layer][1]]
    return weight, bias + (latents["latent"][:, None] * columns).sum(0)


def _naive_values(composer, latents, coords):
    """Return the values ``(N, C)`` of one instance."""
    network, hidden = composer.network, coords
    if isinstance(network.encoding, FourierFeatures):
        phases = torch.stack([x * float(f) * math.pi for x in coords.T for f in network.encoding.frequencies], dim=1)
        hidden = torch.cat((torch.cos(phases), torch.sin(phases)), dim=1)
    for layer in range(network.num_layers):
        weight, bias = _naive_layer(composer, latents, layer)
        if network.normalize_weights:
            weight = weight / (weight**2).sum(0).sqrt()
        hidden = hidden.mm(weight) + bias
        if layer < network.num_layers - 1:
            hidden = torch.sin(network.activation.omega * hidden)
    return hidden + network.output_offset


def _naive_step_size(composer, name, latent, step):
    """Return the step size of one latent of one instance."""
    rule = composer.inner.rule
    size = rule.lr
    if composer.network.normalize_weights and not name.startswith("bias"):
        size = size * (latent**2).sum()
    if rule.learned_lr:
        factors = rule.factors[name.replace(".", "_")]
        size = size * factors[step if step < len(factors) else -1]
    return size


def _naive_latents(composer, samples, steps, *, first_order=False, indices=None):
    """Return the adapted latents by a loop over instances; ``indices`` are those of the samples of every step."""
    adapted = []
    for instance in range(len(samples.values)):
        latents = _initial(composer)
        for step in range(steps):
            chosen = torch.arange(samples.coords.shape[-2]) if indices is None else indices[step]
            if samples.mask is not None:
                chosen = chosen[samples.mask[instance][chosen]]

            def error(at, chosen=chosen, instance=instance):
                difference = _naive_values(composer, at, samples.coords[chosen]) - samples.values[instance][chosen]
                return (difference**2).mean()

            gradients = torch.func.grad(error)(latents)
            sources = latents
            if first_order:
                gradients = {name: gradient.detach() for name, gradient in gradients.items()}
                sources = {name: latent.detach() for name, latent in latents.items()}
            latents = {
                name: latents[name] - _naive_step_size(composer, name, sources[name], step) * gradient
                for name, gradient in gradients.items()
            }
        adapted.append(latents)
    return {name: torch.stack([latents[name] for latents in adapted]) for name in adapted[0]}


def _naive_loss(composer, latents, samples):
    """Return the mean over instances of the error after the inner loop."""
    errors = []
    for instance, values in enumerate(samples.values):
        instance_latents = {name: latent[instance] for name, latent in latents.items()}
        squares = (_naive_values(composer, instance_latents, samples.coords) - values).square().mean(1)
        mask = torch.ones(len(squares)) if samples.mask is None else samples.mask[instance].float()
        errors.append((squares * mask).sum() / mask.sum())
    return torch.stack(errors).mean()


def _assert_latents(actual, expected, atol=2e-5):
    assert actual.keys() == expected.keys()
    for name, latent in actual.items():
        assert latent.shape == expected[name].shape
        torch.testing.assert_close(latent, expected[name], atol=atol, rtol=1e-4)


def _train(composer, batch):
    """Return the evaluation of a training step, and the gradient of every parameter by name."""
    composer.train().zero_grad()
    evaluation = composer._evaluate(batch, "train")
    evaluation["losses"].mean().backward()
    return evaluation, {name: parameter.grad for name, parameter in composer.named_parameters()}


def _naive_gradients(composer, latents, samples):
    """Return the gradient of the mean loss with respect to every parameter, by name."""
    parameters = dict(composer.named_parameters())
    gradients = torch.autograd.grad(_naive_loss(composer, latents, samples), list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def _assert_gradients(actual, expected, tolerance=2e-4):
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert gradient.any(), name
        assert (gradient - expected[name]).abs().max() <= tolerance * expected[name].abs().max(), name


def _rendered_coords(composer):
    """Return a list that collects the coordinates that are rendered."""
    collected, render = [], composer.renderer.rendered

    def rendered(field, coords):
        collected.append(coords.detach())
        return render(field, coords)

    composer.renderer.rendered = rendered
    return collected


def _indices(coords, samples):
    """Return the indices of coordinates ``(K, D)`` among those of the samples."""
    return (coords[:, None] - samples.coords[None]).abs().sum(-1).argmin(1)


# Against a loop over instances


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_a_loop_over_instances(make, batch, kind, learned, first_order):
    outer = "first_order" if first_order else "second_order"
    composer = make(kind, steps=2, learned_lr=LEARNED[learned], outer=outer)
    _disturb_factors(composer)
    evaluation, gradients = _train(composer, batch)
    latents = _naive_latents(composer, batch.query, 2, first_order=first_order)
    _assert_latents(evaluation["latents"][0], latents)
    _assert_gradients(gradients, _naive_gradients(composer, latents, batch.query))
    for name, initial in _initial(composer).items():
        assert (evaluation["latents"][0][name] - initial).abs().max() > 2e-4  # the steps have an effect


@pytest.mark.parametrize("kind", ["ipc", "functa"])
def test_masked_samples_are_ignored(make, batch, kind):
    mask = torch.rand(batch.query.values.shape[:2]) < 0.5
    disturbed = torch.where(mask[..., None], batch.query.values, 50.0)
    samples = batch.query._replace(values=disturbed, mask=mask)
    masked = batch._replace(observation=Observation(None, samples), query=samples)
    composer = make(kind)
    evaluation, gradients = _train(composer, masked)
    latents = _naive_latents(composer, samples, 2)
    _assert_latents(evaluation["latents"][0], latents)
    _assert_gradients(gradients, _naive_gradients(composer, latents, samples))


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_per_instance_equal_shared_ones(make, batch, kind):
    composer = make(kind).eval()
    expanded = Observation(None, batch.query._replace(coords=batch.query.coords.expand(3, -1, -1)))
    _assert_latents(composer.encode(expanded), composer.encode(batch.observation))


# Learned step sizes


@pytest.mark.parametrize("kind", KINDS)
def test_learned_factors_start_at_one_and_have_their_documented_shapes(make, batch, kind):
    plain = make(kind, steps=3)
    expected = plain.eval().encode(batch.observation)
    assert not plain.inner.rule.factors
    for learned, steps in (("step", 3), ("parameter", 1), ("both", 3)):
        composer = make(kind, steps=3, learned_lr=LEARNED[learned])
        _assert_latents(composer.eval().encode(batch.observation), expected, atol=0)
        factors = composer.inner.rule.factors
        assert len(factors) == len(_initial(composer))
        for name, latent in _initial(composer).items():
            shape = tuple(latent.shape) if learned != "step" else (1,) * latent.dim()
            assert tuple(factors[name.replace(".", "_")].shape) == (steps, *shape)


@pytest.mark.parametrize("learned", ["step", "parameter", "both"])
def test_steps_beyond_those_of_training_use_the_last_factor(make, batch, learned):
    composer = make("ipc", steps=2, test_steps=5, learned_lr=LEARNED[learned]).eval()
    _disturb_factors(composer)
    _assert_latents(composer.encode(batch.observation), _naive_latents(composer, batch.query, 5))


# Samples of a step


@pytest.mark.parametrize("kind", ["ipc", "siren", "functa"])
def test_random_samples_are_the_same_for_all_instances(make, batch, set_global_step, kind):
    composer = make(kind, samples_per_step=20)
    set_global_step(7)
    rendered = _rendered_coords(composer)
    evaluation, gradients = _train(composer, batch)
    assert [tuple(coords.shape) for coords in rendered] == [(20, 2)] * 3 + [(96, 2)]  # two steps, the end, the query
    indices = [_indices(coords, batch.query) for coords in rendered[:2]]
    assert not torch.equal(*indices)
    latents = _naive_latents(composer, batch.query, 2, indices=indices)
    _assert_latents(evaluation["latents"][0], latents)
    _assert_gradients(gradients, _naive_gradients(composer, latents, batch.query))


def test_random_samples_depend_on_step_and_seed_only(make, batch, set_global_step, monkeypatch):
    composer = make("ipc", samples_per_step=20)
    rendered = _rendered_coords(composer)

    def draw(step, training, seed=0):
        set_global_step(step)
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        rendered.clear()
        composer.train(training).encode(batch.observation)
        return torch.cat(rendered)

    assert torch.equal(draw(3, True), draw(3, True))
    assert not torch.equal(draw(3, True), draw(4, True))
    assert not torch.equal(draw(3, True), draw(3, True, seed=1))
    assert torch.equal(draw(3, False), draw(4, False))


@pytest.mark.parametrize("choose", ["random", "error"])
def test_recomputed_steps_use_the_same_samples(make, batch, choose):
    results, coords = [], []
    for recompute in (False, True):
        composer = make("ipc", steps=3, samples_per_step=20, choose=choose, recompute=recompute)
        rendered = _rendered_coords(composer)
        evaluation, gradients = _train(composer, batch)
        coords.append({some.numpy().tobytes() for some in rendered})
        results.append([evaluation["latents"][0]["patterns.1"], *gradients.values()])
        calls = len(rendered)
    assert calls > len(coords[0])  # steps were recomputed
    assert coords[0] == coords[1]
    (stored, *expected), (recomputed, *actual) = results
    assert torch.equal(stored, recomputed)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)  # summed in another order


def test_samples_of_largest_error_are_chosen_and_masked_ones_last(make, batch):
    mask = torch.rand(3, 96) < 0.7
    mask[2] = torch.arange(96) < 8  # fewer than a step uses
    samples = batch.query._replace(mask=mask)
    composer = make("functa", samples_per_step=12, choose="error").eval()
    rendered = _rendered_coords(composer)
    composer.encode(Observation(None, samples))
    chosen = [coords for coords in rendered if coords.shape[-2] == 12]
    assert len(chosen) == 3
    for step, coords in enumerate(chosen):
        latents = composer.trajectory(Observation(None, samples), [step])[step]
        for instance in range(3):
            instance_latents = {name: latent[instance] for name, latent in latents.items()}
            difference = _naive_values(composer, instance_latents, samples.coords) - samples.values[instance]
            errors = (difference**2).sum(1).masked_fill(~mask[instance], -1)
            expected = set(errors.argsort(descending=True)[:12][: mask[instance].sum()].tolist())
            actual = _indices(coords[instance], samples).tolist()
            assert len(set(actual)) == 12
            assert expected == {index for index in actual if mask[instance][index]}


@pytest.mark.parametrize("choose", ["random", "error"])
def test_evaluation_has_its_own_steps_and_samples(make, batch, choose):
    composer = make("ipc", steps=1, test_steps=3, samples_per_step=20, test_samples_per_step="all", choose=choose)
    rendered = _rendered_coords(composer)
    composer.train().encode(batch.observation)
    assert sum(coords.shape[-2] == 20 for coords in rendered) == 2  # before and after one step
    rendered.clear()
    _assert_latents(composer.eval().encode(batch.observation), _naive_latents(composer, batch.query, 3))
    assert all(coords.shape[-2] == 96 for coords in rendered)
    assert GradientSteps(samples_per_step=5).test_samples_per_step == 5
    assert GradientSteps(steps=4).test_steps == 4


def test_more_samples_of_largest_error_than_observed_mean_all(make, batch):
    expected = make("ipc").eval().encode(batch.observation)
    actual = make("ipc", samples_per_step=1000, choose="error").eval().encode(batch.observation)
    _assert_latents(actual, expected, atol=0)


# Reptile


def test_the_gradient_of_reptile_is_start_minus_adapted_latents(make, batch, logged):
    composer = make("siren", outer="reptile", steps=3)
    with torch.no_grad():
        composer.start.latents["weight_0"].mul_(1e3)  # large weights must not change the loss that is logged
    composer.train().training_step(batch, 0).backward()
    adapted = {name: latent.detach() for name, latent in _naive_latents(composer, batch.query, 3).items()}
    initial = _initial(composer)
    assert {id(latent) for latent in initial.values()} == {id(parameter) for parameter in composer.parameters()}
    for name, latent in initial.items():
        torch.testing.assert_close(latent.grad, (latent.detach() - adapted[name]).mean(0), atol=1e-5, rtol=1e-3)
    latents = composer.eval().encode(batch.observation)
    for name, latent in initial.items():
        assert not latents[name].requires_grad
        torch.testing.assert_close(latent.grad, (latent.detach() - latents[name]).mean(0), atol=1e-7, rtol=1e-5)
    values = composer.render(composer.compose(latents), batch.query.coords)
    assert torch.equal(logged["train/loss"].detach(), instance_mse(values, batch.query).mean().detach())


@pytest.mark.parametrize(
    ("kind", "network", "inner"),
    [
        ("siren", {"modulates": "weights"}, {}),
        ("siren", {"modulated_layers": (1, 2)}, {}),
        ("siren", {}, {"learned_lr": ["step"]}),
        ("ipc", {}, {}),
        ("functa", {}, {}),
    ],
    ids=["biases", "layers", "step_sizes", "ipc", "functa"],
)
def test_reptile_rejects_parameters_that_it_cannot_learn(make, kind, network, inner):
    with pytest.raises(ValueError, match=r"set modulates to both, modulated_layers to all and learned_lr to \[\]"):
        make(kind, network, outer="reptile", **inner)


# Evaluation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_evaluation_keeps_no_graph_in_any_mode(make, batch, kind, autocast):
    composer = make(kind, learned_lr=("step", "parameter")).eval()
    results = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            samples = Samples(*(part.clone() for part in batch.query[:2]))
            initial = {name: latent.expand(3, *latent.shape) for name, latent in _initial(composer).items()}
            composer.render(composer.compose(initial), samples.coords)  # fills the cache of autocast
            latents = composer.encode(Observation(None, samples))
        assert not any(latent.requires_grad for latent in latents.values())
        results.append(latents)
    assert all(parameter.grad is None for parameter in composer.parameters())
    _assert_latents(results[1], results[0], atol=0)
    _assert_latents(results[2], results[0], atol=1e-6)
    if not autocast:
        _assert_latents(results[0], _naive_latents(composer, batch.query, 2))


@pytest.mark.parametrize(
    "options", [{}, {"samples_per_step": 20}, {"samples_per_step": 20, "choose": "error"}], ids=str
)
@pytest.mark.parametrize("kind", ["ipc", "siren", "functa"])
def test_a_trajectory_contains_the_results_of_encode(make, batch, kind, options):
    composer = make(kind, learned_lr=("step",), **options).eval()
    _disturb_factors(composer)
    with torch.inference_mode():
        trajectory = composer.trajectory(batch.observation, (0, 1, 2, 5))
    assert list(trajectory) == [0, 1, 2, 5]
    for name, initial in _initial(composer).items():
        assert torch.equal(trajectory[0][name], initial.expand(3, *initial.shape))
    for steps in (1, 2, 5):
        composer.inner.test_steps = steps
        _assert_latents(trajectory[steps], composer.encode(batch.observation), atol=0)
        assert not any(latent.requires_grad for latent in trajectory[steps].values())


def test_without_an_inner_loop_or_steps_there_is_no_trajectory(make, batch, tiny_ipc, tiny_batch):
    assert make("ipc").trajectory(batch.observation, ()) == {}
    assert tiny_ipc.trajectory(tiny_batch.observation, (0, 1)) == {}


def test_a_test_reports_the_curve_of_the_inner_loop(make, batch, logged):
    composer = make("ipc", report=(5, 0, 2)).eval()
    with torch.inference_mode():
        evaluation = composer.test_step(batch, 0)
    curve = evaluation["starts"]["inner"]
    assert list(curve) == [0, 2, 5]
    assert torch.equal(curve[2]["psnr"], evaluation["metrics"][0]["psnr"])
    for step, metrics in curve.items():
        latents = _naive_latents(composer, batch.query, step)
        errors = [
            (
                _naive_values(composer, {name: latent[i] for name, latent in latents.items()}, batch.query.coords)
                - values
            )
            .square()
            .mean()
            for i, values in enumerate(batch.query.values)
        ]
        torch.testing.assert_close(metrics["psnr"], -10 * torch.stack(errors).log10().detach(), atol=1e-3, rtol=0)


def test_the_inner_loop_adapts_to_the_observation_and_not_to_the_query(make, batch):
    composer = make("ipc").eval()
    other_query = batch._replace(query=Samples(torch.rand(5, 2), torch.rand(3, 5, 3)))
    evaluation = composer.predict_step(other_query, 0)
    _assert_latents(evaluation["latents"][0], _naive_latents(composer, batch.query, 2))


# Parameters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"outer": "first_order"},
        {"learned_lr": ("step", "parameter")},
        {"learned_lr": ("step",), "outer": "first_order", "steps": 1},
        {"samples_per_step": 20},
        {"samples_per_step": 20, "choose": "error", "recompute": True, "learned_lr": ("parameter",)},
        {"steps": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [*KINDS, "reptile"])
def test_every_parameter_gets_a_gradient(make, batch, logged, kind, options):
    if kind == "reptile":
        composer = make("siren", **options | {"learned_lr": (), "outer": "reptile"})
    else:
        composer = make(kind, **options)
    composer.train().training_step(batch, 0).backward()
    assert [name for name, parameter in composer.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.any() for parameter in composer.parameters())


@pytest.mark.parametrize("choose", ["random", "error"])
@pytest.mark.parametrize("kind", ["ipc", "learned_init", "functa"])
def test_bfloat16_is_close_to_float32(make, batch, kind, choose):
    composer = make(kind, samples_per_step=60, choose=choose)
    exact = _train(composer, batch)[1]
    with torch.autocast("cpu", torch.bfloat16):
        composer.zero_grad()
        loss = composer._evaluate(batch, "train")["losses"].mean()
    loss.backward()
    for name, parameter in composer.named_parameters():
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.2, name


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_float16_is_rejected_with_the_reason(make, precision):
    composer = make("ipc")
    composer._trainer = SimpleNamespace(precision=precision, datamodule=None)
    with pytest.raises(
        ValueError, match=f"precision is {precision}: .* too small for float16. Train in bf16-mixed or 32"
    ):
        composer.setup("fit")
    for allowed in ("32-true", "bf16-mixed"):
        composer._trainer = SimpleNamespace(precision=allowed, datamodule=None)
        composer.setup("fit")


# Divergence


@pytest.mark.parametrize("kind", ["ipc", "siren", "functa"])
def test_divergence_names_the_instance_the_steps_and_the_setting(make, batch, logged, kind):
    composer = make(kind, lr=1e38, steps=9)
    for training, step in ((True, composer.training_step), (False, composer.test_step)):
        composer.train(training)
        with pytest.raises(
            ValueError, match=r"diverged on [abc]: after [1-9] steps .* Lower the lr of inner.rule \(1e\+38\)"
        ):
            step(batch, 0)


def test_divergence_names_the_instance_that_diverged(make, batch, logged):
    values = batch.query.values.clone()
    values[1] = 1e30  # its square is not finite
    observation = Observation(None, batch.query._replace(values=values))
    with pytest.raises(ValueError, match="diverged on b: after 0 steps"):
        make("ipc").train().training_step(batch._replace(observation=observation), 0)


def test_a_curve_that_diverges_beyond_the_trained_steps_becomes_nan(make, batch, logged):
    composer = make("siren", lr=20, steps=1, report=(0, 1, 40)).eval()
    with torch.inference_mode():
        evaluation = composer.test_step(batch, 0)
    curve = evaluation["starts"]["inner"]
    assert curve[1]["psnr"].isfinite().all()
    assert curve[40]["psnr"].isnan().all()


# Rejected arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0 .* at least 1 step"),
        ({"test_steps": 0}, "test_steps 0; an inner loop has at least 1 step"),
        ({"lr": 0.0}, "lr is 0.0; the step size .* positive and finite"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": math.inf}, "lr is inf"),
        ({"samples_per_step": 0}, "samples_per_step is 0 .* at least 1, or all"),
        ({"test_samples_per_step": -1}, "test_samples_per_step -1"),
        ({"learned_lr": ["steps"]}, r"learned_lr names \['steps'\]; allowed are step, parameter and tensor"),
        ({"choose": "worst"}, "choose is worst; allowed are random and error"),
        ({"report": (3, -1)}, r"report is \[3, -1\]; steps count from 0"),
        ({"outer": "fomaml"}, "outer is fomaml; allowed are second_order, first_order and reptile"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        _gradient_steps(**options)


@pytest.mark.parametrize(
    ("kind", "network", "arguments", "message"),
    [
        ("ipc", {"modulated_layers": ()}, {}, "LowRank composes weights; .* name its modulated_layers"),
        ("siren", {"modulated_layers": ()}, {}, "Direct adapts the modulations .* has none: name its modulated_layers"),
        ("functa", {"modulated_layers": ()}, {}, "Shifts composes shifts .* takes nothing: .* its modulated_layers"),
        ("functa", {"modulates": "weights"}, {}, "Shifts composes shifts of biases; .* set its modulates to shifts"),
        ("ipc", {"modulates": "biases"}, {}, "LowRank composes weights; .* set its modulates to weights"),
        ("ipc", {}, {"rank": 0}, "rank is 0 .* it must be at least 1, or null"),
        ("functa", {}, {"latent_dim": 0}, "latent_dim is 0; it must be at least 1"),
    ],
)
def test_presets_reject_networks_and_sizes_that_do_not_fit(make, kind, network, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(kind, network, arguments)


class _UnusedLatent(LowRank):
    """A parametrization with a latent that it does not use."""

    def connect(self, network):
        """Add a latent."""
        super().connect(network)
        self.latents["style"] = TensorSpec((4,), lambda: torch.zeros(4))

    def compose(self, latents, layout):
        """Leave the latent out."""
        return super().compose({name: latent for name, latent in latents.items() if name != "style"}, layout)


def test_a_latent_without_effect_is_rejected_at_construction(make_network):
    with pytest.raises(
        ValueError, match=r"modulations that _UnusedLatent composes do not depend on style: .* or remove"
    ):
        Composer(make_network(), _UnusedLatent(), LearnedStart(), GradientSteps())


def test_presets_with_an_inner_loop_require_one(make_network):
    for preset in (MetaIPC, LearnedInit, Functa):
        with pytest.raises(TypeError, match="inner"):
            preset(make_network())


@pytest.mark.parametrize("samples", [None, Samples(torch.zeros(4, 2))], ids=["none", "no_values"])
def test_observations_without_samples_are_rejected(make, samples):
    for composer in (make("ipc").eval(), make("ipc").train()):
        with pytest.raises(
            ValueError, match="adapts to samples: pass an Observation whose samples have coords and values"
        ):
            composer.encode(Observation(torch.rand(1, 3, 8, 12), samples))


# Compilation


def _compare_compiled(composer, batch, monkeypatch, **options):
    """Compare the loss and its gradients, compiled and eager, and check that no inner loop fell back to eager."""

    def outer():
        return (composer(batch.observation, batch.query.coords) - batch.query.values).square().mean()

    torch.compiler.reset()  # the compiler gives up on a function after eight variants
    compiled, results = torch.compile(outer, **options), []
    for function in (outer, compiled):
        loss = function()
        results.append([loss, *torch.autograd.grad(loss, list(composer.parameters()))])
    for expected, actual in zip(*results, strict=True):
        assert expected.any()
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", None)  # called by eager inner loops
        assert compiled().item() == pytest.approx(results[0][0].item(), rel=1e-5)
        with pytest.raises(TypeError):
            outer()


def _tiny(make, kind, **inner):
    """Return a composer that compiles fast: two layers of width 4."""
    layers = {"ipc": (0,), "functa": "hidden"}.get(kind, "all")
    return make(
        kind, {"num_layers": 2, "hidden_dim": 4, "encoding": IdentityEncoding(), "modulated_layers": layers}, **inner
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ipc", "learned_init"])
def test_compiled_training_equals_eager(make, batch, kind, monkeypatch):
    monkeypatch.setattr("composers.base.check_finite", lambda losses: None)  # the only graph break
    _compare_compiled(_tiny(make, kind, steps=1).train(), batch, monkeypatch, backend="aot_eager", fullgraph=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize(
    ("kind", "inner"),
    [  # every kind, and every option with two kinds
        ("ipc", {"samples_per_step": 20, "learned_lr": ("step", "parameter")}),
        ("functa", {"samples_per_step": 20, "learned_lr": ("step", "parameter")}),
        ("ipc", {"samples_per_step": 20, "choose": "error", "recompute": True}),
        ("siren", {"samples_per_step": 20, "choose": "error", "recompute": True}),
        ("learned_init", {"outer": "first_order"}),
        ("functa", {"outer": "first_order"}),
    ],
    ids=str,
)
def test_compiled_options_equal_eager(make, batch, kind, inner, monkeypatch):
    _compare_compiled(_tiny(make, kind, **inner).train(), batch, monkeypatch, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("kind", ["ipc"])
def test_compiled_by_the_default_backend_training_equals_eager(make, batch, kind, monkeypatch):
    _compare_compiled(_tiny(make, kind, steps=1).train(), batch, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
@pytest.mark.parametrize("kind", ["ipc", "learned_init"])
def test_compiled_evaluation_equals_eager(make, batch, kind):
    composer = _tiny(make, kind).eval()
    with torch.no_grad():
        expected = composer(batch.observation, batch.query.coords)
        actual = torch.compile(composer.forward, backend="aot_eager")(batch.observation, batch.query.coords)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
