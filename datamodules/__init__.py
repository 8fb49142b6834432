"""Data modules: one LightningDataModule per data set, which returns batches of coordinates.

Data sets are imported on first access, which avoids an import cycle: a data set imports its modality, a modality imports
composers, and composers import `datamodules.base`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.audio.audio_folder import AudioFolder
    from datamodules.audio.librispeech import LibriSpeech
    from datamodules.audio.sample_speech import SampleSpeech
    from datamodules.base import CoordinateDataModule
    from datamodules.images.benchmarks import SRBenchmark
    from datamodules.images.celeba import CelebA
    from datamodules.images.div2k import DIV2K
    from datamodules.images.ffhq import FFHQ
    from datamodules.images.image_folder import ImageFolder
    from datamodules.images.imagenette import ImageNette
    from datamodules.images.low_resolution import LowResolutionFiles
    from datamodules.images.prediction import ImageFiles
    from datamodules.images.sample_photos import SamplePhotos
    from datamodules.images.super_resolution import SuperResolution
    from datamodules.scenes.sample_objects import SampleObjects
    from datamodules.scenes.scene_folder import SceneFolder
    from datamodules.scenes.shapenet import ShapeNet
    from datamodules.scenes.srn import SRNScenes
    from datamodules.shapes.deep_sdf import DeepSDF
    from datamodules.shapes.digits import Digits
    from datamodules.shapes.sample_shapes import SampleShapes
    from datamodules.shapes.shape_folder import ShapeFolder

_MODULES = {
    "AudioFolder": "audio.audio_folder",
    "CelebA": "images.celeba",
    "CoordinateDataModule": "base",
    "DIV2K": "images.div2k",
    "DeepSDF": "shapes.deep_sdf",
    "Digits": "shapes.digits",
    "FFHQ": "images.ffhq",
    "ImageFolder": "images.image_folder",
    "ImageNette": "images.imagenette",
    "LibriSpeech": "audio.librispeech",
    "LowResolutionFiles": "images.low_resolution",
    "ImageFiles": "images.prediction",
    "SRBenchmark": "images.benchmarks",
    "SRNScenes": "scenes.srn",
    "SampleObjects": "scenes.sample_objects",
    "SamplePhotos": "images.sample_photos",
    "SampleShapes": "shapes.sample_shapes",
    "SampleSpeech": "audio.sample_speech",
    "SceneFolder": "scenes.scene_folder",
    "ShapeFolder": "shapes.shape_folder",
    "ShapeNet": "scenes.shapenet",
    "SuperResolution": "images.super_resolution",
}

__all__ = [
    "DIV2K",
    "FFHQ",
    "AudioFolder",
    "CelebA",
    "CoordinateDataModule",
    "DeepSDF",
    "Digits",
    "ImageFiles",
    "ImageFolder",
    "ImageNette",
    "LibriSpeech",
    "LowResolutionFiles",
    "SRBenchmark",
    "SRNScenes",
    "SampleObjects",
    "SamplePhotos",
    "SampleShapes",
    "SampleSpeech",
    "SceneFolder",
    "ShapeFolder",
    "ShapeNet",
    "SuperResolution",
]


def __getattr__(name: str) -> Any:
    """Import and return a data set by name."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"datamodules.{_MODULES[name]}"), name)


def data_sets() -> list[type["CoordinateDataModule"]]:
    """Import and return every data set, so that configs can use class names without their modules."""
    return [__getattr__(name) for name in __all__]
