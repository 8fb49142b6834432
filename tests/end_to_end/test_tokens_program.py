"""The program with codes that are tokens (LA-INR, ANR), from training to export, over images, audio and views."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from patches import random_pixels
from PIL import Image
from program import NAME, REPOSITORY, TESTS, checkpoint, rows, run, run_two
from scene_folders import write_scene

import composers
from composers.codes import read_code
from datamodules.batch import Observation
from tools import codes
from tools.export.__main__ import main as export

METHODS = ("la_inr", "anr")
DATA = {"images": "sample_photos", "audio": "sample_speech", "views": "sample_objects"}
ENDINGS = {"images": "png", "audio": "wav", "views": "gif"}
NUM_TOKENS = {"images": 16, "audio": 16, "views": 8}  # of LA-INR: of patches, or on a grid in space
SIZES = {"images": "24x20", "views": "24"}
KINDS = [(method, kind) for method in METHODS for kind in DATA]

pytestmark = pytest.mark.slow


def _config(method, kind):
    """Return the arguments for a tiny model of a method and a kind of data."""
    sizes = TESTS / "configs" / "tokens"
    layers = [REPOSITORY / f"configs/composers/{method}.yaml", REPOSITORY / f"configs/data/{DATA[kind]}.yaml"]
    layers += [sizes / f"{method}.yaml", sizes / f"{kind}.yaml"]
    places = ["--model.init_args.network.init_args.num_tokens", "[2, 2, 2]"] if (method, kind) == KINDS[2] else []
    return [*(part for layer in layers for part in ("--config", layer)), *places]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with an image, a recording and a scene."""
    folder = tmp_path_factory.mktemp("tokens")
    Image.fromarray(random_pixels(20, 24).permute(1, 2, 0).numpy()).save(folder / "item.png")
    soundfile.write(folder / "item.wav", 0.3 * np.sin(0.05 * np.arange(12_000)), 16_000, subtype="PCM_16")
    write_scene(folder / "item", size=16)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """Return a function from a method and a kind of data to the checkpoint of its run, trained once."""

    def train(method, kind):
        name = f"{method}_{kind}"
        with contextlib.chdir(folder):
            if not (folder / "runs" / name).exists():
                run("fit", *_config(method, kind), NAME, name)
        return f"runs/{name}/version_0/checkpoints/last.ckpt"

    return train


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    """Work in the folder of the runs."""
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(("method", "kind"), KINDS)
def test_validation_and_test_follow(trained, method, kind):
    weights = ["--ckpt_path", trained(method, kind)]
    name = f"{method}_{kind}"
    losses = [row for row in rows(f"runs/{name}/version_0/metrics.csv") if "train/loss" in row]
    assert len(losses) == 2
    run("validate", *_config(method, kind), *weights, NAME, f"{name}_validated")
    [validated] = rows(f"runs/{name}_validated/version_0/metrics.csv")
    [logged] = [row for row in rows(f"runs/{name}/version_0/metrics.csv") if "val/psnr" in row]
    assert float(validated["val/psnr"]) == pytest.approx(float(logged["val/psnr"]), abs=1e-4)
    run("test", *_config(method, kind), *weights, NAME, f"{name}_tested")
    tested = rows(f"runs/{name}_tested/version_0/test_instances.csv")
    assert len(tested) == 4
    assert all(float(row["psnr@0"]) != float(row["psnr@2"]) for row in tested)


@pytest.mark.parametrize(("method", "kind"), KINDS)
def test_prediction_and_codes_follow(trained, method, kind):
    weights, name = trained(method, kind), f"{method}_{kind}_predicted"
    item = "item" if kind == "views" else f"item.{ENDINGS[kind]}"
    options = ["--support", 0, "--frames", 2] if kind == "views" else []
    run("predict", f"--{kind}", item, "--ckpt_path", weights, "--steps", 2, "--output", name, *options)
    [row] = rows(f"{name}/predictions.csv")
    assert float(row["psnr refined"]) != float(row["psnr predicted"])
    code = read_code(f"{name}/item.safetensors")
    code.check(composers.load(weights))
    [tokens] = code.latents.values()
    assert (tokens.shape[1], tokens[0, 0].numel()) == (6, 5 if method == "anr" else NUM_TOKENS[kind])
    assert int(row["code size"]) == tokens.numel()
    size = ["--size", SIZES[kind]] if kind in SIZES else ["--sample_rate", "24000"]
    again = f"{name}/again.{ENDINGS[kind]}"
    codes.main(["render", f"{name}/item.safetensors", "--checkpoint", weights, *size, "--output", again])
    if kind == "audio":
        assert soundfile.info(again).frames == 18_000
    else:
        with Image.open(again) as image:
            assert image.size == {"images": (20, 24), "views": (48, 24)}[kind]


@pytest.mark.parametrize(("method", "kind"), KINDS)
def test_export_takes_any_number_of_coordinates(trained, method, kind):
    weights, target = trained(method, kind), f"{method}_{kind}_exported"
    if kind == "views":
        with pytest.raises(SystemExit, match="VolumeRenderer does not render single points"):
            export([weights, target])
        return
    export([weights, target, "--onnx", "true" if kind == "images" else "false"])
    description = json.loads(Path(target, "export.json").read_text())
    for program in ("encoder", "decoder"):
        assert max(description[program]["largest_difference"].values()) < 1e-5
    composer = composers.load(weights)
    shape = {"images": (3, 16, 16), "audio": (1, 16_000)}[kind]
    encoder, decoder = (torch.export.load(f"{target}/{name}.pt2").module() for name in ("encoder", "decoder"))
    for instances, count in ((1, 3), (3, 40)):
        signal, coords = torch.rand(instances, *shape), 2 * torch.rand(count, len(shape) - 1) - 1
        observation = Observation(signal)
        with torch.no_grad():
            latents = composer.encode(observation)
            expected = composer.render(composer.compose(latents, composer.layout(observation)), coords)
            torch.testing.assert_close(encoder(signal), latents, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(decoder(latents, coords), expected, rtol=1e-5, atol=1e-5)


# One kind of data per method: what depends on the number of processes is in data modules and callbacks, which other tests cover
# for every kind, and `test_properties` compares the gradients of both networks.
@pytest.mark.parametrize(("method", "kind"), [("la_inr", "audio"), ("anr", "images")])
def test_two_processes_match_one(trained, folder, method, kind):
    trained(method, kind)
    name = f"{method}_{kind}"
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
    two += ["--data.init_args.eval_batch_size=2"]
    run_two([["fit", *_config(method, kind), *two, NAME, f"{name}_two"]], folder)
    weights, expected = (checkpoint(f"runs/{run_name}/version_0")["state_dict"] for run_name in (f"{name}_two", name))
    assert weights.keys() == expected.keys()
    assert all((weights[key] - weight).abs().max() < 1e-5 for key, weight in expected.items())
    [actual], [logged] = (
        [float(row["val/psnr"]) for row in rows(f"runs/{run_name}/version_0/metrics.csv") if "val/psnr" in row]
        for run_name in (f"{name}_two", name)
    )
    assert actual == pytest.approx(logged, abs=1e-3)
