"""Data as batches of coordinates: one LightningDataModule per data set."""

from datamodules.base import CoordinateDataModule
from datamodules.pictures import PictureFiles
from datamodules.samples import SamplePhotos

__all__ = ["CoordinateDataModule", "PictureFiles", "SamplePhotos"]
