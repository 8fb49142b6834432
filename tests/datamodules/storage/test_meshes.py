"""Reading meshes: names, size, orientation, colours, and error messages."""

import shutil

import numpy as np
import pytest
import trimesh
from PIL import Image

from datamodules.storage.meshes import mesh_files, read_corners, read_mesh

BOX = (1.0, 2.0, 3.0)
Y_TO_Z = trimesh.transformations.rotation_matrix(np.pi / 2, (1, 0, 0))  # y becomes z, z becomes -y


def _box(**options):
    """Return a box away from the origin."""
    box = trimesh.creation.box(BOX, **options)
    box.apply_translation((5, -7, 9))
    return box


def _sides(corners):
    """Return the sides of the bounding box."""
    return np.ptp(corners.reshape(-1, 3), axis=0)


@pytest.mark.parametrize("ending", ["obj", "ply", "stl", "glb", "STL"])
def test_every_format_is_centred_scaled_and_rotated(tmp_path, ending):
    path = tmp_path / f"box.{ending}"
    _box().export(path, file_type=ending.lower())
    mesh = read_mesh(path)
    assert mesh.corners.shape == mesh.colours.shape == (12, 3, 3)
    assert mesh.corners.dtype == mesh.colours.dtype == np.float32
    points = mesh.corners.reshape(-1, 3)
    assert np.allclose(points.min(0), -points.max(0), atol=1e-6)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1.4, abs=1e-5)
    scale = 1.4 / (np.linalg.norm(BOX) / 2)
    assert np.allclose(_sides(mesh.corners), scale * np.array((1, 3, 2)), atol=1e-5)
    assert np.allclose(_sides(read_mesh(path, up="z", radius=2.8).corners), 2 * scale * np.array(BOX), atol=1e-5)


def test_y_becomes_z_without_mirroring(tmp_path):
    mesh = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], [[0, 1, 2], [0, 1, 3], [0, 2, 3]])
    mesh.export(tmp_path / "axes.ply")
    corners = read_mesh(tmp_path / "axes.ply").corners
    origin, x, y = corners[0] - corners[0, 0]
    z = corners[1, 2] - corners[0, 0]
    assert (x[0] > 0, y[2] > 0, z[1] < 0) == (True, True, True)
    assert np.linalg.det([x, y, z]) > 0
    assert np.allclose([x[1:], y[:2], z[::2]], 0, atol=1e-6)
    assert origin.tolist() == [0, 0, 0]


def test_parts_keep_their_transforms_and_colours(tmp_path):
    ball = trimesh.creation.box((1, 1, 1))
    red, green = ball.copy(), ball.copy()
    red.visual.face_colors = (255, 0, 0, 255)
    green.visual.vertex_colors = (0, 255, 0, 255)
    scene = trimesh.Scene()
    scene.add_geometry(red, transform=trimesh.transformations.translation_matrix((4, 0, 0)))
    scene.add_geometry(green, transform=Y_TO_Z)
    scene.add_geometry(trimesh.PointCloud([[100, 0, 0]]))
    scene.export(tmp_path / "two.glb")
    mesh = read_mesh(tmp_path / "two.glb")
    right = mesh.corners[..., 0].min(1) > 0
    assert right.sum() == 12
    assert len(right) == 24
    assert (mesh.colours[right] == (1, 0, 0)).all()
    assert (mesh.colours[~right] == (0, 1, 0)).all()
    assert _sides(mesh.corners)[0] / _sides(mesh.corners)[1] == pytest.approx(5, abs=1e-4)


def test_obj_materials_textures_and_polygons_are_read(tmp_path):
    (tmp_path / "a.mtl").write_text("newmtl red\nKd 1 0 0\nnewmtl painted\nKd 1 1 1\nmap_Kd t.png\n")
    Image.fromarray(np.array([[[0, 255, 0], [0, 0, 255]]], np.uint8)).resize((8, 4), 0).save(tmp_path / "t.png")
    (tmp_path / "a.obj").write_text(
        "mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nv 1 0 1\nv 1 1 1\n"
        "vt 0.2 0.5\nvt 0.8 0.5\nusemtl red\nf 1 2 3 4\nusemtl painted\nf 5/1 6/2 7/2\n"
    )
    mesh = read_mesh(tmp_path / "a.obj", up="z")
    behind = mesh.corners[:, 0, 2] < 0
    assert behind.sum() == 2
    assert (mesh.colours[behind] == (1, 0, 0)).all()
    corners, colours = mesh.corners[~behind][0], mesh.colours[~behind][0]
    assert colours[corners[:, 0] < 0].tolist() == [[0, 1, 0]]
    assert colours[corners[:, 0] > 0].tolist() == [[0, 0, 1]] * 2
    (tmp_path / "t.png").unlink()
    assert (read_mesh(tmp_path / "a.obj").colours[~behind] == 1).all()  # the main colour of the material
    (tmp_path / "a.mtl").unlink()
    assert np.allclose(read_mesh(tmp_path / "a.obj").colours, 0.8)


def test_damaged_or_oversized_textures_are_refused(tmp_path):
    """A texture of a few kilobytes would otherwise take gigabytes, and a truncated one raise an error without the file."""
    (tmp_path / "a.mtl").write_text("newmtl painted\nmap_Kd t.png\n")
    (tmp_path / "a.obj").write_text("mtllib a.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nvt 0 0\nusemtl painted\nf 1/1 2/1 3/1\n")
    texture = tmp_path / "t.png"
    Image.new("1", (9000, 9000)).save(texture)
    size = texture.stat().st_size
    with pytest.raises(
        ValueError, match=rf"a\.obj has a texture that states 9,000 x 9,000 pixels, but .* {size:,} bytes"
    ):
        read_mesh(tmp_path / "a.obj")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(texture)
    texture.write_bytes(texture.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"a\.obj has a texture that is corrupt or truncated \(.*truncated\)"):
        read_mesh(tmp_path / "a.obj")
    assert len(read_corners(tmp_path / "a.obj")) == 1  # the geometry needs no texture


def test_textures_of_too_many_pixels_are_refused(tmp_path, monkeypatch):
    box = _box()
    box.visual = trimesh.visual.TextureVisuals(uv=box.vertices[:, :2], image=Image.new("RGB", (30, 20)))
    box.export(tmp_path / "box.glb")
    read_mesh(tmp_path / "box.glb")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(ValueError, match=r"box\.glb has a texture that has 30 x 20 pixels: downscale it first"):
        read_mesh(tmp_path / "box.glb")


def test_folders_are_searched_and_names_are_relative_paths(tmp_path):
    _box().export(tmp_path / "box.ply")
    for name in (
        "03001627/1a/models/model_normalized.obj",
        "03001627/2b/model.obj",
        "more/Red Chair.STL",
        ".hidden/no.ply",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "box.ply", tmp_path / name)
    (tmp_path / "readme.txt").write_text("no mesh")
    files = mesh_files([tmp_path])
    assert [file.name for file in files] == ["03001627-1a", "03001627-2b", "box", "more-Red Chair"]
    assert files[0].path == tmp_path / "03001627/1a/models/model_normalized.obj"
    assert [file.name for file in mesh_files([tmp_path / "03001627"])] == ["1a", "2b"]
    assert [file.name for file in mesh_files([files[0].path, tmp_path / "03001627/2b"])] == ["1a", "2b"]
    assert mesh_files([tmp_path / "box.ply", tmp_path / "box.ply"]) == [("box", tmp_path / "box.ply")]


def test_duplicate_names_and_folders_without_meshes_are_refused(tmp_path):
    _box().export(tmp_path / "a.ply")
    _box().export(tmp_path / "a.stl")
    with pytest.raises(ValueError, match=r"a\.ply and .*a\.stl would both be named a: pass only one"):
        mesh_files([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty contains no meshes \(OBJ, PLY, STL and GLB\)"):
        mesh_files([tmp_path / "empty"])
    with pytest.raises(ValueError, match="There is no mesh or folder"):
        mesh_files([tmp_path / "nowhere"])
    (tmp_path / "a.fbx").write_text("x")
    with pytest.raises(ValueError, match=r"a\.fbx has no supported mesh format"):
        mesh_files([tmp_path / "a.fbx"])


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 1 1 0\n"
PLY = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
element face 1
property list uchar int vertex_indices
end_header
0 0 0
1 0 0
1 1 0
3 {}
"""


BROKEN = {
    "none.obj": (None, "There is no mesh"),
    "kind.dae": ("x", "has no supported mesh format"),
    "empty.obj": ("", "has no triangles"),
    "points.obj": (TRIANGLE, "has no triangles"),
    "damaged.ply": ("hello", "cannot be read"),
    "damaged.glb": ("glTFxxxx", "cannot be read"),
    "chunk.glb": (
        "glTF\2\0\0\0\x14\0\0\0\x7f\x7f\x7f\x7fJSON",
        "a chunk of 2,139,062,143 bytes does not fit into its 20 bytes",
    ),
    "index.obj": (f"{TRIANGLE}f 1 2 9\n", "line 4: a face refers to vertex 9 of 3"),
    "nan.obj": (f"v nan 0 0\n{TRIANGLE}f 1 2 3\n", "line 1: the vertex 'nan 0 0' has not three finite numbers"),
    "infinite.obj": (f"v 0 inf 0\n{TRIANGLE}f 1 2 3\n", "line 1: the vertex '0 inf 0' has not three finite numbers"),
    "point.obj": (f"{TRIANGLE}f 1 1 1\n", "cannot be scaled, its extent is 0"),
    "line.obj": (f"{TRIANGLE}f 1 2 1\n", "has only degenerate triangles"),
    "large.obj": (f"v 1e200 0 0\n{TRIANGLE}f 1 2 4\n", r"cannot be scaled, its extent is inf"),
    "beyond.ply": (PLY.format("0 1 9"), "has 3 vertices, but a face refers to vertex 9"),
    "before.ply": (PLY.format("0 -9 1"), "has 3 vertices, but a face refers to vertex -9"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_errors_name_the_file(tmp_path, name):
    content, message = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_mesh(tmp_path / name)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
