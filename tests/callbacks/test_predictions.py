"""Predictions of scenes: every file compared with the values rendered by the model."""

import csv
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from objects import Balls, Scenes, scene_batch
from PIL import Image

from callbacks.predictions import PredictionWriter
from composers.codes import fingerprint, read_code
from composers.rendering import LightFieldRenderer, VolumeRenderer
from datamodules.base import CoordinateDataModule
from modalities import turntable
from modalities.views import ViewWriter
from tools import codes

CELL = 128 + 8  # pixels of a view in a figure, with its margin


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Run in an empty folder, without an encoder of MP4."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(turntable, "encoder", lambda: None)


def _predict(tmp_path, batches, composer=None, **options):
    """Run a prediction as the trainer would; return the model and the last evaluation."""
    composer = composer or Balls(steps=3)
    writer = PredictionWriter(str(tmp_path / "out"), {"frames": 3} | options)
    trainer = SimpleNamespace(datamodule=Scenes(), is_global_zero=True)
    writer.on_predict_start(trainer, composer)
    for index, batch in enumerate(batches):
        with torch.inference_mode():
            evaluation = composer.predict_step(batch, index)
        writer.on_predict_batch_end(trainer, composer, evaluation, batch, index)
    writer.on_predict_epoch_end(trainer, composer)
    return composer, evaluation


def _rows(tmp_path):
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def _cell(figure, row, column):
    """Return one cell of a figure, resized to 16 x 16 pixels."""
    x, y = 8 + column * CELL, 8 + row * (CELL + 18) + 18
    return np.asarray(figure.crop((x, y, x + 128, y + 128)).resize((16, 16), 0)) / 255.0


def _naive_psnr(actual, expected):
    errors = [(view - true_view).square().mean() for view, true_view in zip(actual, expected, strict=True)]
    return np.mean([-10 * math.log10(error) for error in errors])


def test_files_and_table_of_scenes(tmp_path, capsys):
    batch = scene_batch((0.8, 0.6), names=["ball.000", "more/ball"])
    _, evaluation = _predict(tmp_path, [batch])
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = {f"{name}.{kind}" for name in ("ball.000", "more/ball") for kind in ("gif", "png", "safetensors")}
    assert files == names | {"predictions.csv"}
    rows = _rows(tmp_path)
    true = batch.query.values.view(2, 2, 256, 3)
    white = torch.ones_like(true)
    for index, row in enumerate(rows.values()):
        for key, values in (("predicted", evaluation["values"][0]), ("refined", evaluation["values"][3])):
            expected = _naive_psnr(values[index].view(2, 256, 3), true[index])
            assert float(row[f"psnr {key}"]) == pytest.approx(expected, abs=6e-4)
        assert float(row["white"]) == pytest.approx(_naive_psnr(white[index], true[index]), abs=6e-4)
        assert float(row["psnr refined"]) > float(row["psnr predicted"]) + 0.3
    row = rows["ball.000"]
    keys = ["name", "rows", "columns", "views", "support views", "refinement steps", "psnr predicted", "psnr refined"]
    assert list(row) == [*keys, "code size", "kB", "white", "notes"]
    assert (row["code size"], row["kB"]) == ("1", "0.004")
    assert (row["rows"], row["views"], row["support views"], row["refinement steps"]) == ("16", "2", "1", "3")
    printed = capsys.readouterr().out
    assert "PSNR in dB of 2 scene(s)" in printed
    assert "Code size: 1 number, 0.0 kB in float32\n" in printed
    mean = np.mean([float(row["psnr refined"]) for row in rows.values()])
    assert re.search(rf"mean .* {mean:.2f}", printed)
    with Image.open(tmp_path / "out" / "ball.000.gif") as video:
        assert (video.n_frames, video.size, video.info["loop"]) == (3, (48, 31), 0)
        assert video.info["duration"] == 1330


def test_figure_of_a_scene(tmp_path):
    batch = scene_batch((0.8,), views=2, queries=3)
    _, evaluation = _predict(tmp_path, [batch])
    with Image.open(tmp_path / "out" / "ball.000.png") as figure:
        assert figure.size == (4 * CELL + 8, 4 * (CELL + 18) + 8)
        for view in range(2):
            support = batch.observation.signal.images[0, view].permute(1, 2, 0).numpy()
            assert np.abs(_cell(figure, 0, view) - support).max() < 0.003
        for view in range(3):
            true, refined = (
                values[0].view(3, 16, 16, 3)[view].clamp(0, 1).numpy()
                for values in (batch.query.values, evaluation["values"][3])
            )
            assert np.abs(_cell(figure, 1 + view, 0) - true).max() < 0.003
            assert np.abs(_cell(figure, 1 + view, 1) - refined).max() < 0.003
            assert np.abs(_cell(figure, 1 + view, 2) - np.minimum(5 * np.abs(refined - true), 1)).max() < 0.03
            depth = _cell(figure, 1 + view, 3)
            assert (depth[0] == 1).all()
            assert (depth[8, 8] < 1).any()


def test_figure_of_many_views_has_two_columns_of_views(tmp_path):
    _predict(tmp_path, [scene_batch((0.8,), queries=9)])
    with Image.open(tmp_path / "out" / "ball.000.png") as figure:
        assert figure.size == (8 * CELL + 8, 6 * (CELL + 18) + 8)
        assert (_cell(figure, 5, 0) < 1).any()
        assert (_cell(figure, 5, 4) == 1).all()


def test_scenes_without_query_images(tmp_path, capsys):
    batches = [scene_batch((0.8,), names=["a"], known=False), scene_batch((0.7,), names=["b"])]
    _, evaluation = _predict(tmp_path, batches[:1])
    with Image.open(tmp_path / "out" / "a.png") as figure:
        assert figure.size == (2 * CELL + 8, 3 * (CELL + 18) + 8)
        refined = evaluation["values"][3][0].view(2, 16, 16, 3)[1].clamp(0, 1).numpy()
        assert np.abs(_cell(figure, 2, 0) - refined).max() < 0.003
    assert _rows(tmp_path)["a"]["psnr refined"] == "nan"
    assert read_code(tmp_path / "out" / "a.safetensors").facts["psnr refined"] == "nan"
    capsys.readouterr()
    _predict(tmp_path, batches)
    printed, row = capsys.readouterr().out, _rows(tmp_path)["b"]
    assert re.search(rf"mean .* {float(row['psnr refined']):.2f}", printed)
    assert re.search(r"a +. 16 x 16 +. +2 +. +- +. +- ", printed)


def test_mesh_option_writes_meshes(tmp_path, capsys):
    batch = scene_batch((0.8, 0.05), names=["ball", "speck"])
    _predict(tmp_path, [batch], Balls(steps=0), mesh=True, mesh_resolution=48)
    mesh = trimesh.load(tmp_path / "out" / "ball.ply", process=False)
    assert mesh.is_watertight
    assert mesh.vertices[:, 2].max() == pytest.approx(1.2, abs=0.1)  # the pole
    assert mesh.vertices[:, 2].min() == pytest.approx(-0.5, abs=0.1)
    assert _rows(tmp_path)["ball"]["mesh"] == f"{len(mesh.faces)} faces"
    solid = Balls(VolumeRenderer(2.0, 6.0, samples_per_ray=2000))
    _predict(tmp_path, [scene_batch((0.8,), size=4, names=["veil"])], solid, mesh=True, mesh_resolution=16)
    assert _rows(tmp_path)["veil"]["mesh"].startswith("none: There is no surface of density 346.4 within 1.5")
    assert not (tmp_path / "out" / "veil.ply").exists()
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"No veil\.ply: There is .* choose a level .* Set the level with --mesh_level\.", printed)
    _predict(
        tmp_path, [scene_batch((0.8,), size=4, names=["veil"])], solid, mesh=True, mesh_resolution=16, mesh_level=1
    )
    assert (tmp_path / "out" / "veil.ply").exists()
    with pytest.raises(ValueError, match=r"LightFieldRenderer has no density.*: do not request a mesh"):
        _predict(tmp_path, [], Balls(LightFieldRenderer()), mesh=True)


def test_mp4_is_written_if_an_encoder_is_installed(tmp_path, monkeypatch, capsys):
    _predict(tmp_path, [scene_batch(size=4)])
    assert "encoder" not in capsys.readouterr().out
    _predict(tmp_path, [scene_batch(size=4)], mp4=True)
    message = "No encoder is installed, so only GIFs are written: to write MP4, pip install imageio-ffmpeg"
    assert message in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.mp4"))
    written = []
    monkeypatch.setattr(turntable, "encoder", lambda: "ffmpeg")
    monkeypatch.setattr(turntable, "write_mp4", lambda *args: written.append(args))
    _predict(tmp_path, [scene_batch(size=4)], frames=5, seconds=2, size=12)
    [(frames, path, seconds)] = written
    assert ([frame.size for frame in frames], path.name, seconds) == ([(36, 27)] * 5, "ball.000.mp4", 2)


def test_encoder_that_fails_stops_only_required_mp4(tmp_path, monkeypatch, capsys):
    (fake := tmp_path / "ffmpeg").write_text("#!/bin/sh\necho Unknown encoder libx264 >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(turntable, "encoder", lambda: str(fake))
    _predict(tmp_path, [scene_batch(size=4)])
    assert "No ball.000.mp4: " in capsys.readouterr().out
    assert (tmp_path / "out" / "ball.000.gif").exists()
    with pytest.raises(ValueError, match="Unknown encoder libx264"):
        _predict(tmp_path, [scene_batch(size=4)], mp4=True)


def test_light_fields_have_no_depth(tmp_path):
    _predict(tmp_path, [scene_batch((0.8,))], Balls(LightFieldRenderer()))
    with Image.open(tmp_path / "out" / "ball.000.png") as figure:
        assert figure.size == (3 * CELL + 8, 3 * (CELL + 18) + 8)
    with Image.open(tmp_path / "out" / "ball.000.gif") as video:
        assert video.size == (32, 31)


def test_code_of_a_scene(tmp_path, capsys):
    batch = scene_batch((0.8,), views=2)
    composer, evaluation = _predict(tmp_path, [batch])
    path = tmp_path / "out" / "ball.000.safetensors"
    code = read_code(path)
    assert torch.equal(code.latents["radius"], evaluation["latents"][3]["radius"])
    assert (code.shape, code.boxes, code.model) == ((2, 16, 16), [((0, 2), (0, 16), (0, 16))], fingerprint(composer))
    assert (code.facts["signal"], code.facts["refinement steps"]) == ("scene", "3")
    assert code.facts["psnr refined"] == _rows(tmp_path)["ball.000"]["psnr refined"]
    capsys.readouterr()
    codes.main(["info", str(path)])
    printed = capsys.readouterr().out
    assert "shape:             2 x 16 x 16" in printed
    assert "signal:            scene" in printed
    assert "camera:            4 1.2 1.2 30" in printed


def _decode(monkeypatch, composer, *args):
    """Run `tools.codes` with a model."""
    monkeypatch.setattr(codes.composers, "load", lambda checkpoint: composer)
    codes.main([*map(str, args), "--checkpoint", "any"])


def test_code_is_rendered_without_images(tmp_path, capsys, monkeypatch):
    composer, evaluation = _predict(tmp_path, [scene_batch((0.8,), views=2)])
    path = tmp_path / "out" / "ball.000.safetensors"
    options = (
        "--size",
        24,
        "--frames",
        5,
        "--elevation",
        10,
        "--mesh",
        "--mesh_resolution",
        32,
        "--mesh_format",
        "glb",
    )
    _decode(monkeypatch, composer, "render", path, *options)
    name = "ball.000.24x24"
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"Wrote .*{name}\.gif: 5 frames of 24 x 24 pixels, {name}\.glb: \d+ faces, decoded", printed)
    camera = turntable.Camera((24, 24), (1.2 * 24,) * 2, 4.0)
    reconstruction = composer.reconstruction({"radius": evaluation["latents"][3]["radius"]})
    expected = turntable.turntable_frames(composer, reconstruction, camera, None, 5, 10.0)
    with Image.open(tmp_path / "out" / f"{name}.gif") as video:
        assert (video.n_frames, video.size) == (5, (48, 24))
        for index, frame in enumerate(expected):
            video.seek(index)
            difference = np.asarray(video.convert("RGB")).astype(float) - np.asarray(frame).astype(float)
            assert np.abs(difference).mean() < 1.5
    scene = trimesh.load(tmp_path / "out" / f"{name}.glb", force="mesh", process=False)
    assert scene.is_watertight
    assert scene.vertices[:, 2].max() == pytest.approx(1.2, abs=0.1)  # the pole, in world coordinates
    red, _, blue = scene.visual.vertex_colors[scene.vertices[:, 0] > 0.3][:, :3].astype(float).mean(0)
    assert red > blue + 50
    _decode(monkeypatch, composer, "render", path, "--frames", 2, "--output", tmp_path / "new" / "turn.gif")
    with Image.open(tmp_path / "new" / "turn.gif") as video:
        assert (video.n_frames, video.size) == (2, (32, 16))


def test_interpolation_of_codes_of_scenes(tmp_path, monkeypatch):
    composer, _ = _predict(tmp_path, [scene_batch((0.8, 0.4), names=["a", "b"])])
    ends = [tmp_path / "out" / f"{name}.safetensors" for name in "ab"]
    _decode(monkeypatch, composer, "interpolate", *ends, "--frames", 3, "--output", tmp_path / "between")
    names = ["000.png", "001.png", "002.png", "frames.gif"]
    assert sorted(path.name for path in (tmp_path / "between").iterdir()) == names
    covered = []
    for frame in names[:3]:
        with Image.open(tmp_path / "between" / frame) as image:
            assert image.size == (32, 16)
            covered.append((np.asarray(image)[:, :16].min(-1) < 128).sum())
    assert covered[0] > covered[2]


def test_codes_that_cannot_be_rendered_are_refused(tmp_path, monkeypatch):
    composer, _ = _predict(tmp_path, [scene_batch((0.8,))])
    path = tmp_path / "out" / "ball.000.safetensors"
    for options, message in (
        (["--sample_rate", "20"], "--sample_rate does not apply to codes of views: pass --size or --frames"),
        (["--frames", "1"], "frames is 1"),
        (["--size", "9x12"], "size is [9, 12]: for views, pass the longer side in pixels"),
        (["--output", "image.png"], "image.png has no supported video format: choose a name that ends with .gif"),
    ):
        with pytest.raises(SystemExit) as error:
            _decode(monkeypatch, composer, "render", path, *options)
        assert error.value.code.startswith(f"error: {message}")
    code = read_code(path)
    code.facts.pop("camera")
    code.save(path)
    with pytest.raises(SystemExit, match=r"error: The code of ball\.000 states no camera, .* encode the scene again"):
        _decode(monkeypatch, composer, "render", path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 1}, "frames is 1, mesh_resolution 128, size None: they must be at least 2, 2 and 1"),
        ({"mesh_resolution": 1}, "mesh_resolution 1"),
        ({"size": 0}, "size 0"),
        ({"size": (9, 12)}, "size is [9, 12]: for views, pass the longer side in pixels"),
        ({"mesh_level": 0.0}, "mesh_level is 0.0; it must be positive"),
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"elevation": 91.0}, "elevation 91.0"),
        ({"max_memory": 0.0}, "max_memory 0.0"),
    ],
    ids=["frames", "resolution", "size", "two-sizes", "level", "seconds", "elevation", "memory"],
)
def test_options_out_of_range_raise(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ViewWriter(**options)


class _Unspecified(Scenes):
    """Data without a modality."""

    spec = Scenes.spec._replace(modality=CoordinateDataModule.modality)


def test_invalid_options_raise_before_the_folder_is_created(tmp_path):
    trainer = SimpleNamespace(datamodule=Scenes(), is_global_zero=True)
    with pytest.raises(
        ValueError, match="`options` of PredictionWriter contains scale; views take frames, size, elevation"
    ):
        PredictionWriter(str(tmp_path / "out"), {"scale": 2}).on_predict_start(trainer, Balls())
    trainer.datamodule = _Unspecified()
    with pytest.raises(ValueError, match="_Unspecified has no modality whose predictions can be written"):
        PredictionWriter(str(tmp_path / "out")).on_predict_start(trainer, Balls())
    assert not (tmp_path / "out").exists()
