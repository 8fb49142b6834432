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
