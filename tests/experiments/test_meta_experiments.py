"""Experiments on meta-learning: published hyper-parameters, and a training step at full size of every experiment."""

import functools
import json
import math

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from program import REPOSITORY, asked, rows, run

from benchmarks import cost
from datamodules.cameras import orbit

EXPERIMENTS = REPOSITORY / "configs" / "experiments"

# Columns: data, image size, epochs, maximum frequency, inner learning rate, learning rate of Adam, warm-up epochs.
PUBLISHED = {
    "imagenette178_meta_ipc": ("ImageNette", 178, 800, 128, 0.003, 1e-4, None),
    "imagenette178_learned_init": ("ImageNette", 178, 800, 128, 0.003, 1e-4, None),
    "ffhq256_meta_ipc": ("FFHQ", 256, 200, 64, 0.01, 1e-3, 0.5),
    "ffhq256_learned_init": ("FFHQ", 256, 200, 64, 0.001, 3e-4, 0.5),
}
ORIGINAL = ("chairs_learned_init_reptile", "celeba178_learned_init_siren")
OURS = (
    "librispeech1_meta_ipc",
    "librispeech1_learned_init",
    "chairs_meta_ipc",
    "chairs_learned_init",
    "celeba178_functa",
)
# Columns: parameters, code size.
SIZES = {
    "imagenette178_meta_ipc": (395_075 - 256 * 256 - 64, 256 * 256),
    "imagenette178_learned_init": (526_915 - 4 * 256 * 256 - 256 * 3 - 64, 4 * 256 * 256 + 256 * 3),
    "librispeech1_meta_ipc": (4096 * 256 + 4 * 256 * 256 + 256 + 4 * 256 + 1, 256 * 256),
    "chairs_meta_ipc": (120 * 256 + 5 * 256 * 256 + 256 * 4 + 5 * 256 + 4, 256 * 256),
    "chairs_learned_init_reptile": (120 * 256 + 4 * 256 * 256 + 256 * 4 + 5 * 256 + 4,) * 2,
    "celeba178_learned_init_siren": (2 * 256 + 3 * 256 * 256 + 256 * 3 + 4 * 256 + 3,) * 2,
    "celeba178_functa": (
        # weights, biases, projection of the code, learned step sizes
        (2 * 512 + 13 * 512 * 512 + 512 * 3) + (14 * 512 + 3) + 128 * 14 * 512 + 128,
        128,
    ),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _parsed(name):
    """Return the complete config of an experiment as parsed by the program."""
    return yaml.safe_load(asked("fit", "--config", EXPERIMENTS / f"{name}.yaml", "--print_config"))


@functools.cache
def _built(name):
    """Return the untrained composer and the data module of an experiment."""
    return cost.build(EXPERIMENTS / f"{name}.yaml")[:2]


def _inner(model):
    """Return the arguments of the inner loop of a model, and those of its rule."""
    inner = model["inner"]["init_args"]
    return inner, inner["rule"]["init_args"]


def _header(name):
    return (EXPERIMENTS / f"{name}.yaml").read_text().split("_base_")[0]


def test_every_experiment_exists():
    names = {
        path.stem for kind in ("meta_ipc", "learned_init*", "functa") for path in EXPERIMENTS.glob(f"*_{kind}.yaml")
    }
    assert {name for name in names if not name.startswith("photos_")} == {*PUBLISHED, *ORIGINAL, *OURS}


@pytest.mark.parametrize("name", PUBLISHED)
def test_hyper_parameters_match_the_paper(name):
    source, size, epochs, highest, inner_lr, lr, warmup = PUBLISHED[name]
    config = _parsed(name)
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    expected = {"max_epochs": epochs, "check_val_every_n_epoch": 10, "precision": "32-true", "devices": 1}
    expected |= {"accumulate_grad_batches": 1, "gradient_clip_val": None, "max_steps": -1}
    assert {key: trainer[key] for key in expected} == expected
    assert (config["seed_everything"], trainer["logger"]["init_args"]["name"]) == (0, name)
    assert config["data"]["class_path"].endswith(f".{source}")
    expected = {"size": size, "batch_size": 16, "coordinate_subset": None, "coordinate_noise": "none", "partial": False}
    assert {key: data[key] for key in expected} == expected
    assert data.get("evaluation", "resized") == "resized"
    assert config["model"]["class_path"].endswith(".MetaIPC" if "ipc" in name else ".LearnedInit")
    _check_model(model, [1] if "ipc" in name else "all", highest)
    inner, rule = _inner(model)
    assert rule == {
        "lr": inner_lr,
        "learned_lr": [],
        "outer": "second_order",
        "recompute": False,
        "learned_as": "factor",
    }
    expected = {"steps": 2, "test_steps": None}
    expected |= {"samples_per_step": "all", "test_samples_per_step": None}
    assert {key: inner[key] for key in expected} == expected
    assert model["optimizer"]["class_path"] == "torch.optim.Adam"
    optimizer = model["optimizer"]["init_args"]
    assert (optimizer["lr"], list(optimizer["betas"]), optimizer["weight_decay"]) == (lr, [0.9, 0.999], 0.0)
    schedule = model["scheduler"] and (model["scheduler"]["class_path"], model["scheduler"]["init_args"])
    schedule_arguments = {"warmup_epochs": warmup, "steps_per_epoch": None}
    assert schedule == (warmup and ("composers.training.schedules.EpochWarmup", schedule_arguments))


def _check_model(model, modulated_layers, highest):
    """Check the arguments of a composer that all published experiments on meta-learning share."""
    network = model["network"]["init_args"]
    assert (network["hidden_dim"], network["num_layers"], network["modulated_layers"]) == (256, 5, modulated_layers)
    assert (network["normalize_weights"], network["output_offset"], network["activation"]) == (True, 0.5, None)
    assert network["modulates"] == "weights"
    assert network["encoding"]["init_args"] == {
        "num_frequencies": 64,
        "max_frequency": highest,
        "use_pi": True,
        "min_frequency": 1.0,
    }
    assert (model["loss"], model["refinement"], model["renderer"]) == (None, None, None)
    if modulated_layers == "all":
        assert model["network"]["init_args"]["modulates"] == "weights"
    else:
        assert model["rank"] is None


def test_original_on_views_matches_its_authors():
    config = _parsed("chairs_learned_init_reptile")
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    assert (trainer["max_steps"], trainer["max_epochs"], trainer["check_val_every_n_epoch"]) == (100_000, None, None)
    network, (inner, rule) = model["network"]["init_args"], _inner(model)
    assert (network["hidden_dim"], network["num_layers"], network["modulated_layers"]) == (256, 6, "all")
    assert (network["normalize_weights"], network["output_offset"], network["activation"]) == (False, 0.0, None)
    assert network["encoding"]["init_args"] == {
        "num_frequencies": 20,
        "max_frequency": 256,
        "use_pi": False,
        "min_frequency": 1.0,
    }
    assert network["modulates"] == "both"
    assert rule == {"lr": 0.5, "learned_lr": [], "outer": "reptile", "recompute": False, "learned_as": "factor"}
    expected = {"steps": 32, "test_steps": 1000, "samples_per_step": 128, "test_samples_per_step": 64}
    assert {key: inner[key] for key in expected} == expected
    assert inner["choose"] == "random"
    assert (model["optimizer"]["class_path"], model["optimizer"]["init_args"]["lr"]) == ("torch.optim.Adam", 5e-4)
    expected = {
        "category": "chairs",
        "batch_size": 1,
        "train_frames": 25,
        "near": 2.0,
        "far": 6.0,
        "protocol": "halves",
    }
    assert {key: data[key] for key in expected} == expected
    assert data["views"] + data["query_views"] == 25
    assert model["renderer"]["init_args"]["samples_per_ray"] == 128


def test_original_on_images_matches_its_authors():
    config = _parsed("celeba178_learned_init_siren")
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    assert (trainer["max_steps"], trainer["max_epochs"], trainer["check_val_every_n_epoch"]) == (150_000, None, None)
    network, (inner, rule) = model["network"]["init_args"], _inner(model)
    assert (network["hidden_dim"], network["num_layers"], network["modulated_layers"]) == (256, 5, "all")
    assert (network["normalize_weights"], network["output_offset"], network["encoding"]["class_path"]) == (
        False,
        0.5,
        "composers.networks.IdentityEncoding",
    )
    assert network["activation"]["init_args"]["omega"] == 200
    assert network["modulates"] == "both"
    assert rule == {"lr": 0.01, "learned_lr": [], "outer": "second_order", "recompute": False, "learned_as": "factor"}
    expected = {"steps": 2, "test_steps": None, "samples_per_step": "all"}
    assert {key: inner[key] for key in expected} == expected
    assert (model["optimizer"]["class_path"], model["optimizer"]["init_args"]["lr"]) == ("torch.optim.Adam", 1e-5)
    assert (config["data"]["class_path"].rpartition(".")[2], data["size"], data["batch_size"]) == ("CelebA", 178, 3)
    assert data["coordinate_subset"] is None


@pytest.mark.parametrize("name", SIZES)
def test_sizes_match(name):
    composer, data = _built(name)
    parameters, numbers = SIZES[name]
    assert sum(parameter.numel() for parameter in composer.parameters()) == parameters
    assert sum(math.prod(spec.shape) for spec in composer.parametrization.latents.values()) == numbers
    assert composer.start.signal_shape == data.signal_shape


@pytest.mark.parametrize("name", [*PUBLISHED, *ORIGINAL, *OURS])
def test_every_experiment_states_its_origin_and_cost(name):
    header = _header(name)
    for part in ("M parameters", "TFLOP", "python -m benchmarks.cost", "GiB of tensors"):
        assert part in header
    assert ("Not published" in header) == (name in OURS)
    assert ("as published" in header and "docs/experiments.md" in header) == (name in PUBLISHED)
    assert ("The original" in header and "Reference:" in header) == (name in ORIGINAL)


def test_reported_steps_keep_the_test_affordable():
    for name in [*PUBLISHED, *ORIGINAL, *OURS]:
        composer, data = _built(name)
        report, trained = composer.inner.report, composer.inner.test_steps
        views = len(data.signal_shape) == 4
        if views and data.draws > 1:
            assert report == ()
        else:
            assert {0, trained} <= set(report)
            assert max(report) >= 5 * composer.inner.steps / 2


def _objects(folder):
    """Write an object with 50 frames of noise in the layout of the published data, listed in every split."""
    (object_folder := folder / "chairs" / "one").mkdir(parents=True)
    frames, generator = [], np.random.default_rng(0)
    for index, pose in enumerate(orbit(50)):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(object_folder / f"r_{index}.png")
        matrix = [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append({"file_path": f"r_{index}", "transform_matrix": matrix})
    (object_folder / "transforms.json").write_text(json.dumps({"camera_angle_x": 0.8, "frames": frames}))
    (folder / "chair_splits.json").write_text(json.dumps({split: ["one"] for split in ("train", "val", "test")}))


@pytest.mark.slow
def test_original_on_views_trains_on_many_views_and_is_tested_on_one(tmp_path):
    _objects(tmp_path / "data" / "shapenet")
    small = ["--data.init_args.size", 8, "--data.init_args.num_workers", 0, "--trainer.accelerator", "cpu"]
    small += [
        "--model.init_args.network.init_args.hidden_dim",
        4,
        "--model.init_args.renderer.init_args.samples_per_ray",
        4,
    ]
    small += [
        "--model.init_args.inner.init_args.test_steps",
        3,
        "--model.init_args.inner.init_args.report",
        "[0,3]",
    ]
    short = ["--trainer.max_steps", 2, "--trainer.val_check_interval", 2, "--trainer.num_sanity_val_steps", 0]
    config = ["--config", EXPERIMENTS / "chairs_learned_init_reptile.yaml"]
    run("fit", *config, *small, *short)
    protocol = ["--data.init_args.views", 1, "--data.init_args.query_views", 25, "--ckpt_path", "last"]
    printed = run("test", *config, *small, *protocol)
    assert "Mean over 1 instances" in printed
    [path] = (tmp_path / "runs" / "chairs_learned_init_reptile").glob("*/test_instances.csv")
    [row] = rows(path)
    assert row["name"] == "one"
    assert 2 < float(row["psnr@0"]) < 20  # for noise


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PUBLISHED, *ORIGINAL, *OURS])
def test_experiment_trains_a_step_at_full_width(name):
    torch.manual_seed(0)
    composer, data, _ = cost.build(EXPERIMENTS / f"{name}.yaml")
    initial = {key: parameter.detach().clone() for key, parameter in composer.named_parameters()}
    optimizer = composer.optimizer(composer.parameters())
    batch = cost.random_batch(data, 1)
    start = composer.start(batch.observation, composer.layout(batch.observation))
    begin = {name: latent.detach().clone() for name, latent in start.items()}
    loss, latents = cost.TrainingStep(composer)(batch)
    loss.backward()
    optimizer.step()
    assert 0 < loss.item() < 2  # random values in [0, 1] or around 0, and an untrained network
    lr = optimizer.param_groups[0]["lr"]
    for key, parameter in composer.named_parameters():
        assert parameter.grad.isfinite().all()
        update = (parameter.detach() - initial[key]).abs()
        assert 0 < update.max() <= 1.01 * lr  # the first Adam step has the length of the learning rate
    assert all(latent.isfinite().all() for latent in latents.values())
    assert any(not torch.equal(latent, begin[key]) for key, latent in latents.items())
