"""Maps of signed distances on a plane, such as those of digits: drawing, and metrics of the insides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from composers.base import Composer
from composers.metrics import InstanceMetric
from composers.rendering import Reconstruction
from datamodules.batch import Cell, Instance, Samples
from datamodules.domain import exact
from datamodules.spec import Headline
from datamodules.storage.files import written_whole
from modalities.drawn import GALLERY_SIZE, DrawnModality
from modalities.writing import Prediction, Row, Writer

_FAR = 0.25  # distance of the darkest colours
_COLOURS = {  # RGB near the outline, and far from it
    "inside": ((150, 190, 230), (20, 60, 140)),
    "outside": ((255, 226, 184), (238, 156, 56)),
}
_UNKNOWN = (238, 238, 238)


class InsideIoU(InstanceMetric):
    """Intersection over union of the insides, where distances are negative; NaN where neither has an inside."""

    heading = "IoU"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the IoU of every instance over its unmasked samples."""
        return _iou(reconstruction.values[..., 0] < 0, target.measured[..., 0] < 0, target.mask)


class NearestPixelIoU(InstanceMetric):
    """IoU of the nearest-pixel baseline: every pixel is inside if its nearest observed pixel is.

    The observed pixels are those that the mask of an evaluation leaves out. NaN where it leaves out none, as with
    ``query_includes_context``, because a metric then does not know them.
    """

    heading = "IoU of nearest pixel"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the IoU of every instance; the prediction plays no part."""
        inside = target.measured[..., 0] < 0
        if target.mask is None:
            return inside.new_full((len(inside),), math.nan, dtype=torch.float32)
        coords, nearest = target.coords.expand(len(inside), -1, -1), torch.zeros_like(inside)
        for index, observed in enumerate(~target.mask):
            if observed.any():
                places = torch.cdist(exact(coords[index]), exact(coords[index][observed])).argmin(1)
                nearest[index] = inside[index][observed][places]
        return _iou(nearest, inside, target.mask).masked_fill(target.mask.all(1), math.nan)


class DistanceMapError(InstanceMetric):
    """Mean absolute error of the distance, in units of the coordinates."""

    heading = "distance error"

    def measure(self, reconstruction: Reconstruction, target: Samples, shape: tuple[int, ...] | None) -> Tensor:
        """Return the mean absolute error of every instance over its unmasked samples."""
        errors = (exact(reconstruction.values) - exact(target.measured)).abs().mean(-1)
        if target.mask is None:
            return errors.mean(-1)
        return (errors * target.mask).sum(-1) / target.mask.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class DistanceMapWriter(Writer):
    """Write the map, its reconstruction and the code of a shape as NAME.png and NAME.safetensors."""

    results = "Maps (PNG), codes"

    def write(self, prediction: Prediction, path: Path) -> Row:
        """Write the files of one shape."""
        row, instance = super().write(prediction, path), prediction.instance
        if instance is not None and instance.query.values is not None:
            modality = DistanceMaps()
            cells = [Cell("target", instance.query.values, instance.shape, instance.domain)]
            last = max(instance.values)
            cells.append(Cell("reconstruction", instance.values[last], instance.shape, instance.domain))
            figure = modality.figure([[*modality.context(instance), *cells]])
            with written_whole(Path(f"{path}.png")) as part:
                figure.save(part, format="PNG")
        return row


class DistanceMaps(DrawnModality):
    """Signed distances on a plane, negative inside; figures show the inside in blue, the outside in orange, and the outline.

    Maps come from data modules only: prediction reads no files.
    """

    name = "shapes"
    noun = "shape"
    headline = Headline("iou", "max", "")
    writer = DistanceMapWriter

    def takes(self, facts: Mapping[str, Any]) -> bool:
        """Return whether a model was trained on a plane, rather than in a volume."""
        ranges = ((facts.get("domain") or {}).get("init_args") or {}).get("ranges")
        return ranges is not None and len(ranges) == 2

    def metrics(self) -> dict[str, InstanceMetric]:
        """Return the IoU, that of the nearest observed pixel, and the mean absolute error of distances."""
        return {"iou": InsideIoU(), "nearest_iou": NearestPixelIoU(), "distance": DistanceMapError()}

    def panel(self, values: Tensor, shape: Sequence[int]) -> Image.Image:
        """Return distances ``(N, 1)`` as an image with a longer side of about 256 pixels; NaN is unknown."""
        grid = values.float().mT.unflatten(-1, tuple(shape))[None]  # (1, 1, H, W)
        factor = math.ceil(GALLERY_SIZE / max(shape))
        mode = "nearest" if grid.isnan().any() else "bilinear"
        distances = interpolate(grid, scale_factor=factor, mode=mode)[0, 0]
        inside = distances < 0
        share = (distances.abs() / _FAR).clamp(0, 1).nan_to_num()[..., None]
        colours = {
            side: torch.tensor(near) + share * (torch.tensor(far) - torch.tensor(near))
            for side, (near, far) in _COLOURS.items()
        }
        pixels = torch.where(inside[..., None], colours["inside"], colours["outside"])
        unknown = distances.isnan()
        if not unknown.any():
            pixels[_outline(inside)] = 0
        pixels[unknown] = torch.tensor(_UNKNOWN, dtype=pixels.dtype)
        return Image.fromarray(pixels.round().to(torch.uint8).numpy())

    def context(self, instance: Instance) -> list[Cell]:
        """Return the observed pixels, if the signal is a set of points ``(P, 3)`` with their distances."""
        if not isinstance(instance.signal, Tensor) or instance.signal.dim() != 2:
            return []
        points, distances = instance.signal[:, :2], instance.signal[:, 2:]
        values = instance.query.coords.new_full((len(instance.query.coords), 1), math.nan)
        values[torch.cdist(points, instance.query.coords.float()).argmin(1)] = distances
        return [Cell("observed", values, instance.shape, instance.domain)]

    def media(self, composer: Composer, reconstruction: Reconstruction, instance: Instance) -> dict[str, Any]:
        """Return the map and its reconstruction as images."""
        assert instance.query.values is not None
        columns = {"input": instance.query.values, "reconstruction": instance.values[max(instance.values)]}
        return {column: self.panel(values, instance.shape) for column, values in columns.items()}


def _iou(first: Tensor, second: Tensor, mask: Tensor | None) -> Tensor:
    """Return the intersection over union of sets ``(B, N)`` within a mask; NaN where both are empty."""
    if mask is not None:
        first, second = first & mask, second & mask
    return (first & second).sum(1) / (first | second).sum(1)


def _outline(inside: Tensor) -> Tensor:
    """Return the pixels ``(H, W)`` of an inside that have a neighbour outside."""
    padded = torch.nn.functional.pad(inside[None, None].float(), (1, 1, 1, 1), mode="replicate")[0, 0].bool()
    neighbours = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~neighbours
