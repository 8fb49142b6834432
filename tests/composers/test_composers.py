"""Composers against loops over the paper's formulas, their sizes against the published ones, and what training reaches."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio

from composers import Refinement, TransformerIPC, TransINR
from composers.encoders import Patches, Transformer
from composers.metrics import PSNR, SSIM, Gain
from composers.networks import CoordinateMLP, FourierFeatures
from datamodules import SamplePhotos
from datamodules.batch import CoordinateBatch, Observation, Samples

IPC_SWITCHES = [
    {},
    {"rank": 3},
    {"rank": 12},
    {"factorized": False},
    {"num_weight_tokens": 2},
    {"num_weight_tokens": 1, "rank": 6},
    {"base_weight": True},
    {"base_weight": True, "rank": 4},
    {"base_weight": True, "factorized": False},
    {"factorized": False, "num_weight_tokens": 4},
]
NETWORKS = [
    {},
    {"modulated_layers": (0,)},
    {"modulated_layers": (3,)},
    {"modulated_layers": (1, 2)},
    {"modulated_layers": "all"},
    {"hidden_dim": [8, 4, 12], "modulated_layers": (1, 2)},
    {"normalize_weights": False},
]


@pytest.fixture
def logged(monkeypatch):
    """Return what composers log, by name, without a trainer."""
    found = {}
    for kind in (TransformerIPC, TransINR):
        monkeypatch.setattr(kind, "log", lambda self, name, value, **options: found.update({name: value}))
    return found


@pytest.fixture
def composers(make_ipc, make_transinr):
    """Return one of each kind, in evaluation mode."""
    return [make_ipc().eval(), make_transinr().eval()]


def _random_latents(composer, num_instances=2):
    """Return random latents of the shapes that the composer predicts."""
    channels, height, width = composer.hypernet.tokenizer.signal_shape
    predicted = composer.encode(Observation(torch.rand(num_instances, channels, height, width)))
    return {name: torch.randn_like(latent) for name, latent in predicted.items()}


def _assert_weights(modulations, layer, wanted):
    weight, bias = modulations[layer]
    assert bias is None
    torch.testing.assert_close(weight.detach(), torch.tensor(wanted), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("switches", [{}, {"rank": 3}, {"rank": 3, "base_weight": True}], ids=str)
def test_ipc_composes_patterns_times_basis(make_ipc, make_network, network, switches):
    composer = make_ipc(inr=make_network(**network), **switches)
    latents = _random_latents(composer)
    modulations = composer.compose(latents)
    assert list(modulations) == list(composer.network.modulated_layers)
    for layer in composer.network.modulated_layers:
        fan_in, fan_out = composer.network.layer_sizes[layer]
        patterns, basis = latents[f"patterns.{layer}"].tolist(), composer.bases[str(layer)].tolist()
        rank = switches.get("rank", fan_out)
        base = composer.base_weights[str(layer)].tolist() if "base_weight" in switches else None
        wanted = [
            [
                [
                    sum(patterns[b][i][r] * basis[r][o] for r in range(rank)) + (base[i][o] if base else 0)
                    for o in range(fan_out)
                ]
                for i in range(fan_in)
            ]
            for b in range(2)
        ]
        _assert_weights(modulations, layer, wanted)


@pytest.mark.parametrize("base_weight", [False, True])
def test_ipc_without_factors_predicts_the_weight_itself(make_ipc, base_weight):
    composer = make_ipc(factorized=False, base_weight=base_weight)
    assert not composer.bases
    latents = _random_latents(composer)
    base = composer.base_weights["1"].detach() if base_weight else torch.zeros(8, 8)
    _assert_weights(composer.compose(latents), 1, (latents["patterns.1"] + base).tolist())


@torch.no_grad()
@pytest.mark.parametrize(
    ("num_groups", "network"),
    [
        *((num_groups, network) for num_groups in (1, 64) for network in NETWORKS),
        (4, {"modulated_layers": "all"}),
        (2, {"modulated_layers": (0, 1)}),
        (4, {"hidden_dim": [8, 4, 12], "modulated_layers": (0, 1, 2)}),
        (3, {"hidden_dim": [6, 3, 12], "modulated_layers": "all"}),
    ],
    ids=str,
)
def test_transinr_scales_columns_in_turn(make_transinr, make_network, num_groups, network):
    composer = make_transinr(inr=make_network(**network), num_groups=num_groups)
    latents = _random_latents(composer)
    modulations = composer.compose(latents)
    assert list(modulations) == list(composer.network.modulated_layers)
    for layer in composer.network.modulated_layers:
        fan_in, fan_out = composer.network.layer_sizes[layer]
        groups = min(num_groups, fan_out)
        scales, base = latents[f"scales.{layer}"].tolist(), composer.base_weights[str(layer)].tolist()
        wanted = [
            [[base[i][j] * scales[b][i][j % groups] for j in range(fan_out)] for i in range(fan_in)] for b in range(2)
        ]
        _assert_weights(modulations, layer, wanted)


def test_latents_have_the_shapes_of_the_contract(make_ipc, make_transinr, make_network, tiny_batch):
    def shapes(composer):
        return {name: tuple(latent.shape) for name, latent in composer.encode(tiny_batch.observation).items()}

    assert shapes(make_ipc()) == {"patterns.1": (3, 8, 8)}
    assert shapes(make_ipc(rank=5)) == {"patterns.1": (3, 8, 5)}
    assert shapes(make_ipc(inr=make_network(modulated_layers=(0, 3)))) == {
        "patterns.0": (3, 8, 8),
        "patterns.3": (3, 8, 3),
    }
    assert shapes(make_transinr(num_groups=8)) == {
        "scales.0": (3, 8, 8),
        "scales.1": (3, 8, 8),
        "scales.2": (3, 8, 8),
        "scales.3": (3, 8, 3),
    }


def test_weight_tokens_give_the_columns_of_the_patterns(make_ipc, tiny_batch):
    """Disturb the last weight token: only what attends to it may change, and its own columns change most."""
    composer = make_ipc(rank=6, num_weight_tokens=3, transformer=_deaf_transformer()).eval()
    before = composer.encode(tiny_batch.observation)["patterns.1"]
    with torch.no_grad():
        composer.hypernet.weight_tokens[1] += 1 + torch.rand(12)
    changed = (composer.encode(tiny_batch.observation)["patterns.1"] != before).all(dim=(0, 1))
    assert changed.tolist() == [False, False, True, True, False, False]


def _deaf_transformer():
    """Return a transformer in which no token hears of another."""
    transformer = Transformer(embed_dim=12, num_blocks=1, num_heads=3, mlp_ratio=2)
    torch.nn.init.zeros_(transformer.blocks[0].attention.projection.weight)
    return transformer


def test_values_equal_a_loop_over_instances(composers, naive_network, tiny_batch):
    for composer in composers:
        modulations = composer.modulate(tiny_batch.observation)
        values = composer(tiny_batch.observation, tiny_batch.query.coords)
        wanted = naive_network(composer.network, tiny_batch.query.coords, modulations, 3)
        torch.testing.assert_close(values.double(), wanted, atol=2e-5, rtol=0)


def test_permuting_instances_permutes_values(composers, tiny_batch):
    order = [2, 0, 1]
    moved = tiny_batch.observation._replace(signal=tiny_batch.observation.signal[order])
    for composer in composers:
        values = composer(tiny_batch.observation, tiny_batch.query.coords)
        torch.testing.assert_close(composer(moved, tiny_batch.query.coords), values[order], atol=1e-5, rtol=0)


def test_no_instance_sees_another(composers, tiny_batch):
    signal = tiny_batch.observation.signal.requires_grad_()
    for composer in composers:
        values = composer(Observation(signal), tiny_batch.query.coords)
        (gradient,) = torch.autograd.grad(values[1].square().sum(), signal)
        assert gradient[1].any()
        assert not gradient[[0, 2]].any()


def test_base_weight_starts_as_one_network_for_all(make_ipc, tiny_batch):
    composer = make_ipc(base_weight=True).eval()
    values = composer(tiny_batch.observation, tiny_batch.query.coords)
    assert torch.equal(values[0], values[1])
    shared = {1: (composer.base_weights["1"].unsqueeze(0), None)}
    torch.testing.assert_close(values[:1], composer.network(tiny_batch.query.coords, shared))


def test_basis_starts_with_its_published_spread():
    composer = TransformerIPC(CoordinateMLP(2, 3), Patches((3, 8, 12), 4), Transformer(12, 1, 3), rank=64)
    assert composer.bases["1"].shape == (64, 256)
    assert composer.bases["1"].std().item() == pytest.approx(1 / math.sqrt(64 * 256), rel=0.05)


def _train(composer, batch, steps):
    """Return the losses of some training steps; the gradients of the last are left in place."""
    optimizer = torch.optim.Adam(composer.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = composer.training_step(batch, step)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            assert all(parameter.grad is not None for parameter in composer.parameters())
        if step < steps - 1:
            optimizer.step()
    return losses


def _assert_all_reached(composer):
    """Check that every parameter has a gradient that is not zero all over."""
    unread = [name for name, parameter in composer.named_parameters() if not parameter.grad.any()]
    assert not unread


@pytest.mark.parametrize("switches", IPC_SWITCHES, ids=str)
def test_training_ipc_reaches_every_parameter(make_ipc, tiny_batch, logged, switches):
    composer = make_ipc(**switches).train()
    _train(composer, tiny_batch, 3)  # what starts at zero hides the gradient of its factor for a step
    _assert_all_reached(composer)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_training_reaches_every_parameter_of_every_network(
    make_ipc, make_transinr, make_network, tiny_batch, logged, network
):
    for make in (make_ipc, lambda **parts: make_transinr(num_groups=1, **parts)):
        composer = make(inr=make_network(**network)).train()
        _train(composer, tiny_batch, 2)
        _assert_all_reached(composer)


def test_training_lowers_the_loss(make_ipc, make_transinr, tiny_batch, logged):
    for composer in (make_ipc(), make_ipc(base_weight=True), make_transinr()):
        losses = _train(composer.train(), tiny_batch, 60)
        assert losses[-1] < 0.6 * losses[0]


def test_the_training_loss_is_the_mean_over_instances(make_ipc, tiny_batch, logged):
    composer = make_ipc().eval()
    loss = composer.training_step(tiny_batch, 0)
    values = composer(tiny_batch.observation, tiny_batch.query.coords)
    errors = [
        sum((a - b) ** 2 for a, b in zip(seen.flatten().tolist(), true.flatten().tolist(), strict=True)) / true.numel()
        for seen, true in zip(values, tiny_batch.query.values, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(errors) / 3, rel=1e-5)
    assert logged["train/loss"].item() == pytest.approx(loss.item())
    decibels = [-10 * math.log10(error) for error in errors]
    assert logged["train/psnr"].item() == pytest.approx(sum(decibels) / 3, rel=1e-5)


def _part(batch, instances):
    """Return some instances of a batch."""
    samples = Samples(batch.query.coords, batch.query.values[instances])
    return CoordinateBatch(
        Observation(batch.observation.signal[instances], samples), samples, batch.shape, ["x"] * len(instances)
    )


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_reported_metrics_are_means_over_instances(make_ipc, tiny_batch, logged, stage):
    composer = make_ipc(metrics={"psnr": PSNR(), "gain": Gain()}).eval()
    tiny_batch.query.values[0] *= 3  # far off, so that a pooled error would be its error
    reference = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2))
    gains = []
    with torch.no_grad():
        for instances in ([0, 1], [2]):
            batch = _part(tiny_batch, instances)
            getattr(composer, f"{stage}_step")(batch, 0)
            values = composer(batch.observation, batch.query.coords)
            reference.update(values, batch.query.values)
            gains.append(Gain().measure(values, batch.query, None))
    prefix = "val" if stage == "validation" else "test"
    assert set(logged) == {f"{prefix}/{name}" for name in ("loss", "psnr", "gain")}
    assert logged[f"{prefix}/psnr"].compute().item() == pytest.approx(reference.compute().item(), abs=1e-4)
    assert logged[f"{prefix}/gain"].compute().item() == pytest.approx(torch.cat(gains).mean().item(), abs=1e-4)


def test_metrics_of_two_processes_are_those_of_one(make_ipc, tiny_batch, logged):
    composer = make_ipc().eval()
    processes = [copy.deepcopy(composer) for _ in range(2)]
    with torch.no_grad():
        means = []
        for process, instances in zip(processes, ([0, 1], [2]), strict=True):
            process.test_step(_part(tiny_batch, instances), 0)
            means.append(logged["test/psnr"])
        composer.test_step(tiny_batch, 0)
    means[0].merge_state(means[1])
    assert means[0].compute().item() == pytest.approx(logged["test/psnr"].compute().item(), abs=1e-4)


def test_steps_refine_in_the_stages_named(make_ipc, tiny_batch, logged):
    composer = make_ipc(refinement=Refinement(4, report=(1,), stages=("test",))).eval()
    with torch.no_grad():
        refined, plain = composer.test_step(tiny_batch, 0), composer.validation_step(tiny_batch, 0)
    assert list(refined["latents"]) == list(refined["values"]) == list(refined["metrics"]) == [0, 1, 4]
    assert list(plain["latents"]) == list(composer.predict_step(tiny_batch, 0)["latents"]) == [0]
    torch.testing.assert_close(refined["values"][0], plain["values"][0])
    assert (refined["metrics"][4]["psnr"] > refined["metrics"][0]["psnr"]).all()
    last = refined["metrics"][4]["psnr"].mean().item()
    assert logged["test/refined_psnr"].compute().item() == pytest.approx(last, abs=1e-4)
    assert not any(name.startswith("val/refined") for name in logged)


def test_metrics_are_measured_in_float32_in_every_precision(make_ipc):
    """Filters of bfloat16 subtract rounded squares, and make an SSIM of 0.9999 one of 0.3."""
    composer = make_ipc(metrics={"ssim": SSIM()})
    values = 0.5 + 0.02 * torch.rand(2, 256, 3)
    batch = CoordinateBatch(Observation(), Samples(torch.zeros(256, 2), values), (16, 16), ["a", "b"])
    seen = values + 0.001 * torch.rand(2, 256, 3)
    wanted = composer._measure(batch, seen)["ssim"]
    with torch.autocast("cpu", torch.bfloat16):
        found = composer._measure(batch, seen)["ssim"]
    assert torch.equal(found, wanted)


def test_prediction_needs_no_values(tiny_ipc, tiny_batch):
    query = Samples(torch.rand(7, 2))
    batch = tiny_batch._replace(observation=Observation(tiny_batch.observation.signal), query=query, shape=None)
    evaluation = tiny_ipc.predict_step(batch, 0)
    assert evaluation["losses"] is None
    assert evaluation["values"][0].shape == (3, 7, 3)


def test_the_optimizer_is_the_published_one_unless_given(make_ipc):
    optimizer = make_ipc().configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    wanted = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0}
    assert {name: optimizer.defaults[name] for name in wanted} == wanted
    given = make_ipc(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
    ).configure_optimizers()
    assert type(given["optimizer"]) is torch.optim.SGD
    assert given["lr_scheduler"]["interval"] == "step"
    assert given["lr_scheduler"]["scheduler"].optimizer is given["optimizer"]


IMAGE = {"signal": (3, 178, 178), "patch": 9, "padding": 1, "dims": (2, 3), "frequencies": 64}
AUDIO = {"signal": (1, 16000), "patch": 200, "dims": (1, 1), "frequencies": 2048}
VIEWS = {"signal": (9, 128, 128), "patch": 8, "dims": (3, 4), "frequencies": 20, "layers": 6}
FIVE_VIEWS = VIEWS | {"signal": (9, -1, -1), "tokens": 5 * 256}
FFHQ = {"signal": (3, 1024, 1024), "patch": 32, "dims": (2, 3), "frequencies": 64}
AUDIO_3S = AUDIO | {"signal": (1, 48000)}
# Released totals (their `ff_linear`, our buffers, counted), to the number or in millions; data and weight tokens; code.
PUBLISHED = [
    (TransformerIPC, IMAGE, 43_746_371, (400, 256), 65_536),
    (TransINR, IMAGE, 44_476_739, (400, 259), 66_304),
    (TransformerIPC, AUDIO, 44_452_097, (80, 256), 65_536),
    (TransINR, AUDIO, 48_133_889, (80, 257), 311_552),
    (TransformerIPC, AUDIO_3S, 44_574_977, (240, 256), 65_536),
    (TransINR, AUDIO_3S, 48_133_889 + 160 * 768, (240, 257), 311_552),  # 160 more positions than one second
    (TransformerIPC, VIEWS, 43_922_712, (256, 256), 65_536),
    (TransINR, VIEWS, 44_673_936, (256, 164), 37_632),
    (TransformerIPC, FIVE_VIEWS, "44.71 M", (1280, 256), 65_536),
    (TransINR, FIVE_VIEWS, "45.46 M", (1280, 164), 37_632),
    (TransformerIPC, FFHQ, "46.40 M", (1024, 256), 65_536),
    (TransINR, FFHQ, "47.13 M", (1024, 259), 66_304),
]


def _full_size(kind, sizes):
    """Return a composer of the published sizes without memory for its weights."""
    coord_dim, value_dim = sizes["dims"]
    with torch.device("meta"):
        inr = CoordinateMLP(
            coord_dim,
            value_dim,
            hidden_dim=256,
            num_layers=sizes.get("layers", 5),
            modulated_layers=(1,) if kind is TransformerIPC else "all",
            encoding=FourierFeatures(sizes["frequencies"], 256),
        )
        tokenizer = Patches(sizes["signal"], sizes["patch"], sizes.get("padding", 0), num_tokens=sizes.get("tokens"))
        if kind is TransformerIPC:
            return TransformerIPC(inr, tokenizer)
        return TransINR(inr, tokenizer, num_groups=32 if sizes.get("layers") == 6 else 64)


def _paper_count(composer):
    """Return the parameters that sections 1.2 to 1.5 of the facts figure add up to, written out."""
    width, (data_tokens, weight_tokens) = 768, composer.hypernet.num_tokens
    embedding = composer.hypernet.tokenizer.token_dim * width + width + data_tokens * width
    attention, mlp, norms = 4 * (width * width + width), 2 * 4 * width * width + 5 * width, 4 * width
    layers = list(enumerate(composer.network.layer_sizes))
    heads = sum(2 * width + width * i + i for layer, (i, _) in layers if layer in composer.network.modulated_layers)
    biases = sum(o for _, (_, o) in layers)
    if isinstance(composer, TransformerIPC):
        weights = sum(i * o for layer, (i, o) in layers if layer != 1) + 256 * 256  # with the basis of layer 1
    else:
        weights = sum(i * o for _, (i, o) in layers)
    return embedding + weight_tokens * width + 6 * (attention + mlp + norms) + heads + weights + biases


@pytest.mark.parametrize(("kind", "sizes", "released", "tokens", "code"), PUBLISHED)
def test_published_sizes(kind, sizes, released, tokens, code):
    composer = _full_size(kind, sizes)
    found = sum(parameter.numel() for parameter in composer.parameters())
    unread = 256 * 256 if kind is TransformerIPC else 0  # a base weight that the released IPC stores and never reads
    total = found + sizes["frequencies"] + unread  # the released code counts its constant frequencies too
    assert (f"{total / 1e6:.2f} M" if isinstance(released, str) else total) == released
    assert found == _paper_count(composer)
    assert composer.hypernet.num_tokens == tokens
    if sizes["signal"][-1] > 0:
        latents = composer.encode(Observation(torch.empty(1, *sizes["signal"], device="meta")))
        assert sum(latent.numel() for latent in latents.values()) == code


def test_nothing_but_frequencies_is_stored_beside_parameters(composers):
    for composer in composers:
        assert set(composer.state_dict()) == {
            "inr.encoding.frequencies",
            *(name for name, _ in composer.named_parameters()),
        }


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": -2}, "rank is -2"),
        ({"rank": 4, "factorized": False}, "rank is 4 with factorized False"),
        ({"num_weight_tokens": 3}, "3 weight tokens do not divide the 8 columns of layer 1"),
        ({"num_weight_tokens": 4, "rank": 6}, "4 weight tokens do not divide the 6 columns of layer 1"),
        ({"num_weight_tokens": -1}, "-1 weight tokens"),
    ],
    ids=str,
)
def test_switches_that_do_not_fit_ipc_are_refused(make_ipc, switches, message):
    with pytest.raises(ValueError, match=message):
        make_ipc(**switches)


@pytest.mark.parametrize(
    ("num_groups", "message"),
    [(0, "num_groups 0"), (-3, "num_groups -3"), (5, "num_groups 5 does not divide the 8 outputs of layer 0")],
)
def test_groups_that_do_not_fit_transinr_are_refused(make_transinr, num_groups, message):
    with pytest.raises(ValueError, match=message):
        make_transinr(num_groups=num_groups)


def test_groups_must_divide_the_last_layer_too(make_transinr):
    with pytest.raises(ValueError, match="num_groups 2 does not divide the 3 outputs of layer 3"):
        make_transinr(num_groups=2)


def _set_up(composer, data):
    composer.trainer = SimpleNamespace(datamodule=data)
    composer.setup("fit")


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (16, {}, r"Patches was built for signal_shape \(3, 8, 12\); the data has \(3, 16, 16\)"),
        (8, {"tokenizer": Patches((1, 8, 8), 4)}, r"signal_shape \(1, 8, 8\); the data has \(3, 8, 8\)"),
        (8, {"tokenizer": Patches((1, -1, -1), 4, num_tokens=4)}, r"\(1, -1, -1\); the data has \(3, 8, 8\)"),
    ],
)
def test_signals_of_another_size_are_refused_at_set_up(make_ipc, size, changes, message):
    with pytest.raises(ValueError, match=message):
        _set_up(make_ipc(**changes), SamplePhotos(size=size))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"coord_dim": 3}, "CoordinateMLP was built for coord_dim 3; PointRenderer asks for 2: leave coord_dim out"),
        ({"value_dim": 1}, "CoordinateMLP was built for value_dim 1; PointRenderer asks for 3: leave value_dim out"),
    ],
    ids=str,
)
def test_networks_of_other_dimensions_are_refused_at_set_up(make_ipc, make_network, network, message):
    composer = make_ipc(inr=make_network(**network), tokenizer=Patches((3, 8, 8), 4))
    with pytest.raises(ValueError, match=message):
        _set_up(composer, SamplePhotos(size=8))


def test_what_fits_is_set_up(make_ipc):
    for shape, tokens in (((3, 8, 8), None), ((3, -1, -1), 4)):
        _set_up(make_ipc(tokenizer=Patches(shape, 4, num_tokens=tokens)), SamplePhotos(size=8))


def test_a_network_without_modulated_layers_is_refused(make_ipc, make_transinr, make_network):
    for make in (make_ipc, make_transinr):
        with pytest.raises(ValueError, match="modulated_layers"):
            make(inr=make_network(modulated_layers=()))


def test_no_weight_tokens_at_all_are_refused(make_ipc):
    with pytest.raises(ValueError, match="0 weight tokens"):
        make_ipc(num_weight_tokens=0)
