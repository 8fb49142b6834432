"""The program on shapes, from training to prediction and codes, on every data layout and with two processes."""

import numpy as np
import pytest
import torch
import trimesh
from program import NAME, TESTS, checkpoint, refused, rows, run, run_two
from shape_files import ball, write_balls, write_deep_sdf, write_meshes

from composers.codes import read_code
from tools.codes import main as codes

TINY = ["--config", str(TESTS / "configs" / "tiny_shapes.yaml")]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
SPLITS = {"train": ["a", "b", "c", "d"], "test": ["e", "f"]}
SMALL = ["--resolution", 12, "--frames", 2, "--size", 32]
WEIGHTS = ["--ckpt_path", "runs/one/version_0/checkpoints/last.ckpt"]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


def _layout(layout, root):
    """Write balls in a layout, and return the options of the data."""
    if layout == "SampleShapes":
        options = {"train_shapes": 4, "samples": 400, "surface": 100, "batch_size": 2}
    elif layout == "DeepSDF":
        root.mkdir()
        write_deep_sdf(root, SPLITS, normals=True)
        options = {"train_split": root / "train.json", "test_split": root / "test.json"}
    else:
        for split, names in SPLITS.items():
            write_balls(root / split, names)
        options = {}
    pairs = {"root": root} | options
    return ["--data", layout, *(f"--data.init_args.{name}={value}" for name, value in pairs.items())]


def _inputs(folder):
    """Write a point cloud, a mesh and a file that is none of both."""
    folder.mkdir()
    np.savetxt(folder / "cloud.xyz", ball("cloud").surface * [5, 5, 5, 1, 1, 1])
    meshes = folder / "meshes"
    meshes.mkdir()
    write_meshes(meshes)
    (folder / "bad.xyz").write_text("1 2\n")
    return [folder / "cloud.xyz", meshes / "box.ply", folder / "bad.xyz"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ShapeFolder", "DeepSDF", "SampleShapes"])
def test_fit_validate_test_predict_and_codes(tmp_path, layout):
    options = [*TINY, *_layout(layout, tmp_path / "data")]
    printed = run("fit", *options, NAME, "one")
    assert f"{layout} (40, 6), 4 training" in printed
    assert "6 data + 8 weight" in printed
    run("validate", *options, *WEIGHTS, NAME, "one")
    [validated] = rows("runs/one/version_1/metrics.csv")
    [logged] = [row for row in rows("runs/one/version_0/metrics.csv") if "val/iou" in row]
    for name in ("chamfer", "iou", "distance"):
        assert float(validated[f"val/{name}"]) == pytest.approx(float(logged[f"val/{name}"]), abs=1e-3, nan_ok=True)
    run("test", *options, *WEIGHTS, NAME, "one", "--trainer.callbacks", "[]")
    files = _inputs(tmp_path / "inputs")
    printed = run("predict", *WEIGHTS, "--shapes", *files, *SMALL)
    assert "bad.xyz has 2 column(s)" in printed
    predicted = {row["name"]: row for row in rows("predictions/predictions.csv")}
    assert list(predicted) == ["cloud", "box"]
    assert predicted["cloud"]["notes"] == "40 of 300 points"
    code = read_code("predictions/cloud.safetensors")
    assert float(code.facts["scale"]) == pytest.approx(1 / (1.03 * 5 * 0.6), rel=0.1)
    assert code.numel == 8 * 8
    model, box = ["--checkpoint", WEIGHTS[1], "--resolution", "8"], "predictions/box.safetensors"
    if predicted["box"]["faces"] != "0":
        codes(["render", *model, box, "--output", "box.ply"])
        assert len(trimesh.load("box.ply").faces)
    codes(["interpolate", *model, box, "predictions/cloud.safetensors", "--frames", "2", "--output", "frames"])
    assert (tmp_path / "frames" / "frames.gif").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ShapeFolder", "DeepSDF"])
def test_two_processes_match_one(tmp_path, layout):
    options = [*TINY, *_layout(layout, tmp_path / "data")]
    run("fit", *options, NAME, "one")
    run_two([["fit", *options, *TWO, NAME, "two"]], tmp_path, limit=400)
    one, two = (checkpoint(f"runs/{name}/version_0")["state_dict"] for name in ("one", "two"))
    assert all((two[key] - weight).abs().max() < 1e-5 for key, weight in one.items() if "chamfer" not in key)
    plain = ["--trainer.callbacks", "[{class_path: callbacks.results.ResultsTable}]"]
    run("test", *options, NAME, "one", *WEIGHTS, *plain)
    run_two([["test", *options, *TWO, NAME, "two", *WEIGHTS, *plain]], tmp_path, limit=400)
    actual, expected = (rows(f"runs/{name}/version_1/test_instances.csv") for name in ("two", "one"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected]
    assert [row["name"].rpartition("/")[2] for row in actual] == ["e", "f"]
    for row, other in zip(actual, expected, strict=True):
        assert float(row["distance@0"]) == pytest.approx(float(other["distance@0"]), abs=1e-3)


@pytest.mark.slow
def test_metasdf_adapts_to_distances_of_meshes(tmp_path):
    configs = TESTS.parent / "configs"
    settings = {
        "data.init_args": {"context_points": 60, "query_points": 60, "batch_size": 2, "eval_points": 100},
        "model.init_args.network.init_args": {"hidden_dim": 8, "num_layers": 3},
        "model.init_args.inner.init_args": {"report": "[0,2]"},
    }
    bases = [str(configs / "composers" / "metasdf_pe.yaml"), str(configs / "data" / "shape_folder.yaml")]
    (tmp_path / "tiny.yaml").write_text(f"_base_: {bases}\n")
    options = ["--config", tmp_path / "tiny.yaml"]
    options += _layout("ShapeFolder", tmp_path / "data")[2:]
    options += [f"--{part}.{name}={value}" for part, values in settings.items() for name, value in values.items()]
    options += [
        "--data.init_args.context=dense",
        "--data.init_args.eval_surface_points=80",
        "--trainer.accelerator=cpu",
    ]
    run("fit", *options, NAME, "one", "--trainer.max_epochs", 1)
    state = checkpoint("runs/one/version_0")["state_dict"]
    assert state["inner.rule.factors.weight_0"].shape == (1, 1, 1)  # a learned step size per tensor
    run(
        "test", *options, NAME, "one", *WEIGHTS, "--trainer.callbacks", "[{class_path: callbacks.results.ResultsTable}]"
    )
    assert [row["name"] for row in rows("runs/one/version_1/test_instances.csv")] == ["e", "f"]
    run("predict", *WEIGHTS, "--shapes", *_inputs(tmp_path / "inputs"), *SMALL)
    assert {row["name"] for row in rows("predictions/predictions.csv")} == {"cloud", "box"}
    assert read_code("predictions/cloud.safetensors").numel == 33 * 8 + 8 + 8 * 8 + 8 + 8 * 2 + 2


@pytest.mark.slow
def test_an_auto_decoder_learns_a_code_per_shape(tmp_path):
    layers = [TESTS.parent / "configs" / name for name in ("composers/autodecoder.yaml", "data/shape_folder.yaml")]
    settings = {
        "network.init_args.hidden_dim": 8,
        "parametrization.init_args.latent_dim": 6,
        "start.init_args.num_instances": 4,
        "refinement.init_args.steps": 5,
        "refinement.init_args.samples_per_step": "all",
        "refinement.init_args.report": "[]",
    }
    *_, root = _layout("ShapeFolder", tmp_path / "data")
    small = {"context_points": 40, "query_points": 50, "batch_size": 4, "eval_points": 100, "eval_surface_points": 80}
    options = [*(part for layer in layers for part in ("--config", layer)), root]
    options += [f"--data.init_args.{name}={value}" for name, value in small.items()]
    options += [f"--model.init_args.{name}={value}" for name, value in settings.items()]
    options += ["--trainer.accelerator", "cpu"]
    run("fit", *options, NAME, "one", "--trainer.max_epochs", 2)
    codes_of_shapes = checkpoint("runs/one/version_0")["state_dict"]["start.codes.latent"]
    assert codes_of_shapes.shape == (4, 6)
    assert torch.pdist(codes_of_shapes).min() > 0
    plain = ["--trainer.callbacks", "[{class_path: callbacks.results.ResultsTable}]"]
    run("test", *options, NAME, "one", *WEIGHTS, *plain)
    tested = rows("runs/one/version_1/test_instances.csv")
    assert [row["name"] for row in tested] == ["e", "f"]
    assert all(float(row["distance@5"]) != float(row["distance@0"]) for row in tested)


@pytest.mark.slow
def test_models_of_other_signals_are_refused(tmp_path):
    run("fit", "--config", TESTS / "configs" / "tiny_ipc.yaml", NAME, "one")
    np.savetxt(tmp_path / "cloud.xyz", ball("cloud").surface)
    message = refused("predict", *WEIGHTS, "--shapes", tmp_path / "cloud.xyz")
    assert "shapes need a model of point sets" in message
