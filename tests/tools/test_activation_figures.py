"""Analysis of networks: activations, ablated units and components compared with numpy, and the command."""

import copy
import csv
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import composers
from composers import Composer, MetaIPC
from composers.encoders import Patches, Transformer, WeightTokens
from composers.inference import GradientSteps, Hypernetwork, Refinement
from composers.latents import Direct
from composers.networks import CoordinateNetwork, FourierFeatures, IdentityEncoding, Sine, TensorSpec
from datamodules.batch import Samples
from datamodules.storage.images import image_files
from modalities.images import image_codes, image_samples
from tools.activations import (
    AnalysisSettings,
    ModelAnalysis,
    ablate_units,
    activation_maps,
    layers,
    principal_components,
    spreads,
    units,
)
from tools.activations.__main__ import main
from tools.activations.images import crops, fitted, read_all
from tools.activations.layers import Spread
from tools.activations.maps import ColourScale
from tools.activations.page import short

B, N = 3, 10

CONFIG = {
    "class_path": "composers.TransformerIPC",
    "init_args": {
        "network": {
            "class_path": "composers.networks.CoordinateMLP",
            "init_args": {"coord_dim": 2, "value_dim": 3, "hidden_dim": 6, "num_layers": 4},
        },
        "encoder": {
            "class_path": "composers.encoders.Patches",
            "init_args": {"signal_shape": [3, 8, 8], "patch_size": 4},
        },
        "transformer": {
            "class_path": "composers.encoders.Transformer",
            "init_args": {"embed_dim": 12, "num_blocks": 1, "num_heads": 3},
        },
    },
}


def _config(kind="TransformerIPC", **network):
    """Return the config of a tiny composer; keywords replace arguments of its network."""
    config = copy.deepcopy(CONFIG)
    config["class_path"] = f"composers.{kind}"
    config["init_args"]["network"]["init_args"] |= network
    if kind == "TransINR":
        config["init_args"] |= {"num_groups": 3}
        config["init_args"]["network"]["init_args"]["modulated_layers"] = "all"
    return config


def _naive_layers(network, coords, modulations, ablated=None):
    """Return the output ``(B, N, O)`` of every layer at ``(N, D)``, computed by numpy; ``ablated`` is a (layer, unit)."""
    outputs = [[] for _ in network.layer_sizes]
    for instance in range(B):
        hidden = coords.double().numpy()
        if isinstance(network.encoding, FourierFeatures):
            phases = np.concatenate([hidden[:, [axis]] * np.array([1.0, 4.0]) * math.pi for axis in range(2)], axis=1)
            hidden = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
        for layer in range(len(network.layer_sizes)):
            name = f"weight.{layer}"
            weight = modulations[name][instance] if name in modulations else network.weights[str(layer)]
            weight = weight.detach().double().numpy()
            hidden = hidden @ (weight / np.linalg.norm(weight, axis=0)) + network.biases[str(layer)].detach().numpy()
            if f"shift.{layer}" in modulations:
                hidden = hidden + modulations[f"shift.{layer}"][instance].double().numpy()
            if layer == len(network.layer_sizes) - 1:
                hidden = hidden + network.output_offset
            elif isinstance(network.activation, Sine):
                hidden = np.sin(network.activation.omega * hidden)
            else:
                hidden = np.maximum(hidden, 0)
            if ablated is not None and ablated[0] == layer:
                hidden = np.array([[0.0 if unit == ablated[1] else h for unit, h in enumerate(row)] for row in hidden])
            outputs[layer].append(hidden)
    return [torch.from_numpy(np.stack(instances)) for instances in outputs]


@pytest.fixture(params=["relu", "sine", "all", "two", "shifts"])
def case(request, make_network, make_modulations):
    """Return a network, coordinates and modulations."""
    arguments = {
        "relu": {},
        "sine": {"activation": Sine(3.0), "encoding": IdentityEncoding()},
        "all": {"modulated_layers": "all"},
        "two": {"modulated_layers": (0, 2)},
        "shifts": {"modulated_layers": (1, 2), "modulates": "shifts"},
    }
    network = make_network(**arguments[request.param])
    return network, torch.rand(N, 2) * 2 - 1, make_modulations(network, B)


# Statistics


@pytest.mark.parametrize("max_floats", [1, 500, 2**24])
def test_maps_equal_numpy_for_any_chunks(case, monkeypatch, max_floats):
    monkeypatch.setattr(layers, "_MAX_FLOATS", max_floats)
    network, coords, modulations = case
    expected = _naive_layers(network, coords, modulations)
    maps = activation_maps(network, coords, modulations, {2: [5, 0], 0: [3]})
    assert set(maps) == {0, 2}
    torch.testing.assert_close(maps[2].double(), expected[2][..., [5, 0]], atol=2e-5, rtol=0)
    torch.testing.assert_close(maps[0].double(), expected[0][..., [3]], atol=2e-5, rtol=0)


@pytest.mark.parametrize("max_floats", [1, 500, 2**24])
def test_spreads_equal_numpy_for_any_chunks(case, monkeypatch, max_floats):
    monkeypatch.setattr(layers, "_MAX_FLOATS", max_floats)
    network, coords, modulations = case
    expected = _naive_layers(network, coords, modulations)[:-1]
    actual = spreads(network, coords, modulations)
    assert list(actual) == [0, 1, 2]
    for spread, activations in zip(actual.values(), expected, strict=True):
        between = activations.numpy().var(axis=0).mean(axis=0)
        total = activations.numpy().reshape(-1, activations.shape[-1]).var(axis=0)
        np.testing.assert_allclose(spread.between, between, atol=1e-5)
        np.testing.assert_allclose(spread.total, total, atol=1e-5)
        assert spread.share == pytest.approx(between.sum() / total.sum(), abs=1e-5)


def test_share_is_zero_before_the_modulated_layer_only(make_network, make_modulations):
    network = make_network(num_layers=5, modulated_layers=(2,))
    shares = [spread.share for spread in spreads(network, torch.rand(50, 2), make_modulations(network, B)).values()]
    assert shares[:2] == [0.0, 0.0]
    assert min(shares[2:]) > 0.05
    network = make_network(modulated_layers="all")
    actual = spreads(network, torch.rand(50, 2), make_modulations(network, B))
    assert min(spread.share for spread in actual.values()) > 0.05


def test_share_of_known_variances():
    assert Spread(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 2.0])).share == 0.5
    assert Spread(torch.zeros(2), torch.zeros(2)).share == 0.0


@pytest.mark.parametrize("max_floats", [1, 2**22])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_ablation_equals_numpy(case, layer, monkeypatch, max_floats):
    monkeypatch.setattr(units, "_MAX_FLOATS", max_floats)
    network, coords, modulations = case
    values = torch.rand(B, N, 3)

    def psnr(ablated):
        errors = (_naive_layers(network, coords, modulations, ablated)[-1] - values.double()) ** 2
        return torch.stack([-10 * torch.log10(error.mean()) for error in errors])

    expected = psnr(None)
    expected_losses = torch.stack([expected - psnr((layer, unit)) for unit in range(8)], dim=1)
    for index in range(B):
        instance = {name: modulation[index : index + 1] for name, modulation in modulations.items()}
        actual, losses = ablate_units(network, layer, Samples(coords, values[index : index + 1]), instance)
        assert actual.item() == pytest.approx(expected[index].item(), abs=1e-3)
        torch.testing.assert_close(losses.double(), expected_losses[index], atol=2e-3, rtol=0)
    assert expected_losses.abs().max() > 0.1


@pytest.mark.parametrize("shape", [(6, 40), (9, 4), (3, 2)])
def test_components_equal_the_covariance_of_numpy(shape):
    codes = torch.randn(shape)
    actual = principal_components(codes)
    centred = codes.double().numpy() - codes.double().numpy().mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    count = min(shape[0] - 1, shape[1])
    variances, axes = variances[::-1][:count], axes[:, ::-1][:, :count]
    np.testing.assert_allclose(actual.shares, variances / np.square(centred).sum(), atol=1e-9)
    np.testing.assert_allclose(actual.scores.abs(), np.abs(centred @ axes), atol=1e-6)
    assert actual.scores.shape == (shape[0], count)
    for column in actual.scores.T:
        assert column[column.abs().argmax()] > 0
    assert actual.shares.sum().item() == pytest.approx(1)


def test_equal_codes_have_no_variance():
    components = principal_components(torch.ones(4, 5))
    assert not components.scores.any()
    assert not components.shares.any()


# Images


def test_images_are_cropped_to_the_largest_centred_square():
    image = torch.zeros(3, 10, 40, dtype=torch.uint8)
    image[:, :, 15:25] = 200
    assert torch.equal(fitted(image, 10), torch.full((3, 10, 10), 200, dtype=torch.uint8))
    assert torch.equal(fitted(image.mT, 5), torch.full((3, 5, 5), 200, dtype=torch.uint8))


def test_crops_are_evenly_spaced_from_corner_to_corner():
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    corners = [(0, 0), (0, 8), (8, 0), (8, 8)]
    for crop, (top, left) in zip(crops(image, 8, 4), corners, strict=True):
        assert torch.equal(crop, image[:, top : top + 8, left : left + 8])
    assert torch.equal(crops(image, 8, 1)[0], image[:, 4:12, 4:12])
    assert crops(image, 8, 0) == []
    wide = torch.cat([image, image + 7], dim=2)
    assert torch.equal(crops(wide, 8, 2)[1], wide[:, 4:12, 24:32])
    assert [crop.shape for crop in crops(image, 5, 5)] == [(3, 5, 5)] * 5
    assert crops(image[:, :1, :1], 4, 2)[1].shape == (3, 4, 4)


def _save(path, size=(20, 14), seed=0):
    """Write a random image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Return a folder with three images, one of them in a subfolder, and with other files."""
    for index, name in enumerate(("b.png", "a$^.png", "inner/c.PNG")):
        _save(tmp_path / "photos" / name, seed=index)
    for name in (".hidden.png", ".git/d.png"):
        _save(tmp_path / "photos" / name)
    _save(tmp_path / "photos" / "earlier" / "e.png")
    (tmp_path / "photos" / "earlier" / "predictions.csv").touch()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "folder.png").mkdir()
    return tmp_path / "photos"


def test_folders_are_searched_and_unreadable_images_are_skipped(folder):
    images, skipped = read_all([str(folder)])
    assert list(images) == ["a$^.png", "b.png", "c.PNG"]
    assert skipped == []
    assert images["b.png"].shape == (3, 14, 20)
    (folder / "broken.jpg").write_text("hello")
    images, skipped = read_all([str(folder)])
    assert len(images) == 3
    assert len(skipped) == 1
    assert skipped[0].startswith(f"Skipped: {folder / 'broken.jpg'} is not an image")


def test_names_are_unique(folder):
    other = _save(folder / "inner" / "b.png", seed=7)
    images, _ = read_all([str(folder / "b.png"), str(other), str(folder / "b.png"), str(folder / "inner" / "c.PNG")])
    assert list(images) == [str(folder / "b.png"), str(other), "c.PNG"]


def test_images_of_a_folder_have_relative_paths_and_single_files_any_suffix(folder):
    (folder / "f.heic").touch()  # listed, and refused when it is read
    paths = ["a$^.png", "b.png", "f.heic", "inner/c.PNG"]
    assert image_files(folder) == [(folder / path, Path(path)) for path in paths]
    assert image_files(folder / "earlier") == [(folder / "earlier" / "e.png", Path("e.png"))]
    assert image_files(folder / "notes.txt") == [(folder / "notes.txt", Path("notes.txt"))]


# Models


IMAGES = {
    name: torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, 12, 20), dtype=np.uint8))
    for seed, name in enumerate("abcd")
}


@pytest.fixture
def square_ipc(make_ipc):
    """Return a tiny IPC for images of 8 x 8."""
    return make_ipc(encoder=Patches((3, 8, 8), patch_size=4)).eval()


def _analysis(composer, layer=1, **settings):
    return ModelAnalysis("model", composer, IMAGES, AnalysisSettings(**{"num_units": 2, "size": 8} | settings), layer)


def test_open_sizes_of_an_encoder_are_those_of_a_square(make_ipc, square_ipc, tiny_ipc):
    assert _analysis(square_ipc).size == 8
    opened = Patches((3, -1, -1), patch_size=5, padding=1, num_tokens=16)
    assert _analysis(make_ipc(encoder=opened)).size == 18
    for other in (tiny_ipc, make_ipc(encoder=Patches((3, -1, -1), patch_size=5, num_tokens=12))):
        with pytest.raises(ValueError, match="not square colour images"):
            _analysis(other)


@pytest.mark.parametrize(("coord_dim", "value_dim", "shape"), [(1, 1, (1, 24)), (2, 1, (1, 8, 8)), (3, 4, (3, 8, 8))])
def test_models_of_other_signals_are_refused(make_ipc, make_network, coord_dim, value_dim, shape):
    network = make_network(coord_dim=coord_dim, value_dim=value_dim)
    with pytest.raises(
        ValueError, match=f"model has {value_dim} values at coordinates of {coord_dim} dimensions; colour images"
    ):
        _analysis(make_ipc(network=network, encoder=Patches(shape, patch_size=4)))


def test_refinement_reduces_errors_and_applies_to_crops(square_ipc):
    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)  # more than one batch of encoding
    samples, errors = image_samples(torch.stack(list(pixels))), []
    for steps in (0, 5):
        values = square_ipc.render(
            square_ipc.compose(image_codes(square_ipc, torch.stack(list(pixels)), Refinement(steps))),
            samples.coords,
        )
        errors.append((values - samples.values).square().mean((1, 2)))
    assert (errors[1] < errors[0]).all()
    plain, refined = (_analysis(square_ipc, steps=steps, crops=2).components() for steps in (0, 5))
    assert plain.scores.shape == refined.scores.shape == (12, 11)
    assert not torch.allclose(plain.scores, refined.scores)


def test_shown_units_have_the_largest_variance_or_importance(square_ipc):
    analysis = _analysis(square_ipc, num_units=3, num_rows=2)
    shown = analysis.layers()
    assert [layer.layer for layer in shown] == [0, 1, 2]
    assert [layer.modulated for layer in shown] == [False, True, False]
    for layer in shown:
        total = analysis.spreads[layer.layer].total
        assert layer.units == sorted(range(8), key=lambda unit: -total[unit])[:3]
        assert layer.share == analysis.spreads[layer.layer].share
        assert layer.maps.shape == (2, 3, 8, 8)
    assert torch.equal(shown[0].maps[0], shown[0].maps[1])
    assert not torch.equal(shown[1].maps[0], shown[1].maps[1])
    ablation, samples = analysis.units(), image_samples(torch.stack(list(analysis.images.values())))
    mean = ablation.losses.mean(0)
    assert (mean[:-1] >= mean[1:]).all()
    psnrs, losses = zip(*_ablations(analysis), strict=True)
    assert ablation.psnr == pytest.approx(sum(psnrs).item() / 4)
    torch.testing.assert_close(ablation.losses, torch.stack(losses)[:, ablation.order])
    activations = analysis.network.activations(analysis.modulations(slice(2)), samples.coords)[
        1
    ]  # on the grid of the maps
    torch.testing.assert_close(ablation.maps.flatten(2).mT, activations[..., ablation.order[:3]])


def _ablations(analysis):
    """Yield the results of `ablate_units` for every image of an analysis."""
    samples = image_samples(torch.stack(list(analysis.images.values())))
    for index, values in enumerate(samples.values.split(1)):
        modulations = analysis.modulations(slice(index, index + 1))
        yield ablate_units(analysis.network, analysis.layer, Samples(samples.coords, values), modulations)


class Opaque(CoordinateNetwork):
    """A network that does not expose its layers."""

    def __init__(self):
        super().__init__()
        self.coord_dim, self.value_dim = 2, 3
        self.slots = {"code": TensorSpec((3,), lambda: torch.zeros(3))}

    @property
    def floats_per_coord(self):
        return 3

    def forward(self, coords, modulations):
        return modulations["code"].unsqueeze(1).expand(-1, len(coords), -1)


def _hypernetwork():
    return Hypernetwork(Patches((3, 8, 8), patch_size=4), WeightTokens(Transformer(12, 1, 3, 2)))


def test_networks_without_exposed_layers_are_refused_with_their_own_message():
    composer = Composer(Opaque(), Direct(), _hypernetwork()).eval()
    with pytest.raises(
        ValueError, match="model cannot be analysed: Opaque has no hidden layers to show: implement act"
    ):
        _analysis(composer, None)


class TwoLayers(Opaque):
    """A network whose code enters the second of its two hidden layers, under a name without a layer."""

    def activations(self, modulations, coords):
        first = coords.sin().repeat(1, 3)
        return {0: first, 1: first + modulations["code"].repeat(1, 2).unsqueeze(1)}

    def values_without(self, modulations, coords, layer, units):
        hidden = self.activations(modulations, coords)[layer]
        ablated = [hidden.index_fill(-1, unit, 0.0).reshape(-1, 6) for unit in units]
        return torch.stack(ablated)[..., :3]


def test_any_network_that_exposes_its_layers_is_analysed():
    analysis = _analysis(Composer(TwoLayers(), Direct(), _hypernetwork()).eval(), None)
    assert analysis.layer == 1  # the first whose activations differ between images
    assert analysis.modulated == []
    assert analysis.shares[0] == 0
    assert analysis.shares[1] > 0
    assert [layer.maps.shape for layer in analysis.layers()] == [(3, 2, 8, 8)] * 2
    assert analysis.units().losses.shape == (4, 6)


@pytest.mark.parametrize(("modulates", "expected"), [("both", [1, 2]), ("shifts", [1, 2]), ("biases", [1, 2])])
def test_modulated_layers_follow_from_the_slots(make_network, modulates, expected):
    network = make_network(modulated_layers=(1, 2), modulates=modulates)
    composer = Composer(network, Direct(), _hypernetwork()).eval()
    analysis = _analysis(composer, None)
    assert analysis.modulated == expected
    assert analysis.layer == 1


def test_meta_learned_models_are_analysed(make_network):
    composer = MetaIPC(make_network(), GradientSteps(1), signal_shape=(3, 8, 8)).eval()
    analysis = _analysis(composer, None, crops=1)
    assert [layer.modulated for layer in analysis.layers()] == [False, True, False]
    assert analysis.components().scores.shape == (8, 7)


def test_colours_are_relative_to_the_unit_and_signed_for_signed_activations():
    maps = torch.zeros(2, 2, 10, 10)
    maps[0, 0], maps[1, 0], maps[:, 1, 0] = 4.0, 2.0, 0.5
    scale = ColourScale(maps)
    assert not scale.signed
    assert scale.maps[0, 0, 0, 0] == 1
    assert scale.maps[1, 0, 0, 0] == 0.5
    assert scale.maps[1, 1].max() == 1
    assert ColourScale(-maps).signed
    assert not ColourScale(torch.zeros(1, 1, 2, 2)).maps.any()


def test_names_are_shortened():
    assert short("a/b.c.png") == "b.c"
    assert short("photograph.png", 6) == "photo…"
    assert short("photo.png", 1) == "…"


# The command


@pytest.fixture
def checkpoints(tmp_path):
    """Return tiny untrained checkpoints: IPC and TransINR."""
    paths = []
    for kind in ("TransformerIPC", "TransINR"):
        composers.save(composers.build(_config(kind)), tmp_path / f"{kind}.ckpt")
        paths.append(str(tmp_path / f"{kind}.ckpt"))
    return paths


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_with_two_models(tmp_path, folder, checkpoints, capsys):
    output, (ipc, transinr) = tmp_path / "new" / "out", checkpoints
    few = ["--num_units", "2", "--num_rows", "2", "--size", "8", "--crops", "3"]
    main(["--checkpoint", ipc, "--compare", transinr, "--images", str(folder), "--output", str(output), *few])
    names = ["activations.png", "codes.csv", "codes.png", "components.csv", "layers.csv", "units.csv", "units.png"]
    assert sorted(path.name for path in output.iterdir()) == names
    for name in ("activations", "units", "codes"):
        with Image.open(output / f"{name}.png") as figure:
            assert figure.width == 1400  # 7 inches
            assert figure.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert np.asarray(figure.convert("L")).std() > 10

    rows = _rows(output / "layers.csv")
    assert [row["model"] for row in rows] == ["TransformerIPC"] * 3 + ["TransINR"] * 3
    assert [row["modulated"] for row in rows] == ["False", "True", "False", "True", "True", "True"]
    assert float(rows[0]["share_between_images"]) == 0
    assert all(0 < float(row["share_between_images"]) < 1 for row in rows[1:])

    rows = _rows(output / "units.csv")
    assert sorted(int(row["unit"]) for row in rows[:6]) == list(range(6))
    images = read_all([str(folder)])[0]
    analysis = ModelAnalysis("ipc", composers.load(ipc), images, AnalysisSettings(num_units=2))
    losses = torch.stack([losses for _, losses in _ablations(analysis)])
    for row in rows[:6]:
        of_unit = losses[:, int(row["unit"])].numpy()
        expected = [of_unit.mean(), *np.quantile(of_unit, [0.25, 0.75])]
        assert [float(number) for number in list(row.values())[3:]] == pytest.approx(expected, abs=1e-5)

    codes, shares = _rows(output / "codes.csv"), _rows(output / "components.csv")
    assert len(codes) == 2 * 3 * (1 + 3)
    assert [(row["image"], row["crop"]) for row in codes[:5]] == [
        ("a$^.png", ""),
        ("b.png", ""),
        ("c.PNG", ""),
        ("a$^.png", "0"),
        ("a$^.png", "1"),
    ]
    assert sum(float(row["share_of_variance"]) for row in shares) == pytest.approx(2)

    printed = capsys.readouterr()
    assert "layer 0 0.0%" in printed.out
    assert f"the most important unit of layer 1 is {rows[0]['unit']}" in printed.out
    assert all(str(output / name) in printed.out for name in names)
    assert printed.err == ""


def test_the_command_with_one_image_and_a_layer(tmp_path, folder, checkpoints, capsys):
    output = tmp_path / "out"
    few = ["--num_units", "5", "--size", "4", "--layer", "2", "--steps", "2"]
    main(["--checkpoint", checkpoints[0], "--images", str(folder / "b.png"), "--output", str(output), *few])
    names = ["activations.png", "layers.csv", "units.csv", "units.png"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert {row["share_between_images"] for row in _rows(output / "layers.csv")} == {""}
    assert {row["layer"] for row in _rows(output / "units.csv")} == {"2"}
    printed = capsys.readouterr().out
    assert "No share of variance between images: there is only one image." in printed
    assert "No figure of codes: it requires at least 3 images, got 1." in printed


def test_the_command_with_many_images_and_signed_activations(tmp_path, capsys):
    for index in range(11):
        _save(tmp_path / "photos" / f"image {index} 猫.png", seed=index)
    sine = {"class_path": "composers.networks.Sine"}
    paths = []
    for name, changes in {"a": {}, "b": {"activation": sine}}.items():
        composers.save(composers.build(_config(**changes)), tmp_path / f"{name}.ckpt")
        paths.append(str(tmp_path / f"{name}.ckpt"))
    few = ["--num_units", "1", "--num_rows", "1", "--size", "4", "--crops", "0"]
    output = ["--output", str(tmp_path / "out")]
    main(["--checkpoint", paths[0], "--compare", paths[1], "--images", str(tmp_path / "photos"), *few, *output])
    printed = capsys.readouterr().out
    assert "TransformerIPC A: " in printed
    assert "TransformerIPC B: " in printed
    assert len(_rows(tmp_path / "out" / "codes.csv")) == 22
    with Image.open(tmp_path / "out" / "activations.png") as figure:
        red, _, blue = (np.asarray(band) for band in figure.convert("RGB").split())
    assert ((red > 150) & (blue < 80)).any()  # the colours of signed activations
    assert ((blue > 150) & (red < 80)).any()


def test_help_lists_all_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["activations", "--help"])
    monkeypatch.delitem(sys.modules, "tools.activations.__main__")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("tools.activations", run_name="__main__")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "python -m tools.activations" in printed
    options = (
        "checkpoint",
        "compare",
        "images",
        "output",
        "layer",
        "num_units",
        "num_rows",
        "size",
        "crops",
        "steps",
    )
    assert all(f"--{option} " in printed for option in options)


def _fails(capsys, *arguments, status=1):
    """Run the command, check that it fails with one message, and return it."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    code = caught.value.code
    message = code if isinstance(code, str) else capsys.readouterr().err
    assert isinstance(code, str) == (status == 1)
    assert status == 1 or code == status
    assert message.startswith("error: ")
    assert message.count("error: ") == 1
    return message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "3"], "layer is 3; the hidden layers of TransformerIPC are 0 to 2"),
        (["--layer", "-1"], "layer is -1"),
        (["--num_units", "7"], "num_units is 7; a layer of TransformerIPC has 6 units"),
        (["--num_units", "0"], "num_units is 0; it must be at least 1"),
        (["--num_rows", "0"], "num_rows is 0"),
        (["--size", "1"], "size is 1; it must be at least 2"),
        (["--crops", "-1"], "crops is -1"),
        (["--steps", "-1"], "steps is -1"),
        (["--device", "warp"], "device is 'warp', which is not available"),
        (["--compare", "no.ckpt"], "no.ckpt"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(tmp_path, folder, checkpoints, capsys, arguments, message):
    command = ["--checkpoint", checkpoints[0], "--images", folder, "--output", tmp_path / "out", *arguments]
    assert message in _fails(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_invalid_arguments_are_refused(folder, checkpoints, capsys):
    assert "required: images" in _fails(capsys, "--checkpoint", checkpoints[0], status=2)
    assert "checkpoint" in _fails(capsys, "--images", folder, status=2)
    command = ["--checkpoint", checkpoints[0], "--images", folder]
    assert "num_units" in _fails(capsys, *command, "--num_units", "many", status=2)
    assert "--colour" in _fails(capsys, *command, "--colour", "red", status=2)


def test_unreadable_images_are_named(folder, checkpoints, capsys):
    (folder / "broken.jpg").write_text("hello")
    (folder / "empty").mkdir()
    given = ["--checkpoint", checkpoints[0], "--images"]
    message = _fails(capsys, *given, folder / "b.png", folder / "broken.jpg")
    assert f"{folder / 'broken.jpg'} is not an image" in message
    assert f"{folder / 'no.jpg'} does not exist" in _fails(capsys, *given, folder, folder / "no.jpg")
    assert f"There is no image in {folder / 'empty'}" in _fails(capsys, *given, folder / "empty")


def test_the_command_refuses_models_of_other_signals(tmp_path, folder, checkpoints, capsys):
    config = _config()
    config["init_args"]["encoder"]["init_args"]["signal_shape"] = [3, 8, 16]
    composers.save(composers.build(config), tmp_path / "wide.ckpt")
    message = _fails(capsys, "--checkpoint", checkpoints[0], "--compare", tmp_path / "wide.ckpt", "--images", folder)
    assert "TransformerIPC B cannot be analysed: This model takes signals of shape (3, 8, 16), not square" in message
    config = _config(coord_dim=1, value_dim=1)
    config["init_args"]["encoder"]["init_args"]["signal_shape"] = [1, 16]
    composers.save(composers.build(config), tmp_path / "audio.ckpt")
    message = _fails(capsys, "--checkpoint", tmp_path / "audio.ckpt", "--images", folder)
    assert "TransformerIPC has 1 values at coordinates of 1 dimensions; colour images have 3 values at 2" in message


def test_unwritable_outputs_are_named(tmp_path, folder, checkpoints, capsys):
    command = ["--checkpoint", checkpoints[0], "--images", folder, "--size", "4", "--num_units", "2", "--output"]
    (tmp_path / "file").write_text("precious")
    assert f"The folder {tmp_path / 'file'} cannot be created" in _fails(capsys, *command, tmp_path / "file")
    (tmp_path / "out" / "layers.csv").mkdir(parents=True)
    assert f"{tmp_path / 'out' / 'layers.csv'}: Is a directory" in _fails(capsys, *command, tmp_path / "out")
