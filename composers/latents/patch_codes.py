"""A code per patch, expanded to the instance patterns of the patch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from composers.latents.layout import Latents, Layout, lerp
from composers.latents.linear_start import principal_components, ridge
from composers.latents.mixture import PatchMixture, fit_mixture, in_chunks
from composers.latents.parametrization import Parametrization
from composers.networks import CoordinateNetwork, GridMixer, PatchModulations, ScaledLinear, TensorSpec
from composers.networks.neighbours import neighbourhoods
from composers.networks.patch_grid import crop, cut, extend, grid_shape
from datamodules.domain import exact


class PatchCodes(Parametrization[PatchModulations]):
    """Patch-wise instance patterns: a few numbers per patch, the bottleneck, determine the second layer of that patch.

    The latents are ``codes (B, *grid, K)``, with one code per patch. A shared map expands them to the patterns ``V (I, R)`` of
    every patch: the values of the patch, linear in its code within each cluster of patches, a linear correction from the
    neighbourhood, blocks that mix patches, and a Linear. It reads nothing but the codes, so neighbouring patches share context
    without additional numbers.

    With several clusters, the first number of a code is the index of the cluster, and the others are coordinates along its
    directions: busy and smooth patches, edges and textures are coded in directions of their own. The index has no gradient, so
    gradient steps without weight decay leave it unchanged; starts that do not read the signal remain in one cluster.

    Before training, `initialize` computes all linear maps from training data in closed form (`fit_mixture`, then a regression
    from the neighbourhood). With one cluster, this is linear coding: PCA; for audio, the Karhunen-Loeve transform (KLT).

    Args:
        code_dim: ``K``, numbers per patch, at least 2 with several clusters.
        num_clusters: ``X``, clusters of patches.
        embed_dim: Width of the tokens that the blocks mix, at least the values of a patch, to which it is set if None.
        num_blocks: Number of blocks behind the bottleneck.
        kernel_size: Patches along each axis that a block combines, odd.
        mlp_ratio: Hidden width of the blocks in multiples of ``embed_dim``.
        context: Patches along each axis of the neighbourhood of the linear correction, odd.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        code_dim: int = 24,
        num_clusters: int = 1,
        embed_dim: int | None = None,
        num_blocks: int = 3,
        kernel_size: int = 5,
        mlp_ratio: int = 3,
        context: int = 3,
    ) -> None:
        super().__init__()
        if num_clusters < 1 or code_dim < 1 + (num_clusters > 1):
            raise ValueError(
                f"code_dim is {code_dim} and num_clusters {num_clusters}; they must be at least 1, and code_dim at least 2 "
                "with several clusters, whose index is one of the numbers."
            )
        if context < 1 or context % 2 == 0:
            raise ValueError(f"context is {context}; it must be odd and at least 1.")
        self.code_dim = code_dim
        self.num_clusters = num_clusters
        self.embed_dim = embed_dim
        self.context = context
        self.mixing = {"num_blocks": num_blocks, "kernel_size": kernel_size, "mlp_ratio": mlp_ratio}

    def connect(self, network: CoordinateNetwork[PatchModulations]) -> None:
        """Create the shared map.

        Raises:
            ValueError: If the network has no patches, or ``embed_dim`` is too small.
        """
        patches = network.patches
        if patches is None:
            raise ValueError(
                f"PatchCodes modulates patches; {type(network).__name__} has none: use network PatchwiseMLP."
            )
        values, axes = patches.num_values, len(patches.size)
        embed_dim = self.embed_dim or values
        if embed_dim < values:
            raise ValueError(f"embed_dim is {embed_dim}; a patch has {values} values: set at least {values}, or null.")
        self.patch_size, self.offset = patches.size, patches.output_offset
        self.pattern_shape, self.embedding = patches.pattern_shape, embed_dim
        initial = partial(torch.zeros, *(1,) * axes, self.code_dim)
        integers = int(self.num_clusters > 1)
        self.latents = {"codes": TensorSpec((*(-1,) * axes, self.code_dim), initial, integers=integers)}
        numbers = self.code_dim - integers
        self.values = ScaledLinear(self.num_clusters * (numbers + 1), values)
        self.summary = ScaledLinear(values, min(values, 2 * self.code_dim))
        self.correction = ScaledLinear(min(values, 2 * self.code_dim) * self.context**axes, values)
        self.correction.assign(torch.zeros_like(self.correction.weight))
        self.mixer = GridMixer(embed_dim, axes=axes, **self.mixing)
        self.patterns = ScaledLinear(embed_dim, math.prod(patches.pattern_shape))
        self._start_linearly(patches.linear_patterns())

    @torch.no_grad()
    def _start_linearly(self, patterns: Tensor) -> None:
        """Initialise the last Linear such that the network yields the values that the tokens hold."""
        weight = self.patterns.weight.new_zeros(math.prod(self.pattern_shape), self.embedding)
        weight[:, : len(patterns)] = patterns.flatten(1).mT
        width, rank = self.pattern_shape
        bias = torch.randn(width, rank) / math.sqrt(width)
        bias[:, patterns.abs().amax((0, 1)) > 0] = 0
        self.patterns.assign(weight, bias.flatten())

    def layout(self, shape: Sequence[int]) -> Layout:
        """Return the grid of patches of a signal with ``shape`` samples."""
        return Layout(grid_shape(shape, self.patch_size), tuple(shape))

    def compose(self, latents: Latents, layout: Layout) -> PatchModulations:
        """Return the patterns of all patches.

        Raises:
            ValueError: If the layout has no grid, or another one than the codes.
        """
        codes = latents["codes"]
        if layout.grid is None or layout.extent is None or layout.grid != codes.shape[1:-1]:
            raise ValueError(
                f"codes have the grid {tuple(codes.shape[1:-1])}, and the layout states {layout.grid}: pass the layout of the "
                "observation, as Composer.layout returns it."
            )
        return PatchModulations(self.tokens(codes).flatten(1, -2), self._expanded, layout.grid, layout.extent)

    def _expanded(self, tokens: Tensor) -> Tensor:
        """Return the patterns ``(..., I, R)`` of tokens ``(..., E)``."""
        return torch.unflatten(self.patterns(tokens), -1, self.pattern_shape)

    def tokens(self, codes: Tensor) -> Tensor:
        """Return the mixed tokens ``(B, *grid, E)`` of codes ``(B, *grid, K)``."""
        values = self._corrected(self.decoded(codes))
        mixed: Tensor = self.mixer(functional.pad(values, (0, self.embedding - values.shape[-1])))
        return mixed

    def decoded(self, codes: Tensor) -> Tensor:
        """Return the values of every patch ``(..., P)`` from its own code ``(..., K)``, without the output offset."""
        if self.num_clusters > 1:
            return torch.unflatten(in_chunks(self._of_clusters, codes.flatten(0, -2)), 0, codes.shape[:-1])
        values: Tensor = self.values(functional.pad(codes, (0, 1), value=1.0))
        return values

    def _of_clusters(self, codes: Tensor) -> Tensor:
        """Return the values ``(T, P)`` of codes ``(T, K)``, linear in the coordinates along the directions of their cluster."""
        index = exact(codes[:, :1]).nan_to_num().round().clamp(0, self.num_clusters - 1)
        chosen = index == torch.arange(self.num_clusters, device=codes.device)  # (T, X)
        coordinates = functional.pad(codes[:, 1:], (0, 1), value=1.0)
        values: Tensor = self.values((chosen.unsqueeze(-1) * coordinates.unsqueeze(1)).flatten(1))
        return values

    def _corrected(self, values: Tensor) -> Tensor:
        """Return values ``(B, *grid, P)`` plus the linear correction from their neighbourhoods."""
        corrected: Tensor = values + self.correction(neighbourhoods(self.summary(values), self.context))
        return corrected

    def interpolate(self, first: Latents, last: Latents, share: float) -> Latents:
        """Return codes on a line where both are of the same cluster, elsewhere the nearer one.

        A number between the indices of two clusters would be the index of an unrelated one.
        """
        line = lerp(first, last, share)
        if self.num_clusters == 1:
            return line
        nearer = (first if share < 0.5 else last)["codes"]
        alike = first["codes"][..., :1].round() == last["codes"][..., :1].round()
        return {"codes": torch.where(alike, line["codes"], nearer)}

    def step_scales(self, latents: Latents) -> dict[str, Tensor]:
        """Return the number of patches.

        A code changes the values of few patches, so the gradient of a mean over the signal shrinks with their number. The
        factor makes steps independent of the size of the signal, as in COIN++, whose loss is a mean per patch.
        """
        codes = latents["codes"]
        return {"codes": torch.tensor(float(math.prod(codes.shape[1:-1])), device=codes.device)}

    @torch.no_grad()
    def initialize(self, signals: Iterable[Tensor]) -> PatchMixture | None:
        """Set the linear maps to those of the patches of training signals.

        Args:
            signals: Batches of signals ``(B, C, *shape)``. Incomplete patches at their ends are left out where a signal has
                complete ones.

        Returns:
            The projection of patches to codes; None if there are no signals.
        """
        cropped = [crop(signal, self.patch_size) for signal in signals if signal.numel()]
        if not cropped:
            return None
        patches = [cut(extend(signal, self.patch_size), self.patch_size) for signal in cropped]
        flat = torch.cat([part.flatten(0, -2) for part in patches])
        mixture = fit_mixture(flat, self.code_dim, self.num_clusters)
        self._assign(mixture)
        principal = principal_components(flat)
        directions = principal.directions[:, : len(self.summary.bias)].float()
        directions = functional.pad(directions, (0, len(self.summary.bias) - directions.shape[1]))
        self.summary.assign(directions.mT, -(principal.mean.float() - self.offset) @ directions)
        decoded = [self.decoded(mixture.encode(part)) for part in patches]
        inputs = torch.cat([neighbourhoods(self.summary(part), self.context).flatten(0, -2) for part in decoded])
        residuals = flat - self.offset - torch.cat([part.flatten(0, -2) for part in decoded])
        self.correction.assign(*ridge(inputs, residuals))
        return mixture

    def _assign(self, mixture: PatchMixture) -> None:
        """Set the linear maps from codes to values, one per cluster."""
        columns = mixture.directions * mixture.scales  # (X, P, J)
        weight = torch.cat((columns, (mixture.means - self.offset).unsqueeze(-1)), dim=-1)
        self.values.assign(weight.movedim(0, 1).flatten(1))
