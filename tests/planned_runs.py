"""The runs of a bundled ablation study, trained within a test."""

from program import run

from studies.sweep import LocalSweep, SweepSettings


def planned_runs(path, output, variants, seeds, options=()):
    """Return the runs of some variants and seeds of a sweep.

    Args:
        path: Sweep file ``configs/sweeps/NAME.yaml``.
        output: Folder for the runs.
        variants: Names of the files of variants.
        seeds: Seeds.
        options: Additional arguments of the program.
    """
    folder = "liif_ablations" if "liif" in path.stem else path.stem
    files = [f"configs/sweeps/{folder}/{variant}.yaml" for variant in variants]
    only = {"config": files, "seed_everything": seeds}
    local = LocalSweep(SweepSettings(path, output, only=only, options=tuple(options)))
    return [local.planned(number) for number in range(1, local.count + 1)]


def train_here(planned, monkeypatch):
    """Train a run in this process."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run(*planned.command[planned.command.index("cli.py") + 1 :])
