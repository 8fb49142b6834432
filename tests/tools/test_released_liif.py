"""Released weights of LIIF: golden vectors of a naive implementation, unsupported models, and the command line.

``PYTHONPATH=.:tests python tests/tools/test_released_liif.py`` writes the golden vectors anew.
"""

import copy
import json
from pathlib import Path

import naive_liif
import numpy as np
import pytest
import torch
from PIL import Image
from program import REPOSITORY, column, run
from safetensors.numpy import load_file, save_file

import composers
from composers.construction import stated_domain
from datamodules.batch import Observation
from datamodules.domain import CellGrid
from tools.released import from_liif, liif
from tools.released.__main__ import main

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("liif_image", "liif_rdn_image")
SMALL_RDN = (2, 3, 4)  # blocks, layers and growth of configuration B in the golden vectors
MLP = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [16, 16, 16]}}
ENCODERS = {
    "liif_image": {"name": "edsr-baseline", "args": {"n_resblocks": 2, "n_feats": 8, "no_upsampling": True}},
    "liif_rdn_image": {"name": "rdn", "args": {"G0": 8, "no_upsampling": True}},
}
SIZE = (5, 7)


def _golden(name):
    """Return the model of a golden file as in a checkpoint, with its weights, and its vectors."""
    vectors = load_file(GOLDEN / f"{name}.safetensors")
    prefix = "state_dict."
    weights = {key.removeprefix(prefix): vectors.pop(key) for key in list(vectors) if key.startswith(prefix)}
    model = json.loads((GOLDEN / f"{name}.json").read_text())
    return model | {"sd": {key: torch.from_numpy(weight) for key, weight in weights.items()}}, weights, vectors


@pytest.fixture(autouse=True)
def _small_rdn(monkeypatch):
    """Make configuration B of RDN small."""
    monkeypatch.setitem(liif._RDN, "B", SMALL_RDN)


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    return (request.param, *_golden(request.param))


@pytest.fixture(scope="module")
def edsr():
    return _golden("liif_image")[0]


def _features(name, image, weights):
    """Return the naive feature map of an image in [0, 1]."""
    signal = 2 * image.astype(np.float64) - 1
    weights = {key: weight.astype(np.float64) for key, weight in weights.items()}
    return naive_liif.rdn(signal, weights, *SMALL_RDN[:2]) if "rdn" in name else naive_liif.edsr(signal, weights, 2)


def _naive(name, image, weights, coords, cells):
    """Return the naive values at coordinates."""
    exact = {key: weight.astype(np.float64) for key, weight in weights.items()}
    query = (part.astype(np.float64) for part in (coords, cells))
    return naive_liif.liif(_features(name, image, weights), exact, *query)


@torch.no_grad()
def _values(composer, vectors):
    """Return the values of a composer at the golden coordinates, shared by both images."""
    coords = torch.from_numpy(np.concatenate((vectors["coord"], vectors["cell"]), axis=-1))
    return composer(Observation(torch.from_numpy(vectors["input"])), coords)


# Golden vectors


def test_converted_models_give_the_golden_vectors(golden):
    _, model, _, vectors = golden
    composer = from_liif(model)
    assert not composer.training
    torch.testing.assert_close(_values(composer, vectors), torch.from_numpy(vectors["output"]), atol=1e-5, rtol=0)


def test_feature_maps_are_the_golden_ones(golden):
    _, model, _, vectors = golden
    with torch.no_grad():
        latents = from_liif(model).encode(Observation(torch.from_numpy(vectors["input"])))
    torch.testing.assert_close(latents["map"], torch.from_numpy(vectors["features"]), atol=1e-5, rtol=0)


def test_the_naive_implementation_gives_the_golden_vectors(golden):
    name, _, weights, vectors = golden
    features = _features(name, vectors["input"][0], weights)
    np.testing.assert_allclose(features, vectors["features"][0], atol=1e-6)
    values = _naive(name, vectors["input"][0], weights, vectors["coord"], vectors["cell"])
    np.testing.assert_allclose(values, vectors["output"][0], atol=1e-6)


def test_golden_values_are_not_trivial(golden):
    *_, vectors = golden
    assert vectors["output"].std(axis=1).min() > 0.05
    assert {tuple(cell) for cell in vectors["cell"][:, ::-1]} != {tuple(cell) for cell in vectors["cell"]}


# Released models


def _released(name="liif_image", **changes):
    """Return a golden model with changed options; ``__`` stands for a dot."""
    model = copy.deepcopy(_golden(name)[0])
    for option, value in changes.items():
        *sections, key = option.split("__")
        section = model["args"]
        for part in sections:
            section = section[part]
        section[key] = value
    return model


def test_weights_of_layers_that_are_never_called_are_dropped(edsr):
    shifts = {f"encoder.{name}.bias": torch.ones(3) for name in ("sub_mean", "add_mean")}
    composer = from_liif(edsr | {"sd": edsr["sd"] | shifts})
    assert composer.state_dict().keys() == from_liif(edsr).state_dict().keys()


def test_weights_of_data_parallel_training_are_renamed(edsr):
    wrapped = {f"module.{name}": weight for name, weight in edsr["sd"].items()}
    assert torch.equal(from_liif(edsr | {"sd": wrapped}).network.last.weight, from_liif(edsr).network.last.weight)


@pytest.mark.parametrize(
    ("option", "attribute"), [("local_ensemble", "ensemble"), ("cell_decode", "use_cell"), ("feat_unfold", "unfold")]
)
def test_ablations_are_read(edsr, option, attribute):
    model = _released(**{option: False})
    first = model["sd"]["imnet.layers.0.weight"]
    inputs = {"local_ensemble": first, "cell_decode": first[:, :-2], "feat_unfold": first[:, 64:]}[option]
    model["sd"]["imnet.layers.0.weight"] = inputs
    network = from_liif(model).network
    assert torch.equal(network.first.linear.weight, inputs)
    assert {"ensemble": network.ensemble, "use_cell": network.use_cell, "unfold": network.first.kernel_size == 3} == {
        "ensemble": True, "use_cell": True, "unfold": True
    } | {attribute: False}  # fmt: skip


def test_published_models_have_the_published_sizes(monkeypatch):
    published = {"EDSR": {"name": "edsr-baseline"}, "RDN": {"name": "rdn"}}
    monkeypatch.setitem(liif._RDN, "B", (16, 8, 64))
    for name, spec in published.items():
        spec["args"] = {"no_upsampling": True}
        mlp = {"name": "mlp", "args": {"out_dim": 3, "hidden_list": [256] * 4}}
        config = liif.composer_config({"encoder_spec": spec, "imnet_spec": mlp})
        with torch.device("meta"):
            composer = composers.build(config)
        sizes = [sum(part.numel() for part in module.parameters()) for module in (composer.start, composer.network)]
        assert sizes == [{"EDSR": 1_220_416, "RDN": 21_973_952}[name], 346_883]


def test_the_large_edsr_has_its_own_sizes():
    spec = {"name": "edsr", "args": {"no_upsampling": True, "scale": 2, "rgb_range": 1}}
    encoder = liif.composer_config({"encoder_spec": spec, "imnet_spec": MLP})["init_args"]["encoder"]["init_args"]
    assert (encoder["num_blocks"], encoder["width"], encoder["residual_scale"]) == (32, 256, 0.1)


def test_the_factor_of_residuals_is_read(edsr):
    _, weights, vectors = _golden("liif_image")
    model = _released(encoder_spec__args__res_scale=0.25)
    exact = {key: weight.astype(np.float64) for key, weight in weights.items()}
    expected = naive_liif.edsr(2 * vectors["input"][0].astype(np.float64) - 1, exact, 2, residual_scale=0.25)
    with torch.no_grad():
        features = from_liif(model).encode(Observation(torch.from_numpy(vectors["input"][:1])))["map"][0]
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-5)
    assert np.abs(expected - vectors["features"][0]).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_spec__name": "rcan"}, ["encoder_spec.name", "'rcan'", "'edsr-baseline'", "'rdn'"]),
        ({"encoder_spec__args__no_upsampling": False}, ["encoder_spec.args.no_upsampling", "False", "True"]),
        ({"encoder_spec__args": {"n_resblocks": 2}}, ["encoder_spec.args.no_upsampling", "True"]),
        ({"encoder_spec__args__n_feats": 0}, ["encoder_spec.args.n_feats", "0", "1 or more"]),
        ({"encoder_spec__args__attention": 1}, ["encoder_spec.args.attention", "unknown"]),
        ({"imnet_spec": None}, ["imnet_spec.name", "None", "'mlp'"]),
        ({"imnet_spec__args__out_dim": 1}, ["imnet_spec.args.out_dim", "1", "3"]),
        ({"imnet_spec__args__hidden_list": [16, 8]}, ["imnet_spec.args.hidden_list", "[16, 8]", "equal widths"]),
        ({"imnet_spec__args__hidden_list": []}, ["imnet_spec.args.hidden_list", "[]"]),
        ({"cell_decode": 1}, ["cell_decode", "1", "bool"]),
    ],
    ids=str,
)
def test_unsupported_options_raise_an_error(changes, words):
    with pytest.raises(ValueError, match=r"\w") as caught:
        from_liif(_released(**changes))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("option", "value"), [("RDNconfig", "C"), ("RDNkSize", 5)])
def test_unsupported_options_of_rdn_raise_an_error(option, value):
    model = _released("liif_rdn_image", **{f"encoder_spec__args__{option}": value})
    with pytest.raises(ValueError, match=rf"encoder_spec\.args\.{option} is {value!r}; supported"):
        from_liif(model)


def test_weights_that_do_not_fit_raise_an_error(edsr):
    weights = dict(edsr["sd"])
    del weights["encoder.body.2.bias"]
    weights |= {"imnet.layers.4.weight": torch.zeros(16, 8), "encoder.tail.0.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        from_liif(edsr | {"sd": weights})
    for line in (
        "encoder.body.2.bias: missing in the file, (8,) in the model",
        "imnet.layers.4.weight: (16, 8) in the file, (16, 16) in the model",
        "encoder.tail.0.bias: (3,) in the file, not in the model",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize("changes", [{"name": "lte"}, {"args": None}, {"sd": None}], ids=str)
def test_other_models_raise_an_error(edsr, changes):
    with pytest.raises(ValueError, match=r"The model of yinboc/liif is '(lte|liif)'; only 'liif' with args and sd"):
        from_liif(edsr | changes)


# The command line


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_are_converted(name, tmp_path, capsys):
    model, _, vectors = _golden(name)
    optimizer = {"name": "adam", "args": {"lr": 1e-4}, "sd": {"state": {}}}
    torch.save({"model": model, "optimizer": optimizer, "epoch": 1000}, tmp_path / "epoch-last.pth")
    main([str(tmp_path / "epoch-last.pth"), str(tmp_path / "liif.ckpt")])
    assert "LIIF" in capsys.readouterr().out
    composer = composers.load(tmp_path / "liif.ckpt")
    assert torch.equal(_values(composer, vectors), _values(from_liif(model), vectors))
    assert stated_domain(composer) == CellGrid.unit(2)
    facts = torch.load(tmp_path / "liif.ckpt", weights_only=True)["data"]
    assert (facts["signal_shape"], facts["scales"], facts["modality"]) == ([3, 48, 48], [1.0, 4.0], "images")


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, ["--views", 2], ["yinboc/liif", "leave --views out"]),
        ({}, ["--size", 48], ["yinboc/liif", "--size"]),
        ({"name": "metasr"}, [], ["'metasr'", "'liif' of yinboc/liif"]),
        ({"sd": {}}, [], ["do not fit the model", "imnet.layers.0.weight: missing in the file"]),
    ],
    ids=str,
)
def test_the_command_refuses_with_file_and_reason(edsr, tmp_path, changes, options, words):
    torch.save({"model": edsr | changes, "epoch": 1}, tmp_path / "epoch-last.pth")
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "epoch-last.pth"), str(tmp_path / "liif.ckpt"), *map(str, options)])
    for word in [str(tmp_path / "epoch-last.pth"), *words]:
        assert word in str(caught.value.code)
    assert not (tmp_path / "liif.ckpt").exists()


TESTED = f"""
_base_: [{REPOSITORY / "configs/composers/liif.yaml"}, {REPOSITORY / "configs/modalities/super_resolution.yaml"}]
data:
  class_path: datamodules.SuperResolution
  init_args:
    images: {{class_path: datamodules.SamplePhotos}}
    test_scales: [8.0]
model:
  init_args:
    network: {{init_args: {{feature_dim: 8, hidden_dim: 16, num_hidden: 3}}}}
    encoder: {{init_args: {{width: 8, num_blocks: 2}}}}
"""


def test_converted_checkpoints_are_read_by_the_program(edsr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": edsr, "epoch": 1000}, "epoch-last.pth")
    main(["epoch-last.pth", "liif.ckpt"])
    Image.fromarray(np.zeros((10, 15, 3), dtype=np.uint8)).save("black.png")
    run("predict", "--ckpt_path", "liif.ckpt", "--images", "black.png", "--scale", 3)
    with Image.open("predictions/black.png") as image:
        assert image.size == (45, 30)
    Path("tested.yaml").write_text(TESTED)
    run("test", "--config", "tested.yaml", "--ckpt_path", "liif.ckpt", "--trainer.callbacks", "[]")
    [psnr] = column("runs/unnamed/version_0/metrics.csv", "test/psnr")
    assert 0 < psnr < 20  # of random weights


# Writing the golden vectors


def _query(generator):
    """Return coordinates and sizes of queries: on the grids of four scales, at borders and corners, and anywhere.

    Positions at the centres of the last row and column are left out, where the released code blends arbitrarily.
    """
    coords, cells = [], []
    for factors in ((1, 1), (2, 2), (3, 3), (1.8, 4.0)):
        rows, columns = (round(size * factor) for size, factor in zip(SIZE, factors, strict=True))
        for index in generator.permutation(rows * columns)[:30]:
            coords.append((-1 + (2 * (index // columns) + 1) / rows, -1 + (2 * (index % columns) + 1) / columns))
            cells.append((2 / rows, 2 / columns))
    borders = [-1 + 2 * index / SIZE[0] for index in range(SIZE[0] + 1)]
    coords += [(row, column) for row in borders for column in (-1.0, -3 / 7, 0.1, 1.0)]
    coords += generator.uniform(-1, 1, (30, 2)).tolist()
    cells += generator.uniform(0.05, 0.5, (len(coords) - len(cells), 2)).tolist()
    last = [1 - 1 / size for size in SIZE]
    kept = [index for index, place in enumerate(coords) if np.abs(np.subtract(place, last)).min() > 1e-3]
    return (np.array(part, dtype=np.float32)[kept] for part in (coords, cells))


def _shapes(name):
    """Return the shapes of the weights of a golden model."""
    convolutions = {"head.0": (8, 3, 3), "body.0.body.0": (8, 8, 3), "body.0.body.2": (8, 8, 3)}
    convolutions |= {"body.1.body.0": (8, 8, 3), "body.1.body.2": (8, 8, 3), "body.2": (8, 8, 3)}
    if "rdn" in name:
        blocks, layers, growth = SMALL_RDN
        convolutions = {"SFENet1": (8, 3, 3), "SFENet2": (8, 8, 3), "GFF.0": (8, 8 * blocks, 1), "GFF.1": (8, 8, 3)}
        for block in range(blocks):
            convolutions[f"RDBs.{block}.LFF"] = (8, 8 + layers * growth, 1)
            for layer in range(layers):
                convolutions[f"RDBs.{block}.convs.{layer}.conv.0"] = (growth, 8 + layer * growth, 3)
    shapes = {f"encoder.{key}": (out, fan, side, side) for key, (out, fan, side) in convolutions.items()}
    widths = [8 * 9 + 4, 16, 16, 16, 3]
    return shapes | {f"imnet.layers.{2 * layer}": (widths[layer + 1], widths[layer]) for layer in range(4)}


def _write():
    """Write the golden vectors."""
    for seed, name in enumerate(NAMES):
        generator = np.random.default_rng(seed)
        weights = {}
        for key, shape in _shapes(name).items():
            weights[f"{key}.weight"] = generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
            weights[f"{key}.bias"] = generator.normal(0, 0.3, shape[0]).astype(np.float32)
        images = generator.uniform(0, 1, (2, 3, *SIZE)).astype(np.float32)
        coords, cells = _query(generator)
        vectors = {
            "input": images,
            "coord": coords,
            "cell": cells,
            "features": np.stack([_features(name, image, weights) for image in images]).astype(np.float32),
            "output": np.stack([_naive(name, image, weights, coords, cells) for image in images]).astype(np.float32),
        }
        save_file(
            vectors | {f"state_dict.{key}": weight for key, weight in weights.items()}, GOLDEN / f"{name}.safetensors"
        )
        model = {"name": "liif", "args": {"encoder_spec": ENCODERS[name], "imnet_spec": MLP}}
        (GOLDEN / f"{name}.json").write_text(json.dumps(model, indent=1) + "\n")


if __name__ == "__main__":
    _write()
