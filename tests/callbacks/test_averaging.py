"""Validation, checkpoints and what loads them use averaged weights; a resumed run continues from the current ones."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from coordinates import grid
from lightning.pytorch.strategies import ModelParallelStrategy
from PIL import Image
from program import NAME, REPOSITORY, assert_same, checkpoint, column, keep_every, refused, run, run_two, tiny

import composers
from callbacks.averaging import AveragedWeights
from composers.codes import read_code
from datamodules.batch import Observation
from tools import codes
from tools.export import __main__ as export

CURRENT = "current_model_state"
DECAY = 0.6
AVERAGE = ["--config", REPOSITORY / "configs" / "overlays" / "ema.yaml"]
LAST = "runs/{}/version_0/checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _overlay(**arguments):
    """Write an overlay that averages with other arguments, and return its option."""
    settings = ", ".join(f"{name}: {value}" for name, value in arguments.items())
    text = f"trainer: {{callbacks+: [{{class_path: callbacks.averaging.AveragedWeights, init_args: {{{settings}}}}}]}}"
    Path("average.yaml").write_text(text)
    return ["--config", "average.yaml"]


def test_average_is_evaluated_and_saved_and_training_resumes_exactly():
    overlay = _overlay(decay=DECAY)
    run("fit", *tiny("ipc"), *overlay, *keep_every(1), NAME, "whole")
    current = [checkpoint("runs/whole/version_0", f"step-{step}")[CURRENT] for step in range(1, 7)]
    last, best = (checkpoint("runs/whole/version_0", name) for name in ("last", "best"))
    for key, average in last["state_dict"].items():
        expected = current[0][key].double()
        for weights in current[1:]:
            expected = DECAY * expected + (1 - DECAY) * weights[key].double()
        assert (average - expected).abs().max() < 1e-6, key
    assert_same(best["state_dict"], last["state_dict"])
    assert_same(last[CURRENT], current[-1])
    assert any((last[CURRENT][key] - average).abs().max() > 1e-3 for key, average in last["state_dict"].items())
    assert_same(dict(composers.load(LAST.format("whole")).state_dict()), dict(last["state_dict"]))

    run("validate", *tiny("ipc"), "--ckpt_path", LAST.format("whole"), NAME, "evaluated")
    for name in ("val/loss", "val/psnr"):
        [actual], [expected] = (
            column(f"runs/{run_name}/version_0/metrics.csv", name) for run_name in ("whole", "evaluated")
        )
        assert actual == pytest.approx(expected, rel=1e-6)

    middle = "runs/whole/version_0/checkpoints/step-4.ckpt"
    run("fit", *tiny("ipc"), *overlay, *keep_every(1), NAME, "resumed", "--ckpt_path", middle)
    resumed = checkpoint("runs/resumed/version_0")
    for key in ("state_dict", CURRENT, "averaging_state", "optimizer_states"):
        assert_same(resumed[key], last[key])
    message = refused("fit", *tiny("ipc"), NAME, "refused", "--ckpt_path", middle)
    assert f"{middle} holds averaged weights, and this run does not average" in message
    assert f"--weights {middle}" in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the last checkpoint of a run that averages, and checkpoints of its average and of its current weights alone."""
    folder = tmp_path_factory.mktemp("averaged")
    with contextlib.chdir(folder):
        run("fit", *tiny("ipc"), *_overlay(decay=DECAY), *keep_every(1), NAME, "whole")
        steps = [checkpoint("runs/whole/version_0", f"step-{step}")[CURRENT] for step in range(1, 7)]
        average = {key: weight.double() for key, weight in steps[0].items()}
        for step in steps[1:]:
            average = {key: DECAY * average[key] + (1 - DECAY) * weight.double() for key, weight in step.items()}
        composer = composers.load(LAST.format("whole"))
        for name, weights in (("average", average), ("current", steps[-1])):
            composer.load_state_dict(weights)
            composers.save(composer, f"{name}.ckpt")
    return {"run": folder / LAST.format("whole"), **{name: folder / f"{name}.ckpt" for name in ("average", "current")}}


def _pixels(path):
    """Return the pixels of an image as integers."""
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_predictions_and_rendered_codes_are_those_of_the_average(trained):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save("noise.png")
    for name, path in trained.items():
        run("predict", "--images", "noise.png", "--ckpt_path", path, "--output", name)
    codes.main(["render", "run/noise.safetensors", "--checkpoint", str(trained["run"]), "--output", "rendered.png"])
    for path in ("run/noise.png", "rendered.png"):
        assert np.abs(_pixels(path) - _pixels("average/noise.png")).max() <= 1
        assert np.abs(_pixels(path) - _pixels("current/noise.png")).max() > 3
    latents = {name: read_code(f"{name}/noise.safetensors").latents for name in trained}
    for key, latent in latents["run"].items():
        assert (latent - latents["average"][key]).abs().max() < 1e-5
        assert (latent - latents["current"][key]).abs().max() > 1e-3


@pytest.mark.slow
def test_exported_programs_are_those_of_the_average(trained):
    export.main([str(trained["run"]), "exported"])
    encoder, decoder = (torch.export.load(f"exported/{name}.pt2").module() for name in ("encoder", "decoder"))
    signal, coords = torch.rand(1, 3, 16, 16), grid((5, 7))
    with torch.no_grad():
        actual = decoder(encoder(signal), coords)
        average, current = (
            composers.load(trained[name])(Observation(signal), coords) for name in ("average", "current")
        )
    assert (actual - average).abs().max() < 1e-5
    assert (actual - current).abs().max() > 1e-3


class _Run:
    """A trainer, a model and the callback, without a program."""

    def __init__(self, make_ipc, **arguments):
        self.trainer = SimpleNamespace(strategy=None, global_step=0, current_epoch=0)
        self.composer, self.callback = make_ipc(), AveragedWeights(**arguments)
        self.callback.setup(self.trainer, self.composer, "fit")
        self.callback.on_fit_start(self.trainer, self.composer)

    def step(self, value):
        """Take an optimizer step that sets all weights to a value."""
        for parameter in self.composer.parameters():
            torch.nn.init.constant_(parameter, value)
        self.trainer.global_step += 1
        self.callback.on_train_batch_end(self.trainer, self.composer, None, None, 0)

    def values(self, state):
        """Return the values of weights."""
        return {float(state[name].mean()) for name, _ in self.composer.named_parameters()}

    def saved(self):
        """Return the averaged and the current weights of a checkpoint."""
        content = {"state_dict": {key: value.clone() for key, value in self.composer.state_dict().items()}}
        self.callback.on_save_checkpoint(self.trainer, self.composer, content)
        return self.values(content["state_dict"]), CURRENT in content and self.values(content[CURRENT])


def test_checkpoint_saved_during_validation_holds_both_weights(make_ipc):
    training = _Run(make_ipc, decay=0.5)
    training.step(1.0)
    training.step(2.0)
    training.callback.on_validation_start(training.trainer, training.composer)
    assert training.values(training.composer.state_dict()) == {1.5}
    assert training.saved() == ({1.5}, {2.0})
    training.callback.on_validation_end(training.trainer, training.composer)
    assert training.values(training.composer.state_dict()) == {2.0}
    training.callback.on_train_end(training.trainer, training.composer)
    assert training.saved() == ({1.5}, {2.0})
    training.callback.on_fit_end(training.trainer, training.composer)
    assert training.values(training.composer.state_dict()) == {1.5}


def test_current_weights_are_used_before_the_first_update(make_ipc):
    training = _Run(make_ipc, decay=0.5, update_starting_at_step=1)
    training.step(1.0)
    training.callback.on_validation_start(training.trainer, training.composer)
    assert training.saved() == ({1.0}, False)
    training.callback.on_validation_end(training.trainer, training.composer)
    training.step(2.0)
    training.step(4.0)
    assert training.saved() == ({3.0}, {4.0})


def test_buffers_are_not_averaged(make_ipc):
    training = _Run(make_ipc, decay=0.5)
    training.composer.register_buffer("occupied", torch.tensor([True, False]))
    training.callback.setup(training.trainer, training.composer, "fit")
    training.step(1.0)
    training.composer.occupied.copy_(torch.tensor([False, True]))
    training.step(2.0)
    assert training.callback._average_model.module.occupied.tolist() == [False, True]


@pytest.mark.parametrize("arguments", [{"decay": 1.0}, {"update_every_n_steps": 0}, {"update_starting_at_step": -1}])
def test_arguments_out_of_range_raise(arguments):
    with pytest.raises(ValueError, match=r"they must be in \[0, 1\), at least 1 and at least 0"):
        AveragedWeights(**arguments)


def test_sharded_weights_are_not_averaged(make_ipc):
    with pytest.raises(ValueError, match=r"cannot be sharded: use .*ema\.yaml or fsdp\.yaml, not both"):
        AveragedWeights().setup(SimpleNamespace(strategy=ModelParallelStrategy()), make_ipc(), "fit")


@pytest.mark.slow
def test_two_processes_average_as_one(tmp_path):
    """An inner loop that training differentiates through, and averages that the shipped overlay sets."""
    optimizer = "--model.init_args.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.5}}"
    common = ["fit", *tiny("meta_ipc"), *AVERAGE, optimizer, "--global_batch_size=4"]
    run(*common, NAME, "one")
    run_two([[*common, "--trainer.devices=2", "--trainer.strategy=ddp", NAME, "two"]], tmp_path)
    one, two = (checkpoint(f"runs/{name}/version_0") for name in ("one", "two"))
    for state in ("state_dict", CURRENT):
        for key, weight in one[state].items():
            assert (two[state][key] - weight).abs().max() < 1e-6, (state, key)
    [actual], [expected] = (column(f"runs/{name}/version_0/metrics.csv", "val/psnr") for name in ("two", "one"))
    assert actual == pytest.approx(expected, abs=2e-5)
