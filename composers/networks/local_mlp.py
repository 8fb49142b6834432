"""An MLP that reads the cells of a feature map around a coordinate (Chen et al., LIIF, CVPR 2021, section 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.networks.cells import cells_around
from composers.networks.coordinate_mlp import Modulations
from composers.networks.network import CoordinateNetwork, Field, TensorSpec
from datamodules.domain import exact
from datamodules.spec import FromData, coord_dim, largest_scale, value_dim

_MAX_HELD = {"cpu": 1 << 23}  # floats of all instances in one pass without gradients; more are not faster
_MAX_HELD_ELSEWHERE = 1 << 28
_KERNEL = 3  # cells along each axis that are unfolded, and those that the Fourier maps combine


class LocalFeatures(nn.Module, ABC):
    """The first layer of a `LocalMLP`: what it reads of a map, once per map, and what it makes of it at a coordinate.

    Attributes:
        floats_per_cell: Floats that evaluation holds per coordinate and cell.
    """

    floats_per_cell: int

    @abstractmethod
    def maps(self, features: Tensor) -> Tensor:
        """Return what coordinates read of a feature map ``(B, E, H, W)``: ``(B, K, H, W)``."""

    @abstractmethod
    def forward(self, read: Tensor, offset: Tensor, cell: Tensor | None) -> Tensor:
        """Return the features of coordinates ``(B, M, O)``.

        Args:
            read: ``(B, M, K)``, the maps at the cells of the coordinates.
            offset: ``(M, 2)`` or ``(B, M, 2)``, relative to the centres of the cells, in half cells.
            cell: Sizes of the query, likewise; None without cell decoding.
        """


class UnfoldedFeatures(LocalFeatures):
    """A linear layer and ReLU of the unfolded feature map, the offset and the query size.

    The product with the map is a convolution, which is computed once per map rather than at every coordinate; the result is
    the same.

    Args:
        feature_dim: ``E``, channels of the map.
        out_dim: ``O``, width of the layer.
        unfold: Whether to unfold the map.
        use_cell: Whether the layer takes the size of the query.
    """

    def __init__(self, feature_dim: int, out_dim: int, unfold: bool = True, use_cell: bool = True) -> None:
        super().__init__()
        self.feature_dim, self.kernel_size = feature_dim, _KERNEL if unfold else 1
        self.linear = nn.Linear(feature_dim * self.kernel_size**2 + 2 + 2 * use_cell, out_dim)
        self.floats_per_cell = 2 * out_dim

    @property
    def num_unfolded(self) -> int:
        """The inputs from the map; those after it are the offset and the size of the query."""
        return self.feature_dim * self.kernel_size**2

    def maps(self, features: Tensor) -> Tensor:
        """Return the product of the layer with the map, with its bias."""
        weight = self.linear.weight[:, : self.num_unfolded].unflatten(1, (self.feature_dim, *[self.kernel_size] * 2))
        return functional.conv2d(features, weight, self.linear.bias, padding=self.kernel_size // 2)

    def forward(self, read: Tensor, offset: Tensor, cell: Tensor | None) -> Tensor:
        """Add the product with the offset and the size of the query."""
        inputs = offset if cell is None else torch.cat((offset, cell), dim=-1)
        with torch.autocast(inputs.device.type, enabled=False):
            product = functional.linear(inputs, self.linear.weight[:, self.num_unfolded :].to(inputs.dtype))
        return torch.relu(read + product.to(read.dtype))


class LocalFourierFeatures(LocalFeatures):
    """Local Fourier features: amplitudes and frequencies of every cell, phases of the query size (Lee and Jin, LTE, CVPR 2022).

    For pair ``k`` of frequencies, ``theta_k = F_2k row + F_2k+1 column + phase_k``; the features are the amplitudes times
    ``cos(pi theta)`` and ``sin(pi theta)`` (equation 5).

    Args:
        feature_dim: ``E``, channels of the map.
        out_dim: ``O``, width of the layer after the features, which are as many.
        use_cell: Whether there are phases.
    """

    def __init__(self, feature_dim: int, out_dim: int, use_cell: bool = True) -> None:
        super().__init__()
        self.amplitudes = nn.Conv2d(feature_dim, out_dim, _KERNEL, padding=_KERNEL // 2)
        self.frequencies = nn.Conv2d(feature_dim, out_dim, _KERNEL, padding=_KERNEL // 2)
        self.phases = nn.Linear(2, out_dim // 2, bias=False) if use_cell else None
        self.linear = nn.Linear(out_dim, out_dim)
        self.floats_per_cell = 6 * out_dim

    def maps(self, features: Tensor) -> Tensor:
        """Return amplitudes and frequencies."""
        return torch.cat((self.amplitudes(features), self.frequencies(features)), dim=1)

    def forward(self, read: Tensor, offset: Tensor, cell: Tensor | None) -> Tensor:
        """Return the first layer of the Fourier features."""
        amplitudes, frequencies = read.chunk(2, dim=-1)
        theta = (exact(frequencies).unflatten(-1, (-1, 2)) * offset.unsqueeze(-2)).sum(-1)
        if cell is not None and self.phases is not None:
            theta = theta + exact(self.phases(cell.to(self.phases.weight.dtype)))
        waves = torch.cat((torch.cos(torch.pi * theta), torch.sin(torch.pi * theta)), dim=-1)
        return torch.relu(self.linear(amplitudes * waves.to(amplitudes.dtype)))


class LocalMaps(NamedTuple):
    """What coordinates read of an instance.

    Attributes:
        read: ``(B, H W, K)``, the maps of `LocalFeatures`, cell by cell.
        image: ``(B, H W, C)``, the observed image; None without a skip connection.
        size: ``(H, W)``.
    """

    read: Tensor
    image: Tensor | None
    size: tuple[int, int]


class LocalMLP(CoordinateNetwork[Modulations]):
    """An MLP of the cells of a feature map around a coordinate, of their offset, and of the size of the query.

    The value at a coordinate is the mean of the predictions from the four nearest cells, weighted by the areas of the
    diagonally opposite rectangles (*local ensemble*, section 3); each prediction takes the features of 3 x 3 cells (*feature
    unfolding*), the offset from the centre of the cell, and the size of the query (*cell decoding*). The map belongs to the
    instance and may have any size; the MLP is shared. Images are in [0, 1]; the network works in [-1, 1].

    Args:
        coord_dim: ``D``: 4 for positions with sizes, 2 for positions only; the command line sets it from the data.
        value_dim: ``C``, channels of a value; set likewise.
        feature_dim: ``E``, channels of the map; those of the encoder.
        hidden_dim: ``O``, width of the hidden layers.
        num_hidden: Number of hidden layers, at least 1.
        features: What is read of the map: ``unfolded`` cells (LIIF), or local ``fourier`` features (LTE).
        unfold: Whether to unfold the map to neighbourhoods of 3 x 3 cells; ignored with ``fourier``.
        use_cell: Whether to decode with the size of the query.
        ensemble: Whether to blend the predictions from the four nearest cells, rather than to take that of the nearest.
        skip: ``bilinear`` adds the bilinear interpolation of the observed image to the output (LTE); ``none`` adds nothing.
        clip_cells: Whether to limit query sizes to those of training, for scales beyond (LTE).
        max_scale: Largest scale in training, for ``clip_cells``; set from the data.

    Raises:
        ValueError: If sizes are missing, out of range or inconsistent.
    """

    from_data: ClassVar[FromData] = {"coord_dim": coord_dim, "value_dim": value_dim, "max_scale": largest_scale}
    recorded: ClassVar[tuple[str, ...]] = ("max_scale",)

    def __init__(
        self,
        coord_dim: int | None = None,
        value_dim: int | None = None,
        feature_dim: int = 64,
        hidden_dim: int = 256,
        num_hidden: int = 4,
        features: Literal["unfolded", "fourier"] = "unfolded",
        unfold: bool = True,
        use_cell: bool = True,
        ensemble: bool = True,
        skip: Literal["none", "bilinear"] = "none",
        clip_cells: bool = False,
        max_scale: float | None = None,
    ) -> None:
        super().__init__()
        if coord_dim is None or value_dim is None:
            raise ValueError(
                "coord_dim and value_dim are missing: the command line sets them from the data module; in Python pass both."
            )
        if coord_dim not in ((4,) if use_cell else (2, 4)):
            raise ValueError(
                f"coord_dim is {coord_dim}; LocalMLP reads maps of images at positions with sizes, coord_dim 4 "
                "(datamodules.domain.CellGrid): use data of SuperResolution, or for positions alone set use_cell to false."
            )
        if min(feature_dim, hidden_dim, num_hidden) < 1 or (features == "fourier" and hidden_dim % 2):
            raise ValueError(
                f"feature_dim is {feature_dim}, hidden_dim {hidden_dim}, num_hidden {num_hidden}: all must be at least 1, and "
                "hidden_dim must be even with fourier features."
            )
        if clip_cells and not use_cell:
            raise ValueError("clip_cells is true and use_cell false: set clip_cells to false, or use_cell to true.")
        if clip_cells and (max_scale is None or max_scale < 1):
            raise ValueError(
                f"clip_cells limits query sizes to those at max_scale, which is {max_scale}: the command line sets it from the "
                "data module; in Python pass the largest scale of training."
            )
        self.coord_dim, self.value_dim = coord_dim, value_dim
        self.feature_dim, self.hidden_dim = feature_dim, hidden_dim
        self.use_cell, self.ensemble, self.skip = use_cell, ensemble, skip == "bilinear"
        self.clip_cells, self.max_scale = clip_cells, max_scale
        self.first: LocalFeatures = (
            UnfoldedFeatures(feature_dim, hidden_dim, unfold, use_cell)
            if features == "unfolded"
            else LocalFourierFeatures(feature_dim, hidden_dim, use_cell)
        )
        self.hidden = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(num_hidden - 1))
        self.last = nn.Linear(hidden_dim, value_dim)
        if self.skip:  # training starts from the interpolation
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)
        self.radius = 1 + (features == "fourier" or unfold)  # the four cells, and the neighbourhoods of 3 x 3
        self.slots = {"map": TensorSpec((feature_dim, -1, -1), partial(torch.zeros, feature_dim, 1, 1))}
        if self.skip:
            self.slots["image"] = TensorSpec((value_dim, -1, -1), partial(torch.zeros, value_dim, 1, 1))

    @property
    def floats_per_coord(self) -> int:
        """Return the floats of the predictions from all cells in all layers."""
        hidden = (len(self.hidden) + 1) * self.hidden_dim
        return (4 if self.ensemble else 1) * (self.first.floats_per_cell + hidden + 8)

    def bind(self, modulations: Modulations) -> Field:
        """Return the field of a map ``(B, E, H, W)``; what does not depend on coordinates is computed once."""
        return partial(self._evaluate, maps=self._maps(modulations))

    def forward(self, coords: Tensor, modulations: Modulations) -> Tensor:
        """Return values ``(B, N, C)`` at coordinates ``(N, D)`` shared by all instances, or ``(B, N, D)``.

        Raises:
            ValueError: If ``coords`` has another ``D``, or another number of instances than the modulations.
        """
        return self._evaluate(coords, self._maps(modulations))

    def _maps(self, modulations: Mapping[str, Tensor]) -> LocalMaps:
        """Return what coordinates read of the modulations."""
        features = modulations["map"]
        image = modulations["image"] if self.skip else None
        if image is not None and image.shape[-2:] != features.shape[-2:]:
            raise ValueError(
                f"The map has {tuple(features.shape[-2:])} cells and the image {tuple(image.shape[-2:])} pixels: they must "
                "agree; use an encoder that keeps the resolution, such as EDSR."
            )
        read = self.first.maps(features).flatten(2).mT.contiguous()
        height, width = features.shape[-2:]
        return LocalMaps(read, None if image is None else image.flatten(2).mT, (height, width))

    def _evaluate(self, coords: Tensor, maps: LocalMaps) -> Tensor:
        """Return the values at coordinates, without gradients in chunks that bound the memory."""
        if coords.shape[-1] != self.coord_dim or (coords.dim() == 3 and len(coords) != len(maps.read)):
            raise ValueError(
                f"coords have the shape {tuple(coords.shape)}; this network takes (N, {self.coord_dim}), or "
                f"({len(maps.read)}, N, {self.coord_dim}) for as many instances as the modulations."
            )
        if (
            torch.is_grad_enabled() or torch.compiler.is_compiling()
        ):  # a program has no bound on the number of coordinates
            return self._values(coords, maps)
        chunk = max(
            1, _MAX_HELD.get(coords.device.type, _MAX_HELD_ELSEWHERE) // (self.floats_per_coord * len(maps.read))
        )
        if coords.shape[-2] <= chunk:
            return self._values(coords, maps)
        return torch.cat([self._values(part, maps) for part in coords.split(chunk, dim=-2)], dim=1)

    def _values(self, coords: Tensor, maps: LocalMaps) -> Tensor:
        """Return the values ``(B, N, C)`` at coordinates."""
        with torch.autocast(coords.device.type, enabled=False):
            coords = exact(coords)
            cells = cells_around(coords[..., :2], maps.size, self.ensemble)  # (..., A, N)
            cell = self._relative_cells(coords, maps.size) if self.use_cell else None
        count = cells.indices.shape[-2]
        index = cells.indices.flatten(-2)  # (..., M) with M = A N
        if cell is not None:
            cell = cell.unsqueeze(-3).expand(*cell.shape[:-2], count, -1, -1).flatten(-3, -2)
        hidden = self.first(_gathered(maps.read, index), cells.offset.flatten(-3, -2), cell)
        for layer in self.hidden:
            hidden = torch.relu(layer(hidden))
        blended = (
            (hidden.unflatten(1, (count, -1)) * cells.weight.unsqueeze(-1).to(hidden)).sum(1) if count > 1 else hidden
        )
        with torch.autocast(coords.device.type, enabled=False):
            last = functional.linear(exact(blended), exact(self.last.weight), exact(self.last.bias))
        values: Tensor = last / 2  # the weights add up to 1, so that blending commutes with the last layer
        if maps.image is None:
            return values + 0.5
        around = cells if self.ensemble else cells_around(coords[..., :2], maps.size)
        image = _gathered(maps.image, around.indices.flatten(-2)).unflatten(1, (4, -1))
        interpolated: Tensor = (image * around.weight.unsqueeze(-1)).sum(1)
        return values + interpolated

    def _relative_cells(self, coords: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the sizes of queries ``(..., N, 2)`` in half cells of the map: 2 / scale."""
        relative = coords[..., 2:] * coords.new_tensor(size)
        return relative.clamp(min=2 / self.max_scale) if self.clip_cells and self.max_scale else relative


def _gathered(rows: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``(B, M, K)`` of ``(B, T, K)`` at indices ``(M,)`` or ``(B, M)``."""
    if index.dim() == 1:
        return rows.index_select(1, index)
    places = index + torch.arange(len(rows), device=rows.device).unsqueeze(-1) * rows.shape[1]
    return rows.flatten(0, 1).index_select(0, places.flatten()).reshape(*index.shape, -1)
