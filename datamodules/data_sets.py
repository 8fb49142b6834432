"""All data sets of this software, and prediction from images."""

from datamodules.audio.audio_folder import AudioFolder
from datamodules.audio.librispeech import LibriSpeech
from datamodules.audio.sample_speech import SampleSpeech
from datamodules.base import CoordinateDataModule
from datamodules.images.celeba import CelebA
from datamodules.images.ffhq import FFHQ
from datamodules.images.image_folder import ImageFolder
from datamodules.images.imagenette import ImageNette
from datamodules.images.prediction import PictureFiles
from datamodules.images.sample_photos import SamplePhotos
from datamodules.scenes.sample_objects import SampleObjects
from datamodules.scenes.scene_folder import SceneFolder
from datamodules.scenes.shapenet import ShapeNet
from datamodules.scenes.srn import SRNScenes

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
