"""What every modality promises: metrics of its config, reading, writing, drawing, and options that are declared once."""

import inspect
import json
import math
from dataclasses import fields

import numpy as np
import pytest
import soundfile
import torch
from hums import build_ipc
from objects import Balls, scene_batch
from PIL import Image
from program import REPOSITORY

from application.shortcuts import options_of
from composers.codes import InstanceCode, fingerprint
from datamodules.batch import Cell, instance_of
from datamodules.cameras import orbit
from datamodules.configuration import instantiate, load_layers
from datamodules.domain import Grid, Rays
from datamodules.spec import Modality
from modalities import MODALITIES, Audio, Images, PosedViews
from modalities.audio import encode
from modalities.writing import Reconstruction


@pytest.mark.parametrize("modality", MODALITIES, ids=lambda modality: modality.name)
def test_the_config_of_a_modality_measures_its_metrics(modality):
    text = (REPOSITORY / "configs" / "modalities" / f"{modality.name}.yaml").read_text()
    stated = load_layers(text)["model"]["init_args"]["metrics"]
    found = {name: entry["class_path"].rpartition(".")[2] for name, entry in stated.items()}
    assert found == {name: type(metric).__name__ for name, metric in modality.metrics().items()}


@pytest.mark.parametrize("modality", MODALITIES, ids=lambda modality: modality.name)
def test_options_are_documented_and_unique(modality):
    options = list(options_of(modality))
    names = [option.name for option in options]
    assert len(set(names)) == len(names)
    assert names[0] == modality.name
    assert all(option.help for option in options)
    assert [option.name for option in options if not option.is_read] == [
        field.name for field in fields(modality.writer)
    ]
    assert set(modality.decoding) <= set(inspect.signature(modality.writer).parameters)


def test_an_image_is_read_as_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    values, source = Images().read(tmp_path / "a.png")
    assert np.array_equal(values.permute(1, 2, 0).numpy(), pixels)
    assert source == {}


def test_audio_is_read_with_its_sampling_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 30).reshape(15, 2), 8000, subtype="FLOAT")
    values, source = Audio().read(tmp_path / "a.wav")
    assert (tuple(values.shape), source) == ((2, 15), {"rate": 8000})


def test_views_are_read_with_their_cameras(tmp_path):
    pixels, poses = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8), orbit(2, 4.0)
    frames = []
    for view, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{view}.png")
        frames.append({"file_path": f"{view}", "transform_matrix": [*poses[view].tolist(), [0.0, 0.0, 0.0, 1.0]]})
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": 2 * math.atan(0.5), "frames": frames}))
    views, source = PosedViews().read(tmp_path)
    assert torch.equal((views.images * 255).round().byte(), torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert torch.allclose(views.poses, poses)
    assert (views.focals.tolist(), source) == ([[4.0, 4.0]] * 2, {})


def test_audio_is_written_as_its_code_sounds(tmp_path):
    composer, values = build_ipc(), torch.rand(1, 300) - 0.5
    code = encode(composer, values, 400)
    row = Audio().write(
        Reconstruction(composer, code, None, values, {"rate": 400}), tmp_path / "a.b", rate=800, bits=24
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.png", "a.b.safetensors", "a.b.wav"]
    assert soundfile.info(tmp_path / "a.b.wav").samplerate == 800
    assert (row["seconds"], row["rate"]) == ("0.750", "400")


def test_panels_and_figures():
    domain = Grid.unit(2)
    grey = Images().panel(torch.tensor([[0.0], [0.5], [math.nan], [2.0]]), (2, 2))
    assert np.asarray(grey)[..., 0].tolist() == [[0, 128], [0, 255]]
    cells = [[Cell("a", torch.rand(12, 3), (3, 4), domain)] * 3] * 2
    assert Images().figure(cells).size == (3 * (256 + 8) + 8, 2 * (192 + 26) + 8)
    assert Images().figure(cells, compact=True).size == (3 * (160 + 8) + 8, 2 * (120 + 26) + 8)
    views = [[Cell("a", torch.rand(12, 3), (1, 3, 4), Rays(2.0, 6.0))]]
    assert PosedViews().figure(views).size == (128 + 16, 96 + 34)
    assert PosedViews().panel(torch.rand(72, 3), (6, 3, 4)).size == (16, 3)
    assert Audio().panel(torch.rand(400, 1), (400,)).size == (800, 260)


def test_a_code_is_decoded_by_one_modality_at_most():
    composer = build_ipc()
    latents = {"patterns.1": torch.zeros(1, 2, 2)}
    for shape, facts, wanted in (
        ((9, 9), {}, [Images]),
        ((400,), {}, [Audio]),
        ((2, 9, 9), {"signal": "scene"}, [PosedViews]),
        ((2, 9, 9), {}, []),
    ):
        code = InstanceCode(latents, [], shape, fingerprint(composer), "", facts, domain=Grid.unit(1))
        assert [type(modality) for modality in MODALITIES if modality.decodes(code)] == wanted


def test_an_instance_is_taken_out_of_its_batch():
    batch = scene_batch((0.6, 0.8), views=2, queries=3, size=8)
    values = {0: torch.rand(2, 192, 3), 4: torch.rand(2, 192, 3)}
    instance = instance_of(batch, 1, Rays(2.0, 6.0), values)
    assert torch.equal(instance.signal.images, batch.observation.signal.images[1])
    assert torch.equal(instance.query.values, batch.query.values[1])
    assert (instance.shape, list(instance.values)) == ((3, 8, 8), [0, 4])
    assert torch.equal(instance.values[4], values[4][1])
    shared = batch._replace(query=batch.query._replace(coords=batch.query.coords[0], values=None))
    found = instance_of(shared, 1, Rays(2.0, 6.0), values)
    assert torch.equal(found.query.coords, batch.query.coords[1])
    assert found.query.values is None
    with pytest.raises(ValueError, match="not complete signals"):
        instance_of(batch._replace(shape=None), 0, Rays(2.0, 6.0), values)


def test_signals_of_no_modality_are_neither_read_nor_written_nor_drawn(tmp_path):
    nothing, batch = Modality(), scene_batch((0.6,))
    assert nothing.shown(instance_of(batch, 0, Rays(2.0, 6.0), {})) is None
    assert nothing.input_shape(Balls()) is None
    with pytest.raises(ValueError, match=r"a\.xyz cannot be read: Modality reads no files"):
        nothing.read("a.xyz")
    with pytest.raises(ValueError, match="cannot be written: Modality writes no files"):
        nothing.write(None, tmp_path / "a")
    with pytest.raises(ValueError, match="Modality draws nothing"):
        nothing.panel(torch.zeros(1, 1), (1,))


def test_the_writer_of_a_modality_can_be_configured_anywhere():
    writer = Images().writer
    config = {"class_path": f"{writer.__module__}.{writer.__name__}", "init_args": {"scale": 2.0}}
    assert instantiate(writer, config) == writer(scale=2.0)
