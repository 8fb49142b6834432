"""A code per patch, expanded to the instance patterns of the patch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from composers.latents.layout import Latents, Layout
from composers.latents.linear_start import LinearStart, ridge, whitening
from composers.latents.parametrization import Parametrization
from composers.networks import CoordinateNetwork, GridMixer, PatchModulations, ScaledLinear, TensorSpec
from composers.networks.neighbours import neighbourhoods
from composers.networks.patch_grid import crop, cut, extend, grid_shape


class PatchCodes(Parametrization[PatchModulations]):
    """Patch-wise instance patterns: a few numbers per patch, the bottleneck, determine the second layer of that patch.

    The latents are ``codes (B, *grid, K)``, with one code per patch. A shared map expands them to the patterns ``V (I, R)`` of
    every patch: a linear prediction of the values of the patch from the codes of its neighbourhood, blocks that mix patches,
    and a Linear. It reads nothing but the codes, so neighbouring patches share context without additional numbers.

    Before training, `initialize` sets the map to linear coding: the principal components of the training patches (PCA; for
    audio the Karhunen-Loeve transform), decoded by linear regression from the neighbourhood.

    Args:
        code_dim: ``K``, numbers per patch.
        embed_dim: Width of the tokens that the blocks mix, at least the values of a patch, to which it is set if None.
        num_blocks: Number of blocks behind the bottleneck.
        kernel_size: Patches along each axis that a block combines, odd.
        mlp_ratio: Hidden width of the blocks in multiples of ``embed_dim``.
        context: Patches along each axis of the neighbourhood of the linear prediction, odd.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        code_dim: int = 24,
        embed_dim: int | None = None,
        num_blocks: int = 3,
        kernel_size: int = 5,
        mlp_ratio: int = 3,
        context: int = 3,
    ) -> None:
        super().__init__()
        if code_dim < 1 or context < 1 or context % 2 == 0:
            raise ValueError(f"code_dim is {code_dim} and context {context}; they must be at least 1, and context odd.")
        self.code_dim = code_dim
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
        self.latents = {"codes": TensorSpec((*(-1,) * axes, self.code_dim), initial)}
        self.prediction = ScaledLinear(self.code_dim * self.context**axes, values)
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
        predicted = self.prediction(neighbourhoods(codes, self.context))
        mixed: Tensor = self.mixer(functional.pad(predicted, (0, self.embedding - predicted.shape[-1])))
        return mixed

    def step_scales(self, latents: Latents) -> dict[str, Tensor]:
        """Return the number of patches.

        A code changes the values of few patches, so the gradient of a mean over the signal shrinks with their number. The
        factor makes steps independent of the size of the signal, as in COIN++, whose loss is a mean per patch.
        """
        codes = latents["codes"]
        return {"codes": torch.tensor(float(math.prod(codes.shape[1:-1])), device=codes.device)}

    def initialize(self, signals: Iterable[Tensor]) -> LinearStart | None:
        """Set the linear prediction to linear coding of the patches of training signals.

        Args:
            signals: Batches of signals ``(B, C, *shape)``. Incomplete patches at their ends are left out where a signal has
                complete ones.

        Returns:
            The linear map from the values of a patch to its code; None if there are no signals.
        """
        cropped = [crop(signal, self.patch_size) for signal in signals if signal.numel()]
        if not cropped:
            return None
        patches = [cut(extend(signal, self.patch_size), self.patch_size) for signal in cropped]
        flat = torch.cat([part.flatten(0, -2) for part in patches])
        start = whitening(flat, self.code_dim)
        codes = [part @ start.weight.mT + start.bias for part in patches]
        inputs = torch.cat([neighbourhoods(part, self.context).flatten(0, -2) for part in codes])
        self.prediction.assign(*ridge(inputs, flat - self.offset))
        return start
