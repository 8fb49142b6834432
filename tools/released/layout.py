"""Weights of a file in the layout of released code, moved into a composer: all of them, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor

from composers.base import Composer
from composers.networks import CoordinateMLP


def fill(composer: Composer, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> Composer:
    """Give a composer the weights of a file, and return it ready for evaluation.

    Args:
        composer: Built as the config of the file says.
        weights: The state dict of the file.
        names: From parts of our names to what the file has there; ``inr.layers.`` are the layers of the coordinate network.

    Raises:
        ValueError: If a weight is missing, unknown or of another shape.
    """
    file, own = _File(weights, names), composer.state_dict()
    found = _layers(composer.network, file)
    found |= {name: _joined(file, name, weight.shape) for name, weight in own.items() if name not in found}
    file.finish()
    composer.load_state_dict({name: found[name] for name in own})  # IPC files hold base weights that nobody reads
    return composer.eval()


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a state dict without the ``module.`` that data parallel training puts in front of every name."""
    if odd := [
        name for name, weight in state_dict.items() if not (isinstance(name, str) and isinstance(weight, Tensor))
    ]:
        raise ValueError(
            f"the state dict holds {odd[0]}, which is no named tensor: pass the state_dict of a checkpoint."
        )
    wrapped = all(name.startswith("module.") for name in state_dict)
    return {name.removeprefix("module.") if wrapped else name: weight for name, weight in state_dict.items()}


class _File:
    """The weights of a file by our names, and a list of all that does not fit.

    Args:
        weights: The state dict, which is left as it is.
        names: As `fill`.
    """

    def __init__(self, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._left = dict(weights)
        self._names = names
        self._misshapen: list[str] = []
        self._missing: list[str] = []

    def names(self, name: str) -> list[str]:
        """Return the names in the file of the parts of one of our weights: some code keeps keys and values apart."""
        for ours, theirs in self._names.items():
            name = name.replace(ours, theirs)
        return [name.replace("key_value", part) for part in ("key", "value")] if "key_value" in name else [name]

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return a weight by its name in the file, zeros if it does not fit; leading axes of size 1 do not count."""
        weight = self._left.pop(name, None)
        if weight is None:
            self._missing.append(f"{name}: missing in the file, {tuple(shape)} in the model")
        elif _without_leading_ones(weight.shape) != _without_leading_ones(shape):
            self._misshapen.append(f"{name}: {tuple(weight.shape)} in the file, {tuple(shape)} in the model")
        else:
            return weight.reshape(*shape)
        return torch.zeros(*shape)

    def finish(self) -> None:
        """Refuse a file of which anything was missing, misshapen or not taken."""
        unknown = [f"{name}: {tuple(found.shape)} in the file, not in the model" for name, found in self._left.items()]
        if lines := [line for misfits in (self._misshapen, self._missing, unknown) for line in _first(4, misfits)]:
            raise ValueError(
                "the weights are of another model than their config describes:\n  "
                + "\n  ".join(lines)
                + "\nTake the config that was written beside them."
            )


def _layers(inr: CoordinateMLP, file: _File) -> dict[str, Tensor]:
    """Return weights and biases of the coordinate network, by all our names: the bias is a layer's last row in the file."""
    found = {}
    for layer, (fan_in, fan_out) in enumerate(inr.layer_sizes):
        matrix = _joined(file, f"inr.layers.{layer}", (fan_in + 1, fan_out))
        found[f"inr.weights.{layer}"] = found[f"base_weights.{layer}"] = matrix[:-1]
        found[f"inr.biases.{layer}"] = matrix[-1]
    return found


def _joined(file: _File, name: str, shape: Sequence[int]) -> Tensor:
    """Return a weight of this shape, made of one part or of several of equal height."""
    names = file.names(name)
    return torch.cat([file.take(part, (shape[0] // len(names), *shape[1:])) for part in names])


def _first(count: int, lines: Sequence[str]) -> list[str]:
    """Return the first lines, and how many follow."""
    return [*lines[:count], *([f"and {len(lines) - count} more like the last"] if len(lines) > count else [])]


def _without_leading_ones(shape: Sequence[int]) -> list[int]:
    """Return a shape without the axes of size 1 in front, which some files have and others not."""
    return list(dropwhile(lambda size: size == 1, shape))
