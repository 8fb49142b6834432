"""Exported programs: equal to the composer for any sizes and coordinates, and independent of this software."""

import contextlib
import errno
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from coordinates import grid
from program import REPOSITORY, TESTS
from torch.nn import functional

import composers
import composers.networks
from composers import LIIF, Composer, Functa, LearnedInit, MetaIPC, TransformerIPC
from composers.construction import state_data, stated_domain
from composers.encoders import EDSR, Patches, PerToken, Transformer, ViewPatches, WeightTokens
from composers.inference import GradientSteps, Hypernetwork, LearnedCode, LearnedStart
from composers.latents import Direct, Layout, LowRank
from composers.networks import (
    Activation,
    CoordinateNetwork,
    CosineFeatures,
    Encoding,
    IdentityEncoding,
    LocalMLP,
    Sine,
    TensorSpec,
)
from composers.rendering import LightFieldRenderer, PointRenderer, Rendered, Renderer, VolumeRenderer
from datamodules.batch import Observation
from datamodules.configuration import load_layers
from datamodules.domain import CellGrid, Domain, Grid, Volume
from datamodules.spec import DataSpec, Modality
from tools.export import __main__, export, export_decoder, export_encoder, files
from tools.export.__main__ import main
from tools.export.modules import DecoderModule, random_coords

SIGNAL_SHAPE, SQUARE = (3, 8, 12), (3, 16, 16)
SIZES = [(1, 1), (1, 6), (2, 1), (4, 9)]
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
CLOSE_ONNX = {"rtol": 1e-6, "atol": 4e-6}
PROGRAMS = ("encoder", "decoder")
ALL_FILES = ["decoder.onnx", "decoder.pt2", "encoder.onnx", "encoder.pt2", "export.json"]


def _reload(program, path):
    """Write a program and read it again."""
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _read(folder):
    """Return the two programs in a folder."""
    return {name: torch.export.load(folder / f"{name}.pt2").module() for name in PROGRAMS}


def _expected(composer, signal, coords):
    """Return the latents and values of a composer."""
    observation = Observation(signal)
    with torch.no_grad():
        latents = composer.encode(observation)
        return latents, composer.render(composer.compose(latents, composer.layout(observation)), coords)


def _inputs(batch_size, num_coords, shape=SIGNAL_SHAPE):
    """Return random signals, and random coordinates of which some are outside [-1, 1]."""
    return torch.rand(batch_size, *shape), 3 * torch.rand(num_coords, len(shape) - 1) - 1.5


def _assert_equal(programs, composer, shape=SIGNAL_SHAPE):
    """Compare two programs with a composer."""
    for sizes in SIZES:
        signal, coords = _inputs(*sizes, shape)
        latents, values = _expected(composer, signal, coords)
        with torch.no_grad():
            actual = programs["encoder"](signal)
            assert list(actual) == list(latents)
            for name, latent in latents.items():
                torch.testing.assert_close(actual[name], latent, **CLOSE)
            torch.testing.assert_close(programs["decoder"](latents, coords), values, **CLOSE)


def _session(path):
    """Return an ONNX file as a function of tensors by name."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(None, {k: v.numpy() for k, v in feed.items()}), strict=True))


def _assert_equal_in_onnx(folder, composer, shape=SIGNAL_SHAPE):
    """Compare the ONNX files in a folder with a composer."""
    encoder, decoder = (_session(Path(folder, f"{name}.onnx")) for name in PROGRAMS)
    for sizes in SIZES:
        signal, coords = _inputs(*sizes, shape)
        latents, values = _expected(composer, signal, coords)
        actual = encoder({"signal": signal})
        assert list(actual) == list(latents)
        for name, latent in latents.items():
            torch.testing.assert_close(torch.from_numpy(actual[name]), latent, **CLOSE_ONNX)
        actual = decoder(latents | {"coords": coords})
        torch.testing.assert_close(torch.from_numpy(actual["values"]), values, **CLOSE_ONNX)


def _checkpoint(path):
    """Write the checkpoint of a tiny, untrained TransINR for images of 16 x 16, and return its composer."""
    config_path = TESTS / "configs" / "tiny_transinr.yaml"
    with contextlib.chdir(config_path.parent):
        config = load_layers(config_path.read_text())["model"]
    config["init_args"]["network"]["init_args"] |= {"coord_dim": 2, "value_dim": 3}
    config["init_args"]["encoder"]["init_args"] |= {"signal_shape": [3, 16, 16]}
    composer = composers.build(config).eval()
    composers.save(composer, path)
    return composer


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a tiny TransINR, its export with ONNX by the command, the printed lines, and the traced programs."""
    torch.manual_seed(0)
    folder, programs, trace = tmp_path_factory.mktemp("written"), {}, files.trace
    composer = _checkpoint(folder / "tiny.ckpt")
    with mock.patch.object(files, "trace", lambda module: programs.setdefault(module.name, trace(module))):
        printed = _run("--onnx", "true", folder / "tiny.ckpt", folder / "deep" / "out")
    return SimpleNamespace(composer=composer, folder=folder / "deep" / "out", printed=printed, programs=programs)


@pytest.fixture(scope="module")
def trained(make_ipc, tmp_path_factory):
    """Return a tiny IPC that was exported in training mode, its modes before and after, and its programs."""
    torch.manual_seed(0)
    transformer = Transformer(embed_dim=12, num_blocks=2, num_heads=3, mlp_ratio=2, residual_dropout=0.5)
    composer = make_ipc(transformer=transformer, renderer=PointRenderer(chunk_size=4)).train()
    composer.network.eval()
    before = [module.training for module in composer.modules()]
    programs = {"encoder": export_encoder(composer), "decoder": export_decoder(composer)}
    after = [module.training for module in composer.modules()]
    folder = tmp_path_factory.mktemp("trained")
    programs = {name: _reload(program, folder / f"{name}.pt2") for name, program in programs.items()}
    return SimpleNamespace(composer=composer.eval(), modes=(before, after), programs=programs)


@pytest.fixture(scope="module", params=["ipc", pytest.param("transinr", marks=pytest.mark.slow)])
def exported(request):
    """Return a composer, the shape of its signals and its programs, written and read again."""
    if request.param == "ipc":
        trained = request.getfixturevalue("trained")
        return trained.composer, SIGNAL_SHAPE, trained.programs
    written = request.getfixturevalue("written")
    return written.composer, SQUARE, _read(written.folder)


@pytest.fixture
def reused_traces(written, monkeypatch):
    """Reuse the traced programs of `written` in exports of the same checkpoint."""
    monkeypatch.setattr(files, "trace", lambda module: written.programs[module.name])


# Programs of torch.export


def test_programs_equal_the_composer_for_any_sizes_and_coordinates(exported):
    composer, shape, programs = exported
    _assert_equal(programs, composer, shape)


def test_decoder_equals_a_naive_network(exported, naive_network):
    composer, shape, programs = exported
    signal, coords = _inputs(3, 7, shape)
    latents, _ = _expected(composer, signal, coords)
    expected = naive_network(composer.network, coords, composer.compose(latents), 3)
    torch.testing.assert_close(programs["decoder"](latents, coords).double(), expected, atol=1e-5, rtol=0)


def test_each_program_holds_only_the_weights_it_reads(exported):
    composer, _, programs = exported
    encoder, decoder = (set(programs[name].state_dict()) for name in PROGRAMS)
    assert encoder == {f"composer.start.{name}" for name, _ in composer.start.named_parameters()}
    assert not encoder & decoder
    assert encoder | decoder == {f"composer.{name}" for name in composer.state_dict()}


def test_decoder_is_differentiable_with_respect_to_the_latents(exported):
    composer, shape, programs = exported
    signal, coords = _inputs(2, 5, shape)
    latents = {name: latent.requires_grad_() for name, latent in _expected(composer, signal, coords)[0].items()}
    actual = torch.autograd.grad(programs["decoder"](latents, coords).square().sum(), list(latents.values()))
    rendered = composer.render(composer.compose(latents), coords)
    expected = torch.autograd.grad(rendered.square().sum(), list(latents.values()))
    torch.testing.assert_close(actual, expected)
    assert all(gradient.abs().max() > 0 for gradient in expected)


def test_export_restores_the_modes_of_all_modules(trained):
    before, after = trained.modes
    assert before == after
    assert {True, False} <= set(before)


def test_programs_refuse_signals_of_other_sizes(exported):
    _, shape, programs = exported
    with pytest.raises(AssertionError, match="Guard failed"):
        programs["encoder"](torch.rand(2, *shape[:-1], shape[-1] + 4))


def test_bare_coordinates_and_a_base_weight(make_ipc, make_network, tmp_path):
    network = make_network(activation=Sine(), encoding=IdentityEncoding(), normalize_weights=False)
    composer = make_ipc(network=network, factorized=False, base_weight=True).eval()
    decoder = _reload(export_decoder(composer), tmp_path / "decoder.pt2")
    for sizes in SIZES:
        signal, coords = _inputs(*sizes)
        latents, _ = _expected(composer, signal, coords)
        latents = {name: torch.randn_like(latent) for name, latent in latents.items()}
        expected = composer.render(composer.compose(latents), coords)
        torch.testing.assert_close(decoder(latents, coords), expected, **CLOSE)


# Composers without an encoder program


def _meta_ipc(make_network, **changes):
    return MetaIPC(make_network(), GradientSteps(2), **changes)


def _learned_init(make_network):
    return LearnedInit(make_network(modulated_layers="all", modulates="both"), GradientSteps(2))


def _functa(make_network):
    return Functa(make_network(modulated_layers="hidden", modulates="shifts"), GradientSteps(2), latent_dim=5)


def _auto_decoder(make_network):
    return Composer(make_network(), LowRank(), LearnedCode(4))


def _refined_prediction(make_network):
    start = Hypernetwork(Patches(SIGNAL_SHAPE, 4), WeightTokens(Transformer(12, 1, 3, 2)))
    return Composer(make_network(), LowRank(), start, GradientSteps(1))


@pytest.mark.parametrize(
    ("create", "reason"),
    [
        (_meta_ipc, "MetaIPC finds latents by gradient steps, which torch.export cannot trace"),
        (_auto_decoder, "the start of Composer, LearnedCode, reads no signal"),
        pytest.param(_learned_init, "LearnedInit finds latents by gradient steps", marks=pytest.mark.slow),
        pytest.param(_functa, "Functa finds latents by gradient steps", marks=pytest.mark.slow),
        pytest.param(_refined_prediction, "Composer finds latents by gradient steps", marks=pytest.mark.slow),
    ],
)
def test_composers_that_do_not_predict_from_a_signal_have_a_decoder_only(make_network, tmp_path, create, reason):
    composer = create(make_network).eval()
    with pytest.raises(
        ValueError, match=rf"^There is no encoder to export: {reason}.* codes that cli\.py predict writes"
    ):
        export_encoder(composer)
    assert list(export(composer, tmp_path / "out")) == ["decoder.pt2"]
    description = json.loads((tmp_path / "out" / "export.json").read_text())
    assert description["encoder"] is None
    assert description["missing_encoder"].startswith(reason)
    decoder = torch.export.load(tmp_path / "out" / "decoder.pt2").module()
    for batch_size, num_coords in SIZES:
        latents = {
            name: torch.randn(batch_size, *spec.shape) for name, spec in composer.parametrization.latents.items()
        }
        coords = 3 * torch.rand(num_coords, 2) - 1.5
        expected = composer.render(composer.compose(latents), coords)
        torch.testing.assert_close(decoder(latents, coords), expected, **CLOSE)


def test_the_command_prints_why_there_is_no_encoder(tmp_path):
    network = {"coord_dim": 2, "value_dim": 3, "hidden_dim": 4, "num_layers": 3}
    parts = {
        "network": ("composers.networks.CoordinateMLP", network),
        "parametrization": ("composers.latents.LowRank", {}),
        "start": ("composers.inference.LearnedCode", {"num_instances": 2}),
    }
    arguments = {name: {"class_path": path, "init_args": init_args} for name, (path, init_args) in parts.items()}
    composer = composers.build({"class_path": "composers.Composer", "init_args": arguments})
    composers.save(composer, tmp_path / "tiny.ckpt")
    assert "No encoder: the start of Composer, LearnedCode, reads no signal. Take" in "\n".join(
        _run(tmp_path / "tiny.ckpt", tmp_path / "out")
    )


# Latents with a layout


class FeatureMap(CoordinateNetwork):
    """Interpolate a feature map at the coordinates and map the features to values by one Linear."""

    def __init__(self, features=4):
        super().__init__()
        self.coord_dim, self.value_dim = 2, 3
        self.slots = {"map": TensorSpec((features, -1, -1), lambda: torch.zeros(features, 1, 1))}
        self.linear = torch.nn.Linear(features + 2, 3)

    @property
    def floats_per_coord(self):
        return 16

    def forward(self, coords, modulations):
        batch_size = len(modulations["map"])
        places = coords.flip(-1).expand(batch_size, 1, -1, 2)
        features = functional.grid_sample(modulations["map"], places, padding_mode="border", align_corners=False)
        return self.linear(torch.cat([features.squeeze(2).mT, coords.expand(batch_size, -1, 2)], -1))


@pytest.fixture
def super_resolver():
    """Return a tiny composer of feature maps for images of any size with six patches of 4 x 4."""
    start = Hypernetwork(Patches((3, -1, -1), 4, num_tokens=6), PerToken())
    return Composer(FeatureMap(), Direct(), start).eval()


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_feature_maps_have_the_layout_of_the_stated_shape(super_resolver, tmp_path, shape):
    export(super_resolver, tmp_path, shape=shape)
    _assert_equal(_read(tmp_path), super_resolver, (3, *shape))
    description = json.loads((tmp_path / "export.json").read_text())
    layout = Layout.from_config(description["layout"])
    assert layout == super_resolver.layout(Observation(torch.rand(1, 3, *shape)))
    assert description["decoder"]["inputs"]["map"] == ["B", 4, *layout.grid]


@pytest.mark.slow
def test_feature_maps_are_exported_as_onnx(super_resolver, tmp_path):
    export(super_resolver, tmp_path, onnx=True, shape=(8, 12))
    _assert_equal_in_onnx(tmp_path, super_resolver)


def test_a_layout_that_is_unknown_is_refused(super_resolver):
    with pytest.raises(ValueError, match=r"shape is None; .* sizes \[-1, -1\]"):
        export_decoder(super_resolver)
    unknown = Composer(FeatureMap(), Direct(), LearnedStart())
    with pytest.raises(ValueError, match="take the sizes of their -1 axes from the signal, whose grid is None"):
        export_decoder(unknown, shape=[8, 12])


LTE = {"features": "fourier", "clip_cells": True, "max_scale": 4.0}


@pytest.mark.parametrize(
    "features", [{"skip": "bilinear"}, pytest.param(LTE | {"skip": "bilinear"}, marks=pytest.mark.slow)], ids=str
)
def test_local_networks_are_exported_for_maps_of_a_size(tmp_path, features):
    composer = LIIF(LocalMLP(4, 3, 6, 8, 2, **features), EDSR((3, -1, -1), width=6, num_blocks=1)).eval()
    torch.nn.init.normal_(composer.network.last.weight)  # zero before training
    state_data(composer, DataSpec(CellGrid.unit(2), 3, (3, 4, 4), Modality()))
    differences = export(composer, tmp_path, onnx="features" in features, shape=(5, 7))
    assert max(differences.values()) < 1e-5
    programs = _read(tmp_path)
    for batch_size, num_coords in SIZES:
        signal, coords = torch.rand(batch_size, 3, 5, 7), torch.rand(num_coords, 4) - 0.5
        latents, values = _expected(composer, signal, coords)
        assert list(latents) == ["map", "image"]
        actual = programs["encoder"](signal)
        for name, latent in latents.items():
            torch.testing.assert_close(actual[name], latent, **CLOSE)
        torch.testing.assert_close(programs["decoder"](latents, coords), values, **CLOSE)
    description = json.loads((tmp_path / "export.json").read_text())
    assert description["domain"] == CellGrid.unit(2).config()
    assert Layout.from_config(description["layout"]) == Layout((5, 7), (5, 7))


def test_local_networks_for_maps_of_any_size_are_refused():
    composer = LIIF(LocalMLP(4, 3, 6, 8), EDSR((3, -1, -1), width=6, num_blocks=1))
    state_data(composer, DataSpec(CellGrid.unit(2), 3, (3, 4, 4), Modality()))
    with pytest.raises(
        ValueError, match=r'shape is None; .* sizes \[-1, -1\], where -1 is open: state all .*"\[178, 178\]"'
    ):
        export_decoder(composer)


# Coordinates of the comparison


@pytest.mark.parametrize(
    ("domain", "shape"),
    [(Grid(((-3.0, 3.0),)), (40,)), (Grid(((-1.0, 1.0), (0.0, 5.0))), (8, 6)), (Volume(2.0), (4, 4, 4))],
)
def test_compared_coordinates_are_scattered_over_the_domain(domain, shape):
    coords = random_coords(domain, shape, 500)
    assert coords.shape == (500, domain.coord_dim)
    ends = domain.coords(shape)
    half = torch.tensor(domain.cell(shape)) / 2
    low, high = ends.min(0).values - half, ends.max(0).values + half
    assert bool(((low <= coords) & (coords <= high)).all())
    assert bool((coords.max(0).values - coords.min(0).values > 0.95 * (high - low)).all())
    assert torch.cdist(coords, ends).min() > 0  # no coordinate of the grid
    assert len(coords[:, 0].unique()) > 450


def test_compared_coordinates_of_cells_have_sizes():
    coords = random_coords(CellGrid.unit(2), (4, 8), 20)
    assert coords.shape == (20, 4)
    assert bool((coords[:, 2:] > 0).all())
    assert bool((coords[:, 2:] <= 1.5 * torch.tensor([0.5, 0.25])).all())


# What cannot be exported


class Checking(TransformerIPC):
    """A composer with control flow that depends on the values of the signal."""

    def encode(self, observation):
        if observation.signal.sum() > 1000:
            raise ValueError("too bright")
        return super().encode(observation)


class Summed(Renderer):
    """A renderer that does not render single points."""

    def field_spec(self, spec):
        return spec

    def rendered(self, field, coords):
        return Rendered(field(coords).sum(-2, keepdim=True))


@pytest.mark.parametrize("renderer", [Summed(), VolumeRenderer(near=1.0, far=2.0), LightFieldRenderer()], ids=repr)
def test_renderers_of_more_than_points_are_refused(make_ipc, renderer):
    kind = type(renderer).__name__
    with pytest.raises(
        ValueError, match=f"no decoder to export: {kind} does not render single points of the field: use"
    ):
        export_decoder(make_ipc(renderer=renderer))


def test_encoders_of_views_are_refused_with_their_own_message(make_ipc, make_network):
    composer = make_ipc(network=make_network(coord_dim=6), encoder=ViewPatches((2, 3, 8, 8), 8))
    with pytest.raises(ValueError, match=r"ViewPatches takes posed views \(Views\)"):
        export_encoder(composer)


def test_other_types_of_number_are_refused(tiny_ipc):
    with pytest.raises(ValueError, match=r"is torch.float64 on cpu; .* call composer\.float\(\)\.cpu\(\) first"):
        export_encoder(tiny_ipc.double())


def test_tracing_errors_are_one_line(make_network):
    composer = Checking(make_network(), Patches(SIGNAL_SHAPE, 4), Transformer(12, 1, 3, 2))
    with pytest.raises(ValueError, match=r"^The encoder of Checking cannot be exported: .") as refused:
        export_encoder(composer)
    assert "\n" not in str(refused.value)


OPEN = {"signal_shape": (3, -1, -1), "patch_size": 4, "num_tokens": 6}


@pytest.mark.slow
def test_open_sizes_of_a_signal_are_stated(make_ipc, tmp_path):
    composer = make_ipc(encoder=Patches(**OPEN)).eval()
    encoder = _reload(export_encoder(composer, shape=[12, 8]), tmp_path / "encoder.pt2")
    signal, coords = _inputs(3, 1, (3, 12, 8))
    torch.testing.assert_close(encoder(signal), _expected(composer, signal, coords)[0], **CLOSE)


@pytest.mark.parametrize(
    ("encoder", "shape", "message"),
    [
        (OPEN, None, r'shape is None; .* sizes \[-1, -1\], where -1 is open: state all .* --shape "\[178, 178\]"'),
        (OPEN, [12], r"shape is \[12\]; .* sizes \[-1, -1\]"),
        (OPEN, [8, 0], r"shape is \[8, 0\]; .* sizes \[-1, -1\]"),
        (OPEN, [8, 8], "The signal has shape .* and 4 patches of 4; this model takes .* with 6"),
        ({"signal_shape": SIGNAL_SHAPE, "patch_size": 4}, [8, 16], r"shape is \[8, 16\]; .* sizes \[8, 12\]"),
    ],
)
def test_wrong_sizes_of_a_signal_are_refused(make_ipc, encoder, shape, message):
    with pytest.raises(ValueError, match=message):
        export_encoder(make_ipc(encoder=Patches(**encoder)), shape)


@pytest.mark.parametrize("missing", [["onnxscript"], ["onnx", "onnxruntime"]])
def test_missing_packages_are_reported_first(tiny_ipc, tmp_path, monkeypatch, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    with pytest.raises(ValueError, match=f"^ONNX needs {', '.join(missing)}: run pip install {' '.join(missing)}, or"):
        export(tiny_ipc, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


# The command


def _run(*args):
    """Run the command in this process and return the printed lines."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([str(arg) for arg in args])
    return printed.getvalue().splitlines()


def _refused(*args, status=1):
    """Run a command with invalid input, check that its message is one line, and return it."""
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as ended:
        _run(*args)
    code = ended.value.code
    message = code if isinstance(code, str) else printed.getvalue().rstrip("\n")
    assert code == status or (status == 1 and isinstance(code, str))
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


@pytest.mark.slow
def test_the_command_writes_and_prints_its_files(written):
    assert sorted(path.name for path in written.folder.iterdir()) == ALL_FILES
    names = ["encoder.pt2", "encoder.onnx", "decoder.pt2", "decoder.onnx", "export.json"]
    assert [line.split(":")[0] for line in written.printed] == [f"Wrote {written.folder / name}" for name in names]
    for line in written.printed[:-1]:
        assert float(re.search(r"largest difference from the checkpoint (\S+)\.$", line)[1]) <= 1e-6


def test_onnx_equals_the_composer_for_any_sizes_and_coordinates(written):
    _assert_equal_in_onnx(written.folder, written.composer, SQUARE)


def test_the_description_states_inputs_and_outputs(written):
    description = json.loads((written.folder / "export.json").read_text())
    latents = {"scales.0": ["B", 8, 8], "scales.1": ["B", 8, 8], "scales.2": ["B", 8, 3]}
    assert description["encoder"]["inputs"] == {"signal": ["B", 3, 16, 16]}
    assert description["encoder"]["outputs"] == latents
    assert description["decoder"]["inputs"] == latents | {"coords": ["N", 2]}
    assert description["decoder"]["outputs"] == {"values": ["B", "N", 3]}
    for name in PROGRAMS:
        differences = description[name]["largest_difference"]
        assert list(differences) == [f"{name}.pt2", f"{name}.onnx"]
        assert all(0 <= number <= 1e-6 for number in differences.values())
    assert description["composer"] == "TransINR"
    assert description["dtype"] == "float32"
    assert "missing_encoder" not in description


def test_the_description_states_domain_layout_and_coordinates(written):
    description = json.loads((written.folder / "export.json").read_text())
    assert Domain.from_config(description["domain"]) == Grid.unit(2)
    layout = written.composer.layout(Observation(torch.zeros(1, *SQUARE)))
    assert Layout.from_config(description["layout"]) == layout
    assert description["coords"]["shape"] == ["N", 2]
    text = description["coords"]["values"]
    assert "cell i of n along an axis from low to high is low + (high - low) * (i + 1/2) / n" in text
    assert "rows before columns" in text
    (low, high), (left, right) = description["domain"]["init_args"]["ranges"]
    expected = [
        [low + (high - low) * (i + 0.5) / 3, left + (right - left) * (j + 0.5) / 5] for i in range(3) for j in range(5)
    ]
    torch.testing.assert_close(grid((3, 5)), torch.tensor(expected))


@pytest.mark.slow
def test_the_domain_of_training_is_described(tmp_path):
    network = {"coord_dim": 1, "value_dim": 1, "hidden_dim": 4, "num_layers": 3}
    parts = {
        "network": ("composers.networks.CoordinateMLP", network),
        "encoder": ("composers.encoders.Patches", {"signal_shape": [1, 400], "patch_size": 50}),
        "transformer": ("composers.encoders.Transformer", {"embed_dim": 12, "num_blocks": 1, "num_heads": 3}),
    }
    arguments = {name: {"class_path": path, "init_args": init_args} for name, (path, init_args) in parts.items()}
    composer = composers.build({"class_path": "composers.TransformerIPC", "init_args": arguments})
    composers.save(composer, tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    domain = Grid(((-3.0, 3.0),))
    torch.save(content | {"data": DataSpec(domain, 1, (1, 400), Modality()).facts()}, tmp_path / "b.ckpt")
    loaded = composers.load(tmp_path / "b.ckpt")
    assert stated_domain(loaded) == domain
    assert stated_domain(composers.load(tmp_path / "a.ckpt")) == Grid.unit(1)
    export(loaded, tmp_path / "out")
    description = json.loads((tmp_path / "out" / "export.json").read_text())
    assert Domain.from_config(description["domain"]) == domain


def _run_alone(code, folder):
    """Run Python in a process that cannot import from this repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stdout + process.stderr


WITH_TORCH = """
import sys, torch
inputs = torch.load("inputs.pt")
encoder, decoder = (torch.export.load(f"out/{name}.pt2").module() for name in ("encoder", "decoder"))
with torch.no_grad():
    latents = encoder(inputs["signal"])
    torch.save(latents | {"values": decoder(latents, inputs["coords"])}, "outputs.pt")
assert not {"composers", "datamodules", "lightning"} & set(sys.modules)
"""
WITH_ONNXRUNTIME = """
import sys, numpy, onnxruntime
inputs = numpy.load("inputs.npz")
encoder, decoder = (onnxruntime.InferenceSession(f"out/{name}.onnx") for name in ("encoder", "decoder"))
names = [output.name for output in encoder.get_outputs()]
latents = dict(zip(names, encoder.run(None, {"signal": inputs["signal"]})))
(values,) = decoder.run(["values"], latents | {"coords": inputs["coords"]})
numpy.savez("outputs.npz", **latents, values=values)
assert not {"torch", "composers"} & set(sys.modules)
"""


@pytest.mark.slow
def test_files_run_without_this_software(written, tmp_path):
    (tmp_path / "out").symlink_to(written.folder)
    signal, coords = _inputs(1, 3, SQUARE)
    latents, values = _expected(written.composer, signal, coords)
    torch.save({"signal": signal, "coords": coords}, tmp_path / "inputs.pt")
    np.savez(tmp_path / "inputs.npz", signal=signal.numpy(), coords=coords.numpy())
    _run_alone(WITH_TORCH, tmp_path)
    _run_alone(WITH_ONNXRUNTIME, tmp_path)
    for outputs in (torch.load(tmp_path / "outputs.pt"), np.load(tmp_path / "outputs.npz")):
        for name, expected in (latents | {"values": values}).items():
            torch.testing.assert_close(torch.as_tensor(outputs[name]), expected, **CLOSE_ONNX)


@pytest.mark.slow
@pytest.mark.usefixtures("reused_traces")
def test_overwrite_replaces_an_earlier_export_completely(written, tmp_path):
    checkpoint = written.folder.parent.parent / "tiny.ckpt"
    for name in (*ALL_FILES, "notes.txt"):
        (tmp_path / name).write_text("mine")
    message = _refused(checkpoint, tmp_path)
    assert message.startswith(f"error: {tmp_path} contains encoder.pt2, decoder.pt2, encoder.onnx")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}
    _run(checkpoint, tmp_path, "--overwrite", "true")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["decoder.pt2", "encoder.pt2", "export.json", "notes.txt"]
    _assert_equal(_read(tmp_path), written.composer, SQUARE)


@pytest.mark.usefixtures("reused_traces")
@pytest.mark.parametrize(("error", "shown"), [(2e-5, "[12].[0-9]e-05"), (float("nan"), "nan")])
def test_programs_that_differ_are_not_written(written, tmp_path, monkeypatch, error, shown):
    correct = DecoderModule.expected
    monkeypatch.setattr(DecoderModule, "expected", lambda module, *inputs: correct(module, *inputs) + error)
    with pytest.raises(ValueError, match=rf"^decoder\.pt2 differs by {shown} from the composer, more than 1e-05"):
        export(written.composer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("reused_traces")
def test_nothing_remains_after_a_full_disk(written, tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ValueError, match="out cannot be written: No space left on device"):
        export(written.composer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_invalid_input_ends_with_one_line(tmp_path):
    _checkpoint(tmp_path / "tiny.ckpt")
    (tmp_path / "file").write_text("text")
    assert "There is no checkpoint" in _refused(tmp_path / "absent.ckpt", tmp_path / "out")
    assert "is truncated or not a checkpoint" in _refused(tmp_path / "file", tmp_path / "out")
    assert "file cannot be written: File exists" in _refused(tmp_path / "tiny.ckpt", tmp_path / "file")
    assert "shape is [8]; this model" in _refused(tmp_path / "tiny.ckpt", tmp_path / "out", "--shape", "[8]")
    assert "onnx: Expected a" in _refused("a", "b", "--onnx", "maybe", status=2)
    assert "required: checkpoint, folder" in _refused(status=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tiny.ckpt"]


def test_help_describes_every_argument():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code in (None, 0)
    words = " ".join(printed.getvalue().split())
    for text in (
        " ".join(__main__.__doc__.split()),
        "Output folder",
        "Whether to write ONNX too",
        "Sizes of the axes",
    ):
        assert text in words


# Slow: every network, the real command, published sizes


def _classes(base):
    """Return the public classes of `composers.networks` derived from a base class."""
    public = (getattr(composers.networks, name) for name in composers.networks.__all__)
    return [kind for kind in public if inspect.isclass(kind) and issubclass(kind, base) and kind is not base]


# Every activation and every encoding, in one network each
NETWORKS = [
    (activation, _classes(Encoding)[index % len(_classes(Encoding))])
    for index, activation in enumerate(_classes(Activation))
]


def _network(make_network, activation, encoding):
    """Return a network with small slopes: steep networks amplify the rounding errors of any runtime."""
    frequencies = [3, 3] if encoding is CosineFeatures else 3
    gentle = {
        "omega": 1.0,
        "scale": 0.5,
        "sigma": 1.0,
        "num_frequencies": frequencies,
        "max_frequency": 2,
        "coord_dim": 2,
    }
    activation, encoding = (
        kind(**{name: value for name, value in gentle.items() if name in inspect.signature(kind).parameters})
        for kind in (activation, encoding)
    )
    return make_network(activation=activation, encoding=encoding)


def test_networks_cover_all_activations_and_encodings():
    assert {activation for activation, _ in NETWORKS} == set(_classes(Activation))
    assert {encoding for _, encoding in NETWORKS} == set(_classes(Encoding))


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "encoding"), NETWORKS)
def test_every_activation_and_encoding(make_ipc, make_network, tmp_path, activation, encoding):
    composer = make_ipc(network=_network(make_network, activation, encoding)).eval()
    export(composer, tmp_path, onnx=True)
    _assert_equal(_read(tmp_path), composer)
    _assert_equal_in_onnx(tmp_path, composer)


@pytest.mark.slow
def test_latents_of_many_layers_keep_their_order(make_transinr, make_network, tmp_path):
    network = make_network(num_layers=12, modulated_layers="all", hidden_dim=[8, 4] * 5 + [8])
    composer = make_transinr(network=network).eval()
    export(composer, tmp_path, onnx=True)
    _assert_equal(_read(tmp_path), composer)
    _assert_equal_in_onnx(tmp_path, composer)


class Bessel(Activation):
    """An activation that ONNX has no operator for."""

    def forward(self, hidden):
        return torch.special.bessel_j0(hidden)


@pytest.mark.slow
def test_operators_without_onnx_equivalent_are_refused(make_ipc, make_network, tmp_path):
    composer = make_ipc(network=make_network(activation=Bessel())).eval()
    with pytest.raises(ValueError, match=r"^decoder\.onnx cannot be written, omit --onnx: .*bessel_j0") as refused:
        export(composer, tmp_path / "out", onnx=True)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_module_runs_without_a_warning(tmp_path):
    _checkpoint(tmp_path / "tiny.ckpt")
    command = [sys.executable, "-W", "error", "-m", "tools.export", "tiny.ckpt", "out", "--onnx", "true"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stderr) == (0, "")
    assert len(process.stdout.splitlines()) == 5


@pytest.mark.slow
def test_published_sizes(tmp_path):
    path = REPOSITORY / "configs" / "composers" / "transformer_ipc.yaml"
    config = yaml.safe_load(path.read_text())["model"]
    config["init_args"]["network"]["init_args"] |= {"coord_dim": 2, "value_dim": 3}
    config["init_args"]["encoder"]["init_args"]["signal_shape"] = [3, 178, 178]
    config["init_args"]["transformer"]["init_args"]["num_blocks"] = 2  # further blocks only cost time
    composer = composers.build(config).eval()
    differences = export(composer, tmp_path, onnx=True)
    assert max(differences.values()) <= 1e-5
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.suffix == ".pt2"}
    count = sum(value.numel() for value in composer.state_dict().values())
    assert 4 * count < sum(sizes.values()) < 4 * count + 3_000_000  # every weight once, and the example inputs
