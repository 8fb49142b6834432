"""Scenes as they are read: poses, focal lengths and images of both layouts, and every kind of damage, told by name."""

import json
import math

import numpy as np
import pytest
import torch
from coordinates import pixel_rays
from PIL import Image
from scene_folders import ANGLE, cameras, describe, save_image, write_scene, write_srn

from datamodules.storage import views as scenes
from datamodules.storage.views import is_opaque, read_srn, read_transforms, read_view


def test_a_scene_of_transforms(tmp_path):
    scene = read_transforms(write_scene(tmp_path / "chair"))
    assert scene.name == "chair"
    assert scene.shape == (8, 8)
    assert [path.name for path in scene.images] == [f"r_{frame}.png" for frame in range(6)]
    assert scene.poses.dtype == scene.focals.dtype == torch.float32
    torch.testing.assert_close(scene.poses, cameras(6).float())
    torch.testing.assert_close(scene.focals, torch.full((6, 2), 4 / math.tan(ANGLE / 2)))


def test_frames_keep_their_order(tmp_path):
    folder = write_scene(tmp_path)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    describe(folder, frames=frames[::-1])
    scene = read_transforms(folder)
    assert [path.name for path in scene.images] == [f"r_{frame}.png" for frame in (5, 4, 3, 2, 1, 0)]
    torch.testing.assert_close(scene.poses, cameras(6).float().flip(0))


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ("r_1", "r_1.png"),
        ("./train/r_1", "r_1.png"),
        ("r_1.png", "r_1.png"),
        ("train/r_1.png", "r_1.png"),
        ("C:\\shots\\r_1", "r_1.png"),
        ("images/r_1", "images/r_1.png"),
        ("./images/r_1.png", "images/r_1.png"),
        ("images/r_1.bmp", "images/r_1.bmp"),
        ("r_1.bmp", "r_1.bmp"),
        ("r_1.front", "r_1.front.png"),
    ],
)
def test_where_the_image_of_a_frame_lies(tmp_path, named, place):
    folder = write_scene(tmp_path, frames=1)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    describe(folder, frames=[frames[0] | {"file_path": named}])
    save_image(folder / place, 1, mode="RGB")
    scene = read_transforms(folder)
    assert scene.images == (folder / place,)
    assert read_view(scene.images[0])[0, 4, 4] == 11


def test_a_image_in_the_folder_itself_comes_first(tmp_path):
    folder = write_scene(tmp_path, frames=1)
    save_image(folder / "elsewhere" / "r_0.png", 7)
    assert read_transforms(folder).images == (folder / "r_0.png",)


def test_focal_lengths_in_pixels_and_matrices_of_three_rows(tmp_path):
    folder = write_scene(tmp_path, frames=2)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    frames = [frame | {"transform_matrix": frame["transform_matrix"][:3]} for frame in frames]
    describe(folder, fl_x=10, frames=[frames[0], frames[1] | {"fl_x": 12.0, "fl_y": 13.0}], w=8, h=8.0, cx=4, cy=4.05)
    scene = read_transforms(folder)
    assert scene.focals.tolist() == [[10.0, 10.0], [12.0, 13.0]]
    torch.testing.assert_close(scene.poses, cameras(2).float())


def test_a_wide_image_has_square_pixels(tmp_path):
    folder = write_scene(tmp_path, frames=1)
    Image.new("RGB", (12, 6), "white").save(folder / "r_0.png")
    scene = read_transforms(folder)
    assert scene.shape == (6, 12)
    assert scene.focals[0].tolist() == pytest.approx([6 / math.tan(ANGLE / 2)] * 2)


def _meets(scene, frame, column, row, point):
    """Return how far the ray of a pixel passes by a point."""
    ray = pixel_rays(scene.poses[frame], scene.focals[frame], scene.shape).view(*scene.shape, 6)[row, column].double()
    towards = torch.tensor(point, dtype=torch.float64) - ray[:3]
    assert towards @ ray[3:] > 0
    return float(torch.linalg.cross(towards, ray[3:]).norm() / ray[3:].norm())


def test_the_axes_of_scene_representation_networks_are_turned(tmp_path):
    # a camera at (0, 0, -2) that looks along +z, right is +x, down is +y: a point to the right and below is seen there
    folder = write_srn(tmp_path / "car", frames=1)
    (folder / "pose" / "000000.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 -2\n0 0 0 1")
    scene = read_srn(folder)
    assert scene.poses[0].tolist() == [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, -2]]
    focal = float(scene.focals[0, 0])
    point = [(6.5 - 4) / focal * 2, (5.5 - 4) / focal * 2, 0.0]  # u = f x / z + 4, v = f y / z + 4
    assert _meets(scene, 0, column=6, row=5, point=point) < 1e-6


def test_a_scene_of_scene_representation_networks(tmp_path):
    scene = read_srn(write_srn(tmp_path / "car"))
    assert (scene.name, scene.shape) == ("car", (8, 8))
    assert [path.name for path in scene.images] == [f"{frame:06d}.png" for frame in range(6)]
    torch.testing.assert_close(scene.poses, cameras(6, 1.3).float())
    torch.testing.assert_close(scene.focals, torch.full((6, 2), 8.8))


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [("9", (9, 9)), ("9 3 4 0", (9, 9)), ("36 16 8 0\n0 0 0\n1\n16 32", (9, 18))],
    ids=["focal", "short", "another-size"],
)
def test_focal_lengths_are_scaled_to_the_images(tmp_path, stated, wanted):
    folder = write_srn(tmp_path / "car")
    (folder / "intrinsics.txt").write_text(stated)
    assert read_srn(folder).focals.tolist() == [list(wanted)] * 6


@pytest.mark.parametrize("read", [read_transforms, read_srn])
def test_reading_a_scene_decodes_nothing(tmp_path, monkeypatch, read):
    folder = (write_scene if read is read_transforms else write_srn)(tmp_path / "a")
    monkeypatch.setattr(scenes, "read_image", None)
    monkeypatch.setattr(Image, "open", None)
    assert len(read(folder).images) == 6


def _frame(folder, **changes):
    """Change the third frame of a scene."""
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    frames[2] |= changes
    describe(folder, frames=frames)


def _matrix(change):
    """Return what changes the pose of the third frame, by a function of its matrix."""

    def spoil(folder):
        frames = json.loads((folder / "transforms.json").read_text())["frames"]
        _frame(folder, transform_matrix=change(np.array(frames[2]["transform_matrix"])).tolist())

    return spoil


def _scaled(matrix):
    return matrix * [[2, 2, 2, 1]]


def _mirrored(matrix):
    return matrix * [[1, -1, 1, 1]]


def _not_a_number(matrix):
    matrix[1, 3] = float("nan")
    return matrix


def _beyond(matrix):
    matrix[2, 3] = 1e300
    return matrix


def _too_many_digits(matrix):
    return np.array([*matrix.tolist()[:3], [0, 0, 0, 10**400]], dtype=object)


def _slightly_off(matrix):
    matrix[0, 0] += 0.01
    return matrix


def _text(name, text):
    """Return what overwrites a file."""
    return lambda folder: (folder / name).write_text(text)


def _size(folder):
    Image.new("RGB", (9, 8)).save(folder / "r_3.png")


def _empty_image(folder):
    content = bytearray((folder / "r_3.png").read_bytes())
    content[16:20] = bytes(4)
    (folder / "r_3.png").write_bytes(content)


BROKEN = {
    "nothing": (
        lambda folder: (folder / "transforms.json").unlink(),
        r"There is no .*transforms\.json: a scene is a folder",
    ),
    "no json": (_text("transforms.json", "{"), r"transforms\.json is no JSON .*: take it from its source again"),
    "no text": (lambda folder: (folder / "transforms.json").write_bytes(b"\xff\xfe{"), r"transforms\.json is no JSON"),
    "deep": (_text("transforms.json", "[" * 100_000), r"transforms\.json is no JSON"),
    "a list": (_text("transforms.json", "[]"), r"transforms\.json holds no names and values but a list"),
    "no frames": (lambda folder: describe(folder, frames=[]), r"transforms\.json has no frames"),
    "odd frames": (lambda folder: describe(folder, frames=[1]), r"transforms\.json has no frames"),
    "missing": (
        lambda folder: (folder / "r_3.png").unlink(),
        r"transforms\.json: 1 of 6 images are missing in .*, the first with file_path '\./elsewhere/r_3'",
    ),
    "long": (
        lambda folder: _frame(folder, file_path="x" * 4000),
        r"1 of 6 images are missing in .* file_path 'x{99}\. Put",
    ),
    "unnamed": (lambda folder: _frame(folder, file_path=None), r"1 of 6 images are missing .* file_path None"),
    "size": (_size, r"r_3\.png has 8 x 9 pixels, r_0\.png has 8 x 8: the images of a scene have one size"),
    "no size": (_empty_image, r"r_3\.png has 8 x 0 pixels: take it from its source again"),
    "no image": (_text("r_3.png", "a text"), r"r_3\.png is not an image in a supported format"),
    "empty": (_text("r_3.png", ""), r"r_3\.png is empty: obtain a new copy"),
    "no angle": (lambda folder: describe(folder, camera_angle_x=None), "camera_angle_x, .* is missing: .* radians"),
    "degrees": (
        lambda folder: describe(folder, camera_angle_x=45),
        "camera_angle_x, .* is 45: .* between 0 and 3.1416",
    ),
    "angle 0": (lambda folder: describe(folder, camera_angle_x=0.0), "camera_angle_x, .* is 0.0"),
    "pi": (lambda folder: describe(folder, camera_angle_x=math.pi), "camera_angle_x, .* is 3.14159"),
    "no number": (lambda folder: describe(folder, camera_angle_x="0.8"), "camera_angle_x, .* is '0.8'"),
    "angle nan": (lambda folder: describe(folder, camera_angle_x=float("nan")), "camera_angle_x, .* is nan"),
    "focal 0": (lambda folder: describe(folder, fl_x=0), "frame 0: fl_x is 0; it is a number of pixels above 0"),
    "focal inf": (lambda folder: _frame(folder, fl_x=9, fl_y=float("inf")), "frame 2: fl_y is inf"),
    "focal of too many digits": (lambda folder: describe(folder, fl_x=10**400), "frame 0: fl_x is 10{39}; it is"),
    "focal too small": (
        lambda folder: describe(folder, fl_x=1e-300),
        "frame 0: fl_x is 1e-300; it is a number of pixels",
    ),
    "angle too small": (
        lambda folder: describe(folder, camera_angle_x=1e-300),
        r"frame 0: the focal length of camera_angle_x 1e-300 is 7\.9+e\+300; it is a number of pixels",
    ),
    "width": (lambda folder: describe(folder, fl_x=90, w=80), r"frame 0: w is 80, the images have 8 x 8 pixels"),
    "centre": (lambda folder: describe(folder, cx=3), r"frame 0: cx is 3 where w is 8: the optical axis"),
    "no matrix": (
        lambda folder: _frame(folder, transform_matrix=None),
        "frame 2: transform_matrix is no matrix of 4 x 4",
    ),
    "text matrix": (lambda folder: _frame(folder, transform_matrix="eye"), "frame 2: transform_matrix is no matrix"),
    "ragged": (lambda folder: _frame(folder, transform_matrix=[[1], [2, 3]]), "frame 2: transform_matrix is no matrix"),
    "3 x 3": (_matrix(lambda matrix: matrix[:3, :3]), "frame 2: transform_matrix is no matrix"),
    "transposed": (_matrix(np.transpose), r"frame 2: the last row of the pose is .*, not 0, 0, 0, 1.* transpose it"),
    "scaled": (_matrix(_scaled), r"frame 2: .* no rotation R .*: R R\^T is off 1 by 3, the determinant is 8"),
    "mirrored": (_matrix(_mirrored), r"frame 2: .* no rotation R .* the determinant is -1"),
    "off": (_matrix(_slightly_off), r"frame 2: .* no rotation R .*: R R\^T is off 1 by 0\.0"),
    "nan": (_matrix(_not_a_number), "frame 2: .* no rotation R with a position: it holds nan"),
    "beyond": (_matrix(_beyond), r"frame 2: .* no rotation R with a position: it holds 1e\+300"),
    "too many digits": (_matrix(_too_many_digits), "frame 2: transform_matrix is no matrix of 4 x 4"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_scenes_are_refused_by_name(tmp_path, kind):
    spoil, told = BROKEN[kind]
    folder = write_scene(tmp_path / "chair")
    spoil(folder)
    with pytest.raises(ValueError, match=told) as caught:
        read_transforms(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_pose_may_be_rounded(tmp_path):
    folder = write_scene(tmp_path)
    _matrix(lambda matrix: matrix.round(4))(folder)
    assert read_transforms(folder).poses.isfinite().all()


BROKEN_SRN = {
    "no pose": (
        lambda folder: (folder / "pose" / "000003.txt").unlink(),
        "has 5 pose/.* and 6 rgb/.*; 000003 is in one",
    ),
    "no image": (lambda folder: (folder / "rgb" / "000002.png").unlink(), "6 pose/.* and 5 rgb/.*; 000002 is in one"),
    "nothing": (lambda folder: [path.unlink() for path in folder.glob("*/*")], r"0 pose/\*\.txt and 0 rgb"),
    "short": (_text("pose/000001.txt", "1 0 0"), r"000001\.txt has 3 numbers: a pose has 16"),
    "words": (_text("pose/000001.txt", "one"), r"000001\.txt holds other things than numbers"),
    "no rotation": (_text("pose/000001.txt", "2 " * 12 + "0 0 0 1"), r"000001\.txt: the pose is no rotation"),
    "no focal": (_text("intrinsics.txt", ""), r"intrinsics\.txt: the focal length, its first number, is None"),
    "focal": (_text("intrinsics.txt", "-3 4 4"), r"intrinsics\.txt: the focal length, .*, is -3\.0; it is a number"),
    "large": (_text("intrinsics.txt", "1e300"), r"intrinsics\.txt: the focal length, .*, is 1e\+300; it is a number"),
    "off centre": (_text("intrinsics.txt", "9 4 3 0 0 0 0 1 8 8"), r"intrinsics\.txt: cy is 3 where height is 8: the"),
    "no height": (_text("intrinsics.txt", "9 4 4 0 0 0 0 1 0 8"), r"intrinsics\.txt: height is 0\.0; it is a number"),
    "unknown": (lambda folder: (folder / "intrinsics.txt").unlink(), r"intrinsics\.txt cannot be read: No such file"),
}


@pytest.mark.parametrize("kind", BROKEN_SRN)
def test_broken_scenes_of_the_other_layout_are_refused_by_name(tmp_path, kind):
    spoil, told = BROKEN_SRN[kind]
    folder = write_srn(tmp_path / "car")
    spoil(folder)
    with pytest.raises(ValueError, match=told) as caught:
        read_srn(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_image_that_is_cut_off_anywhere_is_found(tmp_path):
    folder = write_scene(tmp_path / "chair")
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 4), np.uint8)
    Image.fromarray(noise).save(folder / "r_3.png")
    content = (folder / "r_3.png").read_bytes()
    for kept in (1, 8, 20, 33, 50, len(content) // 2, len(content) - 30):
        (folder / "r_3.png").write_bytes(content[:kept])
        with pytest.raises(ValueError, match=r"r_3\.png is (not an image|corrupt or truncated)"):
            read_transforms(folder)


def test_bytes_after_the_end_of_a_image_do_no_harm(tmp_path):
    folder = write_scene(tmp_path / "chair")
    with (folder / "r_3.png").open("ab") as file:
        file.write(b"more")
    assert read_transforms(folder).shape == (8, 8)


def test_colours_lie_on_white(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    levels[:, :5, 3], levels[:, 5:10, 3] = 0, 255
    Image.fromarray(levels).save(tmp_path / "a.png")
    found = read_view(tmp_path / "a.png").permute(1, 2, 0).numpy()
    assert found.dtype == np.uint8
    colour, alpha = levels[..., :3] / 255, levels[..., 3:] / 255
    assert np.abs(found - 255 * (colour * alpha + (1 - alpha))).max() < 1
    assert (found[:, :5] == 255).all()
    assert (found[:, 5:10] == levels[:, 5:10, :3]).all()
    dropped = read_view(tmp_path / "a.png", drop_alpha=True).permute(1, 2, 0).numpy()
    assert (dropped == levels[..., :3]).all()
    assert not is_opaque(tmp_path / "a.png")


def test_images_without_transparency_are_taken_as_they_are(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    for drop_alpha in (False, True):
        assert (read_view(tmp_path / "a.png", drop_alpha).permute(1, 2, 0).numpy() == levels).all()
    assert is_opaque(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    assert not is_opaque(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png is not an image"):
        read_view(tmp_path / "b.png", drop_alpha=True)
