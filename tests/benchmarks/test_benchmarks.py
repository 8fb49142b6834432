"""The plain formulation equals the composers, and benchmarks measure what they state."""

import csv
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import decode, loading, reference, speed
from benchmarks.reference import PlainComposer, PlainVolumeRenderer
from composers import TransformerIPC
from composers.encoders import Transformer, ViewPatches
from composers.networks import CoordinateMLP, FourierFeatures, Sine
from composers.rendering import LightFieldRenderer, VolumeRenderer
from datamodules.batch import CoordinateBatch, Observation, Samples, Views
from datamodules.cameras import centred_intrinsics, focal_length, orbit
from datamodules.domain import Rays, jitter
from modalities.images import render, to_image

TINY = [
    *("--size=8", "--batch_size=2", "--patch_size=4", "--padding=0", "--embed_dim=12", "--num_blocks=2"),
    *("--num_heads=3", "--hidden_dim=8", "--num_layers=3", "--num_frequencies=2", "--steps=2"),
]

IPC = {
    "published": ({}, {}),
    "rank": ({"rank": 4}, {}),
    "base_weight": ({"base_weight": True}, {}),
    "base_weight_and_rank": ({"base_weight": True, "rank": 2}, {}),
    "not_factorized": ({"factorized": False}, {}),
    "grouped_tokens": ({"num_weight_tokens": 4}, {}),
    "first_layer": ({}, {"modulated_layers": [0]}),
    "several_layers": ({"base_weight": True}, {"modulated_layers": [0, 2, 3]}),
    "not_normalised": ({}, {"normalize_weights": False}),
}


def with_random_heads(composer):
    """Replace the weights of heads that are initialised with zero, so that predictions depend on the signal."""
    for head in composer.start.readout.heads.values():
        torch.nn.init.normal_(head[1].weight, std=0.3)
    return composer.eval()


def assert_equal(composer, batch, coords):
    """Compare the values and the gradients of all parameters."""
    results = []
    for model in (composer, PlainComposer(composer)):
        values = model(batch.observation, coords)
        loss = (values - batch.query.values).square().mean()
        results.append((values, torch.autograd.grad(loss, list(composer.parameters()))))
    (actual, actual_gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    for actual, expected in zip(actual_gradients, expected_gradients, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(actual, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("shared", [True, False], ids=["shared_coords", "coords_per_instance"])
@pytest.mark.parametrize("case", IPC)
def test_plain_ipc_equals_the_composer(make_ipc, make_network, tiny_batch, case, shared):
    changes, network_changes = IPC[case]
    composer = with_random_heads(make_ipc(network=make_network(**network_changes), **changes))
    coords = tiny_batch.query.coords
    if not shared:
        coords = jitter(coords.repeat(3, 1, 1), (0.1, 0.1), torch.Generator())
    assert_equal(composer, tiny_batch, coords)


def test_plain_transinr_equals_the_composer(make_transinr, tiny_batch):
    assert_equal(with_random_heads(make_transinr()), tiny_batch, tiny_batch.query.coords)


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("stratified", [True, False], ids=["draws", "no_draws"])
def test_plain_ipc_of_views_equals_the_composer(num_views, stratified):
    torch.manual_seed(0)
    size, instances = 8, 3
    count = instances * num_views
    poses = orbit(count).unflatten(0, (instances, num_views))
    intrinsics = centred_intrinsics(torch.full((count, 2), focal_length(0.7, size)), (size, size))
    intrinsics = intrinsics.unflatten(0, (instances, num_views)) + torch.rand(instances, num_views, 4)
    rays = Rays().coords((instances, size, size), cameras=(poses[:, -1], intrinsics[:, -1])).view(instances, -1, 6)
    rays = torch.cat((rays, torch.rand(instances, size**2, 1)), dim=-1)
    views = Views(torch.rand(instances, num_views, 3, size, size), poses, intrinsics)
    network = CoordinateMLP(3, 4, 8, 6, encoding=FourierFeatures(4, 8.0, use_pi=False), output_offset=0.0)
    renderer = VolumeRenderer(2.0, 6.0, 48, stratified=stratified)  # as many samples as sparse gradients need
    encoder = ViewPatches((num_views, 3, size, size), patch_size=4)
    composer = TransformerIPC(network, encoder, Transformer(12, 2, 3), renderer=renderer).eval()
    with torch.no_grad():  # half of the points have density
        points = rays[..., :3] + 4 * rays[..., 3:6]
        network.biases["5"][3] -= network.bind(composer.modulate(Observation(views)))(points)[..., 3].median()
    query = Samples(rays, torch.rand(instances, size**2, 3))
    assert_equal(composer, CoordinateBatch(Observation(views), query, (size, size), ["a", "b", "c"]), rays)


def test_plain_renderer_refuses_settings_that_were_not_published():
    with pytest.raises(ValueError, match=r"radius 1\.5"):
        PlainVolumeRenderer(VolumeRenderer(2.0, 6.0, 8, radius=1.5))
    with pytest.raises(ValueError, match="depth range None"):
        PlainVolumeRenderer(VolumeRenderer())


def test_plain_formulation_of_a_light_field_raises_an_error(make_ipc):
    composer = make_ipc()
    composer.renderer = LightFieldRenderer()
    with pytest.raises(TypeError, match="LightFieldRenderer"):
        PlainComposer(composer)


def test_plain_formulation_shares_parameters_and_mode(make_ipc):
    composer = make_ipc(base_weight=True)
    plain = PlainComposer(composer)
    assert {id(parameter) for parameter in plain.parameters()} == {id(parameter) for parameter in composer.parameters()}
    composer.eval()
    assert not plain.start.start.readout.transformer.blocks[0].dropout.training


def test_plain_formulation_of_other_parts_raises_an_error(make_ipc, make_network):
    with pytest.raises(TypeError, match="Sine"):
        PlainComposer(make_ipc(network=make_network(activation=Sine())))
    composer = make_ipc()
    composer.start.encoder = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match="encoder is Linear"):
        PlainComposer(composer)


def test_main_measures_and_appends(tmp_path, capsys):
    path = tmp_path / "new" / "speed.csv"
    measurements = [
        measurement
        for shared in ("true", "false")
        for measurement in speed.main([*TINY, f"--csv={path}", f"--shared_coords={shared}"])
    ]
    assert "largest difference of values" in capsys.readouterr().out
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["section"] for row in rows] == 2 * (2 * ["whole model"] + 2 * ["coordinate network"])
    assert [row["work"] for row in rows] == 4 * ["training step", "evaluation"]
    assert [float(row["ratio"]) for row in rows] == [measurement.ratio for measurement in measurements]
    assert {row["size"] for row in rows} == {"8"}
    assert {row["torch"] for row in rows} == {torch.__version__}
    for measurement in measurements[::2]:  # of training steps
        assert 0 < measurement.ours_saved_mb < measurement.reference_saved_mb
        assert measurement.ratio_low <= measurement.ratio <= measurement.ratio_high


def test_csv_with_other_columns_raises_an_error_before_timing(monkeypatch, tmp_path):
    path = tmp_path / "speed.csv"
    path.write_text("a,b\n1,2\n")
    monkeypatch.setattr(speed, "build", partial(pytest.fail, "was built"))
    with pytest.raises(ValueError, match="another --csv"):
        speed.main([*TINY, f"--csv={path}"])
    assert path.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("owner", "name", "disturb"),
    [
        (reference, "_plain_attention", lambda tokens: 0 * tokens),
        (reference.PlainLowRank, "weight", lambda weight: 2 * weight - weight.detach()),  # doubles the gradient
        (reference.PlainCoordinateMLP, "_encode", lambda features: features * float("nan")),
    ],
)
def test_differing_formulations_raise_an_error_before_timing(monkeypatch, owner, name, disturb):
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *arguments: disturb(original(*arguments)))
    monkeypatch.setattr(speed, "duration", partial(pytest.fail, "was timed"))
    with pytest.raises(ValueError, match=r"formulations of the .* differ"):
        speed.main(TINY)


def test_audio_is_measured(capsys):
    measurements = speed.main([*TINY, "--axes=1", "--channels=1", "--size=40"])
    assert [measurement.work for measurement in measurements] == ["training step", "evaluation"] * 2
    assert "axes 1" in capsys.readouterr().out


def test_settings_out_of_range_raise_an_error():
    with pytest.raises(ValueError, match="axes is 3"):
        speed.SpeedSettings(axes=3)
    with pytest.raises(ValueError, match="steps 1"):
        speed.SpeedSettings(steps=1)


def test_saved_bytes_count_every_storage_once_and_no_parameters():
    parameter = torch.ones(10, requires_grad=True)

    def evaluate():
        hidden = 2 * parameter
        return hidden * hidden * parameter  # saves hidden, its square and the parameter

    contest = speed.Contest("", evaluate, evaluate, [parameter], torch.zeros(10))
    assert speed.saved_bytes(contest, evaluate) == 4 * 10 * 4  # the loss saves the values and the target


def test_ratios_are_of_consecutive_runs():
    measurement = speed.summarise("", "", [[1, 2, 4], [2, 8, 4]], [10**6, 3 * 10**6])
    assert (measurement.ours_seconds, measurement.reference_seconds) == (2, 4)
    assert (measurement.ratio_low, measurement.ratio, measurement.ratio_high) == (1.5, 2, 3)
    assert (measurement.ours_saved_mb, measurement.reference_saved_mb) == (1, 3)


@pytest.mark.slow
def test_decodings_are_measured_in_subprocesses(tmp_path, capsys):
    table = tmp_path / "decode.csv"
    for _ in range(2):
        decode.main(["--size=256", "--limits=[200,5]", "--repeats=1", f"--csv={table}"])
    assert "256 x 256 pixels" in capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["size"], row["limit [MB]"]) for row in rows] == [("256", "200"), ("256", "5")] * 2
    for row in rows:
        assert float(row["peak [MB]"]) < 300
        assert float(row["megapixels per second"]) > 0
    assert float(rows[0]["speed-up over the first"]) == 1
    with pytest.raises(ValueError, match="repeats"):
        decode.DecodeSettings(repeats=0)


def test_decoding_with_and_without_a_memory_limit_gives_the_same_image(monkeypatch):
    images = []
    monkeypatch.setattr(decode, "to_image", lambda *args: images.append(to_image(*args)))
    monkeypatch.setattr(decode, "render", lambda *args, **options: images.append(render(*args, **options)))
    for limit in (100.0, 0.0):
        torch.manual_seed(0)
        measurement = decode.measure("photos_ipc", 48, limit)
        assert measurement.seconds > 0
        assert measurement.peak_mb >= 0
    limited_warm_up, limited, plain_warm_up, plain = (np.asarray(image).astype(int) for image in images)
    assert np.abs(limited_warm_up - plain_warm_up).max() <= 1
    assert limited.shape == plain.shape == (48, 48, 3)
    assert np.abs(limited - plain).max() <= 1


def test_loading_is_measured_with_and_without_the_cache(tmp_path, capsys):
    table = tmp_path / "loading.csv"
    arguments = ["--count=40", "--short_side=24", "--size=16", "--batch_size=4", "--epochs=2", "--uncached=12"]
    loading.main([*arguments, "--workers=[0]", f"--folder={tmp_path}", f"--csv={table}"])
    assert "40 JPEGs, crops of 16 pixels" in capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["images"] for row in rows] == [
        "building or verifying the cache",
        "with the cache",
        "without the cache",
    ]
    assert all(float(row["images/s"].replace(",", "")) > 0 for row in rows)
    data = loading.data_of(
        loading.LoadingSettings(count=40, short_side=24, size=16, batch_size=4), tmp_path / "images", None, 0
    )
    assert len(data.train_set) == 39
    assert all(min(data.train_set[index].values.shape[1:]) == 24 for index in range(39))
    assert len({data.train_set[index].values.shape for index in range(39)}) > 5
    with pytest.raises(ValueError, match="uncached 3"):
        loading.LoadingSettings(uncached=3)
