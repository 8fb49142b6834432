"""Colours of rays from a field of colour and density, by the integral along each ray (NeRF section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from composers.networks import Field
from composers.rendering.rays import RayRenderer
from composers.rendering.renderer import Rendered
from datamodules.domain import Rays, Volume, exact
from datamodules.spec import DataSpec, FromData

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def _near(spec: DataSpec) -> float | None:
    """Return the depth at which data along rays begins."""
    return spec.domain.near if isinstance(spec.domain, Rays) else None


def _far(spec: DataSpec) -> float | None:
    """Return the depth at which data along rays ends."""
    return spec.domain.far if isinstance(spec.domain, Rays) else None


class VolumeRenderer(RayRenderer):
    """Volume rendering (Mildenhall et al. 2020, NeRF, sections 4 and 5.2; paper section 4.3, novel view synthesis).

    A field maps a point ``(x, y, z)`` to red, green and blue before a sigmoid, and to density before a ReLU. A ray is looked
    at in equal steps of depth from ``near`` to ``far``, both included; depths are in units of its direction.

    Reference: as in the released code, a step is as long as its difference of depths, whatever the length of the direction;
    the step after the last sample is 0.001; and directions of view are not given to the field.

    In training, data gives every ray one more number, a draw in [0, 1). Sample ``k`` of that ray then lies deeper by the
    fractional part of ``draw + k * golden ratio`` of a step, so that what is drawn has an address. Without it nothing is drawn.

    Args:
        near: Depth of the first sample, at least 0; under the command line, the data module states it.
        far: Depth of the last sample, larger than ``near``; stated likewise.
        samples_per_ray: Samples in equal steps, at least 2.
        importance_samples: Samples added where those saw something, at which the field is asked again; 0 for none.
        stratified: Whether the draw of a ray moves its samples.
        density: What makes a density of the fourth number of the field: ``relu`` as published, or ``softplus``, which
            has a gradient everywhere.
        background: Brightness of what lies behind ``far``: 1 for white.
        chunk_size: Points, rays times samples times instances, evaluated at a time where no gradient is kept, which bounds
            memory.

    Raises:
        ValueError: If a number is out of range.
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
        self.near = near
        self.far = far
        self.samples_per_ray = samples_per_ray
        self.importance_samples = importance_samples
        self.stratified = stratified
        self.density = functional.relu if density == "relu" else functional.softplus
        self.background = background
        self.chunk_size = chunk_size

    @property
    def points_per_coord(self) -> int:
        """Return the samples of a ray."""
        return self.samples_per_ray + self.importance_samples

    @property
    def depth_range(self) -> tuple[float, float] | None:
        """Return ``near`` and ``far``; None before they are known."""
        return None if self.near is None or self.far is None else (self.near, self.far)

    def field_spec(self, spec: DataSpec) -> DataSpec:
        """Return a field of points in space, to colour and density.

        Raises:
            ValueError: If the data is no colours along rays.
        """
        self._check_spec(spec)
        return spec._replace(domain=Volume(), value_dim=4)

    def rendered(self, field: Field, coords: Tensor) -> Rendered:
        """Return colours, expected depths and opacities of rays, in float32.

        Behind the last sample lies the background, at the depth ``far``.

        Args:
            field: From points ``(N, 3)`` or ``(B, N, 3)`` to ``(B, N, 4)``.
            coords: ``(N, 6)`` or ``(B, N, 6)``, origins and directions; with a draw, ``(..., 7)``.

        Raises:
            ValueError: If ``coords`` are no rays, or nobody said what ``near`` and ``far`` are.
        """
        self._check(coords)
        rays = exact(coords)
        if torch.is_grad_enabled():
            return self._render(field, rays)
        instances = rays.shape[0] if rays.dim() == 3 else 1
        points = instances * self.points_per_coord
        chunks = rays.split(max(1, self.chunk_size // points), dim=-2)
        return _joined((self._render(field, chunk) for chunk in chunks), rays.shape[-2])

    def _render(self, field: Field, rays: Tensor) -> Rendered:
        """Render some rays."""
        near, far = self._range()
        draws = rays[..., 6:] if self.stratified and rays.shape[-1] == 7 else None
        depths = self._depths(near, far, rays, draws)
        if self.importance_samples:
            with torch.no_grad():
                depths = self._refined(depths, self._evaluate(field, rays, depths), draws)
        return self._composite(self._evaluate(field, rays, depths), depths, far)

    def _range(self) -> tuple[float, float]:
        """Return near and far, or refuse a renderer that was built without."""
        if self.depth_range is None:
            raise ValueError(
                f"near is {self.near} and far {self.far}: the command line sets them from the data, in Python pass "
                "VolumeRenderer(near=..., far=...)."
            )
        return self.depth_range

    def _depths(self, near: float, far: float, rays: Tensor, draws: Tensor | None) -> Tensor:
        """Return depths in equal steps ``(S,)``, or moved upwards by less than a step ``(..., N, S)``."""
        depths = torch.linspace(near, far, self.samples_per_ray, device=rays.device, dtype=rays.dtype)
        if draws is None:
            return depths
        return depths + _spread(draws, 0, self.samples_per_ray) * ((far - near) / (self.samples_per_ray - 1))

    def _refined(self, depths: Tensor, found: Tensor, draws: Tensor | None) -> Tensor:
        """Return depths ``(B, N, S + importance_samples)``: more of them where there are larger weights."""
        count = self.importance_samples
        weights = self._weights(found[..., 3], depths)
        within = torch.full((count,), 0.5, device=depths.device)
        if draws is not None:
            within = _spread(draws, self.samples_per_ray, count)
        quantiles = (torch.arange(count, device=depths.device) + within) / count
        depths = depths.expand_as(weights)
        return torch.cat((depths, inverse_cdf(depths, weights, quantiles)), dim=-1).sort(dim=-1).values

    def _evaluate(self, field: Field, rays: Tensor, depths: Tensor) -> Tensor:
        """Return what a field has ``(B, N, S, 4)`` at depths of rays, in float32."""
        origins, directions = rays[..., None, :3], rays[..., None, 3:6]
        points = origins + directions * depths.unsqueeze(-1)  # (N, S, 3) or (B, N, S, 3)
        found: Tensor = field(points.flatten(-3, -2)).unflatten(-2, points.shape[-3:-1])
        return exact(found)

    def _weights(self, raw: Tensor, depths: Tensor) -> Tensor:
        """Return how much of each sample is seen ``(B, N, S)``."""
        steps = torch.cat((depths.diff(dim=-1), torch.full_like(depths[..., :1], 1e-3)), dim=-1)
        alpha = 1 - torch.exp(-self.density(raw) * steps)
        passed = (1 - alpha + 1e-10).clamp(max=1)
        return alpha * torch.cat((torch.ones_like(passed[..., :1]), passed[..., :-1]), dim=-1).cumprod(dim=-1)

    def _composite(self, found: Tensor, depths: Tensor, far: float) -> Rendered:
        """Return what is seen along rays of which a field has ``found (B, N, S, 4)`` at ``depths``."""
        with torch.autocast(found.device.type, enabled=False):
            weights = self._weights(found[..., 3], depths)
            opacity = weights.sum(dim=-1)
            missed = 1 - opacity
            colours = (weights.unsqueeze(-1) * found[..., :3].sigmoid()).sum(dim=-2)
            depth = (weights * depths).sum(dim=-1) + missed * far
            return Rendered(colours + missed.unsqueeze(-1) * self.background, depth, opacity)


def _joined(parts: Iterable[Rendered], count: int) -> Rendered:
    """Return what was rendered of so many rays, each part written to its place at once.

    Small results that are kept between large work leave memory in holes, more with every view.
    """
    whole: list[Tensor] = []
    start = 0
    for part in parts:
        found = [one for one in part if one is not None]
        whole = whole or [one.new_empty(len(one), count, *one.shape[2:]) for one in found]
        stop = start + part.values.shape[1]
        for place, one in zip(whole, found, strict=True):
            place[:, start:stop] = one
        start = stop
    return Rendered(*whole)


def inverse_cdf(depths: Tensor, weights: Tensor, quantiles: Tensor) -> Tensor:
    """Return the depths below which lie given shares of what rays see (NeRF section 5.2).

    A weight is spread evenly between the middles towards its neighbours; where nothing is seen, all depths are alike.

    Args:
        depths: ``(..., S)``, ascending.
        weights: ``(..., S)``, at least 0.
        quantiles: ``(M,)`` or ``(..., M)`` in [0, 1).

    Returns:
        ``(..., M)``, between the first and the last depth.
    """
    middles = (depths[..., 1:] + depths[..., :-1]) / 2
    edges = torch.cat((depths[..., :1], middles, depths[..., -1:]), dim=-1)
    shares = weights + 1e-5  # nothing is excluded
    below = functional.pad((shares / shares.sum(dim=-1, keepdim=True)).cumsum(dim=-1), (1, 0))
    quantiles = quantiles.expand(*weights.shape[:-1], -1).contiguous()
    upper = torch.searchsorted(below, quantiles, right=True).clamp(1, weights.shape[-1])
    low, high = below.gather(-1, upper - 1), below.gather(-1, upper)
    start, stop = edges.gather(-1, upper - 1), edges.gather(-1, upper)
    return start + (stop - start) * ((quantiles - low) / (high - low)).clamp(0, 1)


def _spread(draws: Tensor, first: int, count: int) -> Tensor:
    """Return numbers in [0, 1) that one draw per ray ``(..., N, 1)`` gives its samples ``(..., N, count)``."""
    return (draws + torch.arange(first, first + count, device=draws.device) * _GOLDEN_RATIO) % 1
