"""The ablation study: the runs of the sweep, the collected results, and the table in the documentation."""

import json
import re
import statistics
from pathlib import Path

import pytest
import yaml
from planned_runs import planned_runs, train_here
from program import REPOSITORY, asked

from studies import ablations, sweep

SWEEP = REPOSITORY / "configs" / "sweeps" / "ablations.yaml"
MEASURED = REPOSITORY / "docs" / "ablations.csv"
TINY = [
    *("--data.init_args.size=8", "--data.init_args.crops_per_epoch=16", "--data.init_args.batch_size=8"),
    *("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"),
    *("--model.init_args.encoder.init_args.patch_size=4", "--model.init_args.refinement.init_args.steps=1"),
]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    """Run each test in the repository root, to which the paths of the sweep are relative."""
    monkeypatch.chdir(REPOSITORY)


def test_sweep_lists_every_variant_once_and_all_paths_exist():
    sweep = yaml.safe_load(SWEEP.read_text())
    files = sweep["parameters"]["config"]["values"]
    assert sorted(files) == sorted(str(path.relative_to(REPOSITORY)) for path in SWEEP.parent.glob("ablations/*.yaml"))
    layers = [item.removeprefix("--config=") for item in sweep["command"] if item.startswith("--config=")]
    assert all(Path(path).is_file() for path in layers)
    assert sweep["command"][-1] == "${args}"


def leaves(mapping, prefix=()):
    """Return the values of nested mappings by key path."""
    values = {}
    for key, value in mapping.items():
        nested = isinstance(value, dict) and value
        values |= leaves(value, (*prefix, key)) if nested else {(*prefix, key): value}
    return values


def test_every_variant_changes_one_setting():
    command = [item for item in yaml.safe_load(SWEEP.read_text())["command"] if item.startswith("--config=")]
    base = leaves(yaml.safe_load(asked("fit", *command, "--print_config")))
    changes = []
    for file in SWEEP.parent.glob("ablations/*.yaml"):
        changed = leaves(yaml.safe_load(file.read_text()))
        assert len(changed) == (file.stem != "published")
        assert all(base[path] != value for path, value in changed.items())
        changes += [(path, str(value)) for path, value in changed.items()]
    assert len(changes) == len(set(changes)) == 14


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(path.stem for path in SWEEP.parent.glob("ablations/*.yaml")))
def test_every_variant_trains(variant, tmp_path, monkeypatch):
    [planned] = planned_runs(SWEEP, tmp_path, [variant], [0], TINY)
    train_here(planned, monkeypatch)
    assert ablations.outcome(planned).figures["refined_psnr"] > 0


def test_runs_are_ordered_by_seed(tmp_path):
    planned = planned_runs(SWEEP, tmp_path, ["published", "rank_4"], [0, 2])
    assert [(Path(item.values["config"]).stem, item.values["seed_everything"]) for item in planned] == [
        ("published", 0),
        ("rank_4", 0),
        ("published", 2),
        ("rank_4", 2),
    ]
    assert planned[3].command[1:8] == [
        "python",
        "cli.py",
        "fit",
        "--config=configs/experiments/photos_ablation.yaml",
        "--config=configs/overlays/wandb.yaml",
        "--config=configs/sweeps/ablations/rank_4.yaml",
        "--seed_everything=2",
    ]
    assert planned[3].folder == tmp_path / "004"


@pytest.mark.slow
def test_results_match_the_log_and_are_drawn(tmp_path, capsys):
    only = {"config": ["configs/sweeps/ablations/rank_4.yaml"], "seed_everything": [1]}
    options = ", ".join(f'"{option}"' for option in TINY)
    sweep.main([str(SWEEP), f"--output={tmp_path}", f"--only={json.dumps(only)}", f"--options=[{options}]"])
    results = ablations.read(tmp_path / "ablations.csv")
    assert [(item.variant, item.seed, item.steps, item.code) for item in results] == [("rank_4", 1, 2, 64 * 4)]
    log = (tmp_path / "001" / "version_0" / "metrics.csv").read_text().splitlines()
    last = dict(zip(log[0].split(","), log[-1].split(","), strict=True))
    assert results[0].figures["gain"] == pytest.approx(float(last["val/gain"]), abs=1e-4)
    assert results[0].figures["refined_psnr"] == pytest.approx(float(last["val/refined_psnr"]), abs=1e-4)
    assert (tmp_path / "ablations.png").stat().st_size > 5000
    assert "predicted gain [dB]" in capsys.readouterr().out


def test_documentation_shows_the_results():
    outcomes = ablations.read(MEASURED)
    sweep = yaml.safe_load(SWEEP.read_text())
    variants = [Path(file).stem for file in sweep["parameters"]["config"]["values"]]
    seeds = sweep["parameters"]["seed_everything"]["values"]
    assert sorted((result.variant, result.seed) for result in outcomes) == sorted(
        (name, seed) for name in variants for seed in seeds
    )
    document = (REPOSITORY / "docs" / "results.md").read_text()
    for name in variants:
        [row] = re.findall(rf"^\| `{name}` \|(.*)\|$", document, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")]
        for figure in ("gain", "refined_gain"):
            numbers = ablations.by_variant(outcomes, figure)[name]
            assert f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}" in cells
