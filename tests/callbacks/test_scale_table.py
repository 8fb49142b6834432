"""The table of super-resolution by scale, against naive references of every figure."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from flat_images import FlatData
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from program import column, rows
from rich.console import Console
from scipy.ndimage import gaussian_filter
from small_pairs import SmallImages, naive_bicubic, naive_psnr

from callbacks.results import Column, ResultsTable, headline_metric
from callbacks.super_resolution import ScaleMean, ScaleRow, ScaleTable, protocol, scale_means, scale_table
from composers import LIIF
from composers.encoders import EDSR
from composers.metrics import PSNR, SSIM
from composers.networks import LocalMLP
from datamodules import SuperResolution
from datamodules.spec import Modality
from modalities import PosedViews, SuperResolvedImages
from modalities.view_metrics import ViewPSNR

SCALES = (2, 3.5)


def _composer(luma=False, clip=True):
    """Return a LIIF whose values exceed [0, 1] at some pixels."""
    network = LocalMLP(coord_dim=4, value_dim=3, feature_dim=4, hidden_dim=8, num_hidden=1, skip="bilinear")
    torch.nn.init.normal_(network.last.weight, std=2.0)
    metrics = {"psnr": PSNR(clip=clip, luma=luma), "ssim": SSIM(clip=clip, luma=luma)}
    return LIIF(network, EDSR((3, -1, -1), width=4, num_blocks=1), metrics=metrics)


def _data(data=SuperResolution, **changes):
    arguments = {"size": 8, "num_queries": 16, "batch_size": 3, "val_scales": SCALES, "test_scales": SCALES}
    return data(SmallImages(), **arguments | changes)


def _trainer(folder, *callbacks, **options):
    return Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="run", version=0),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        **options,
    )


def _naive_ssim(prediction, target, border, luma):
    """Return the SSIM of images ``(3, H, W)``: Gaussian windows of 11 pixels, mirrored at the borders, in float64."""
    images = [np.clip(prediction, 0, 1), np.asarray(target, dtype=np.float64)]
    images = [image[:, border : image.shape[1] - border, border : image.shape[2] - border] for image in images]
    if luma:
        images = [(65.738 * r + 129.057 * g + 25.064 * b)[None] / 256 for r, g, b in images]
    similarities = []
    for a, b in zip(*images, strict=True):
        mean_a, mean_b, aa, bb, ab = (
            gaussian_filter(part, 1.5, mode="mirror", truncate=3.5) for part in (a, b, a * a, b * b, a * b)
        )
        covariance, variances = ab - mean_a * mean_b, aa - mean_a**2 + bb - mean_b**2
        luminances = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        similarities.append(luminances * (2 * covariance + 0.03**2) / (variances + 0.03**2))
    return np.mean(similarities)


@pytest.mark.parametrize(
    ("border", "pixels", "luma"),
    [("none", lambda s: 0, False), ("scale", math.ceil, True), ("scale+6", lambda s: math.ceil(s) + 6, False)],
    ids=["no border", "benchmarks", "DIV2K"],
)
def test_every_figure_is_that_of_naive_references(tmp_path, capsys, border, pixels, luma):
    composer, data = _composer(luma), _data(border=border)
    _trainer(tmp_path, ScaleTable()).test(composer, datamodule=data, verbose=False)
    written = rows(tmp_path / "run" / "version_0" / "test_scales.csv")
    printed = capsys.readouterr().out
    assert [(row["scale"], row["images"]) for row in written] == [("2", "3"), ("3.5", "3")]
    exceeds = False
    for scale, row in zip(SCALES, written, strict=True):
        numbers = {name: [] for name in ("psnr", "bicubic psnr", "ssim", "bicubic ssim")}
        for place in range(3):
            pair = data.test_set[SCALES.index(scale) * 3 + place]
            assert pair.name == f"waves-{place}-test-x{scale:g}"
            low, high = pair.low.numpy() / 255.0, pair.high.numpy() / 255.0
            batch = data.to_coordinates(data.collate([pair]))
            with torch.no_grad():
                values = composer.eval()(batch.observation, batch.query.coords)[0]
            prediction = values.mT.reshape(high.shape).double().numpy()
            exceeds |= prediction.min() < 0 or prediction.max() > 1
            bicubic = naive_bicubic(low, high.shape[1:])
            for prefix, image in (("", prediction), ("bicubic ", bicubic)):
                numbers[f"{prefix}psnr"].append(naive_psnr(image, high, pixels(scale), luma))
                numbers[f"{prefix}ssim"].append(_naive_ssim(image, high, pixels(scale), luma))
        means = {name: np.mean(values) for name, values in numbers.items()}
        for name, mean in means.items():
            assert float(row[name]) == pytest.approx(mean, abs=2e-4), name
        for name in ("psnr", "ssim"):
            assert float(row[f"{name} gain"]) == pytest.approx(means[name] - means[f"bicubic {name}"], abs=4e-4)
        words = [f"x{scale:g}", "3", *(f"{float(row[name]):.3f}" for name in ("psnr", "bicubic psnr"))]
        words += [f"{float(row['psnr gain']):+.3f}", *(f"{float(row[name]):.3f}" for name in ("ssim", "bicubic ssim"))]
        assert re.search(r"\W+".join(map(re.escape, words)), printed)
    assert exceeds  # so that clipping is tested


def test_means_are_logged_by_scale(tmp_path):
    _trainer(tmp_path, ScaleTable()).test(_composer(), datamodule=_data(), verbose=False)
    folder = tmp_path / "run" / "version_0"
    for row in rows(folder / "test_scales.csv"):
        for name in ("psnr", "ssim"):
            for prefix in ("", "bicubic "):
                key = f"test/{prefix.replace(' ', '_')}{name}_x{row['scale']}"
                assert column(folder / "metrics.csv", key) == [pytest.approx(float(row[prefix + name]), abs=1e-5)]
    [every] = column(folder / "metrics.csv", "test/psnr")
    assert every == pytest.approx(np.mean(column(folder / "test_scales.csv", "psnr")), abs=1e-4)


def test_validation_prints_the_table_and_training_only_logs_it(tmp_path, capsys):
    composer, data, table = _composer(), _data(), ScaleTable()
    _trainer(tmp_path / "fit", table, max_epochs=2, num_sanity_val_steps=1).fit(composer, datamodule=data)
    folder = tmp_path / "fit" / "run" / "version_0"
    assert len(column(folder / "metrics.csv", "val/psnr_x2")) == 2
    assert not column(folder / "metrics.csv", "val/bicubic_psnr_x3.5")
    assert "by scale" not in capsys.readouterr().out
    assert not list(folder.glob("*_scales.csv"))
    _trainer(tmp_path / "validate", table).validate(composer, datamodule=data, verbose=False)
    folder = tmp_path / "validate" / "run" / "version_0"
    assert "Means over images, by scale" in capsys.readouterr().out
    assert [row["images"] for row in rows(folder / "val_scales.csv")] == ["3", "3"]
    assert len(column(folder / "metrics.csv", "val/psnr_x2")) == 1
    assert len(column(folder / "metrics.csv", "val/bicubic_psnr_x3.5")) == 1


def test_bicubic_is_measured_anew_on_other_data(tmp_path):
    table, composer = ScaleTable(), _composer()
    results = []
    for border in ("none", "scale+6"):
        trainer = _trainer(tmp_path / border, table)
        trainer.validate(composer, datamodule=_data(border=border), verbose=False)
        results += column(tmp_path / border / "run" / "version_0" / "val_scales.csv", "bicubic psnr")[:1]
    assert results[0] != results[1]


def test_other_data_has_no_table(make_ipc, tmp_path, capsys):
    _trainer(tmp_path, ScaleTable()).test(make_ipc(), datamodule=FlatData(batch_size=3), verbose=False)
    assert "scale" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("*_scales.csv"))


class _Unstated(SuperResolution):
    """Pairs whose scales are not stated."""

    def scale_of(self, name):
        return None


def test_items_without_a_stated_scale_are_one_group(tmp_path, capsys):
    _trainer(tmp_path, ScaleTable()).test(_composer(), datamodule=_data(_Unstated), verbose=False)
    folder = tmp_path / "run" / "version_0"
    [row] = rows(folder / "test_scales.csv")
    assert "scale" not in row
    assert row["images"] == "6"
    assert re.search(r"all\W+6\W", capsys.readouterr().out)
    assert column(folder / "metrics.csv", "test/bicubic_psnr") == [pytest.approx(float(row["bicubic psnr"]), abs=1e-5)]
    assert column(folder / "metrics.csv", "test/psnr") == [pytest.approx(float(row["psnr"]), abs=1e-4)]


def test_scales_are_those_of_the_names():
    data = _data(val_scales=[1.3333333333], test_scales=[2, 2.5])
    assert data.scale_of("a-x2-x2.5") == 2.5
    assert data.scale_of("a-x1.33333") == 1.3333333333
    assert data.scale_of("a-x3") is None
    assert data.scale_of("a") is None


def _row(scale, **values):
    columns = {
        Column(key.removeprefix("bicubic_"), 0, *["bicubic"] * key.startswith("bicubic_")): v
        for key, v in values.items()
    }
    return ScaleRow(scale, columns)


def test_undefined_values_count_only_where_all_of_a_prediction_are_undefined():
    nan = math.nan
    [defined] = scale_means(
        {
            "a": _row(2.0, psnr=30.0, ssim=nan, bicubic_psnr=28.0, bicubic_ssim=nan),
            "b": _row(2.0, psnr=20.0, ssim=0.5, bicubic_psnr=18.0, bicubic_ssim=0.25),
        }
    )
    assert defined == ScaleMean(2.0, 2, {"psnr": (25.0, 23.0), "ssim": (0.5, 0.25)})
    [diverged] = scale_means(
        {"a": _row(2.0, psnr=nan, bicubic_psnr=28.0), "b": _row(2.0, psnr=20.0, bicubic_psnr=18.0)}
    )
    assert math.isnan(diverged.means["psnr"][0])
    assert diverged.means["psnr"][1] == 23.0


def test_the_table_is_complete_on_80_columns():
    means = [ScaleMean(scale, 100, {"psnr": (31.5, 30.25), "ssim": (0.9, 0.95)}) for scale in (2.0, 12.0)]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(scale_table(means, {"psnr": PSNR(), "ssim": SSIM()}))
    text = captured.get()
    assert "…" not in text
    assert re.search(r"x12\W+100\W+31\.500\W+30\.250\W+\+1\.250\W+0\.900\W+0\.950\W+-0\.050", text)


def test_the_protocol_is_stated():
    psnr, luma = PSNR(clip=True), PSNR(clip=True, luma=True)
    text = protocol(_data(border="scale"), {"psnr": luma})
    assert text == (
        "Protocol: without s pixels at all borders; luminance, clipped to [0, 1], not rounded; bicubic: Pillow's kernel "
        "(a = -0.5), in floating point."
    )
    assert "without s + 6 pixels at all borders; RGB, clipped" in protocol(_data(border="scale+6"), {"psnr": psnr})
    assert "Protocol: all pixels; RGB, not clipped," in protocol(_data(border="none"), {"psnr": PSNR()})
    assert "grey values, clipped" in protocol(_data(channels=1), {"psnr": luma})
    mixed = protocol(_data(), {"psnr": luma, "ssim": SSIM(clip=True)})
    assert "PSNR: luminance, clipped to [0, 1]; SSIM: RGB, clipped to [0, 1], not rounded" in mixed


def test_results_state_that_means_mix_scales_and_code_sizes_per_input_pixel(tmp_path, capsys):
    _trainer(tmp_path, ResultsTable()).test(_composer(), datamodule=_data(), verbose=False)
    printed = capsys.readouterr().out
    assert "Means over the scales x2, x3.5 together." in printed
    assert f"{(4 + 3) * 32:.2f} bits per input pixel" in printed
    assert "PCA" not in printed
    assert "linear" not in printed
    for row in rows(Path(tmp_path, "run", "version_0", "test_instances.csv")):
        assert float(row["bits per input pixel"]) == (4 + 3) * 32


def test_figures_measure_the_headline_metric_with_the_settings_of_the_composer():
    luma = _composer(luma=True)
    assert headline_metric(luma, SuperResolvedImages()) is luma.measures["psnr"]
    assert headline_metric(luma, Modality()) is luma.measures["psnr"]
    assert isinstance(headline_metric(luma, PosedViews()), ViewPSNR)
    del luma.measures["psnr"]
    assert isinstance(headline_metric(luma, SuperResolvedImages()), PSNR)
