"""The meta-learned composers against a loop over instances written here, their options, and what they refuse."""

import math
from types import SimpleNamespace

import pytest
import torch
from composers.meta_learned import MetaLearned

from composers import Functa, InnerLoop, LearnedInit, MetaIPC
from composers.metrics import instance_mse
from composers.networks import FourierFeatures, IdentityEncoding, Sine
from datamodules.batch import Observation, Samples

SMOOTH = {"activation": Sine(1.0)}  # gradients of a ReLU jump where rounding moves an input over its kink
SIREN = {"encoding": IdentityEncoding(), "activation": Sine(3.0), "normalize_weights": False}
KINDS = {  # class, network, other arguments, inner rate
    "ipc": (MetaIPC, SMOOTH | {"modulated_layers": (1,)}, {"rank": 5}, 0.02),
    "ipc_plain": (MetaIPC, SMOOTH | {"modulated_layers": (0, 2), "normalize_weights": False}, {}, 0.2),
    "learned_init": (LearnedInit, SMOOTH | {"modulated_layers": "all"}, {}, 0.02),
    "learned_init_biases": (LearnedInit, SMOOTH | {"modulated_layers": (1, 3)}, {"adapt_biases": True}, 0.02),
    "siren": (LearnedInit, SIREN | {"modulated_layers": "all"}, {"adapt_biases": True}, 0.02),
    "functa": (Functa, SIREN | {"modulated_layers": "hidden", "modulates": "biases"}, {"latent_dim": 5}, 0.3),
}
LEARNED = {"none": (), "step": ("step",), "parameter": ("parameter",), "both": ("step", "parameter")}


@pytest.fixture
def make(make_network):
    """Return a maker of tiny meta-learned composers by kind; keywords are those of the inner loop."""

    def made(kind, network=None, arguments=None, **inner):
        torch.manual_seed(1)
        method, own_network, own_arguments, lr = KINDS[kind]
        loop = InnerLoop(**{"lr": lr} | inner)
        return method(make_network(**own_network | (network or {})), loop, **own_arguments | (arguments or {}))

    return made


@pytest.fixture
def batch(tiny_batch):
    """Return three images to adapt to."""
    return tiny_batch._replace(observation=tiny_batch.observation._replace(signal=None))


@pytest.fixture
def logged(monkeypatch):
    """Return what composers log, by name, without a trainer."""
    found = {}
    monkeypatch.setattr(MetaLearned, "log", lambda self, name, value, **options: found.update({name: value}))
    return found


@pytest.fixture
def at_step(monkeypatch):
    """Return what sets the step of training, without a trainer."""
    return lambda step: monkeypatch.setattr(MetaLearned, "global_step", step)


def _disturb_factors(composer):
    """Give every learned step size another value."""
    for factor in composer.inner.factors.values():
        torch.nn.init.uniform_(factor, 0.5, 2)


def _naive_layer(composer, own, layer):
    """Return what one instance computes a layer with, before normalisation."""
    key, inr = str(layer), composer.network
    bias = inr.biases[key]
    if layer not in inr.modulated_layers:
        return inr.weights[key], bias
    if isinstance(composer, MetaIPC):
        return own[f"patterns.{layer}"].mm(composer.bases[key]), bias
    if isinstance(composer, LearnedInit):
        return own[f"weight.{layer}"], own.get(f"bias.{layer}", bias)
    first = sum(inr.layer_sizes[other][1] for other in inr.modulated_layers if other < layer)
    columns = composer.shifts[:, first : first + inr.layer_sizes[layer][1]]
    return inr.weights[key], bias + (own["latent"][:, None] * columns).sum(0)


def _naive_values(composer, own, coords):
    """Return the values ``(N, C)`` of one instance."""
    inr, hidden = composer.network, coords
    if isinstance(inr.encoding, FourierFeatures):
        phases = torch.stack([x * float(f) * math.pi for x in coords.T for f in inr.encoding.frequencies], dim=1)
        hidden = torch.cat((torch.cos(phases), torch.sin(phases)), dim=1)
    for layer in range(inr.num_layers):
        weight, bias = _naive_layer(composer, own, layer)
        if inr.normalize_weights:
            weight = weight / (weight**2).sum(0).sqrt()
        hidden = hidden.mm(weight) + bias
        if layer < inr.num_layers - 1:
            hidden = torch.sin(inr.activation.omega * hidden)
    return hidden + inr.output_offset


def _naive_size(composer, name, latent, step):
    """Return the step size of one latent of one instance."""
    size = composer.inner.lr
    if composer.network.normalize_weights and not name.startswith("bias"):
        size = size * (latent**2).sum()
    if composer.inner.learned_lr:
        factors = composer.inner.factors[name.replace(".", "_")]
        size = size * factors[step if step < len(factors) else -1]
    return size


def _naive(composer, samples, steps, *, first_order=False, seen=None):
    """Return the adapted latents by a loop over instances; ``seen`` has the indices of every step."""
    adapted = []
    for instance in range(len(samples.values)):
        own = dict(composer.start())
        for step in range(steps):
            chosen = torch.arange(samples.coords.shape[-2]) if seen is None else seen[step]
            if samples.mask is not None:
                chosen = chosen[samples.mask[instance][chosen]]

            def error(at, chosen=chosen, instance=instance):
                miss = _naive_values(composer, at, samples.coords[chosen]) - samples.values[instance][chosen]
                return (miss**2).mean()

            slopes = torch.func.grad(error)(own)
            sources = own
            if first_order:
                slopes = {name: slope.detach() for name, slope in slopes.items()}
                sources = {name: latent.detach() for name, latent in own.items()}
            own = {
                name: own[name] - _naive_size(composer, name, sources[name], step) * slope
                for name, slope in slopes.items()
            }
        adapted.append(own)
    return {name: torch.stack([own[name] for own in adapted]) for name in adapted[0]}


def _naive_loss(composer, latents, samples):
    """Return the mean over instances of the error after the inner loop."""
    errors = []
    for instance, values in enumerate(samples.values):
        own = {name: latent[instance] for name, latent in latents.items()}
        miss = (_naive_values(composer, own, samples.coords) - values).square().mean(1)
        mask = torch.ones(len(miss)) if samples.mask is None else samples.mask[instance].float()
        errors.append((miss * mask).sum() / mask.sum())
    return torch.stack(errors).mean()


def _assert_latents(found, wanted, atol=2e-5):
    assert found.keys() == wanted.keys()
    for name, latent in found.items():
        assert latent.shape == wanted[name].shape
        torch.testing.assert_close(latent, wanted[name], atol=atol, rtol=1e-4)


def _train(composer, batch):
    """Return what training makes of a batch, and the gradient of every parameter by name."""
    composer.train().zero_grad()
    evaluation = composer._evaluate(batch, "train")
    composer.training_losses(evaluation).mean().backward()
    return evaluation, {name: parameter.grad for name, parameter in composer.named_parameters()}


def _assert_gradients(found, wanted, tolerance=2e-4):
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert gradient.any(), name
        assert (gradient - wanted[name]).abs().max() <= tolerance * wanted[name].abs().max(), name


def _seen(composer):
    """Return a list that fills with the coordinates that are rendered."""
    rendered = []
    composer.renderer.register_forward_pre_hook(lambda module, arguments: rendered.append(arguments[1].detach()))
    return rendered


def _indices(rendered, samples):
    """Return at which of the samples of an instance these coordinates ``(K, D)`` lie."""
    return (rendered[:, None] - samples.coords[None]).abs().sum(-1).argmin(1)


# Against a loop over instances


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("learned", LEARNED)
@pytest.mark.parametrize("kind", KINDS)
def test_training_equals_a_loop_over_instances(make, batch, kind, learned, first_order):
    composer = make(kind, steps=2, learned_lr=LEARNED[learned], first_order=first_order)
    _disturb_factors(composer)
    evaluation, gradients = _train(composer, batch)
    latents = _naive(composer, batch.query, 2, first_order=first_order)
    _assert_latents(evaluation["latents"][0], latents)
    names = [name for name, _ in composer.named_parameters()]
    wanted = torch.autograd.grad(_naive_loss(composer, latents, batch.query), list(composer.parameters()))
    _assert_gradients(gradients, dict(zip(names, wanted, strict=True)))
    for name, start in composer.start().items():
        assert (evaluation["latents"][0][name] - start).abs().max() > 2e-4  # something was to compare


@pytest.mark.parametrize("kind", ["ipc", "functa"])
def test_masks_count(make, batch, kind):
    mask = torch.rand(batch.query.values.shape[:2]) < 0.5
    disturbed = torch.where(mask[..., None], batch.query.values, 50.0)
    samples = batch.query._replace(values=disturbed, mask=mask)
    masked = batch._replace(observation=Observation(None, samples), query=samples)
    composer = make(kind)
    evaluation, gradients = _train(composer, masked)
    latents = _naive(composer, samples, 2)
    _assert_latents(evaluation["latents"][0], latents)
    wanted = torch.autograd.grad(_naive_loss(composer, latents, samples), list(composer.parameters()))
    _assert_gradients(gradients, dict(zip(gradients, wanted, strict=True)))


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_of_every_instance_equal_shared_ones(make, batch, kind):
    composer = make(kind).eval()
    own = Observation(None, batch.query._replace(coords=batch.query.coords.expand(3, -1, -1)))
    _assert_latents(composer.encode(own), composer.encode(batch.observation))


# Learned step sizes


@pytest.mark.parametrize("kind", KINDS)
def test_learned_step_sizes_start_at_one_and_have_the_shapes_that_they_say(make, batch, kind):
    plain = make(kind, steps=3)
    wanted = plain.eval().encode(batch.observation)
    assert not plain.inner.factors
    for learned, turns in (("step", 3), ("parameter", 1), ("both", 3)):
        composer = make(kind, steps=3, learned_lr=LEARNED[learned])
        _assert_latents(composer.eval().encode(batch.observation), wanted, atol=0)
        factors = composer.inner.factors
        assert len(factors) == len(composer.start())
        for name, latent in composer.start().items():
            own = tuple(latent.shape) if learned != "step" else (1,) * latent.dim()
            assert tuple(factors[name.replace(".", "_")].shape) == (turns, *own)


@pytest.mark.parametrize("learned", ["step", "parameter", "both"])
def test_beyond_the_trained_steps_the_last_step_size_is_used(make, batch, learned):
    composer = make("ipc", steps=2, test_steps=5, learned_lr=LEARNED[learned]).eval()
    _disturb_factors(composer)
    _assert_latents(composer.encode(batch.observation), _naive(composer, batch.query, 5))


# Samples of a step


@pytest.mark.parametrize("kind", ["ipc", "siren", "functa"])
def test_random_samples_are_the_same_for_all_instances(make, batch, at_step, kind):
    composer = make(kind, samples_per_step=20)
    at_step(7)
    rendered = _seen(composer)
    evaluation, gradients = _train(composer, batch)
    assert [tuple(coords.shape) for coords in rendered] == [(20, 2)] * 3 + [(96, 2)]  # two steps, the end, the query
    seen = [_indices(coords, batch.query) for coords in rendered[:2]]
    assert not torch.equal(*seen)
    latents = _naive(composer, batch.query, 2, seen=seen)
    _assert_latents(evaluation["latents"][0], latents)
    wanted = torch.autograd.grad(_naive_loss(composer, latents, batch.query), list(composer.parameters()))
    _assert_gradients(gradients, dict(zip(gradients, wanted, strict=True)))


def test_random_samples_have_an_address(make, batch, at_step, monkeypatch):
    composer = make("ipc", samples_per_step=20)
    rendered = _seen(composer)

    def drawn(step, training, seed=0):
        at_step(step)
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        rendered.clear()
        composer.train(training).encode(batch.observation)
        return torch.cat(rendered)

    assert torch.equal(drawn(3, True), drawn(3, True))
    assert not torch.equal(drawn(3, True), drawn(4, True))
    assert not torch.equal(drawn(3, True), drawn(3, True, seed=1))
    assert torch.equal(drawn(3, False), drawn(4, False))


@pytest.mark.parametrize("choose", ["random", "error"])
def test_recomputed_steps_see_the_same_samples(make, batch, choose):
    results, seen = [], []
    for recompute in (False, True):
        composer = make("ipc", steps=3, samples_per_step=20, choose=choose, recompute=recompute)
        rendered = _seen(composer)
        evaluation, gradients = _train(composer, batch)
        seen.append({coords.numpy().tobytes() for coords in rendered})
        results.append([evaluation["latents"][0]["patterns.1"], *gradients.values()])
        calls = len(rendered)
    assert calls > len(seen[0])  # something was computed again
    assert seen[0] == seen[1]
    (stored, *wanted), (again, *found) = results
    assert torch.equal(stored, again)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)  # added up in another order


def test_samples_of_largest_error_are_exactly_those_and_masked_ones_are_last(make, batch):
    mask = torch.rand(3, 96) < 0.7
    mask[2] = torch.arange(96) < 8  # fewer than a step looks at
    samples = batch.query._replace(mask=mask)
    composer = make("functa", samples_per_step=12, choose="error").eval()
    rendered = _seen(composer)
    composer.encode(Observation(None, samples))
    chosen = [coords for coords in rendered if coords.shape[-2] == 12]
    assert len(chosen) == 3
    for step, coords in enumerate(chosen):
        latents = dict(composer.trajectory(Observation(None, samples), [step]))[step]
        for instance in range(3):
            own = {name: latent[instance] for name, latent in latents.items()}
            miss = _naive_values(composer, own, samples.coords) - samples.values[instance]
            errors = (miss**2).sum(1).masked_fill(~mask[instance], -1)
            wanted = set(errors.argsort(descending=True)[:12][: mask[instance].sum()].tolist())
            found = _indices(coords[instance], samples).tolist()
            assert len(set(found)) == 12
            assert wanted == {index for index in found if mask[instance][index]}


@pytest.mark.parametrize("choose", ["random", "error"])
def test_settings_of_evaluation_are_apart_from_those_of_training(make, batch, choose):
    composer = make("ipc", steps=1, test_steps=3, samples_per_step=20, test_samples_per_step="all", choose=choose)
    rendered = _seen(composer)
    composer.train().encode(batch.observation)
    assert sum(coords.shape[-2] == 20 for coords in rendered) == 2  # before and after one step
    rendered.clear()
    _assert_latents(composer.eval().encode(batch.observation), _naive(composer, batch.query, 3))
    assert all(coords.shape[-2] == 96 for coords in rendered)
    assert InnerLoop(samples_per_step=5).test_samples_per_step == 5
    assert InnerLoop(steps=4).test_steps == 4


def test_more_samples_of_largest_error_than_there_are_stand_for_all(make, batch):
    wanted = make("ipc").eval().encode(batch.observation)
    found = make("ipc", samples_per_step=1000, choose="error").eval().encode(batch.observation)
    _assert_latents(found, wanted, atol=0)


# Reptile


def test_the_gradient_of_reptile_is_the_start_minus_what_it_adapts_to(make, batch, logged):
    composer = make("siren", arguments={"outer": "reptile"}, steps=3)
    with torch.no_grad():
        composer.weights["0"].mul_(1e3)  # large weights must not blur the loss that is logged
    composer.train().training_step(batch, 0).backward()
    adapted = {name: latent.detach() for name, latent in _naive(composer, batch.query, 3).items()}
    starts = composer.start()
    assert {id(one) for one in starts.values()} == {id(one) for one in composer.parameters()}
    for name, start in starts.items():
        torch.testing.assert_close(start.grad, (start.detach() - adapted[name]).mean(0), atol=1e-5, rtol=1e-3)
    latents = composer.adapted(batch.query)
    for name, start in starts.items():
        assert not latents[name].requires_grad
        torch.testing.assert_close(start.grad, (start.detach() - latents[name]).mean(0), atol=1e-7, rtol=1e-5)
    values = composer.render(composer.compose(latents), batch.query.coords)
    assert torch.equal(logged["train/loss"].detach(), instance_mse(values, batch.query).mean().detach())


@pytest.mark.parametrize(
    ("network", "arguments", "inner"),
    [
        ({}, {"adapt_biases": False}, {}),
        ({"modulated_layers": (1, 2)}, {}, {}),
        ({}, {}, {"learned_lr": ["step"]}),
    ],
    ids=["biases", "layers", "rates"],
)
def test_reptile_refuses_what_it_cannot_learn(make, network, arguments, inner):
    with pytest.raises(
        ValueError, match=r"set adapt_biases to true, modulated_layers to all and learned_lr .* to \[\]"
    ):
        make("siren", network, arguments | {"outer": "reptile"}, **inner)


# Evaluation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_evaluation_has_no_graph_in_any_mode(make, batch, kind, autocast):
    composer = make(kind, learned_lr=("step", "parameter")).eval()
    found = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            samples = Samples(*(part.clone() for part in batch.query[:2]))
            starts = {name: latent.expand(3, *latent.shape) for name, latent in composer.start().items()}
            composer.render(composer.compose(starts), samples.coords)  # which fills the cache of autocast
            latents = composer.encode(Observation(None, samples))
        assert not any(latent.requires_grad for latent in latents.values())
        found.append(latents)
    assert all(parameter.grad is None for parameter in composer.parameters())
    _assert_latents(found[1], found[0], atol=0)
    _assert_latents(found[2], found[0], atol=1e-6)
    if not autocast:
        _assert_latents(found[0], _naive(composer, batch.query, 2))


@pytest.mark.parametrize(
    "options", [{}, {"samples_per_step": 20}, {"samples_per_step": 20, "choose": "error"}], ids=str
)
@pytest.mark.parametrize("kind", ["ipc", "siren", "functa"])
def test_a_trajectory_passes_where_encode_ends(make, batch, kind, options):
    composer = make(kind, learned_lr=("step",), **options).eval()
    _disturb_factors(composer)
    with torch.inference_mode():
        passed = dict(composer.trajectory(batch.observation, (0, 1, 2, 5)))
    assert list(passed) == [0, 1, 2, 5]
    for name, start in composer.start().items():
        assert torch.equal(passed[0][name], start.expand(3, *start.shape))
    for steps in (1, 2, 5):
        composer.inner.test_steps = steps
        _assert_latents(passed[steps], composer.encode(batch.observation), atol=0)
        assert not any(latent.requires_grad for latent in passed[steps].values())


def test_a_test_reports_the_curve_of_the_inner_loop(make, batch, logged):
    composer = make("ipc", report=(5, 0, 2)).eval()
    with torch.inference_mode():
        evaluation = composer.test_step(batch, 0)
    curve = evaluation["starts"]["inner"]
    assert list(curve) == [0, 2, 5]
    assert torch.equal(curve[2]["psnr"], evaluation["metrics"][0]["psnr"])
    for step, metrics in curve.items():
        own = _naive(composer, batch.query, step)
        errors = [
            (_naive_values(composer, {name: latent[one] for name, latent in own.items()}, batch.query.coords) - values)
            .square()
            .mean()
            for one, values in enumerate(batch.query.values)
        ]
        torch.testing.assert_close(metrics["psnr"], -10 * torch.stack(errors).log10().detach(), atol=1e-3, rtol=0)


def test_a_query_elsewhere_is_not_adapted_to(make, batch):
    composer = make("ipc").eval()
    elsewhere = batch._replace(query=Samples(torch.rand(5, 2), torch.rand(3, 5, 3)))
    evaluation = composer.predict_step(elsewhere, 0)
    _assert_latents(evaluation["latents"][0], _naive(composer, batch.query, 2))


# Parameters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"first_order": True},
        {"learned_lr": ("step", "parameter")},
        {"learned_lr": ("step",), "first_order": True, "steps": 1},
        {"samples_per_step": 20},
        {"samples_per_step": 20, "choose": "error", "recompute": True, "learned_lr": ("parameter",)},
        {"steps": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [*KINDS, "reptile"])
def test_every_parameter_gets_a_gradient(make, batch, logged, kind, options):
    if kind == "reptile":
        composer = make("siren", arguments={"outer": "reptile"}, **options | {"learned_lr": ()})
    else:
        composer = make(kind, **options)
    composer.train().training_step(batch, 0).backward()
    missing = [name for name, parameter in composer.named_parameters() if parameter.grad is None]
    assert not missing
    assert all(parameter.grad.any() for parameter in composer.parameters())


@pytest.mark.parametrize("choose", ["random", "error"])
@pytest.mark.parametrize("kind", ["ipc", "learned_init", "functa"])
def test_bfloat16_is_close_to_float32(make, batch, kind, choose):
    composer = make(kind, samples_per_step=60, choose=choose)
    exact = _train(composer, batch)[1]
    with torch.autocast("cpu", torch.bfloat16):
        composer.zero_grad()
        loss = composer.training_losses(composer._evaluate(batch, "train")).mean()
    loss.backward()
    for name, parameter in composer.named_parameters():
        assert parameter.grad.dtype == torch.float32
        error = (parameter.grad - exact[name]).norm() / exact[name].norm()
        assert 0 < error < 0.2, name


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_sixteen_bits_without_range_are_refused_with_the_reason(make, precision):
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
        with pytest.raises(ValueError, match=r"diverged on [abc]: after [1-9] steps .* Lower inner_loop.lr \(1e\+38\)"):
            step(batch, 0)


def test_divergence_names_the_instance_that_diverged(make, batch, logged):
    values = batch.query.values.clone()
    values[1] = 1e30  # whose square is no number
    observation = Observation(None, batch.query._replace(values=values))
    with pytest.raises(ValueError, match="diverged on b: after 0 steps"):
        make("ipc").train().training_step(batch._replace(observation=observation), 0)


def test_a_curve_that_diverges_beyond_the_trained_steps_has_no_number_and_goes_on(make, batch, logged):
    composer = make("siren", lr=20, steps=1, report=(0, 1, 40)).eval()
    with torch.inference_mode():
        evaluation = composer.test_step(batch, 0)
    curve = evaluation["starts"]["inner"]
    assert curve[1]["psnr"].isfinite().all()
    assert curve[40]["psnr"].isnan().all()


# Refusals


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
        ({"learned_lr": ["steps"]}, r"learned_lr names \['steps'\]; allowed are step and parameter"),
        ({"choose": "worst"}, "choose is worst; allowed are random and error"),
        ({"report": (3, -1)}, r"report is \[3, -1\]; steps count from 0"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InnerLoop(**options)


@pytest.mark.parametrize(
    ("kind", "network", "arguments", "message"),
    [
        ("ipc", {"modulated_layers": ()}, {}, "MetaIPC adapts the modulated layers .* none: give it modulated_layers"),
        ("siren", {"modulated_layers": ()}, {}, "LearnedInit adapts the modulated layers .* which has none"),
        ("functa", {"modulated_layers": ()}, {}, "Functa adapts the modulated layers .* which has none"),
        ("functa", {"modulates": "weights"}, {}, "Functa composes the biases .* give its inr modulates biases"),
        ("ipc", {"modulates": "biases"}, {}, "MetaIPC composes the weights .* give its inr modulates weights"),
        ("siren", {"modulates": "biases"}, {}, "LearnedInit composes the weights"),
        ("ipc", {}, {"rank": 0}, "rank is 0; it must be at least 1, or null"),
        ("functa", {}, {"latent_dim": 0}, "latent_dim is 0; it must be at least 1"),
        ("siren", {}, {"outer": "fomaml"}, "outer is fomaml; allowed are maml and reptile"),
    ],
)
def test_composers_refuse_what_cannot_adapt(make, kind, network, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(kind, network, arguments)


def test_a_latent_that_nothing_depends_on_is_refused_at_construction(make_network):
    class Forgetful(MetaIPC):
        def start(self):
            return super().start() | {"style": torch.zeros(4)}

    with pytest.raises(ValueError, match=r"Forgetful starts .* from style too, .* or leave these out of start"):
        Forgetful(make_network())


@pytest.mark.parametrize("samples", [None, Samples(torch.zeros(4, 2))], ids=["none", "no_values"])
def test_nothing_to_adapt_to_is_refused(make, samples):
    for composer in (make("ipc").eval(), make("ipc").train()):
        with pytest.raises(
            ValueError, match="adapts to samples: give an Observation whose samples have coords and values"
        ):
            composer.encode(Observation(torch.rand(1, 3, 8, 12), samples))


# Compilation


def _compare_compiled(composer, batch, monkeypatch, **options):
    """Compare the loss and its gradients, compiled and not, and prove that no inner loop fell back to eager."""

    def outer():
        return (composer(batch.observation, batch.query.coords) - batch.query.values).square().mean()

    torch.compiler.reset()  # the compiler gives a function up after eight variants, whoever asked for them
    compiled, results = torch.compile(outer, **options), []
    for function in (outer, compiled):
        loss = function()
        results.append([loss, *torch.autograd.grad(loss, list(composer.parameters()))])
    for wanted, found in zip(*results, strict=True):
        assert wanted.any()
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", None)  # which eager inner loops call
        assert compiled().item() == pytest.approx(results[0][0].item(), rel=1e-5)
        with pytest.raises(TypeError):
            outer()


def _tiny(make, kind, **inner):
    """Return a composer that compiles as fast as any: two layers of four."""
    layers = {"ipc": (0,), "functa": "hidden"}.get(kind, "all")
    return make(
        kind, {"num_layers": 2, "hidden_dim": 4, "encoding": IdentityEncoding(), "modulated_layers": layers}, **inner
    )


@pytest.mark.parametrize("kind", ["ipc", "learned_init"])
def test_compiled_training_equals_eager(make, batch, kind, monkeypatch):
    monkeypatch.setattr("composers.meta_learned.check_finite", lambda losses: None)  # the one break of the graph
    _compare_compiled(_tiny(make, kind, steps=1).train(), batch, monkeypatch, backend="aot_eager", fullgraph=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler are its own affair
@pytest.mark.parametrize("kind", ["ipc", "learned_init", "siren", "functa"])
@pytest.mark.parametrize(
    "inner",
    [
        {"samples_per_step": 20, "learned_lr": ("step", "parameter")},
        {"samples_per_step": 20, "choose": "error", "recompute": True},
        {"first_order": True},
    ],
    ids=str,
)
def test_compiled_options_equal_eager(make, batch, kind, inner, monkeypatch):
    _compare_compiled(_tiny(make, kind, **inner).train(), batch, monkeypatch, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler are its own affair
@pytest.mark.parametrize("kind", ["ipc"])
def test_compiled_by_the_default_backend_training_equals_eager(make, batch, kind, monkeypatch):
    _compare_compiled(_tiny(make, kind, steps=1).train(), batch, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler are its own affair
@pytest.mark.parametrize("kind", ["ipc", "learned_init"])
@pytest.mark.parametrize("options", [{"backend": "aot_eager"}, {}], ids=str)
def test_compiled_evaluation_equals_eager(make, batch, kind, options):
    composer = _tiny(make, kind).eval()
    with torch.no_grad():
        wanted = composer(batch.observation, batch.query.coords)
        found = torch.compile(composer.forward, **options)(batch.observation, batch.query.coords)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
