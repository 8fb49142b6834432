"""The coordinate network: an MLP in which some layers take their weights from a composer (paper section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.networks.activations import Activation, ReLU
from composers.networks.encodings import Encoding, FourierFeatures, IdentityEncoding
from datamodules.domain import exact
from datamodules.spec import FromData, coord_dim, value_dim

Modulations = Mapping[int, tuple[Tensor | None, Tensor | None]]
Field = Callable[[Tensor], Tensor]


class CoordinateMLP(nn.Module):
    """Coordinates to values by an MLP, known elsewhere as hyponet or functional representation.

    A layer computes ``h @ normalise(W) + b`` with ``W (I, O)``, where `normalise` divides every column by its L2 norm.
    The weights of the modulated layers are no parameters of this network: a composer gives them with every call, one
    per instance. All other weights and all biases are shared between instances.

    Whatever comes before the first modulated layer depends on coordinates alone. With shared coordinates ``(N, D)`` it is
    computed once for the whole batch; the modulated layer is then one matrix product over all instances.

    Args:
        coord_dim: ``D``, dimensions of a coordinate; under the command line, what the renderer asks of a field for this data.
        value_dim: ``C``, channels of a value; stated likewise.
        hidden_dim: Width of the hidden layers, or one width for each of the ``num_layers - 1``.
        num_layers: Layers including the last, at least 1.
        modulated_layers: Indices of the layers whose weights a composer gives, counted from 0; ``all`` for every layer,
            ``hidden`` for all but the last.
        encoding: From coordinates to features; the published Fourier features if None.
        activation: After every layer but the last; ReLU if None.
        normalize_weights: Whether every column of every weight is divided by its L2 norm.
        output_offset: Added to the output: 0.5 for images in [0, 1], 0 for audio and scenes.
        modulates: What a composer gives for the modulated layers: ``weights``, or only ``biases``, the weights then being the
            network's own.

    Raises:
        ValueError: If sizes are missing, out of range or do not fit each other.
    """

    from_data: ClassVar[FromData] = {"coord_dim": coord_dim, "value_dim": value_dim}

    def __init__(
        self,
        coord_dim: int | None = None,
        value_dim: int | None = None,
        hidden_dim: int | Sequence[int] = 256,
        num_layers: int = 5,
        modulated_layers: Sequence[int] | Literal["all", "hidden"] = (1,),
        encoding: Encoding | None = None,
        activation: Activation | None = None,
        normalize_weights: bool = True,
        output_offset: float = 0.5,
        modulates: Literal["weights", "biases"] = "weights",
    ) -> None:
        super().__init__()
        self.coord_dim = _positive("coord_dim", coord_dim)
        self.value_dim = _positive("value_dim", value_dim)
        num_layers = _positive("num_layers", num_layers)
        self.encoding = encoding or FourierFeatures()
        self.activation = activation or ReLU()
        self.normalize_weights = normalize_weights
        self.output_offset = output_offset
        widths = _hidden_widths(hidden_dim, num_layers)
        inputs = [self.encoding.width(self.coord_dim), *widths]
        self.layer_sizes = list(zip(inputs, [*widths, self.value_dim], strict=True))
        self.modulated_layers = _layer_indices(modulated_layers, num_layers)
        if modulates not in ("weights", "biases"):
            raise ValueError(f"modulates is {modulates}; allowed are weights and biases.")
        self.modulates = modulates
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        for layer, (fan_in, fan_out) in enumerate(self.layer_sizes):
            if layer not in self.modulated_layers or modulates == "biases":
                self.weights[str(layer)] = nn.Parameter(self.initial_weight(layer))
            self.biases[str(layer)] = nn.Parameter(self.activation.init_bias_(torch.empty(fan_out), fan_in, layer))

    @property
    def num_layers(self) -> int:
        """Layers including the last."""
        return len(self.layer_sizes)

    def initial_weight(self, layer: int) -> Tensor:
        """Return a freshly initialised weight ``(I, O)`` of a layer, for this network or for a composer that owns it."""
        return self.activation.init_weight_(torch.empty(self.layer_sizes[layer]), layer)

    def bind(self, modulations: Modulations) -> Field:
        """Return the field of these modulations: a function of coordinates alone."""
        return partial(self.forward, modulations=modulations)

    def forward(self, coords: Tensor, modulations: Modulations) -> Tensor:
        """Evaluate the field of every instance.

        Args:
            coords: ``(N, D)`` shared by all instances, or ``(B, N, D)``.
            modulations: For every modulated layer its weight ``(B, I, O)`` and bias ``(B, O)``; None means the layer's own.

        Returns:
            Values ``(B, N, C)``, in float32 at least.

        Raises:
            ValueError: If a modulated layer is missing, an unmodulated one is given, or ``coords`` has another ``D``.
        """
        self._check(coords, modulations)
        precision = torch.promote_types(
            coords.dtype, self.biases["0"].dtype
        )  # a grid is float32, the network may be finer
        hidden: Tensor = self.encoding(coords.to(precision))  # (N, F) or (B, N, F)
        for layer in range(self.num_layers):
            hidden = self.apply_layer(layer, hidden, modulations)
        return hidden if hidden.dim() == 3 else hidden.expand(num_instances(modulations), -1, -1)

    def apply_layer(self, layer: int, hidden: Tensor, modulations: Modulations) -> Tensor:
        """Return what one layer makes of what the layer before it made; `forward` is the encoding, then all layers in turn.

        Args:
            layer: Which one, counted from 0.
            hidden: ``(N, I)``, as long as it is the same for all instances, or ``(B, N, I)``; for layer 0 the encoding.
            modulations: As for `forward`.

        Returns:
            ``(N, O)`` or ``(B, N, O)``: activations, and of the last layer the values in float32 at least.
        """
        last = layer == self.num_layers - 1
        bare = layer == 0 and isinstance(self.encoding, IdentityEncoding)
        with self._exact(hidden.device, last or bare):
            if last:
                return self._linear(layer, exact(hidden), modulations) + self.output_offset
            activations: Tensor = self.activation(self._linear(layer, hidden, modulations))
            return activations

    def weight_and_bias(self, layer: int, modulations: Modulations) -> tuple[Tensor, Tensor]:
        """Return what a layer computes with: its weight, normalised, and its bias.

        Args:
            layer: Which one, counted from 0.
            modulations: As for `forward`.

        Returns:
            ``(I, O)`` and ``(O,)``; of a modulated layer ``(B, I, O)``, if weights are given, and ``(B, 1, O)``, if biases are.
        """
        weight, bias = modulations.get(layer, (None, None))
        weight = self.weights[str(layer)] if weight is None else weight
        if self.normalize_weights:
            weight = functional.normalize(exact(weight), dim=-2, eps=1e-12)
        return weight, self.biases[str(layer)] if bias is None else bias.unsqueeze(-2)

    @staticmethod
    def _exact(device: torch.device, exact: bool) -> AbstractContextManager[object]:
        """Return a context without autocast where nothing must be rounded: bare coordinates, and the values."""
        return torch.autocast(device.type, enabled=False) if exact else nullcontext()

    def _linear(self, layer: int, hidden: Tensor, modulations: Modulations) -> Tensor:
        """Apply one layer to ``hidden``, which gains its instances at the first modulated layer."""
        weight, bias = self.weight_and_bias(layer, modulations)
        if weight.dim() == 3:
            hidden = hidden if hidden.dim() == 3 else hidden.expand(weight.shape[0], -1, -1)
            return torch.baddbmm(bias.to(hidden.dtype), hidden, weight.to(hidden.dtype))
        rows, weight, bias = hidden.reshape(-1, hidden.shape[-1]), weight.to(hidden.dtype), bias.to(hidden.dtype)
        if bias.dim() == 3:
            return torch.mm(rows, weight).view(*hidden.shape[:-1], -1) + bias
        return torch.addmm(bias, rows, weight).view(*hidden.shape[:-1], -1)

    def _check(self, coords: Tensor, modulations: Modulations) -> None:
        """Refuse what does not fit this network."""
        if set(modulations) != set(self.modulated_layers):
            raise ValueError(
                f"Modulations are given for layers {sorted(modulations)}, this network takes them for "
                f"{list(self.modulated_layers)}: compose them for its modulated_layers."
            )
        if coords.shape[-1] != self.coord_dim:
            raise ValueError(
                f"coords have {coords.shape[-1]} dimensions, this network takes {self.coord_dim} (coord_dim)."
            )


def num_instances(modulations: Modulations) -> int:
    """Return the number of instances ``B``, without modulated layers 1."""
    return max((len(part) for parts in modulations.values() for part in parts if part is not None), default=1)


def _positive(name: str, number: int | None) -> int:
    """Return a size, or refuse it."""
    if number is None:
        raise ValueError(
            f"{name} is missing: under the command line the data module states it, in Python pass {name}=... ."
        )
    if number < 1:
        raise ValueError(f"{name} is {number}; it must be at least 1.")
    return number


def _hidden_widths(hidden_dim: int | Sequence[int], num_layers: int) -> list[int]:
    """Return one width per hidden layer."""
    widths = [hidden_dim] * (num_layers - 1) if isinstance(hidden_dim, int) else list(hidden_dim)
    if len(widths) != num_layers - 1 or any(width < 1 for width in widths):
        raise ValueError(
            f"hidden_dim is {hidden_dim}; with num_layers {num_layers} it must be one positive width, "
            f"or {num_layers - 1} of them."
        )
    return widths


def _layer_indices(modulated_layers: Sequence[int] | Literal["all", "hidden"], num_layers: int) -> tuple[int, ...]:
    """Return the modulated layers in ascending order."""
    if modulated_layers == "all":
        return tuple(range(num_layers))
    if modulated_layers == "hidden":
        return tuple(range(num_layers - 1))
    if isinstance(modulated_layers, str):
        raise ValueError(f"modulated_layers is {modulated_layers}; by name, all and hidden are allowed.")
    layers = tuple(sorted(set(modulated_layers)))
    if any(isinstance(layer, str) or not 0 <= layer < num_layers for layer in layers):
        raise ValueError(
            f"modulated_layers is {list(modulated_layers)}; with {num_layers} layers it may hold 0 to {num_layers - 1}, or be "
            "all or hidden."
        )
    return layers
