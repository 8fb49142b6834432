"""Experiments of super-resolution: settings against the published values, and a training step at full size."""

import pytest
import torch
import yaml
from PIL import Image
from program import REPOSITORY, asked, checkpoint, column, run

from benchmarks import cost
from datamodules import SuperResolution
from datamodules.images.degradation import Bicubic, Realistic

EXPERIMENTS = REPOSITORY / "configs" / "experiments"
DATA = REPOSITORY / "configs" / "data"
EDSR, RDN = 1_220_416, 21_973_952  # parameters of the encoders
LIIF_MLP, LTE_MLP = 346_883, 493_827
# By experiment: parameters, arguments of the data, epochs, milestones and factor of the learning rate.
DIV2K = {"size": 48, "scales": [1.0, 4.0], "num_queries": 2304, "repeat": 20, "crop": True, "symmetries": "all"}
DIV2K |= {"border": "scale+6", "test_scales": [2, 3, 4, 6, 12, 18, 24, 30]}
CELEBA_HQ = {"size": 64, "scales": [1.0, 4.0], "num_queries": 1024, "repeat": 1, "crop": False, "symmetries": "mirror"}
CELEBA_HQ |= {"border": "none"}
STEPS = [200_000, 400_000, 600_000, 800_000]
PUBLISHED = {
    "div2k_edsr_liif": (EDSR + LIIF_MLP, DIV2K, 1000, STEPS, 0.5),
    "div2k_rdn_liif": (RDN + LIIF_MLP, DIV2K, 1000, STEPS, 0.5),
    "div2k_edsr_lte": (EDSR + LTE_MLP, DIV2K, 1000, STEPS, 0.5),
    "celebahq_liif": (EDSR + LIIF_MLP, CELEBA_HQ, 200, [156_200], 0.1),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run each test in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _parsed(*names):
    """Return the complete config of an experiment and further configs as parsed by the program."""
    layers = [part for name in names for part in ("--config", REPOSITORY / "configs" / f"{name}.yaml")]
    return yaml.safe_load(asked("fit", *layers, "--print_config"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_hyper_parameters_match_the_paper(name):
    _, data, epochs, milestones, factor = PUBLISHED[name]
    config = _parsed(f"experiments/{name}")
    trainer, model = config["trainer"], config["model"]["init_args"]
    assert (trainer["max_epochs"], trainer["precision"], trainer["gradient_clip_val"]) == (epochs, "32-true", None)
    assert config["seed_everything"] == 0
    arguments = config["data"]["init_args"]
    assert {key: arguments[key] for key in data} == data
    assert (arguments["batch_size"], arguments["degradation"], arguments["augment"]) == (16, None, None)
    assert model["optimizer"]["class_path"] == "torch.optim.Adam"
    optimizer = model["optimizer"]["init_args"]
    assert (optimizer["lr"], list(optimizer["betas"]), optimizer["weight_decay"]) == (1e-4, [0.9, 0.999], 0.0)
    assert model["scheduler"]["class_path"] == "torch.optim.lr_scheduler.MultiStepLR"
    scheduler = model["scheduler"]["init_args"]
    assert (scheduler["milestones"], scheduler["gamma"]) == (milestones, factor)
    assert model["loss"] is None  # that of LIIF, the absolute error
    assert model["metrics"]["psnr"]["init_args"]["clip"] is True


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_and_encoders_match_the_papers(name):
    network = _parsed(f"experiments/{name}")["model"]["init_args"]["network"]["init_args"]
    assert (network["hidden_dim"], network["feature_dim"], network["ensemble"]) == (256, 64, True)
    assert network["use_cell"] is True
    lte = name.endswith("lte")
    assert network["num_hidden"] == (3 if lte else 4)
    assert (network["features"], network["skip"], network["clip_cells"]) == (
        ("fourier", "bilinear", True) if lte else ("unfolded", "none", False)
    )
    composer, data, _ = cost.build(EXPERIMENTS / f"{name}.yaml")
    assert sum(parameter.numel() for parameter in composer.parameters()) == PUBLISHED[name][0]
    assert isinstance(data, SuperResolution)
    assert isinstance(data.degradation, Bicubic)
    assert composer.network.max_scale == 4


def test_the_schedule_has_the_steps_of_its_epochs():
    _, data, _ = cost.build(EXPERIMENTS / "div2k_edsr_liif.yaml")
    per_epoch = cost.published_items(data) // data.batch_size
    assert [step / per_epoch for step in STEPS] == [200, 400, 600, 800]
    assert PUBLISHED["celebahq_liif"][3][0] == 25_000 // 16 * 100


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_experiment_states_its_cost(name):
    header = (EXPERIMENTS / f"{name}.yaml").read_text().split("_base_")[0]
    for part in ("docs/experiments.md", "M parameters", "TFLOP", "Disk:", "--trainer.devices 4"):
        assert part in header
    assert ("RTX 3090" in header) == name.startswith("div2k")


@pytest.mark.parametrize("benchmark", ["Set5", "Set14", "B100", "Urban100"])
def test_benchmarks_are_laid_over_an_experiment(benchmark):
    config = _parsed("experiments/div2k_edsr_liif", f"data/super_resolution_{benchmark.lower()}")
    arguments, model = config["data"]["init_args"], config["model"]["init_args"]
    assert arguments["images"]["class_path"].endswith(".SRBenchmark")
    assert arguments["images"]["init_args"]["benchmark"] == benchmark
    assert (arguments["border"], arguments["test_scales"]) == ("scale", [2, 3, 4, 6, 8])
    assert arguments["scales"] == [1.0, 4.0]  # of training, which clipped cells depend on
    assert model["metrics"]["psnr"]["init_args"] == {"clip": True, "luma": True}
    assert model["encoder"]["init_args"]["num_blocks"] == 16


def test_experiments_on_photographs_share_data_and_model():
    base = _parsed("experiments/photos_liif")
    realistic = _parsed("experiments/photos_liif_realistic")
    assert realistic["model"] == base["model"]
    degradation = realistic["data"]["init_args"].pop("degradation")
    assert base["data"]["init_args"].pop("degradation") is None
    assert realistic["data"] == base["data"]
    _, data, _ = cost.build(EXPERIMENTS / "photos_liif_realistic.yaml")
    assert degradation["class_path"].endswith(".Realistic")
    assert vars(data.degradation) == vars(Realistic())
    folder = _parsed("experiments/folder_liif")
    assert folder["model"] == base["model"]
    for key in ("size", "scales", "num_queries", "batch_size", "augment", "repeat"):
        assert folder["data"]["init_args"][key] == base["data"]["init_args"][key]
    assert folder["data"]["init_args"]["images"]["class_path"].endswith(".ImageFolder")


def test_ipc_on_feature_maps_shares_encoder_data_and_training_with_liif():
    base, other = _parsed("experiments/photos_liif"), _parsed("experiments/photos_liif_ipc")
    assert other["data"] == base["data"]
    liif, ipc = base["model"]["init_args"], other["model"]["init_args"]
    assert ipc["start"]["init_args"]["encoder"] == liif["encoder"]
    for key in ("optimizer", "scheduler", "metrics"):
        assert ipc[key] == liif[key]
    assert ipc["loss"]["class_path"].endswith(".MeanAbsoluteError")  # the default of LIIF
    for key in ("max_epochs", "gradient_clip_val", "precision"):
        assert other["trainer"][key] == base["trainer"][key]
    assert ipc["network"]["init_args"]["skip"] == liif["network"]["init_args"]["skip"] == "bilinear"
    (first, _, _), (second, _, _) = (
        cost.build(EXPERIMENTS / f"{name}.yaml") for name in ("photos_liif", "photos_liif_ipc")
    )
    assert second.network.max_scale == first.network.max_scale == 4
    encoders = [composer.start.encoder.state_dict() for composer in (first, second)]
    assert {key: value.shape for key, value in encoders[0].items()} == {
        key: value.shape for key, value in encoders[1].items()
    }


def _images(folder, count, size):
    """Write images of noise."""
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number:04}.png")


def _step(name, *arguments):
    """Take one training step and one validation batch of an experiment, and return the folder of the run."""
    settings = {
        "trainer.max_epochs": 1,
        "trainer.max_steps": 1,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.val_check_interval": 1,
        "trainer.limit_val_batches": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.accelerator": "cpu",
        "data.init_args.num_workers": 0,
    }
    options = [part for option, value in settings.items() for part in (f"--{option}", value)]
    run("fit", "--config", EXPERIMENTS / f"{name}.yaml", *options, *arguments)
    return f"runs/{name}/version_0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch_size"),
    [("div2k_edsr_liif", 16), ("div2k_edsr_lte", 4), ("div2k_rdn_liif", 1), ("celebahq_liif", 4)],
)
def test_experiment_trains_a_step_at_full_size(name, batch_size, tmp_path):
    _images(tmp_path / "images" / "train", 16, (256, 256))
    _images(tmp_path / "images" / "val", 1, (128, 130))
    images = "--data.init_args.images={class_path: datamodules.ImageFolder, init_args: {root: images, cache: null}}"
    folder = _step(name, images, "--data.init_args.batch_size", batch_size, "--data.init_args.val_scales=[2.0]")
    [loss], [psnr] = (column(f"{folder}/metrics.csv", key) for key in ("train/loss", "val/psnr"))
    assert 0 < loss < 1
    assert 0 < psnr < 40
    saved = checkpoint(folder)
    moments = saved["optimizer_states"][0]["state"]
    assert saved["global_step"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
    assert sum(moment["exp_avg"].numel() for moment in moments.values()) == PUBLISHED[name][0]
    if not name.endswith("lte"):  # whose layers before the last have no gradient at the first step
        assert all(moment["exp_avg"].abs().max() > 0 for moment in moments.values())


@pytest.mark.parametrize("name", ["photos_liif_realistic", "folder_liif"])
def test_small_experiments_train_a_step(name, tmp_path):
    _images(tmp_path / "images", 10, (60, 70))
    options = ["--data.init_args.images.init_args.root=images"] if name == "folder_liif" else []
    small = ["--data.init_args.val_scales=[8.0]", "--data.init_args.batch_size=2"]
    folder = _step(name, *options, *small)
    [loss] = column(f"{folder}/metrics.csv", "train/loss")
    assert 0 < loss < 1
