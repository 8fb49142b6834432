"""Published experiments on images: hyper-parameters against the values in the papers, and a training step at full size."""

import numpy as np
import pytest
import yaml
from PIL import Image
from program import REPOSITORY, asked, checkpoint, column, run

EXPERIMENTS = REPOSITORY / "configs" / "experiments"

# Columns: data module, image size, epochs, epochs between validations, maximum frequency, patch size, padding,
# coordinate subset, coordinate noise.
PUBLISHED = {
    "celeba178": ("CelebA", 178, 300, 5, 64, 9, 1, None, "none"),
    "ffhq178": ("FFHQ", 178, 1000, 10, 64, 9, 1, None, "none"),
    "imagenette178": ("ImageNette", 178, 4000, 10, 128, 9, 1, None, "per_instance"),
    "ffhq512": ("FFHQ", 512, 400, 10, 128, 32, 0, 0.1, "none"),
    "ffhq1024": ("FFHQ", 1024, 400, 10, 256, 32, 0, 0.1, "none"),
}
METHODS = {"ipc": ("TransformerIPC", [1]), "transinr": ("TransINR", "all")}
NAMES = [f"{data}_{method}" for data in PUBLISHED for method in METHODS]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _parsed(name):
    """Return the complete config of an experiment as parsed by the program."""
    return yaml.safe_load(asked("fit", "--config", EXPERIMENTS / f"{name}.yaml", "--print_config"))


def test_every_published_experiment_exists():
    names = {path.stem for size in ("178", "512", "1024") for path in EXPERIMENTS.glob(f"*{size}_*.yaml")}
    assert {name for name in names if name.partition("_")[2] in ("ipc", "transinr")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_hyper_parameters_match_the_paper(name):
    column_name, method = name.split("_")
    source, size, epochs, evaluation, highest, patch, padding, coordinates, noise = PUBLISHED[column_name]
    composer, modulated_layers = METHODS[method]
    config = _parsed(name)
    trainer, model, data = config["trainer"], config["model"], config["data"]
    assert config["seed_everything"] == 0
    assert trainer["logger"]["init_args"]["name"] == name
    assert {key: trainer[key] for key in ("max_epochs", "check_val_every_n_epoch", "precision", "devices")} == {
        "max_epochs": epochs,
        "check_val_every_n_epoch": evaluation,
        "precision": "32-true",
        "devices": 1,
    }
    assert trainer["accumulate_grad_batches"] == 1
    assert trainer["gradient_clip_val"] is None
    assert data["class_path"].endswith(f".{source}")
    arguments = data["init_args"]
    expected = {"size": size, "batch_size": 16, "coordinate_subset": coordinates, "coordinate_noise": noise}
    assert {key: arguments[key] for key in expected} == expected
    assert arguments["partial"] is False
    assert (arguments["cache"] is None) == (size > 178)
    assert arguments.get("training_list") is None
    assert arguments.get("evaluation", "resized") == "resized"
    assert model["class_path"].endswith(f".{composer}")
    _check_model(model["init_args"], modulated_layers, highest, patch, padding)


def _check_model(model, modulated_layers, highest, patch, padding):
    """Check the arguments of a composer that all published experiments on images share."""
    network = model["network"]["init_args"]
    assert (network["hidden_dim"], network["num_layers"], network["modulated_layers"]) == (256, 5, modulated_layers)
    assert (network["normalize_weights"], network["output_offset"], network["activation"]) == (True, 0.5, None)
    assert network["encoding"]["class_path"].endswith(".FourierFeatures")
    assert network["encoding"]["init_args"] == {
        "num_frequencies": 64,
        "max_frequency": highest,
        "use_pi": True,
        "min_frequency": 1.0,
    }
    assert model["encoder"]["class_path"].endswith(".Patches")
    encoder = model["encoder"]["init_args"]
    assert (encoder["patch_size"], encoder["padding"], encoder["remainder"]) == (patch, padding, "refuse")
    assert model["transformer"]["init_args"] == {
        "embed_dim": 768,
        "num_blocks": 6,
        "num_heads": 12,
        "mlp_ratio": 4,
        "residual_dropout": 0.1,
        "qkv_bias": True,
        "head_dim": None,
    }
    assert model["optimizer"]["class_path"] == "torch.optim.Adam"
    optimizer = model["optimizer"]["init_args"]
    assert (optimizer["lr"], list(optimizer["betas"]), optimizer["weight_decay"]) == (1e-4, [0.9, 0.999], 0.0)
    assert (model["scheduler"], model["loss"], model["refinement"], model["renderer"]) == (None, None, None, None)
    if "num_groups" in model:
        assert model["num_groups"] == 64
    else:
        assert (model["rank"], model["factorized"], model["num_weight_tokens"]) == (None, True, None)
        assert model["base_weight"] is False
    assert "psnr" in model["metrics"]


def test_every_experiment_states_its_cost():
    for name in NAMES:
        header = (EXPERIMENTS / f"{name}.yaml").read_text().split("_base_")[0]
        for part in (
            "docs/experiments.md",
            "M parameters",
            "TFLOP",
            "EFLOP in total",
            "Disk:",
            "--trainer.devices 4",
        ):
            assert part in header


def _faces(folder, count):
    """Write noisy PNG files of 1024 x 1024 pixels with the names of FFHQ: from 0 for training, from 60000 for validation."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in [*range(count), *range(60_000, 60_000 + count)]:
        coarse = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((1024, 1024)).save(folder / f"{index:05d}.png", compress_level=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ffhq178_ipc", "ffhq178_transinr", "ffhq1024_ipc"])
def test_experiment_trains_a_step_at_full_size(name, tmp_path):
    _faces(tmp_path / "data" / "ffhq" / "images1024x1024", 1)
    settings = {
        "data.init_args.partial": "true",
        "data.init_args.cache": "null",
        "data.init_args.batch_size": 1,
        "data.init_args.eval_batch_size": 1,
        "data.init_args.num_workers": 0,
        "trainer.max_epochs": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.limit_train_batches": 1,
        "trainer.limit_val_batches": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
    }
    arguments = [part for option, value in settings.items() for part in (f"--{option}", value)]
    size, method = int(name[4:].split("_")[0]), name.split("_")[1]
    printed = run("fit", "--config", EXPERIMENTS / f"{name}.yaml", *arguments)
    data_tokens = {178: 400, 512: 256, 1024: 1024}[size]
    weight_tokens = {"ipc": 256, "transinr": 259}[method]
    assert f"{data_tokens} data + {weight_tokens} weight" in printed
    folder = tmp_path / "runs" / name / "version_0"
    [loss], [psnr] = (column(folder / "metrics.csv", key) for key in ("train/loss", "val/psnr"))
    assert 0 < loss < 1
    assert -20 < psnr < 30  # after training on one image
    saved = checkpoint(folder)
    trained, moments = saved["state_dict"], saved["optimizer_states"][0]["state"]
    assert saved["global_step"] == 1
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert all(moment["step"] == 1 for moment in moments.values())
    # after one step, the first moment is a tenth of the gradient
    gradients = [moment["exp_avg"] * 10 for moment in moments.values()]
    parameters = sum(gradient.numel() for gradient in gradients)
    assert parameters == {178: 43_680_771, 512: 45_742_851, 1024: 46_332_675}[size] + 795_904 * (method == "transinr")
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)
    bias = trained["network.biases.4"]  # initially zero; the first Adam step has the length of the learning rate
    assert bias.abs().tolist() == pytest.approx([1e-4] * 3, rel=1e-2)
