"""`ShapeFiles`: what a model observes of the files of users, and what is refused."""

import json
import os

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from datamodules.domain import Volume
from datamodules.shapes.prediction import ShapeFiles, shape_files
from datamodules.shapes.solids import observed_solid, read_solid

CENTRE, RADIUS = np.array([5.0, 0, -2]), 3.0


def _ball():
    mesh = trimesh.creation.icosphere(3, RADIUS)
    mesh.apply_translation(CENTRE)
    return mesh


def _columns(count, normals=True, seed=0):
    directions = np.random.default_rng(seed).normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.column_stack((CENTRE + RADIUS * directions, directions) if normals else (CENTRE + RADIUS * directions,))


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a shape of every kind."""
    _ball().export(tmp_path / "ball.obj")
    (tmp_path / "more").mkdir()
    _ball().export(tmp_path / "more" / "ball.ply")
    np.savetxt(tmp_path / "with.xyz", _columns(3000))
    np.savetxt(tmp_path / "without.csv", _columns(40, normals=False), delimiter=",")
    depth = np.full((24, 24), 2000, np.uint16)
    depth[8:16, 8:16] = 1800
    Image.fromarray(depth).save(tmp_path / "scan.png")
    (tmp_path / "scan.json").write_text(json.dumps({"focal": 30}))
    Image.fromarray(depth).save(tmp_path / "photo.png")
    return tmp_path


def _batches(data):
    data.setup("predict")
    return {
        name: batch
        for items in data.predict_dataloader()
        for batch in [data.to_coordinates(items)]
        for name in batch.names
    }


def test_points_of_every_kind_are_observed(folder):
    data = ShapeFiles([str(folder)], signal_shape=(-1, 3), context_points=500, eval_points=300, eval_surface_points=200)
    batches = _batches(data)
    assert list(batches) == ["ball", "more/ball", "scan", "with", "without"]
    sizes = {name: tuple(batch.observation.signal.shape) for name, batch in batches.items()}
    assert sizes == {"ball": (1, 500, 3), "more/ball": (1, 500, 3), "scan": (1, 500, 3)} | {
        "with": (1, 500, 3),
        "without": (1, 40, 3),
    }
    assert data.skipped == {}
    assert data.notes["with"] == "500 of 3,000 points"
    assert data.notes["without"] == "40 points"
    assert data.notes["scan"] == "depth image, 576 of 576 pixels measured; 500 of 576 points"
    for name in ("ball", "with", "without"):
        radii = batches[name].observation.signal.norm(dim=-1)
        assert radii.max() <= 1 / 1.03 + 1e-6
        assert radii.min() > (0.75 if name == "without" else 0.9)
        assert not batches[name].observation.samples.values.any()


@pytest.mark.parametrize("name", ["ball.obj", "more/ball.ply"])
def test_a_mesh_is_compared_with_its_surface_and_its_distances(folder, name):
    data = ShapeFiles([str(folder / name)], signal_shape=(64, 6), eval_points=300, eval_surface_points=200)
    [batch] = _batches(data).values()
    query = batch.query
    assert (query.coords.shape, batch.shape) == ((1, 500, 3), (500,))
    values, radii = query.values[0, :, 0], query.coords[0].norm(dim=-1)
    torch.testing.assert_close(values[:300], radii[:300] - 1 / 1.03, atol=0.02, rtol=0)
    assert (values[300:] == 0).all()
    assert values[:300].all()
    normals = query.normals[0]
    assert not normals[:300].any()
    assert ((normals[300:] * query.coords[0, 300:]).sum(-1) > 0.9).all()
    signal = batch.observation.signal[0]
    assert signal.shape == (64, 6)
    assert ((signal[:, 3:] * signal[:, :3]).sum(-1) > 0.9).all()
    distances = torch.cdist(signal[None, :, :3], query.coords[:, 300:])
    assert distances.min() > 0  # no observed point is compared


@pytest.mark.parametrize("name", ["ball.obj", "with.xyz"])
def test_a_model_of_distances_observes_distances(folder, name):
    data = ShapeFiles([str(folder / name)], signal_shape=(1000, 4), eval_points=10, eval_surface_points=10)
    [batch] = _batches(data).values()
    signal, samples = batch.observation.signal[0], batch.observation.samples
    assert signal.shape == (1000, 4)
    expected = signal[:, :3].norm(dim=-1) - 1 / 1.03
    assert (signal[:, 3] - expected).abs().mean() < 0.01
    assert 0.3 < (signal[:, 3] < 0).float().mean() < 0.7
    torch.testing.assert_close(samples.values[0, :, 0], signal[:, 3])
    assert (batch.query.values is None) == (name == "with.xyz")


@pytest.mark.parametrize("name", ["ball.obj", "with.xyz"])
def test_as_many_samples_are_inside_as_in_training(folder, name):
    data = ShapeFiles([str(folder / name)], signal_shape=(500, 4), inside=0.2, eval_points=10, eval_surface_points=10)
    [batch] = _batches(data).values()
    assert (batch.observation.signal[0, :, 3] < 0).sum() == 100


def test_points_have_nothing_to_be_compared_with(folder):
    [batch] = _batches(ShapeFiles([str(folder / "with.xyz")], signal_shape=(-1, 6))).values()
    assert batch.query.values is None
    assert batch.query.normals is None
    assert batch.shape == (2048,)


def test_gradient_steps_observe_samples_along_normals(folder):
    [batch] = _batches(ShapeFiles([str(folder / "with.xyz")], signal_shape=(100, 3), normal_offset=0.05)).values()
    samples = batch.observation.samples
    assert samples.coords.shape == (1, 300, 3)
    expected = samples.coords.norm(dim=-1) - 1 / 1.03
    torch.testing.assert_close(samples.values[..., 0], expected, atol=0.01, rtol=0)
    assert batch.observation.signal.shape == (1, 100, 3)


def test_normals_that_gradient_steps_need_are_missed(folder):
    with pytest.raises(ValueError, match=r"without.csv has no normals, along which .* 0.05: .*normal_offset 0"):
        ShapeFiles([str(folder / "without.csv")], signal_shape=(100, 3), normal_offset=0.05).setup("predict")


def test_sources_state_how_files_were_normalised(folder):
    data = ShapeFiles([str(folder)], signal_shape=(-1, 3))
    data.setup("predict")
    facts = data.source_of("ball")
    np.testing.assert_allclose(facts["offset"], -CENTRE, atol=1e-6)
    assert facts["scale"] == pytest.approx(1 / (1.03 * RADIUS), rel=1e-3)
    assert data.source_of("unknown") == {}


def test_normalised_files_are_used_as_they_are(tmp_path):
    small = _columns(50)[:, :3] * 0.1
    np.save(tmp_path / "small.npy", small)
    data = ShapeFiles([str(tmp_path / "small.npy")], signal_shape=(-1, 3), normalized=True)
    [batch] = _batches(data).values()
    np.testing.assert_allclose(batch.observation.signal[0], small, atol=1e-6)
    assert data.source_of("small") == {"offset": [0, 0, 0], "scale": 1}
    mesh = trimesh.creation.icosphere(2, 0.5)
    mesh.export(tmp_path / "mesh.stl")
    [batch] = _batches(ShapeFiles([str(tmp_path / "mesh.stl")], signal_shape=(-1, 3), normalized=True)).values()
    assert batch.observation.signal.norm(dim=-1).max() <= 0.5 + 1e-6
    np.save(tmp_path / "large.npy", 100 * small)
    with pytest.raises(ValueError, match="omit --normalized"):
        ShapeFiles([str(tmp_path / "large.npy")], signal_shape=(-1, 3), normalized=True).setup("predict")


def test_shapes_with_as_many_points_share_a_batch(tmp_path):
    for name, count in (("a", 50), ("b", 50), ("c", 7), ("d", 50)):
        np.save(tmp_path / f"{name}.npy", _columns(count, seed=ord(name)))
    data = ShapeFiles([str(tmp_path)], signal_shape=(-1, 6), eval_batch_size=4)
    data.setup("predict")
    assert [list(items.name) for items in data.predict_dataloader()] == [["a", "b"], ["c"], ["d"]]


def test_batches_do_not_depend_on_other_files(folder):
    alone = _batches(ShapeFiles([str(folder / "ball.obj")], signal_shape=(64, 3)))["ball"]
    among = _batches(ShapeFiles([str(folder)], signal_shape=(64, 3)))["ball"]
    assert torch.equal(alone.observation.signal, among.observation.signal)
    assert torch.equal(alone.query.coords, among.query.coords)


def test_bad_files_are_skipped_and_named(folder):
    (folder / "one.xyz").write_text("1 2 3\n")
    (folder / "nan.xyz").write_text("1 2 3\nnan 1 2\n")
    (folder / "empty.ply").write_text("")
    (folder / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    (folder / "none.stl").write_text("solid none\nendsolid none\n")
    data = ShapeFiles([str(folder)], signal_shape=(-1, 3))
    data.setup("predict")
    assert len(data.files) == 5
    reasons = {os.path.basename(path): reason for path, reason in data.skipped.items()}  # noqa: PTH119
    assert reasons.keys() == {"one.xyz", "nan.xyz", "empty.ply", "flat.obj", "none.stl"}
    assert all(str(folder / name) in reason for name, reason in reasons.items())
    assert "1 distinct point" in reasons["one.xyz"]
    assert "non-finite" in reasons["nan.xyz"]
    assert "without area" in reasons["flat.obj"]


def test_it_is_an_error_if_no_file_can_be_used(tmp_path):
    (tmp_path / "one.xyz").write_text("1 2 3\n")
    (tmp_path / "two.xyz").write_text("1 2\n")
    with pytest.raises(
        ValueError, match=r"No usable shape in .*--shapes(.|\n)*one.xyz has 1 distinct(.|\n)*two.xyz has 2"
    ):
        ShapeFiles([str(tmp_path)], signal_shape=(-1, 3)).setup("predict")
    for paths, message in (([], "an empty list"), ([str(tmp_path / "missing")], "There is no file or folder")):
        with pytest.raises(ValueError, match=message):
            ShapeFiles(paths, signal_shape=(-1, 3)).setup("predict")


def test_an_open_sheet_has_no_inside(tmp_path):
    (tmp_path / "sheet.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 3\nf 2 4 3\n")
    data = ShapeFiles([str(tmp_path / "sheet.obj")], signal_shape=(-1, 3))
    data.setup("predict")
    assert "not watertight" in data.notes["sheet"]
    assert data.notes["sheet"].endswith("no inside")
    with pytest.raises(ValueError, match=r"sheet.obj has no inside"):
        ShapeFiles([str(tmp_path / "sheet.obj")], signal_shape=(64, 4)).setup("predict")


def test_names_are_unique_and_say_where_they_differ(tmp_path):
    for name in ("a.xyz", "a.npy"):
        (np.savetxt if name.endswith("xyz") else np.save)(tmp_path / name, _columns(20))
    data = ShapeFiles([str(tmp_path), str(tmp_path / "a.npy")], signal_shape=(-1, 3))
    data.setup("predict")
    assert [file.name for file in data.files] == ["a_npy", "a_xyz"]
    assert data.notes["a_xyz"] == f"20 points; from {tmp_path / 'a.xyz'}"


@pytest.mark.skipif(os.name != "posix", reason="needs file names of bytes")
def test_names_that_are_not_utf_8_are_replaced(tmp_path):
    np.savetxt(tmp_path / os.fsdecode(b"caf\xe9.xyz"), _columns(20))
    data = ShapeFiles([str(tmp_path)], signal_shape=(-1, 3))
    assert list(_batches(data)) == ["caf?"]


def test_hidden_files_and_results_are_no_shapes(folder):
    (folder / ".hidden.xyz").write_text("1 2 3\n")
    (folder / "predictions").mkdir()
    (folder / "predictions" / "predictions.csv").write_text("name\n")
    _ball().export(folder / "predictions" / "ball.ply")
    names = [relative.as_posix() for _, relative in shape_files(folder)]
    assert names == ["ball.obj", "more/ball.ply", "scan.png", "with.xyz", "without.csv"]


@pytest.mark.parametrize("shape", [None, (3, 32, 32), (2048, 5), (1, 3, 64, 64)])
def test_models_of_other_signals_are_refused(folder, shape):
    with pytest.raises(ValueError, match="shapes need a model of point sets"):
        ShapeFiles([str(folder)], signal_shape=shape).setup("predict")


def test_only_prediction_is_supported(folder):
    data = ShapeFiles([str(folder)], signal_shape=(-1, 3))
    with pytest.raises(ValueError, match="supports only predict, not fit"):
        data.setup("fit")
    with pytest.raises(ValueError, match="supports only predict, not the split train"):
        data.shapes("train")


def test_the_specification_is_that_of_the_model():
    spec = ShapeFiles(signal_shape=(-1, 6), context_points=300, domain=Volume(1.2)).spec
    assert (spec.signal_shape, spec.domain, spec.value_dim) == ((300, 6), Volume(1.2), 1)
    assert ShapeFiles(signal_shape=(-1, 3)).spec.signal_shape == (2048, 3)
    assert ShapeFiles(signal_shape=(77, 4)).spec.signal_shape == (77, 4)


def test_more_devices_than_batches_are_refused(folder, monkeypatch):
    data = ShapeFiles([str(folder / "with.xyz")], signal_shape=(-1, 3))
    data.setup("predict")
    data.trainer = type("Two", (), {"global_rank": 0, "world_size": 2})()
    with pytest.raises(ValueError, match=r"lower --trainer.devices"):
        data.predict_dataloader()


@pytest.mark.parametrize("counts", [(5, 0, 0), (1, 3, 4), (9, 5, 0)])
def test_counts_of_observed_and_compared_points(folder, counts):
    item = observed_solid(read_solid(folder / "ball.obj"), counts, True, "ball")
    assert (len(item.context), len(item.query)) == (counts[0], counts[1] + counts[2])
