"""Fill model arguments that depend on the data, where the parts of the model declare that they come from the data."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace

from composers.base import Composer
from composers.encoders import Encoder
from composers.rendering import PointRenderer, Renderer
from datamodules.base import CoordinateDataModule
from datamodules.configuration import instantiate
from datamodules.spec import DataSpec, declared


def state_sizes(model: Namespace, data: Namespace) -> None:
    """Fill arguments of a model that its parts declare as taken from the data, where the config leaves them None.

    Parts declare these arguments as ``from_data`` (`datamodules.spec.FromData`). Parts of the field, such as the coordinate
    network, take them from the data as seen through the renderer. Explicit arguments are kept, and compared with the data at
    set-up.

    Args:
        model: ``class_path`` and ``init_args`` of a composer; modified in place.
        data: ``class_path`` and ``init_args`` of a data module.

    Raises:
        ValueError: If the renderer does not support the data.
    """
    spec = instantiate(CoordinateDataModule, data.as_dict()).spec  # type: ignore[type-abstract]
    composer = pkgutil.resolve_name(model.class_path)
    of_field: tuple[str, ...] = getattr(composer, "of_field", Composer.of_field)
    _fill(model, spec)
    for name, value in vars(model.init_args).items():
        if name not in of_field:
            for part in _parts(value):
                _fill(part, spec)
    stated = model.init_args.get("renderer")
    renderer = instantiate(Renderer, stated.as_dict()) if stated else PointRenderer()  # type: ignore[type-abstract]
    field_spec = renderer.field_spec(spec)
    for name in of_field:
        for part in _parts(model.init_args.get(name)):
            _fill(part, field_spec)


def stated_argument(model: Namespace, name: str) -> Any:
    """Return the first value that is not None of an argument that parts of a model declare as taken from the data.

    Args:
        model: ``class_path`` and ``init_args`` of a composer.
        name: Name of the argument.
    """
    for part in _parts(model):
        if name in declared(pkgutil.resolve_name(part.class_path)):
            value = (part.get("init_args") or {}).get(name)
            if value is not None:
                return value
    return None


def encodes(model: Namespace) -> bool:
    """Return whether a part of a model encodes signals; other models adapt to samples only."""
    return any(issubclass(pkgutil.resolve_name(part.class_path), Encoder) for part in _parts(model))


def _fill(part: Namespace, spec: DataSpec) -> None:
    """Fill the arguments that one part declares as taken from the data and that are None."""
    arguments = part.get("init_args")
    for name, from_data in declared(pkgutil.resolve_name(part.class_path)).items():
        if arguments is not None and name in arguments and arguments[name] is None:
            value = from_data(spec)
            arguments[name] = list(value) if isinstance(value, tuple) else value


def _parts(value: Any) -> Iterator[Namespace]:
    """Yield every part in a config value: namespaces with a ``class_path``, nested in namespaces, mappings or lists."""
    if isinstance(value, Namespace):
        if isinstance(value.get("class_path"), str):
            yield value
        value = vars(value)
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in nested:
        yield from _parts(item)
