"""Shapes go through fit, validate and test, with their metrics per shape, their gallery and their codes."""

from pathlib import Path

import pytest
from PIL import Image
from program import NAME, SAVE_DIR, column, rows, run, run_two, tiny

from composers.codes import read_code
from modalities import MODALITIES
from modalities.shapes import Shapes
from tools import codes

METRICS = ("chamfer", "chamfer_squared", "fscore", "normal_consistency", "iou", "distance")
LOGGER = [SAVE_DIR, "runs", NAME, "posts"]


@pytest.mark.slow
def test_shapes_are_trained_tested_and_decoded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("fit", *tiny("signposts"), *LOGGER)
    history = Path("runs/posts/version_0/metrics.csv")
    assert all(len(column(history, f"val/{name}")) == 1 for name in METRICS)
    assert "train/loss" in history.read_text()
    assert "train/chamfer" not in history.read_text()  # a level set per training step would take long

    checkpoint = "runs/posts/version_0/checkpoints/last.ckpt"
    printed = run("test", *tiny("signposts"), *LOGGER, "--ckpt_path", checkpoint)
    assert printed.count("Surfaces: 500 points, seed 0, on the level set 0 at a resolution of 32.") == 1
    assert "Chamfer" in printed
    tested = rows("runs/posts/version_1/test_instances.csv")
    assert [row["name"] for row in tested] == ["signpost-0", "signpost-1", "signpost-2"]
    assert all(f"{name}@0" in row and f"{name}@2 of the inner loop" in row for row in tested for name in METRICS)
    assert [float(row["chamfer@0"]) for row in tested] == pytest.approx(
        [float(row["chamfer@2 of the inner loop"]) for row in tested], rel=1e-4
    )
    for figure, cells, width in (("gallery.png", 6, 264), ("inner_steps.png", 3, 264)):
        with Image.open(Path("runs/posts/version_1", figure)) as image:
            assert image.size[0] == cells * width + 8

    monkeypatch.setattr(
        codes, "MODALITIES", [modality for modality in MODALITIES if modality.name != "shapes"] + [Shapes()]
    )
    run("predict", *tiny("signposts"), "--ckpt_path", checkpoint, "--output", "out")
    table = rows("out/predictions.csv")
    assert [row["name"] for row in table] == [row["name"] for row in tested]
    assert {"faces", "watertight", "size", "surface", "chamfer refined", "steps"} <= table[0].keys() | {"steps"}
    code = read_code("out/signpost-0.safetensors")
    assert Shapes().decodes(code)
    if table[0]["surface"] == "yes":
        codes.main(["render", "out/signpost-0.safetensors", "--checkpoint", checkpoint, "--resolution", "20"])
        assert Path("out/signpost-0.20.ply").is_file()


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("fit", *tiny("signposts"), *LOGGER)
    test = ["test", *tiny("signposts"), *LOGGER, "--ckpt_path", "runs/posts/version_0/checkpoints/last.ckpt"]
    run(*test)
    run_two([[*test, "--trainer.devices=2", "--trainer.strategy=ddp"]], tmp_path)
    results = [rows(f"runs/posts/version_{number}/test_instances.csv") for number in (1, 2)]
    assert [row["name"] for row in results[1]] == [row["name"] for row in results[0]]
    for first, second in zip(*results, strict=True):
        assert [float(second[f"{name}@0"]) for name in METRICS] == pytest.approx(
            [float(first[f"{name}@0"]) for name in METRICS], rel=1e-3
        )
