"""What the data states, written into the config of a model where its parts declare that they take it from the data."""

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
    """Fill the arguments of a model that its parts declare to take from the data, where the config leaves them None.

    A part declares them as ``from_data`` (`datamodules.spec.FromData`). Parts of the field, such as the coordinate network,
    take what the renderer makes of the data. An argument that was given stays, and is compared at set-up.

    Args:
        model: ``class_path`` and ``init_args`` of a composer; changed in place.
        data: The same of a data module.

    Raises:
        ValueError: If the renderer cannot make such data.
    """
    spec = instantiate(CoordinateDataModule, data.as_dict()).spec  # type: ignore[type-abstract]
    composer = pkgutil.resolve_name(model.class_path)
    of_field: tuple[str, ...] = getattr(composer, "of_field", Composer.of_field)
    _fill(model, spec)
    for name, value in vars(model.init_args).items():
        if name not in of_field:
            _fill_all(value, spec)
    stated = model.init_args.get("renderer")
    renderer = instantiate(Renderer, stated.as_dict()) if stated else PointRenderer()  # type: ignore[type-abstract]
    field = renderer.field_spec(spec)
    for name in of_field:
        _fill_all(model.init_args.get(name), field)


def stated_argument(model: Namespace, name: str) -> Any:
    """Return the value of an argument that parts of a model declare to take from the data, the first that is not None.

    Args:
        model: ``class_path`` and ``init_args`` of a composer.
        name: Of the argument.
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


def _fill_all(value: Any, spec: DataSpec) -> None:
    """Fill a part and all parts in it."""
    for part in _parts(value):
        _fill(part, spec)


def _fill(part: Namespace, spec: DataSpec) -> None:
    """Fill the arguments that one part declares and that are None."""
    arguments = part.get("init_args")
    for name, value in declared(pkgutil.resolve_name(part.class_path)).items():
        if arguments is not None and name in arguments and arguments[name] is None:
            stated = value(spec)
            arguments[name] = list(stated) if isinstance(stated, tuple) else stated


def _parts(value: Any) -> Iterator[Namespace]:
    """Yield every part in a value of a config: a namespace with ``class_path``, in namespaces, mappings or lists."""
    if isinstance(value, Namespace):
        if isinstance(value.get("class_path"), str):
            yield value
        value = vars(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inside:
        yield from _parts(each)
