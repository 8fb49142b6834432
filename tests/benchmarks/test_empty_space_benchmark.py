"""The benchmarks of rendering and training with empty space skipped."""

import pytest
import torch

from benchmarks import empty_space, reference, view_training
from benchmarks.empty_space import EmptySpaceSettings
from benchmarks.fitted_scene import chair, fit, solid_field
from benchmarks.view_training import Ratio, StepSeconds, ViewTrainingSettings
from composers.networks import CoordinateMLP, FourierFeatures


def test_the_field_of_the_chair_has_density_inside_and_its_colours():
    solid = chair()
    part = solid.parts[0]
    inside = torch.tensor(part.position)[None]
    points = torch.stack((inside[:, 0], -inside[:, 2], inside[:, 1]), dim=-1)  # upright along the third axis
    raw = solid_field(solid)(torch.cat((points, torch.full((1, 3), 3.0, dtype=torch.float64))))
    assert raw.shape == (1, 2, 4)
    assert raw[0, 0, 3] > 0
    assert raw[0, 1, 3] == -50
    torch.testing.assert_close(
        raw[0, 0, :3].sigmoid(), torch.tensor(part.colour, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_a_network_is_fitted_to_the_chair():
    torch.manual_seed(0)
    network = CoordinateMLP(3, 4, 32, 3, (1,), FourierFeatures(4, 8.0, use_pi=False), output_offset=0.0)
    field = network.bind(fit(network, chair(), 60, 600))
    points = 2 * torch.rand(4000, 3) - 1
    expected, actual = solid_field(chair())(points)[0, :, 3], field(points)[0, :, 3].detach()
    assert float(torch.corrcoef(torch.stack((expected, actual)))[0, 1]) > 0.3


def test_all_renderers_are_measured(capsys):
    measured = empty_space.main(["--size=6", "--samples_per_ray=8", "--fit_steps=2", "--cells=8", "--repeats=1"])
    assert list(measured) == ["plain", "occupancy", "radius", "radius and occupancy"]
    assert all(row.seconds > 0 for row in measured.values())
    assert measured["plain"].psnr_network > 60  # float32 against float64
    assert "plain / this" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [0, 2])
def test_all_formulations_of_training_are_measured(capsys, steps):
    small = ["--rays=8", "--samples_per_ray=8", "--hidden_dim=8", "--repeats=1", f"--fit_steps={steps}"]
    measured = view_training.main(small)
    assert list(measured) == ["plain", "all samples", "ours"]
    assert measured["plain"].gradient_difference == 0
    assert "of the samples have density" in capsys.readouterr().out


SMALL_STEP = [
    *("--complete=true", "--rays=40", "--samples_per_ray=128", "--hidden_dim=8", "--size=16", "--embed_dim=12"),
    *("--num_blocks=2", "--repeats=2", "--share=0.25"),
]


def test_complete_steps_are_measured_by_parts(capsys):
    measured = view_training.main(SMALL_STEP)
    assert list(measured) == ["plain", "all samples", "ours"]
    assert measured["plain"].ratio == Ratio(1, 1, 1)
    for row in measured.values():
        assert min(row.seconds) > 0
        assert row.ratio.low <= row.ratio.median <= row.ratio.high
        assert row.gradient_difference < 1e-6
    assert "25 % of the samples have density" in capsys.readouterr().out


def test_ratios_are_those_of_pairs_of_steps_with_a_share_of_the_update():
    plain = [StepSeconds(6.0, 2.0, 1.0), StepSeconds(4.0, 2.0, 1.0), StepSeconds(8.0, 2.0, 1.0)]
    steps = [StepSeconds(3.0, 1.0, 1.0), StepSeconds(4.0, 1.0, 1.0), StepSeconds(3.0, 1.0, 1.0)]
    assert view_training._ratio(plain, steps) == Ratio(9 / 5, 7 / 6, 11 / 5)
    assert view_training._ratio(plain, steps, update_share=0.0) == Ratio(2.0, 6 / 5, 10 / 4)
    assert str(Ratio(1.254, 1.2, 1.3)) == "1.25 (1.20 to 1.30)"


def test_differing_complete_steps_raise_an_error(monkeypatch):
    original = reference.PlainVolumeRenderer.forward
    monkeypatch.setattr(reference.PlainVolumeRenderer, "forward", lambda *args: original(*args) + 0.01)
    with pytest.raises(ValueError, match="a formulation is wrong"):
        view_training.main(SMALL_STEP)


def test_the_share_of_samples_with_density_is_set():
    settings = ViewTrainingSettings(rays=40, samples_per_ray=16, hidden_dim=8, repeats=1, fit_steps=0, share=0.25)
    share, measured = view_training.measure(settings)
    assert share == pytest.approx(0.25, abs=0.01)
    assert measured["ours"].gradient_difference <= 1e-5
    with pytest.raises(ValueError, match="share is 1"):
        ViewTrainingSettings(share=1.0)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [(EmptySpaceSettings, {"size": 0}), (EmptySpaceSettings, {"repeats": 0}), (ViewTrainingSettings, {"rays": 0})],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, changes):
    with pytest.raises(ValueError, match="must be positive"):
        settings(**changes)
