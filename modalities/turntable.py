"""Turntable videos of a camera that orbits an object once: GIF, and MP4 if an encoder is installed."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from torch import Tensor

from composers.base import Composer
from composers.rendering import Reconstruction
from datamodules.batch import Views
from datamodules.cameras import centred_intrinsics, orbit
from datamodules.domain import Rays
from datamodules.storage.files import written_whole
from modalities.drawing import LabelledImage, fitted
from modalities.images import image_size, to_image
from modalities.view_rendering import depth_images, render_rays

HOW_TO_MP4 = "to write MP4, pip install imageio-ffmpeg, or install ffmpeg"
_CIRCLE, _ELEVATIONS, _GAP = 8, 10.0, 90.0  # cameras, and degrees, of cameras on a circle
_STRIP, _FONT = 15, 11  # pixels of the labels of a frame


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

    def resized(self, size: int | None) -> Camera:
        """Return the camera for frames with another longer side in pixels; unchanged for None."""
        rows, columns = image_size(self.size, size)
        focal_x, focal_y = self.focals
        return self._replace(
            size=(rows, columns), focals=(focal_x * columns / self.size[1], focal_y * rows / self.size[0])
        )


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


class TrueViews(NamedTuple):
    """Posed images of a scene that a turntable video shows beside its frames.

    Attributes:
        images: ``(V, 3, H, W)`` in [0, 1].
        directions: ``(V, 3)``, unit vectors in which the cameras look.
        labels: Titles of the views.
    """

    images: Tensor
    directions: Tensor
    labels: Sequence[str]

    def nearest(self, directions: Tensor) -> list[int]:
        """Return the view that looks most nearly in each direction ``(F, 3)``."""
        result: list[int] = (directions @ self.directions.to(directions).mT).argmax(1).tolist()
        return result


def looking(poses: Tensor) -> Tensor:
    """Return the unit vectors ``(V, 3)`` in which cameras ``(V, 3, 4)`` look."""
    return torch.nn.functional.normalize(-poses[:, :, 2], dim=-1)


def orbit_elevation(poses: Tensor) -> float | None:
    """Return the mean elevation in degrees of cameras on a horizontal circle around the origin; None for other cameras.

    At least 8 cameras are on a circle if their elevations differ by at most 10 degrees, and no two neighbours are more than 90
    degrees apart.

    Args:
        poses: ``(V, 3, 4)``.

    Example:
        >>> orbit_elevation(orbit(3)), round(orbit_elevation(orbit(12, elevation=20.0)), 3)
        (None, 20.0)
    """
    if len(poses) < _CIRCLE:
        return None
    x, y, z = poses[:, :, 3].unbind(-1)
    elevations = torch.atan2(z, torch.hypot(x, y)).rad2deg()
    angles = torch.atan2(y, x).rad2deg().sort().values
    gaps = torch.cat((angles.diff(), angles[:1] + 360 - angles[-1:]))
    on_circle = float(elevations.max() - elevations.min()) <= _ELEVATIONS and float(gaps.max()) <= _GAP
    return float(elevations.mean()) if on_circle else None


def turntable_frames(
    composer: Composer,
    reconstruction: Reconstruction,
    camera: Camera,
    true: TrueViews | None = None,
    count: int = 48,
    elevation: float = 30.0,
    max_memory: float = 500.0,
) -> list[Image.Image]:
    """Return the frames of a turntable video: colour and depth side by side, and with true views the nearest of them.

    With true views, every frame has three labelled images from left to right: the true view whose camera looks most nearly in
    the direction of the frame's, the rendered view, and the depth. The arguments are those of `orbit_frames`, except:

    Args:
        composer: The model.
        reconstruction: Reconstruction of one instance.
        camera: Camera of the frames.
        true: True views of the scene; None shows none.
        count: Number of frames per revolution.
        elevation: Elevation of the camera in degrees.
        max_memory: Memory in MB for rendering.
    """
    frames = orbit_frames(composer, reconstruction, camera, count, elevation, max_memory)
    if true is None:
        return [side_by_side(frame) for frame in frames]
    nearest = true.nearest(looking(orbit(count, camera.radius, elevation)))
    size = (camera.size[1], camera.size[0])
    images = {
        view: to_image(true.images[view].flatten(1).mT, true.images.shape[2:]).resize(size, Image.Resampling.BILINEAR)
        for view in set(nearest)
    }
    return [
        _labelled(
            [(true.labels[view], images[view]), ("rendered", colour)] + ([] if depth is None else [("depth", depth)])
        )
        for view, (colour, depth) in zip(nearest, frames, strict=True)
    ]


def _labelled(cells: Sequence[LabelledImage]) -> Image.Image:
    """Return images of equal size side by side, below their labels."""
    font = ImageFont.load_default(_FONT)
    width, height = cells[0][1].size
    frame = Image.new("RGB", (len(cells) * width, height + _STRIP), "white")
    draw = ImageDraw.Draw(frame)
    for column, (label, image) in enumerate(cells):
        draw.text((column * width + 2, 1), fitted(label, width - 2, font.getlength), fill="black", font=font)
        frame.paste(image, (column * width, _STRIP))
    return frame


def write_videos(frames: Sequence[Image.Image], path: Path, seconds: float, required: bool = False) -> None:
    """Write a video as PATH.gif, and as PATH.mp4 if an encoder is installed.

    Args:
        frames: RGB images of equal size.
        path: Path without a suffix.
        seconds: Duration of the video.
        required: Whether an encoder that fails is an error; else, a line is printed.

    Raises:
        ValueError: If an encoder is installed and fails although MP4 is ``required``.
    """
    write_gif(frames, Path(f"{path}.gif"), seconds)
    if encoder() is None:
        return
    try:
        write_mp4(frames, Path(f"{path}.mp4"), seconds)
    except ValueError as error:
        if required:
            raise
        Console(soft_wrap=True).print(f"No {path.name}.mp4: {error}", markup=False, highlight=False)


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
        with suppress(RuntimeError):  # a package without a program for this platform
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
        try:
            result = subprocess.run(command, input=raw, capture_output=True, check=False)  # noqa: S603 - no shell
        except OSError as error:
            raise ValueError(
                f"{ffmpeg} could not write {path}: {error.strerror}. Repair it, or leave out --mp4: the GIF needs no encoder."
            ) from error
        if result.returncode:
            lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise ValueError(
                f"{ffmpeg} could not write {path}: {lines[-1]}. Repair it, or leave out --mp4: the GIF needs no encoder."
            )
