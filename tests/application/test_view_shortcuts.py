"""Short options of ``cli.py predict --views``, and data arguments read from the checkpoint of a model of views."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from coordinates import pixel_rays
from jsonargparse import Namespace
from PIL import Image
from program import asked, refused, rows, run

import cli
import composers
from application.shortcuts import expand_shortcuts, modality_of, state_signal
from composers.codes import read_code
from composers.construction import build, save
from datamodules.batch import Observation, Samples, Views
from datamodules.cameras import orbit

NAMES = (
    "images",
    "size",
    "scale",
    "tile",
    "tile_size",
    "audio",
    "sample_rate",
    "views",
    "support",
    "frames",
    "mesh",
    "mp4",
)
SOURCE, WRITING = "datamodules.scenes.prediction.SceneFiles", "callbacks.predictions.PredictionWriter"


def _config(options, writer=WRITING):
    """Return the config of a prediction from scenes with the given short options."""
    config = Namespace(
        dict.fromkeys((*NAMES, "output", "steps")) | dict.fromkeys(("tile", "mesh", "mp4"), False) | options
    )
    written = Namespace(folder="predictions", options=None)
    config.trainer = Namespace(callbacks=[Namespace(class_path=writer, init_args=written)])
    config.model = Namespace(class_path="composers.TransformerIPC", init_args=Namespace(refinement=None))
    config.data = Namespace(class_path=SOURCE, init_args=Namespace(views=[], support=[0]))
    return config


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (["predict", "--views", "chair"], "views"),
        (["predict", "--views=chair", "--mesh"], "views"),
        (["predict", "--audio", "views"], "audio"),
        (["predict", "--images", "views"], "images"),
        (["predict", "--mesh"], "images"),
    ],
    ids=["views", "equals", "audio", "images", "none"],
)
def test_modality_is_that_of_the_option(args, kind):
    assert modality_of(args).name == kind


def test_options_are_moved_to_their_targets():
    options = {"views": ["a", "b"], "support": [0, 3], "size": 96, "frames": 12, "mesh": True, "mp4": True}
    config = _config(options | {"output": "out", "steps": 0})
    expand_shortcuts(config)
    assert config.data.init_args.as_dict() == {"views": ["a", "b"], "support": [0, 3]}
    expected = {"folder": "out", "options": {"size": 96, "frames": 12, "mesh": True, "mp4": True}}
    assert config.trainer.callbacks[0].init_args.as_dict() == expected
    assert config.model.init_args.refinement.init_args.steps == 0
    assert not set(config.as_dict()) & {*NAMES, "output", "steps"}


def test_missing_options_change_nothing():
    config = _config({"views": ["a"]})
    expand_shortcuts(config)
    assert config.data.init_args.as_dict() == {"views": ["a"], "support": [0]}
    expected = {"folder": "predictions", "options": None}
    assert config.trainer.callbacks[0].init_args.as_dict() == expected
    assert config.model.init_args.refinement is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ["a"], "scale": 2.0}, "--scale is an option for images, but the input is views: remove it."),
        ({"views": ["a"], "tile": True}, "--tile is an option for images, but the input is views: remove it."),
        (
            {"views": ["a"], "images": ["a.png"]},
            "--images is an option for images, but the input is views: remove it.",
        ),
        (
            {"views": ["a"], "sample_rate": 8000},
            "--sample_rate is an option for audio, but the input is views: remove it.",
        ),
        ({"audio": ["a.wav"], "mesh": True}, "--mesh is an option for views, but the input is audio: remove it."),
        ({"audio": ["a.wav"], "views": ["a"]}, "--audio is an option for audio, but the input is views: remove it."),
        ({"images": ["a.png"], "mp4": True}, "--mp4 is an option for views, but the input is images: remove it."),
        ({"images": ["a.png"], "frames": 3}, "--frames is an option for views, but the input is images: remove it."),
        ({"views": ["a"], "size": (9, 12)}, "size is [9, 12]: for views, pass the longer side in pixels"),
    ],
    ids=["scale", "tile", "images", "sample_rate", "mesh", "recordings", "mp4", "frames", "two-sizes"],
)
def test_options_of_another_modality_raise(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        expand_shortcuts(_config(options))


def test_options_without_the_writer_raise():
    with pytest.raises(
        ValueError, match=re.escape(f"--mesh sets an argument of {WRITING}, which this --config replaces")
    ):
        expand_shortcuts(_config({"views": ["a"], "mesh": True}, writer="callbacks.progress.ProgressBar"))


def _model(**renderer):
    """Return the config of a model of two views with a volume renderer."""
    encoder = Namespace(class_path="composers.encoders.ViewPatches", init_args=Namespace(signal_shape=[2, 3, 8, 8]))
    rendering = Namespace(class_path="composers.rendering.VolumeRenderer", init_args=Namespace(renderer))
    return Namespace(class_path="composers.TransformerIPC", init_args=Namespace(encoder=encoder, renderer=rendering))


def test_shape_and_depths_are_read_from_the_model():
    data = Namespace(init_args=Namespace(signal_shape=None, near=None, far=None))
    state_signal(_model(near=2.0, far=6.0, samples_per_ray=8), data)
    assert data.init_args.as_dict() == {"signal_shape": [2, 3, 8, 8], "near": 2.0, "far": 6.0}


def test_explicit_arguments_are_kept():
    data = Namespace(init_args=Namespace(signal_shape=[1, 3, 4, 4], near=0.5, far=None))
    state_signal(_model(near=2.0, far=6.0), data)
    assert data.init_args.as_dict() == {"signal_shape": [1, 3, 4, 4], "near": 0.5, "far": 6.0}


def test_depths_stay_none_if_the_model_has_none():
    data = Namespace(init_args=Namespace(signal_shape=None, near=None, far=None, views=["a"]))
    state_signal(_model(chunk_size=64), data)
    assert data.init_args.as_dict() == {"signal_shape": [2, 3, 8, 8], "near": None, "far": None, "views": ["a"]}
    other = Namespace(init_args=Namespace(sample_rate=16000))
    state_signal(_model(near=2.0, far=6.0), other)
    assert other.init_args.as_dict() == {"sample_rate": 16000}


def test_data_module_determines_the_modality():
    config = _config({"size": 96, "mesh": True})
    expand_shortcuts(config)
    assert config.trainer.callbacks[0].init_args.options == {"size": 96, "mesh": True}
    with pytest.raises(ValueError, match="--tile is an option for images, but the input is views: remove it"):
        expand_shortcuts(_config({"tile": True}))


def test_prediction_config_contains_the_writer():
    config = yaml.safe_load(cli.PREDICT.read_text())
    assert WRITING in [callback["class_path"] for callback in config["trainer"]["callbacks"]]
    assert config["trainer"]["logger"] is False


PATTERNS = "patterns.1"


def _tiny(renderer=None, views=1):
    """Return the config of a tiny IPC for views of 8 x 8."""
    volume = {"near": 2.0, "far": 6.0, "samples_per_ray": 6}
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.05}}
    rule = {"class_path": "composers.inference.TorchOptimizer", "init_args": {"optimizer": optimizer}}
    parts = {
        "network": (
            "composers.networks.CoordinateMLP",
            {"coord_dim": 3, "value_dim": 4, "hidden_dim": 8, "num_layers": 3},
        ),
        "encoder": ("composers.encoders.ViewPatches", {"signal_shape": [views, 3, 8, 8], "patch_size": 4}),
        "transformer": ("composers.encoders.Transformer", {"embed_dim": 12, "num_blocks": 1, "num_heads": 3}),
        "renderer": ("composers.rendering.VolumeRenderer", volume) if renderer is None else renderer,
        "refinement": ("composers.Refinement", {"steps": 2, "report": [], "rule": rule}),
    }
    stated = {name: {"class_path": path, "init_args": arguments} for name, (path, arguments) in parts.items()}
    return {"class_path": "composers.TransformerIPC", "init_args": stated}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return the checkpoint of a tiny untrained model of one view of 8 x 8, with random biases."""
    torch.manual_seed(0)
    composer = build(_tiny())
    for bias in composer.network.biases.values():
        torch.nn.init.normal_(bias, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "views.ckpt"
    save(composer, path)
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _write(folder, frames=3, size=8, background=255):
    """Write a scene of random squares, and return its images ``(F, 3, H, W)`` in [0, 1] and poses ``(F, 3, 4)``."""
    Path(folder).mkdir(parents=True)
    values = np.random.default_rng(frames).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)
    poses, entries = orbit(frames, 4.0, 20.0), []
    for frame, image in enumerate(values):
        Image.fromarray(image).save(Path(folder, f"{frame}.png"))
        matrix = [*poses[frame].tolist(), [0.0, 0.0, 0.0, 1.0]]
        entries.append({"file_path": f"{frame}", "transform_matrix": matrix})
    described = {"camera_angle_x": 2 * math.atan(0.5), "frames": entries}  # the focal length in pixels equals the width
    Path(folder, "transforms.json").write_text(json.dumps(described))
    return torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255, poses


def _psnr(actual, expected):
    return -10 * math.log10((actual.clamp(0, 1) - expected).double().square().mean().item())


def test_prediction_of_a_scene(weights):
    images, poses = _write("chair")
    arguments = ["--ckpt_path", weights, "--views", "chair", "--support", 1, "--frames", 3, "--size", 12]
    printed = run("predict", *arguments, "--output", "out")
    assert "chair" in printed
    assert {path.name for path in Path("out").iterdir()} == {
        "chair.gif",
        "chair.png",
        "chair.safetensors",
        "predictions.csv",
    }
    [row] = rows("out/predictions.csv")
    assert (row["name"], row["refinement steps"], row["views"]) == ("chair", "2", "2")
    with Image.open("out/chair.gif") as video:
        assert (video.n_frames, video.height) == (3, 12 + 15)  # below labels
    composer = composers.load(weights)
    intrinsics = torch.tensor([8.0, 8.0, 4.0, 4.0])
    support = Views(images[None, 1:2], poses[None, 1:2], intrinsics[None, None])
    rays = [pixel_rays(poses[frame], intrinsics, (8, 8)) for frame in range(3)]
    with torch.no_grad():
        predicted = composer.encode(Observation(support))
    refined = composer.refine(predicted, Samples(rays[1][None], images[1].flatten(1).mT[None]))[2]
    code = read_code("out/chair.safetensors")
    assert torch.allclose(code.latents[PATTERNS], refined[PATTERNS], atol=1e-5)
    for latents, column in ((predicted, "psnr predicted"), (refined, "psnr refined")):
        with torch.no_grad():
            rendered = [composer.render(composer.compose(latents), rays[frame])[0] for frame in (0, 2)]
        expected = [_psnr(values, images[frame].flatten(1).mT) for values, frame in zip(rendered, (0, 2), strict=True)]
        assert float(row[column]) == pytest.approx(sum(expected) / 2, abs=2e-3)


@pytest.mark.slow
def test_scenes_of_a_folder_are_resized(weights):
    _write("in/a", size=16)
    _write("in/b", frames=1)
    Path("in/c").mkdir()
    Path("in/c/transforms.json").write_text("[]")
    printed = run(
        "predict", "--ckpt_path", weights, "--views", "in", "--frames", 2, "--steps", 0, "--data.query", "rest"
    )
    predictions = {row["name"]: row for row in rows("predictions/predictions.csv")}
    assert list(predictions) == ["a", "b"]
    assert predictions["a"]["notes"] == "resized from 16 x 16 to 8 x 8; no transparency: background used as it is"
    assert predictions["b"]["notes"] == (
        "no transparency: background used as it is; no other frames: compared with the support frames"
    )
    assert (predictions["a"]["views"], predictions["b"]["views"]) == ("2", "1")
    assert "Skipped 1:" in printed
    assert "in/c/transforms.json" in printed


def test_wrong_number_of_support_views_raises(weights):
    _write("chair")
    arguments = ["predict", "--ckpt_path", weights, "--views", "chair"]
    assert "The model takes 1 support view(s), but support has 2 frame(s), [0, 1]" in refused(
        *arguments, "--support", 0, 1
    )
    assert not Path("predictions").exists()


@pytest.mark.slow
def test_scenes_need_a_model_of_views():
    message = refused("predict", "--views", "chair", "--ckpt_path", "photos_ipc")
    assert "scenes need a model of posed views, [views, 3, rows, columns]" in message
    message = refused("predict", "--views", "chair")
    assert "--ckpt_path is required: no weights for views are bundled; pass the path of a checkpoint" in message


@pytest.mark.slow
def test_light_field_needs_no_depths():
    torch.manual_seed(0)
    config = _tiny(("composers.rendering.LightFieldRenderer", {}))
    config["init_args"]["network"]["init_args"] |= {"coord_dim": 6, "value_dim": 3}
    save(build(config), "lines.ckpt")
    _write("chair")
    run("predict", "--ckpt_path", "lines.ckpt", "--views", "chair", "--frames", 2, "--steps", 0)
    assert [row["name"] for row in rows("predictions/predictions.csv")] == ["chair"]
    assert "LightFieldRenderer" in refused("predict", "--ckpt_path", "lines.ckpt", "--views", "chair", "--mesh")


@pytest.mark.slow
def test_help_lists_the_options_of_views():
    printed = asked("predict", "--help")
    for option in ("--views", "--support", "--frames", "--mesh", "--mp4"):
        assert option in printed
