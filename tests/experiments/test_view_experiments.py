"""Published experiments on novel views: hyper-parameters, and a training step at full size."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from program import REPOSITORY, asked, checkpoint, column, run

from benchmarks import cost
from datamodules.cameras import orbit

CONFIGS = REPOSITORY / "configs"
EXPERIMENTS = CONFIGS / "experiments"

# Columns: epochs, repeats of an object per epoch.
PUBLISHED = {"cars": (1000, 2), "chairs": (1000, 1), "lamps": (400, 3)}
# Columns: class, modulated layers, weight tokens, code size, parameters with one support view.
METHODS = {
    "ipc": ("TransformerIPC", [1], 256, 65_536, 43_922_712 - 256 * 256 - 20),
    "transinr": ("TransINR", "all", 5 * 32 + 4, 37_632, 44_673_936 - 20),
}
NAMES = [f"{category}_{method}" for category in PUBLISHED for method in METHODS]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_every_published_experiment_exists():
    names = {path.stem for category in PUBLISHED for path in EXPERIMENTS.glob(f"{category}_*.yaml")}
    assert {name for name in names if name.partition("_")[2] in ("ipc", "transinr")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_match_the_paper(name):
    category, method = name.split("_")
    epochs, repeats = PUBLISHED[category]
    composer, modulated_layers, *_ = METHODS[method]
    config = yaml.safe_load(asked("fit", "--config", EXPERIMENTS / f"{name}.yaml", "--print_config"))
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    expected = {"max_epochs": epochs, "check_val_every_n_epoch": 20, "precision": "32-true", "devices": 1}
    assert {key: trainer[key] for key in expected} == expected
    assert (trainer["accumulate_grad_batches"], trainer["gradient_clip_val"]) == (1, None)
    assert (config["seed_everything"], trainer["logger"]["init_args"]["name"]) == (0, name)
    assert config["data"]["class_path"].endswith(".ShapeNet")
    expected = {"category": category, "repeats": repeats, "batch_size": 32, "views": 1, "query_views": 1, "size": 128}
    expected |= {"near": 2.0, "far": 6.0, "rays_per_view": 128, "foreground_epochs": 2, "train_frames": 25}
    expected |= {"protocol": "draws", "draws": 100}
    assert {key: data[key] for key in expected} == expected
    assert config["model"]["class_path"].endswith(f".{composer}")
    _check_model(model, modulated_layers)


def _check_model(model, modulated_layers):
    """Check the arguments of a composer that all published experiments on novel views share."""
    network = model["network"]["init_args"]
    assert (network["hidden_dim"], network["num_layers"], network["modulated_layers"]) == (256, 6, modulated_layers)
    assert (network["normalize_weights"], network["output_offset"], network["activation"]) == (True, 0.0, None)
    assert network["encoding"]["init_args"] == {
        "num_frequencies": 20,
        "max_frequency": 256,
        "use_pi": False,
        "min_frequency": 1.0,
    }
    assert model["encoder"]["class_path"].endswith(".ViewPatches")
    assert model["encoder"]["init_args"]["patch_size"] == 8
    assert model["renderer"]["class_path"].endswith(".VolumeRenderer")
    renderer = model["renderer"]["init_args"]
    expected = {
        "samples_per_ray": 128,
        "importance_samples": 0,
        "stratified": True,
        "density": "relu",
        "background": 1.0,
    }
    assert {key: renderer[key] for key in expected} == expected
    transformer = model["transformer"]["init_args"]
    assert (transformer["embed_dim"], transformer["num_blocks"], transformer["num_heads"]) == (768, 6, 12)
    assert (transformer["residual_dropout"], transformer["qkv_bias"]) == (0.1, True)
    optimizer = model["optimizer"]["init_args"]
    assert (optimizer["lr"], list(optimizer["betas"]), optimizer["weight_decay"]) == (1e-4, [0.9, 0.999], 0.0)
    assert (model["scheduler"], model["loss"], model["refinement"]) == (None, None, None)
    if "num_groups" in model:
        assert model["num_groups"] == 32
    else:
        assert (model["rank"], model["factorized"], model["num_weight_tokens"]) == (None, True, None)
        assert model["base_weight"] is False
    assert list(model["metrics"]) == ["psnr", "white", "over_white", "ssim"]


@pytest.mark.parametrize("method", METHODS)
def test_sizes_match_the_paper(method):
    composer, data, _ = cost.build(EXPERIMENTS / f"chairs_{method}.yaml")
    _, _, weight_tokens, numbers, parameters = METHODS[method]
    assert (composer.start.encoder.num_tokens, composer.start.readout.num_weight_tokens) == (256, weight_tokens)
    assert (composer.network.coord_dim, composer.network.value_dim) == (3, 4)
    assert sum(parameter.numel() for parameter in composer.parameters()) == parameters
    assert sum(math.prod(spec.shape) for spec in composer.parametrization.latents.values()) == numbers
    assert (composer.renderer.near, composer.renderer.far) == (data.near, data.far) == (2.0, 6.0)
    exponents = torch.linspace(0, 8, 20, dtype=torch.float64)
    torch.testing.assert_close(composer.network.encoding.frequencies, (2**exponents).float(), rtol=1e-6, atol=0)


def test_every_experiment_states_its_cost():
    for name in NAMES:
        header = (EXPERIMENTS / f"{name}.yaml").read_text().split("_base_")[0]
        for part in (
            "docs/experiments.md",
            "M parameters",
            "TFLOP per step",
            "--data.init_args.views 5",
            "view_refinement.yaml",
        ):
            assert part in header


def _objects(folder, category="chairs"):
    """Write two objects of noise in the layout of the published data, one for training and one held out."""
    generator = np.random.default_rng(0)
    for name in ("one", "other"):
        (object_folder := folder / category / name).mkdir(parents=True)
        frames = []
        for index, pose in enumerate(orbit(26)):
            Image.fromarray(generator.integers(0, 256, (128, 128, 4), dtype=np.uint8)).save(
                object_folder / f"r_{index}.png"
            )
            matrix = [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]
            frames.append({"file_path": f"./train/r_{index}", "transform_matrix": matrix})
        (object_folder / "transforms.json").write_text(json.dumps({"camera_angle_x": math.pi / 4, "frames": frames}))
    splits = {"train": ["one"], "val": ["other"], "test": ["other"]}
    (folder / "chair_splits.json").write_text(json.dumps(splits))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ipc"])
def test_experiment_trains_a_step_at_full_size(method, tmp_path):
    name = f"chairs_{method}"
    _, data, _ = cost.build(EXPERIMENTS / f"{name}.yaml")
    _objects(Path(data.root))
    settings = {
        "data.init_args.batch_size": 1,
        "data.init_args.num_workers": 0,
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
    }
    arguments = [part for option, value in settings.items() for part in (f"--{option}", value)]
    printed = run("fit", "--config", EXPERIMENTS / f"{name}.yaml", *arguments)
    _, _, weight_tokens, numbers, parameters = METHODS[method]
    assert f"256 data + {weight_tokens} weight" in printed
    assert f"{numbers:,} numbers" in printed
    folder = tmp_path / "runs" / name / "version_0"
    [psnr] = column(folder / "metrics.csv", "val/psnr")
    assert 3 < psnr < 12  # for noise
    moments = checkpoint(folder)["optimizer_states"][0]["state"]
    # after one step, the first moment is a tenth of the gradient
    gradients = [moment["exp_avg"] * 10 for moment in moments.values()]
    assert sum(gradient.numel() for gradient in gradients) == parameters
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)
