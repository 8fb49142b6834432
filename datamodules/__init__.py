"""Data as batches of coordinates: one LightningDataModule per data set.

The data sets are imported where one is first asked for: they know modalities, which know composers, which know
`datamodules.base`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.data_sets import (
        FFHQ,
        AudioFolder,
        CelebA,
        CoordinateDataModule,
        ImageFolder,
        ImageNette,
        LibriSpeech,
        PictureFiles,
        SampleObjects,
        SamplePhotos,
        SampleSpeech,
        SceneFolder,
        ShapeNet,
        SRNScenes,
    )

__all__ = [
    "FFHQ",
    "AudioFolder",
    "CelebA",
    "CoordinateDataModule",
    "ImageFolder",
    "ImageNette",
    "LibriSpeech",
    "PictureFiles",
    "SRNScenes",
    "SampleObjects",
    "SamplePhotos",
    "SampleSpeech",
    "SceneFolder",
    "ShapeNet",
]


def __getattr__(name: str) -> Any:
    """Return a data set by its name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("datamodules.data_sets"), name)
