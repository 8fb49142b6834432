"""Rendering meshes as scenes: the layout of the output, resuming, unreadable meshes, and user errors."""

import json
import math

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from benchmarks import render_views as benchmark
from datamodules.scenes import rendering
from datamodules.scenes.raycast import Caster
from datamodules.scenes.rendering import RenderSettings, camera_poses, render_folder
from datamodules.storage.meshes import mesh_files, read_mesh
from datamodules.storage.transforms import read_transforms
from datamodules.storage.views import read_view
from tools.render_views import main

TINY = RenderSettings(views=3, size=12)
OPTIONS = ["--views=3", "--size=12", "--workers=1"]


@pytest.fixture
def meshes(tmp_path):
    """Return a folder of four meshes."""
    root = tmp_path / "meshes"
    root.mkdir()
    for number, name in enumerate(("cone", "box", "ring", "tall")):
        mesh = trimesh.creation.box((1, 1 + number, 2 - number / 3))
        mesh.visual.face_colors = (250, 50 * number, 20, 255)
        mesh.export(root / f"{name}.ply")
    return root


def _content(root):
    """Return all files below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _dates(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}


def _refused(*args):
    """Return the error message of an invalid command."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(arg) for arg in args])
    message = exit_info.value.code
    assert isinstance(message, str)
    assert message.startswith("error: ")
    return message


def test_output_has_the_layout_of_learnit_and_images_match_the_cameras(meshes, tmp_path, capsys):
    out = tmp_path / "out"
    main([str(meshes), str(out), *OPTIONS, "--field_of_view=50", "--distance=3.9"])
    assert "4 objects rendered, 0 already existed" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["chair_rendering.json", "chair_splits.json", "chairs"]
    splits = json.loads((out / "chair_splits.json").read_text())
    assert list(splits) == ["train", "val", "test"]
    assert sorted(name for names in splits.values() for name in names) == ["box", "cone", "ring", "tall"]
    assert all(splits.values())
    transforms = json.loads((out / "chairs/ring/transforms.json").read_text())
    assert transforms["camera_angle_x"] == math.radians(50)
    assert [frame["file_path"] for frame in transforms["frames"]] == ["./000", "./001", "./002"]
    matrices = torch.tensor([frame["transform_matrix"] for frame in transforms["frames"]])
    assert matrices[:, 3].tolist() == [[0, 0, 0, 1]] * 3
    assert torch.allclose(matrices[:, :3, 3].norm(dim=1), torch.tensor(3.9))
    focal = 0.5 * 12 / math.tan(math.radians(25))
    expected = Caster(read_mesh(meshes / "ring.ply")).render(
        matrices[:, :3], torch.tensor([[focal, focal, 6.0, 6.0]] * 3), (12, 12)
    )
    for frame, pixels in enumerate(expected):
        with Image.open(out / f"chairs/ring/00{frame}.png") as image:
            assert image.mode == "RGBA"
            assert np.array_equal(np.asarray(image), pixels.permute(1, 2, 0).numpy())
    assert 0.1 < (expected[:, 3] > 0).float().mean() < 0.9


def test_rendered_scenes_can_be_read(meshes, tmp_path):
    render_folder(mesh_files([meshes]), tmp_path / "out", "lamps", TINY)
    assert (tmp_path / "out/lamp_splits.json").exists()
    scene = read_transforms(tmp_path / "out/lamps/box")
    assert torch.equal(scene.poses, camera_poses(TINY, "box"))
    assert torch.allclose(scene.intrinsics[:, :2], torch.tensor(6 / math.tan(math.radians(22.5))))
    assert scene.shape == (12, 12)
    with Image.open(scene.images[1]) as image:
        pixels = np.asarray(image).astype(float)
    alpha = pixels[..., 3:] / 255
    on_white = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(read_view(scene.images[1]).permute(1, 2, 0).numpy() - on_white).max() <= 1


def test_cameras_are_uniform_on_the_sphere_and_depend_on_name_frame_and_seed():
    settings = RenderSettings(views=400, elevation=(-30, 90))
    poses = camera_poses(settings, "a")
    heights = poses[:, 2, 3] / 4
    assert heights.min() > -0.5
    assert heights.mean() == pytest.approx(0.25, abs=0.05)  # uniform in height is uniform in area
    assert heights.std() == pytest.approx(1.5 / math.sqrt(12), abs=0.03)
    assert poses[:, :2, 3].mean(0).norm() < 0.3
    assert torch.allclose(poses[:, :, :3].mT @ poses[:, :, :3], torch.eye(3), atol=1e-6)
    assert torch.allclose(poses[:, :, 2] * 4, poses[:, :, 3], atol=1e-5)  # cameras look at the origin
    assert (poses[:, 2, 1] >= 0).all()  # cameras are upright
    assert torch.equal(camera_poses(RenderSettings(views=3, elevation=(-30, 90)), "a"), poses[:3])
    assert not torch.equal(camera_poses(settings, "b"), poses)
    assert not torch.equal(camera_poses(RenderSettings(views=400, elevation=(-30, 90), seed=1), "a"), poses)
    shared = RenderSettings(views=4, cameras="shared")
    assert torch.equal(camera_poses(shared, "a"), camera_poses(shared, "b"))


def test_only_new_and_changed_meshes_are_rendered(meshes, tmp_path):
    out = tmp_path / "out"
    files = mesh_files([meshes])
    assert render_folder(files[1:], out, "chairs", TINY).rendered == [file.name for file in files[1:]]
    before, dates = _content(out / "chairs"), _dates(out)
    report = render_folder(files, out, "chairs", TINY)
    assert (report.rendered, report.kept) == ([files[0].name], [file.name for file in files[1:]])
    after = _content(out / "chairs")
    assert before.items() < after.items()
    assert dates.items() < _dates(out).items()
    files[2].path.write_bytes(files[1].path.read_bytes())
    assert render_folder(files, out, "chairs", TINY).rendered == [files[2].name]
    assert _content(out / "chairs") != after


def test_an_interrupted_run_is_resumed(meshes, tmp_path, monkeypatch):
    out, files, written = tmp_path / "out", mesh_files([meshes]), []

    def interrupt(task, poses):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task)
        return content(task, poses)

    content = rendering._transforms
    monkeypatch.setattr(rendering, "_transforms", interrupt)
    with pytest.raises(KeyboardInterrupt):
        render_folder(files, out, "chairs", TINY)
    assert sorted(path.name for path in (out / "chairs").iterdir()) == [".ring.part", "box", "cone"]
    monkeypatch.undo()
    assert render_folder(files, out, "chairs", TINY).kept == ["box", "cone"]
    render_folder(files, tmp_path / "at_once", "chairs", TINY)
    assert _content(out) == _content(tmp_path / "at_once")


def test_other_settings_need_overwrite(meshes, tmp_path):
    out = tmp_path / "out"
    main([str(meshes), str(out), *OPTIONS])
    before = _content(out)
    message = _refused(meshes, out, *OPTIONS, "--seed=1", "--elevation", "0", "50")
    assert "seed 0, not 1" in message
    assert "elevation 0.0 60.0, not 0.0 50.0" in message
    assert "--overwrite" in message
    assert _content(out) == before
    main([str(meshes / "box.ply"), str(out), *OPTIONS, "--seed=1", "--overwrite"])
    assert [path.name for path in (out / "chairs").iterdir()] == ["box"]
    (out / "cars").mkdir()
    (out / "cars" / "mine.txt").write_text("user data")
    for options in ([], ["--overwrite"]):
        assert "contains files that were not rendered here" in _refused(
            meshes, out, *OPTIONS, "--category=cars", *options
        )
    assert (out / "cars" / "mine.txt").exists()


def test_unreadable_meshes_are_skipped_and_reported(meshes, tmp_path, capsys):
    (meshes / "damaged.glb").write_text("no mesh")
    main([str(meshes), str(tmp_path / "out"), *OPTIONS])
    printed = capsys.readouterr()
    assert "1 of 5 meshes" in printed.err
    assert "damaged.glb cannot be read" in printed.err
    assert "4 objects rendered" in printed.out
    assert not (tmp_path / "out/chairs/damaged").exists()
    assert "damaged" not in (tmp_path / "out/chair_splits.json").read_text()
    message = _refused(meshes / "damaged.glb", tmp_path / "none", *OPTIONS)
    assert "None of 1 meshes can be read:" in message
    assert not (tmp_path / "none/chair_splits.json").exists()


def test_splits_depend_on_names_only():
    settings = RenderSettings(val=0.1, test=0.2)
    names = [f"object {number}" for number in range(2000)]
    splits = rendering._draw_splits(names, settings)
    assert [len(splits[split]) / 2000 for split in ("train", "val", "test")] == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    for split, members in rendering._draw_splits(names[:1000], settings).items():
        assert set(members) <= set(splits[split])
    for count in (3, 4, 5):
        assert all(rendering._draw_splits(names[:count], settings).values())
    assert rendering._draw_splits(names[:2], settings)["train"] == names[:2]
    assert not rendering._draw_splits(names[:5], RenderSettings(val=0.0, test=0.0))["test"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--field_of_view=40"],
            "40 degrees: objects of radius 1.4 at distance 4 need at least 40.98 degrees (0.7151 rad)",
        ),
        (["--field_of_view=0.8"], "0.8 degrees"),
        (["--distance=1.2"], "distance is 1.2"),
        (["--elevation", "50", "20"], "50 to 20"),
        (["--val=0.5", "--test=0.5"], "val is 0.5, test 0.5"),
        (["--views=0"], "views is 0"),
        (["--workers=0"], "workers is 0"),
        (["--category=a/b"], "category is 'a/b'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_out_of_range_are_refused(meshes, tmp_path, options, expected):
    message = _refused(meshes, tmp_path / "out", *options)
    assert expected in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_missing_meshes_and_a_file_as_out_are_refused(meshes, tmp_path):
    assert "There is no mesh or folder" in _refused(tmp_path / "nowhere", tmp_path / "out")
    assert "pass the meshes first and OUT last" in _refused(meshes / "box.ply", meshes / "cone.ply")


def test_output_does_not_depend_on_the_number_of_processes(meshes, tmp_path):
    files = mesh_files([meshes])
    for workers in (1, 2):
        render_folder(files, tmp_path / str(workers), "chairs", TINY, workers)
    assert _content(tmp_path / "1") == _content(tmp_path / "2")


def test_benchmark_writes_a_table(tmp_path, capsys):
    table = tmp_path / "views.csv"
    options = ["--objects=2", "--faces=30", "--views=2", "--size=8", "--workers=[1]", "--repeats=1", f"--csv={table}"]
    for _ in range(2):
        benchmark.main(options)
    assert "2 meshes of 30 faces" in capsys.readouterr().out
    heading, *rows = table.read_text().splitlines()
    assert heading == 'size,workers,"views per second, min",max'
    assert [row.split(",")[:2] for row in rows] == [["8", "1"]] * 2
    assert float(rows[0].split(",")[2]) > 0
    with pytest.raises(ValueError, match="views 0"):
        benchmark.RenderViewsSettings(views=0)
    with pytest.raises(SystemExit, match="error: There is no mesh"):
        benchmark.main(["--meshes=[nowhere]"])


def test_generated_meshes_have_the_requested_number_of_faces(tmp_path):
    [mesh] = benchmark.generate(benchmark.RenderViewsSettings(objects=1, faces=10000), tmp_path)
    assert 10000 <= len(read_mesh(mesh.path).corners) < 11000
