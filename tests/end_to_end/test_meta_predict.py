"""Composers with an inner loop outside training: codes of images and audio, galleries, exports and the cost of training."""

import json
from types import SimpleNamespace

import pytest
import torch
from coordinates import grid
from jsonargparse import Namespace
from PIL import Image
from program import TESTS, asked

import composers
from application.shortcuts import expand_shortcuts, state_signal
from benchmarks import cost
from callbacks.gallery import Gallery
from composers import Refinement
from composers.codes import read_code, steps_taken
from datamodules.base import CoordinateDataModule
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.domain import Grid
from datamodules.spec import DataSpec
from modalities import Images
from modalities import audio as sound
from modalities.images import encode, image_samples, input_size, render
from tools import codes as codes
from tools.activations import AnalysisSettings, ModelAnalysis
from tools.export import __main__ as exporting
from tools.export import export, export_decoder, export_encoder

METHODS = ("MetaIPC", "LearnedInit", "Functa")


def _config(kind, shape=(3, 8, 8), **changes):
    """Return the config of a tiny model for signals of a shape."""
    network = {"coord_dim": len(shape) - 1, "value_dim": shape[0], "hidden_dim": 8, "num_layers": 3}
    network |= {"encoding": {"class_path": "composers.networks.FourierFeatures", "init_args": {"num_frequencies": 4}}}
    network |= {"Functa": {"modulates": "shifts"}, "LearnedInit": {"modulated_layers": "all"}}.get(kind, {})
    rule = {"class_path": "composers.inference.DifferentiableSGD", "init_args": {"lr": 0.01}}
    arguments = {
        "network": {"class_path": "composers.networks.CoordinateMLP", "init_args": network},
        "inner": {"class_path": "composers.GradientSteps", "init_args": {"steps": 2, "rule": rule}},
        "signal_shape": list(shape),
    }
    return {"class_path": f"composers.{kind}", "init_args": arguments | changes}


def _build(kind="MetaIPC", shape=(3, 8, 8), **changes):
    """Return a tiny model for signals of a shape."""
    return composers.build(_config(kind, shape, **changes)).eval()


def _initial(composer):
    """Return the latents of one instance before the inner loop."""
    observation = Observation(None, Samples(torch.zeros(1, 2), torch.zeros(1, 1, 3)))
    latents = composer.trajectory(observation, [0])[0]
    return {name: latent[0] for name, latent in latents.items()}


def _noise(*shape):
    """Return an image of noise."""
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.fixture
def saved(tmp_path):
    """Return a tiny model and its checkpoint."""
    composer = _build()
    composers.save(composer, tmp_path / "model.ckpt")
    return composer, tmp_path / "model.ckpt"


# Codes


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_the_code_of_an_image_holds_the_result_of_the_inner_loop(kind, mode):
    composer, pixels = _build(kind), _noise(3, 8, 8)
    with mode():
        code = encode(composer, pixels)
    latents = composer.encode(Observation(pixels[None].float() / 255, image_samples(pixels[None])))
    torch.testing.assert_close(code.latents, latents)
    initial = _initial(composer)
    assert any(not torch.equal(latent[0], initial[name]) for name, latent in latents.items())
    assert code.facts.items() >= {"inner steps": "2", "refinement steps": "0"}.items()
    assert render(composer, code, 32).size == (32, 32)


def test_tiles_adapt_independently_and_refinement_continues_from_there():
    composer, pixels = _build(), _noise(3, 8, 20)
    code = encode(composer, pixels, tile=True, batch_size=2)
    assert len(code.boxes) > 2
    for index, ((top, bottom), (left, right)) in enumerate(code.boxes):
        alone = encode(composer, pixels[:, top:bottom, left:right])
        torch.testing.assert_close(code.latents["patterns.1"][index], alone.latents["patterns.1"][0], rtol=0, atol=1e-5)

    def error(code):
        with torch.no_grad():
            values = composer.render(composer.compose(code.latents), samples.coords)
        return (values - samples.values).square().mean()

    square = pixels[:, :, :8]
    samples = image_samples(square[None])
    refined = encode(composer, square, refinement=Refinement(20))
    assert {"inner steps": "2", "refinement steps": "20"}.items() <= refined.facts.items()
    assert error(refined) < error(encode(composer, square))


def test_the_inner_loop_ignores_the_padding_of_a_recording():
    composer, values = _build(shape=(1, 40)), torch.rand(1, 25)
    code = sound.encode(composer, values, sample_rate=20)
    assert code.facts["inner steps"] == "2"
    recorded = Samples(grid((40,), -2.0, 2.0)[:25], values.mT[None])
    expected = composer.encode(Observation(None, recorded))["patterns.1"]
    torch.testing.assert_close(code.latents["patterns.1"], expected)
    assert sound.render(composer, code, 40).shape == (1, 50)


def test_the_tool_renders_interpolates_and_describes_codes(saved, tmp_path, capsys):
    composer, checkpoint = saved
    for name in ("a", "b"):
        encode(composer, _noise(3, 8, 8)).save(tmp_path / f"{name}.safetensors")
    first, last = (str(tmp_path / f"{name}.safetensors") for name in ("a", "b"))
    codes.main(["render", first, "--checkpoint", str(checkpoint), "--size", "20", "--output", str(tmp_path / "a.png")])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (20, 20)
    options = ["--checkpoint", str(checkpoint), "--frames", "3", "--output", str(tmp_path / "frames")]
    codes.main(["interpolate", first, last, *options])
    assert {path.name for path in (tmp_path / "frames").iterdir()} == {"000.png", "001.png", "002.png", "frames.gif"}
    codes.main(["info", first, "--checkpoint", str(checkpoint)])
    printed = capsys.readouterr().out
    assert "inner steps:       2" in printed
    assert f"that of {checkpoint}" in printed
    assert read_code(first).numel == 64


# Signals that a model takes


def test_sizes_are_those_of_training():
    assert input_size(_build()) == 8
    assert sound.input_shape(_build(shape=(1, 40))) == (1, 40)
    assert _build(signal_shape=None).start.signal_shape is None


def test_an_encoder_states_the_size_of_its_hypernetwork(tiny_ipc):
    assert tiny_ipc.start.signal_shape == (3, 8, 12)
    assert steps_taken(tiny_ipc, 7) == {"refinement steps": "7"}
    assert steps_taken(_build(), 7) == {"inner steps": "2", "refinement steps": "7"}


@pytest.mark.parametrize(
    ("shape", "read_shape", "message"),
    [
        ((1, 40), input_size, r"signals of shape \(1, 40\), not square colour images"),
        ((3, 8, 12), input_size, r"signals of shape \(3, 8, 12\), not square colour images"),
        ((3, 8, 8), sound.input_shape, r"signals of shape \(3, 8, 8\), not audio of a known length"),
        (None, input_size, "MetaIPC does not declare the size of its input images"),
        (None, sound.input_shape, "MetaIPC does not state the shape of its signals"),
    ],
)
def test_other_signals_are_rejected(shape, read_shape, message):
    composer = _build(signal_shape=None) if shape is None else _build(shape=shape)
    with pytest.raises(ValueError, match=message):
        read_shape(composer)


# The short options


def _expanded(steps, **model):
    """Return the arguments of a model after a command line of prediction with ``--steps``."""
    writer = Namespace(class_path="callbacks.predictions.PredictionWriter", init_args=Namespace(folder="predictions"))
    config = Namespace(size=None, scale=None, steps=steps)
    config.trainer = Namespace(callbacks=[writer])
    config.model = Namespace(class_path="composers.MetaIPC", init_args=Namespace(model))
    config.data = Namespace(class_path="datamodules.ImageFiles", init_args=Namespace(images=[]))
    expand_shortcuts(config)
    return config.model.init_args


def test_steps_are_inner_steps_if_there_is_an_inner_loop():
    inner = Namespace(class_path="composers.GradientSteps", init_args=Namespace(steps=2, test_steps=None))
    refinement = Namespace(class_path="composers.Refinement", init_args=Namespace(steps=9))
    model = _expanded(5, inner=inner, refinement=refinement)
    assert model.inner.init_args == Namespace(steps=2, test_steps=5)
    assert model.refinement.init_args.steps == 9
    assert _expanded(0, inner=None, refinement=refinement).refinement.init_args.steps == 0
    with pytest.raises(
        ValueError,
        match=r"^--steps is 0; for a model with an inner loop it is the number of inner steps, at least 1\.$",
    ):
        _expanded(0, inner=inner)
    assert "inner steps for a meta-learned model" in " ".join(asked("predict", "--help").split())


def test_models_without_an_encoder_take_any_number_of_support_views():
    arguments, support = Namespace(signal_shape=[1, 3, 8, 8]), {"support": [0, 3, 4]}
    model = Namespace(class_path="composers.MetaIPC", init_args=arguments)
    data = Namespace(init_args=Namespace(signal_shape=None, **support))
    state_signal(model, data)
    assert data.init_args.signal_shape == [3, 3, 8, 8]
    images = Namespace(init_args=Namespace(signal_shape=None, images=[]))
    arguments = Namespace(signal_shape=[3, 8, 8])
    state_signal(Namespace(class_path="composers.MetaIPC", init_args=arguments), images)
    assert images.init_args.signal_shape == [3, 8, 8]
    encoder = Namespace(class_path="composers.encoders.ViewPatches", init_args=Namespace(signal_shape=[1, 3, 8, 8]))
    hypernetwork = Namespace(class_path="composers.TransformerIPC", init_args=Namespace(encoder=encoder))
    data = Namespace(init_args=Namespace(signal_shape=None, **support))
    state_signal(hypernetwork, data)
    assert data.init_args.signal_shape == [1, 3, 8, 8]  # rejected by the data module, with both numbers


# Galleries


class _Squares(CoordinateDataModule):
    """A data module of images of 8 x 8 pixels, with a specification only."""

    spec = DataSpec(Grid.unit(2), 3, (3, 8, 8), Images())


def test_a_gallery_compares_with_a_meta_learned_model(saved, tmp_path):
    composer, checkpoint = saved
    pixels = _noise(3, 3, 8, 8)
    samples = image_samples(pixels)
    batch = CoordinateBatch(Observation(pixels.float() / 255, samples), samples, (8, 8), ["a", "b", "c"])
    trainer = SimpleNamespace(is_global_zero=True, datamodule=_Squares(), log_dir=tmp_path)
    gallery = Gallery(num_instances=2, beside=str(checkpoint))
    with torch.inference_mode():
        gallery.on_test_start(trainer, composer)
        gallery.on_test_batch_end(trainer, composer, composer.predict_step(batch, 0), batch, 0)
    assert list(gallery.rows) == ["a", "b"]
    for _, predicted, _, beside, _ in gallery.rows.values():
        torch.testing.assert_close(beside.values, predicted.values)
        assert beside.label.startswith(f"{checkpoint}: predicted ")


@pytest.mark.parametrize("kind", METHODS)
def test_layers_and_units_of_a_meta_learned_model_are_analysed(kind):
    images = {"a": _noise(3, 8, 8), "b": _noise(3, 12, 9)}
    settings = AnalysisSettings(num_units=2, num_rows=2, size=4, crops=2)
    analysis = ModelAnalysis(kind, _build(kind), images, settings, layer=1)
    assert analysis.size == 8
    assert [layer.maps.shape for layer in analysis.layers()] == [(2, 2, 4, 4)] * 2
    assert analysis.shares[1] > 0
    assert (analysis.shares[0] > 0) == (kind == "LearnedInit")  # the others have layer 0 in common
    assert analysis.units().losses.shape == (2, 8)
    assert analysis.components().scores.shape[0] == 6


# Export


@pytest.mark.slow
def test_only_the_decoder_is_exported(saved, tmp_path, capsys):
    composer, checkpoint = saved
    with pytest.raises(
        ValueError,
        match=r"^There is no encoder to export: MetaIPC finds latents by gradient steps, .* Export the decoder",
    ):
        export_encoder(composer)
    exporting.main([str(checkpoint), str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "No encoder: MetaIPC finds latents by gradient steps" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["decoder.pt2", "export.json"]
    description = json.loads((tmp_path / "out" / "export.json").read_text())
    assert description["encoder"] is None
    assert description["decoder"]["inputs"] == {"patterns.1": ["B", 8, 8], "coords": ["N", 2]}
    decoder = torch.export.load(tmp_path / "out" / "decoder.pt2").module()
    code, coords = encode(composer, _noise(3, 8, 8)), 2 * torch.rand(5, 2) - 1
    with torch.no_grad():
        expected = composer.render(composer.compose(code.latents), coords)
        torch.testing.assert_close(decoder(code.latents, coords), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
def test_decoders_are_exported_without_a_shape_of_signals(kind, tmp_path):
    composer = _build(kind, signal_shape=None)
    differences = export(composer, tmp_path / "out")
    assert list(differences) == ["decoder.pt2"]
    assert differences["decoder.pt2"] < 1e-5
    decoder = export_decoder(composer).module()
    latents = {name: torch.randn(4, *latent.shape) for name, latent in _initial(composer).items()}
    coords = 2 * torch.rand(3, 2) - 1
    with torch.no_grad():
        expected = composer.render(composer.compose(latents), coords)
        torch.testing.assert_close(decoder(latents, coords), expected, rtol=1e-5, atol=1e-5)


# The cost of training


def _flop(tmp_path, name, rule=None, **inner):
    """Return the operations of a training step of a tiny config with another inner loop."""
    changes = inner | {"rule": {"init_args": rule or {}}}
    path = tmp_path / "cost.yaml"
    path.write_text(
        f"_base_: {TESTS / 'configs' / f'tiny_{name}.yaml'}\n"
        f"model: {{init_args: {{inner: {{init_args: {json.dumps(changes)}}}}}}}\n"
    )
    return cost.count(path).step_flop


@pytest.mark.parametrize("steps", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_the_cost_of_reptile_equals_a_count_by_hand(tmp_path, steps):
    batch, inner, query = 4, 32, 128

    def products(points, times):
        sizes = ((8, 8), (8, 8), (8, 3))
        return sum(
            2 * batch * points * rows * columns * count for (rows, columns), count in zip(sizes, times, strict=True)
        )

    # A step: the forward pass of all layers, the gradients of weights and, except for the features, of inputs. The losses
    # after the last step and of the query are forward passes only.
    expected = steps * products(inner, (2, 3, 3)) + products(inner, (1, 1, 1)) + products(query, (1, 1, 1))
    assert _flop(tmp_path, "learned_init", steps=steps) == expected


@pytest.mark.slow
def test_inner_steps_cost_the_same_and_second_order_costs_more(tmp_path):
    two, three, four = (_flop(tmp_path, "meta_ipc", steps=steps) for steps in (2, 3, 4))
    assert four - three == three - two > 0
    assert two > _flop(tmp_path, "meta_ipc", {"outer": "first_order"}, steps=2) > 0
    assert _flop(tmp_path, "meta_ipc", {"recompute": True}, steps=2) > two
