"""Turntable videos of a camera that orbits an object once: GIF, and MP4 if an encoder is installed."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from composers.base import Composer
from composers.rendering import Reconstruction
from datamodules.batch import Views
from datamodules.cameras import centred_intrinsics, orbit
from datamodules.domain import Rays
from datamodules.storage.files import written_whole
from modalities.images import image_size, to_image
from modalities.view_rendering import depth_images, render_rays

HOW_TO_MP4 = "to write MP4, pip install imageio-ffmpeg, or install ffmpeg"


class Camera(NamedTuple):
    """Camera of a turntable video, with the principal point at the centre of the image.

    Attributes:
        size: Rows and columns of the frames.
        focals: Focal lengths in pixels, along columns and rows.
        radius: Distance to the origin.
    """

    size: tuple[int, int]
    focals: tuple[float, float]
    radius: float = 4.0

    @classmethod
    def of(cls, views: Views, size: int | None = None) -> Camera:
        """Return a camera with the mean distance and focal length of the views of a scene.

        Args:
            views: ``images (V, 3, H, W)``, ``poses (V, 3, 4)``, ``intrinsics (V, 4)``.
            size: Longer side of the frames in pixels; that of the views if None.
        """
        height, width = views.images.shape[-2:]
        rows, columns = image_size((height, width), size)
        focal_x, focal_y = views.intrinsics[:, :2].mean(0).tolist()
        radius = float(views.poses[:, :, 3].norm(dim=-1).mean())
        return cls((rows, columns), (focal_x * columns / width, focal_y * rows / height), radius)


def orbit_frames(
    composer: Composer,
    reconstruction: Reconstruction,
    camera: Camera,
    count: int = 48,
    elevation: float = 30.0,
    max_memory: float = 500.0,
) -> Iterator[tuple[Image.Image, Image.Image | None]]:
    """Render the frames of an orbit around an object; the depths of all frames share one colour scale.

    Args:
        composer: The model; its renderer must render rays.
        reconstruction: Reconstruction of one instance.
        camera: Size, focal lengths and distance of the camera.
        count: Number of frames per revolution.
        elevation: Elevation of the camera in degrees.
        max_memory: Memory in MB for rendering, in addition to the model and the frames.

    Yields:
        A colour image and a depth image; the latter is None if the renderer has no depth.

    Raises:
        ValueError: If the renderer does not render rays, or if ``max_memory`` is too small.
    """
    intrinsics = centred_intrinsics(torch.tensor(camera.focals), camera.size)
    poses = orbit(count, camera.radius, elevation)
    views = (Rays().coords(camera.size, cameras=(pose, intrinsics)) for pose in poses)
    frames = [render_rays(composer, reconstruction, rays, max_memory) for rays in views]
    for rendered, depth in zip(frames, depth_images(frames, camera.size), strict=True):
        yield to_image(rendered.colours, camera.size), depth


def side_by_side(frame: tuple[Image.Image, Image.Image | None]) -> Image.Image:
    """Return the colour and depth images of a frame side by side, or the colour image alone if there is no depth."""
    colour, depth = frame
    if depth is None:
        return colour
    image = Image.new("RGB", (colour.width + depth.width, colour.height), "white")
    image.paste(colour, (0, 0))
    image.paste(depth, (colour.width, 0))
    return image


def write_gif(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Write a looping GIF atomically, with an adaptive palette of 256 colours per frame.

    Args:
        frames: RGB images of equal size.
        path: The file.
        seconds: Duration of one loop; GIF rounds frames to 10 ms, and 20 ms is the minimum.
    """
    quantized = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    duration = max(20, round(100 * seconds / len(frames)) * 10)  # ms
    with written_whole(path) as part:
        quantized[0].save(
            part, format="GIF", save_all=True, append_images=quantized[1:], duration=duration, loop=0, optimize=False
        )


def encoder() -> str | None:
    """Return the path of ffmpeg, preferably that of the package imageio-ffmpeg, or None if it is not installed."""
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        path: str = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
        return path
    return shutil.which("ffmpeg")


def write_mp4(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Write an MP4 video (H.264) atomically; odd sides are padded by one white pixel.

    Args:
        frames: RGB images of equal size.
        path: The file.
        seconds: Duration of the video.

    Raises:
        ValueError: If no encoder is installed, or if it fails.
    """
    ffmpeg = encoder()
    if ffmpeg is None:
        raise ValueError(f"There is no encoder to write {path}: {HOW_TO_MP4}.")
    width, height = frames[0].size
    fps = f"{len(frames) / seconds:.6f}"
    input_options = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", fps, "-i", "-"]
    pad = "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white"
    output_options = ["-vf", pad, "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    raw = b"".join(frame.convert("RGB").tobytes() for frame in frames)
    with written_whole(path) as part:
        command = [ffmpeg, "-v", "error", "-y", *input_options, *output_options, "-f", "mp4", str(part)]
        result = subprocess.run(command, input=raw, capture_output=True, check=False)  # noqa: S603 - no shell
        if result.returncode:
            lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise ValueError(f"{ffmpeg} could not write {path}: {lines[-1]}. Disable MP4: the GIF needs no encoder.")
