"""Presets with a hypernetwork: against loops over instances, published sizes, training steps, metrics, rejected arguments."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio

from composers import Composer, Refinement, TransformerIPC, TransINR
from composers.encoders import Patches, Transformer
from composers.metrics import PSNR, SSIM, Gain
from composers.networks import CoordinateMLP, FourierFeatures
from composers.rendering import Reconstruction
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
    """Return the values that composers log, by name, without a trainer."""
    values = {}
    monkeypatch.setattr(Composer, "log", lambda self, name, value, **options: values.update({name: value}))
    return values


@pytest.fixture
def composers(make_ipc, make_transinr):
    """Return a `TransformerIPC` and a `TransINR`, in evaluation mode."""
    return [make_ipc().eval(), make_transinr().eval()]


def test_predicted_latents_have_the_documented_shapes(make_ipc, make_transinr, make_network, tiny_batch):
    def shapes(composer):
        return {name: tuple(latent.shape) for name, latent in composer.encode(tiny_batch.observation).items()}

    assert shapes(make_ipc()) == {"patterns.1": (3, 8, 8)}
    assert shapes(make_ipc(rank=5)) == {"patterns.1": (3, 8, 5)}
    assert shapes(make_ipc(network=make_network(modulated_layers=(0, 3)))) == {
        "patterns.0": (3, 8, 8),
        "patterns.3": (3, 8, 3),
    }
    assert shapes(make_transinr(num_groups=8)) == {
        "scales.0": (3, 8, 8),
        "scales.1": (3, 8, 8),
        "scales.2": (3, 8, 8),
        "scales.3": (3, 8, 3),
    }


def test_each_weight_token_predicts_its_own_columns(make_ipc, tiny_batch):
    """Without attention between tokens, a change of one weight token changes only its columns of the patterns."""
    transformer = Transformer(embed_dim=12, num_blocks=1, num_heads=3, mlp_ratio=2)
    torch.nn.init.zeros_(transformer.blocks[0].attention.projection.weight)
    composer = make_ipc(rank=6, num_weight_tokens=3, transformer=transformer).eval()
    before = composer.encode(tiny_batch.observation)["patterns.1"]
    with torch.no_grad():
        composer.start.readout.weight_tokens[1] += 1 + torch.rand(12)
    changed = (composer.encode(tiny_batch.observation)["patterns.1"] != before).all(dim=(0, 1))
    assert changed.tolist() == [False, False, True, True, False, False]


def test_values_equal_a_loop_over_instances(composers, naive_network, tiny_batch):
    for composer in composers:
        modulations = composer.modulate(tiny_batch.observation)
        values = composer(tiny_batch.observation, tiny_batch.query.coords)
        expected = naive_network(composer.network, tiny_batch.query.coords, modulations, 3)
        torch.testing.assert_close(values.double(), expected, atol=2e-5, rtol=0)


def test_permuting_instances_permutes_values(composers, tiny_batch):
    order = [2, 0, 1]
    permuted = tiny_batch.observation._replace(signal=tiny_batch.observation.signal[order])
    for composer in composers:
        values = composer(tiny_batch.observation, tiny_batch.query.coords)
        torch.testing.assert_close(composer(permuted, tiny_batch.query.coords), values[order], atol=1e-5, rtol=0)


def test_instances_do_not_depend_on_each_other(composers, tiny_batch):
    signal = tiny_batch.observation.signal.requires_grad_()
    for composer in composers:
        values = composer(Observation(signal), tiny_batch.query.coords)
        (gradient,) = torch.autograd.grad(values[1].square().sum(), signal)
        assert gradient[1].any()
        assert not gradient[[0, 2]].any()


def test_with_a_base_weight_all_instances_start_equal(make_ipc, tiny_batch):
    composer = make_ipc(base_weight=True).eval()
    values = composer(tiny_batch.observation, tiny_batch.query.coords)
    assert torch.equal(values[0], values[1])
    shared = {"weight.1": composer.parametrization.base_weights["1"].unsqueeze(0)}
    torch.testing.assert_close(values[:1], composer.network(tiny_batch.query.coords, shared))


def _train(composer, batch, steps):
    """Return the losses of some training steps; the gradients of the last step are kept."""
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


def _assert_gradients_everywhere(composer):
    """Check that every parameter has a gradient with a nonzero entry."""
    assert [name for name, parameter in composer.named_parameters() if not parameter.grad.any()] == []


@pytest.mark.parametrize("switches", IPC_SWITCHES, ids=str)
def test_every_parameter_of_ipc_gets_a_gradient(make_ipc, tiny_batch, logged, switches):
    composer = make_ipc(**switches).train()
    _train(
        composer, tiny_batch, 3
    )  # factors of a head that is initialised with zero have no gradient in the first step
    _assert_gradients_everywhere(composer)


@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_every_parameter_gets_a_gradient_with_every_network(
    make_ipc, make_transinr, make_network, tiny_batch, logged, network
):
    for make in (make_ipc, lambda **parts: make_transinr(num_groups=1, **parts)):
        composer = make(network=make_network(**network)).train()
        _train(composer, tiny_batch, 2)
        _assert_gradients_everywhere(composer)


def test_training_lowers_the_loss(make_ipc, make_transinr, tiny_batch, logged):
    for composer in (make_ipc(), make_ipc(base_weight=True), make_transinr()):
        losses = _train(composer.train(), tiny_batch, 60)
        assert losses[-1] < 0.6 * losses[0]


def test_the_training_loss_is_the_mean_over_instances(make_ipc, tiny_batch, logged):
    composer = make_ipc().eval()
    loss = composer.training_step(tiny_batch, 0)
    values = composer(tiny_batch.observation, tiny_batch.query.coords)
    errors = [
        sum((a - b) ** 2 for a, b in zip(output.flatten().tolist(), true.flatten().tolist(), strict=True))
        / true.numel()
        for output, true in zip(values, tiny_batch.query.values, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(errors) / 3, rel=1e-5)
    assert logged["train/loss"].item() == pytest.approx(loss.item())
    psnrs = [-10 * math.log10(error) for error in errors]
    assert logged["train/psnr"].item() == pytest.approx(sum(psnrs) / 3, rel=1e-5)


def _subset(batch, instances):
    """Return some instances of a batch."""
    samples = Samples(batch.query.coords, batch.query.values[instances])
    return CoordinateBatch(
        Observation(batch.observation.signal[instances], samples), samples, batch.shape, ["x"] * len(instances)
    )


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_reported_metrics_are_means_over_instances(make_ipc, tiny_batch, logged, stage):
    composer = make_ipc(metrics={"psnr": PSNR(), "gain": Gain()}).eval()
    tiny_batch.query.values[0] *= 3  # far off: it would dominate a pooled error
    reference = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2))
    gains = []
    with torch.no_grad():
        for instances in ([0, 1], [2]):
            batch = _subset(tiny_batch, instances)
            getattr(composer, f"{stage}_step")(batch, 0)
            values = composer(batch.observation, batch.query.coords)
            reference.update(values, batch.query.values)
            gains.append(Gain().measure(Reconstruction.of_values(values), batch.query, None))
    prefix = "val" if stage == "validation" else "test"
    assert set(logged) == {f"{prefix}/{name}" for name in ("loss", "psnr", "gain")}
    assert logged[f"{prefix}/psnr"].compute().item() == pytest.approx(reference.compute().item(), abs=1e-4)
    assert logged[f"{prefix}/gain"].compute().item() == pytest.approx(torch.cat(gains).mean().item(), abs=1e-4)


def test_metrics_of_two_processes_equal_those_of_one(make_ipc, tiny_batch, logged):
    composer = make_ipc().eval()
    processes = [copy.deepcopy(composer) for _ in range(2)]
    with torch.no_grad():
        means = []
        for process, instances in zip(processes, ([0, 1], [2]), strict=True):
            process.test_step(_subset(tiny_batch, instances), 0)
            means.append(logged["test/psnr"])
        composer.test_step(tiny_batch, 0)
    means[0].merge_state(means[1])
    assert means[0].compute().item() == pytest.approx(logged["test/psnr"].compute().item(), abs=1e-4)


def test_refinement_runs_in_its_stages_only(make_ipc, tiny_batch, logged):
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


def test_metrics_are_computed_in_float32_under_autocast(make_ipc):
    """The filters of the SSIM subtract squares: in bfloat16, 0.9999 becomes 0.3."""
    composer = make_ipc(metrics={"ssim": SSIM()})
    values = 0.5 + 0.02 * torch.rand(2, 256, 3)
    batch = CoordinateBatch(Observation(), Samples(torch.zeros(256, 2), values), (16, 16), ["a", "b"])
    reconstruction = Reconstruction.of_values(values + 0.001 * torch.rand(2, 256, 3))
    expected = composer._measure(batch, reconstruction, composer.measures)["ssim"]
    with torch.autocast("cpu", torch.bfloat16):
        actual = composer._measure(batch, reconstruction, composer.measures)["ssim"]
    assert torch.equal(actual, expected)


def test_prediction_works_without_query_values(tiny_ipc, tiny_batch):
    query = Samples(torch.rand(7, 2))
    batch = tiny_batch._replace(observation=Observation(tiny_batch.observation.signal), query=query, shape=None)
    evaluation = tiny_ipc.predict_step(batch, 0)
    assert evaluation["losses"] is None
    assert evaluation["values"][0].shape == (3, 7, 3)


def test_the_default_optimizer_is_the_published_one(make_ipc):
    optimizer = make_ipc().configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    expected = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0}
    assert {name: optimizer.defaults[name] for name in expected} == expected
    configured = make_ipc(
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1),
    ).configure_optimizers()
    assert type(configured["optimizer"]) is torch.optim.SGD
    assert configured["lr_scheduler"]["interval"] == "step"
    assert configured["lr_scheduler"]["scheduler"].optimizer is configured["optimizer"]


IMAGE = {"signal": (3, 178, 178), "patch": 9, "padding": 1, "dims": (2, 3), "frequencies": 64}
AUDIO = {"signal": (1, 16000), "patch": 200, "dims": (1, 1), "frequencies": 2048}
VIEWS = {"signal": (9, 128, 128), "patch": 8, "dims": (3, 4), "frequencies": 20, "layers": 6}
FIVE_VIEWS = VIEWS | {"signal": (9, -1, -1), "tokens": 5 * 256}
FFHQ = {"signal": (3, 1024, 1024), "patch": 32, "dims": (2, 3), "frequencies": 64}
AUDIO_3S = AUDIO | {"signal": (1, 48000)}
# Columns: preset, sizes, parameters of the released code including its `ff_linear` (a buffer here), exact or in millions,
# data and weight tokens, code size.
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
    """Return a composer of the published sizes on the meta device."""
    coord_dim, value_dim = sizes["dims"]
    with torch.device("meta"):
        network = CoordinateMLP(
            coord_dim,
            value_dim,
            hidden_dim=256,
            num_layers=sizes.get("layers", 5),
            modulated_layers=(1,) if kind is TransformerIPC else "all",
            encoding=FourierFeatures(sizes["frequencies"], 256),
        )
        encoder = Patches(sizes["signal"], sizes["patch"], sizes.get("padding", 0), num_tokens=sizes.get("tokens"))
        if kind is TransformerIPC:
            return TransformerIPC(network, encoder)
        return TransINR(network, encoder, num_groups=32 if sizes.get("layers") == 6 else 64)


def _num_tokens(composer):
    """Return the numbers of data and weight tokens."""
    return composer.start.encoder.num_tokens, composer.start.readout.num_weight_tokens


def _expected_parameters(composer):
    """Return the number of parameters, added up part by part."""
    width, (data_tokens, weight_tokens) = 768, _num_tokens(composer)
    embedding = composer.start.encoder.embed_dim * width + width + data_tokens * width
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
    parameters = sum(parameter.numel() for parameter in composer.parameters())
    unused = 256 * 256 if kind is TransformerIPC else 0  # a base weight that the released IPC stores and never uses
    total = parameters + sizes["frequencies"] + unused  # the released code counts its constant frequencies too
    assert (f"{total / 1e6:.2f} M" if isinstance(released, str) else total) == released
    assert parameters == _expected_parameters(composer)
    assert _num_tokens(composer) == tokens
    if sizes["signal"][-1] > 0:
        latents = composer.encode(Observation(torch.empty(1, *sizes["signal"], device="meta")))
        assert sum(latent.numel() for latent in latents.values()) == code


def test_checkpoints_hold_parameters_and_frequencies_only(composers):
    for composer in composers:
        assert set(composer.state_dict()) == {
            "network.encoding.frequencies",
            *(name for name, _ in composer.named_parameters()),
        }


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": -2}, "rank is -2"),
        ({"rank": 4, "factorized": False}, "rank is 4 with factorized False"),
        ({"num_weight_tokens": 3}, "num_tokens of the weight tokens is 3; the latent patterns.1 has 8 columns"),
        (
            {"num_weight_tokens": 4, "rank": 6},
            "weight tokens is 4; the latent patterns.1 has 6 columns: choose a divisor",
        ),
        ({"num_weight_tokens": -1}, "num_tokens of the weight tokens is -1"),
        ({"num_weight_tokens": 0}, "num_tokens of the weight tokens is 0"),
    ],
    ids=str,
)
def test_ipc_rejects_sizes_that_do_not_fit(make_ipc, switches, message):
    with pytest.raises(ValueError, match=message):
        make_ipc(**switches)


def _set_up(composer, data):
    composer.trainer = SimpleNamespace(datamodule=data)
    composer.setup("fit")


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (16, {}, r"Patches was built for signal_shape \(3, 8, 12\); the data has \(3, 16, 16\)"),
        (8, {"encoder": Patches((1, 8, 8), 4)}, r"signal_shape \(1, 8, 8\); the data has \(3, 8, 8\)"),
        (8, {"encoder": Patches((1, -1, -1), 4, num_tokens=4)}, r"\(1, -1, -1\); the data has \(3, 8, 8\)"),
    ],
)
def test_set_up_rejects_signals_of_another_size(make_ipc, size, changes, message):
    with pytest.raises(ValueError, match=message):
        _set_up(make_ipc(**changes), SamplePhotos(size=size))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"coord_dim": 3}, "CoordinateMLP was built for coord_dim 3; the data has 2: leave coord_dim out"),
        ({"value_dim": 1}, "CoordinateMLP was built for value_dim 1; the data has 3: leave value_dim out"),
    ],
    ids=str,
)
def test_set_up_rejects_networks_of_other_dimensions(make_ipc, make_network, network, message):
    composer = make_ipc(network=make_network(**network), encoder=Patches((3, 8, 8), 4))
    with pytest.raises(ValueError, match=message):
        _set_up(composer, SamplePhotos(size=8))


def test_set_up_accepts_matching_sizes(make_ipc):
    for shape, tokens in (((3, 8, 8), None), ((3, -1, -1), 4)):
        _set_up(make_ipc(encoder=Patches(shape, 4, num_tokens=tokens)), SamplePhotos(size=8))


def test_a_network_without_modulated_layers_is_rejected(make_ipc, make_transinr, make_network):
    for make in (make_ipc, make_transinr):
        with pytest.raises(ValueError, match="modulated_layers"):
            make(network=make_network(modulated_layers=()))


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_gradients_of_parts_of_a_batch_with_masks_average_to_that_of_the_batch(make_ipc, tiny_batch):
    """Every instance has the same weight, whatever its number of measured samples, so that devices may share a batch."""
    composer = make_ipc().eval()  # without dropout
    signal = torch.rand(4, *tiny_batch.observation.signal.shape[1:])
    counts = torch.tensor([[96], [3], [50], [1]])
    values = signal.flatten(2).mT
    mask = torch.arange(values.shape[1]) < counts

    def gradients(part):
        samples = Samples(tiny_batch.query.coords, values[part], mask[part])
        names = ["a", "b", "c", "d"][part]
        composer.zero_grad()
        batch = CoordinateBatch(Observation(signal[part], samples), samples, None, names)
        composer.training_step(batch, 0).backward()
        return [parameter.grad.clone() for parameter in composer.parameters()]

    parts = [gradients(slice(0, 2)), gradients(slice(2, 4))]
    for expected, first, second in zip(gradients(slice(0, 4)), *parts, strict=True):
        torch.testing.assert_close((first + second) / 2, expected, rtol=1e-5, atol=1e-7)
