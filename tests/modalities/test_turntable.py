"""Turntable videos of an object with a closed form: orientation, depth, and the video files."""

import importlib.util
import math
import subprocess

import numpy as np
import pytest
import torch
from coordinates import pixel_rays
from objects import Balls, Fields, ball
from PIL import Image

from composers.rendering import LightFieldRenderer, PointRenderer, VolumeRenderer
from datamodules.batch import Views
from datamodules.cameras import look_at, orbit
from modalities import turntable
from modalities.turntable import (
    Camera,
    TrueViews,
    encoder,
    looking,
    orbit_elevation,
    orbit_frames,
    side_by_side,
    turntable_frames,
    write_gif,
    write_mp4,
)
from modalities.view_rendering import RenderedRays, depth_ends, depth_image, depth_images, depth_range, render_rays

CAMERA = Camera((32, 48), (48.0, 48.0), 4.0)


def _array(image):
    return np.asarray(image).astype(float)


def test_images_are_upright_and_right_handed():
    """For a camera at -y, +x is to the right and +z is up, and the width of the ball follows from its angle."""
    rays = pixel_rays(look_at(torch.tensor([0.0, -4.0, 0.0])), torch.tensor(CAMERA.focals), CAMERA.size)
    rendered = render_rays(*ball(Balls(), 0.8), rays)
    pixels = rendered.colours.view(32, 48, 3)
    red, green, blue = pixels[16].unbind(-1)
    assert (red > blue)[25:32].all()
    assert (blue > red)[16:23].all()
    assert green[16:32].max() < 0.1
    top = pixels[3, 24]  # the pole, above the ball
    assert top[1] > 0.9
    assert (pixels[28:] > 0.99).all()
    width = (rendered.opacity.view(32, 48)[16] > 0.5).sum().item()
    assert width == pytest.approx(2 * 48 * math.tan(math.asin(0.8 / 4)), abs=1.5)


def test_depth_is_the_distance_of_the_ball():
    rays = pixel_rays(look_at(torch.tensor([0.0, -4.0, 0.0])), torch.tensor(CAMERA.focals), CAMERA.size)
    rendered = render_rays(*ball(Balls(VolumeRenderer(2.0, 6.0, samples_per_ray=512)), 0.8), rays)
    depth, opacity = rendered.depth.view(32, 48), rendered.opacity.view(32, 48)
    expected = 3.2 + math.sqrt(math.pi) / 20  # at depth d in a density of 200 d, the transmittance is exp(-100 d^2)
    assert depth[16, 24].item() == pytest.approx(expected, abs=0.005)
    assert depth[16, 30].item() > depth[16, 24].item() + 0.05
    assert (opacity[0, 0].item(), opacity[16, 24].item()) == pytest.approx((0, 1), abs=1e-3)


def test_depth_of_transparent_objects_ignores_the_far_end():
    """The depth of a thin transparent layer does not depend on the light behind it."""

    class Veil(Fields):
        def bind(self, modulations):
            return lambda points: torch.where(points[..., 1:2].abs() < 0.1, 1.0, 0.0).expand(1, -1, 4)

    composer = Balls()
    composer.network = Veil()
    rendered = render_rays(*ball(composer, 0.1), torch.tensor([[0.0, -4.0, 0.0, 0.0, 1.0, 0.0]]))
    assert 0.05 < rendered.opacity.item() < 0.5
    assert rendered.depth.item() == pytest.approx(4, abs=0.1)


def test_result_does_not_depend_on_max_memory():
    rays = pixel_rays(orbit(3)[1], torch.tensor(CAMERA.focals), CAMERA.size)
    single, chunked = (render_rays(*ball(Balls(), 0.7), rays, memory) for memory in (500, 0.1))
    for expected, actual in zip(single, chunked, strict=True):
        assert torch.allclose(actual, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"max_memory is 0\.001 MB, too little for the 32 points of a ray"):
        render_rays(*ball(Balls(), 0.7), rays, 0.001)
    with pytest.raises(ValueError, match="PointRenderer does not render views"):
        render_rays(*ball(Balls(PointRenderer()), 0.7), rays)


def test_depth_colours():
    """Near is yellow, far is violet, background is white, and half opacity blends with white."""
    depth, opacity = torch.tensor([2.0, 6.0, 4.0, 2.0]), torch.tensor([1.0, 1.0, 0.0, 0.5])
    near, far, nothing, half = _array(depth_image(RenderedRays(torch.zeros(4, 3), depth, opacity), (1, 4), (2.0, 6.0)))[
        0
    ]
    assert near.tolist() == pytest.approx([253, 231, 37], abs=1)
    assert far.tolist() == pytest.approx([68, 1, 84], abs=1)
    assert nothing.tolist() == [255] * 3
    assert half.tolist() == pytest.approx(((near + 255) / 2).tolist(), abs=1)


def test_depth_range_is_that_of_opaque_rays():
    depth, opacity = torch.linspace(3, 4, 101), torch.ones(101)
    first, second = (
        RenderedRays(torch.zeros(101, 3), depth, opacity),
        RenderedRays(torch.zeros(101, 3), depth + 1, opacity.clone()),
    )
    assert depth_ends([first]) == pytest.approx((3.01, 3.99), abs=1e-4)
    assert depth_ends([first, second]) == pytest.approx((3.02, 4.98), abs=0.011)
    second.opacity[:] = 0.4
    assert depth_ends([first, second]) == depth_ends([first])
    assert depth_ends([second]) == (0, 1)
    near, far = depth_ends([RenderedRays(first.colours, torch.full((101,), 3.0), opacity)])
    assert far > near == 3
    images = depth_images([first, RenderedRays(first.colours, depth + 1, opacity)], (1, 101))
    assert _array(images[0])[0, -1] == pytest.approx(_array(images[1])[0, 0], abs=4)
    assert depth_images([RenderedRays(first.colours, None, None)], (1, 101)) == [None]


def test_orbit_frames_match_rendered_views():
    composer = Balls()
    frames = list(orbit_frames(*ball(composer, 0.8), CAMERA, count=4, elevation=20))
    assert len(frames) == 4
    for pose, (colour, depth) in zip(orbit(4, 4.0, 20.0), frames, strict=True):
        rendered = render_rays(*ball(composer, 0.8), pixel_rays(pose, torch.tensor(CAMERA.focals), CAMERA.size))
        expected = rendered.colours.view(32, 48, 3).numpy()
        assert np.abs(_array(colour) / 255 - expected).max() < 0.003
        assert (colour.size, depth.size) == ((48, 32), (48, 32))
    front, back = (_array(frames[index][0])[16, 24] for index in (0, 2))  # from +x, then from -x
    assert front[0] > 200 > 50 > front[2]
    assert back[2] > 200 > 50 > back[0]
    both = side_by_side(frames[1])
    assert both.size == (96, 32)
    assert np.array_equal(_array(both)[:, 48:], _array(frames[1][1]))


def test_light_fields_have_no_depth():
    composer = Balls(LightFieldRenderer())
    (colour, depth), *_ = orbit_frames(*ball(composer, 0.8), CAMERA, count=2, elevation=0)
    assert depth is None
    assert depth_range(composer) is None
    assert side_by_side((colour, depth)) is colour
    assert _array(colour)[0, 0, 0] > 200 > _array(colour)[31, 0, 0]  # upwards is red
    assert depth_range(Balls()) == (2.0, 6.0)
    assert depth_range(Balls(VolumeRenderer())) is None


def test_camera_has_the_mean_of_the_views():
    views = Views(
        torch.zeros(2, 3, 20, 40),
        torch.zeros(2, 3, 4),
        torch.tensor([[50.0, 60.0, 9.0, 9.0], [70.0, 80.0, 20.0, 10.0]]),
    )
    views.poses[0, 2, 3], views.poses[1, 0, 3] = 3.0, -5.0
    assert Camera.of(views) == Camera((20, 40), (60.0, 70.0), 4.0)
    assert Camera.of(views, 80) == Camera((40, 80), (120.0, 140.0), 4.0)


def test_frames_show_the_true_view_whose_camera_looks_most_nearly_in_their_direction():
    """Of cameras at other distances and elevations, the direction counts."""
    poses = orbit(5, 9.0, 10.0)[[3, 0, 4, 1, 2]]
    images = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 8, 12) / 10
    true = TrueViews(images, looking(poses), [f"true {view}" for view in range(5)])
    frames = turntable_frames(*ball(Balls(), 0.8), CAMERA, true, 10, 30.0)
    plain = [side_by_side(pair) for pair in orbit_frames(*ball(Balls(), 0.8), CAMERA, 10, 30.0)]
    for index, (frame, expected, pose) in enumerate(zip(frames, plain, orbit(10, 4.0, 30.0), strict=True)):
        assert frame.size == (3 * 48, 15 + 32)
        assert np.array_equal(_array(frame)[15:, 48:], _array(expected))
        cosines = [float(pose[:, 2] @ other[:, 2]) for other in poses]
        shown = round(_array(frame)[15 + 16, 24, 0] / 25.5)
        assert cosines[shown] == pytest.approx(max(cosines), abs=1e-6)
        assert (_array(frame)[:15] < 128).any(), index  # labels


def test_elevation_is_that_of_cameras_on_a_circle():
    assert orbit_elevation(orbit(12, 3.0, -15.0)) == pytest.approx(-15, abs=1e-4)
    assert orbit_elevation(orbit(7)) is None
    assert orbit_elevation(orbit(40)[:29]) is None  # a gap of more than 90 degrees
    spread = look_at(torch.nn.functional.normalize(torch.randn(50, 3), dim=-1) * 4)
    assert orbit_elevation(spread) is None
    both = torch.cat((orbit(8, 4.0, 20.0), orbit(8, 4.0, 28.0)))
    assert orbit_elevation(both) == pytest.approx(24, abs=1e-4)


def _video(count=6, size=(31, 20)):
    """Return frames of a red square that moves to the right over white."""
    frames = [Image.new("RGB", size, "white") for _ in range(count)]
    for index, frame in enumerate(frames):
        frame.paste((200, 30 + 20 * index, 40), (2 + 4 * index, 5, 8 + 4 * index, 15))
    return frames


def test_gif_contains_the_frames(tmp_path):
    frames = [side_by_side(pair) for pair in orbit_frames(*ball(Balls(), 0.8), CAMERA, count=6)]
    write_gif(frames, tmp_path / "new" / "ball.gif", seconds=1.5)
    with Image.open(tmp_path / "new" / "ball.gif") as video:
        assert (video.n_frames, video.info["loop"], video.info["duration"]) == (6, 0, 250)
        for index, frame in enumerate(frames):
            video.seek(index)
            actual = _array(video.convert("RGB"))
            assert np.abs(actual - _array(frame)).mean() < 1.5
            white = (_array(frame) == 255).all(-1)
            assert (actual[white] == 255).all()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ball.gif"]


def test_gif_is_exact_for_few_colours(tmp_path):
    write_gif(_video(), tmp_path / "video.gif", seconds=0.01)
    with Image.open(tmp_path / "video.gif") as video:
        assert video.info["duration"] == 20
        for index, frame in enumerate(_video()):
            video.seek(index)
            assert np.array_equal(_array(video.convert("RGB")), _array(frame))


@pytest.mark.skipif(encoder() is None, reason="no encoder is installed")
def test_mp4_contains_the_frames(tmp_path):
    write_mp4(_video(), tmp_path / "video.mp4", seconds=2)
    command = [encoder(), "-v", "error", "-i", tmp_path / "video.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    actual = np.frombuffer(raw, np.uint8).reshape(6, 20, 32, 3)[:, :, :31].astype(float)
    assert np.abs(actual - np.stack([_array(frame) for frame in _video()])).mean() < 12


def test_mp4_calls_ffmpeg(tmp_path, monkeypatch):
    """A fake ffmpeg receives all frames, and its error output becomes the error message."""
    fake = tmp_path / "ffmpeg"
    fake.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$0.args"\ncat > "$last"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(turntable, "encoder", lambda: str(fake))
    write_mp4(_video(), tmp_path / "video.mp4", seconds=2)
    assert (tmp_path / "video.mp4").read_bytes() == b"".join(frame.tobytes() for frame in _video())
    arguments = (tmp_path / "ffmpeg.args").read_text()
    assert "-f rawvideo -pix_fmt rgb24 -s 31x20 -r 3.000000 -i -" in arguments
    fake.write_text("#!/bin/sh\necho first >&2\necho Unknown encoder libx264 >&2\nexit 1\n")
    with pytest.raises(ValueError, match=r"could not write .*other.mp4: Unknown encoder libx264\. Repair it"):
        write_mp4(_video(), tmp_path / "other.mp4", seconds=2)
    assert not list(tmp_path.glob("other*"))


def test_encoder_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(turntable.shutil, "which", lambda name: f"/bin/{name}")
    assert encoder() == "/bin/ffmpeg"
    monkeypatch.setattr(turntable.shutil, "which", lambda name: None)
    assert encoder() is None
    with pytest.raises(
        ValueError, match=r"There is no encoder to write .*video\.mp4: to write MP4, pip install imageio-ffmpeg"
    ):
        write_mp4(_video(), tmp_path / "video.mp4", seconds=2)
