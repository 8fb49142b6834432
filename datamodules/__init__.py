"""Data as batches of coordinates: one LightningDataModule per data set."""

from datamodules.audio_folder import AudioFolder
from datamodules.base import CoordinateDataModule
from datamodules.celeba import CelebA
from datamodules.ffhq import FFHQ
from datamodules.image_folder import ImageFolder
from datamodules.imagenette import ImageNette
from datamodules.librispeech import LibriSpeech
from datamodules.pictures import PictureFiles
from datamodules.sample_objects import SampleObjects
from datamodules.samples import SamplePhotos, SampleSpeech
from datamodules.scene_folder import SceneFolder
from datamodules.shapenet import ShapeNet
from datamodules.srn import SRNScenes

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
