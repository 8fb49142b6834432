"""Data as batches of coordinates: one LightningDataModule per data set.

A data set is imported where it is first asked for: it knows its modality, which knows composers, which know `datamodules.base`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.audio.audio_folder import AudioFolder
    from datamodules.audio.librispeech import LibriSpeech
    from datamodules.audio.sample_speech import SampleSpeech
    from datamodules.base import CoordinateDataModule
    from datamodules.images.celeba import CelebA
    from datamodules.images.ffhq import FFHQ
    from datamodules.images.image_folder import ImageFolder
    from datamodules.images.imagenette import ImageNette
    from datamodules.images.prediction import ImageFiles
    from datamodules.images.sample_photos import SamplePhotos
    from datamodules.scenes.sample_objects import SampleObjects
    from datamodules.scenes.scene_folder import SceneFolder
    from datamodules.scenes.shapenet import ShapeNet
    from datamodules.scenes.srn import SRNScenes

_MODULES = {
    "AudioFolder": "audio.audio_folder",
    "CelebA": "images.celeba",
    "CoordinateDataModule": "base",
    "FFHQ": "images.ffhq",
    "ImageFolder": "images.image_folder",
    "ImageNette": "images.imagenette",
    "LibriSpeech": "audio.librispeech",
    "ImageFiles": "images.prediction",
    "SRNScenes": "scenes.srn",
    "SampleObjects": "scenes.sample_objects",
    "SamplePhotos": "images.sample_photos",
    "SampleSpeech": "audio.sample_speech",
    "SceneFolder": "scenes.scene_folder",
    "ShapeNet": "scenes.shapenet",
}

__all__ = [
    "FFHQ",
    "AudioFolder",
    "CelebA",
    "CoordinateDataModule",
    "ImageFiles",
    "ImageFolder",
    "ImageNette",
    "LibriSpeech",
    "SRNScenes",
    "SampleObjects",
    "SamplePhotos",
    "SampleSpeech",
    "SceneFolder",
    "ShapeNet",
]


def __getattr__(name: str) -> Any:
    """Return a data set by its name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"datamodules.{_MODULES[name]}"), name)


def data_sets() -> list[type["CoordinateDataModule"]]:
    """Import and return every data set, so that a config can name one without its module."""
    return [__getattr__(name) for name in __all__]
