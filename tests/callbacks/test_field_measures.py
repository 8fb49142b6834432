"""Measures of fields: decoding at a larger scale, subsets of samples and derivatives, against naive references."""

import csv
import math
import sys

import numpy as np
import pytest
import torch
from flat_images import SHAPE, FlatData, FlatImages
from fourier_series import series_composer, series_signal
from hums import Hums, build_ipc
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from program import REPOSITORY, TESTS, column, refused, rows, run, tiny

from callbacks.field_measures import FieldMeasures, field_table
from callbacks.fields import (
    FieldItem,
    NotMeasurableError,
    ScalePair,
    decoding_measures,
    derivative_measures,
    item_of,
    reconstruct,
    scale_pair,
    subset_measures,
)
from callbacks.fields.derivatives import central_differences, correlation, gradient_snr
from callbacks.fields.subsets import interpolated, known_samples
from composers import Composer, Refinement
from composers.encoders import PerToken
from composers.inference import Hypernetwork
from composers.latents import Direct
from composers.losses import MeanSquaredError
from datamodules import SamplePhotos
from datamodules.batch import CoordinateBatch, Observation, Samples
from datamodules.domain import Grid
from modalities.audio_losses import MultiResolutionSTFT
from modalities.resampling import downscaled, upscaled

DOMAINS = {1: Grid(((-1.0, 1.0),)), 2: Grid.unit(2)}
FILTERS = {1: "sinc", 2: "bicubic"}
OVERLAY = REPOSITORY / "configs" / "overlays" / "field_measures.yaml"


def _psnr(actual, expected):
    return -10 * math.log10(float((actual - expected).double().square().mean()))


def _pair(axes, small=16, factor=4, channels=3):
    """Return samples of one random series at two scales."""
    coefficients = 0.2 * torch.randn(1 + 4 * axes, channels)
    shapes = [(size,) * axes for size in (small, factor * small)]
    return ScalePair(*(series_signal(DOMAINS[axes], shape, coefficients) for shape in shapes))


def _item(signal, mask=None, name="a"):
    return FieldItem(name, signal, mask, signal, mask)


@pytest.mark.parametrize("axes", [1, 2])
def test_exact_field_is_decoded_exactly_and_interpolation_is_not(axes):
    composer, pair = series_composer(axes), _pair(axes)
    with torch.no_grad():
        reconstruction = reconstruct(composer, pair.signal, DOMAINS[axes])
        row = decoding_measures(composer, pair, reconstruction, DOMAINS[axes], FILTERS[axes])
    expected = _psnr(upscaled(pair.signal, 4, FILTERS[axes]), pair.original)
    assert list(row) == ["field", FILTERS[axes], f"{FILTERS[axes]}_of_input", "gain"]
    assert row["field"] > 90
    assert row[FILTERS[axes]] == pytest.approx(expected, abs=1e-2)
    assert row[f"{FILTERS[axes]}_of_input"] == pytest.approx(expected, abs=1e-3)
    assert row["gain"] == pytest.approx(row["field"] - row[FILTERS[axes]])
    assert row["gain"] > 30


@pytest.mark.parametrize("axes", [1, 2])
def test_gradients_of_an_exact_field_are_those_of_the_original(axes):
    composer, pair = series_composer(axes), _pair(axes)
    with torch.no_grad():
        reconstruction = reconstruct(composer, pair.signal, DOMAINS[axes])
        row = derivative_measures(composer, pair, reconstruction, DOMAINS[axes], FILTERS[axes])
    assert row["field"] > 40
    assert row["field"] > row[FILTERS[axes]] + 10
    assert row["correlation"] > 0.9999
    values = torch.autograd.functional.jacobian(
        lambda coords: reconstruction.field(coords).sum(), DOMAINS[axes].coords(pair.original.shape[2:])
    )
    gradients = values.mT.unflatten(-1, pair.original.shape[2:])[(slice(None), *[slice(1, -1)] * axes)]
    differences = _differences(pair.original[0].sum(0), 2 / 64)
    ratio = (gradients - differences).square().sum() / differences.square().sum()
    assert row["field"] == pytest.approx(-10 * math.log10(ratio), abs=0.05)
    interpolated_values = upscaled(pair.signal, 4, FILTERS[axes])[0].sum(0)
    ratio = (_differences(interpolated_values, 2 / 64) - differences).square().sum() / differences.square().sum()
    assert row[FILTERS[axes]] == pytest.approx(-10 * math.log10(ratio), abs=0.05)


def _differences(values, cell):
    """Return central differences of inner samples by loops over samples."""
    inner = [range(1, size - 1) for size in values.shape]
    result = torch.zeros(values.dim(), *(size - 2 for size in values.shape))
    for place in np.ndindex(*(len(span) for span in inner)):
        for axis in range(values.dim()):
            below, above = [n + 1 for n in place], [n + 1 for n in place]
            below[axis] -= 1
            above[axis] += 1
            result[(axis, *place)] = (values[tuple(above)] - values[tuple(below)]) / (2 * cell)
    return result


@pytest.mark.parametrize("shape", [(9,), (5, 4), (3, 4, 5)])
def test_central_differences(shape):
    signal, cells = torch.rand(1, 2, *shape), torch.full((len(shape),), 0.25)
    expected = _differences(signal[0].sum(0), 0.25)
    torch.testing.assert_close(central_differences(signal, cells), expected)


def test_signal_to_noise_ratio_and_correlation():
    true = torch.randn(2, 50)
    assert gradient_snr(1.1 * true, true) == pytest.approx(20, abs=1e-4)
    assert gradient_snr(torch.zeros_like(true), true) == pytest.approx(0)
    other = torch.randn(2, 50)
    assert correlation(other, true) == pytest.approx(np.corrcoef(other.flatten(), true.flatten())[0, 1])
    assert correlation(torch.ones(4), torch.rand(4)) == 0


def test_gradients_beside_padding_are_left_out():
    composer, pair = series_composer(1), _pair(1, factor=1, small=40)
    mask = torch.arange(40) < 30
    padded = torch.where(mask, pair.original, torch.rand(1, 3, 40))
    with torch.no_grad():
        reconstruction = reconstruct(composer, pair.signal, DOMAINS[1])
        rows = [
            derivative_measures(
                composer, ScalePair(pair.signal, values, mask, mask), reconstruction, DOMAINS[1], "sinc"
            )
            for values in (pair.original, padded)
        ]
    assert rows[0] == rows[1]


def test_items_without_gradients_are_not_measured():
    composer = series_composer(2)
    for shape, reason in (((2, 8), "no central differences"), ((8, 8), "no gradient")):
        pair = ScalePair(torch.zeros(1, 3, *shape), torch.zeros(1, 3, *shape))
        reconstruction = composer.reconstruction({"coefficients": torch.rand(1, 9, 3)})
        with pytest.raises(NotMeasurableError, match=reason):
            derivative_measures(composer, pair, reconstruction, DOMAINS[2], "bicubic")


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("fraction", [0.5, 0.2])
def test_exact_field_is_found_from_a_subset(axes, fraction):
    composer, signal = series_composer(axes), _pair(axes, small=24).signal
    with torch.no_grad():
        row = subset_measures(composer, _item(signal), DOMAINS[axes], fraction)
    known = known_samples("a", torch.ones(24**axes, dtype=torch.bool), fraction)
    unseen = np.setdiff1d(np.arange(24**axes), known.numpy())
    assert len(known) == round(fraction * 24**axes)
    assert row["start"] > 90
    assert row["field"] > 30  # after a step of Adam away from the optimum
    for method in ("linear", "nearest"):
        values = interpolated(signal, known, method)
        assert row[method] == pytest.approx(_psnr(values, signal), abs=1e-3)
        expected = _psnr(values.flatten(2)[..., unseen], signal.flatten(2)[..., unseen])
        assert row[f"{method}_unseen"] == pytest.approx(expected, abs=1e-3)
        assert row["start_unseen"] > row[f"{method}_unseen"] + 10


def test_refinement_and_encoder_see_the_subset_only(make_ipc):
    composer = make_ipc(refinement=Refinement(3, report=())).eval()
    signal, domain = torch.rand(1, *SHAPE), Grid.unit(2)
    with torch.no_grad():
        row = subset_measures(composer, _item(signal), domain, 0.3, fill="nearest")
        known = known_samples("a", torch.ones(96, dtype=torch.bool), 0.3)
        samples = Samples(domain.coords(SHAPE[1:])[known], signal.flatten(2).mT[:, known])
        filled = interpolated(signal, known, "nearest")
        latents = composer.refine(composer.encode(Observation(filled)), samples)
        for name, step in (("start", 0), ("field", 3)):
            values = composer.render(composer.compose(latents[step]), domain.coords(SHAPE[1:]))
            assert row[name] == pytest.approx(_psnr(values, signal.flatten(2).mT), abs=1e-3)
        other = torch.rand(1, *SHAPE)
        other.flatten(2)[..., known] = signal.flatten(2)[..., known]
        assert torch.equal(interpolated(other, known, "linear"), interpolated(signal, known, "linear"))


def test_a_loss_of_whole_signals_cannot_be_minimised_on_a_subset():
    composer = build_ipc(signal_shape=(1, 200))
    composer.loss = MultiResolutionSTFT((16,))
    item = _item(0.4 * torch.randn(1, 1, 200))
    with pytest.raises(NotMeasurableError, match="MultiResolutionSTFT compares whole signals: give refinement a loss"):
        subset_measures(composer, item, DOMAINS[1], 0.5)
    composer.refinement = Refinement(3, report=(), loss=MeanSquaredError())
    with torch.no_grad():
        assert subset_measures(composer, item, DOMAINS[1], 0.5)["field"] > 0


def test_padding_is_neither_known_nor_compared():
    composer = build_ipc(signal_shape=(1, 200))
    signal, mask = 0.4 * torch.randn(1, 1, 200), torch.arange(200) < 150
    assert known_samples("a", mask, 0.5).max() < 150
    assert len(known_samples("a", mask, 0.5)) == 75
    with torch.no_grad():
        row = subset_measures(composer, _item(signal, mask), DOMAINS[1], 0.5)
    known = known_samples("a", mask, 0.5)
    values = interpolated(signal, known, "linear")[..., :150]
    assert row["linear"] == pytest.approx(_psnr(values, signal[..., :150]), abs=1e-3)


def test_known_samples_depend_on_seed_name_and_fraction_only(monkeypatch):
    measured = torch.ones(100, dtype=torch.bool)
    first = known_samples("a", measured, 0.2)
    assert torch.equal(first, known_samples("a", measured, 0.2))
    assert not torch.equal(first, known_samples("b", measured, 0.2))
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(first, known_samples("a", measured, 0.2))


@pytest.mark.parametrize("shape", [(30,), (9, 7)])
def test_interpolation_of_known_samples(shape):
    places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), dim=-1).float()
    plane = (places @ torch.arange(1.0, 1.0 + len(shape))).expand(1, 2, *shape).contiguous()
    corners = torch.tensor([0, shape[-1] - 1, plane[0, 0].numel() - shape[-1], plane[0, 0].numel() - 1])
    known = torch.cat((corners, torch.tensor([5, 11, 17]))).unique()
    torch.testing.assert_close(interpolated(plane, known, "linear"), plane)
    noise = torch.rand(1, 2, *shape)
    flat, points = noise[0].flatten(1), places.flatten(0, -2)
    distances = (points[:, None] - points[known]).norm(dim=-1)
    nearest = interpolated(noise, known, "nearest")[0].flatten(1)
    for index in range(len(points)):
        ties = known[distances[index] == distances[index].min()]
        assert nearest[:, index].tolist() in flat[:, ties].mT.tolist()
    mean = interpolated(noise, known, "mean")[0].flatten(1)
    assert torch.equal(mean[:, known], flat[:, known])
    torch.testing.assert_close(mean[:, 1], flat[:, known].mean(1))


@pytest.mark.parametrize("known", [[3], [3, 10, 17]], ids=["one", "on a line"])
def test_interpolation_of_too_few_samples_takes_the_nearest(known):
    signal, known = torch.rand(1, 1, 7, 7), torch.tensor(known)
    assert torch.equal(interpolated(signal, known, "linear"), interpolated(signal, known, "nearest"))


class _Sources(FlatData):
    """Images whose sources have 41 x 50 pixels."""

    def source_signal(self, name, shape=None):
        source = torch.arange(3 * 41 * 50).view(3, 41, 50).remainder(256).to(torch.uint8)
        if shape is None:
            return source
        return source[:, : shape[0], : shape[1]] if shape[0] <= 41 and shape[1] <= 50 else None


def test_models_of_one_size_get_a_source_of_the_required_size(tiny_ipc):
    item = _item(torch.rand(1, *SHAPE))
    pair = scale_pair(tiny_ipc, _Sources(), item, 4, 8, "bicubic")
    assert torch.equal(pair.original[0], _Sources().source_signal("a", (32, 48)) / 255)
    assert torch.equal(pair.signal, downscaled(pair.original, 4, "bicubic"))
    assert pair.signal.shape == (1, *SHAPE)
    reason = "takes 8 x 12 samples, so the original must have 48 x 72, and _Sources has fewer"
    with pytest.raises(NotMeasurableError, match=reason):
        scale_pair(tiny_ipc, _Sources(), item, 6, 8, "bicubic")
    with pytest.raises(NotMeasurableError, match="must have 32 x 48, and FlatData has fewer"):
        scale_pair(tiny_ipc, FlatData(), item, 4, 8, "bicubic")


def test_models_of_any_size_get_the_source_at_its_own_resolution():
    composer, item = series_composer(), _item(torch.rand(1, 3, 21, 34))
    pair = scale_pair(composer, _Sources(), item, 2, 8, "bicubic")
    source = _Sources().source_signal("a") / 255
    assert torch.equal(pair.original[0], source[:, 4:36, 1:49])
    assert pair.signal.shape == (1, 3, 16, 24)
    pair = scale_pair(composer, FlatData(), item, 2, 5, "bicubic")  # no source: the item
    assert torch.equal(pair.original, item.target[..., 0:20, 2:32])
    with pytest.raises(NotMeasurableError, match="has 21 x 34 samples, fewer than 32 along an axis"):
        scale_pair(composer, FlatData(), item, 4, 8, "bicubic")


def test_padding_is_cut_from_an_original():
    composer, mask = series_composer(1, 1), torch.arange(200) < 150
    pair = scale_pair(composer, Hums(), _item(torch.rand(1, 1, 200), mask), 4, 4, "sinc")
    assert pair.original.shape == (1, 1, 144)
    assert pair.signal.shape == (1, 1, 36)


def test_every_held_out_photograph_is_measured_by_models_of_any_size():
    data, composer = SamplePhotos(size=16), series_composer()
    data.setup("test")
    sizes = {
        item.name: tuple(
            scale_pair(composer, data, _item(item.values[None] / 255, name=item.name), 4, 8, "bicubic")[0].shape[2:]
        )
        for item in data.test_set
    }
    assert sizes["astronaut"] == (128, 128)
    assert sizes["coffee"] == (96, 144)
    assert {size for name, size in sizes.items() if name.startswith("astronaut-")} == {(32, 32)}
    assert {size for name, size in sizes.items() if name.startswith("coffee-")} == {(24, 24)}


def test_super_resolution_is_compared_with_the_target(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(TESTS / "strangers")
    import liif

    data = liif.HalvedPhotos(size=16, eval_batch_size=2)
    data.setup("test")
    batch = data.to_coordinates(data.collate([data.test_set[0], data.test_set[1]]))
    composer = Composer(liif.LocalMLP(), Direct(), Hypernetwork(liif.Convolutions((3, 8, 8)), PerToken())).eval()
    item, domain = item_of(batch, 1), data.spec.domain
    assert (item.observed.shape, item.target.shape) == ((1, 3, 8, 8), (1, 3, 16, 16))
    pair = scale_pair(composer, data, item, 2, 8, "bicubic")
    with torch.no_grad():
        reconstruction = reconstruct(composer, pair.signal, domain)
        decoded = composer(Observation(pair.signal), domain.coords((16, 16))).mT.unflatten(-1, (16, 16))
        row = decoding_measures(composer, pair, reconstruction, domain, "bicubic")
        assert row["field"] == pytest.approx(_psnr(decoded, pair.original), abs=1e-3)
        own = ScalePair(item.observed, item.target)
        assert own.factor == 2
        derivatives = derivative_measures(composer, own, reconstruction, domain, "bicubic")
        subsets = subset_measures(composer, item, domain, 0.5)
    assert all(map(math.isfinite, (*derivatives.values(), *subsets.values())))
    sys.modules.pop("liif")


def test_scales_that_are_no_multiple_are_not_measured():
    pair = ScalePair(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 16, 17))
    with pytest.raises(NotMeasurableError, match="16 x 17 samples are no multiple of the 8 x 8"):
        _ = pair.factor


def test_incomplete_items_are_not_measured(tiny_batch):
    with pytest.raises(NotMeasurableError, match="no complete signal"):
        item_of(CoordinateBatch(*tiny_batch[:2], None, tiny_batch.names), 0)


class _Smooth(FlatData):
    """Five smooth test images of 32 x 32."""

    spec = FlatData.spec._replace(signal_shape=(3, 32, 32))

    def setup(self, stage):
        self.test_set = FlatImages(5, seed=2)
        generator = torch.Generator().manual_seed(0)
        coefficients = 0.2 * torch.randn(5, 9, 3, generator=generator, dtype=torch.float32)
        self.test_set.values = torch.cat([series_signal(Grid.unit(2), (32, 32), some) for some in coefficients])


def _test(composer, data, folder, *callbacks, **options):
    """Run a test in a folder and return its trainer."""
    trainer = Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.test(composer, datamodule=data, verbose=False)
    return trainer


@pytest.mark.parametrize("options", [{}, {"inference_mode": False}, {"precision": "64-true"}], ids=str)
def test_callback_writes_prints_and_logs_every_measure(tmp_path, capsys, options):
    composer = series_composer(steps=2)
    _test(composer, _Smooth(eval_batch_size=2), tmp_path, FieldMeasures(factor=2), **options)
    printed = capsys.readouterr().out
    with (tmp_path / "field_measures.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == [f"set 2 image {index}" for index in range(5)]
    names = [name for name in table[0] if name != "name"]
    measures = ("decoding_2x", "derivatives_2x", "derivatives", "subset_50", "subset_10")
    assert tuple(dict.fromkeys(name.partition(".")[0] for name in names)) == measures
    for name in names:
        values = np.array([float(row[name]) for row in table])
        [mean] = column(tmp_path / "metrics.csv", f"test/{name}")
        [spread] = column(tmp_path / "metrics.csv", f"test/{name}_spread")
        assert (mean, spread) == (pytest.approx(values.mean(), rel=1e-6), pytest.approx(values.std(), rel=1e-5))
        [line] = [line for line in printed.splitlines() if f" {name} " in line]
        assert f"{values.mean():.3f}" in line
    assert min(float(row["subset_10.start"]) for row in table) > 60
    assert "not measured" not in printed


def test_results_do_not_depend_on_the_batch_size(tmp_path, make_ipc):
    composer = make_ipc(refinement=Refinement(2, report=()))
    for size in (1, 5):
        _test(composer, _Sources(eval_batch_size=size), tmp_path / str(size), FieldMeasures())
    for first, second in zip(*(rows(tmp_path / size / "field_measures.csv") for size in "15"), strict=True):
        assert first.pop("name") == second.pop("name")
        assert len(first) == 26
        for name, value in first.items():
            assert float(second[name]) == pytest.approx(float(value), abs=1e-3)


def test_switches_and_reasons(tmp_path, make_ipc, capsys):
    composer = make_ipc(refinement=Refinement(0))
    _test(
        composer,
        FlatData(),
        tmp_path,
        FieldMeasures(subsets=[], derivatives=False),
        FieldMeasures(False, [], filename="b.csv"),
    )
    printed = capsys.readouterr().out
    assert "decoding_4x: not measured for 5 of 5 items. Of set 2 image 0, the model takes 8 x 12 samples" in printed
    assert list(rows(tmp_path / "b.csv")[0]) == [
        "name",
        *(f"derivatives.{name}" for name in ("field", "bicubic", "correlation")),
    ]


def test_audio_is_measured_up_to_its_padding(tmp_path):
    _test(build_ipc(signal_shape=(1, 200)), Hums(), tmp_path, FieldMeasures(decoding=False))
    table = rows(tmp_path / "field_measures.csv")
    assert [row["name"] for row in table] == ["hum0", "hum1"]
    assert all(math.isfinite(float(value)) for row in table for name, value in row.items() if name != "name")
    assert "derivatives.sinc" in table[0]


def test_refinement_before_decoding_changes_the_result(tmp_path):
    composer = series_composer(steps=0)
    for steps in (0, 3):
        _test(composer, _Smooth(), tmp_path / str(steps), FieldMeasures(subsets=[], factor=2, steps=steps))
    before, after = (rows(tmp_path / steps / "field_measures.csv")[0] for steps in "03")
    assert before["decoding_2x.field"] != after["decoding_2x.field"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 1}, "factor is 1"),
        ({"multiple": 0}, "multiple 0"),
        ({"steps": -1}, "steps -1"),
        ({"max_memory": 0}, "max_memory 0"),
        ({"subsets": [0.5, 1.0]}, "subsets contains \\[1.0\\]"),
        ({"fill": "zero"}, "fill is zero; allowed are linear, nearest and mean"),
    ],
)
def test_arguments_out_of_range_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        FieldMeasures(**arguments)


def test_models_without_gradient_steps_are_refused(tmp_path, make_ipc):
    with pytest.raises(ValueError, match=r"takes no gradient steps .* or subsets to \[\]"):
        _test(make_ipc(refinement=Refinement(0)), FlatData(), tmp_path, FieldMeasures())


def test_table_counts_items_that_have_a_measure():
    table = field_table(
        {"a": {"x.field": 1.0}, "b": {"x.field": 3.0, "y.correlation": 0.5}}, ["x.field", "y.correlation"]
    )
    cells = [list(column.cells) for column in table.columns]
    assert cells[1:] == [["2.000", "0.500"], ["1.000", "0.000"], ["2", "1"]]


@pytest.mark.slow
def test_overlay_measures_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("fit", *tiny("ipc"), "--trainer.max_steps", 1, "--trainer.max_epochs", -1, "--trainer.limit_val_batches", 0)
    limit = ("--trainer.limit_test_batches", 1, "--data.init_args.eval_batch_size", 2)
    printed = run("test", *tiny("ipc"), "--config", OVERLAY, "--ckpt_path", "last", *limit)
    assert "decoding_4x.field [dB]" in printed
    assert len(rows("runs/unnamed/version_1/field_measures.csv")) == 2


def test_views_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("fit", *tiny("objects"), "--trainer.max_steps", 1, "--trainer.max_epochs", -1, "--trainer.limit_val_batches", 0)
    message = refused("test", *tiny("objects"), "--ckpt_path", "last", "--config", OVERLAY)
    assert "the data are views, whose modality PosedViews states no interpolation: remove the callback" in message


def test_incomplete_items_are_listed(tmp_path, capsys, make_ipc):
    class Incomplete(FlatData):
        def to_coordinates(self, batch, **options):
            return super().to_coordinates(batch, **options)._replace(shape=None)

    composer = make_ipc(refinement=Refinement(1, report=()))
    _test(composer, Incomplete(), tmp_path, FieldMeasures())
    reason = "fields: not measured for 5 of 5 items. Of set 2 image 0, it is no complete signal on a regular grid."
    assert reason in capsys.readouterr().out
