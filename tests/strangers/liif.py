"""A super-resolver: a local network reads the feature map of a smaller image (Chen et al., LIIF, CVPR 2021, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from composers.encoders import Encoder
from composers.latents import Layout
from composers.networks import CoordinateNetwork, Modulations, TensorSpec
from datamodules import SamplePhotos
from datamodules.domain import CellGrid
from datamodules.spec import DataSpec


class HalvedPhotos(SamplePhotos):
    """Photographs of which the model observes every block of 2 x 2 pixels as one."""

    @property
    def spec(self) -> DataSpec:
        return super().spec._replace(domain=CellGrid.unit(2), signal_shape=(3, self.size // 2, self.size // 2))

    def observe(self, signal: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(signal, 2)


class Convolutions(Encoder):
    """Two convolutions, which keep the resolution; one token per pixel."""

    def __init__(self, signal_shape: tuple[int, int, int] | None = None) -> None:
        super().__init__(signal_shape)
        self.embed_dim = 16
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))

    def layout(self, signal: Any) -> Layout:
        return Layout(tuple(signal.shape[2:]), tuple(signal.shape[2:]))

    def tokens(self, signal: Any) -> Tensor:
        return torch.flatten(self.layers(signal), 2).mT  # (B, H W, E)


class LocalMLP(CoordinateNetwork[Modulations]):
    """An MLP of the nearest cell of a map ``(B, 16, H, W)``, the position relative to its centre, and the size of the query."""

    coord_dim, value_dim, floats_per_coord = 4, 3, 128

    def __init__(self) -> None:
        super().__init__()
        self.slots = {"map": TensorSpec((16, -1, -1), lambda: torch.zeros(16, 1, 1))}
        self.layers = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, coords: Tensor, modulations: Modulations) -> Tensor:
        features = modulations["map"]
        places, sizes = coords.expand(len(features), -1, -1).chunk(2, dim=-1)  # (B, N, 2)
        nearest = nn.functional.grid_sample(features, places.flip(-1).unsqueeze(2), mode="nearest", align_corners=False)
        grid = coords.new_tensor(features.shape[2:]) / 2  # cells per unit length
        inputs = (nearest.squeeze(-1).mT, (places + 1) * grid % 1 - 0.5, sizes * grid)
        return torch.add(self.layers(torch.cat(inputs, dim=-1)), 0.5)
