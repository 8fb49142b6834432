"""Base class of coordinate networks, which modulations bind to a field: a function of coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from composers.networks.encodings import Encoding

Field = Callable[[Tensor], Tensor]
M = TypeVar("M")


class TensorSpec(NamedTuple):
    """One named tensor of an instance: a modulation that a network takes, or a latent.

    Attributes:
        shape: Without the batch dimension. An axis of -1 depends on the signal; see `composers.latents.Layout`.
        initial: Return a new tensor of this shape, with 1 in place of -1.
        normalized: Whether the network divides the tensor by its norm, so that its scale has no effect.
        constant: Whether the tensor states facts of a signal, such as its cameras, so that neither numbers between those of two
            signals nor the mean over signals are valid.
        integers: Entries at the start of the last axis that hold integers, such as the index of a cluster; quantisation keeps
            them exact.
    """

    shape: tuple[int, ...]
    initial: Callable[[], Tensor]
    normalized: bool = False
    constant: bool = False
    integers: int = 0


class PatchSpec(NamedTuple):
    """How a network divides signals into patches, each with its own modulations.

    Attributes:
        size: Samples of a patch along each axis.
        num_values: ``P``, the values of a patch in all channels.
        pattern_shape: ``(I, R)`` of the patterns of a patch.
        output_offset: What the network adds to its output.
        linear_patterns: Return the patterns ``(P, I, R)`` for each of which the initial network, without ``output_offset``,
            yields 1 at one value of a patch, flattened channel by channel, and 0 at the others.
        image_channels: Channels of the observed image that the network adds, interpolated; 0 if it adds none.
    """

    size: tuple[int, ...]
    num_values: int
    pattern_shape: tuple[int, int]
    output_offset: float
    linear_patterns: Callable[[], Tensor]
    image_channels: int = 0


class FreeNetwork(NamedTuple):
    """A network all of whose weights belong to single instances, for test-time optimisation.

    Attributes:
        latents: The weights ``(B, ...)`` by name at which the field is that of the modulations.
        field: From such weights to their field.
    """

    latents: dict[str, Tensor]
    field: Callable[[Mapping[str, Tensor]], Field]


class CoordinateNetwork(nn.Module, ABC, Generic[M]):
    """From coordinates and modulations of type ``M`` to values.

    A network owns no parameter that modulations replace.

    Attributes:
        coord_dim: ``D``, dimensions of a coordinate.
        value_dim: ``C``, channels of a value.
        radius: Cells or patches along each axis on either side of a coordinate whose modulations its value depends on.
        slots: The tensors that modulations hold, by name, for parametrizations that do not know the network; empty for a
            network whose modulations are of a type of its own.
    """

    coord_dim: int
    value_dim: int
    radius: int = 0
    slots: Mapping[str, TensorSpec]

    @property
    def patches(self) -> PatchSpec | None:
        """The patches with modulations of their own, which decoding evaluates whole; None if modulations belong to signals."""
        return None

    @property
    def encoding_of_signal(self) -> Encoding | None:
        """The encoding of the coordinates of a whole signal, which limits its frequencies; None if there is none."""
        return None

    @property
    @abstractmethod
    def floats_per_coord(self) -> int:
        """Return the floats that evaluation holds per coordinate and instance, from which chunk sizes follow."""

    @abstractmethod
    def forward(self, coords: Tensor, modulations: M) -> Tensor:
        """Return values ``(B, N, C)`` at ``coords``, ``(N, D)`` shared by all instances or ``(B, N, D)``."""

    def bind(self, modulations: M) -> Field:
        """Return the field of these modulations."""
        return partial(self.forward, modulations=modulations)

    def activations(self, modulations: M, coords: Tensor) -> Mapping[int, Tensor]:
        """Return the activations of the hidden layers at ``coords``, by layer: ``(N, O)`` or ``(B, N, O)``.

        Raises:
            ValueError: If the network does not expose its layers.
        """
        raise ValueError(f"{type(self).__name__} has no hidden layers to show: implement activations.")

    def values_without(self, modulations: M, coords: Tensor, layer: int, units: Tensor) -> Tensor:
        """Return values ``(U, N, C)`` of one instance, each with one unit of a hidden layer set to zero.

        Args:
            modulations: Of one instance.
            coords: ``(N, D)``.
            layer: Counted from 0.
            units: ``(U,)`` indices.

        Raises:
            ValueError: If the network does not expose its layers.
        """
        raise ValueError(f"{type(self).__name__} has no hidden layers to switch off: implement values_without.")

    def free(self, modulations: M) -> FreeNetwork:
        """Return the network with all weights belonging to single instances, for test-time optimisation.

        Raises:
            ValueError: If the weights of this network are always shared.
        """
        raise ValueError(f"The weights of {type(self).__name__} cannot be optimised per instance: implement free.")
