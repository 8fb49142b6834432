"""A data module of small random images, for tests of callbacks."""

import torch
from torch.utils.data import Dataset

from datamodules import CoordinateDataModule
from datamodules.batch import Signal
from datamodules.domain import Grid
from datamodules.spec import DataSpec
from modalities import Images

SHAPE = (3, 8, 12)


class FlatImages(Dataset):
    """Named random images."""

    def __init__(self, length, seed):
        self.name = f"set {seed}"
        self.values = torch.rand(length, *SHAPE, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return Signal(self.values[index], f"{self.name} image {index}")


class FlatData(CoordinateDataModule):
    """Nine training images, darkened at random, and five test images."""

    modality = Images()
    spec = DataSpec(Grid.unit(2), 3, SHAPE, modality)

    def setup(self, stage):
        if stage == "fit":
            self.train_set = FlatImages(9, seed=1)
        self.test_set = FlatImages(5, seed=2)

    @staticmethod
    def augmentation(item, generator):
        return item._replace(values=item.values * torch.rand(1, generator=generator))
