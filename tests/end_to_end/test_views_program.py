"""The program on scenes, from training to prediction, with one and two processes."""

import json
import math
from functools import partial

import pytest
import torch
from PIL import Image
from program import NAME, TESTS, checkpoint, column, rows, run, run_two
from scene_folders import write_colmap, write_scene, write_split_scene, write_srn

from datamodules.storage.poses import to_convention
from datamodules.storage.sample_meshes import CHAIRS
from tools import codes

TINY = ["--config", str(TESTS / "configs" / "tiny_objects.yaml")]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
METRICS = ("psnr", "white", "over_white", "ssim")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_fit_validate_test_and_predict(tmp_path):
    assert "SampleObjects (1, 3, 16, 16), 12 training and" in run("fit", *TINY)
    weights = ["--ckpt_path", "runs/unnamed/version_0/checkpoints/last.ckpt"]
    run("validate", *TINY, *weights)
    [validated] = rows("runs/unnamed/version_1/metrics.csv")
    [logged] = [row for row in rows("runs/unnamed/version_0/metrics.csv") if "val/psnr" in row]
    for name in METRICS:
        assert float(validated[f"val/{name}"]) == pytest.approx(float(logged[f"val/{name}"]), abs=1e-4)
    assert float(logged["val/over_white"]) == pytest.approx(
        float(logged["val/psnr"]) - float(logged["val/white"]), abs=1e-4
    )
    printed = run("test", *TINY, *weights)
    assert "Mean over 8 instances" in printed
    instances = rows("runs/unnamed/version_2/test_instances.csv")
    assert [row["name"] for row in instances] == [f"{name}.{draw:03d}" for name in CHAIRS["test"] for draw in range(2)]
    for row in instances:
        assert {f"psnr@{step}" for step in (0, 2)} | {"psnr@0 of network", "psnr@2 of network"} <= set(row)
        assert float(row["psnr@0 of network"]) == pytest.approx(float(row["psnr@0"]), abs=1e-3)
        assert float(row["psnr@2"]) != float(row["psnr@0"])
    folder = tmp_path / "runs/unnamed/version_2"
    assert (folder / "gallery.png").stat().st_size > 5_000
    assert len(list((folder / "gallery").glob("*.gif"))) == 4
    scene = next((tmp_path / "data" / "sample_objects").glob(f"*/chairs/{CHAIRS['test'][0]}"))
    run("predict", *weights, "--views", scene, "--frames", 3)
    [row] = rows("predictions/predictions.csv")
    assert row["name"] == CHAIRS["test"][0]
    with Image.open(f"predictions/{row['name']}.gif") as video:
        assert video.n_frames == 3
        assert video.size == (3 * 16, 16 + 15)  # true view, colour and depth below labels
    code = tmp_path / "predictions" / f"{row['name']}.safetensors"
    options = ("--size", 24, "--frames", 2, "--elevation", 10, "--output", tmp_path / "again" / "chair.gif")
    codes.main(["render", str(code), "--checkpoint", weights[1], *map(str, options)])
    with Image.open(tmp_path / "again" / "chair.gif") as video:
        assert (video.n_frames, video.size) == (2, (2 * 24, 24))


@pytest.mark.slow
def test_baselines_and_identity_match_on_two_processes(tmp_path):
    run("fit", *TINY, NAME, "fit")
    options = ["--ckpt_path", "runs/fit/version_0/checkpoints/last.ckpt", "--data.init_args.protocol=all"]
    printed = run("test", *TINY, NAME, "one", *options)
    run_two([["test", *TINY, *TWO, NAME, "two", *options]], tmp_path)
    assert "predicted: identity " in printed
    assert "Copies of the nearest training object: " in printed
    [logged] = [row for row in rows("runs/one/version_0/metrics.csv") if "test/copied_psnr" in row]
    assert 5 < float(logged["test/copied_psnr"]) <= float(logged["test/best_copied_psnr"])
    for name, count in (("test_identity", 2 * 4), ("test_copied", 8), ("test_views", 8 * 5 * 2)):
        one, two = (rows(f"runs/{run_name}/version_0/{name}.csv") for run_name in ("one", "two"))
        assert len(one) == len(two) == count
        for row, other in zip(one, two, strict=True):
            assert row["name"] == other["name"]
            for key in set(row) - {"name", "nearest", "views"}:
                assert float(row[key]) == pytest.approx(float(other[key]), abs=1e-3)


@pytest.mark.slow
def test_scene_folders_can_be_trained_on(tmp_path, capsys):
    run("fit", *TINY)
    [rendered] = (tmp_path / "data" / "sample_objects").iterdir()
    (broken := rendered / "chairs" / "broken").mkdir()
    (broken / "transforms.json").write_text(json.dumps({"camera_angle_x": math.pi / 4, "frames": []}))
    layers = [
        "--data",
        "SceneFolder",
        *(f"--data.init_args.{option}" for option in (f"root={rendered / 'chairs'}", "size=16", "rays_per_view=16")),
        *(f"--data.init_args.{option}" for option in ("train_frames=6", "batch_size=4", "draws=1")),
    ]
    printed = run("fit", *TINY, *layers, NAME, "folder")
    assert "SceneFolder (1, 3, 16, 16)" in printed
    printed = capsys.readouterr().err
    assert "Skipped" in printed
    assert str(broken) in printed
    assert column("runs/folder/version_0/metrics.csv", "val/psnr")[0] > 0


@pytest.mark.slow
def test_two_processes_match_one(tmp_path):
    run("fit", *TINY, NAME, "one")
    run_two([["fit", *TINY, *TWO, NAME, "two"]], tmp_path)
    one, two = (checkpoint(f"runs/{name}/version_0")["state_dict"] for name in ("one", "two"))
    assert all((two[key] - weight).abs().max() < 1e-5 for key, weight in one.items())
    for name in METRICS:
        [actual], [expected] = (
            column(f"runs/{folder}/version_0/metrics.csv", f"val/{name}") for folder in ("two", "one")
        )
        assert actual == pytest.approx(expected, abs=1e-3)
    weights = ["--ckpt_path", "runs/one/version_0/checkpoints/last.ckpt"]
    run("test", *TINY, NAME, "one", *weights)
    run_two([["test", *TINY, *TWO, NAME, "two", *weights]], tmp_path)
    actual, expected = (rows(f"runs/{folder}/version_1/test_instances.csv") for folder in ("two", "one"))
    assert [row["name"] for row in actual] == [row["name"] for row in expected]
    for row, other in zip(actual, expected, strict=True):
        assert all(float(row[key]) == pytest.approx(float(other[key]), abs=1e-3) for key in row.keys() - {"name"})
    scenes = sorted((tmp_path / "data" / "sample_objects").glob("*/chairs/*"))[:2]
    run("predict", *weights, "--views", *scenes, "--frames", 2, "--output", "alone")
    run_two([["predict", *weights, "--views", *scenes, "--frames", 2, "--output", "both", *TWO[:2]]], tmp_path)
    alone, both = (rows(f"{folder}/predictions.csv") for folder in ("alone", "both"))
    assert [row["name"] for row in alone] == [row["name"] for row in both] == [scene.name for scene in scenes]
    for row, other in zip(alone, both, strict=True):
        assert float(row["psnr refined"]) == pytest.approx(float(other["psnr refined"]), abs=2e-3)
    assert torch.isfinite(torch.tensor([float(row["psnr refined"]) for row in alone])).all()


def _write_colmap(folder, size):
    """Write a scene of COLMAP with an off-centre principal point."""
    write_colmap(folder, size=size, camera=f"PINHOLE {size} {size} 20 21 {size / 2 + 1} {size / 2}")


LAYOUTS = {  # class of the data, folder of a split, how to write a scene
    "ShapeNet": ("ShapeNet", "chairs", write_scene),
    "SRNScenes": ("SRNScenes", "cars_{split}", write_srn),
    "transforms": ("SceneFolder", "{split}", write_scene),
    "split files": (
        "SceneFolder",
        "{split}",
        partial(write_split_scene, counts={"train": 6, "val": 2, "test": 3}),
    ),
    "COLMAP": ("SceneFolder", "{split}", _write_colmap),
}


def _write_scenes(layout, root):
    """Write four objects for training, two for validation and two for the test; return the folders of the last two."""
    splits = {"train": ["a", "b", "c", "d"], "val": ["e", "f"], "test": ["g", "h"]}
    _, folder, write = LAYOUTS[layout]
    for split, names in splits.items():
        for name in names:
            write(root / folder.format(split=split) / name, size=16)
    if layout == "ShapeNet":
        (root / "chair_splits.json").write_text(json.dumps(splits))
    return [next(root.glob(f"*/{name}")) for name in splits["test"]]


def _results(name):
    """Return the weights of a run, and the names and numbers of its validation, test and prediction."""
    [validated] = rows(f"runs/{name}/version_1/metrics.csv")
    tested = rows(f"runs/{name}/version_2/test_instances.csv")
    predicted = rows(f"{name}/predictions.csv")
    numbers = [float(validated[f"val/{metric}"]) for metric in METRICS]
    numbers += [float(row[f"psnr@{step}"]) for row in tested for step in (0, 2)]
    numbers += [float(row[key]) for row in predicted for key in ("psnr predicted", "psnr refined")]
    names = [row["name"] for row in (*tested, *predicted)]
    return checkpoint(f"runs/{name}/version_0")["state_dict"], names, numbers


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_program_runs_on_every_layout(tmp_path, layout):
    scenes = _write_scenes(layout, tmp_path / "scenes")
    arguments = {"root": tmp_path / "scenes", "size": 16, "rays_per_view": 16, "train_frames": 6, "draws": 1}
    options = ["--data", LAYOUTS[layout][0], *(f"--data.init_args.{name}={value}" for name, value in arguments.items())]
    weights = ["--ckpt_path", "runs/one/version_0/checkpoints/last.ckpt"]

    def commands(name, more, devices):
        return [
            ["fit", *TINY, *options, *more, NAME, name],
            ["validate", *TINY, *options, *more, *weights, NAME, name],
            ["test", *TINY, *options, *more, *weights, NAME, name],
            ["predict", *weights, "--views", *scenes, "--frames", 2, "--output", name, *devices],
        ]

    for command in commands("one", ["--data.init_args.batch_size=4"], []):
        run(*command)
    expected_weights, expected_names, expected = _results("one")
    assert expected_names == ["g", "h", "g", "h"]
    assert torch.isfinite(torch.tensor(expected)).all()
    if layout == "split files":  # one layout is enough to compare processes
        run_two(commands("two", TWO, TWO[:2]), tmp_path)
        actual_weights, names, actual = _results("two")
        assert names == expected_names
        assert all((actual_weights[key] - weight).abs().max() < 1e-5 for key, weight in expected_weights.items())
        assert actual == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_scenes_with_split_files_and_intrinsics_per_frame(tmp_path):
    """Frames are split by files of the scene, in OpenCV axes, with off-centre principal points and a distorted lens."""
    for name in ("lego", "ship"):
        folder = write_split_scene(tmp_path / "scenes" / name, {"train": 5, "val": 2, "test": 3}, size=16)
        for path in folder.glob("*.json"):
            described = json.loads(path.read_text())
            for index, frame in enumerate(described["frames"]):
                pose = torch.tensor(frame["transform_matrix"], dtype=torch.float64)[:3]
                frame["transform_matrix"] = to_convention(pose, "opencv").tolist()
                frame |= {
                    "fl_x": 19.0 + index,
                    "fl_y": 20.0,
                    "cx": 7.0 + index,
                    "cy": 8.5,
                    "k1": -0.05,
                    "w": 16,
                    "h": 16,
                }
            path.write_text(json.dumps(described))
    layers = ["--data", "SceneFolder"]
    layers += [f"--data.init_args.{option}" for option in ("root=scenes/lego", "size=16", "rays_per_view=16")]
    layers += [f"--data.init_args.{option}" for option in ("convention=opencv", "repeats=4", "draws=2", "batch_size=4")]
    assert "SceneFolder (1, 3, 16, 16), 4 training and" in run("fit", *TINY, *layers, NAME, "split")
    weights = ["--ckpt_path", "runs/split/version_0/checkpoints/last.ckpt"]
    run("validate", *TINY, *layers, *weights, NAME, "split")
    run("test", *TINY, *layers, *weights, NAME, "split")
    assert [row["name"] for row in rows("runs/split/version_2/test_instances.csv")] == ["lego.000", "lego.001"]
    run("predict", *weights, "--views", "scenes", "--convention", "opencv", "--frames", 2, "--steps", 1)
    predicted = rows("predictions/predictions.csv")
    assert [row["name"] for row in predicted] == ["lego", "ship"]
    assert all(float(row["psnr predicted"]) > 0 for row in predicted)
    assert not any("look away" in " ".join(map(str, row.values())) for row in predicted)
