"""Volume rendering: integrate the colour and density of a field along rays (NeRF section 4)."""

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

    Args:
        near: Depth of the first sample, at least 0; set from the data module on the command line.
        far: Depth of the last sample, larger than ``near``; set from the data module on the command line.
        samples_per_ray: Number of equally spaced samples per ray, at least 2.
        importance_samples: Number of additional samples per ray, placed where the weights of the first samples are large; the
            field is then evaluated at all samples. 0 disables importance sampling.
        stratified: Whether the draw of a ray moves its samples.
        density: Activation of the density, the fourth channel of the field: ``relu`` as published, or ``softplus``, whose
            gradient is positive everywhere.
        background: Brightness of the background behind ``far``; 1 is white.
        chunk_size: Maximum number of points (rays times samples times instances) per evaluation when gradients are disabled,
            to limit memory.

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
        self._check(coords)
        rays = exact(coords)
        if torch.is_grad_enabled():
            return self._render(field, rays)
        instances = rays.shape[0] if rays.dim() == 3 else 1
        points = instances * self.points_per_coord
        chunks = rays.split(max(1, self.chunk_size // points), dim=-2)
        return _concatenate((self._render(field, chunk) for chunk in chunks), rays.shape[-2])

    def _render(self, field: Field, rays: Tensor) -> Rendered:
        """Render rays without splitting them into chunks."""
        near, far = self._range()
        draws = rays[..., 6:] if self.stratified and rays.shape[-1] == 7 else None
        depths = self._depths(near, far, rays, draws)
        if self.importance_samples:
            with torch.no_grad():
                depths = self._importance_depths(depths, self._evaluate(field, rays, depths), draws)
        return self._composite(self._evaluate(field, rays, depths), depths, far)

    def _range(self) -> tuple[float, float]:
        """Return ``near`` and ``far``; raise an error if one of them is not set."""
        if self.depth_range is None:
            raise ValueError(
                f"near is {self.near} and far {self.far}: the command line sets them from the data, in Python pass "
                "VolumeRenderer(near=..., far=...)."
            )
        return self.depth_range

    def _depths(self, near: float, far: float, rays: Tensor, draws: Tensor | None) -> Tensor:
        """Return equally spaced depths ``(S,)``; with draws, depths ``(..., N, S)`` moved deeper by less than a step."""
        depths = torch.linspace(near, far, self.samples_per_ray, device=rays.device, dtype=rays.dtype)
        if draws is None:
            return depths
        step = (far - near) / (self.samples_per_ray - 1)
        return depths + _stratified_offsets(draws, 0, self.samples_per_ray) * step

    def _importance_depths(self, depths: Tensor, outputs: Tensor, draws: Tensor | None) -> Tensor:
        """Return sorted depths ``(B, N, S + importance_samples)``, with more samples where weights are larger."""
        count = self.importance_samples
        weights = self._weights(outputs[..., 3], depths)
        offsets = torch.full((count,), 0.5, device=depths.device)
        if draws is not None:
            offsets = _stratified_offsets(draws, self.samples_per_ray, count)
        quantiles = (torch.arange(count, device=depths.device) + offsets) / count
        depths = depths.expand_as(weights)
        return torch.cat((depths, inverse_cdf(depths, weights, quantiles)), dim=-1).sort(dim=-1).values

    def _evaluate(self, field: Field, rays: Tensor, depths: Tensor) -> Tensor:
        """Return the outputs of the field ``(B, N, S, 4)`` at depths along rays, in float32."""
        origins, directions = rays[..., None, :3], rays[..., None, 3:6]
        points = origins + directions * depths.unsqueeze(-1)  # (N, S, 3) or (B, N, S, 3)
        outputs: Tensor = field(points.flatten(-3, -2)).unflatten(-2, points.shape[-3:-1])
        return exact(outputs)

    def _weights(self, raw: Tensor, depths: Tensor) -> Tensor:
        """Return the weight of each sample ``(B, N, S)``: its opacity times the transmittance up to it."""
        steps = torch.cat((depths.diff(dim=-1), torch.full_like(depths[..., :1], 1e-3)), dim=-1)
        alpha = 1 - torch.exp(-self.density(raw) * steps)
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
