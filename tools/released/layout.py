"""Transfer of weights in the layout of released code into a composer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor

from composers.base import Composer
from composers.networks import CoordinateMLP


def fill(composer: Composer, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> Composer:
    """Load released weights into a composer, and return it in evaluation mode.

    Args:
        composer: The composer that the config of the checkpoint describes.
        weights: The released state dict.
        names: Replacements that turn a name of this software into the released one. The weight and the bias of layer ``i`` of
            the coordinate network are one released matrix, named like ``network.layers.<i>``.

    Raises:
        ValueError: If a weight is missing, unknown or has another shape.
    """
    network = composer.network
    assert isinstance(network, CoordinateMLP)  # of IPC and TransINR
    source = _Source(weights, names)
    return _loaded(composer, source, _layers(network, source))


def fill_by_name(composer: Composer, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> Composer:
    """Load released weights into a composer whose coordinate network has the layers of the released one, as `fill` does."""
    return _loaded(composer, _Source(weights, names), {})


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a state dict without the prefix ``module.`` of data-parallel training."""
    for name, weight in state_dict.items():
        if not (isinstance(name, str) and isinstance(weight, Tensor)):
            raise ValueError(
                f"the state dict contains {name}, which is not a named tensor: pass the state_dict of a checkpoint."
            )
    wrapped = all(name.startswith("module.") for name in state_dict)
    return {name.removeprefix("module.") if wrapped else name: weight for name, weight in state_dict.items()}


class _Source:
    """A released state dict, read by the names of this software, that records every mismatch.

    Args:
        weights: The released state dict, left unchanged.
        names: As for `fill`.
    """

    def __init__(self, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._remaining = dict(weights)
        self._names = names
        self._mismatched: list[str] = []
        self._missing: list[str] = []

    def names(self, name: str) -> list[str]:
        """Return the released names of the parts of a weight: some code stores keys and values separately."""
        for current, released in self._names.items():
            name = name.replace(current, released)
        return [name.replace("key_value", part) for part in ("key", "value")] if "key_value" in name else [name]

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a weight by its released name, or zeros if it does not fit; leading axes of size 1 are ignored."""
        weight = self._remaining.pop(name, None)
        if weight is None:
            self._missing.append(f"{name}: missing in the file, {tuple(shape)} in the model")
        elif _without_leading_ones(weight.shape) != _without_leading_ones(shape):
            self._mismatched.append(f"{name}: {tuple(weight.shape)} in the file, {tuple(shape)} in the model")
        else:
            return weight.reshape(*shape)
        return torch.zeros(*shape)

    def finish(self) -> None:
        """Raise if a weight was missing, had another shape or was not used."""
        unknown = [
            f"{name}: {tuple(weight.shape)} in the file, not in the model" for name, weight in self._remaining.items()
        ]
        lines = [line for mismatches in (self._mismatched, self._missing, unknown) for line in _first(4, mismatches)]
        if lines:
            raise ValueError(
                "the weights do not fit the model that the config describes:\n  "
                + "\n  ".join(lines)
                + "\nUse the config that was saved with them."
            )


def _loaded(composer: Composer, source: _Source, converted: dict[str, Tensor]) -> Composer:
    """Load weights that are converted and the others of a source, and return the composer in evaluation mode."""
    current = composer.state_dict()
    converted |= {
        name: _joined(source, name, weight.shape) for name, weight in current.items() if name not in converted
    }
    source.finish()
    composer.load_state_dict({name: converted[name] for name in current})  # IPC files contain unused base weights
    return composer.eval()


def _layers(network: CoordinateMLP, source: _Source) -> dict[str, Tensor]:
    """Return the weights and biases of the coordinate network; the bias is the last row of a released matrix."""
    parameters = {}
    for layer, (fan_in, fan_out) in enumerate(network.layer_sizes):
        matrix = _joined(source, f"network.layers.{layer}", (fan_in + 1, fan_out))
        parameters[f"network.weights.{layer}"] = parameters[f"parametrization.base_weights.{layer}"] = matrix[:-1]
        parameters[f"network.biases.{layer}"] = matrix[-1]
    return parameters


def _joined(source: _Source, name: str, shape: Sequence[int]) -> Tensor:
    """Return a weight of the given shape, concatenated from its parts."""
    names = source.names(name)
    return torch.cat([source.take(part, (shape[0] // len(names), *shape[1:])) for part in names])


def _first(count: int, lines: Sequence[str]) -> list[str]:
    """Return the first lines, and the number of those that follow."""
    return [*lines[:count], *([f"and {len(lines) - count} more"] if len(lines) > count else [])]


def _without_leading_ones(shape: Sequence[int]) -> list[int]:
    """Return a shape without its leading axes of size 1, which only some files have."""
    return list(dropwhile(lambda size: size == 1, shape))
