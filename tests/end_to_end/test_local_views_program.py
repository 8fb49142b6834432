"""The program with features of scenes that are local in space, from training to codes, with one and two processes."""

import contextlib
import re
import shutil

import pytest
from PIL import Image
from program import NAME, checkpoint, refused, rows, run, run_two, tiny
from scene_folders import write_scene

from composers import load
from composers.codes import read_code
from tools import codes
from tools.activations.__main__ import main as draw_activations
from tools.export.__main__ import main as export

PRESETS = ("voxels", "pixel_aligned")
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.init_args.batch_size=2"]
ONE_VIEW = ["--data.init_args.views=1", "--data.init_args.min_views=null"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with two scenes, and one run of each preset from training to prediction."""
    folder = tmp_path_factory.mktemp("views")
    with contextlib.chdir(folder):
        for name, radius in (("first", 4.0), ("second", 3.0)):
            write_scene(folder / "scenes" / name, size=16, radius=radius)
        for preset in PRESETS:
            for command in _commands(preset, "one"):
                run(*command)
    return folder


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch):
    """Work in the folder of the runs."""
    monkeypatch.chdir(folder)


def _weights(preset):
    """Return the checkpoint of a preset, as an option."""
    return ["--ckpt_path", f"runs/{preset}_one/version_0/checkpoints/last.ckpt"]


def _commands(preset, name, *more):
    """Return the commands that train, validate, test and predict; the last three use the weights of the run ``one``."""
    layers = [*tiny(preset), *more, NAME, f"{preset}_{name}"]
    views = ["--views", "scenes", "--support", 0, 3, "--frames", 2, "--steps", 4]
    return [
        ["fit", *layers],
        ["validate", *layers, *_weights(preset)],
        ["test", *layers, *_weights(preset)],
        ["predict", *_weights(preset), *views, "--output", f"{preset}_{name}", *more[:2]],
    ]


def _table(preset, name="one"):
    """Return the rows of the test of a run."""
    return rows(f"runs/{preset}_{name}/version_2/test_instances.csv")


@pytest.mark.parametrize("preset", PRESETS)
def test_validation_test_and_prediction_follow(preset):
    run_folder = f"runs/{preset}_one"
    [logged] = [row for row in rows(f"{run_folder}/version_0/metrics.csv") if "val/psnr" in row]
    [validated] = rows(f"{run_folder}/version_1/metrics.csv")
    for metric in ("psnr", "white", "over_white", "ssim"):
        assert float(validated[f"val/{metric}"]) == pytest.approx(float(logged[f"val/{metric}"]), abs=1e-4)
    assert len(_table(preset)) == 4 * 2  # objects, draws
    for row in _table(preset):
        assert 0 < float(row["psnr@0"]) != float(row["psnr@2"])
    predicted = rows(f"{preset}_one/predictions.csv")
    assert [row["name"] for row in predicted] == ["first", "second"]
    for row in predicted:
        assert (row["support views"], row["refinement steps"]) == ("2", "4")
        assert float(row["psnr predicted"]) != float(row["psnr refined"])


@pytest.mark.parametrize("preset", PRESETS)
def test_two_processes_match_one(folder, preset):
    run_two(_commands(preset, "two", *TWO), folder)
    one, two = (checkpoint(f"runs/{preset}_{name}/version_0")["state_dict"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all((two[key] - weight).abs().max() < 1e-5 for key, weight in one.items())
    [validated], [expected] = (rows(f"runs/{preset}_{name}/version_1/metrics.csv") for name in ("two", "one"))
    assert float(validated["val/psnr"]) == pytest.approx(float(expected["val/psnr"]), abs=1e-4)
    tables = [(_table(preset, "two"), _table(preset))]
    tables.append(tuple(rows(f"{preset}_{name}/predictions.csv") for name in ("two", "one")))
    for actual, expected in tables:
        assert [row["name"] for row in actual] == [row["name"] for row in expected]
        for row, other in zip(actual, expected, strict=True):
            for key in row:
                if key.startswith("psnr"):
                    assert float(row[key]) == pytest.approx(float(other[key]), abs=2e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_codes_render_without_images(preset, tmp_path, monkeypatch):
    checkpoint_file = f"{preset}.ckpt"
    shutil.copy(_weights(preset)[1], tmp_path / checkpoint_file)
    for name in ("first", "second"):
        shutil.copy(f"{preset}_one/{name}.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    code = read_code("first.safetensors")
    code.check(load(checkpoint_file))
    options = ["--checkpoint", checkpoint_file, "--size", "24", "--frames", "2"]
    codes.main(["render", "first.safetensors", *options, "--output", "first.gif"])
    with Image.open("first.gif") as video:
        assert (video.n_frames, video.size) == (2, (2 * 24, 24))
    between = ["interpolate", "first.safetensors", "second.safetensors", *options, "--output", "between"]
    if preset == "pixel_aligned":  # the mean of two cameras is no camera
        with pytest.raises(SystemExit, match="cameras"):
            codes.main(between)
        return
    codes.main(between)
    with Image.open("between/000.png") as first, Image.open("between/001.png") as last:
        assert first.size == last.size == (2 * 24, 24)
        assert first.tobytes() != last.tobytes()


@pytest.mark.parametrize("preset", PRESETS)
def test_export_and_activations_are_refused_with_a_reason(preset, tmp_path, capsys):
    weights = _weights(preset)[1]
    with pytest.raises(SystemExit, match="There is no decoder to export: VolumeRenderer does not render single points"):
        export([weights, str(tmp_path / "exported")])
    assert not (tmp_path / "exported").exists()
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    arguments = [
        "--checkpoint",
        weights,
        "--images",
        str(tmp_path / "image.png"),
        "--output",
        str(tmp_path / "figures"),
    ]
    with pytest.raises(SystemExit, match="has 4 values at coordinates of 3 dimensions; colour images have 3"):
        draw_activations(arguments)
    assert not (tmp_path / "figures").exists()


def test_voxel_codes_take_another_number_of_views_than_in_training():
    run("test", *tiny("voxels"), *ONE_VIEW, *_weights("voxels"), NAME, "one_view")
    tested = rows("runs/one_view/version_0/test_instances.csv")
    assert [row["name"] for row in tested] == [row["name"] for row in _table("voxels")]
    for row, other in zip(tested, _table("voxels"), strict=True):
        assert float(row["psnr@0"]) != float(other["psnr@0"])
    for support in ((0,), (0, 1, 4)):
        run("predict", *_weights("voxels"), "--views", "scenes/first", "--support", *support, "--frames", 2)
        [row] = rows("predictions/predictions.csv")
        assert row["support views"] == str(len(support))
        assert float(row["psnr predicted"]) > 0


def test_pixel_aligned_features_refuse_another_number_of_views():
    message = refused("test", *tiny("pixel_aligned"), *ONE_VIEW, *_weights("pixel_aligned"))
    assert "PixelAlignedMLP was built for num_views 2; the data has 1" in message
    message = refused("predict", *_weights("pixel_aligned"), "--views", "scenes", "--support", 0)
    assert re.search(r"The model takes 2 support view\(s\), but support has 1 frame\(s\), \[0\]: pass 2 with", message)
