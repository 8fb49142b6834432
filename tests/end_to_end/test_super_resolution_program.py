"""Super-resolution from training to test: one and two processes, exact resume, and overrides by further configs."""

import contextlib
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from program import (
    NAME,
    REPOSITORY,
    asked,
    assert_same,
    checkpoint,
    column,
    keep_every,
    refused,
    rows,
    run,
    run_two,
    tiny,
)

import composers
from datamodules import SamplePhotos, SuperResolution
from datamodules.batch import Observation
from datamodules.domain import CellGrid
from datamodules.images.sample_photos import Photographs

STEPS = 6  # per epoch: 24 photographs in batches of 4
LIIF = [*tiny("liif"), "--data.init_args.images.class_path=test_super_resolution_program.SmallPhotos"]
IPC = [  # with the same encoder
    *("--config", REPOSITORY / "configs" / "experiments" / "photos_liif_ipc.yaml", *LIIF[2:]),
    *("--data.init_args.images.init_args.size=64", "--data.init_args.images.init_args.scales=[1.0]"),
    *("--data.init_args.size=8", "--data.init_args.num_queries=40", "--data.init_args.batch_size=4"),
    *("--data.init_args.repeat=1", "--data.init_args.val_scales=[8.0]", "--data.init_args.test_scales=[8.0, 9.5]"),
    *("--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"),
    "--data.init_args.images.init_args.extended=false",
]
SCHEDULE = (
    "--model.init_args.scheduler="
    "{class_path: torch.optim.lr_scheduler.MultiStepLR, init_args: {milestones: [5, 8], gamma: 0.5}}"
)
SGD = "--model.init_args.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.1}}"
TWO_PROCESSES = ["--trainer.devices=2", "--trainer.strategy=ddp"]


class SmallPhotos(SamplePhotos):
    """`SamplePhotos` with three small images for evaluation, an odd number for two processes."""

    def native_images(self, split):
        """Return parts of the held-out photographs."""
        images = super().native_images(split)
        if split == "train":
            return images
        parts = [(name, pixels[:, 100:170, 100:181]) for name, pixels in images.images]
        return Photographs([*parts, ("third", parts[0][1][:, :66, :77])])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train for two epochs, with a checkpoint at every second step, and return the working directory."""
    folder = tmp_path_factory.mktemp("liif")
    with contextlib.chdir(folder):
        run("fit", *LIIF, SCHEDULE, *keep_every(2), "--trainer.max_epochs=2", NAME, "uninterrupted")
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _run_folder(trained):
    """Return the folder of the run of the fixture."""
    return trained / "runs" / "uninterrupted" / "version_0"


def _weights(trained):
    """Return the arguments for the trained weights."""
    return ["--ckpt_path", _run_folder(trained) / "checkpoints" / "last.ckpt"]


def test_training_logs_losses_and_validation_and_follows_the_schedule(trained):
    log = _run_folder(trained) / "metrics.csv"
    losses = column(log, "train/loss")
    assert len(losses) == 2 * STEPS
    assert all(0 < loss < 1 for loss in losses)
    assert len(column(log, "val/psnr")) == len(column(log, "val/ssim")) == 2
    assert all(10 < psnr < 40 for psnr in column(log, "val/psnr"))
    saved = checkpoint(_run_folder(trained))
    assert saved["global_step"] == 2 * STEPS
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-2 / 4)
    assert saved["data"]["signal_shape"] == [3, 8, 8]


def test_validation_reproduces_the_logged_metrics(trained):
    run("validate", *LIIF, *_weights(trained), NAME, "validated")
    for name in ("val/psnr", "val/ssim", "val/loss"):
        [value] = column("runs/validated/version_0/metrics.csv", name)
        assert value == pytest.approx(column(_run_folder(trained) / "metrics.csv", name)[-1], abs=1e-5)


def test_testing_has_a_row_per_image_and_scale(trained):
    run("test", *LIIF, *_weights(trained), NAME, "tested")
    table = rows("runs/tested/version_0/test_instances.csv")
    assert [row["name"] for row in table] == [
        f"{name}-x{s}" for s in ("8", "9.5") for name in ("astronaut", "coffee", "third")
    ]
    data = SuperResolution(SmallPhotos(), size=8, num_queries=40, test_scales=[8.0, 9.5])
    data.setup("test")
    pair = data.test_set[4]
    shown = {row["name"]: float(row["psnr@0"]) for row in table}
    config = yaml.safe_load((_run_folder(trained) / "config.yaml").read_text())
    assert config["data"]["init_args"]["degradation"]["class_path"].endswith(".Realistic")
    assert pair.name == "coffee-x9.5"
    assert all(10 < psnr < 40 for psnr in shown.values())
    [mean] = column("runs/tested/version_0/metrics.csv", "test/psnr")
    assert mean == pytest.approx(sum(shown.values()) / 6, abs=1e-3)


def test_metrics_are_those_of_the_field_inside_the_border(trained):
    options = ["--data.init_args.degradation=null", "--data.init_args.test_scales=[9.5]"]
    run("test", *LIIF, *_weights(trained), *options, NAME, "bicubic")
    table = {row["name"]: float(row["psnr@0"]) for row in rows("runs/bicubic/version_0/test_instances.csv")}
    composer = composers.load(_run_folder(trained) / "checkpoints" / "last.ckpt")
    data = SuperResolution(SmallPhotos(), size=8, num_queries=40, test_scales=[9.5])
    data.setup("test")
    for index in range(3):
        pair = data.test_set[index]
        with torch.no_grad():
            observed = Observation(pair.low.unsqueeze(0).float() / 255)
            values = composer(observed, CellGrid.unit(2).coords(pair.high.shape[1:]))
        image = values[0].mT.unflatten(-1, pair.high.shape[1:]).clamp(0, 1)
        error = (image - pair.high.float() / 255)[:, 10:-10, 10:-10].square().mean()
        assert table[pair.name] == pytest.approx(-10 * error.log10().item(), abs=1e-3)


@pytest.mark.parametrize(("step", "workers"), [(4, 0), (8, 2)])
def test_resumed_run_equals_an_uninterrupted_one(trained, step, workers):
    start = _run_folder(trained) / "checkpoints" / f"step-{step}.ckpt"
    options = ["--trainer.max_epochs=2", "--data.init_args.num_workers", workers]
    run("fit", *LIIF, SCHEDULE, *keep_every(2), *options, NAME, "resumed", "--ckpt_path", start)
    resumed, expected = checkpoint("runs/resumed/version_0"), checkpoint(_run_folder(trained))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(resumed[key], expected[key])
    losses = column(_run_folder(trained) / "metrics.csv", "train/loss")
    assert column("runs/resumed/version_0/metrics.csv", "train/loss") == losses[step:]


@pytest.mark.slow
@pytest.mark.parametrize("config", [LIIF, IPC], ids=["liif", "ipc"])
def test_two_processes_equal_one(config, tmp_path):
    common = [SGD, "--model.init_args.scheduler=null"]
    run("fit", *config, *common, "--data.init_args.batch_size=8", NAME, "one")
    two = ["--data.init_args.batch_size=4", *TWO_PROCESSES, NAME, "two"]
    run_two([["fit", *config, *common, *two]], tmp_path)
    one, two = (checkpoint(f"runs/{folder}/version_0") for folder in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 3
    for key, weight in one["state_dict"].items():
        assert (two["state_dict"][key] - weight).abs().max() < 1e-6, key
    for name in ("val/psnr", "val/ssim", "val/loss"):
        actual, expected = (column(f"runs/{folder}/version_0/metrics.csv", name) for folder in ("two", "one"))
        assert actual == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_two_processes_test_every_image_once(trained, tmp_path):
    run("test", *LIIF, *_weights(trained), NAME, "one")
    run_two([["test", *LIIF, *_weights(trained), *TWO_PROCESSES, NAME, "two"]], tmp_path)
    actual, expected = (rows(f"runs/{folder}/version_0/test_instances.csv") for folder in ("two", "one"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected]
    for row, other in zip(actual, expected, strict=True):
        assert float(row["psnr@0"]) == pytest.approx(float(other["psnr@0"]), abs=1e-3)


@pytest.mark.slow
def test_ipc_on_feature_maps_trains_and_is_tested():
    run("fit", *IPC, NAME, "ipc")
    losses = column("runs/ipc/version_0/metrics.csv", "train/loss")
    assert len(losses) == STEPS
    assert all(0 < loss < 0.3 for loss in losses)
    weights = ["--ckpt_path", "runs/ipc/version_0/checkpoints/last.ckpt"]
    run("test", *IPC, *weights, NAME, "tested")
    table = rows("runs/tested/version_0/test_instances.csv")
    assert len(table) == 6
    assert all(15 < float(row["psnr@0"]) < 40 for row in table)
    composer = composers.load(weights[1])
    assert composer.network.max_scale == 4  # restored with the weights
    assert composer.network.use_cell


def test_further_configs_and_options_override():
    Path("over.yaml").write_text("data: {init_args: {size: 12, scales: [2.0, 3.0], num_queries: 50}}\n")
    parsed = yaml.safe_load(
        asked("fit", *LIIF, "--config", "over.yaml", "--data.init_args.num_queries=60", "--print_config")
    )
    arguments = parsed["data"]["init_args"]
    assert (arguments["size"], arguments["scales"], arguments["num_queries"]) == (12, [2.0, 3.0], 60)
    run("fit", *LIIF, "--config", "over.yaml", "--trainer.limit_train_batches=1")
    saved = checkpoint("runs/unnamed/version_0")
    network = saved["composer"]["init_args"]["network"]["init_args"]
    assert (network["coord_dim"], network["value_dim"], network["max_scale"]) == (4, 3, 3.0)
    assert saved["data"]["signal_shape"] == [3, 12, 12]


def test_images_of_one_channel_train(trained):
    run("fit", *LIIF, "--data.init_args.channels=1", "--trainer.limit_train_batches=1")
    saved = checkpoint("runs/unnamed/version_0")
    assert saved["state_dict"]["network.last.weight"].shape[0] == 1
    message = refused("test", *LIIF, "--data.init_args.channels=1", *_weights(trained))
    assert "channels" in message or "value_dim" in message


def test_bad_input_is_refused_with_the_fix():
    message = refused("fit", *LIIF, "--data.init_args.scales=[0.5, 4]")
    assert "scales is [0.5, 4" in message
    assert "at least 1" in message
    message = refused("fit", *LIIF, "--data.init_args.num_queries=100")
    assert "a crop of size 8 at scale 1 has 64 pixels" in message
    message = refused("fit", *LIIF, "--data.init_args.images=datamodules.SampleSpeech")
    assert "images is SampleSpeech" in message
    Path("images").mkdir()
    for number in range(10):
        Image.new("RGB", (40, 40 if number else 15)).save(f"images/{number}.png")
    folder = "--data.init_args.images={class_path: datamodules.ImageFolder, init_args: {root: images, cache: null}}"
    message = refused("fit", *LIIF[:2], folder, "--data.init_args.scales=[2, 4]")
    assert "The image 0.png has 15 x 40 pixels; size 8 at scale 2 takes 16 x 16" in message
    message = refused("fit", *LIIF, "--model.init_args.network.init_args.feature_dim=12")
    assert "set feature_dim of the network" in message
