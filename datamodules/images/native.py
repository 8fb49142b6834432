"""Images at their own resolution, which super-resolution takes its pairs from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch.utils.data import Dataset

from datamodules.batch import Signal
from datamodules.storage.folders import Split


class NativeImages(ABC):
    """Base class of image data modules that offer their images at their own resolution, not cropped or resized."""

    def prepare_native(self, splits: Sequence[Split]) -> None:  # noqa: B027 - bundled images need no preparation
        """Download and decode what `native_images` returns, in one process per machine; nothing to do by default.

        Args:
            splits: The splits that will be read.
        """

    @abstractmethod
    def native_images(self, split: Split) -> Dataset[Signal]:
        """Return the images ``(3, H, W)`` uint8 of a split, of any size; available after `prepare_native`.

        Raises:
            ValueError: If images are missing, or cannot be read and are not skipped.
        """

    def low_resolution_images(self, split: Split, scale: float) -> Dataset[Signal] | None:
        """Return published images of a lower resolution in the order of `native_images`; None if there are none.

        `native_images` is called first: images that it skips have no low resolution here.

        Args:
            split: The split.
            scale: Pixels of an image per pixel of its low resolution, along each axis.

        Raises:
            ValueError: If some of them are missing or cannot be read.
        """
        return None
