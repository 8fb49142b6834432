"""The rendering benchmark."""

import json

import pytest
import torch

from benchmarks import rendering
from benchmarks.rendering import RenderingMeasurement, RenderingSettings, main, measure, scene

SMALL = RenderingSettings(size=4, samples_per_ray=5, hidden_dim=8)


def test_all_pixels_are_rendered(monkeypatch):
    shapes = []
    original = rendering.VolumeRenderer.rendered
    monkeypatch.setattr(
        rendering.VolumeRenderer,
        "rendered",
        lambda *args: shapes.append(original(*args).values.shape) or original(*args),
    )
    measurement = measure(SMALL, 3)
    assert shapes == [(1, 16, 3), (1, 48, 3)]
    assert measurement.seconds > 0
    assert measurement.peak_mb < 200


def test_network_has_the_published_size():
    modulations = scene(256).keywords["modulations"]
    assert {name: modulation.shape for name, modulation in modulations.items()} == {"weight.1": (1, 256, 256)}
    assert scene(8)(torch.zeros(2, 3)).shape == (1, 2, 4)


def test_once_prints_a_measurement(capsys):
    main(["--once", "1", "--size=4", "--samples_per_ray=5", "--hidden_dim=8"])
    assert json.loads(capsys.readouterr().out).keys() == {"seconds", "peak_mb"}


def test_table_has_a_row_per_number_of_views(capsys):
    rendering.report(SMALL, {1: RenderingMeasurement(2.0, 30.0), 8: RenderingMeasurement(32.0, 31.0)})
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [[line[1], line[3], line[5]] for line in lines] == [["1", "30", "2.0"], ["8", "31", "4.0"]]


@pytest.mark.parametrize("changes", [{"views": ()}, {"views": (0,)}, {"size": 0}, {"hidden_dim": 0}], ids=str)
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match="each must be positive"):
        RenderingSettings(**changes)
