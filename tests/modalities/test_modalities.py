"""Contracts of all modalities: metrics of the config, reading, writing, drawing, and documented options."""

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
from modalities.writing import Prediction


@pytest.mark.parametrize("modality", MODALITIES, ids=lambda modality: modality.name)
def test_the_config_of_a_modality_lists_its_metrics(modality):
    name = modality.task.replace("-", "_") or modality.name
    text = (REPOSITORY / "configs" / "modalities" / f"{name}.yaml").read_text()
    config = load_layers(text)["model"]["init_args"]["metrics"]
    actual = {name: entry["class_path"].rpartition(".")[2] for name, entry in config.items()}
    assert actual == {name: type(metric).__name__ for name, metric in modality.metrics().items()}


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


def test_images_read_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    values, source = Images().read(tmp_path / "a.png")
    assert np.array_equal(values.permute(1, 2, 0).numpy(), pixels)
    assert source == {}


def test_audio_reads_samples_and_sampling_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.linspace(-0.5, 0.5, 30).reshape(15, 2), 8000, subtype="FLOAT")
    values, source = Audio().read(tmp_path / "a.wav")
    assert (tuple(values.shape), source) == ((2, 15), {"sample_rate": 8000})


def test_views_read_images_and_cameras(tmp_path):
    pixels, poses = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8), orbit(2, 4.0)
    frames = []
    for view, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{view}.png")
        frames.append({"file_path": f"{view}", "transform_matrix": [*poses[view].tolist(), [0.0, 0.0, 0.0, 1.0]]})
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": 2 * math.atan(0.5), "frames": frames}))
    views, source = PosedViews().read(tmp_path)
    assert torch.equal((views.images * 255).round().byte(), torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert torch.allclose(views.poses, poses)
    assert (views.intrinsics.tolist(), source) == ([[4.0, 4.0, 2.0, 2.0]] * 2, {})


def test_audio_writes_the_decoded_code(tmp_path):
    composer, values = build_ipc(), torch.rand(1, 300) - 0.5
    code = encode(composer, values, 400)
    row = Audio().write(
        Prediction(composer, code, None, values, {"sample_rate": 400}), tmp_path / "a.b", sample_rate=800, wav_bits=24
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.png", "a.b.safetensors", "a.b.wav"]
    assert soundfile.info(tmp_path / "a.b.wav").samplerate == 800
    assert (row["seconds"], row["sample_rate"]) == ("0.750", "400")


def test_panels_and_figures_have_the_expected_size():
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


def test_at_most_one_modality_decodes_a_code():
    composer = build_ipc()
    latents = {"patterns.1": torch.zeros(1, 2, 2)}
    for shape, facts, expected in (
        ((9, 9), {}, [Images]),
        ((400,), {}, [Audio]),
        ((2, 9, 9), {"signal": "scene"}, [PosedViews]),
        ((2, 9, 9), {}, []),
    ):
        code = InstanceCode(latents, [], shape, fingerprint(composer), "", facts, domain=Grid.unit(1))
        assert [type(modality) for modality in MODALITIES if modality.decodes(code)] == expected


def test_instance_of_extracts_one_instance_from_a_batch():
    batch = scene_batch((0.6, 0.8), views=2, queries=3, size=8)
    values = {0: torch.rand(2, 192, 3), 4: torch.rand(2, 192, 3)}
    instance = instance_of(batch, 1, Rays(2.0, 6.0), values)
    assert torch.equal(instance.signal.images, batch.observation.signal.images[1])
    assert torch.equal(instance.query.values, batch.query.values[1])
    assert (instance.shape, list(instance.values)) == ((3, 8, 8), [0, 4])
    assert torch.equal(instance.values[4], values[4][1])
    shared = batch._replace(query=batch.query._replace(coords=batch.query.coords[0], values=None))
    instance = instance_of(shared, 1, Rays(2.0, 6.0), values)
    assert torch.equal(instance.query.coords, batch.query.coords[1])
    assert instance.query.values is None
    with pytest.raises(ValueError, match="not complete signals"):
        instance_of(batch._replace(shape=None), 0, Rays(2.0, 6.0), values)


def test_the_base_modality_neither_reads_nor_writes_nor_draws(tmp_path):
    modality, batch = Modality(), scene_batch((0.6,))
    assert modality.shown(instance_of(batch, 0, Rays(2.0, 6.0), {})) is None
    assert modality.input_shape(Balls()) is None
    with pytest.raises(ValueError, match=r"a\.xyz cannot be read: Modality reads no files"):
        modality.read("a.xyz")
    with pytest.raises(ValueError, match="cannot be written: Modality writes no files"):
        modality.write(None, tmp_path / "a")
    with pytest.raises(ValueError, match="Modality draws nothing"):
        modality.panel(torch.zeros(1, 1), (1,))


def test_a_writer_can_be_instantiated_from_a_config():
    writer = Images().writer
    config = {"class_path": f"{writer.__module__}.{writer.__name__}", "init_args": {"scale": 2.0}}
    assert instantiate(writer, config) == writer(scale=2.0)
