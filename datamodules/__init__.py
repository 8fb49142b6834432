"""Data as batches of coordinates: one LightningDataModule per data set."""

from datamodules.base import CoordinateDataModule
from datamodules.celeba import CelebA
from datamodules.ffhq import FFHQ
from datamodules.image_folder import ImageFolder
from datamodules.imagenette import ImageNette
from datamodules.pictures import PictureFiles
from datamodules.samples import SamplePhotos

__all__ = ["FFHQ", "CelebA", "CoordinateDataModule", "ImageFolder", "ImageNette", "PictureFiles", "SamplePhotos"]
