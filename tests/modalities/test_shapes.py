"""Shapes: images in the right orientation, files of predictions, and decoding of codes."""

import io
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from signposts import ARM, POLE, SignpostData, SignpostModel, latents_of

import tools.codes
from callbacks.gallery import Gallery, inner_rows
from callbacks.tables import _medium, sample_rows
from composers.codes import InstanceCode, fingerprint, read_code
from datamodules.batch import Samples, instance_of
from datamodules.domain import Grid, Volume
from modalities import Images, Prediction
from modalities.drawing import Model3D
from modalities.mesh_rendering import slice_image, still_images, triangles_of_mesh, triangles_of_points
from modalities.shape_metrics import Chamfer
from modalities.shapes import Shapes, ShapeWriter
from modalities.triangle_mesh import SurfacePoints, TriangleMesh, save_mesh

SOURCE = {"offset": [0.5, -1.0, 2.0], "scale": 0.25}
FAST = {"resolution": 32, "frames": 3, "size": 64}


def _code(composer, radius, name="post", **changes):
    arguments = {"facts": {"chamfer predicted": "1.000", "chamfer refined": "0.500"}, "domain": Volume(1.0)} | changes
    return InstanceCode(latents_of(radius), [((0, 2500),)], (2500,), fingerprint(composer), name, **arguments)


def _prediction(radius, name="post", source=SOURCE, known=True, **options):
    composer, batch = SignpostModel(), SignpostData((0.4,), **options).batch()
    if not known:
        batch = batch._replace(query=batch.query._replace(values=None, normals=None))
    values = {0: torch.zeros(1, batch.query.coords.shape[1], 1)}
    return Prediction(composer, _code(composer, radius, name), instance_of(batch, 0, Volume(1.0), values), None, source)


def _ink(image):
    """Return which pixels ``(H, W)`` of an image are not white."""
    return (np.asarray(image.convert("RGB")).astype(int) < 250).any(-1)


def _extent(image):
    """Return the first and last row, then the first and last column that are not white."""
    ink = _ink(image)
    rows, columns = ink.any(1).nonzero()[0], ink.any(0).nonzero()[0]
    return rows[0], rows[-1], columns[0], columns[-1]


def _run_gallery(tmp_path, composer, data, batch, **options):
    gallery = Gallery(**options)
    trainer = SimpleNamespace(datamodule=data, log_dir=tmp_path, default_root_dir="no", is_global_zero=True)
    gallery.on_test_start(trainer, composer)
    with torch.no_grad():
        evaluation = composer._evaluate(batch, "test")
    gallery.on_test_batch_end(trainer, composer, evaluation, batch, 0)
    gallery.on_test_epoch_end(trainer, composer)
    return gallery, evaluation


def test_images_are_upright_and_lit_from_above():
    """A pole of 0.9 towards +y, and an arm of 0.7 towards +x, which is on the right of a camera in front, at +z."""
    composer = SignpostModel()
    data = SignpostData((0.3,), context="surface", context_points=2000)
    instance = instance_of(data.batch(), 0, Volume(1.0), {})
    with torch.no_grad():
        reconstruction = composer.reconstruction(latents_of(0.3))
    modality = Shapes()
    images = [
        modality.medium(cell)
        for cell in (
            modality.original(instance),
            modality.reconstructed(composer, reconstruction, instance, torch.zeros(0)),
            modality.context(instance)[0],
        )
    ]
    for image in images:
        assert image.size == (256, 256)
        top, bottom, left, right = _extent(image)
        assert top < 30 < 150 < bottom < 190  # the pole reaches up, and nothing down
        assert 60 < left < 100
        assert right > 165
    shaded = np.asarray(images[1]).astype(float).sum(-1)
    ball = shaded[100:160, 100:156]
    assert ball[:15].mean() > 1.1 * ball[-15:].mean()
    sideways = Shapes(up="z").medium(Shapes(up="z").original(instance))
    top, bottom, _, _ = _extent(sideways)
    assert top > 60  # the pole points away


def test_images_of_point_sets_cover_what_the_mesh_covers():
    solid = trimesh.creation.icosphere(4, 0.6)
    mesh = TriangleMesh(solid.vertices.astype(np.float32), solid.faces.astype(np.int32))
    expected = _ink(still_images(triangles_of_mesh(mesh), 1, 128)[0])
    for normals in (solid.vertices / 0.6, np.zeros_like(solid.vertices)):
        image = still_images(triangles_of_points(SurfacePoints(solid.vertices, normals)), 1, 128)[0]
        covered = _ink(image)
        assert (covered & expected).sum() > 0.9 * expected.sum()
        assert (covered & ~expected).sum() < 0.15 * expected.sum()
    single = triangles_of_points(SurfacePoints(np.zeros((1, 3)), np.zeros((1, 3))))
    assert _ink(still_images(single, 1, 128)[0]).any()


def test_slices_show_the_sign_and_the_zero_line():
    line = (np.arange(100) + 0.5) / 50 - 1
    distances = (np.hypot(line[None], line[:, None]) - 0.5).astype(np.float32)
    distances[0, 0] = math.nan
    image = np.asarray(slice_image(distances, 0.02)).astype(int)
    red, _, blue = image.transpose(2, 0, 1)
    assert (red - blue)[45:55, 45:55].min() > 20  # inside
    assert (blue - red)[5, 50] > 20
    dark = image.max(-1) < 90
    radii = np.hypot(line[None], line[:, None])[dark]
    assert (len(radii) > 100, np.abs(radii - 0.5).max() < 0.04) == (True, True)
    assert image[0, 0].tolist() == [128] * 3


def test_gallery_shows_points_surfaces_slices_and_videos(tmp_path, capsys):
    metric = Chamfer(resolution=48, points=2000)
    composer, data = SignpostModel(4, {"chamfer": metric}), SignpostData((0.3, 0.5))
    batch = data.batch()
    gallery, evaluation = _run_gallery(tmp_path, composer, data, batch)
    assert list(gallery.rows) == batch.names == ["signpost-0", "signpost-1"]
    for index, row in enumerate(gallery.rows.values()):
        numbers = [evaluation["metrics"][step]["chamfer"][index].item() for step in (0, 4)]
        assert numbers[1] < numbers[0]
        labels = ["original", f"predicted {numbers[0]:.1f} %", f"4 steps {numbers[1]:.1f} %"]
        assert [cell.label for cell in row] == [batch.names[index], *labels, "front slice", "side slice", "top slice"]
        assert {cell.shape for cell in row} == {(256, 256)}
        predicted, refined = (_ink(Images().panel(cell.values, cell.shape)).sum() for cell in row[2:4])
        assert refined > predicted if index else refined < predicted
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["gallery.png", "gallery/signpost-0.gif", "gallery/signpost-1.gif"]
    with Image.open(tmp_path / "gallery.png") as figure:
        assert figure.size == (7 * 264 + 8, 2 * (256 + 26) + 8)
    with Image.open(tmp_path / "gallery" / "signpost-0.gif") as video:
        assert (video.n_frames, video.size) == (24, (256, 256))
    assert "Gallery: " in capsys.readouterr().out


def test_a_gallery_without_a_surface_has_white_cells_and_no_video(tmp_path):
    composer, data = SignpostModel(), SignpostData((0.3,))
    for parameter in composer.parameters():
        parameter.data.fill_(-1.0)
    gallery, _ = _run_gallery(tmp_path, composer, data, data.batch())
    [row] = gallery.rows.values()
    assert row[2].label == "predicted 173.2 %"
    assert (row[2].values == 1).all()
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.png"]


def test_writer_writes_a_mesh_in_world_units_a_video_a_figure_and_the_code(tmp_path):
    row = ShapeWriter(**FAST).write(_prediction(0.4), tmp_path / "a.b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.gif", "a.b.ply", "a.b.png", "a.b.safetensors"]
    solid = trimesh.load(tmp_path / "a.b.ply", process=False)
    normalised = (solid.vertices + SOURCE["offset"]) * SOURCE["scale"]
    assert normalised.max(0) == pytest.approx([ARM, POLE, 0.4], abs=0.05)
    assert normalised.min(0) == pytest.approx([-0.4, -0.4, -0.4], abs=0.01)
    assert (solid.is_watertight, solid.volume > 0) == (True, True)
    assert row == {
        "size": " x ".join(f"{extent:.3g}" for extent in np.ptp(solid.vertices, axis=0)),
        "faces": str(len(solid.faces)),
        "watertight": "yes",
        "surface": "yes",
        "chamfer predicted": "1.000",
        "chamfer refined": "0.500",
    }
    with Image.open(tmp_path / "a.b.gif") as video:
        assert (video.n_frames, video.size) == (3, (64, 64))
    with Image.open(tmp_path / "a.b.png") as figure:
        assert figure.size == (4 * 264 + 8, 3 * (256 + 26) + 8)
    code = read_code(tmp_path / "a.b.safetensors")
    assert Shapes().decodes(code)
    assert (code.shape, code.facts["offset"], code.facts["scale"]) == ((32,) * 3, "0.5 -1.0 2.0", "0.25")


@pytest.mark.parametrize("ending", ["ply", "obj", "glb"])
def test_meshes_of_every_format_are_read_back(ending, tmp_path):
    options = FAST | {"mesh_format": ending, "units": "normalised", "slices": True}
    ShapeWriter(**options).write(_prediction(0.4, known=False, context="surface", normals=True), tmp_path / "post")
    expected = ["gif", ending, "png", "safetensors", "slices.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"post.{suffix}" for suffix in expected)
    solid = trimesh.load(tmp_path / f"post.{ending}", force="mesh")
    assert solid.bounds[1] == pytest.approx([ARM, POLE, 0.4], abs=0.05)
    assert solid.is_watertight
    with Image.open(tmp_path / "post.png") as figure:
        assert figure.size[1] == 2 * (256 + 26) + 8  # without the true surface


@pytest.mark.parametrize(("radius", "reason"), [(-1.0, "no surface of level 0"), (math.nan, "not finite")])
def test_a_shape_without_a_surface_is_reported_and_does_not_stop_the_others(radius, reason, tmp_path, capsys):
    writer = ShapeWriter(**FAST)
    row = writer.write(_prediction(radius), tmp_path / "post")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["post.png", "post.safetensors"]
    printed = capsys.readouterr().out
    assert printed.startswith("No post.ply: ")
    assert reason in printed
    assert reason in row["surface"]
    assert (row["faces"], row["watertight"], writer.size_of(row)) == ("0", "-", "-")
    assert list(row) == list(writer.write(_prediction(0.4), tmp_path / "other"))


def test_codes_are_decoded_at_any_resolution(tmp_path):
    writer = ShapeWriter(**FAST)
    writer.write(_prediction(0.4), tmp_path / "post")
    code, composer = read_code(tmp_path / "post.safetensors"), SignpostModel()
    path, text = ShapeWriter(resolution=48).decode(composer, [code], None, tmp_path / "post")
    assert path == tmp_path / "post.48.ply"
    fine, coarse = (trimesh.load(name, process=False) for name in (path, tmp_path / "post.ply"))
    assert text == f"{len(fine.faces):,} faces at a resolution of 48"
    assert len(fine.faces) > 1.9 * len(coarse.faces)
    assert fine.bounds == pytest.approx(coarse.bounds, abs=0.1)
    named, _ = writer.decode(composer, [code], tmp_path / "named.obj", tmp_path / "post")
    assert trimesh.load(named).bounds == pytest.approx(coarse.bounds, abs=1e-4)
    with pytest.raises(ValueError, match="choose a name that ends with"):
        writer.decode(composer, [code], tmp_path / "named.txt", tmp_path / "post")
    with pytest.raises(ValueError, match="no surface of level 0"):
        writer.decode(composer, [_code(composer, -1.0)], None, tmp_path / "none")


def test_interpolations_are_meshes_and_an_animation(tmp_path, monkeypatch, capsys):
    composer = SignpostModel()
    codes = [
        _code(composer, radius, facts={"signal": "shape", "offset": "1 1 1", "scale": "0.5"}) for radius in (0.2, 0.5)
    ]
    for index, code in enumerate(codes):
        code.save(tmp_path / f"{index}.safetensors")
    monkeypatch.setattr(tools.codes, "MODALITIES", (Images(), Shapes()))
    monkeypatch.setattr("composers.load", lambda checkpoint: composer)
    files = [str(tmp_path / f"{index}.safetensors") for index in range(2)]
    options = ["--checkpoint", "model.ckpt", "--resolution", "40"]
    tools.codes.main(["interpolate", *files, *options, "--frames", "3", "--output", str(tmp_path / "frames")])
    names = ["000.ply", "001.ply", "002.ply", "frames.gif"]
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == names
    depths = [-trimesh.load(tmp_path / "frames" / name).bounds[0, 2] for name in names[:3]]
    assert depths == pytest.approx([0.2, 0.35, 0.5], abs=0.01)  # in normalised coordinates
    with Image.open(tmp_path / "frames" / "frames.gif") as video:
        assert video.n_frames == 3
    tools.codes.main(["render", files[1], *options])
    assert "Wrote" in capsys.readouterr().out
    world = trimesh.load(tmp_path / "1.40.ply")
    assert world.bounds[0] == pytest.approx([-2, -2, -2], abs=0.02)  # -0.5 / scale - offset
    with pytest.raises(SystemExit, match=r"--scale does not apply to codes of shapes: pass --resolution, or omit"):
        tools.codes.main(["render", files[1], "--checkpoint", "model.ckpt", "--scale", "2"])


def test_a_frame_without_a_surface_is_white(tmp_path):
    composer = SignpostModel()
    codes = [_code(composer, radius) for radius in (0.4, -1.0)]
    ShapeWriter(**FAST).decode(composer, codes, tmp_path, tmp_path / "post")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000.ply", "frames.gif"]


def test_media_are_images_and_a_mesh_for_loggers():
    composer, data = SignpostModel(2), SignpostData((0.3, 0.5))
    batch = data.batch()
    with torch.no_grad():
        rows = sample_rows(composer, batch, Shapes(), Volume(1.0), frames=4)
    heading = Chamfer().heading
    columns = ["name", "observed", "original", "reconstruction", "slices", "orbit", heading, f"refined {heading}"]
    assert [list(row) for row in rows] == [columns] * 2
    solid = trimesh.load(io.StringIO(rows[0]["reconstruction"].obj), file_type="obj", process=False)
    assert (solid.is_watertight, solid.bounds[1, 1]) == (True, pytest.approx(POLE, abs=0.05))
    with Image.open(io.BytesIO(rows[0]["orbit"].gif)) as video:
        assert (video.n_frames, video.size) == (4, (96, 96))
    model = _medium(rows[0]["reconstruction"])
    assert (type(model).__name__, Path(model._path).suffix) == ("Object3D", ".obj")
    with torch.no_grad():
        reconstruction = composer.reconstruction(latents_of(-1.0))
    instance = instance_of(batch, 0, Volume(1.0), {})
    assert Shapes().media(composer, reconstruction, instance)["reconstruction"] == "no surface"
    assert not isinstance(Shapes().media(composer, reconstruction, instance)["slices"], Model3D)
    assert Shapes().animation(composer, reconstruction, instance, 2) is not None


def test_targets_without_surface_points_show_the_samples_inside():
    instance = instance_of(SignpostData((0.4,), eval_surface_points=0).batch(), 0, Volume(1.0), {})
    modality = Shapes()
    assert _ink(modality.medium(modality.original(instance))).sum() > 500
    outside = instance._replace(query=Samples(torch.ones(3, 3), torch.ones(3, 1)))
    assert not _ink(modality.medium(modality.original(outside))).any()
    assert modality.context(instance._replace(signal=None)) == []


def test_modality_states_its_metrics_and_which_models_it_takes():
    modality = Shapes()
    assert next(iter(modality.metrics())) == modality.headline.metric == "chamfer"
    data = SignpostData((0.4,))
    assert modality.takes({})
    assert modality.takes(data.spec.facts())
    assert not modality.takes({"domain": Grid.unit(2).config()})
    assert inner_rows(SignpostModel(), data.batch(), data, 2) == []
    instance = instance_of(data.batch(), 0, Grid.unit(3), {})
    with pytest.raises(ValueError, match="has the domain"):
        modality.extras(SignpostModel(), None, instance)


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 1},
        {"frames": 1},
        {"size": 0},
        {"size": (3, 4)},
        {"seconds": 0},
        {"elevation": 91},
        {"max_memory": 0},
        {"mesh_format": "stl"},
        {"units": "metres"},
        {"up": "x"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=rf"\b{next(iter(options))} (is )?\S+[:,]? "):
        ShapeWriter(**options)


def test_too_little_memory_and_unknown_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="too little for one point"):
        ShapeWriter(max_memory=1e-4).check(SignpostModel())
    assert ShapeWriter().check(SignpostModel()) == []
    with pytest.raises(ValueError, match=r"a\.stl has no supported mesh format"):
        save_mesh(TriangleMesh(np.zeros((3, 3), np.float32), np.zeros((1, 3), np.int32)), tmp_path / "a.stl")
