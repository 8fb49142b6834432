"""Write folders of posed images for tests."""

import json

import numpy as np
import torch
from PIL import Image

from datamodules.cameras import look_at

ANGLE = 0.8


def cameras(count, radius=4.0):
    """Return the poses of cameras around the origin, ``(count, 3, 4)``."""
    turns = torch.arange(count, dtype=torch.float64) * 2.4
    upwards = 0.2 + torch.arange(count, dtype=torch.float64) / (2 * count)
    around = torch.stack((turns.cos(), turns.sin(), upwards), dim=-1)
    return look_at(radius * torch.nn.functional.normalize(around, dim=-1))


def save_image(path, frame, size=8, mode="RGBA"):
    """Write a square on a transparent or white background; its red channel is ``10 + frame``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size, 4), (255, 255, 255, 0), np.uint8)
    pixels[size // 4 : -(size // 4), size // 4 : -(size // 4)] = (10 + frame, 20, 30, 255)
    Image.fromarray(pixels).convert(mode).save(path)


def describe(folder, **changes):
    """Change entries of the ``transforms.json`` of a scene."""
    path = folder / "transforms.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_scene(folder, frames=6, size=8, radius=4.0, mode="RGBA"):
    """Write a scene in the format of Blender's exporters, and return its folder."""
    last_row = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    frames_json = []
    for frame, pose in enumerate(cameras(frames, radius)):
        save_image(folder / f"r_{frame}.png", frame, size, mode)
        matrix = torch.cat((pose, last_row.double())).tolist()
        frames_json.append({"file_path": f"./elsewhere/r_{frame}", "transform_matrix": matrix})
    (folder / "transforms.json").write_text(json.dumps({"camera_angle_x": ANGLE, "frames": frames_json}))
    return folder


def write_srn(folder, frames=6, size=8, radius=1.3):
    """Write a scene in the layout of scene representation networks, and return its folder."""
    (folder / "pose").mkdir(parents=True)
    for frame, pose in enumerate(cameras(frames, radius)):
        save_image(folder / "rgb" / f"{frame:06d}.png", frame, size)
        matrix = np.vstack((pose.numpy(), (0, 0, 0, 1)))
        matrix[:, 1:3] *= -1
        (folder / "pose" / f"{frame:06d}.txt").write_text(" ".join(map(str, matrix.flatten().tolist())))
    (folder / "intrinsics.txt").write_text(f"{1.1 * size} {size / 2} {size / 2} 0.\n0. 0. 0.\n1.\n{size} {size}\n")
    return folder


def write_split_scene(folder, counts, size=8, radius=4.0):
    """Write a scene with a file and a folder of images per split, as in Blender's data of NeRF, and return its folder."""
    poses = iter(cameras(sum(counts.values()), radius))
    for split, count in counts.items():
        frames = []
        for frame in range(count):
            save_image(folder / split / f"r_{frame}.png", frame, size)
            matrix = [*next(poses).tolist(), [0.0, 0.0, 0.0, 1.0]]
            frames.append({"file_path": f"./{split}/r_{frame}", "transform_matrix": matrix})
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": ANGLE, "frames": frames}))
    return folder


def _quaternion(rotation):
    """Return the unit quaternion w, x, y, z of a rotation matrix: an eigenvector (Bar-Itzhack)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    upper = [
        [a - e - i, 0, 0, 0],
        [d + b, e - a - i, 0, 0],
        [g + c, h + f, i - a - e, 0],
        [h - f, c - g, d - b, a + e + i],
    ]
    vector = np.linalg.eigh(np.array(upper))[1][:, -1]
    return vector[[3, 0, 1, 2]]


def write_colmap(folder, below="sparse/0", frames=6, camera="PINHOLE 8 8 10 11 4.5 3.5", size=8):
    """Write a scene with a COLMAP model as text, and return its folder; ``camera`` states its size too."""
    model = folder / below
    model.mkdir(parents=True, exist_ok=True)
    (model / "cameras.txt").write_text(f"# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n1 {camera}\n")
    lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[] as (X, Y, POINT3D_ID)"]
    for frame, pose in reversed(list(enumerate(cameras(frames)))):
        save_image(folder / "images" / f"view {frame}.png", frame, size)
        axes = pose[:, :3].numpy() * (1, -1, -1)  # right, down, forwards
        translation = -axes.T @ pose[:, 3].numpy()
        numbers = " ".join(map(str, [*_quaternion(axes.T), *translation]))
        lines += [f"{frame + 1} {numbers} 1 view {frame}.png", "1.5 2 -1" if frame == frames - 1 else ""]
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    return folder
