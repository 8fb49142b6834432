"""The look inside: activations, switched-off units and components against numpy, and the command from end to end."""

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
from composers.encoders import Patches
from composers.inference.refinement import Refinement
from composers.networks import FourierFeatures, IdentityEncoding, Sine
from datamodules.batch import Samples
from datamodules.storage.images import image_files
from modalities.images import square_codes, square_samples
from tools.activations import (
    StudySettings,
    Subject,
    activation_maps,
    hidden_layers,
    layers,
    principal_components,
    spreads,
    unit_costs,
)
from tools.activations.__main__ import main
from tools.activations.images import crops, fitted, read_all
from tools.activations.layers import Spread
from tools.activations.maps import Scale
from tools.activations.page import short

B, N = 3, 10

CONFIG = {
    "class_path": "composers.TransformerIPC",
    "init_args": {
        "inr": {
            "class_path": "composers.networks.CoordinateMLP",
            "init_args": {"coord_dim": 2, "value_dim": 3, "hidden_dim": 6, "num_layers": 4},
        },
        "tokenizer": {
            "class_path": "composers.encoders.Patches",
            "init_args": {"signal_shape": [3, 8, 8], "patch_size": 4},
        },
        "transformer": {
            "class_path": "composers.encoders.Transformer",
            "init_args": {"embed_dim": 12, "num_blocks": 1, "num_heads": 3},
        },
    },
}


def _config(kind="TransformerIPC", **inr):
    """Return the config of a tiny composer; keywords replace arguments of its network."""
    config = copy.deepcopy(CONFIG)
    config["class_path"] = f"composers.{kind}"
    config["init_args"]["inr"]["init_args"] |= inr
    if kind == "TransINR":
        config["init_args"] |= {"num_groups": 3}
        config["init_args"]["inr"]["init_args"]["modulated_layers"] = "all"
    return config


def _naive_layers(inr, coords, modulations, off=None):
    """Return what every layer makes of coordinates ``(N, D)`` as ``(B, N, O)``, by numpy; ``off`` is a (layer, unit)."""
    found = [[] for _ in inr.layer_sizes]
    for instance in range(B):
        hidden = coords.double().numpy()
        if isinstance(inr.encoding, FourierFeatures):
            phases = np.concatenate([hidden[:, [axis]] * np.array([1.0, 4.0]) * math.pi for axis in range(2)], axis=1)
            hidden = np.concatenate([np.cos(phases), np.sin(phases)], axis=1)
        for layer in range(len(inr.layer_sizes)):
            weight = modulations[layer][0][instance] if layer in modulations else inr.weights[str(layer)]
            weight = weight.detach().double().numpy()
            hidden = hidden @ (weight / np.linalg.norm(weight, axis=0)) + inr.biases[str(layer)].detach().numpy()
            if layer == len(inr.layer_sizes) - 1:
                hidden = hidden + inr.output_offset
            elif isinstance(inr.activation, Sine):
                hidden = np.sin(inr.activation.omega * hidden)
            else:
                hidden = np.maximum(hidden, 0)
            if off is not None and off[0] == layer:
                hidden = np.array([[0.0 if unit == off[1] else h for unit, h in enumerate(row)] for row in hidden])
            found[layer].append(hidden)
    return [torch.from_numpy(np.stack(each)) for each in found]


@pytest.fixture(params=["relu", "sine", "all", "two"])
def network(request, make_inr, make_modulations):
    """Return a network, coordinates and modulations."""
    changes = {
        "relu": {},
        "sine": {"activation": Sine(3.0), "encoding": IdentityEncoding()},
        "all": {"modulated_layers": "all"},
        "two": {"modulated_layers": (0, 2)},
    }
    inr = make_inr(**changes[request.param])
    return inr, torch.rand(N, 2) * 2 - 1, make_modulations(inr, B)


# Numbers


def test_activations_equal_numpy(network):
    inr, coords, modulations = network
    found, wanted = hidden_layers(inr, coords, modulations), _naive_layers(inr, coords, modulations)
    assert len(found) == len(wanted) - 1 == 3
    for layer, (one, other) in enumerate(zip(found, wanted[:-1], strict=True)):
        assert one.dim() == (2 if layer < inr.modulated_layers[0] else 3)
        torch.testing.assert_close(one.double().expand(B, -1, -1), other, atol=2e-5, rtol=0)


def test_layers_one_by_one_make_the_values(network):
    inr, coords, modulations = network
    for places in (coords, coords.expand(B, -1, -1)):
        hidden = inr.encoding(places)
        for layer in range(inr.num_layers):
            hidden = inr.apply_layer(layer, hidden, modulations)
        assert torch.equal(hidden, inr(places, modulations))


@pytest.mark.parametrize("limit", [1, 100, 2**22])
def test_maps_are_the_units_asked_for_in_any_chunks(network, monkeypatch, limit):
    monkeypatch.setattr(layers, "_NUMBERS_AT_ONCE", limit)
    inr, coords, modulations = network
    wanted = _naive_layers(inr, coords, modulations)
    maps = activation_maps(inr, coords, modulations, {2: [5, 0], 0: [3]})
    assert set(maps) == {0, 2}
    torch.testing.assert_close(maps[2].double(), wanted[2][..., [5, 0]], atol=2e-5, rtol=0)
    torch.testing.assert_close(maps[0].double(), wanted[0][..., [3]], atol=2e-5, rtol=0)


@pytest.mark.parametrize("limit", [1, 100, 2**22])
def test_spreads_equal_numpy_in_any_chunks(network, monkeypatch, limit):
    monkeypatch.setattr(layers, "_NUMBERS_AT_ONCE", limit)
    inr, coords, modulations = network
    wanted = _naive_layers(inr, coords, modulations)[:-1]
    for found, each in zip(spreads(inr, coords, modulations), wanted, strict=True):
        between = each.numpy().var(axis=0).mean(axis=0)
        total = each.numpy().reshape(-1, each.shape[-1]).var(axis=0)
        np.testing.assert_allclose(found.between, between, atol=1e-5)
        np.testing.assert_allclose(found.total, total, atol=1e-5)
        assert found.share == pytest.approx(between.sum() / total.sum(), abs=1e-5)


def test_the_share_is_zero_before_the_modulated_layer_and_not_after(make_inr, make_modulations):
    inr = make_inr(num_layers=5, modulated_layers=(2,))
    shares = [spread.share for spread in spreads(inr, torch.rand(50, 2), make_modulations(inr, B))]
    assert shares[:2] == [0.0, 0.0]
    assert min(shares[2:]) > 0.05
    everywhere = make_inr(modulated_layers="all")
    found = spreads(everywhere, torch.rand(50, 2), make_modulations(everywhere, B))
    assert min(spread.share for spread in found) > 0.05


def test_the_share_of_known_variances():
    assert Spread(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 2.0])).share == 0.5
    assert Spread(torch.zeros(2), torch.zeros(2)).share == 0.0


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_switching_off_equals_setting_the_column_by_hand(network, layer):
    inr, coords, modulations = network
    values = torch.rand(B, N, 3)
    whole, lost = unit_costs(inr, layer, Samples(coords, values), modulations)

    def psnr(off):
        errors = (_naive_layers(inr, coords, modulations, off)[-1] - values.double()) ** 2
        return torch.stack([-10 * torch.log10(error.mean()) for error in errors])

    wanted = torch.stack([psnr(None) - psnr((layer, unit)) for unit in range(inr.layer_sizes[layer][1])], dim=1)
    torch.testing.assert_close(whole.double(), psnr(None), atol=1e-3, rtol=0)
    torch.testing.assert_close(lost.double(), wanted, atol=2e-3, rtol=0)
    assert lost.abs().max() > 0.1


@pytest.mark.parametrize("shape", [(6, 40), (9, 4), (3, 2)])
def test_components_equal_the_covariance_of_numpy(shape):
    codes = torch.randn(shape)
    found = principal_components(codes)
    centred = codes.double().numpy() - codes.double().numpy().mean(axis=0)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    number = min(shape[0] - 1, shape[1])
    variances, axes = variances[::-1][:number], axes[:, ::-1][:, :number]
    np.testing.assert_allclose(found.shares, variances / np.square(centred).sum(), atol=1e-9)
    np.testing.assert_allclose(found.scores.abs(), np.abs(centred @ axes), atol=1e-6)
    assert found.scores.shape == (shape[0], number)
    for column in found.scores.T:
        assert column[column.abs().argmax()] > 0
    assert found.shares.sum().item() == pytest.approx(1)


def test_codes_that_are_all_alike_have_no_components():
    found = principal_components(torch.ones(4, 5))
    assert not found.scores.any()
    assert not found.shares.any()


# Images


def test_the_square_is_the_largest_centred_one():
    image = torch.zeros(3, 10, 40, dtype=torch.uint8)
    image[:, :, 15:25] = 200
    assert torch.equal(fitted(image, 10), torch.full((3, 10, 10), 200, dtype=torch.uint8))
    assert torch.equal(fitted(image.mT, 5), torch.full((3, 5, 5), 200, dtype=torch.uint8))


def test_crops_are_spread_from_corner_to_corner():
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    cut = crops(image, 8, 4)
    places = [(0, 0), (0, 8), (8, 0), (8, 8)]
    for crop, (top, left) in zip(cut, places, strict=True):
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
    """Return a folder with three images, one of them in a folder of its own, and with what is none."""
    for index, name in enumerate(("b.png", "a$^.png", "inner/c.PNG")):
        _save(tmp_path / "photos" / name, seed=index)
    for name in (".hidden.png", ".git/d.png"):
        _save(tmp_path / "photos" / name)
    _save(tmp_path / "photos" / "earlier" / "e.png")
    (tmp_path / "photos" / "earlier" / "predictions.csv").touch()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "folder.png").mkdir()
    return tmp_path / "photos"


def test_a_folder_is_searched_and_what_cannot_be_read_is_told(folder):
    found, skipped = read_all([str(folder)])
    assert list(found) == ["a$^.png", "b.png", "c.PNG"]
    assert skipped == []
    assert found["b.png"].shape == (3, 14, 20)
    (folder / "broken.jpg").write_text("hello")
    found, skipped = read_all([str(folder)])
    assert len(found) == 3
    assert len(skipped) == 1
    assert skipped[0].startswith(f"Skipped: {folder / 'broken.jpg'} is not an image")


def test_names_are_unique(folder):
    other = _save(folder / "inner" / "b.png", seed=7)
    found, _ = read_all([str(folder / "b.png"), str(other), str(folder / "b.png"), str(folder / "inner" / "c.PNG")])
    assert list(found) == [str(folder / "b.png"), str(other), "c.PNG"]


def test_files_of_a_folder_have_places_and_a_file_needs_no_ending(folder):
    (folder / "f.heic").touch()  # of a kind that is refused with the reason
    places = ["a$^.png", "b.png", "f.heic", "inner/c.PNG"]
    assert image_files(folder) == [(folder / place, Path(place)) for place in places]
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
    return make_ipc(tokenizer=Patches((3, 8, 8), patch_size=4)).eval()


def _subject(composer, layer=1, **settings):
    return Subject("ours", composer, IMAGES, layer, StudySettings(**{"num_units": 2, "size": 8} | settings))


def test_sizes_that_a_tokenizer_leaves_open_are_those_of_a_square(make_ipc, square_ipc, tiny_ipc):
    assert _subject(square_ipc).size == 8
    opened = Patches((3, -1, -1), patch_size=5, padding=1, num_tokens=16)
    assert _subject(make_ipc(tokenizer=opened)).size == 18
    for other in (tiny_ipc, make_ipc(tokenizer=Patches((3, -1, -1), patch_size=5, num_tokens=12))):
        with pytest.raises(ValueError, match="not square colour images"):
            _subject(other)


@pytest.mark.parametrize(("coord_dim", "value_dim", "shape"), [(1, 1, (1, 24)), (2, 1, (1, 8, 8)), (3, 4, (3, 8, 8))])
def test_models_of_other_signals_are_refused(make_ipc, make_inr, coord_dim, value_dim, shape):
    inr = make_inr(coord_dim=coord_dim, value_dim=value_dim)
    with pytest.raises(ValueError, match=f"ours makes {value_dim} values at {coord_dim} coordinates, not images"):
        _subject(make_ipc(inr=inr, tokenizer=Patches(shape, patch_size=4)))


def test_refined_codes_render_better_and_crops_are_refined_too(square_ipc):
    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)  # more than are encoded at once
    seen, errors = square_samples(torch.stack(list(pixels))), []
    for steps in (0, 5):
        values = square_ipc.render(
            square_ipc.compose(
                square_codes(square_ipc, torch.stack(list(pixels)), Refinement(steps, square_ipc.refinement.optimizer))
            ),
            seen.coords,
        )
        errors.append((values - seen.values).square().mean((1, 2)))
    assert (errors[1] < errors[0]).all()
    plain, refined = (_subject(square_ipc, steps=steps, crops=2).components() for steps in (0, 5))
    assert plain.scores.shape == refined.scores.shape == (12, 11)
    assert not torch.allclose(plain.scores, refined.scores)


def test_units_shown_vary_most_and_are_the_costliest(square_ipc):
    subject = _subject(square_ipc, num_units=3, num_rows=2)
    shown = subject.layers()
    assert [layer.layer for layer in shown] == [0, 1, 2]
    assert [layer.modulated for layer in shown] == [False, True, False]
    for layer in shown:
        total = subject.spreads[layer.layer].total
        assert layer.units == sorted(range(8), key=lambda unit: -total[unit])[:3]
        assert layer.share == subject.spreads[layer.layer].share
        assert layer.maps.shape == (2, 3, 8, 8)
    assert torch.equal(shown[0].maps[0], shown[0].maps[1])
    assert not torch.equal(shown[1].maps[0], shown[1].maps[1])
    units, seen = subject.units(), square_samples(torch.stack(list(subject.images.values())))
    mean = units.costs.mean(0)
    assert (mean[:-1] >= mean[1:]).all()
    _, lost = unit_costs(subject.network, 1, seen, subject.modulations)
    torch.testing.assert_close(units.costs, lost[:, units.order])
    place = hidden_layers(subject.network, seen.coords, subject.modulations)[1]  # maps have this grid
    torch.testing.assert_close(units.maps.flatten(2).mT, place[:2][..., units.order[:3]])


def test_colours_are_of_the_unit_and_signed_where_activations_are():
    maps = torch.zeros(2, 2, 10, 10)
    maps[0, 0], maps[1, 0], maps[:, 1, 0] = 4.0, 2.0, 0.5
    scale = Scale(maps)
    assert not scale.signed
    assert scale.maps[0, 0, 0, 0] == 1
    assert scale.maps[1, 0, 0, 0] == 0.5
    assert scale.maps[1, 1].max() == 1
    assert Scale(-maps).signed
    assert not Scale(torch.zeros(1, 1, 2, 2)).maps.any()


def test_names_are_shortened_to_the_room():
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
def test_two_models_from_end_to_end(tmp_path, folder, checkpoints, capsys):
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
    subject = Subject("ipc", composers.load(ipc), read_all([str(folder)])[0], 1, StudySettings(num_units=2))
    seen = square_samples(torch.stack(list(subject.images.values())))
    _, lost = unit_costs(subject.network, 1, seen, subject.modulations)
    for row in rows[:6]:
        own = lost[:, int(row["unit"])].numpy()
        wanted = [own.mean(), *np.quantile(own, [0.25, 0.75])]
        assert [float(number) for number in list(row.values())[3:]] == pytest.approx(wanted, abs=1e-5)

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
    assert f"the costliest unit of layer 1 is {rows[0]['unit']}" in printed.out
    assert all(str(output / name) in printed.out for name in names)
    assert printed.err == ""


def test_a_single_image_and_a_chosen_layer(tmp_path, folder, checkpoints, capsys):
    output = tmp_path / "out"
    few = ["--num_units", "5", "--size", "4", "--layer", "2", "--steps", "2"]
    main(["--checkpoint", checkpoints[0], "--images", str(folder / "b.png"), "--output", str(output), *few])
    names = ["activations.png", "layers.csv", "units.csv", "units.png"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert {row["share_between_images"] for row in _rows(output / "layers.csv")} == {""}
    assert {row["layer"] for row in _rows(output / "units.csv")} == {"2"}
    printed = capsys.readouterr().out
    assert "No share of variance between images: there is one image." in printed
    assert "No figure of codes: it needs at least 3 images, here are 1." in printed


def test_many_images_and_signed_activations(tmp_path, capsys):
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


def test_the_module_is_a_program(monkeypatch, capsys):
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
    """Run the command, which must fail with one message, and return it."""
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
    ("arguments", "words"),
    [
        (["--layer", "3"], "layer is 3; the hidden layers of TransformerIPC are 0 to 2"),
        (["--layer", "-1"], "layer is -1"),
        (["--num_units", "7"], "num_units is 7; a layer of TransformerIPC has 6 units"),
        (["--num_units", "0"], "num_units is 0; it must be at least 1"),
        (["--num_rows", "0"], "num_rows is 0"),
        (["--size", "1"], "size is 1; it must be at least 2"),
        (["--crops", "-1"], "crops is -1"),
        (["--steps", "-1"], "steps is -1"),
        (["--device", "warp"], "device is 'warp', which this machine does not have"),
        (["--compare", "no.ckpt"], "There is no checkpoint no.ckpt"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(tmp_path, folder, checkpoints, capsys, arguments, words):
    given = ["--checkpoint", checkpoints[0], "--images", folder, "--output", tmp_path / "out", *arguments]
    assert words in _fails(capsys, *given)
    assert not (tmp_path / "out").exists()


def test_mistakes_in_the_arguments(folder, checkpoints, capsys):
    assert "required: images" in _fails(capsys, "--checkpoint", checkpoints[0], status=2)
    assert "checkpoint" in _fails(capsys, "--images", folder, status=2)
    given = ["--checkpoint", checkpoints[0], "--images", folder]
    assert "num_units" in _fails(capsys, *given, "--num_units", "many", status=2)
    assert "--colour" in _fails(capsys, *given, "--colour", "red", status=2)


def test_images_that_cannot_be_read_are_named(folder, checkpoints, capsys):
    (folder / "broken.jpg").write_text("hello")
    (folder / "empty").mkdir()
    given = ["--checkpoint", checkpoints[0], "--images"]
    message = _fails(capsys, *given, folder / "b.png", folder / "broken.jpg")
    assert f"{folder / 'broken.jpg'} is not an image" in message
    assert f"{folder / 'no.jpg'} does not exist" in _fails(capsys, *given, folder, folder / "no.jpg")
    assert f"There is no image in {folder / 'empty'}" in _fails(capsys, *given, folder / "empty")


def test_models_of_other_signals_are_named(tmp_path, folder, checkpoints, capsys):
    config = _config()
    config["init_args"]["tokenizer"]["init_args"]["signal_shape"] = [3, 8, 16]
    composers.save(composers.build(config), tmp_path / "wide.ckpt")
    message = _fails(capsys, "--checkpoint", checkpoints[0], "--compare", tmp_path / "wide.ckpt", "--images", folder)
    assert "TransformerIPC B cannot be looked at: This model takes signals of shape (3, 8, 16), not square" in message
    config = _config(coord_dim=1, value_dim=1)
    config["init_args"]["tokenizer"]["init_args"]["signal_shape"] = [1, 16]
    composers.save(composers.build(config), tmp_path / "audio.ckpt")
    message = _fails(capsys, "--checkpoint", tmp_path / "audio.ckpt", "--images", folder)
    assert "TransformerIPC makes 1 values at 1 coordinates, not images in colour" in message


def test_an_output_that_cannot_be_written_is_named(tmp_path, folder, checkpoints, capsys):
    given = ["--checkpoint", checkpoints[0], "--images", folder, "--size", "4", "--num_units", "2", "--output"]
    (tmp_path / "file").write_text("precious")
    assert f"The folder {tmp_path / 'file'} cannot be made" in _fails(capsys, *given, tmp_path / "file")
    (tmp_path / "out" / "layers.csv").mkdir(parents=True)
    assert f"{tmp_path / 'out' / 'layers.csv'}: Is a directory" in _fails(capsys, *given, tmp_path / "out")
