"""The study of methods after equal training time."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from program import TESTS

from composers.training.schedules import WarmupCosine
from studies import equal_time
from studies.equal_time import EqualTimeSettings, TimeBudget, main


def test_schedules_end_with_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(equal_time, "time", SimpleNamespace(monotonic=lambda: now[0]))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    schedule = WarmupCosine(optimizer, 1, 1000)
    configs = [SimpleNamespace(scheduler=schedule)]
    trainer, budget = SimpleNamespace(global_step=0, lr_scheduler_configs=configs, should_stop=False), TimeBudget(2)
    rates = []
    while not trainer.should_stop:
        trainer.global_step += 1
        budget.on_train_batch_end(trainer, None, None, None, trainer.global_step)
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
        now[0] += 3.0  # seconds per step
    assert trainer.global_step == 41  # the first step is not counted
    assert schedule.total_steps == pytest.approx(42, abs=1)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.01
    assert rates[20] == pytest.approx(0.5, abs=0.05)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="experiments contains photos_nothing, which .*configs/experiments does not"):
        EqualTimeSettings(("photos_ipc", "photos_nothing"))
    with pytest.raises(ValueError, match="minutes is 0.0, threads 1 and parallel 1: all must be positive"):
        EqualTimeSettings(("photos_ipc",), minutes=0.0)
    with pytest.raises(ValueError, match="minutes is -1; it must be positive"):
        TimeBudget(-1)


@pytest.mark.slow
def test_experiments_are_trained_tested_and_listed_once(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(equal_time, "EXPERIMENTS", TESTS / "configs")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    settings = EqualTimeSettings(("tiny_ipc",), minutes=0.02, output=tmp_path)
    main(settings)
    with (tmp_path / "equal_time.csv").open(newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert row["experiment"] == "tiny_ipc"
    assert int(row["steps"]) >= 1
    assert float(row["minutes"]) > 0.02
    assert int(row["code"]) > 0
    assert 0 < float(row["psnr@0"]) < 40
    monkeypatch.setattr(equal_time, "_run", None)  # complete runs are not repeated
    main(settings)


def test_failures_name_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(equal_time, "sys", SimpleNamespace(executable="false"))
    with pytest.raises(RuntimeError, match=r"cli.py fit failed with exit status 1: see .*photos_ipc/fit.log"):
        main(EqualTimeSettings(("photos_ipc",), output=tmp_path))
