"""Composers with an inner loop through the program: training, resuming, validation, test and prediction."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import program
import pytest
import torch
from PIL import Image
from program import NAME, assert_same, checkpoint, column, keep_every, refused, rows, run, tiny

import composers
from composers.codes import read_code
from composers.metrics import psnr_of_mse
from composers.networks import CoordinateMLP
from datamodules import SamplePhotos
from datamodules.audio.sample_speech import HELD_OUT_RECORDINGS, SPEECH
from datamodules.domain import Domain, Grid
from datamodules.images import sample_photos as samples
from modalities.images import encode

METHODS = ("meta_ipc", "learned_init", "functa")
CHECKPOINT = "runs/{}/version_0/checkpoints/{}.ckpt"
INNER = "--model.init_args.inner.init_args"
STEPS = {"meta_ipc": 2, "learned_init": 2, "functa": 3}
BF16 = ("--trainer.precision", "bf16-mixed")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder, with the images that the program has already scaled."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(samples, "_scaled", program._scaled_once)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return the folder where a tiny MetaIPC was trained for four steps, every second of them kept."""
    folder = tmp_path_factory.mktemp("photos")
    with contextlib.chdir(folder):
        run("fit", *tiny("meta_ipc"), *keep_every(2), NAME, "meta_ipc")
    return folder


@pytest.fixture(scope="module")
def chairs(tmp_path_factory):
    """Return the folder where a tiny MetaIPC was trained on chairs, and the scene of one."""
    folder = tmp_path_factory.mktemp("chairs")
    with contextlib.chdir(folder):
        run("fit", *tiny("meta_objects"), NAME, "meta_objects")
    return folder, min((folder / "data" / "sample_objects").glob("*/chairs/*"))


def _image(path, rows=24, columns=40):
    """Write an image of noise."""
    pixels = torch.randint(0, 256, (rows, columns, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(path)


def _evaluate(name, *args, folder="."):
    """Validate and test a trained model, compare with the validation of training, and return the rows of the test."""
    weights = ["--ckpt_path", f"{folder}/{CHECKPOINT.format(name, 'last')}"]
    run("validate", *tiny(name), *weights, *args, NAME, "validated")
    validated, logged = (
        next(row for row in rows(f"{run_folder}/version_0/metrics.csv") if "val/psnr" in row)
        for run_folder in ("runs/validated", f"{folder}/runs/{name}")
    )
    for key in ("val/psnr", "val/loss"):
        assert float(validated[key]) == pytest.approx(float(logged[key]), abs=1e-4)
    run("test", *tiny(name), *weights, *args, NAME, "tested")
    return rows("runs/tested/version_0/test_instances.csv")


def _curve(instances, steps):
    """Return the mean PSNR after some numbers of inner steps."""
    return [np.mean([float(row[f"psnr@{step} of the inner loop"]) for row in instances]) for step in steps]


@pytest.mark.slow
def test_validation_is_reproducible_and_a_test_has_the_curve_of_the_inner_loop(photos):
    instances = _evaluate("meta_ipc", folder=photos)
    assert len(instances) == 34
    for row in instances:  # the curve contains the prediction
        assert float(row["psnr@2 of the inner loop"]) == pytest.approx(float(row["psnr@0"]), abs=1e-3)
    curve = _curve(instances, (0, 1, 2, 5))
    assert curve == sorted(curve)
    assert curve[3] > curve[2] > curve[0]
    data = SamplePhotos(size=16, scales=[1.0])
    data.setup("test")
    batch = data.to_coordinates(torch.utils.data.default_collate([data.test_set[0]]))
    composer = composers.load(photos / CHECKPOINT.format("meta_ipc", "last"))
    initial = composer.trajectory(batch.observation, [0])[0]
    error = (composer.render(composer.compose(initial), batch.query.coords) - batch.query.values).square().mean()
    assert float(instances[0]["psnr@0 of the inner loop"]) == pytest.approx(psnr_of_mse(error).item(), abs=1e-3)


def test_a_resumed_run_equals_an_uninterrupted_one(photos):
    run("fit", *tiny("meta_ipc"), *keep_every(2), "--ckpt_path", photos / CHECKPOINT.format("meta_ipc", "step-2"))
    resumed, uninterrupted = checkpoint("runs/unnamed/version_0"), checkpoint(photos / "runs/meta_ipc/version_0")
    for key in ("state_dict", "optimizer_states", "global_step", "epoch"):
        assert_same(resumed[key], uninterrupted[key])
    losses = column(photos / "runs/meta_ipc/version_0/metrics.csv", "train/loss")
    assert column("runs/unnamed/version_0/metrics.csv", "train/loss") == losses[2:]


def test_prediction_takes_the_number_of_inner_steps_of_the_option(photos):
    _image("noise.png")
    path = photos / CHECKPOINT.format("meta_ipc", "last")
    common = ["predict", "--ckpt_path", path, "--images", "noise.png"]
    run(*common, "--steps", 5, "--output", "whole")
    run(*common, "--tile", "--scale", 2, "--output", "tiles")
    [whole], [tiles] = (rows(f"{folder}/predictions.csv") for folder in ("whole", "tiles"))
    assert (whole["tiles"], whole["inner steps"], whole["refinement steps"]) == ("1", "5", "0")
    assert (int(tiles["tiles"]) > 1, tiles["inner steps"]) == (True, "2")
    with Image.open("whole/noise.png") as image, Image.open("tiles/noise.png") as enlarged:
        assert (image.size, enlarged.size) == ((40, 24), (80, 48))
    composer = composers.load(path)
    for folder, steps, tile in (("whole", 5, False), ("tiles", 2, True)):
        composer.inner.test_steps = steps
        code = encode(composer, "noise.png", tile=tile)
        predicted = read_code(f"{folder}/noise.safetensors")
        assert predicted.model == code.model
        assert predicted.facts["inner steps"] == code.facts["inner steps"] == str(steps)
        torch.testing.assert_close(predicted.latents, code.latents)


def test_scenes_adapt_to_the_support_views_and_are_measured_on_the_others(chairs):
    folder, scene = chairs
    for name, frame in (("original", None), ("another_query", 4), ("another_support", 0)):
        shutil.copytree(scene, name)
        if frame is not None:
            entry = json.loads((scene / "transforms.json").read_text())["frames"][frame]
            _image(f"{name}/{entry['file_path'].rsplit('/', 1)[-1].removesuffix('.png')}.png", 16, 16)
    weights = ["--ckpt_path", folder / CHECKPOINT.format("meta_objects", "last")]
    names = ("original", "another_query", "another_support")
    run("predict", *weights, "--views", *names, "--frames", 2, "--steps", 4, "--support", 0, 3)
    table = {row["name"]: row for row in rows("predictions/predictions.csv")}
    assert {(row["inner steps"], row["support views"]) for row in table.values()} == {("4", "2")}  # 1 view in training
    original, query, support = (read_code(f"predictions/{name}.safetensors").latents["patterns.1"] for name in names)
    assert torch.equal(query, original)
    assert not torch.equal(support, original)
    assert len({row["psnr predicted"] for row in table.values()}) == 3


@pytest.mark.parametrize("step", ["first", "later"])
def test_divergence_names_the_instance_and_the_setting(step):
    changes = {
        "first": [f"{INNER}.rule.init_args.lr", 1e38, "--trainer.callbacks", "[]"],
        "later": ["--model.init_args.optimizer.init_args.lr", 1e30, "--trainer.num_sanity_val_steps", 0],
    }
    message = refused("fit", *tiny("meta_ipc"), *changes[step])
    assert "The inner loop diverged on " in message
    assert {"first": "after 1 step", "later": "after 0 steps"}[step] in message
    assert "Lower the lr of inner.rule" in message
    assert len(message.strip().splitlines()) == 2  # the message, and how to see the traceback
    images = SamplePhotos(size=16, scales=[1.0])
    images.setup("fit")
    names = [images.val_set[0].name] if step == "first" else [name for name, _ in images.train_set.images]
    assert any(name in message for name in names)


def test_float16_is_rejected():
    message = refused("fit", *tiny("meta_ipc"), "--trainer.precision", "16-true", "--trainer.callbacks", "[]")
    assert message.splitlines()[0].startswith("error: --trainer.precision is 16-true, ")
    composer = composers.MetaIPC(CoordinateMLP(2, 3), composers.GradientSteps())
    composer._trainer = SimpleNamespace(precision="16-mixed", datamodule=None)
    with pytest.raises(ValueError, match=r"precision is 16-mixed.*Train in bf16-mixed"):
        composer.setup("fit")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", METHODS)
def test_every_preset_trains_validates_tests_resumes_and_predicts(name, precision):
    mode = ["--trainer.precision", precision]
    run("fit", *tiny(name), *keep_every(2), *mode, NAME, name)
    weights = checkpoint(f"runs/{name}/version_0")["state_dict"]
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    instances = _evaluate(name, *mode)
    curve = _curve(instances, (0, 1, 2, 5))
    assert curve[3] > curve[0]
    if precision == "32-true":
        run("fit", *tiny(name), *keep_every(2), NAME, "rest", "--ckpt_path", CHECKPOINT.format(name, "step-2"))
        assert_same(checkpoint("runs/rest/version_0")["state_dict"], weights)
    _image("noise.png")
    run("predict", "--ckpt_path", CHECKPOINT.format(name, "last"), "--images", "noise.png", *mode)
    [row] = rows("predictions/predictions.csv")
    assert row["inner steps"] == str(STEPS[name])
    assert 0 < float(row["psnr predicted"]) == float(row["psnr refined"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", [(), BF16], ids=["float32", "bfloat16"])
def test_speech_trains_validates_tests_and_predicts(mode):
    run("fit", *tiny("meta_speech"), *mode, NAME, "meta_speech")
    instances = _evaluate("meta_speech", *mode)
    curve = _curve(instances, (0, 2, 4))
    assert curve == sorted(curve)
    recording = SPEECH / f"{HELD_OUT_RECORDINGS[0]}.flac"
    weights = ["--ckpt_path", CHECKPOINT.format("meta_speech", "last")]
    run("predict", *weights, "--audio", recording, "--sample_rate", 8000, "--steps", 3, *mode)
    [row] = rows("predictions/predictions.csv")
    assert row["inner steps"] == "3"
    assert int(row["tiles"]) > 1
    assert float(row["psnr"]) > 5


@pytest.mark.slow
@pytest.mark.parametrize("mode", [(), BF16], ids=["float32", "bfloat16"])
def test_chairs_train_validate_and_test(mode):
    run("fit", *tiny("meta_objects"), *mode, NAME, "meta_objects")
    instances = _evaluate("meta_objects", *mode)
    assert len(instances) == 4
    for row in instances:
        assert float(row["psnr@2 of the inner loop"]) == pytest.approx(float(row["psnr@0"]), abs=1e-2)


def test_a_saved_copy_states_the_same_data(photos):
    path = photos / CHECKPOINT.format("meta_ipc", "last")
    composers.save(composers.load(path), "copy.ckpt")
    copied, original = (torch.load(file, weights_only=True) for file in ("copy.ckpt", path))
    assert copied["data"] == original["data"]
    assert Domain.from_config(copied["data"]["domain"]) == Grid.unit(2)
    assert copied["data"]["signal_shape"] == [3, 16, 16]
