"""Hyperband: the runs that W&B's own implementation stops."""

import json
from pathlib import Path

import pytest

from studies.hyperband import Hyperband, losses_of

CASES = json.loads(Path(__file__).with_name("wandb_sweeps.json").read_text())["hyperband"]


def test_stops_the_runs_that_wandb_stops():
    assert sum(bool(case["stopped"]) for case in CASES) > 20
    for case in CASES:
        hyperband = Hyperband(**{name: value for name, value in case["early_terminate"].items() if name != "type"})
        losses = [losses_of(values, case["goal"]) for values in case["histories"]]
        actual = [
            number
            for number, values in enumerate(losses)
            if hyperband.stops(values, losses[:number] + losses[number + 1 :])
        ]
        assert actual == case["stopped"], case


def test_run_that_is_alone_is_never_stopped():
    assert not Hyperband(min_iter=1).stops([5.0, 6.0, 7.0], [])
    assert not Hyperband(min_iter=4).stops([9.0, 9.0, 9.0], [[1.0] * 9, [2.0] * 9])  # before the first comparison


def test_values_that_are_not_finite_are_no_iterations():
    assert losses_of([1.0, float("nan"), 3.0], "maximize") == [-1.0, -3.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of min_iter"),
        ({"min_iter": 1, "max_iter": 9, "s": 1}, "exactly one of min_iter"),
        ({"min_iter": 0}, "min_iter is 0; it must be at least 1"),
        ({"max_iter": 9}, "max_iter needs s"),
        ({"max_iter": 2, "s": 2}, "leaves no iteration"),
        ({"min_iter": 1, "eta": 1}, "eta is 1; it must be greater than 1"),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        Hyperband(**settings)
