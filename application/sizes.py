"""Sizes that the data states, written into the config of a model."""

from __future__ import annotations

from jsonargparse import Namespace

from composers.rendering import PointRenderer, Renderer
from datamodules.base import CoordinateDataModule
from datamodules.configuration import instantiate


def state_sizes(model: Namespace, data: Namespace) -> None:
    """Write into the config of a model, where it leaves them open, the sizes that the data states.

    ``signal_shape`` is the data's own, and of scenes the depths ``near`` and ``far`` between which they lie; ``coord_dim`` and
    ``value_dim`` of the network are those that the renderer asks of a field. A size that was given stays, and is compared at
    set-up.

    Args:
        model: ``class_path`` and ``init_args`` of a composer; changed in place.
        data: The same of a data module.
    """
    module = instantiate(CoordinateDataModule, data.as_dict())  # type: ignore[type-abstract]
    stated = model.init_args.get("renderer")
    renderer = instantiate(Renderer, stated.as_dict()) if stated else PointRenderer()  # type: ignore[type-abstract]
    coord_dim, value_dim = renderer.field_dims(module.coord_dim, module.value_dim)
    sizes = {"coord_dim": coord_dim, "value_dim": value_dim, "signal_shape": list(module.signal_shape)}
    sizes |= {name: getattr(module, name) for name in ("near", "far") if hasattr(module, name)}
    for key, value in list(model.items()):
        name = key.rsplit(".", 1)[-1]
        if value is None and name in sizes:
            model[key] = sizes[name]
