"""A coordinate network with a weight per patch of the signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from composers.networks.encodings import CosineFeatures
from composers.networks.network import CoordinateNetwork, TensorSpec
from composers.networks.routing import Routes, group, route
from composers.networks.scaled_linear import ScaledLinear
from datamodules.domain import exact
from datamodules.spec import FromData, coord_dim, value_dim

_MAX_HELD = 1 << 25  # floats of all instances in one pass without gradients


class PatchModulations(NamedTuple):
    """Modulations of a `PatchwiseMLP`.

    Attributes:
        patterns: From indices of patches ``(G,)`` to their patterns ``(B, G, I, R)``, so that a large signal needs those of a
            few patches at a time.
        num_instances: ``B``.
        grid: Number of patches along each axis.
        extent: Number of samples of the signal along each axis, without padding.
    """

    patterns: Callable[[Tensor], Tensor]
    num_instances: int
    grid: tuple[int, ...]
    extent: tuple[int, ...]


class PatchwiseMLP(CoordinateNetwork[PatchModulations]):
    """An MLP of three layers in coordinates relative to a patch, whose second layer belongs to the patch.

    The signal is divided into patches, and a coordinate is evaluated by the network of its patch: features of the position,
    a shared layer, the modulated layer ``h @ V @ U + b`` with the patterns ``V (I, R)`` of the patch and a shared basis
    ``U (R, O)``, and a shared output layer. All weights but ``V`` are the same for all patches and instances.

    Where all instances share coordinates, these are sorted by patch, and the modulated layer is one batched product. Next to
    a border between patches, the values of both are blended, so that the field is continuous.

    The initial weights pass values through: the outputs are a linear function of ``V`` (see `linear_patterns`), and training
    starts from linear coding.

    Args:
        coord_dim: ``D``, number of axes of the signal; the command line sets it from the data.
        value_dim: ``C``, channels of a value; set likewise.
        patch_size: Samples along each axis of a patch; or one number per axis.
        hidden_dim: ``O``, width of the modulated layer, at least twice the channels.
        rank: ``R``, columns of the patterns, at least the channels.
        overlap: Width of the blended zone on each side of a border, as a fraction of a patch, in [0, 0.5]: 0 blends nothing,
            0.5 is the interpolation between the nearest patches (four in an image) as in LIIF.
        margin: Additional frequencies of the features along each axis, which represent details between samples.
        output_offset: Added to the output: 0.5 for images in [0, 1], 0 for audio.

    Raises:
        ValueError: If sizes are missing, out of range or inconsistent.
    """

    from_data: ClassVar[FromData] = {"coord_dim": coord_dim, "value_dim": value_dim}
    patch_size: tuple[int, ...]

    def __init__(
        self,
        coord_dim: int | None = None,
        value_dim: int | None = None,
        patch_size: int | Sequence[int] = 8,
        hidden_dim: int = 64,
        rank: int = 16,
        overlap: float = 0.0625,
        margin: int = 0,
        output_offset: float = 0.5,
    ) -> None:
        super().__init__()
        if coord_dim is None or value_dim is None:
            raise ValueError(
                "coord_dim and value_dim are missing: the command line sets them from the data module; in Python pass both."
            )
        sizes = (patch_size,) * coord_dim if isinstance(patch_size, int) else tuple(patch_size)
        if len(sizes) != coord_dim or min(sizes) < 1:
            raise ValueError(
                f"patch_size is {patch_size} and the signal has {coord_dim} axes: give one number of at least 1, or one per axis."
            )
        if hidden_dim < 2 * value_dim or rank < value_dim:
            raise ValueError(
                f"hidden_dim is {hidden_dim} and rank {rank}; with {value_dim} channels they must be at least {2 * value_dim} "
                f"and {value_dim}."
            )
        if not 0 <= overlap <= 0.5 or margin < 0:
            raise ValueError(f"overlap is {overlap} and margin {margin}; they must lie in [0, 0.5] and be at least 0.")
        self.coord_dim, self.value_dim = coord_dim, value_dim
        self.patch_size = sizes
        self.hidden_dim, self.rank, self.overlap = hidden_dim, rank, overlap
        self.output_offset = output_offset
        self.reach = 1 + 2 * overlap  # of local coordinates, in half patches
        self.encoding = CosineFeatures([size + margin for size in sizes])
        features = self.encoding.width(coord_dim)
        self.input_dim = 2 * features
        self.first = nn.Linear(features, self.input_dim)
        self.basis = nn.Parameter(torch.randn(rank, hidden_dim) / math.sqrt(rank))
        self.bias = nn.Parameter(torch.zeros(hidden_dim))
        self.last = ScaledLinear(hidden_dim, value_dim)
        self._pass_through()
        shape = (-1, self.input_dim, rank)
        self.slots = {"patterns": TensorSpec(shape, partial(torch.zeros, 1, *shape[1:]))}

    @torch.no_grad()
    def _pass_through(self) -> None:
        """Initialise the weights such that outputs are linear in the patterns.

        Pairs of units with opposite signs represent a number exactly: ``relu(h) - relu(-h) = h``. The first layer holds an
        orthogonal basis of the features in such pairs, and the first ``C`` columns of the patterns reach the outputs in pairs.
        """
        rotation = torch.linalg.qr(torch.randn(self.input_dim // 2, self.input_dim // 2)).Q
        self.first.weight.copy_(torch.cat((rotation, -rotation)))
        nn.init.zeros_(self.first.bias)
        channels, pairs = range(self.value_dim), 2 * self.value_dim
        self.basis[:, :pairs] = 0
        self.basis[: self.value_dim, pairs:] *= 0.3
        output = torch.zeros(self.value_dim, self.hidden_dim)
        for channel in channels:
            self.basis[channel, 2 * channel : 2 * channel + 2] = torch.tensor([1.0, -1.0])
            output[channel, 2 * channel : 2 * channel + 2] = torch.tensor([1.0, -1.0])
        self.last.assign(output)

    @property
    def floats_per_coord(self) -> int:
        """Return the arrays of one coordinate in all layers."""
        return 2 * (self.input_dim + self.rank + 2 * self.hidden_dim)

    @property
    def values_per_patch(self) -> int:
        """Return ``P``, the values of a patch in all channels."""
        return self.value_dim * math.prod(self.patch_size)

    def grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the number of patches along each axis of a signal with ``shape`` samples; the last may be incomplete."""
        return tuple(math.ceil(size / patch) for size, patch in zip(shape, self.patch_size, strict=True))

    @torch.no_grad()
    def linear_patterns(self) -> Tensor:
        """Return the patterns ``(P, I, R)`` for each of which the initial network yields 1 at one value of a patch.

        At the samples of a patch, values are those of a patch flattened channel by channel; the other ``P - 1`` are 0. Of all
        solutions, the smoothest between samples is taken. ``output_offset`` is not included.
        """
        centres = [(torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1 for size in self.patch_size]
        local = torch.stack(torch.meshgrid(centres, indexing="ij"), dim=-1).flatten(0, -2) / self.reach
        features = self.encoding.features(local)  # (P / C, F)
        roughness = 1 + 0.1 * self.encoding.squared_frequencies().double()
        smooth = features / roughness  # minimise the roughness of the solution
        gram = smooth @ features.mT
        solution = smooth.mT @ torch.linalg.solve(gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(gram)).double(), torch.eye(len(gram)).double())
        rotation = self.first.weight[: self.input_dim // 2].double()
        half = rotation @ solution  # (F, P / C)
        signed = torch.cat((half, -half)).mT.float()  # (P / C, I)
        patterns = signed.new_zeros(self.value_dim, *signed.shape, self.rank)
        for channel in range(self.value_dim):
            patterns[channel, ..., channel] = signed
        return patterns.flatten(0, 1)

    def forward(self, coords: Tensor, modulations: PatchModulations) -> Tensor:
        """Return values ``(B, N, C)`` at coordinates in [-1, 1] over the extent of the signal.

        Args:
            coords: ``(N, D)`` shared by all instances, or ``(B, N, D)``.
            modulations: Patterns of the patches, and the grid.

        Raises:
            ValueError: If ``coords`` has another ``D``.
        """
        if coords.shape[-1] != self.coord_dim or len(modulations.grid) != self.coord_dim:
            raise ValueError(
                f"coords have {coords.shape[-1]} dimensions and the grid of patches {len(modulations.grid)}; this network takes "
                f"{self.coord_dim} (coord_dim)."
            )
        if coords.dim() == 3:
            fields = [self._of_instance(modulations, index) for index in range(len(coords))]
            return torch.cat([self.forward(own, field) for own, field in zip(coords, fields, strict=True)])
        patches = [size / patch for size, patch in zip(modulations.extent, self.patch_size, strict=True)]
        with torch.autocast(coords.device.type, enabled=False):
            routes = route(exact(coords), modulations.grid, patches, self.overlap)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            values = self._gathered(routes, modulations)
        else:
            values = self._grouped(routes, modulations)
        if not self.overlap:
            return values + self.output_offset
        blended = values.new_zeros(len(values), len(coords), self.value_dim)
        return blended.index_add(1, routes.coord, values * routes.weight[:, None].to(values)) + self.output_offset

    @staticmethod
    def _of_instance(modulations: PatchModulations, index: int) -> PatchModulations:
        """Return the modulations of one instance."""
        return modulations._replace(
            patterns=lambda patch: modulations.patterns(patch)[index : index + 1], num_instances=1
        )

    def _grouped(self, routes: Routes, modulations: PatchModulations) -> Tensor:
        """Return the values ``(B, M, C)`` of routes by batched products over groups of one patch each."""
        groups = group(routes.patch, routes.local)
        num_groups, size = groups.local.shape[:2]
        per_group = modulations.num_instances * (size * self.floats_per_coord + self.input_dim * self.rank)
        parts = num_groups if torch.is_grad_enabled() else max(1, _MAX_HELD // per_group)
        values = torch.cat(
            [
                self._values(local, modulations.patterns(patch))
                for patch, local in zip(groups.patch.split(parts), groups.local.split(parts), strict=True)
            ],
            dim=1,
        )
        return values.flatten(1, 2).index_select(1, groups.place)

    def _gathered(self, routes: Routes, modulations: PatchModulations) -> Tensor:
        """Return the values ``(B, M, C)`` of routes, each with the patterns of its patch; for programs of fixed operations."""
        return self._values(routes.local.unsqueeze(1), modulations.patterns(routes.patch)).squeeze(2)

    def _values(self, local: Tensor, patterns: Tensor) -> Tensor:
        """Return the values ``(B, G, n, C)`` at local coordinates ``(G, n, D)``, given patterns ``(B, G, I, R)``."""
        instances, num_groups, width, rank = patterns.shape
        hidden = torch.relu(self.first(self.encoding(local / self.reach)))  # (G, n, I)
        columns = patterns.permute(1, 2, 0, 3).reshape(num_groups, width, instances * rank)
        hidden = torch.bmm(hidden, columns.to(hidden.dtype)).unflatten(-1, (instances, rank))  # (G, n, B, R)
        hidden = torch.relu(nn.functional.linear(hidden, self.basis.mT, self.bias))
        with torch.autocast(local.device.type, enabled=False):
            return self.last(exact(hidden)).movedim(2, 0)
