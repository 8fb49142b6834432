"""A coordinate network with a weight per patch of the signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.networks.encodings import CosineFeatures
from composers.networks.network import CoordinateNetwork, PatchSpec
from composers.networks.patch_grid import patch_sizes
from composers.networks.routing import Routes, alike_groups, fixed_shapes, group, route
from composers.networks.scaled_linear import ScaledLinear
from datamodules.domain import exact
from datamodules.spec import FromData, coord_dim, largest_scale, ranges, value_dim

_PAIR_BIAS = 1e-3
_MAX_HELD = 1 << 25  # floats of all instances in one pass without gradients


class PatchModulations(NamedTuple):
    """Modulations of a `PatchwiseMLP`.

    Attributes:
        tokens: ``(B, T, E)``, one token per patch, last axis of the grid fastest.
        expand: From tokens ``(..., E)`` to patterns ``(..., I, R)``, so that a large signal needs those of a few patches at a
            time.
        grid: Number of patches along each axis.
        extent: Number of samples of the signal along each axis, without padding.
        image: The observed image ``(B, C, H, W)``, for a network with a skip connection; else None.
    """

    tokens: Tensor
    expand: Callable[[Tensor], Tensor]
    grid: tuple[int, ...]
    extent: tuple[int, ...]
    image: Tensor | None = None

    def patterns(self, patch: Tensor) -> Tensor:
        """Return the patterns ``(B, G, I, R)`` of patches ``(G,)``."""
        return self.expand(self.tokens.index_select(1, patch))

    def folded(self) -> PatchModulations:
        """Return the same patches as those of a single instance, instance by instance."""
        return self._replace(tokens=self.tokens.flatten(0, 1).unsqueeze(0))


class PatchwiseMLP(CoordinateNetwork[PatchModulations]):
    """An MLP of three layers in coordinates relative to a patch, whose second layer belongs to the patch.

    The signal is divided into patches, and a coordinate is evaluated by the network of its patch: features of the position,
    a shared layer, the modulated layer ``h @ V @ U + b`` with the patterns ``V (I, R)`` of the patch and a shared basis
    ``U (R, O)``, and a shared output layer. All weights but ``V`` are the same for all patches and instances.

    Coordinates are sorted by patch, and the modulated layer is one batched product. Next to a border between patches, the
    values of both are blended, so that the field is continuous.

    The initial weights pass values through: the outputs are a linear function of ``V`` (see `linear_patterns`), and training
    starts from linear coding.

    Coordinates may be positions with sizes (`datamodules.domain.CellGrid`), as in super-resolution. With a patch per pixel of
    an image (``patch_size`` 1, ``overlap`` 0.5), the field is as local as that of `LocalMLP`, and needs more than the one
    cosine of such a patch (``num_frequencies``).

    Args:
        coord_dim: ``D``: number of axes of the signal, or twice as many for positions with sizes; the command line sets it from
            the data.
        value_dim: ``C``, channels of a value; set likewise.
        patch_size: Samples along each axis of a patch; or one number per axis.
        hidden_dim: ``O``, width of the modulated layer, at least twice the channels.
        rank: ``R``, columns of the patterns, at least the channels.
        overlap: Width of the blended zone on each side of a border, as a fraction of a patch, in [0, 0.5]: 0 blends nothing,
            0.5 is the interpolation between the nearest patches (four in an image) as in LIIF. Beyond half a sample from its
            border, a patch continues as its mirror image. Zones of half a sample change no value at a sample; slightly wider
            ones smooth the borders: after training on photographs, 0.1 gives differences across borders of patches of
            8 x 8 pixels that are as large as within them, at the same PSNR.
        output_offset: Added to the output: 0.5 for images in [0, 1], 0 for audio.
        ranges: Lower and upper bound of the coordinates of a signal along each axis; set from the data, [-1, 1] if None.
        num_frequencies: Cosines of the position along each axis, at least the samples of a patch, which is the number if None.
        use_cell: Whether the first layer takes the sizes of positions with sizes, limited to those at ``max_scale``; otherwise
            they are ignored.
        skip: ``bilinear`` adds the bilinear interpolation of the observed image to the output, with ``output_offset`` 0;
            ``none`` adds nothing.
        max_scale: Largest scale in training; set from the data, no limit if None.

    Raises:
        ValueError: If sizes are missing, out of range or inconsistent.
    """

    from_data: ClassVar[FromData] = {
        "coord_dim": coord_dim,
        "value_dim": value_dim,
        "ranges": ranges,
        "max_scale": largest_scale,
    }
    recorded: ClassVar[tuple[str, ...]] = ("max_scale",)

    def __init__(
        self,
        coord_dim: int | None = None,
        value_dim: int | None = None,
        patch_size: int | Sequence[int] = 8,
        hidden_dim: int = 64,
        rank: int = 16,
        overlap: float = 0.1,
        output_offset: float = 0.5,
        ranges: Sequence[Sequence[float]] | None = None,
        num_frequencies: int | None = None,
        use_cell: bool = False,
        skip: Literal["none", "bilinear"] = "none",
        max_scale: float | None = None,
    ) -> None:
        super().__init__()
        if coord_dim is None or value_dim is None:
            raise ValueError(
                "coord_dim and value_dim are missing: the command line sets them from the data module; in Python pass both."
            )
        bounds = ranges or ((-1, 1),) * coord_dim
        self.ranges = tuple((float(low), float(high)) for low, high in bounds)
        if coord_dim not in (len(bounds), 2 * len(bounds)) or any(low >= high for low, high in self.ranges):
            raise ValueError(
                f"ranges is {ranges} and coord_dim {coord_dim}: give a lower and an upper bound for every dimension, or for "
                "every position of positions with sizes."
            )
        sizes = patch_sizes(patch_size, len(bounds))
        if hidden_dim < 2 * value_dim or rank < value_dim:
            raise ValueError(
                f"hidden_dim is {hidden_dim} and rank {rank}; with {value_dim} channels they must be at least {2 * value_dim} "
                f"and {value_dim}."
            )
        if not 0 <= overlap <= 0.5:
            raise ValueError(f"overlap is {overlap}; it must lie in [0, 0.5].")
        self.coord_dim, self.value_dim = coord_dim, value_dim
        self.patch_size = sizes
        self.hidden_dim, self.rank, self.overlap = hidden_dim, rank, overlap
        self.output_offset = output_offset
        if num_frequencies is not None and num_frequencies < max(sizes):
            raise ValueError(
                f"num_frequencies is {num_frequencies} and patch_size {sizes}: give at least as many as a patch has samples "
                "along each axis, or null."
            )
        if use_cell and coord_dim == len(sizes):
            raise ValueError(
                f"use_cell is true, and coord_dim {coord_dim} means positions without sizes: use data of SuperResolution, "
                "pass ranges of the positions only, or set use_cell to false."
            )
        if skip == "bilinear" and (len(sizes) != 2 or output_offset):
            raise ValueError(
                f"skip is bilinear, for images and output_offset 0; there are {len(sizes)} axes and output_offset is "
                f"{output_offset}: set skip to none, or output_offset to 0."
            )
        self.use_cell, self.skip, self.max_scale = use_cell, skip == "bilinear", max_scale
        self.reach = [1 + 2 * min(overlap, 0.5 / size) for size in sizes]  # of local coordinates, in half patches
        self.encoding = CosineFeatures([num_frequencies or size for size in sizes])
        features = self.encoding.width(len(sizes))
        self.input_dim = 2 * features
        self.first = nn.Linear(features, self.input_dim)
        self.basis = nn.Parameter(torch.randn(rank, hidden_dim) / math.sqrt(rank))
        self.bias = nn.Parameter(torch.zeros(hidden_dim))
        self.last = ScaledLinear(hidden_dim, value_dim)
        self._pass_through()
        if use_cell:
            self.cell = nn.Linear(len(sizes), self.input_dim, bias=False)
            nn.init.zeros_(self.cell.weight)  # at the start, values do not depend on sizes
        self.radius = 1 if overlap else 0
        self.slots = {}  # `patches` describes the modulations

    @torch.no_grad()
    def _pass_through(self) -> None:
        """Initialise the weights such that outputs are linear in the patterns.

        Pairs of units with opposite signs represent a number exactly: ``relu(h) - relu(-h) = h``. The first layer holds an
        orthogonal basis of the features in such pairs, and the first ``C`` columns of the patterns reach the outputs in pairs,
        whose small biases cancel: patterns of zero, at which ReLU has no derivative, have a gradient.
        """
        rotation = torch.linalg.qr(torch.randn(self.input_dim // 2, self.input_dim // 2)).Q
        self.first.weight.copy_(torch.cat((rotation, -rotation)))
        nn.init.zeros_(self.first.bias)
        channels, pairs = range(self.value_dim), 2 * self.value_dim
        self.basis[:, :pairs] = 0
        self.basis[: self.value_dim, pairs:] *= 0.3
        output = torch.zeros(self.value_dim, self.hidden_dim)
        for channel in channels:
            pair = slice(2 * channel, 2 * channel + 2)
            self.basis[channel, pair] = output[channel, pair] = torch.tensor([1.0, -1.0])
            self.bias[pair] = _PAIR_BIAS * output[channel, pair]
        self.last.assign(output, torch.full((self.value_dim,), -_PAIR_BIAS))

    @property
    def floats_per_coord(self) -> int:
        """Return the arrays of one coordinate in all layers."""
        return 2 * (self.input_dim + self.rank + 2 * self.hidden_dim)

    @property
    def patches(self) -> PatchSpec:
        """The patches, each with the patterns of the second layer."""
        num_values = self.value_dim * math.prod(self.patch_size)
        return PatchSpec(
            self.patch_size,
            num_values,
            (self.input_dim, self.rank),
            self.output_offset,
            self.linear_patterns,
            self.value_dim if self.skip else 0,
        )

    @torch.no_grad()
    def linear_patterns(self) -> Tensor:
        """Return the patterns ``(P, I, R)`` for each of which the initial network yields 1 at one value of a patch.

        At the samples of a patch, values are those of a patch flattened channel by channel; the other ``P - 1`` are 0.
        ``output_offset`` is not included.
        """
        solution = torch.ones(1, 1, dtype=torch.float64)  # (P / C, F)
        for size, reach, count in zip(self.patch_size, self.reach, self.encoding.num_frequencies, strict=True):
            solution = torch.kron(solution, functional.pad(_interpolation(size, reach), (0, count - size)))
        rotation = self.first.weight[: self.input_dim // 2]
        half = solution.to(rotation) @ rotation.mT
        signed = torch.cat((half, -half), dim=-1)  # (P / C, I)
        patterns = signed.new_zeros(self.value_dim, *signed.shape, self.rank)
        for channel in range(self.value_dim):
            patterns[channel, ..., channel] = signed
        return patterns.flatten(0, 1)

    def forward(self, coords: Tensor, modulations: PatchModulations) -> Tensor:
        """Return values ``(B, N, C)`` at coordinates within ``ranges`` over the extent of the signal, in float32 at least.

        Args:
            coords: ``(N, D)`` shared by all instances, or ``(B, N, D)``. Coordinates beyond the signal belong to the nearest
                patch.
            modulations: Patterns of the patches, and the grid.

        Raises:
            ValueError: If ``coords`` has another ``D``, or another number of instances than the modulations, or these lack the
                image of a skip connection.
        """
        self._check(coords, modulations)
        shape = coords.shape[:-1] if coords.dim() == 3 else (modulations.tokens.shape[0], coords.shape[0])
        with torch.autocast(coords.device.type, enabled=False):
            precision = torch.promote_types(exact(coords).dtype, self.basis.dtype)  # the network may be float64
            patches = [size / patch for size, patch in zip(modulations.extent, self.patch_size, strict=True)]
            flat = self._normalized(coords[..., : len(patches)].to(precision).flatten(0, -2))
            routes = route(flat, modulations.grid, patches, self.overlap)
            if self.use_cell:
                cells = self._relative_sizes(coords[..., len(patches) :].to(precision).flatten(0, -2), patches)
                routes = routes._replace(local=torch.cat((routes.local, cells[routes.coord]), dim=-1))
        if coords.dim() == 3:
            instance = routes.coord // shape[1]
            routes = routes._replace(patch=routes.patch + instance * math.prod(modulations.grid))
            modulations = modulations.folded()
        values = self._gathered(routes, modulations) if fixed_shapes() else self._grouped(routes, modulations)
        if self.overlap:
            blended = values.new_zeros(values.shape[0], flat.shape[0], self.value_dim)
            values = blended.index_add(1, routes.coord, values * routes.weight.unsqueeze(-1).to(values))
        values = values.reshape(*shape, self.value_dim) + self.output_offset
        if self.skip and modulations.image is not None:
            values = values + _bilinear(modulations.image, flat.view(*coords.shape[:-1], -1))
        return values

    def _relative_sizes(self, sizes: Tensor, patches: Sequence[float]) -> Tensor:
        """Return sizes of queries ``(N, D)`` in half patches, at least those of ``max_scale``."""
        low, high = sizes.new_tensor(self.ranges).unbind(-1)
        relative = sizes * (2 / (high - low)) * sizes.new_tensor(patches)
        if self.max_scale is None:
            return relative
        return torch.maximum(relative, 2 / (self.max_scale * sizes.new_tensor(self.patch_size)))

    def _normalized(self, coords: Tensor) -> Tensor:
        """Return coordinates ``(N, D)`` in [-1, 1] over the extent of the signal."""
        if all(bounds == (-1, 1) for bounds in self.ranges):
            return coords
        low, high = coords.new_tensor(self.ranges).unbind(-1)
        return (coords - low) * (2 / (high - low)) - 1

    def _check(self, coords: Tensor, modulations: PatchModulations) -> None:
        """Refuse what does not fit this network."""
        axes = len(self.patch_size)
        if coords.shape[-1] != self.coord_dim or len(modulations.grid) != axes:
            takes = f"{axes} (coord_dim)" if axes == self.coord_dim else f"{self.coord_dim} (coord_dim) and {axes}"
            raise ValueError(
                f"coords have {coords.shape[-1]} dimensions and the grid of patches {len(modulations.grid)}; this network "
                f"takes {takes}."
            )
        if self.skip and modulations.image is None:
            raise ValueError(
                "skip is bilinear, but the modulations hold no image: use parametrization PatchPatterns, or set skip to none."
            )
        if coords.dim() == 3 and len(coords) != len(modulations.tokens):
            raise ValueError(
                f"coords are those of {len(coords)} instances, and the modulations of {len(modulations.tokens)}: pass both of "
                "the same instances, or coords (N, D) shared by all."
            )

    def _grouped(self, routes: Routes, modulations: PatchModulations) -> Tensor:
        """Return the values ``(B, M, C)`` of routes by batched products over groups of one patch each."""
        groups = group(routes.patch, routes.local)
        num_groups, size = groups.local.shape[:2]
        per_group = len(modulations.tokens) * (size * self.floats_per_coord + self.input_dim * self.rank)
        parts = max(1, num_groups if torch.is_grad_enabled() else _MAX_HELD // per_group)
        alike, others = alike_groups(groups.local)
        shared = groups.local[alike[:1]]
        batches = [(groups.local[part], part) for part in others.split(parts) if len(part)]
        batches += [(shared, part) for part in alike.split(parts) if len(part)]
        if not batches:
            return self.basis.new_zeros(len(modulations.tokens), 0, self.value_dim)
        values = [self._values(local, modulations.patterns(groups.patch[part])) for local, part in batches]
        position = torch.cat((others, alike)).argsort()  # of a group in values
        place = position[groups.place // size] * size + groups.place % size
        return torch.cat(values, dim=1).flatten(1, 2).index_select(1, place)

    def _gathered(self, routes: Routes, modulations: PatchModulations) -> Tensor:
        """Return the values ``(B, M, C)`` of routes, each with the patterns of its patch; for programs of fixed shapes."""
        return self._values(routes.local.unsqueeze(1), modulations.patterns(routes.patch)).squeeze(2)

    def _values(self, local: Tensor, patterns: Tensor) -> Tensor:
        """Return the values ``(B, G, n, C)`` at local coordinates ``(G or 1, n, D)``, given patterns ``(B, G, I, R)``.

        Behind the positions, local coordinates hold the relative sizes if the network takes them.
        """
        instances, num_groups, width, rank = patterns.shape
        positions = local[..., : len(self.patch_size)]
        hidden = _linear(self.encoding(positions / local.new_tensor(self.reach)), self.first.weight, self.first.bias)
        if self.use_cell:
            hidden = hidden + self.cell(local[..., len(self.patch_size) :].to(self.cell.weight.dtype)).to(hidden.dtype)
        hidden = torch.relu(hidden)
        hidden = hidden.expand(num_groups, -1, -1)  # (G, n, I)
        columns = patterns.permute(1, 2, 0, 3).reshape(num_groups, width, instances * rank)
        hidden = torch.bmm(hidden, columns.to(hidden.dtype)).unflatten(-1, (instances, rank))  # (G, n, B, R)
        hidden = torch.relu(_linear(hidden, self.basis.mT, self.bias))
        with torch.autocast(local.device.type, enabled=False):
            values: Tensor = self.last(exact(hidden))
            return values.movedim(2, 0)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``inputs @ weight.T + bias`` in the precision of the inputs, or of autocast."""
    return functional.linear(inputs, weight.to(inputs.dtype), bias.to(inputs.dtype))


def _bilinear(image: Tensor, positions: Tensor) -> Tensor:
    """Return the bilinear interpolation ``(B, N, C)`` of an image ``(B, C, H, W)`` at positions ``(N, 2)`` or ``(B, N, 2)``."""
    places = positions.flip(-1).expand(len(image), -1, -1).unsqueeze(1)
    with torch.autocast(image.device.type, enabled=False):
        sampled = functional.grid_sample(
            image.to(places.dtype), places, mode="bilinear", padding_mode="border", align_corners=False
        )
    return sampled[:, :, 0].mT


def _interpolation(size: int, reach: float) -> Tensor:
    """Return the weights of features along an axis ``(size, F)`` for values of 1 at one sample, 0 at the others."""
    local = ((torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1) / reach
    features = CosineFeatures([size]).features(local.unsqueeze(-1))
    solution: Tensor = torch.linalg.inv(features)
    return solution.mT
