"""Data as batches of coordinates: one LightningDataModule per data set."""

from datamodules.base import CoordinateDataModule
from datamodules.samples import SamplePhotos

__all__ = ["CoordinateDataModule", "SamplePhotos"]
