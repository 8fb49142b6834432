"""Point clouds and depth images in every format, and what is refused."""

import json
import os

import numpy as np
import pytest
import trimesh
from PIL import Image

from datamodules.storage.points import has_faces, is_depth_image, read_points

POINTS = np.random.default_rng(0).uniform(-3, 7, (20, 3)).astype(np.float32).astype(np.float64)
NORMALS = np.random.default_rng(1).normal(size=(20, 3))
NORMALS /= np.linalg.norm(NORMALS, axis=1, keepdims=True)


def _ply(path, columns, encoding="ascii", faces=0):
    """Write a PLY with the first of x, y, z, nx, ny, nz."""
    names = ("x", "y", "z", "nx", "ny", "nz")[: columns.shape[1]]
    header = ["ply", f"format {encoding} 1.0", f"element vertex {len(columns)}"]
    header += [f"property double {name}" for name in names] + [f"element face {faces}"]
    header += ["property list uchar int vertex_indices", "end_header", ""]
    if encoding == "ascii":
        body = "".join(" ".join(map(repr, row)) + "\n" for row in columns.tolist()).encode()
    else:
        body = columns.astype("<f8" if encoding == "binary_little_endian" else ">f8").tobytes()
    path.write_bytes("\n".join(header).encode() + body)
    return path


def _text(path, columns, separator=" ", heading=""):
    path.write_text(heading + "".join(separator.join(map(repr, row)) + "\n" for row in columns.tolist()))
    return path


def _npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def _npy(path, array):
    np.save(path, array)
    return path


BOTH = np.column_stack((POINTS, NORMALS))
WRITERS = {
    "ascii.ply": lambda path, columns: _ply(path, columns),
    "little.ply": lambda path, columns: _ply(path, columns, "binary_little_endian"),
    "big.PLY": lambda path, columns: _ply(path, columns, "binary_big_endian"),
    "blanks.xyz": lambda path, columns: _text(path, columns),
    "tabs.txt": lambda path, columns: _text(path, columns, "\t", "# a comment\n"),
    "commas.csv": lambda path, columns: _text(path, columns, ",", "x,y,z,nx,ny,nz\n"),
    "semicolons.csv": lambda path, columns: _text(path, columns, "; "),
    "array.npy": _npy,
    "single.npz": lambda path, columns: _npz(path, cloud=columns),
    "named.npz": lambda path, columns: _npz(
        path, points=columns[:, :3], **({"normals": columns[:, 3:]} if columns.shape[1] > 3 else {})
    ),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("with_normals", [False, True])
def test_formats_hold_the_same_points(tmp_path, name, with_normals):
    cloud = read_points(WRITERS[name](tmp_path / name, BOTH if with_normals else POINTS))
    np.testing.assert_allclose(cloud.points, POINTS, rtol=1e-12)
    if with_normals:
        np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-12)
    assert (cloud.normals is None) != with_normals
    assert cloud.notes == ()


def test_a_cloud_that_trimesh_writes_is_read(tmp_path):
    path = tmp_path / "cloud.ply"
    path.write_bytes(trimesh.PointCloud(POINTS).export(file_type="ply"))
    np.testing.assert_allclose(read_points(path).points, POINTS)
    assert not has_faces(path)


def test_vertices_of_a_mesh_are_told_from_a_cloud(tmp_path):
    mesh = trimesh.creation.box()
    path = tmp_path / "mesh.ply"
    path.write_bytes(mesh.export(file_type="ply", vertex_normal=True))
    assert has_faces(path)
    assert not has_faces(_ply(tmp_path / "cloud.ply", POINTS))
    assert not has_faces(tmp_path / "missing.ply")
    assert not has_faces(_text(tmp_path / "no.ply", POINTS))


def test_repeated_points_are_removed_in_order(tmp_path):
    repeated = np.concatenate((BOTH, BOTH[3:7], BOTH[:1]))
    cloud = read_points(_text(tmp_path / "cloud.xyz", repeated))
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=1e-12)
    assert cloud.notes == ("5 repeated points removed",)


def test_normals_are_scaled_to_one_and_zeros_are_unknown(tmp_path):
    columns = BOTH.copy()
    columns[:, 3:] *= 1.05
    columns[4, 3:] = 0
    cloud = read_points(_npy(tmp_path / "cloud.npy", columns))
    lengths = np.linalg.norm(cloud.normals, axis=1)
    np.testing.assert_allclose(np.delete(lengths, 4), 1)
    assert lengths[4] == 0
    assert cloud.notes == ("1 normals unknown",)
    columns[:, 3:] = 0
    cloud = read_points(_npy(tmp_path / "zeros.npy", columns))
    assert cloud.normals is None
    assert cloud.notes == ("all normals are zero: used without",)


@pytest.mark.skipif(os.name != "posix", reason="needs file names of bytes")
def test_names_that_are_not_utf_8_are_read(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.xyz")
    assert len(read_points(_text(path, POINTS)).points) == 20


def _sphere(rows, columns, focal, distance):
    """Return the depth of a unit sphere at the origin from a camera on the z axis, by a loop over pixels."""
    depth = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            ray = np.array([(column + 0.5 - columns / 2) / focal[0], -(row + 0.5 - rows / 2) / focal[1], -1.0])
            origin = np.array([0, 0, distance])
            half, square = ray @ origin, ray @ ray
            inside = half**2 - square * (origin @ origin - 1)
            if inside > 0:
                depth[row, column] = (-half - np.sqrt(inside)) / square
    return depth


POSE = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]])


@pytest.mark.parametrize("focal", [(60.0, 60.0), (50.0, 70.0)])
def test_depth_images_become_points_on_the_object(tmp_path, focal):
    depth = _sphere(40, 48, focal, 4.0)
    cloud = read_points(_npz(tmp_path / "depth.npz", depth=depth.astype(np.float32), focal=focal, pose=POSE))
    assert len(cloud.points) == (depth > 0).sum() > 200
    np.testing.assert_allclose(np.linalg.norm(cloud.points, axis=1), 1, atol=1e-5)
    assert cloud.points[:, 2].min() > 0  # only the side that faces the camera
    known = cloud.normals.any(1)
    assert known.mean() > 0.8
    assert (cloud.normals * cloud.points).sum(1)[known].min() > 0.9
    assert cloud.notes == (f"depth image, {len(cloud.points):,} of 1,920 pixels measured",)


def test_rows_of_a_depth_image_go_down_and_columns_right(tmp_path):
    depth = np.zeros((4, 6))
    depth[0, 5], depth[3, 0], depth[1, 2], depth[2, 2] = 2.0, 3.0, 1.0, 1.0
    points = read_points(_npz(tmp_path / "depth.npz", depth=depth, focal=2.0)).points
    expected = {(2.5, 1.5, -2.0), (-3.75, -2.25, -3.0), (-0.25, 0.25, -1.0), (-0.25, -0.25, -1.0)}
    assert {tuple(point) for point in points.tolist()} == expected


def test_the_pose_moves_points_and_normals(tmp_path):
    depth, turn = _sphere(40, 40, (60.0, 60.0), 4.0), np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3] = np.column_stack((turn @ POSE[:, :3], turn @ POSE[:, 3] + [5, 6, 7]))
    plain = read_points(_npz(tmp_path / "plain.npz", depth=depth, focal=60.0, pose=POSE))
    moved = read_points(_npz(tmp_path / "moved.npz", depth=depth, focal=[60.0], pose=pose))
    np.testing.assert_allclose(moved.points, plain.points @ turn.T + [5, 6, 7], atol=1e-12)
    np.testing.assert_allclose(moved.normals, plain.normals @ turn.T, atol=1e-12)


def test_pixels_at_the_edge_of_an_object_have_no_normal(tmp_path):
    depth = np.full((6, 6), 1.0)
    depth[:, 3:] = 5.0
    cloud = read_points(_npz(tmp_path / "depth.npz", depth=depth, focal=20.0))
    known = cloud.normals.any(1).reshape(6, 6)
    assert not known[:, [2, 5]].any()
    assert not known[5].any()
    assert known[:5, [0, 1, 3, 4]].all()
    np.testing.assert_allclose(cloud.normals[cloud.normals.any(1)], np.tile([0, 0, 1.0], (20, 1)), atol=1e-12)


def test_depth_in_a_png_is_in_millimetres(tmp_path):
    depth = _sphere(40, 40, (60.0, 60.0), 4.0)
    levels = (depth * 1000).round().astype(np.uint16)
    levels[0, 0] = 65535  # saturated
    Image.fromarray(levels).save(tmp_path / "depth.png")
    (tmp_path / "depth.json").write_text(json.dumps({"focal": 60, "pose": POSE.tolist()}))
    cloud = read_points(tmp_path / "depth.png")
    assert len(cloud.points) == (depth > 0).sum()
    np.testing.assert_allclose(np.linalg.norm(cloud.points, axis=1), 1, atol=1e-3)
    assert is_depth_image(tmp_path / "depth.png")
    assert not is_depth_image(tmp_path / "depth.json")


def test_unmeasured_pixels_are_left_out(tmp_path):
    depth = np.full((5, 5), 2.0)
    depth[0], depth[1, 0], depth[1, 1] = 0, np.nan, np.inf
    assert len(read_points(_npz(tmp_path / "depth.npz", depth=depth, focal=9)).points) == 18


BAD = {
    "missing.xyz": (None, "does not exist"),
    "empty.xyz": ("", "contains no points"),
    "words.txt": ("Read me first.\nThis is a licence.\n", "cannot be read"),
    "heading.csv": ("x,y,z\n", "contains no points"),
    "two.xyz": ("1 2\n3 4\n", r"2 column\(s\)"),
    "four.xyz": ("1 2 3 4\n" * 5, r"4 column\(s\)"),
    "ragged.xyz": ("1 2 3\n1 2\n", "number of columns changed from 3 to 2 at row 2"),
    "nan.csv": ("1,2,3\n4,nan,6\n7,8,inf\n", "non-finite numbers in 2 of 3 points, first in point 1"),
    "one.xyz": ("1 2 3\n", r"1 distinct point\(s\)"),
    "same.xyz": ("1 2 3\n" * 50, r"1 distinct point\(s\)"),
    "colours.txt": (
        "".join(f"{i} {i * i} 0 200 10 30\n" for i in range(9)),
        "normalise them, or remove them if they are",
    ),
    "cloud.las": ("1 2 3\n", "no supported format"),
    "broken.npy": ("not an array", "cannot be read"),
    "broken.npz": ("not an archive", "cannot be read"),
    "broken.ply": ("ply\nformat ascii 1.0\nelement vertex 9\nproperty float x\nend_header\n", "cannot be read"),
    "photo.png": ("not an image", r"no photo.json beside it"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_reason(tmp_path, name):
    contents, message = BAD[name]
    if contents is not None:
        (tmp_path / name).write_text(contents)
    with pytest.raises(ValueError, match=message) as error:
        read_points(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "usecols" not in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pos": POINTS, "neg": POINTS}, "holds pos, neg: save points"),
        ({}, "holds no arrays"),
        ({"points": POINTS, "normals": NORMALS[:4]}, "as many normals as points"),
        ({"points": np.zeros((4, 4, 3))}, r"an array of shape \(4, 4, 3\)"),
        ({"points": np.array(["a", "b"])}, "cannot be read"),
        ({"depth": np.ones((4, 4))}, "focal of the depth image .* is missing"),
        ({"depth": np.ones((4, 4)), "focal": -3.0}, "must be positive"),
        ({"depth": np.ones((4, 4)), "focal": [1, 2, 3]}, r"focal .* is array\(\[1, 2, 3\]\)"),
        ({"depth": np.ones((4, 4)), "focal": 3.0, "pose": np.eye(3)}, "pose"),
        ({"depth": np.ones((4, 4)), "focal": 3.0, "pose": np.full((3, 4), np.nan)}, "pose"),
        ({"depth": np.zeros((4, 4)), "focal": 3.0}, "no pixel with a depth"),
        ({"depth": -np.ones((4, 4)), "focal": 3.0}, "negative numbers, down to -1"),
        ({"depth": np.ones(4), "focal": 3.0}, r"an array \(4,\)"),
        ({"depth": np.eye(3), "focal": 3.0}, r"3 distinct point\(s\)"),
    ],
)
def test_bad_archives_are_named_with_the_reason(tmp_path, arrays, message):
    path = _npz(tmp_path / "shape.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        read_points(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("facts", "message"),
    [("{", "depth.json cannot be read"), ("3", "holds no object"), ("{}", "focal"), ('{"focal": "wide"}', "focal")],
)
def test_bad_descriptions_of_depth_images_are_refused(tmp_path, facts, message):
    Image.fromarray(np.full((4, 4), 900, np.uint16)).save(tmp_path / "depth.png")
    (tmp_path / "depth.json").write_text(facts)
    with pytest.raises(ValueError, match=message):
        read_points(tmp_path / "depth.png")


def test_an_image_of_8_bits_is_no_depth_image(tmp_path):
    Image.fromarray(np.full((4, 4), 90, np.uint8)).save(tmp_path / "depth.png")
    (tmp_path / "depth.json").write_text('{"focal": 4}')
    with pytest.raises(ValueError, match="mode L; depth images have 16 bits"):
        read_points(tmp_path / "depth.png")


def test_truncated_archives_and_clouds_are_refused(tmp_path):
    for path in (_npy(tmp_path / "a.npy", POINTS), _ply(tmp_path / "b.ply", POINTS, "binary_little_endian")):
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ValueError, match="cannot be read"):
            read_points(path)


def test_a_million_points_are_read(tmp_path):
    points = np.random.default_rng(0).random((1_000_000, 3), np.float32)
    assert len(read_points(_npy(tmp_path / "scan.npy", points)).points) > 999_000
