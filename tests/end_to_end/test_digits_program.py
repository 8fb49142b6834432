"""MetaSDF on digits through the program: training, validation, test, prediction and codes, beside the baseline."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from program import REPOSITORY, SAVE_DIR, column, refused, rows, run

import composers
from composers.codes import decode, read_code
from composers.rendering import Reconstruction
from datamodules import Digits
from modalities.distance_maps import InsideIoU

EXPERIMENT = REPOSITORY / "configs" / "experiments" / "digits_metasdf.yaml"
SMALL = {
    "data.init_args.size": 16,
    "data.init_args.context": 0.2,
    "data.init_args.coordinate_subset": "null",
    "model.init_args.network.init_args.hidden_dim": 32,
    "model.init_args.inner.init_args.report": "[0, 1, 3, 5]",
    "trainer.max_epochs": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.accelerator": "cpu",
}
ARGUMENTS = ["--config", EXPERIMENT, *(part for name, value in SMALL.items() for part in (f"--{name}", value))]


def _mean(table, title):
    """Return the mean of a column of numbers."""
    return np.mean([float(row[title]) for row in table])


@pytest.mark.slow
def test_digits_through_every_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("fit", *ARGUMENTS, SAVE_DIR, "runs")
    folder = Path("runs/digits_metasdf")
    checkpoint = folder / "version_0" / "checkpoints" / "last.ckpt"
    fitted = {
        name: column(folder / "version_0" / "metrics.csv", f"val/{name}")[-1]
        for name in ("iou", "nearest_iou", "distance")
    }
    factors = rows(folder / "version_0" / "metrics.csv")[-1]
    assert not [name for name in factors if "lr_factor" in name and float(factors[name]) == 1]

    run("validate", *ARGUMENTS, SAVE_DIR, "runs", "--ckpt_path", checkpoint)
    for name, expected in fitted.items():
        [actual] = column(folder / "version_1" / "metrics.csv", f"val/{name}")
        assert actual == pytest.approx(expected, abs=1e-4)

    printed = run("test", *ARGUMENTS, SAVE_DIR, "runs", "--ckpt_path", checkpoint)
    assert "IoU of nearest pixel" in printed
    assert "Mean over 180 instances" in printed
    tested = rows(folder / "version_2" / "test_instances.csv")
    curve = [_mean(tested, f"iou@{step} of the inner loop") for step in (0, 1, 3)]
    assert curve[0] + 0.1 < curve[1] < curve[2]
    assert curve[2] == pytest.approx(_mean(tested, "iou@0"), abs=1e-6)
    assert curve[2] > _mean(tested, "nearest_iou@0") + 0.05
    for figure in ("gallery.png", "inner_steps.png"):
        with Image.open(folder / "version_2" / figure) as image:
            assert image.width > 256

    run("predict", *ARGUMENTS, "--ckpt_path", checkpoint, "--output", "maps", "--trainer.limit_predict_batches", 1)
    predicted = {row["name"]: float(row["iou predicted"]) for row in rows("maps/predictions.csv")}
    assert len(predicted) == 60
    composer, data = composers.load(checkpoint), Digits(0.2, size=16)
    data.setup("test")
    for item, row in zip(data.test_set, tested, strict=False):
        if item.name not in list(predicted)[:2]:
            continue
        assert predicted[item.name] == pytest.approx(float(row["iou@0"]), abs=1e-3)
        code = read_code(f"maps/{item.name}.safetensors")
        values = torch.cat(list(decode(composer, code))).flatten(0, 1)[None]
        batch = data.to_coordinates(data.collate([item]))
        [iou] = InsideIoU().measure(Reconstruction.of_values(values), batch.query, batch.shape).tolist()
        assert iou == pytest.approx(predicted[item.name], abs=1e-3)
        doubled = torch.cat(list(decode(composer, code, (32, 32))))
        assert doubled.shape == (32, 32, 1)
        with Image.open(f"maps/{item.name}.png") as image:
            assert image.width > 3 * 256  # observed, target, reconstruction


@pytest.mark.slow
def test_the_published_overlap_is_a_switch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overlap = ["--data.init_args.query_includes_context", "true", "--trainer.limit_train_batches", 2]
    run("fit", *ARGUMENTS, *overlap, SAVE_DIR, "runs", "--trainer.limit_val_batches", 1)
    run("test", *ARGUMENTS, *overlap, SAVE_DIR, "runs", "--ckpt_path", "last", "--trainer.limit_test_batches", 1)
    with Path("runs/digits_metasdf/version_1/test_instances.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 60
    assert {row["nearest_iou@0"] for row in table} == {""}  # a metric does not know what was observed
    assert all(float(row["iou@0"]) >= 0 for row in table)


def test_colour_images_are_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = REPOSITORY / "configs" / "data" / "sample_photos.yaml"
    message = refused("fit", "--config", REPOSITORY / "configs" / "composers" / "metasdf.yaml", "--config", photos)
    assert "SignedDistance renders one channel, and the data has 3" in message
