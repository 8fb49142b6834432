"""Volume rendering: integrate the colour and density of a field along rays (NeRF section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from composers.networks import Field
from composers.rendering.occupancy import Occupancy, OccupancyGrid, evaluate_where
from composers.rendering.rays import RayRenderer
from composers.rendering.renderer import Reconstruction, Rendered
from datamodules.domain import Rays, Volume, exact
from datamodules.spec import DataSpec, FromData

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_FIRST_SAMPLES = 8  # samples of a ray that are evaluated before the transmittance is first checked
_MIN_SPARSE_POINTS = 4096  # points for which sparse gradients pay
_PROBED_RAYS = 16  # a ray of this many is evaluated to estimate the share of samples with density
_MAX_DENSE_SHARE = 0.6  # of samples with density, above which a second evaluation costs more than it saves


def _near(spec: DataSpec) -> float | None:
    """Return the near depth of ray data; None for other data."""
    return spec.domain.near if isinstance(spec.domain, Rays) else None


def _far(spec: DataSpec) -> float | None:
    """Return the far depth of ray data; None for other data."""
    return spec.domain.far if isinstance(spec.domain, Rays) else None


class VolumeRenderer(RayRenderer):
    """Volume rendering (Mildenhall et al. 2020, NeRF, sections 4 and 5.2; paper section 4.3, novel view synthesis).

    The field maps a point ``(x, y, z)`` to red, green and blue before a sigmoid, and to density before the ``density``
    activation. Every ray is sampled at equally spaced depths from ``near`` to ``far``, both included; depths are in units of
    the ray direction.

    Reference: as in the released code, a step length is the difference of two depths, whatever the length of the direction;
    the step after the last sample is 0.001; and the field does not depend on the view direction.

    In training, the data module appends a random number in [0, 1), the draw, to every ray. Sample ``k`` of the ray is moved
    deeper by the step times the fractional part of ``draw + k * golden ratio``; the renderer itself draws no random numbers,
    so renderings are reproducible. Without a draw, samples are not moved.

    With ``relu``, a sample without density has no gradient. Where few samples have density, training evaluates all samples
    without gradients, and those with density again with gradients. Values and gradients are the same up to rounding.

    Args:
        near: Depth of the first sample, at least 0; set from the data module on the command line.
        far: Depth of the last sample, larger than ``near``; set from the data module on the command line.
        samples_per_ray: Number of equally spaced samples per ray, at least 2.
        importance_samples: Number of additional samples per ray, placed where the weights of the first samples are large. 0
            disables importance sampling.
        stratified: Whether the draw of a ray moves its samples.
        density: Activation of the density, the fourth channel of the field: ``relu`` as published, or ``softplus``, whose
            gradient is positive everywhere.
        density_scale: Factor of the density. With objects of a radius near 1, a factor near 10 makes outputs near 1 opaque, so
            that training need not learn large weights first.
        density_shift: Added to the output before the activation; a negative number makes space empty before training.
        background: Brightness of the background behind ``far``; 1 is white.
        chunk_size: Maximum number of points (rays times samples times instances) per evaluation when gradients are disabled,
            to limit memory.
        radius: Radius in world units of the sphere around the origin that holds everything visible. The samples of a ray are
            then spaced from where it enters the sphere to where it leaves it, within ``near`` and ``far``, and a ray that
            misses the sphere is background. None samples all rays from ``near`` to ``far``, as published.
        occupancy: How samples in empty space are skipped when gradients are disabled; they are evaluated if None.
        sparse_gradients: Whether training may evaluate samples without density without gradients.

    Raises:
        ValueError: If an argument is out of range.
    """

    from_data: ClassVar[FromData] = {"near": _near, "far": _far}

    def __init__(
        self,
        near: float | None = None,
        far: float | None = None,
        samples_per_ray: int = 128,
        importance_samples: int = 0,
        stratified: bool = True,
        density: Literal["relu", "softplus"] = "relu",
        background: float = 1.0,
        chunk_size: int = 131072,
        radius: float | None = None,
        occupancy: Occupancy | None = None,
        sparse_gradients: bool = True,
        density_scale: float = 1.0,
        density_shift: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= (near or 0.0) < (math.nextafter(math.inf, 0) if far is None else far) < math.inf:
            raise ValueError(f"near is {near} and far {far}; near must be at least 0, and far larger and finite.")
        if samples_per_ray < 2 or importance_samples < 0:
            raise ValueError(
                f"samples_per_ray is {samples_per_ray} and importance_samples {importance_samples}; they must be at least 2 "
                "and at least 0."
            )
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1.")
        if radius is not None and not 0 < radius < math.inf:
            raise ValueError(f"radius is {radius}; it must be a positive length in world units, or null for no sphere.")
        if not (0 < density_scale < math.inf and math.isfinite(density_shift)):
            raise ValueError(
                f"density_scale is {density_scale} and density_shift {density_shift}; the scale must be positive, both finite."
            )
        self.near = near
        self.far = far
        self.samples_per_ray = samples_per_ray
        self.importance_samples = importance_samples
        self.stratified = stratified
        self.activation = functional.relu if density == "relu" else functional.softplus
        self.density_scale = density_scale
        self.density_shift = density_shift
        self.background = background
        self.chunk_size = chunk_size
        self.radius = radius
        self.occupancy = occupancy
        self.sparse_gradients = sparse_gradients and density == "relu"

    def density(self, raw: Tensor) -> Tensor:
        """Return the density of outputs of the field, per unit of depth."""
        return self.density_scale * self.activation(raw + self.density_shift)

    @property
    def points_per_coord(self) -> int:
        """Return the number of samples per ray."""
        return self.samples_per_ray + self.importance_samples

    @property
    def depth_range(self) -> tuple[float, float] | None:
        """Return ``near`` and ``far``, or None if one of them is not set."""
        return None if self.near is None or self.far is None else (self.near, self.far)

    def field_spec(self, spec: DataSpec) -> DataSpec:
        """Return the spec of a field from points in space to colour and density.

        Raises:
            ValueError: If the data does not consist of colours along rays.
        """
        self._check_spec(spec)
        return spec._replace(domain=Volume(), value_dim=4)

    def rendered(self, field: Field, coords: Tensor) -> Rendered:
        """Return colours, expected depths and opacities of rays, in float32.

        The background lies behind the last sample, at depth ``far``.

        Args:
            field: Field from points ``(N, 3)`` or ``(B, N, 3)`` to ``(B, N, 4)``.
            coords: Ray origins and directions, ``(N, 6)`` or ``(B, N, 6)``; with a draw, ``(..., 7)``.

        Raises:
            ValueError: If ``coords`` are not rays, or ``near`` or ``far`` is not set.
        """
        return self._rendered(field, coords, self._grid(field))

    def reconstruct(self, field: Field, coords: Tensor, source: Mapping[str, Any] | None = None) -> Reconstruction:
        """Return the reconstruction of a field at ``coords``; its empty space is determined once for all rays."""
        grid = self._grid(field)
        return self._reconstruction(field, self._rendered(field, coords, grid), grid, source)

    def reconstruction(
        self, field: Field, rendered: Rendered, source: Mapping[str, Any] | None = None
    ) -> Reconstruction:
        """Return the reconstruction of a field of which ``rendered`` is known; its empty space is found once for all rays."""
        return self._reconstruction(field, rendered, self._grid(field), source)

    def _reconstruction(
        self, field: Field, rendered: Rendered, grid: OccupancyGrid | None, source: Mapping[str, Any] | None
    ) -> Reconstruction:
        """Return the reconstruction of a field with its grid."""

        def render(others: Tensor) -> Rendered:
            return self._rendered(field, others, grid)

        return Reconstruction(field, rendered.raw, rendered.values, render, source or {})

    def _grid(self, field: Field) -> OccupancyGrid | None:
        """Return the grid of a field, not yet evaluated; None if samples in empty space are evaluated."""
        if self.occupancy is None:
            return None
        near, far = self._range()
        radius = (far - near) / 2 if self.radius is None else self.radius
        bounded = self.radius is not None
        limit = self.occupancy.max_density(far - near)
        return OccupancyGrid(field, self.density, self.occupancy.cells, radius, limit, bounded)

    def _rendered(self, field: Field, coords: Tensor, grid: OccupancyGrid | None) -> Rendered:
        """Render rays, in chunks where gradients are disabled."""
        self._check(coords)
        rays = exact(coords)
        if torch.is_grad_enabled():
            return self._render(field, rays)
        instances = rays.shape[0] if rays.dim() == 3 else 1
        if grid is not None:
            grid.update(rays, self.chunk_size // instances)
        points = instances * self.points_per_coord
        chunks = rays.split(max(1, self.chunk_size // points), dim=-2)
        return _concatenate((self._render(field, chunk, grid) for chunk in chunks), rays.shape[-2])

    def _render(self, field: Field, rays: Tensor, grid: OccupancyGrid | None = None) -> Rendered:
        """Render rays without splitting them into chunks."""
        near, far = self._range()
        draws = rays[..., 6:] if self.stratified and rays.shape[-1] == 7 else None
        depths, hits = self._depths(near, far, rays, draws)
        outputs = self._evaluate(field, rays, depths, hits, grid)
        if self.importance_samples:
            with torch.no_grad():
                added = self._importance_depths(depths, outputs, draws)
            more = self._evaluate(field, rays, added, hits, grid)
            depths, order = torch.cat((depths.expand(*added.shape[:-1], -1), added), dim=-1).sort(dim=-1)
            outputs = torch.cat((outputs, more), dim=-2).take_along_dim(order.unsqueeze(-1), dim=-2)
        return self._composite(outputs, depths, far)

    def _range(self) -> tuple[float, float]:
        """Return ``near`` and ``far``; raise an error if one of them is not set."""
        if self.depth_range is None:
            raise ValueError(
                f"near is {self.near} and far {self.far}: the command line sets them from the data, in Python pass "
                "VolumeRenderer(near=..., far=...)."
            )
        return self.depth_range

    def _depths(self, near: float, far: float, rays: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return depths and the rays that hit the sphere.

        Returns:
            Equally spaced depths ``(S,)``, with draws ``(..., N, S)`` moved deeper by less than a step; and None. With a
            sphere, depths ``(..., N, S)``, and ``(..., N)``.
        """
        hits = None
        if self.radius is None:
            depths = torch.linspace(near, far, self.samples_per_ray, device=rays.device, dtype=rays.dtype)
            step: float | Tensor = (far - near) / (self.samples_per_ray - 1)
        else:
            first, last = sphere_depths(rays, self.radius, near, far)
            hits = first < last
            first, last = torch.where(hits, first, near).unsqueeze(-1), torch.where(hits, last, far).unsqueeze(-1)
            shares = torch.linspace(0, 1, self.samples_per_ray, device=rays.device, dtype=rays.dtype)
            depths = torch.lerp(first, last, shares)
            step = (last - first) / (self.samples_per_ray - 1)
        if draws is not None:
            depths = depths + _stratified_offsets(draws, 0, self.samples_per_ray) * step
        return depths, hits

    def _importance_depths(self, depths: Tensor, outputs: Tensor, draws: Tensor | None) -> Tensor:
        """Return ``importance_samples`` further depths ``(B, N, I)``, more of them where weights are larger."""
        count = self.importance_samples
        weights = self._weights(outputs[..., 3], depths)
        offsets = torch.full((count,), 0.5, device=depths.device)
        if draws is not None:
            offsets = _stratified_offsets(draws, self.samples_per_ray, count)
        quantiles = (torch.arange(count, device=depths.device) + offsets) / count
        return inverse_cdf(depths.expand_as(weights), weights, quantiles)

    def _evaluate(
        self, field: Field, rays: Tensor, depths: Tensor, hits: Tensor | None, grid: OccupancyGrid | None
    ) -> Tensor:
        """Return the outputs of the field ``(B, N, S, 4)`` at depths along rays, in float32.

        Where samples are skipped, the density before its activation is minus infinity.
        """
        origins, directions = rays[..., None, :3], rays[..., None, 3:6]
        points = origins + directions * depths.unsqueeze(-1)  # (N, S, 3) or (B, N, S, 3)
        where = None if hits is None else hits.unsqueeze(-1).expand(points.shape[:-1])
        if grid is not None:
            occupied = grid.occupied(points)
            return self._evaluate_visible(field, points, depths, occupied if where is None else occupied & where)
        if self.sparse_gradients and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._evaluate_dense(field, points, depths, where)
        return _evaluated(field, points, where)

    def _evaluate_visible(self, field: Field, points: Tensor, depths: Tensor, where: Tensor) -> Tensor:
        """Return the outputs at samples ``where (B, N, S)`` that are not behind opaque ones, from front to back."""
        assert self.occupancy is not None
        outputs = points.new_zeros(*where.shape, 4)
        outputs[..., 3] = -torch.inf
        rank, steps = where.cumsum(-1, dtype=torch.int32), self._steps(depths)
        first, last = 0, _FIRST_SAMPLES if self.occupancy.min_transmittance else where.shape[-1]
        most = int(rank[..., -1].max())
        while first < most:
            part = where & (rank > first) & (rank <= last)
            if first:
                thickness = (self.density(outputs[..., 3]) * steps).sum(-1, keepdim=True)
                part &= thickness < self.occupancy.max_thickness
            if bool(part.any()):
                outputs = evaluate_where(field, points, part, outputs)
            first, last = last, 2 * last + _FIRST_SAMPLES
        return outputs

    def _evaluate_dense(self, field: Field, points: Tensor, depths: Tensor, where: Tensor | None) -> Tensor:
        """Return outputs whose gradients are those of all samples, where few samples have density by fewer evaluations.

        Gradients of any order are 0 for samples where the ReLU of the density is 0, and for samples that no light reaches.
        """
        count = points.shape[:-1].numel()
        if count < _MIN_SPARSE_POINTS:
            return _evaluated(field, points, where)
        with torch.no_grad():
            some = slice(None, None, _PROBED_RAYS)
            probe = _evaluated(field, points[..., some, :, :], None if where is None else where[..., some, :])
            if float((self.density(probe[..., 3]) > 0).float().mean()) > _MAX_DENSE_SHARE:
                return self._with_gradients(field, points, where)
            outputs = _in_parts(field, points, where, self.chunk_size)
            dense = self.density(outputs[..., 3]) > 0
            if not self.importance_samples:
                thickness = (self.density(outputs[..., 3]) * self._steps(depths)).cumsum(-1)
                dense[..., 1:] &= thickness[..., :-1] < -math.log(torch.finfo(outputs.dtype).eps)
            share = dense.flatten(1).float().mean(-1).max() if points.dim() == 4 else dense.any(0).float().mean()
            if float(share) > _MAX_DENSE_SHARE:
                return self._with_gradients(field, points, where)
        return evaluate_where(field, points, dense, outputs)

    @staticmethod
    @torch.enable_grad()
    def _with_gradients(field: Field, points: Tensor, where: Tensor | None) -> Tensor:
        """Evaluate all samples with gradients."""
        return _evaluated(field, points, where)

    @staticmethod
    def _steps(depths: Tensor) -> Tensor:
        """Return the lengths of the steps after samples."""
        return torch.cat((depths.diff(dim=-1), torch.full_like(depths[..., :1], 1e-3)), dim=-1)

    def _weights(self, raw: Tensor, depths: Tensor) -> Tensor:
        """Return the weight of each sample ``(B, N, S)``: its opacity times the transmittance up to it."""
        alpha = 1 - torch.exp(-self.density(raw) * self._steps(depths))
        transmitted = (1 - alpha + 1e-10).clamp(max=1)
        shifted = torch.cat((torch.ones_like(transmitted[..., :1]), transmitted[..., :-1]), dim=-1)
        return alpha * shifted.cumprod(dim=-1)

    def _composite(self, outputs: Tensor, depths: Tensor, far: float) -> Rendered:
        """Composite the outputs of a field ``(B, N, S, 4)`` at ``depths`` along rays."""
        with torch.autocast(outputs.device.type, enabled=False):
            weights = self._weights(outputs[..., 3], depths)
            opacity = weights.sum(dim=-1)
            transmittance = 1 - opacity
            colours = (weights.unsqueeze(-1) * outputs[..., :3].sigmoid()).sum(dim=-2)
            depth = (weights * depths).sum(dim=-1) + transmittance * far
            return Rendered(colours + transmittance.unsqueeze(-1) * self.background, depth, opacity)


def _evaluated(field: Field, points: Tensor, where: Tensor | None) -> Tensor:
    """Return the outputs of a field ``(B, N, S, 4)`` at points ``(N, S, 3)`` or ``(B, N, S, 3)``, all or those ``where``."""
    if where is not None:
        return evaluate_where(field, points, where)
    return exact(field(points.flatten(-3, -2)).unflatten(-2, points.shape[-3:-1]))


def _in_parts(field: Field, points: Tensor, where: Tensor | None, chunk_size: int) -> Tensor:
    """Return the outputs of `_evaluated`, with at most ``chunk_size`` points at a time."""
    rays = max(1, chunk_size * points.shape[-3] // points.shape[:-1].numel())
    parts = points.split(rays, dim=-3)
    masks = [None] * len(parts) if where is None else where.split(rays, dim=-2)
    return torch.cat([_evaluated(field, *part) for part in zip(parts, masks, strict=True)], dim=1)


def _concatenate(chunks: Iterable[Rendered], num_rays: int) -> Rendered:
    """Concatenate chunks to ``num_rays`` rays, writing each one to preallocated tensors as soon as it is rendered.

    Keeping small results between large allocations would fragment the memory, more with every view.
    """
    outputs: list[Tensor] = []
    start = 0
    for chunk in chunks:
        tensors = [tensor for tensor in chunk if tensor is not None]
        outputs = outputs or [tensor.new_empty(len(tensor), num_rays, *tensor.shape[2:]) for tensor in tensors]
        stop = start + chunk.values.shape[1]
        for output, tensor in zip(outputs, tensors, strict=True):
            output[:, start:stop] = tensor
        start = stop
    return Rendered(*outputs)


def sphere_depths(rays: Tensor, radius: float, near: float, far: float) -> tuple[Tensor, Tensor]:
    """Return the depths at which rays enter and leave a sphere around the origin, within ``near`` and ``far``.

    Args:
        rays: Origins and directions, ``(..., 6)``; more numbers are ignored.
        radius: In world units.
        near: Smallest depth.
        far: Largest depth.

    Returns:
        Two tensors ``(...)``; the second is not larger than the first if the ray misses the sphere.

    Example:
        >>> [float(depth) for depth in sphere_depths(torch.tensor([0.0, 0, 4, 0, 0, -2]), 1.0, 0.0, 6.0)]
        [1.5, 2.5]
    """
    origins, directions = rays[..., :3], rays[..., 3:6]
    squared = directions.square().sum(-1)
    middle = -(origins * directions).sum(-1) / squared  # the depth nearest to the centre
    nearest = origins + middle.unsqueeze(-1) * directions
    half = ((radius**2 - nearest.square().sum(-1)).clamp(min=0) / squared).sqrt()
    return (middle - half).clamp(near, far), (middle + half).clamp(near, far)


def inverse_cdf(depths: Tensor, weights: Tensor, quantiles: Tensor) -> Tensor:
    """Return the depths at quantiles of the weight distribution along rays (NeRF section 5.2).

    Each weight is distributed uniformly between the midpoints to the neighbouring depths; if all weights of a ray are 0, every
    sample has the same weight.

    Args:
        depths: Ascending depths ``(..., S)``.
        weights: Weights of the samples ``(..., S)``, at least 0.
        quantiles: ``(M,)`` or ``(..., M)`` in [0, 1).

    Returns:
        Depths ``(..., M)``, between the first and the last depth.
    """
    midpoints = (depths[..., 1:] + depths[..., :-1]) / 2
    edges = torch.cat((depths[..., :1], midpoints, depths[..., -1:]), dim=-1)
    positive = weights + 1e-5  # every sample keeps a positive probability
    cdf = functional.pad((positive / positive.sum(dim=-1, keepdim=True)).cumsum(dim=-1), (1, 0))
    quantiles = quantiles.expand(*weights.shape[:-1], -1).contiguous()
    upper = torch.searchsorted(cdf, quantiles, right=True).clamp(1, weights.shape[-1])
    low, high = cdf.gather(-1, upper - 1), cdf.gather(-1, upper)
    start, stop = edges.gather(-1, upper - 1), edges.gather(-1, upper)
    return start + (stop - start) * ((quantiles - low) / (high - low)).clamp(0, 1)


def _stratified_offsets(draws: Tensor, first: int, count: int) -> Tensor:
    """Return offsets in [0, 1) of samples ``(..., N, count)``, numbered from ``first``, from draws ``(..., N, 1)``."""
    return (draws + torch.arange(first, first + count, device=draws.device) * _GOLDEN_RATIO) % 1
