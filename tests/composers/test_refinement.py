"""Refinement against the formula of its steps, and what it leaves alone."""

from functools import partial

import pytest
import torch

from composers import Refinement
from composers.metrics import PSNR
from composers.networks import CoordinateMLP, IdentityEncoding, UnfoldedMLP
from datamodules.batch import Observation, Samples

SGD = partial(torch.optim.SGD, lr=0.5)


@pytest.fixture
def latents(tiny_ipc, tiny_batch):
    """Return what the tiny composer predicts."""
    with torch.no_grad():
        return tiny_ipc.encode(tiny_batch.observation)


def _loss(composer, latents, samples):
    return composer.loss(composer.render(composer.compose(latents), samples.coords), samples)


def _largest_difference(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_steps_equal_those_of_a_quadratic():
    curvature, bottom = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0, -1.0], [0.5, 4.0]])
    start = {"code": torch.zeros(2, 2)}
    found = Refinement(4, partial(torch.optim.SGD, lr=0.1), report=(1, 2, 3))(
        lambda moved, step: (curvature * (moved["code"] - bottom).square()).sum(1), start
    )
    for step, latents in found.items():  # x - a is multiplied by 1 - 2 lr c in every step
        torch.testing.assert_close(latents["code"], bottom - (1 - 0.2 * curvature) ** step * bottom)


@pytest.mark.parametrize("make", ["make_ipc", "make_transinr"])
def test_a_step_of_sgd_follows_the_gradient_of_each_instance(make, request, tiny_batch):
    composer = request.getfixturevalue(make)().eval()
    latents = composer.encode(tiny_batch.observation)
    samples = tiny_batch.query
    found = composer.refine(latents, samples, Refinement(1, SGD))[1]
    for instance in range(3):

        def loss(own, instance=instance):
            mine = Samples(samples.coords, samples.values[instance : instance + 1])
            return _loss(composer, {name: latent.unsqueeze(0) for name, latent in own.items()}, mine).sum()

        own = {name: latent[instance].detach() for name, latent in latents.items()}
        for name, gradient in torch.func.grad(loss)(own).items():
            assert gradient.any()
            torch.testing.assert_close(found[name][instance], own[name] - 0.5 * gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_step_size_of_zero_changes_nothing(tiny_ipc, tiny_batch, latents, make):
    found = tiny_ipc.refine(latents, tiny_batch.query, Refinement(3, partial(make, lr=0.0)))
    assert all(_largest_difference(kept, latents) == 0 for kept in found.values())


@pytest.mark.parametrize("optimizer", [None, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("make", ["make_ipc", "make_transinr"])
def test_the_loss_of_every_instance_falls(make, request, tiny_batch, optimizer):
    composer = request.getfixturevalue(make)().eval()
    latents = composer.encode(tiny_batch.observation)
    found = composer.refine(latents, tiny_batch.query, Refinement(20, optimizer, report=(5,)))
    losses = torch.stack([_loss(composer, kept, tiny_batch.query) for kept in found.values()])
    assert (losses[1:] < losses[:-1]).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_works_where_nothing_is_differentiated(tiny_ipc, tiny_batch, mode, autocast):
    results = []
    for context in (torch.enable_grad, mode):
        with context(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            observation = tiny_batch.observation._replace(signal=tiny_batch.observation.signal.clone())
            samples = Samples(tiny_batch.query.coords.clone(), tiny_batch.query.values.clone())
            latents = tiny_ipc.encode(observation)
            tiny_ipc.render(tiny_ipc.compose(latents), samples.coords)  # which fills the cache of autocast
            results.append(tiny_ipc.refine(latents, samples, Refinement(3, SGD))[3])
    assert _largest_difference(*results) < (1e-2 if autocast else 1e-6)
    assert _largest_difference(results[1], latents) > 1e-3


def test_samples_made_in_inference_mode_may_be_needed_for_gradients(make_ipc, make_network):
    composer = make_ipc(inr=make_network(encoding=IdentityEncoding())).eval()
    with torch.inference_mode():
        latents = composer.encode(Observation(torch.rand(2, 3, 8, 12)))
        samples = Samples(torch.rand(5, 2), torch.rand(2, 5, 3), torch.rand(2, 5) < 0.5)
        found = composer.refine(latents, samples, Refinement(2, SGD))
    assert _largest_difference(found[2], latents) > 0


def test_refining_a_batch_equals_refining_each_alone(tiny_ipc, tiny_batch, latents):
    refinement = Refinement(5)
    together = tiny_ipc.refine(latents, tiny_batch.query, refinement)
    for instance in range(3):
        own = {name: latent[instance : instance + 1] for name, latent in latents.items()}
        samples = Samples(tiny_batch.query.coords, tiny_batch.query.values[instance : instance + 1])
        alone = tiny_ipc.refine(own, samples, refinement)
        for step, kept in together.items():
            mine = {name: latent[instance : instance + 1] for name, latent in kept.items()}
            assert _largest_difference(mine, alone[step]) < 1e-4


def test_masked_samples_have_no_say(tiny_ipc, tiny_batch, latents):
    mask = torch.rand(tiny_batch.query.values.shape[:2]) < 0.5
    disturbed = torch.where(mask.unsqueeze(-1), tiny_batch.query.values, 50.0)
    refinement = Refinement(3)
    found, wanted = (
        tiny_ipc.refine(latents, Samples(tiny_batch.query.coords, values, mask), refinement)[3]
        for values in (disturbed, tiny_batch.query.values)
    )
    assert _largest_difference(found, wanted) == 0
    assert _largest_difference(found, tiny_ipc.refine(latents, tiny_batch.query, refinement)[3]) > 0


def test_per_instance_coordinates_equal_shared_ones(tiny_ipc, tiny_batch, latents):
    repeated = tiny_batch.query._replace(coords=tiny_batch.query.coords.expand(3, -1, -1))
    shared, own = (tiny_ipc.refine(latents, samples, Refinement(3, SGD))[3] for samples in (tiny_batch.query, repeated))
    assert _largest_difference(shared, own) < 1e-5


def test_only_the_returned_latents_have_moved(tiny_ipc, tiny_batch):
    latents = tiny_ipc.encode(tiny_batch.observation)
    before = {name: latent.detach().clone() for name, latent in latents.items()}
    weights = {name: weight.clone() for name, weight in tiny_ipc.state_dict().items()}
    values = tiny_batch.query.values.clone()
    found = tiny_ipc.refine(latents, tiny_batch.query, Refinement(3))
    assert all(parameter.grad is None for parameter in tiny_ipc.parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in tiny_ipc.state_dict().items())
    assert _largest_difference(latents, before) == 0
    assert _largest_difference(found[0], before) == 0
    assert torch.equal(tiny_batch.query.values, values)
    assert not any(latent.requires_grad for kept in found.values() for latent in kept.values())
    assert all(parameter.requires_grad for parameter in tiny_ipc.parameters())


@pytest.mark.parametrize(
    ("steps", "report", "wanted"),
    [
        (0, (1, 3), [0]),
        (5, (), [0, 5]),
        (5, (3, 1, 10), [0, 1, 3, 5]),
        (3, (3, 0), [0, 3]),
        (1, (1, 3, 10, 30), [0, 1]),
    ],
)
def test_reported_steps(steps, report, wanted):
    found = Refinement(steps, SGD, report)(
        lambda moved, step: moved["code"].square().sum(1), {"code": torch.ones(2, 3)}
    )
    assert list(found) == wanted


def test_reported_steps_are_what_fewer_steps_reach(tiny_ipc, tiny_batch, latents):
    whole = tiny_ipc.refine(latents, tiny_batch.query, Refinement(4, report=(2,)))
    half = tiny_ipc.refine(latents, tiny_batch.query, Refinement(2))
    assert _largest_difference(whole[2], half[2]) == 0
    assert _largest_difference(whole[2], whole[4]) > 0


def test_the_composers_own_refinement_is_the_default(make_ipc, tiny_batch):
    composer = make_ipc(refinement=Refinement(2, report=(1,))).eval()
    latents = composer.encode(tiny_batch.observation)
    assert list(composer.refine(latents, tiny_batch.query)) == [0, 1, 2]
    assert list(make_ipc().refine(latents, tiny_batch.query)) == [0]


def test_latents_of_low_precision_are_refined_in_float32():
    start = {"code": torch.ones(1, 4, dtype=torch.bfloat16)}
    slow = Refinement(20, partial(torch.optim.SGD, lr=1e-3))
    found = slow(lambda moved, step: moved["code"].float().square().sum(1), start)[20]["code"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.full((1, 4), (1 - 2e-3) ** 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"report": (1, -3)}, r"report \[1, -3\]"),
        ({"stages": ("test", "train")}, r"stages names \['train'\]"),
        ({"starts": ("prediction", "zero")}, r"starts names \['zero'\]; allowed are prediction, mean and random"),
        ({"starts": ("mean",)}, r"starts is \['mean'\]; prediction must be among them"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Refinement(**arguments)


def test_the_rate_warms_up():
    latents = {"code": torch.zeros(1, 1)}
    refinement = Refinement(4, partial(torch.optim.SGD, lr=0.5), report=(1, 2, 3), warmup_steps=2)
    found = refinement(lambda moved, step: moved["code"].sum(1), latents)  # a gradient of one everywhere
    assert [kept["code"].item() for kept in found.values()] == pytest.approx([0, -0.25, -0.75, -1.25, -1.75])
    longer = refinement.with_steps(5)
    assert list(longer(lambda moved, step: moved["code"].sum(1), latents)) == [0, 5]
    assert (longer.warmup_steps, longer.starts, longer.stages) == (2, refinement.starts, refinement.stages)
    with pytest.raises(ValueError, match="warmup_steps -1"):
        Refinement(warmup_steps=-1)


# Random samples of every step, and all weights and biases instead of the latents


def test_every_step_looks_at_its_own_samples_whatever_the_batch(tiny_ipc, tiny_batch, latents):
    refinement = Refinement(3, SGD, samples_per_step=5)
    seen = [refinement.seen(tiny_batch.query, step) for step in (0, 0, 1)]
    assert seen[0].coords.shape == (5, 2)
    assert seen[0].values.shape == (3, 5, 3)
    assert torch.equal(seen[0].coords, seen[1].coords)
    assert not torch.equal(seen[0].coords, seen[2].coords)
    places = {tuple(place): index for index, place in enumerate(tiny_batch.query.coords.tolist())}
    chosen = [places[tuple(place)] for place in seen[0].coords.tolist()]
    assert torch.equal(seen[0].values, tiny_batch.query.values[:, chosen])
    together = tiny_ipc.refine(latents, tiny_batch.query, refinement)[3]
    alone = Samples(tiny_batch.query.coords, tiny_batch.query.values[1:2])
    single = tiny_ipc.refine({name: latent[1:2] for name, latent in latents.items()}, alone, refinement)[3]
    for name, latent in single.items():
        torch.testing.assert_close(latent[0], together[name][1], atol=1e-5, rtol=1e-4)


def test_of_masked_samples_the_mask_is_chosen_too():
    values = torch.arange(4.0).view(1, 4, 1)
    samples = Samples(torch.arange(4.0).view(4, 1), values, torch.tensor([[True, True, False, False]]))
    seen = Refinement(1, samples_per_step=50).seen(samples, 0)
    assert torch.equal(seen.mask, seen.values[..., 0] < 2)
    assert set(seen.values.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize("make", ["make_ipc", "make_transinr"])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_unfolded_network_is_the_same_field(make, normalize, request, tiny_batch):
    composer = request.getfixturevalue(make)().eval()
    composer.network.normalize_weights = normalize
    modulations = composer.modulate(tiny_batch.observation)
    network = UnfoldedMLP(composer.network, modulations)
    assert len(network.latents) == 2 * composer.network.num_layers
    found = composer.renderer(network.field(network.latents), tiny_batch.query.coords)
    torch.testing.assert_close(found, composer.render(modulations, tiny_batch.query.coords), atol=1e-5, rtol=0)


def test_a_network_without_modulated_layers_cannot_be_unfolded():
    with pytest.raises(ValueError, match="no modulated_layers"):
        UnfoldedMLP(CoordinateMLP(2, 3, 8, 3, ()), {})


def test_all_weights_and_biases_are_moved_from_where_the_prediction_put_them(make_ipc, tiny_batch):
    network = Refinement(6, partial(torch.optim.Adam, lr=1e-3), report=(2,), samples_per_step=30)
    composer = make_ipc(refinement=Refinement(4, report=(), starts=("prediction",), network=network)).eval()
    composer.on_test_start()
    evaluation = composer._evaluate(tiny_batch, "test")
    curve = evaluation["starts"]["network"]
    assert list(curve) == [0, 2, 6]
    torch.testing.assert_close(curve[0]["psnr"], evaluation["metrics"][0]["psnr"], atol=1e-4, rtol=0)
    assert (curve[6]["psnr"] > curve[0]["psnr"]).all()
    assert not composer._evaluate(tiny_batch, "val")["starts"]
    free = UnfoldedMLP(composer.network, composer.modulate(tiny_batch.observation))
    weights = {name: latent.detach().clone().requires_grad_() for name, latent in free.latents.items()}
    optimizer = torch.optim.Adam(list(weights.values()), lr=1e-3)
    for step in range(6):
        seen = network.seen(tiny_batch.query, step)
        optimizer.zero_grad()
        (free.field(weights)(seen.coords) - seen.values).square().mean((1, 2)).sum().backward()
        optimizer.step()
    wanted = PSNR().measure(free.field(weights)(tiny_batch.query.coords), tiny_batch.query, None)
    torch.testing.assert_close(curve[6]["psnr"], wanted.detach(), atol=1e-3, rtol=0)


def test_no_samples_per_step_are_refused():
    with pytest.raises(ValueError, match="samples_per_step is 0"):
        Refinement(samples_per_step=0)
