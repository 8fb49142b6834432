"""Base class of parametrizations, which define latents and convert them to modulations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from composers.latents.layout import Latents, Layout, lerp
from composers.latents.mixture import PatchMixture
from composers.networks import CoordinateNetwork, TensorSpec
from datamodules.domain import exact

M = TypeVar("M")


class Parametrization(nn.Module, ABC, Generic[M]):
    """Base class of parametrizations, which define latents and convert them to modulations of type ``M``.

    Attributes:
        latents: Specification of the latents by name; set by `connect`.
        radius: Latents of a map along each axis on either side of a place that the modulations there depend on.
    """

    radius: int = 0

    latents: Mapping[str, TensorSpec]

    @abstractmethod
    def connect(self, network: CoordinateNetwork[M]) -> None:
        """Set ``latents``, and create the parameters whose sizes depend on the network; `Composer` calls this once.

        Raises:
            ValueError: If the network does not take the modulations of this parametrization.
        """

    @abstractmethod
    def compose(self, latents: Latents, layout: Layout) -> M:
        """Return the modulations of latents ``(B, ...)``."""

    def layout(self, shape: Sequence[int]) -> Layout:
        """Return the layout of the latents of signals with ``shape`` samples, for starts that do not encode the signal."""
        return Layout()

    def initialize(self, signals: Iterable[Tensor]) -> PatchMixture | None:
        """Initialise parameters from training signals in closed form, where a parametrization can; else do nothing.

        Args:
            signals: Batches of signals ``(B, C, *shape)``, read only where they are needed.

        Returns:
            The projection of patches to latents that the initial parameters decode; None if there is none.
        """
        return None

    def interpolate(self, first: Latents, last: Latents, share: float) -> Latents:
        """Return latents between two sets of them: on a line, by default.

        Args:
            first: Latents at ``share`` 0.
            last: Latents at ``share`` 1.
            share: Position between both, in [0, 1].

        Raises:
            ValueError: If latents that are constant differ.
        """
        for name, spec in self.latents.items():
            if spec.constant and not torch.equal(first[name], last[name]):
                raise ValueError(
                    f"The codes differ in {name}, which the network reads as facts of a signal, so that numbers between those "
                    f"of two signals are not valid: interpolate codes with the same {name}, such as those of objects that were "
                    "observed from the same views."
                )
        return lerp(first, last, share)

    def step_scales(self, latents: Latents) -> dict[str, Tensor]:
        """Return the factor of a gradient step for each of the latents ``(B, ...)``.

        The factor is the squared Frobenius norm of the latent if the network normalises the resulting weight, otherwise 1.
        Scaling a normalised weight does not change the network, so gradients shrink as the norm grows; multiplying the step by
        the squared norm makes its relative length independent of the norm (paper section 3.3 and released code).
        """
        scales = {}
        for name, latent in latents.items():
            if self.latents[name].normalized:
                axes = tuple(range(1, latent.dim()))
                scales[name] = exact(latent).square().sum(axes, keepdim=True)
            else:
                scales[name] = torch.ones((), device=latent.device)
        return scales

    def _weights(self, network: CoordinateNetwork[M]) -> dict[str, TensorSpec]:
        """Return the weight slots ``(I, O)`` of a network by layer; it must not have other slots.

        Raises:
            ValueError: If there are no weight slots, or other slots.
        """
        weights = {
            name.removeprefix("weight."): spec for name, spec in network.slots.items() if name.startswith("weight.")
        }
        if not weights or len(weights) != len(network.slots):
            raise ValueError(
                f"{type(self).__name__} composes weights; this {type(network).__name__} takes {_listed(network)}: set its "
                "modulates to weights and name its modulated_layers."
            )
        return weights


def _listed(network: CoordinateNetwork[M]) -> str:
    """Return the slots of a network as text for a message."""
    return ", ".join(network.slots) or "no modulations by name"
