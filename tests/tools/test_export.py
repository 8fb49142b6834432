"""Encoder and decoder as programs: equal to the composer for any sizes, and at home without this software."""

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
from hums import build_ipc
from program import REPOSITORY, TESTS

import composers
import composers.networks
from composers import Composer, TransformerIPC
from composers.checkpoint import stated_domain
from composers.encoders import Patches, Transformer
from composers.networks import Activation, Encoding, IdentityEncoding, Sine
from composers.rendering import PointRenderer, Renderer
from datamodules.batch import Observation
from datamodules.configuration import load_layers
from datamodules.domain import Domain, Grid
from datamodules.spec import DataSpec, Modality
from tools.export import __main__, export, export_decoder, export_encoder, files
from tools.export.__main__ import main
from tools.export.halves import Decoder

SIGNAL_SHAPE, SQUARE = (3, 8, 12), (3, 16, 16)
SIZES = [(1, 1), (1, 6), (2, 1), (4, 9)]
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
HALVES = ("encoder", "decoder")
ALL_FILES = ["decoder.onnx", "decoder.pt2", "encoder.onnx", "encoder.pt2", "export.json"]


def _reload(program, path):
    """Write a program and read it again."""
    torch.export.save(program, path)
    return torch.export.load(path).module()


def _read(folder):
    """Return the two programs of a folder."""
    return {half: torch.export.load(folder / f"{half}.pt2").module() for half in HALVES}


def _wanted(composer, signal, coords):
    """Return the latents and values of a composer."""
    with torch.no_grad():
        latents = composer.encode(Observation(signal))
        return latents, composer.render(composer.compose(latents), coords)


def _inputs(batch_size, num_coords, shape=SIGNAL_SHAPE):
    return torch.rand(batch_size, *shape), 2 * torch.rand(num_coords, len(shape) - 1) - 1


def _assert_equal(programs, composer, shape=SIGNAL_SHAPE):
    """Compare two programs with a composer."""
    for sizes in SIZES:
        signal, coords = _inputs(*sizes, shape)
        latents, values = _wanted(composer, signal, coords)
        with torch.no_grad():
            found = programs["encoder"](signal)
            assert list(found) == list(latents)
            for name, latent in latents.items():
                torch.testing.assert_close(found[name], latent, **CLOSE)
            torch.testing.assert_close(programs["decoder"](latents, coords), values, **CLOSE)


def _session(path):
    """Return an ONNX file as a function of arrays by name."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(None, {k: v.numpy() for k, v in feed.items()}), strict=True))


def _assert_equal_in_onnx(folder, composer, shape=SIGNAL_SHAPE):
    """Compare the ONNX files of a folder with a composer."""
    encoder, decoder = (_session(Path(folder, f"{half}.onnx")) for half in HALVES)
    for sizes in SIZES:
        signal, coords = _inputs(*sizes, shape)
        latents, values = _wanted(composer, signal, coords)
        found = encoder({"signal": signal})
        assert list(found) == list(latents)
        for name, latent in latents.items():
            torch.testing.assert_close(torch.from_numpy(found[name]), latent, rtol=1e-6, atol=2e-6)
        found = decoder(latents | {"coords": coords})
        torch.testing.assert_close(torch.from_numpy(found["values"]), values, rtol=1e-6, atol=2e-6)


def _checkpoint(path, **tokenizer):
    """Write the checkpoint of a tiny, untrained TransINR for images of 16 x 16, and return its composer."""
    config_path = TESTS / "configs" / "tiny_transinr.yaml"
    with contextlib.chdir(config_path.parent):
        config = load_layers(config_path.read_text())["model"]
    config["init_args"]["inr"]["init_args"] |= {"coord_dim": 2, "value_dim": 3}
    config["init_args"]["tokenizer"]["init_args"] |= {"signal_shape": [3, 16, 16]} | tokenizer
    composer = composers.build(config).eval()
    composers.save(composer, path)
    return composer


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a tiny TransINR, its export with ONNX by the command, the printed lines, and the programs before writing."""
    torch.manual_seed(0)
    folder, programs, trace = tmp_path_factory.mktemp("written"), {}, files.trace
    composer = _checkpoint(folder / "tiny.ckpt")
    with mock.patch.object(files, "trace", lambda half: programs.setdefault(half.name, trace(half))):
        printed = _run("--onnx", "true", folder / "tiny.ckpt", folder / "deep" / "out")
    return SimpleNamespace(composer=composer, folder=folder / "deep" / "out", printed=printed, programs=programs)


@pytest.fixture(scope="module")
def trained(make_ipc, tmp_path_factory):
    """Return a tiny IPC that was exported while in training, its modes before and after, and its programs."""
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
def traced_before(written, monkeypatch):
    """Let exports of the checkpoint of `written` take the programs that are there."""
    monkeypatch.setattr(files, "trace", lambda half: written.programs[half.name])


# Programs of torch.export


def test_programs_equal_the_composer_for_any_sizes(exported):
    composer, shape, programs = exported
    _assert_equal(programs, composer, shape)


def test_decoder_equals_a_naive_network(exported, naive_inr):
    composer, shape, programs = exported
    signal, coords = _inputs(3, 7, shape)
    latents, _ = _wanted(composer, signal, coords)
    wanted = naive_inr(composer.network, coords, composer.compose(latents), 3)
    torch.testing.assert_close(programs["decoder"](latents, coords).double(), wanted, atol=1e-5, rtol=0)


def test_each_program_holds_the_weights_that_it_reads(exported):
    composer, _, programs = exported
    encoder, decoder = (set(programs[half].state_dict()) for half in HALVES)
    assert encoder == {f"composer.{name}" for name, _ in composer.named_parameters() if name.startswith("hypernet.")}
    assert not encoder & decoder
    assert encoder | decoder == {f"composer.{name}" for name in composer.state_dict()}


def test_decoder_can_be_differentiated_by_the_latents(exported):
    composer, shape, programs = exported
    signal, coords = _inputs(2, 5, shape)
    latents = {name: latent.requires_grad_() for name, latent in _wanted(composer, signal, coords)[0].items()}
    found = torch.autograd.grad(programs["decoder"](latents, coords).square().sum(), list(latents.values()))
    rendered = composer.render(composer.compose(latents), coords)
    wanted = torch.autograd.grad(rendered.square().sum(), list(latents.values()))
    torch.testing.assert_close(found, wanted)
    assert all(gradient.abs().max() > 0 for gradient in wanted)


def test_export_leaves_the_modes_of_a_composer_in_training(trained):
    before, after = trained.modes
    assert before == after
    assert {True, False} <= set(before)


def test_a_program_is_for_inputs_of_its_sizes_alone(exported):
    _, shape, programs = exported
    with pytest.raises(AssertionError, match="Guard failed"):
        programs["encoder"](torch.rand(2, *shape[:-1], shape[-1] + 4))


def test_bare_coordinates_and_a_base_weight(make_ipc, make_inr, tmp_path):
    inr = make_inr(activation=Sine(), encoding=IdentityEncoding(), normalize_weights=False)
    composer = make_ipc(inr=inr, factorized=False, base_weight=True).eval()
    decoder = _reload(export_decoder(composer), tmp_path / "decoder.pt2")
    for sizes in SIZES:
        signal, coords = _inputs(*sizes)
        latents, _ = _wanted(composer, signal, coords)
        latents = {name: torch.randn_like(latent) for name, latent in latents.items()}
        wanted = composer.render(composer.compose(latents), coords)
        torch.testing.assert_close(decoder(latents, coords), wanted, **CLOSE)


# What cannot be exported


class Fitted(Composer):
    """A composer that finds its latents without a tensor signal."""

    def encode(self, observation):
        return {"code": observation.samples.values.mean(1)}

    def compose(self, latents):
        return {}


class Doubting(TransformerIPC):
    """A composer whose arithmetic depends on what it sees."""

    def encode(self, observation):
        if observation.signal.sum() > 1000:
            raise ValueError("too bright")
        return super().encode(observation)


class Summed(Renderer):
    """A renderer of something other than points."""

    def field_spec(self, spec):
        return spec

    def forward(self, field, coords):
        return field(coords).sum(-2, keepdim=True)


@pytest.mark.parametrize("half", [export_encoder, export_decoder])
def test_a_composer_without_a_tensor_signal_is_refused(make_inr, half):
    with pytest.raises(ValueError, match=r"^Fitted encodes no tensor signal, so there is no encoder to export\.$"):
        half(Fitted(make_inr()))


def test_another_renderer_is_refused(make_ipc):
    with pytest.raises(ValueError, match="The renderer is a Summed; only values at points"):
        export_decoder(make_ipc(renderer=Summed()))


def test_other_types_of_number_are_refused(tiny_ipc):
    with pytest.raises(ValueError, match=r"is torch.float64 on cpu; .* call composer\.float\(\)\.cpu\(\) first"):
        export_encoder(tiny_ipc.double())


def test_what_cannot_be_traced_is_refused_in_one_line(make_inr):
    composer = Doubting(make_inr(), Patches(SIGNAL_SHAPE, 4), Transformer(12, 1, 3, 2))
    with pytest.raises(ValueError, match=r"^The encoder of Doubting cannot be exported: .") as refused:
        export_encoder(composer)
    assert "\n" not in str(refused.value)


OPEN = {"signal_shape": (3, -1, -1), "patch_size": 4, "num_tokens": 6}


@pytest.mark.slow
def test_open_sizes_of_a_signal_are_stated(make_ipc, tmp_path):
    composer = make_ipc(tokenizer=Patches(**OPEN)).eval()
    encoder = _reload(export_encoder(composer, shape=[12, 8]), tmp_path / "encoder.pt2")
    signal, coords = _inputs(3, 1, (3, 12, 8))
    torch.testing.assert_close(encoder(signal), _wanted(composer, signal, coords)[0], **CLOSE)


@pytest.mark.parametrize(
    ("tokenizer", "shape", "message"),
    [
        (OPEN, None, r'shape is None; .* sizes \[-1, -1\], where -1 is open: state all .* --shape "\[178, 178\]"'),
        (OPEN, [12], r"shape is \[12\]; .* sizes \[-1, -1\]"),
        (OPEN, [8, 0], r"shape is \[8, 0\]; .* sizes \[-1, -1\]"),
        (OPEN, [8, 8], "The signal has shape .* and 4 patches of 4; this model takes .* with 6"),
        ({"signal_shape": SIGNAL_SHAPE, "patch_size": 4}, [8, 16], r"shape is \[8, 16\]; .* sizes \[8, 12\]"),
    ],
)
def test_wrong_sizes_of_a_signal_are_refused(make_ipc, tokenizer, shape, message):
    with pytest.raises(ValueError, match=message):
        export_encoder(make_ipc(tokenizer=Patches(**tokenizer)), shape)


@pytest.mark.parametrize("absent", [["onnxscript"], ["onnx", "onnxruntime"]])
def test_missing_packages_are_named_before_anything_is_done(make_inr, tmp_path, monkeypatch, absent):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else found(name))
    with pytest.raises(ValueError, match=f"^ONNX needs {', '.join(absent)}: run pip install {' '.join(absent)}, or"):
        export(Fitted(make_inr()), tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


# The command


def _run(*args):
    """Run the command in this process and return the lines that it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([str(arg) for arg in args])
    return printed.getvalue().splitlines()


def _refused(*args, status=1):
    """Run a command that a user got wrong and return its message, after checking that it is one line."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), pytest.raises(SystemExit) as ended:
        _run(*args)
    code = ended.value.code
    message = code if isinstance(code, str) else told.getvalue().rstrip("\n")
    assert code == status or (status == 1 and isinstance(code, str))
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


def test_command_writes_these_files_and_says_so(written):
    assert sorted(path.name for path in written.folder.iterdir()) == ALL_FILES
    names = ["encoder.pt2", "encoder.onnx", "decoder.pt2", "decoder.onnx", "export.json"]
    assert [line.split(":")[0] for line in written.printed] == [f"Wrote {written.folder / name}" for name in names]
    for line in written.printed[:-1]:
        assert float(re.search(r"differs by at most (\S+)\.$", line)[1]) <= 1e-6


def test_onnx_equals_the_composer_for_any_sizes(written):
    _assert_equal_in_onnx(written.folder, written.composer, SQUARE)


def test_description_says_what_goes_in_and_out(written):
    described = json.loads((written.folder / "export.json").read_text())
    latents = {"scales.0": ["B", 8, 8], "scales.1": ["B", 8, 8], "scales.2": ["B", 8, 3]}
    assert described["encoder"]["inputs"] == {"signal": ["B", 3, 16, 16]}
    assert described["encoder"]["outputs"] == latents
    assert described["decoder"]["inputs"] == latents | {"coords": ["N", 2]}
    assert described["decoder"]["outputs"] == {"values": ["B", "N", 3]}
    for half in HALVES:
        differences = described[half]["largest_difference"]
        assert list(differences) == [f"{half}.pt2", f"{half}.onnx"]
        assert all(0 <= number <= 1e-6 for number in differences.values())
    assert described["composer"] == "TransINR"
    assert described["dtype"] == "float32"
    assert described["value_range"] == [0, 1]


def test_description_of_coordinates_is_true(written):
    described = json.loads((written.folder / "export.json").read_text())
    assert "cell i of n along an axis from low to high lies at low + (high - low) (i + 1/2) / n" in described["coords"]
    assert "row before column" in described["coords"]
    (low, high), (left, right) = described["domain"]["init_args"]["ranges"]
    wanted = [
        [low + (high - low) * (i + 0.5) / 3, left + (right - left) * (j + 0.5) / 5] for i in range(3) for j in range(5)
    ]
    torch.testing.assert_close(grid((3, 5)), torch.tensor(wanted))


@pytest.mark.slow
def test_the_domain_of_training_is_described(tmp_path):
    composer = build_ipc()
    domain = Grid(((-3.0, 3.0),))
    composers.save(composer, tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    torch.save(content | {"data": DataSpec(domain, 1, (1, 400), Modality()).facts()}, tmp_path / "b.ckpt")
    loaded = composers.load(tmp_path / "b.ckpt")
    assert stated_domain(loaded) == domain
    assert stated_domain(composers.load(tmp_path / "a.ckpt")) == Grid.unit(1)
    export(loaded, tmp_path / "out")
    described = json.loads((tmp_path / "out" / "export.json").read_text())
    assert Domain.from_config(described["domain"]) == domain
    assert described["value_range"] is None


def _run_alone(code, folder):
    """Run Python in a process that finds nothing of this repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stdout + finished.stderr


WITH_TORCH = """
import sys, torch
given = torch.load("given.pt")
encoder, decoder = (torch.export.load(f"out/{half}.pt2").module() for half in ("encoder", "decoder"))
with torch.no_grad():
    latents = encoder(given["signal"])
    torch.save(latents | {"values": decoder(latents, given["coords"])}, "found.pt")
assert not {"composers", "datamodules", "lightning"} & set(sys.modules)
"""
WITH_ONNXRUNTIME = """
import sys, numpy, onnxruntime
given = numpy.load("given.npz")
encoder, decoder = (onnxruntime.InferenceSession(f"out/{half}.onnx") for half in ("encoder", "decoder"))
names = [output.name for output in encoder.get_outputs()]
latents = dict(zip(names, encoder.run(None, {"signal": given["signal"]})))
(values,) = decoder.run(["values"], latents | {"coords": given["coords"]})
numpy.savez("found.npz", **latents, values=values)
assert not {"torch", "composers"} & set(sys.modules)
"""


@pytest.mark.slow
def test_files_run_without_this_software(written, tmp_path):
    (tmp_path / "out").symlink_to(written.folder)
    signal, coords = _inputs(1, 3, SQUARE)
    latents, values = _wanted(written.composer, signal, coords)
    torch.save({"signal": signal, "coords": coords}, tmp_path / "given.pt")
    np.savez(tmp_path / "given.npz", signal=signal.numpy(), coords=coords.numpy())
    _run_alone(WITH_TORCH, tmp_path)
    _run_alone(WITH_ONNXRUNTIME, tmp_path)
    for found in (torch.load(tmp_path / "found.pt"), np.load(tmp_path / "found.npz")):
        for name, wanted in (latents | {"values": values}).items():
            torch.testing.assert_close(torch.as_tensor(found[name]), wanted, rtol=1e-6, atol=2e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("traced_before")
def test_a_new_export_replaces_an_earlier_one_whole_and_only_if_asked(written, tmp_path):
    checkpoint = written.folder.parent.parent / "tiny.ckpt"
    for name in (*ALL_FILES, "notes.txt"):
        (tmp_path / name).write_text("mine")
    message = _refused(checkpoint, tmp_path)
    assert message.startswith(f"error: {tmp_path} holds encoder.pt2, decoder.pt2, encoder.onnx")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}
    _run(checkpoint, tmp_path, "--overwrite", "true")
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["decoder.pt2", "encoder.pt2", "export.json", "notes.txt"]
    _assert_equal(_read(tmp_path), written.composer, SQUARE)


@pytest.mark.usefixtures("traced_before")
@pytest.mark.parametrize(("wrong", "told"), [(2e-5, "[12].[0-9]e-05"), (float("nan"), "nan")])
def test_nothing_is_left_of_programs_that_differ(written, tmp_path, monkeypatch, wrong, told):
    right = Decoder.eager
    monkeypatch.setattr(Decoder, "eager", lambda half, *inputs: right(half, *inputs) + wrong)
    with pytest.raises(ValueError, match=rf"^decoder\.pt2 differs by {told} from the composer, more than 1e-05"):
        export(written.composer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("traced_before")
def test_nothing_is_left_on_a_full_disk(written, tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ValueError, match="out cannot be written: No space left on device"):
        export(written.composer, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_mistakes_end_with_one_line(tmp_path):
    _checkpoint(tmp_path / "tiny.ckpt")
    (tmp_path / "file").write_text("text")
    assert "There is no checkpoint" in _refused(tmp_path / "absent.ckpt", tmp_path / "out")
    assert "is truncated or not a checkpoint" in _refused(tmp_path / "file", tmp_path / "out")
    assert "file cannot be written: File exists" in _refused(tmp_path / "tiny.ckpt", tmp_path / "file")
    assert "shape is [8]; this model" in _refused(tmp_path / "tiny.ckpt", tmp_path / "out", "--shape", "[8]")
    assert "onnx: Expected a" in _refused("a", "b", "--onnx", "maybe", status=2)
    assert "required: checkpoint, folder" in _refused(status=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tiny.ckpt"]


def test_help_tells_what_every_argument_means():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code in (None, 0)
    words = " ".join(printed.getvalue().split())
    for told in (
        " ".join(__main__.__doc__.split()),
        "Where to write",
        "Whether to write ONNX too",
        "Sizes of the axes",
    ):
        assert told in words


# Slow: every network, the real command, published sizes


def _kinds(base):
    """Return the classes that `composers.networks` offers of a kind."""
    offered = (getattr(composers.networks, name) for name in composers.networks.__all__)
    return [kind for kind in offered if inspect.isclass(kind) and issubclass(kind, base) and kind is not base]


# Every activation and every encoding, in one network each
NETWORKS = [
    (activation, _kinds(Encoding)[index % len(_kinds(Encoding))]) for index, activation in enumerate(_kinds(Activation))
]


def _network(make_inr, activation, encoding):
    """Return a network with as little slope as its classes allow: steep ones amplify the rounding of any runtime."""
    gentle = {"omega": 1.0, "scale": 0.5, "sigma": 1.0, "num_frequencies": 3, "max_frequency": 2, "coord_dim": 2}
    activation, encoding = (
        kind(**{name: value for name, value in gentle.items() if name in inspect.signature(kind).parameters})
        for kind in (activation, encoding)
    )
    return make_inr(activation=activation, encoding=encoding)


def test_networks_cover_what_is_offered():
    assert {activation for activation, _ in NETWORKS} == set(_kinds(Activation))
    assert {encoding for _, encoding in NETWORKS} == set(_kinds(Encoding))


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "encoding"), NETWORKS)
def test_every_activation_and_encoding(make_ipc, make_inr, tmp_path, activation, encoding):
    composer = make_ipc(inr=_network(make_inr, activation, encoding)).eval()
    export(composer, tmp_path, onnx=True)
    _assert_equal(_read(tmp_path), composer)
    _assert_equal_in_onnx(tmp_path, composer)


@pytest.mark.slow
def test_latents_of_many_layers_keep_their_order(make_transinr, make_inr, tmp_path):
    inr = make_inr(num_layers=12, modulated_layers="all", hidden_dim=[8, 4] * 5 + [8])
    composer = make_transinr(inr=inr).eval()
    export(composer, tmp_path, onnx=True)
    _assert_equal(_read(tmp_path), composer)
    _assert_equal_in_onnx(tmp_path, composer)


class Bessel(Activation):
    """An activation that ONNX has no operator for."""

    def forward(self, hidden):
        return torch.special.bessel_j0(hidden)


@pytest.mark.slow
def test_what_onnx_cannot_say_is_refused_with_the_reason(make_ipc, make_inr, tmp_path):
    composer = make_ipc(inr=make_inr(activation=Bessel())).eval()
    with pytest.raises(ValueError, match=r"^decoder\.onnx cannot be written, leave --onnx out: .*bessel_j0") as refused:
        export(composer, tmp_path / "out", onnx=True)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_module_runs_without_a_warning(tmp_path):
    _checkpoint(tmp_path / "tiny.ckpt")
    command = [sys.executable, "-W", "error", "-m", "tools.export", "tiny.ckpt", "out", "--onnx", "true"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert len(finished.stdout.splitlines()) == 5


@pytest.mark.slow
def test_published_sizes(tmp_path):
    path = REPOSITORY / "configs" / "composers" / "transformer_ipc.yaml"
    config = yaml.safe_load(path.read_text())["model"]
    config["init_args"]["inr"]["init_args"] |= {"coord_dim": 2, "value_dim": 3}
    config["init_args"]["tokenizer"]["init_args"]["signal_shape"] = [3, 178, 178]
    composer = composers.build(config).eval()
    differences = export(composer, tmp_path, onnx=True)
    assert max(differences.values()) <= 1e-5
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.suffix == ".pt2"}
    numbers = sum(value.numel() for value in composer.state_dict().values())
    assert 4 * numbers < sum(sizes.values()) < 4 * numbers + 3_000_000  # every weight once, and the example inputs
