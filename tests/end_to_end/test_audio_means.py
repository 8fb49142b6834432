"""Means of metrics that are undefined for some instances, in logs, tables and curves."""

import math

import pytest
import torch
from program import REPOSITORY, column, rows, run

from callbacks.curves import curve
from callbacks.results import Column, results_table
from composers.metrics import defined
from datamodules.base import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.domain import Grid
from datamodules.spec import DataSpec, Modality


class SomeSilence(CoordinateDataModule):
    """Four recordings of noise and a silent one, for all splits."""

    def setup(self, stage):
        recordings = 0.1 * torch.randn(5, 1, 600, generator=torch.Generator().manual_seed(0))
        recordings[1] = 0
        self.train_set = self.val_set = self.test_set = [
            Signal(recording, f"recording-{i}") for i, recording in enumerate(recordings)
        ]

    spec = DataSpec(Grid.unit(1), 1, (1, 600), Modality())


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return the options of a tiny composer of audio with refinement, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "audio.yaml"
    layers = ("composers/transformer_ipc.yaml", "modalities/audio.yaml", "modalities/audio_tokens.yaml")
    path.write_text(f"""
_base_: [{", ".join(str(REPOSITORY / "configs" / layer) for layer in layers)}]
data: {{class_path: {__name__}.SomeSilence, init_args: {{batch_size: 2}}}}
trainer: {{accelerator: cpu, max_epochs: 1, log_every_n_steps: 1}}
model:
  init_args:
    network: {{init_args: {{hidden_dim: 8, num_layers: 3, encoding: {{init_args: {{num_frequencies: 2, max_frequency: 4}}}}}}}}
    transformer: {{init_args: {{embed_dim: 12, num_blocks: 1, num_heads: 3}}}}
    refinement: {{class_path: composers.Refinement, init_args: {{steps: 2}}}}
""")
    return ["--config", str(path)]


@pytest.mark.slow
def test_undefined_metrics_are_left_out_of_means(config, tmp_path):
    run("fit", *config)
    printed = run("test", *config, "--ckpt_path", "last")
    assert "SI-SDR" in printed
    assert "nan" not in printed
    first, second = sorted((tmp_path / "runs" / "unnamed").glob("version_*"))
    [si_sdr] = column(first / "metrics.csv", "val/si_sdr")
    assert -120 < si_sdr < 120
    recordings = rows(second / "test_instances.csv")
    assert ["si_sdr@2" in recording for recording in recordings] == [True, False, True, True, True]
    for metric in ("psnr", "silence", "over_silence", "si_sdr", "lsd"):
        for name, step in ((metric, 0), (f"refined_{metric}", 2)):
            known = column(second / "test_instances.csv", f"{metric}@{step}")
            assert len(known) == (4 if metric in ("si_sdr", "over_silence") else 5)
            [mean] = column(second / "metrics.csv", f"test/{name}")
            assert mean == pytest.approx(sum(known) / len(known), rel=1e-4)


def test_nan_metric_of_a_diverged_prediction_counts():
    values = torch.tensor([math.nan, math.nan, 1.0, math.nan])
    prediction = torch.zeros(4, 3, 2)
    prediction[1, 2, 1], prediction[3, 0, 0] = math.nan, math.inf
    assert defined(values, prediction).tolist() == [False, True, True, True]


def _row(psnr, si_sdr):
    return {Column("psnr", 0): psnr, Column("si_sdr", 0): si_sdr}


def test_tables_and_curves_leave_out_undefined_but_not_diverged_values():
    results = {"a": _row(20.0, 4.0), "silent": _row(90.0, math.nan), "b": _row(40.0, 8.0)}
    assert [next(iter(part.cells)) for part in results_table(results).columns[1:]] == [
        "50.000 ±36.056",
        "6.000 ±2.828",
    ]
    [point] = curve(results, "si_sdr")
    assert (point.mean, point.lower, point.upper, point.instances) == (6.0, 5.0, 7.0, 2)
    diverged = results | {"c": _row(math.nan, math.nan)}
    assert [next(iter(part.cells)) for part in results_table(diverged).columns[1:]] == ["nan", "nan"]
    [point] = curve({"silent": results["silent"]}, "si_sdr")
    assert (math.isnan(point.mean), point.instances) == (True, 0)
