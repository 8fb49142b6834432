"""Reading scenes: poses, intrinsics and images of both layouts, and error messages for damaged files."""

import json
import math

import numpy as np
import pytest
import torch
from coordinates import pixel_rays
from PIL import Image
from scene_folders import ANGLE, cameras, describe, save_image, write_scene, write_srn

from datamodules.storage import views as scenes
from datamodules.storage.srn import read_srn
from datamodules.storage.transforms import read_transforms
from datamodules.storage.views import is_opaque, read_view


def test_transforms_are_read(tmp_path):
    scene = read_transforms(write_scene(tmp_path / "chair"))
    assert scene.name == "chair"
    assert scene.shape == (8, 8)
    assert [path.name for path in scene.images] == [f"r_{frame}.png" for frame in range(6)]
    assert scene.poses.dtype == scene.intrinsics.dtype == torch.float32
    torch.testing.assert_close(scene.poses, cameras(6).float())
    focal = 4 / math.tan(ANGLE / 2)
    torch.testing.assert_close(scene.intrinsics, torch.tensor([[focal, focal, 4.0, 4.0]] * 6))


def test_frames_keep_their_order(tmp_path):
    folder = write_scene(tmp_path)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    describe(folder, frames=frames[::-1])
    scene = read_transforms(folder)
    assert [path.name for path in scene.images] == [f"r_{frame}.png" for frame in (5, 4, 3, 2, 1, 0)]
    torch.testing.assert_close(scene.poses, cameras(6).float().flip(0))


@pytest.mark.parametrize(
    ("file_path", "expected"),
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
def test_file_paths_of_frames_are_resolved(tmp_path, file_path, expected):
    folder = write_scene(tmp_path, frames=1)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    describe(folder, frames=[frames[0] | {"file_path": file_path}])
    save_image(folder / expected, 1, mode="RGB")
    scene = read_transforms(folder)
    assert scene.images == (folder / expected,)
    assert read_view(scene.images[0])[0, 4, 4] == 11


def test_an_image_of_the_same_name_does_not_replace_the_named_image(tmp_path):
    folder = write_scene(tmp_path, frames=1)
    assert read_transforms(folder).images == (folder / "r_0.png",)  # as in the data of LearnIt
    save_image(folder / "elsewhere" / "r_0.png", 7)
    scene = read_transforms(folder)
    assert scene.images == (folder / "elsewhere" / "r_0.png",)
    assert scene.read(0)[0, 4, 4] == 17


@pytest.mark.parametrize(
    "file_path", ["../outside/r_0", "../outside/r_0.png", "a/../../outside/r_0", "ABSOLUTE/r_0.png"]
)
def test_images_outside_of_the_scene_are_refused(tmp_path, file_path):
    folder = write_scene(tmp_path / "scene", frames=1)
    save_image(tmp_path / "outside" / "r_0.png", 7)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    file_path = file_path.replace("ABSOLUTE", str(tmp_path / "outside"))
    describe(folder, frames=[frames[0] | {"file_path": file_path}])
    with pytest.raises(
        ValueError, match=r"frame 0: file_path .* is outside of the folder of the scene: copy the images"
    ):
        read_transforms(folder)


@pytest.mark.parametrize("file_path", ["../scene/images/r_0", "ABSOLUTE/images/r_0.png", "images/../images/./r_0"])
def test_paths_that_lead_back_into_the_scene_are_followed(tmp_path, monkeypatch, file_path):
    folder = write_scene(tmp_path / "scene", frames=1)
    save_image(folder / "images" / "r_0.png", 7)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    describe(folder, frames=[frames[0] | {"file_path": file_path.replace("ABSOLUTE", str(folder))}])
    assert read_transforms(folder).images == (folder / "images" / "r_0.png",)
    monkeypatch.chdir(tmp_path)
    assert read_transforms("scene").images[0].samefile(folder / "images" / "r_0.png")


def test_focal_lengths_in_pixels_and_3_x_4_matrices_are_read(tmp_path):
    folder = write_scene(tmp_path, frames=2)
    frames = json.loads((folder / "transforms.json").read_text())["frames"]
    frames = [frame | {"transform_matrix": frame["transform_matrix"][:3]} for frame in frames]
    describe(folder, fl_x=10, frames=[frames[0], frames[1] | {"fl_x": 12.0, "fl_y": 13.0}], w=8, h=8.0, cx=4, cy=4.05)
    scene = read_transforms(folder)
    assert scene.intrinsics[:, :2].tolist() == [[10.0, 10.0], [12.0, 13.0]]
    torch.testing.assert_close(scene.poses, cameras(2).float())


def test_wide_images_have_square_pixels(tmp_path):
    folder = write_scene(tmp_path, frames=1)
    Image.new("RGB", (12, 6), "white").save(folder / "r_0.png")
    scene = read_transforms(folder)
    assert scene.shape == (6, 12)
    assert scene.intrinsics[0].tolist() == pytest.approx([6 / math.tan(ANGLE / 2)] * 2 + [6, 3])


def _distance(scene, frame, column, row, point):
    """Return the distance of a point from the ray of a pixel."""
    ray = (
        pixel_rays(scene.poses[frame], scene.intrinsics[frame], scene.shape).view(*scene.shape, 6)[row, column].double()
    )
    towards = torch.tensor(point, dtype=torch.float64) - ray[:3]
    assert towards @ ray[3:] > 0
    return float(torch.linalg.cross(towards, ray[3:]).norm() / ray[3:].norm())


def test_srn_axes_are_converted(tmp_path):
    # A camera at (0, 0, -2) looks along +z, right is +x, down is +y: a point to the right and below appears there.
    folder = write_srn(tmp_path / "car", frames=1)
    (folder / "pose" / "000000.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 -2\n0 0 0 1")
    scene = read_srn(folder)
    assert scene.poses[0].tolist() == [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, -2]]
    focal = float(scene.intrinsics[0, 0])
    point = [(6.5 - 4) / focal * 2, (5.5 - 4) / focal * 2, 0.0]  # u = f x / z + 4, v = f y / z + 4
    assert _distance(scene, 0, column=6, row=5, point=point) < 1e-6


def test_srn_scenes_are_read(tmp_path):
    scene = read_srn(write_srn(tmp_path / "car"))
    assert (scene.name, scene.shape) == ("car", (8, 8))
    assert [path.name for path in scene.images] == [f"{frame:06d}.png" for frame in range(6)]
    torch.testing.assert_close(scene.poses, cameras(6, 1.3).float())
    torch.testing.assert_close(scene.intrinsics, torch.tensor([[8.8, 8.8, 4.0, 4.0]] * 6))


@pytest.mark.parametrize(
    ("intrinsics", "expected"),
    [
        ("9", (9, 9, 4, 4)),
        ("9 3 4 0", (9, 9, 4, 4)),
        ("36 16 8 0\n0 0 0\n1\n16 32", (9, 18, 4, 4)),
        ("36 20 6 0\n0 0 0\n1\n16 32", (9, 18, 5, 3)),
    ],
    ids=["focal", "short", "another-size", "off-centre"],
)
def test_intrinsics_are_scaled_to_the_images(tmp_path, intrinsics, expected):
    folder = write_srn(tmp_path / "car")
    (folder / "intrinsics.txt").write_text(intrinsics)
    assert read_srn(folder).intrinsics.tolist() == [[*expected]] * 6


@pytest.mark.parametrize("read", [read_transforms, read_srn])
def test_reading_a_scene_decodes_no_images(tmp_path, monkeypatch, read):
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
    """Return a function that changes the pose of the third frame of a scene."""

    def damage(folder):
        frames = json.loads((folder / "transforms.json").read_text())["frames"]
        _frame(folder, transform_matrix=change(np.array(frames[2]["transform_matrix"])).tolist())

    return damage


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
    """Return a function that overwrites a file of a scene."""
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
    "no json": (_text("transforms.json", "{"), r"transforms\.json is not valid JSON .*: get it from its source again"),
    "no text": (
        lambda folder: (folder / "transforms.json").write_bytes(b"\xff\xfe{"),
        r"transforms\.json is not valid JSON",
    ),
    "deep": (_text("transforms.json", "[" * 100_000), r"transforms\.json is not valid JSON"),
    "a list": (_text("transforms.json", "[]"), r"transforms\.json contains a list, not a JSON object"),
    "no frames": (lambda folder: describe(folder, frames=[]), r"transforms\.json has no frames"),
    "odd frames": (lambda folder: describe(folder, frames=[1]), r"transforms\.json has no frames"),
    "missing": (
        lambda folder: (folder / "r_3.png").unlink(),
        r"transforms\.json: 1 of 6 images are missing in .*, the first with file_path '\./elsewhere/r_3'",
    ),
    "long": (
        lambda folder: _frame(folder, file_path="x" * 4000),
        r"1 of 6 images are missing in .* file_path 'x{99}\. Add",
    ),
    "unnamed": (lambda folder: _frame(folder, file_path=None), r"1 of 6 images are missing .* file_path None"),
    "size": (
        _size,
        r"r_3\.png has 8 x 9 pixels, but r_0\.png has 8 x 8: the images of a scene must have the same size",
    ),
    "no size": (_empty_image, r"r_3\.png has 8 x 0 pixels: get it from its source again"),
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
    "focal 0": (lambda folder: describe(folder, fl_x=0), "frame 0: fl_x is 0; it must be a number of pixels above 0"),
    "focal inf": (lambda folder: _frame(folder, fl_x=9, fl_y=float("inf")), "frame 2: fl_y is inf"),
    "focal of too many digits": (lambda folder: describe(folder, fl_x=10**400), "frame 0: fl_x is 10{39}; it must be"),
    "focal too small": (
        lambda folder: describe(folder, fl_x=1e-300),
        "frame 0: fl_x is 1e-300; it must be a number of pixels",
    ),
    "angle too small": (
        lambda folder: describe(folder, camera_angle_x=1e-300),
        r"frame 0: the focal length of camera_angle_x 1e-300 is 7\.9+e\+300; it must be a number of pixels",
    ),
    "width": (lambda folder: describe(folder, fl_x=90, w=80), r"frame 0: w is 80, but the images have 8 x 8 pixels"),
    "centre": (lambda folder: describe(folder, cx="middle"), "frame 0: cx is 'middle'; it must be a number"),
    "fraction": (lambda folder: describe(folder, cy=0.5), "frame 0: cy is 0.5, .* a fraction of 8 pixels: .* as 4"),
    "no matrix": (
        lambda folder: _frame(folder, transform_matrix=None),
        "frame 2: transform_matrix is not a matrix of 4 x 4",
    ),
    "text matrix": (lambda folder: _frame(folder, transform_matrix="eye"), "frame 2: transform_matrix is not a matrix"),
    "ragged": (
        lambda folder: _frame(folder, transform_matrix=[[1], [2, 3]]),
        "frame 2: transform_matrix is not a matrix",
    ),
    "3 x 3": (_matrix(lambda matrix: matrix[:3, :3]), "frame 2: transform_matrix is not a matrix"),
    "transposed": (_matrix(np.transpose), r"frame 2: the last row of the pose is .*, not 0, 0, 0, 1.* transpose it"),
    "scaled": (
        _matrix(_scaled),
        r"frame 2: .* not a rotation R .*: R R\^T differs from the identity by 3, the determinant is 8",
    ),
    "mirrored": (_matrix(_mirrored), r"frame 2: .* not a rotation R .* the determinant is -1"),
    "off": (_matrix(_slightly_off), r"frame 2: .* not a rotation R .*: R R\^T differs from the identity by 0\.0"),
    "nan": (_matrix(_not_a_number), "frame 2: .* not a rotation R with a position: it contains nan"),
    "beyond": (_matrix(_beyond), r"frame 2: .* not a rotation R with a position: it contains 1e\+300"),
    "too many digits": (_matrix(_too_many_digits), "frame 2: transform_matrix is not a matrix of 4 x 4"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_errors_of_broken_scenes_name_the_file(tmp_path, kind):
    damage, message = BROKEN[kind]
    folder = write_scene(tmp_path / "chair")
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        read_transforms(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_rounded_poses_are_accepted(tmp_path):
    folder = write_scene(tmp_path)
    _matrix(lambda matrix: matrix.round(4))(folder)
    assert read_transforms(folder).poses.isfinite().all()


BROKEN_SRN = {
    "no pose": (
        lambda folder: (folder / "pose" / "000003.txt").unlink(),
        "has 5 pose/.* and 6 rgb/.*; 000003 is in only one",
    ),
    "no image": (
        lambda folder: (folder / "rgb" / "000002.png").unlink(),
        "6 pose/.* and 5 rgb/.*; 000002 is in only one",
    ),
    "nothing": (lambda folder: [path.unlink() for path in folder.glob("*/*")], r"0 pose/\*\.txt and 0 rgb"),
    "short": (_text("pose/000001.txt", "1 0 0"), r"000001\.txt has 3 numbers, but a pose has 16"),
    "words": (_text("pose/000001.txt", "one"), r"000001\.txt must contain only numbers"),
    "no rotation": (_text("pose/000001.txt", "2 " * 12 + "0 0 0 1"), r"000001\.txt: the pose is not a rotation"),
    "no focal": (_text("intrinsics.txt", ""), r"intrinsics\.txt: the focal length, its first number, is None"),
    "focal": (
        _text("intrinsics.txt", "-3 4 4"),
        r"intrinsics\.txt: the focal length, .*, is -3\.0; it must be a number",
    ),
    "large": (
        _text("intrinsics.txt", "1e300"),
        r"intrinsics\.txt: the focal length, .*, is 1e\+300; it must be a number",
    ),
    "no height": (
        _text("intrinsics.txt", "9 4 4 0 0 0 0 1 0 8"),
        r"intrinsics\.txt: height is 0\.0; it must be a number",
    ),
    "unknown": (lambda folder: (folder / "intrinsics.txt").unlink(), r"intrinsics\.txt cannot be read: No such file"),
}


@pytest.mark.parametrize("kind", BROKEN_SRN)
def test_errors_of_broken_srn_scenes_name_the_file(tmp_path, kind):
    damage, message = BROKEN_SRN[kind]
    folder = write_srn(tmp_path / "car")
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        read_srn(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_truncated_images_are_detected(tmp_path):
    folder = write_scene(tmp_path / "chair")
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 4), np.uint8)
    Image.fromarray(noise).save(folder / "r_3.png")
    content = (folder / "r_3.png").read_bytes()
    for length in (1, 8, 20, 33, 50, len(content) // 2, len(content) - 30):
        (folder / "r_3.png").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"r_3\.png is (not an image|corrupt or truncated)"):
            read_transforms(folder)


def test_bytes_after_the_end_of_an_image_are_ignored(tmp_path):
    folder = write_scene(tmp_path / "chair")
    with (folder / "r_3.png").open("ab") as file:
        file.write(b"more")
    assert read_transforms(folder).shape == (8, 8)


def test_images_are_composited_over_white(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    levels[:, :5, 3], levels[:, 5:10, 3] = 0, 255
    Image.fromarray(levels).save(tmp_path / "a.png")
    actual = read_view(tmp_path / "a.png").permute(1, 2, 0).numpy()
    assert actual.dtype == np.uint8
    colour, alpha = levels[..., :3] / 255, levels[..., 3:] / 255
    assert np.abs(actual - 255 * (colour * alpha + (1 - alpha))).max() < 1
    assert (actual[:, :5] == 255).all()
    assert (actual[:, 5:10] == levels[:, 5:10, :3]).all()
    dropped = read_view(tmp_path / "a.png", drop_alpha=True).permute(1, 2, 0).numpy()
    assert (dropped == levels[..., :3]).all()
    assert not is_opaque(tmp_path / "a.png")


def test_images_without_transparency_are_unchanged(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    for drop_alpha in (False, True):
        assert (read_view(tmp_path / "a.png", drop_alpha).permute(1, 2, 0).numpy() == levels).all()
    assert is_opaque(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    assert not is_opaque(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png is not an image"):
        read_view(tmp_path / "b.png", drop_alpha=True)
