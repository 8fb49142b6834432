"""Data configs of super-resolution state the published protocols: scales, borders, channels, and sizes of training."""

from contextlib import chdir

import pytest
from program import REPOSITORY

from datamodules.configuration import load_layers

DATA = REPOSITORY / "configs" / "data"
WIDE = [2, 3, 4, 6, 12, 18, 24, 30]
NARROW = [2, 3, 4, 6, 8]

# Columns: data set, arguments of it, border, luminance, scales of testing.
PROTOCOLS = {
    "div2k": ("DIV2K", {"val_count": 10}, "scale+6", False, WIDE),
    "set5": ("SRBenchmark", {"benchmark": "Set5"}, "scale", True, NARROW),
    "set14": ("SRBenchmark", {"benchmark": "Set14"}, "scale", True, NARROW),
    "b100": ("SRBenchmark", {"benchmark": "B100"}, "scale", True, NARROW),
    "urban100": ("SRBenchmark", {"benchmark": "Urban100"}, "scale", True, NARROW),
    "folder": ("ImageFolder", {}, "scale", False, NARROW),
    "celeba_hq": ("ImageFolder", {}, "none", False, [2, 4]),
}


def _layers(name):
    """Return a data config merged over its bases."""
    with chdir(DATA):
        return load_layers((DATA / f"super_resolution_{name}.yaml").read_text())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_evaluation_is_as_published(name):
    data_set, arguments, border, luma, scales = PROTOCOLS[name]
    config = _layers(name)
    options = config["data"]["init_args"]
    assert config["data"]["class_path"] == "datamodules.SuperResolution"
    assert options["images"]["class_path"] == f"datamodules.{data_set}"
    assert arguments.items() <= options["images"]["init_args"].items()
    assert (options["border"], options["luma"], options["test_scales"]) == (border, luma, scales)
    metrics = config["model"]["init_args"]["metrics"]
    assert {key: metric["class_path"] for key, metric in metrics.items()} == {
        "psnr": "composers.metrics.PSNR",
        "ssim": "composers.metrics.SSIM",
    }
    for metric in metrics.values():
        assert metric["init_args"] == ({"clip": True, "luma": True} if luma else {"clip": True})


def test_training_is_as_published():
    published = {"size": 48, "scales": [1, 4], "num_queries": 2304, "repeat": 20, "symmetries": "all", "batch_size": 16}
    assert published.items() <= _layers("div2k")["data"]["init_args"].items()
    faces = {"size": 64, "scales": [1, 4], "num_queries": 1024, "repeat": 1, "symmetries": "mirror", "batch_size": 16}
    assert (faces | {"crop": False}).items() <= _layers("celeba_hq")["data"]["init_args"].items()
