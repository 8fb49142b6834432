"""Lenses of cameras: intrinsics, distortion, and undistorted images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from kornia.geometry.calibration import distort_points
from torch import Tensor
from torch.nn.functional import grid_sample

from datamodules.cameras import focal_length

_LARGEST = 1e9  # of focal lengths and principal points, for the precision of float32
_SMALLEST = 1e-6  # of focal lengths
_DISTORTION = ("k1", "k2", "p1", "p2", "k3")
_FOCAL_KEYS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y")
_MODELS = {  # the coefficients of supported models
    "SIMPLE_PINHOLE": (),
    "PINHOLE": (),
    "PERSPECTIVE": _DISTORTION,
    "SIMPLE_RADIAL": ("k1",),
    "RADIAL": ("k1", "k2"),
    "OPENCV": _DISTORTION,
}
_OTHER_LENSES = ("k4", "k5", "k6", "is_fisheye", "equirectangular", "latlong", "orthographic", "distortion_params")
LENS_KEYS = frozenset((*_FOCAL_KEYS, "w", "h", "cx", "cy", "camera_model", *_DISTORTION, *_OTHER_LENSES))


class Lens(NamedTuple):
    """A pinhole camera with distortion.

    Attributes:
        intrinsics: Focal lengths and principal point in pixels, ``fx, fy, cx, cy``.
        distortion: OPENCV coefficients ``k1, k2, p1, p2, k3``; all 0 without distortion.
    """

    intrinsics: tuple[float, float, float, float]
    distortion: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)


def read_lens(facts: Mapping[str, Any], shape: tuple[int, int], label: str) -> Lens:
    """Return the lens that keys of ``transforms.json`` describe.

    Focal lengths are ``fl_x`` and ``fl_y`` in pixels, or else follow from the fields of view ``camera_angle_x`` and
    ``camera_angle_y`` in radians; if one direction is missing, pixels are square. The principal point ``cx``, ``cy`` refers to
    ``w`` and ``h``, or to the images without these, and is their centre by default.

    Args:
        facts: The keys.
        shape: Rows and columns of the images.
        label: Place of the keys, for error messages.

    Raises:
        ValueError: If a number is missing or out of range, or the lens is no pinhole with OPENCV distortion.
    """
    distortion = _distortion(facts, label)
    height, width = shape
    sides = []
    for key, pixels in (("w", width), ("h", height)):
        side = positive_pixels(facts.get(key, pixels), key, label)
        if side != pixels and ("fl_x" in facts or "fl_y" in facts):
            raise ValueError(
                f"{label}: {key} is {side:g}, but the images have {height} x {width} pixels (rows x columns), and the focal "
                "lengths refer to these. Use the original images, or give camera_angle_x instead of fl_x."
            )
        sides.append(side)
    centre = [
        _centre(facts.get(key, side / 2), key, side, label) * pixels / side
        for key, side, pixels in zip(("cx", "cy"), sides, (width, height), strict=True)
    ]
    lens = Lens((*_focals(facts, shape, label), centre[0], centre[1]), distortion)
    _check_monotonic(lens, shape, label)
    return lens


def merged(shared: Mapping[str, Any], of_frame: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lens keys of a frame: those of the frame, and the shared ones that they do not replace.

    A focal length or field of view of a frame replaces all shared ones.
    """
    replaced = _FOCAL_KEYS if any(key in of_frame for key in _FOCAL_KEYS) else ()
    return {key: value for key, value in shared.items() if key in LENS_KEYS and key not in replaced} | {
        key: value for key, value in of_frame.items() if key in LENS_KEYS
    }


def positive_pixels(value: Any, name: str, label: str) -> float:
    """Return a number of pixels.

    Args:
        value: The number.
        name: Its name, for error messages.
        label: Its place, for error messages.

    Raises:
        ValueError: If it is no number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not _SMALLEST <= value <= _LARGEST:
        raise ValueError(
            f"{label}: {name} is {value!r:.40}; it must be a number of pixels above 0, up to {_LARGEST:g}. Correct it, or "
            "export the scene again."
        )
    return float(value)


def undistorted(image: Tensor, intrinsics: Tensor, distortion: Tensor) -> Tensor:
    """Return the image of a pinhole camera with the same intrinsics.

    Every pixel takes the colour, interpolated bilinearly, at the place where the lens projects its ray. Rays that the image
    does not cover take the colour of the nearest pixel at its border.

    Args:
        image: ``(3, H, W)`` uint8.
        intrinsics: ``(4,)``.
        distortion: ``(5,)``, ``k1, k2, p1, p2, k3``.

    Returns:
        ``(3, H, W)`` uint8.
    """
    if not distortion.any():
        return image
    height, width = image.shape[1:]
    row, column = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    focal_x, focal_y, centre_x, centre_y = intrinsics.double().tolist()
    matrix = torch.tensor(  # kornia has the centre of the first pixel at 0
        [[focal_x, 0.0, centre_x - 0.5], [0.0, focal_y, centre_y - 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64
    )
    points = distort_points(torch.stack((column, row), dim=-1).flatten(0, 1), matrix, distortion.double())
    places = (2 * points + 1) / points.new_tensor((width, height)) - 1
    sampled = grid_sample(
        image[None].double(), places.view(1, height, width, 2), padding_mode="border", align_corners=False
    )
    return sampled[0].round().to(torch.uint8)


def _focals(facts: Mapping[str, Any], shape: tuple[int, int], label: str) -> tuple[float, float]:
    """Return the focal lengths in pixels, along columns and rows."""
    focals = []
    for length, angle, side in (("fl_x", "camera_angle_x", shape[1]), ("fl_y", "camera_angle_y", shape[0])):
        if length in facts:
            focals.append(positive_pixels(facts[length], length, label))
        elif angle in facts and not {"fl_x", "fl_y"} & facts.keys():
            focals.append(_of_angle(facts[angle], angle, side, label))
    if not focals:
        _of_angle(None, "camera_angle_x", shape[1], label)
    return focals[0], focals[-1]


def _of_angle(angle: Any, name: str, side: int, label: str) -> float:
    """Return the focal length of a field of view."""
    if isinstance(angle, bool) or not isinstance(angle, int | float) or not 0 < angle < math.pi:
        received = "missing" if angle is None else f"{angle!r:.40}"
        raise ValueError(
            f"{label}: {name}, the {'horizontal' if name.endswith('x') else 'vertical'} field of view, is {received}: it must "
            "be an angle in radians between 0 and 3.1416. Correct it, or give fl_x in pixels."
        )
    return positive_pixels(focal_length(angle, side), f"the focal length of {name} {angle:g}", label)


def _centre(value: Any, name: str, side: float, label: str) -> float:
    """Return a coordinate of the principal point in pixels."""
    number = _number(value, name, label)
    if 0 < number <= 1 < side / 4:
        raise ValueError(
            f"{label}: {name} is {number:g}, which seems to be a fraction of {side:g} pixels: give it in pixels, as "
            f"{number * side:g}."
        )
    return number


def _distortion(facts: Mapping[str, Any], label: str) -> tuple[float, float, float, float, float]:
    """Return the coefficients of distortion, after refusing other lenses."""
    model = facts.get("camera_model", "OPENCV")
    if not isinstance(model, str) or model not in _MODELS:
        raise ValueError(
            f"{label}: camera_model {model!r:.40} is not supported; supported are {', '.join(_MODELS)}. Undistort the images "
            "to a pinhole camera, for example with colmap image_undistorter, and describe that."
        )
    for key in _OTHER_LENSES:
        value = facts.get(key)
        if value is not None and value is not False and value not in (0, [0] * 6):
            raise ValueError(
                f"{label}: {key} is {value!r:.40}, which describes a fisheye, panoramic or rational lens; supported are "
                "pinhole cameras with k1, k2, p1, p2 and k3. Undistort the images to a pinhole camera, and describe that."
            )
    k1, k2, p1, p2, k3 = (_number(facts.get(key, 0.0), key, label) for key in _DISTORTION)
    unused = [key for key in _DISTORTION if facts.get(key) and key not in _MODELS[model]]
    if unused:
        raise ValueError(
            f"{label}: camera_model {model} has no {', '.join(unused)}: set camera_model to OPENCV, or remove "
            f"{'it' if len(unused) == 1 else 'them'}."
        )
    return k1, k2, p1, p2, k3


def _check_monotonic(lens: Lens, shape: tuple[int, int], label: str) -> None:
    """Raise a ``ValueError`` if the distortion folds inside the image, so that it cannot be undone."""
    k1, k2, _, _, k3 = lens.distortion
    if not any(lens.distortion):
        return
    focal_x, focal_y, centre_x, centre_y = lens.intrinsics
    height, width = shape
    across, down = max(centre_x, width - centre_x) / focal_x, max(centre_y, height - centre_y) / focal_y
    square = torch.linspace(0, across**2 + down**2, 101, dtype=torch.float64)
    slope = 1 + 3 * k1 * square + 5 * k2 * square**2 + 7 * k3 * square**3
    if not bool((slope > 0).all()):
        raise ValueError(
            f"{label}: k1 {k1:g}, k2 {k2:g}, k3 {k3:g} fold the image before its corners, so the distortion cannot be undone: "
            "calibrate the camera again, or crop the images."
        )


def _number(value: Any, name: str, label: str) -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        raise ValueError(
            f"{label}: {name} is {value!r:.40}; it must be a number. Correct it, or export the scene again."
        )
    return float(value)
