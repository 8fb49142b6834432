"""The sweeps of LIIF: their variants, and the local study on metrics of super-resolution."""

from pathlib import Path

import pytest
import yaml
from planned_runs import planned_runs, train_here
from program import REPOSITORY, asked

from studies import ablations
from studies.ablations import Outcome

SWEEPS = REPOSITORY / "configs" / "sweeps"
PHOTOS, DIV2K = (SWEEPS / f"{name}.yaml" for name in ("liif_ablations", "div2k_liif_ablations"))
VARIANTS = sorted(path.stem for path in (SWEEPS / "liif_ablations").glob("*.yaml"))
TINY = [
    *("--data.init_args.size=8", "--data.init_args.num_queries=32", "--data.init_args.batch_size=4"),
    *("--data.init_args.repeat=1", "--data.init_args.val_scales=[8.0]", "--trainer.limit_train_batches=2"),
    *("--model.init_args.network.init_args.feature_dim=8", "--model.init_args.network.init_args.hidden_dim=8"),
    *("--model.init_args.encoder.init_args.width=8", "--model.init_args.encoder.init_args.num_blocks=1"),
    *("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu"),
]
CHANGED = {  # by variant: settings of network and data
    "published": {},
    "no_cell": {"use_cell": False},
    "no_unfold": {"unfold": False},
    "no_ensemble": {"ensemble": False},
    "two_hidden_layers": {"num_hidden": 2},
    "scale_4": {"scales": [4.0, 4.0]},
    "clipped_cells": {"clip_cells": True},
    "skip": {"skip": "bilinear"},
    "lte": {"features": "fourier", "num_hidden": 3, "skip": "bilinear", "clip_cells": True},
}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    """Run each test in the repository root, to which the paths of the sweeps are relative."""
    monkeypatch.chdir(REPOSITORY)


def _settings(parsed):
    """Return the settings of network and data of a parsed config."""
    return parsed["model"]["init_args"]["network"]["init_args"] | parsed["data"]["init_args"]


@pytest.mark.parametrize("sweep", [PHOTOS, DIV2K], ids=lambda path: path.stem)
def test_sweeps_list_every_variant_once_and_all_paths_exist(sweep):
    content = yaml.safe_load(sweep.read_text())
    files = content["parameters"]["config"]["values"]
    assert Path(files[0]).stem == "published"  # the baseline
    assert sorted(Path(file).stem for file in files) == VARIANTS == sorted(CHANGED)
    layers = [item.removeprefix("--config=") for item in content["command"] if item.startswith("--config=")]
    assert len(layers) == 2
    assert all(Path(path).is_file() for path in [*files, *layers])
    assert content["command"][-1] == "${args}"
    assert content["metric"]["name"] == "val/psnr"


@pytest.mark.slow
def test_variants_change_what_they_say_and_nothing_else():
    base = yaml.safe_load(asked("fit", "--config=configs/experiments/photos_liif_ablation.yaml", "--print_config"))
    assert (_settings(base)["skip"], _settings(base)["clip_cells"], _settings(base)["features"]) == (
        "none",
        False,
        "unfolded",
    )
    for variant, changed in CHANGED.items():
        layers = [
            f"--config=configs/{name}.yaml"
            for name in ("experiments/photos_liif_ablation", f"sweeps/liif_ablations/{variant}")
        ]
        parsed = yaml.safe_load(asked("fit", *layers, "--print_config"))
        assert _settings(parsed) == _settings(base) | changed


def _variants():
    """Return all variants as test parameters; most are slow."""
    return [pytest.param(name, marks=[] if name == "scale_4" else pytest.mark.slow) for name in VARIANTS]


@pytest.mark.parametrize("variant", _variants())
def test_variants_train(variant, tmp_path, monkeypatch):
    [planned] = planned_runs(PHOTOS, tmp_path, [variant], [0], TINY)
    train_here(planned, monkeypatch)
    result = ablations.outcome(planned)
    assert 5 < result.figures["psnr"] < 40
    assert 0 < result.figures["ssim"] <= 1
    assert (result.steps, result.code) == (2, 48 * 48 * (8 + 3 * (variant in ("skip", "lte"))))


def _outcome(variant, seed, **figures):
    """Return the outcome of a run."""
    return Outcome(variant, seed, 10, 100, 20, figures)


def test_results_are_shown_by_scale_where_runs_have_scales(tmp_path):
    scaled = {"psnr": 29.0, "psnr_x12": 22.0, "psnr_x2": 31.0, "bicubic_psnr_x2": 30.0, "ssim": 0.9}
    outcomes = [_outcome("published", seed, **scaled) for seed in range(2)] + [_outcome("skip", 0, **scaled, more=1.0)]
    assert ablations.shown(outcomes) == {"psnr_x2": "PSNR x2 [dB]", "psnr_x12": "PSNR x12 [dB]"}
    ablations.write(outcomes, tmp_path / "results.csv")
    restored = ablations.read(tmp_path / "results.csv")
    assert [result[:-1] for result in restored] == [result[:-1] for result in outcomes]
    assert all(result.figures == scaled for result in restored)
    assert len(ablations.table(outcomes).columns) == 5
    ablations.draw(outcomes).savefig(tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 5000
    plain = [_outcome("published", 0, psnr=29.0, ssim=0.9)]
    assert ablations.shown(plain) == {"psnr": "PSNR [dB]", "ssim": "SSIM"}
