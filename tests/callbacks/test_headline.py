"""Checkpoints, progress, curves and tables use the headline metric of the data and the headings that metrics state."""

import csv
import math
from pathlib import Path

import pytest
import torch
from flat_images import FlatData
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from callbacks.curves import Point, RefinementPlot, curve, draw, shown
from callbacks.results import Column, ResultsTable, main_metric, results_table
from callbacks.saving import BestCheckpoint
from composers import Refinement
from composers.inference.refinement import INNER
from composers.metrics import PSNR, InstanceMetric, instance_mse
from datamodules.spec import Headline, Modality
from modalities import MODALITIES


class Distance(InstanceMetric):
    """Root mean squared error, without a heading and a unit."""

    def measure(self, reconstruction, target, shape):
        return instance_mse(reconstruction.values, target).sqrt()


class LargestError(InstanceMetric):
    """Largest error, with a heading and a unit that nothing else in the software knows."""

    heading = "largest error"
    unit = "nm"

    def measure(self, reconstruction, target, shape):
        return (reconstruction.values - target.values).abs().amax((1, 2))


class Shapes(Modality):
    """Modality whose headline metric is a distance."""

    headline = Headline("distance", "min", "mm")

    def metrics(self):
        return {"distance": Distance()}


class ShapeData(FlatData):
    """Data of this modality."""

    modality = Shapes()
    spec = FlatData.spec._replace(modality=modality)

    def setup(self, stage):
        super().setup(stage)
        self.val_set = self.test_set


def _composer(make_ipc, **changes):
    return make_ipc(
        metrics={"psnr": PSNR(), "distance": Distance()},
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        **changes,
    )


def _trainer(folder, *callbacks, epochs=1):
    return Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="run", version=0),
        callbacks=list(callbacks),
        max_epochs=epochs,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@pytest.mark.parametrize(
    ("data", "monitor", "mode"), [(ShapeData, "val/distance", "min"), (FlatData, "val/psnr", "max")], ids=["min", "max"]
)
def test_best_checkpoint_monitors_the_headline_metric(make_ipc, tmp_path, data, monitor, mode):
    saver, module = BestCheckpoint(filename="best", enable_version_counter=False), data(batch_size=3)
    module.setup("fit")
    module.val_set, module.setup = module.test_set, lambda stage: None
    composer = _composer(make_ipc)
    trainer = _trainer(tmp_path, saver, epochs=3)
    trainer.fit(composer, datamodule=module)
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [float(row[monitor]) for row in rows if row[monitor]]
    assert (saver.monitor, saver.mode, len(values)) == (monitor, mode, 3)
    best = min(values) if mode == "min" else max(values)
    assert float(saver.best_model_score) == pytest.approx(best, rel=1e-5)
    key = monitor.replace("val", "train")
    assert [row[key] for row in rows if row.get(key)]
    other = {"train/psnr", "train/distance"} - {key}
    assert not other & set(rows[0])
    assert {name for name in trainer.progress_bar_metrics if "/" in name} == {key, monitor}
    state = torch.load(saver.best_model_path, weights_only=True)["callbacks"][saver.state_key]
    assert state["monitor"] == monitor


def test_best_checkpoint_keeps_an_explicit_monitor(make_ipc, tmp_path):
    saver = BestCheckpoint(filename="best", monitor="val/psnr", mode="max")
    _trainer(tmp_path, saver).fit(_composer(make_ipc), datamodule=ShapeData(batch_size=3))
    assert (saver.monitor, saver.mode) == ("val/psnr", "max")


def _text(table):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_tables_and_curves_use_the_headline_metric(make_ipc, tmp_path, capsys):
    refinement = Refinement(steps=2, report=[1], starts=["prediction"])
    composer = _composer(make_ipc, refinement=refinement)
    _trainer(tmp_path, RefinementPlot(), ResultsTable()).test(composer, datamodule=ShapeData(), verbose=False)
    printed = capsys.readouterr().out
    assert "distance [mm]" in printed
    assert "PSNR [dB]" in printed
    folder = Path(tmp_path, "run", "version_0")
    with (folder / "refinement.csv").open() as file:
        assert {row["metric"] for row in csv.DictReader(file)} == {"distance"}


def test_headings_and_units_of_a_new_metric_come_from_the_metric(make_ipc, tmp_path, capsys):
    composer = make_ipc(
        metrics={"psnr": PSNR(), "max": LargestError(), "rms": Distance()}, refinement=Refinement(steps=1)
    )
    plot = RefinementPlot(metric="max")
    _trainer(tmp_path, plot, ResultsTable()).test(composer, datamodule=FlatData(), verbose=False)
    printed = capsys.readouterr().out
    for heading in ("PSNR [dB]", "largest", "error [nm]", "rms"):  # a narrow table breaks lines
        assert heading in printed
    table = _text(results_table(plot.rows, metrics=composer.measures)).splitlines()[2]
    assert [cell.strip() for cell in table.split("┃")[2:5]] == ["PSNR [dB]", "from the mean code", "from a random code"]
    assert [cell.strip() for cell in table.split("┃")[5:-1]] == ["largest error [nm]", "rms"]
    points = curve(plot.rows, "max")
    assert draw(points, "max", metrics=composer.measures).axes[0].get_ylabel() == "largest error [nm]"


def test_main_metric_is_the_headline_and_has_its_unit():
    rows = {
        "a": {
            Column(metric, step, start): 1.0
            for metric in ("psnr", "distance")
            for step in (0, 1)
            for start in ("prediction", "mean")
        }
    }
    assert main_metric(rows["a"], Shapes.headline) == "distance"
    assert main_metric(rows["a"], Modality.headline) == "psnr"
    assert main_metric([Column("ssim", 0)], Modality.headline) == "ssim"
    metrics = {"psnr": PSNR(), "distance": Distance()}
    heading = _text(results_table(rows, headline=Shapes.headline, metrics=metrics)).splitlines()[2]
    assert heading.index("PSNR [dB]") < heading.index("distance [mm]") < heading.index("from the mean code")
    points = [Point("prediction", step, 3.0 - step, 2.0, 4.0, 5) for step in range(2)]
    [axes] = draw(points, "distance", headline=Shapes.headline).axes
    assert axes.get_ylabel() == "distance [mm]"


@pytest.mark.parametrize("sign", [1, -1], ids=["higher is better", "lower is better"])
def test_axis_is_cut_on_the_side_of_worse_values(sign):
    means = {0: 1.0, 2: 3.0, 30: -50.0}
    points = [Point(INNER, step, *(3 * (sign * mean,)), 4) for step, mean in means.items()]
    low, high = shown(points, 2, less_is_better=sign < 0)
    assert (low, high) == pytest.approx((-1.0, 3.2) if sign > 0 else (-3.2, 1.0))
    assert shown(points[:2], 2, less_is_better=sign < 0) is None
    assert shown([point._replace(mean=math.nan, lower=math.nan, upper=math.nan) for point in points], 2) is None


@pytest.mark.parametrize("modality", [*MODALITIES, Shapes()], ids=lambda modality: modality.name)
def test_headline_metric_is_one_of_the_metrics_of_the_modality(modality):
    assert modality.headline.metric in modality.metrics()
    assert modality.headline.direction in ("max", "min")
