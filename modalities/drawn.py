"""Base class of modalities whose signals are drawn as one image each."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from composers.base import Composer
from composers.rendering import Reconstruction
from datamodules.batch import Cell, Instance
from datamodules.spec import Modality
from modalities.decoding import values_at
from modalities.drawing import compacted, enlarged, image_grid

GALLERY_SIZE = 256  # minimum of the longer side of an image in a gallery in pixels


class DrawnModality(Modality):
    """Signals that are drawn as one image each, completely; a subclass defines `panel` and `metrics`."""

    def shown(self, instance: Instance) -> Instance:
        """Return the instance unchanged, since figures show it completely."""
        return instance

    def figure(self, rows: Sequence[Sequence[Cell]], compact: bool = False) -> Image.Image:
        """Return cells in rows and columns, all of one size, with a longer side of about 256 pixels."""
        if compact:
            return image_grid(
                [[(cell.label, compacted(self.panel(cell.values, cell.shape))) for cell in row] for row in rows]
            )
        first = rows[0][0]
        size = enlarged(self.panel(first.values, first.shape), GALLERY_SIZE).size
        return image_grid(
            [[(cell.label, self.panel(cell.values, cell.shape).resize(size, 0)) for cell in row] for row in rows]
        )

    def values_at(
        self, composer: Composer, reconstruction: Reconstruction, coords: Tensor, max_memory: float = 500.0
    ) -> Tensor:
        """Return values ``(N, C)`` of one instance at ``coords (N, D)``, on the CPU."""
        return values_at(composer, reconstruction, coords, max_memory)
