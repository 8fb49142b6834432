"""Turntable videos, of a camera that goes once around an object: GIF always, MP4 where an encoder is installed."""

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
from composers.networks import Modulations
from datamodules.batch import Views
from datamodules.cameras import orbit
from datamodules.domain import Rays
from datamodules.storage.files import written_whole
from modalities.images import image_size, to_image
from modalities.view_rendering import depth_images, look

HOW_TO_MP4 = "for MP4, pip install imageio-ffmpeg, or install ffmpeg"


class Camera(NamedTuple):
    """What goes around an object.

    Attributes:
        size: Rows and columns of its images.
        focals: Focal lengths in pixels, along columns and rows.
        radius: Distance to the middle of the world.
    """

    size: tuple[int, int]
    focals: tuple[float, float]
    radius: float = 4.0

    @classmethod
    def of(cls, views: Views, size: int | None = None) -> Camera:
        """Return the camera of the views of one scene, at their mean distance and focal length.

        Args:
            views: ``images (V, 3, H, W)``, ``poses (V, 3, 4)``, ``focals (V, 2)``.
            size: Pixels of the longer side of its images; those of the views if None.
        """
        height, width = views.images.shape[-2:]
        rows, columns = image_size((height, width), size)
        along, across = views.focals.mean(0).tolist()
        radius = float(views.poses[:, :, 3].norm(dim=-1).mean())
        return cls((rows, columns), (along * columns / width, across * rows / height), radius)


def orbit_frames(
    composer: Composer,
    modulations: Modulations,
    camera: Camera,
    count: int = 48,
    elevation: float = 30.0,
    max_memory: float = 500.0,
) -> Iterator[tuple[Image.Image, Image.Image | None]]:
    """Render an object from all around; the depths of all frames have one scale, from the nearest place to the farthest.

    Args:
        composer: The model; its renderer takes rays.
        modulations: Of one instance, on the device of the model.
        camera: Size and lens of the images, and the distance.
        count: Frames of one round.
        elevation: Degrees of the camera above the horizontal plane.
        max_memory: MB that rendering may take above the model and the frames.

    Yields:
        An image of colour and one of depth, the latter None where the renderer knows no depth.

    Raises:
        ValueError: If the renderer takes no rays, or the memory is too little.
    """
    poses, focals = orbit(count, camera.radius, elevation), torch.tensor(camera.focals)
    views = (Rays().coords(camera.size, cameras=(pose, focals)) for pose in poses)
    frames = [look(composer, modulations, rays, max_memory) for rays in views]
    for seen, depth in zip(frames, depth_images(frames, camera.size), strict=True):
        yield to_image(seen.colours, camera.size), depth


def beside(frames: tuple[Image.Image, Image.Image | None]) -> Image.Image:
    """Return colour and depth side by side; colour alone where there is no depth."""
    colour, depth = frames
    if depth is None:
        return colour
    both = Image.new("RGB", (colour.width + depth.width, colour.height), "white")
    both.paste(colour, (0, 0))
    both.paste(depth, (colour.width, 0))
    return both


def write_gif(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Write a video as GIF that goes on for ever, whole or not at all; every frame has the 256 colours that suit it.

    Args:
        frames: RGB, all of one size.
        path: The file.
        seconds: Of one round; GIF counts in hundredths of a second, and at most 50 frames a second.
    """
    flat = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    duration = max(20, round(100 * seconds / len(frames)) * 10)  # ms
    with written_whole(path) as part:
        flat[0].save(
            part, format="GIF", save_all=True, append_images=flat[1:], duration=duration, loop=0, optimize=False
        )


def encoder() -> str | None:
    """Return the ffmpeg of this machine, that of the package imageio-ffmpeg first; None if there is none."""
    if importlib.util.find_spec("imageio_ffmpeg") is not None:
        found: str = importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
        return found
    return shutil.which("ffmpeg")


def write_mp4(frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    """Write a video as MP4 (H.264), whole or not at all; a white line is added where a side is odd.

    Args:
        frames: RGB, all of one size.
        path: The file.
        seconds: Of one round.

    Raises:
        ValueError: If there is no encoder, or it fails.
    """
    program = encoder()
    if program is None:
        raise ValueError(f"There is no encoder to write {path}: {HOW_TO_MP4}.")
    width, height = frames[0].size
    rate = f"{len(frames) / seconds:.6f}"
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate, "-i", "-"]
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white"
    wanted = ["-vf", even, "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    raw = b"".join(frame.convert("RGB").tobytes() for frame in frames)
    with written_whole(path) as part:
        command = [program, "-v", "error", "-y", *given, *wanted, "-f", "mp4", str(part)]
        finished = subprocess.run(command, input=raw, capture_output=True, check=False)  # noqa: S603 - no shell
        if finished.returncode:
            said = finished.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
            raise ValueError(f"{program} could not write {path}: {said[-1]}. Leave MP4 out: the GIF needs no encoder.")
