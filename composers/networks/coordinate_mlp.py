"""The coordinate MLP, some of whose layers are modulated per instance (paper section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from composers.networks.activations import Activation, ReLU
from composers.networks.encodings import Encoding, FourierFeatures, IdentityEncoding
from composers.networks.network import CoordinateNetwork, FreeNetwork, TensorSpec
from datamodules.domain import exact
from datamodules.spec import FromData, coord_dim, value_dim

Modulations = Mapping[str, Tensor]
"""Tensors by name: ``weight.<layer> (B, I, O)``, ``bias.<layer> (B, O)``, and ``shift.<layer> (B, O)`` to add to a bias."""

_CACHED_ROWS = 4096  # coordinates of an instance evaluated at a time on a CPU, whose activations stay in its cache

_SLOTS = {"weights": ("weight",), "biases": ("bias",), "both": ("weight", "bias"), "shifts": ("shift",)}


class CoordinateMLP(CoordinateNetwork[Modulations]):
    """An MLP from coordinates to values (paper section 3), also called hyponetwork or functional representation.

    A layer computes ``h @ normalize(W) + b`` with ``W (I, O)``, where `normalize` divides every column by its L2 norm.
    What ``modulates`` names is passed per instance for the ``modulated_layers``; all other weights and biases are parameters
    shared between instances.

    Everything before the first modulated layer depends on coordinates only. With shared coordinates ``(N, D)`` it is computed
    once per batch; the modulated layer is then one matrix product over all instances. On a CPU, many coordinates per instance
    ``(B, N, D)`` are evaluated in parts, whose activations and gradients stay in its cache.

    Args:
        coord_dim: ``D``, dimensions of a coordinate; the command line sets it from the data and the renderer.
        value_dim: ``C``, channels of a value; set likewise.
        hidden_dim: Width of the hidden layers, or one width for each of the ``num_layers - 1``.
        num_layers: Layers including the last, at least 1.
        modulated_layers: Indices of the modulated layers, counted from 0; ``all`` for every layer, ``hidden`` for all but the
            last.
        encoding: From coordinates to features; the published Fourier features if None.
        activation: After every layer but the last; ReLU if None.
        normalize_weights: Whether every column of every weight is divided by its L2 norm.
        output_offset: Added to the output: 0.5 for images in [0, 1], 0 for audio and views.
        modulates: What is passed for the modulated layers: ``weights``, ``biases``, ``both``, or ``shifts``, which are added to
            the biases of the network.

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
        modulates: Literal["weights", "biases", "both", "shifts"] = "weights",
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
        if modulates not in _SLOTS:
            raise ValueError(f"modulates is {modulates}; allowed are {', '.join(_SLOTS)}.")
        self.modulates = modulates
        self.slots = {
            f"{kind}.{layer}": self._slot(kind, layer) for layer in self.modulated_layers for kind in _SLOTS[modulates]
        }
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        for layer in range(num_layers):
            if f"weight.{layer}" not in self.slots:
                self.weights[str(layer)] = nn.Parameter(self.initial_weight(layer))
            if f"bias.{layer}" not in self.slots:
                self.biases[str(layer)] = nn.Parameter(self.initial_bias(layer))

    def _slot(self, kind: str, layer: int) -> TensorSpec:
        """Return the specification of a modulation."""
        fan_in, fan_out = self.layer_sizes[layer]
        if kind == "weight":
            return TensorSpec((fan_in, fan_out), partial(self.initial_weight, layer), self.normalize_weights)
        return TensorSpec(
            (fan_out,), partial(self.initial_bias, layer) if kind == "bias" else partial(torch.zeros, fan_out)
        )

    @property
    def num_layers(self) -> int:
        """Layers including the last."""
        return len(self.layer_sizes)

    @property
    def encoding_of_signal(self) -> Encoding:
        """The encoding."""
        return self.encoding

    @property
    def floats_per_coord(self) -> int:
        """Return four arrays as wide as the widest layer."""
        return 4 * max(max(sizes) for sizes in self.layer_sizes)

    def initial_weight(self, layer: int) -> Tensor:
        """Return a new weight ``(I, O)`` of a layer, initialised as the activation requires."""
        initialize = self.activation.init_last_weight_ if layer == self.num_layers - 1 else self.activation.init_weight_
        return initialize(torch.empty(self.layer_sizes[layer]), layer)

    def initial_bias(self, layer: int) -> Tensor:
        """Return a new bias ``(O,)`` of a layer, initialised as the activation requires."""
        fan_in, fan_out = self.layer_sizes[layer]
        return self.activation.init_bias_(torch.empty(fan_out), fan_in, layer)

    def forward(self, coords: Tensor, modulations: Modulations) -> Tensor:
        """Evaluate the field of every instance.

        Args:
            coords: ``(N, D)`` shared by all instances, or ``(B, N, D)``.
            modulations: A tensor for every one of ``slots``.

        Returns:
            Values ``(B, N, C)``, in float32 at least.

        Raises:
            ValueError: If ``modulations`` are not those of ``slots``, or ``coords`` has another ``D``.
        """
        self._check(coords, modulations)
        layers = [self.weight_and_bias(layer, modulations) for layer in range(self.num_layers)]
        if self._in_parts(coords, modulations):
            return self._evaluate_in_parts(coords, layers)
        values = self._evaluate(coords, layers)
        return values if values.dim() == 3 else values.expand(num_instances(modulations), -1, -1)

    @staticmethod
    def _in_parts(coords: Tensor, modulations: Modulations) -> bool:
        """Return whether the coordinates of single instances are evaluated in parts."""
        if torch.compiler.is_compiling() or coords.device.type != "cpu":
            return False
        if coords.dim() < 3 or coords.shape[1] <= _CACHED_ROWS:
            return False
        return {len(modulation) for modulation in modulations.values()} <= {len(coords)}

    def _evaluate_in_parts(self, coords: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the values ``(B, N, C)`` of `_evaluate`, instance by instance and part by part."""
        per_layer = [[_per_instance(tensor, len(coords)) for tensor in layer] for layer in layers]
        values = []
        for index, instance in enumerate(coords.split(1)):
            layers_of_instance = [(weights[index], biases[index]) for weights, biases in per_layer]
            parts = instance.split(_CACHED_ROWS, dim=1)
            values.append(torch.cat([self._evaluate(part, layers_of_instance) for part in parts], dim=1))
        return torch.cat(values)

    def _evaluate(self, coords: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the values of coordinates, of layers given by weight and bias."""
        hidden = self._encode(coords)
        for layer, (weight, bias) in enumerate(layers):
            hidden = self._apply_layer(layer, hidden, weight, bias)
        return hidden

    def activations(self, modulations: Modulations, coords: Tensor) -> dict[int, Tensor]:
        """Return the activations of the hidden layers: ``(N, O)`` before the first modulated layer, then ``(B, N, O)``."""
        hidden, layers = self._encode(coords), {}
        for layer in range(self.num_layers - 1):
            layers[layer] = hidden = self.apply_layer(layer, hidden, modulations)
        return layers

    def values_without(self, modulations: Modulations, coords: Tensor, layer: int, units: Tensor) -> Tensor:
        """Return values ``(U, N, C)`` of one instance, each with one unit of a hidden layer set to zero."""
        hidden, values = self.activations(modulations, coords)[layer], []
        for unit in units:
            ablated = hidden.index_fill(-1, unit, 0.0)
            for later in range(layer + 1, self.num_layers):
                ablated = self.apply_layer(later, ablated, modulations)
            values.append(ablated.reshape(1, *ablated.shape[-2:]))
        return torch.cat(values)

    def free(self, modulations: Modulations) -> FreeNetwork:
        """Return a network without normalisation all of whose weights and biases belong to single instances.

        Its latents are ``weight.<layer> (B, I, O)``, normalised where this network normalises, and ``bias.<layer> (B, O)``.

        Raises:
            ValueError: If no layer is modulated, so that the number of instances is unknown.
        """
        if not modulations:
            raise ValueError("The network has no modulated_layers: its weights are the same for all instances.")
        network = CoordinateMLP(
            self.coord_dim,
            self.value_dim,
            [fan_out for _, fan_out in self.layer_sizes[:-1]],
            self.num_layers,
            "all",
            self.encoding,
            self.activation,
            normalize_weights=False,
            output_offset=self.output_offset,
            modulates="both",
        )
        instances, latents = num_instances(modulations), {}
        for layer in range(self.num_layers):
            weight, bias = self.weight_and_bias(layer, modulations)
            latents[f"weight.{layer}"] = weight.expand(instances, -1, -1)
            latents[f"bias.{layer}"] = bias.reshape(-1, bias.shape[-1]).expand(instances, -1)
        return FreeNetwork(latents, network.bind)

    def _encode(self, coords: Tensor) -> Tensor:
        """Return the features of coordinates, in float32 at least: ``(N, F)`` or ``(B, N, F)``."""
        precision = torch.promote_types(
            coords.dtype, next(self.parameters(), coords).dtype
        )  # the network may be float64
        features: Tensor = self.encoding(coords.to(precision))
        return features

    def apply_layer(self, layer: int, hidden: Tensor, modulations: Modulations) -> Tensor:
        """Apply one layer; `forward` is the encoding followed by all layers.

        Args:
            layer: Counted from 0.
            hidden: The features of layer 0 or the activations of the layer before: ``(N, I)`` while they are the same for all
                instances, or ``(B, N, I)``.
            modulations: As for `forward`.

        Returns:
            ``(N, O)`` or ``(B, N, O)``: activations, or of the last layer the values in float32 at least.
        """
        return self._apply_layer(layer, hidden, *self.weight_and_bias(layer, modulations))

    def _apply_layer(self, layer: int, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Apply one layer, given its weight and bias."""
        last = layer == self.num_layers - 1
        bare = layer == 0 and isinstance(self.encoding, IdentityEncoding)
        with self._exact(hidden.device, last or bare):
            if last:
                return _linear(exact(hidden), weight, bias) + self.output_offset
            activations: Tensor = self.activation(_linear(hidden, weight, bias))
            return activations

    def weight_and_bias(self, layer: int, modulations: Modulations) -> tuple[Tensor, Tensor]:
        """Return the weight, normalised, and the bias that a layer computes with.

        Args:
            layer: Counted from 0.
            modulations: As for `forward`.

        Returns:
            ``(I, O)`` and ``(O,)``; where they are modulated ``(B, I, O)`` and ``(B, 1, O)``.
        """
        weight, bias = modulations.get(f"weight.{layer}"), modulations.get(f"bias.{layer}")
        weight = self.weights[str(layer)] if weight is None else weight
        if self.normalize_weights:
            weight = functional.normalize(exact(weight), dim=-2, eps=1e-12)
        if bias is not None:
            return weight, bias.unsqueeze(-2)
        if (shift := modulations.get(f"shift.{layer}")) is not None:
            return weight, (self.biases[str(layer)] + shift).unsqueeze(-2)
        return weight, self.biases[str(layer)]

    @staticmethod
    def _exact(device: torch.device, exact: bool) -> AbstractContextManager[object]:
        """Return a context without autocast where nothing must be rounded: bare coordinates, and the values."""
        return torch.autocast(device.type, enabled=False) if exact else nullcontext()

    def _check(self, coords: Tensor, modulations: Modulations) -> None:
        """Refuse what does not fit this network."""
        if modulations.keys() != self.slots.keys():
            raise ValueError(
                f"Modulations are {sorted(modulations)}; this network takes {sorted(self.slots)} (modulated_layers "
                f"{list(self.modulated_layers)}, modulates {self.modulates})."
            )
        if coords.shape[-1] != self.coord_dim:
            raise ValueError(
                f"coords have {coords.shape[-1]} dimensions, this network takes {self.coord_dim} (coord_dim)."
            )


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply an affine map to ``hidden``, which gains its instances at the first modulated layer."""
    if weight.dim() == 3:
        hidden = hidden if hidden.dim() == 3 else hidden.expand(weight.shape[0], -1, -1)
        return torch.baddbmm(bias.to(hidden.dtype), hidden, weight.to(hidden.dtype))
    rows, weight, bias = hidden.reshape(-1, hidden.shape[-1]), weight.to(hidden.dtype), bias.to(hidden.dtype)
    if bias.dim() == 3:
        return torch.mm(rows, weight).view(*hidden.shape[:-1], -1) + bias
    return torch.addmm(bias, rows, weight).view(*hidden.shape[:-1], -1)


def _per_instance(tensor: Tensor, size: int) -> Sequence[Tensor]:
    """Return the part of a weight or bias of every instance; a shared one unchanged."""
    return tensor.split(1) if tensor.dim() == 3 else [tensor] * size


def num_instances(modulations: Modulations) -> int:
    """Return the number of instances ``B``; 1 without modulations."""
    return max((len(modulation) for modulation in modulations.values()), default=1)


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
