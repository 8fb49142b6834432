"""Composers from configs and checkpoints: `build`, `load` and `save`."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import lightning
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from composers.base import Composer
from composers.checkpoint import WholeFiles, parts_of, read, training_domain
from composers.plugins import check_classes, import_plugins
from datamodules.configuration import instantiate, load_config
from datamodules.domain import Domain, Grid
from datamodules.spec import DataSpec

_FREE_PARTS, _FREE_VALUES = 2000, 1 << 24  # of a model without weights: modules and parameters, and values of a tensor
_TRAINED_ON = "_trained_on"  # attribute of a loaded composer: facts of its training data


def build(config: Mapping[str, Any]) -> Composer:
    """Build a composer from a config with ``class_path`` and ``init_args``, as in ``configs/composers``.

    Raises:
        ValueError: If ``class_path`` is not a composer of this version, or ``init_args`` are not valid.
    """
    composer = instantiate(Composer, config)
    composer.config = copy.deepcopy(dict(config))
    return composer


def load(
    path: str | Path,
    map_location: str | torch.device = "cpu",
    config: Mapping[str, Any] | str | Path | None = None,
    plugins: Iterable[str | ModuleType] = (),
) -> Composer:
    """Load the composer of a checkpoint in evaluation mode.

    Args:
        path: Path of a checkpoint written by ``cli.py fit``, `save` or ``python -m tools.released``; or the name of bundled
            weights: ``photos_patch_ipc``, ``speech_patch_ipc``, ``photos_liif`` or ``photos_ipc``. With ``config``, also of
            weights that another tool saved.
        map_location: Device of the weights.
        config: Config of the model in place of the one in the checkpoint: ``class_path`` and ``init_args``, or a YAML file
            with these keys or with the key ``model``, such as ``config.yaml`` of a run. Its classes are imported.
        plugins: Modules, or their names, that define classes of the config in the checkpoint. They are imported, and all later
            checkpoints in this process may name their classes, too. Other classes from outside this software are refused.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, is not a checkpoint of this software, names classes of other modules, or does not
            match its config.

    Example:
        ``composer = composers.load("photos_patch_ipc")``
    """
    import_plugins(plugins)
    checkpoint = read(path, map_location)
    is_stated = config is None
    if config is None:
        config = stated_config(checkpoint, path)
    elif not isinstance(config, Mapping):
        config = _config_of_file(Path(config))
    with torch.inference_mode(False):  # weights created in inference mode could not be differentiated
        limits = _Limits(checkpoint["state_dict"])
        try:
            with limits if is_stated else contextlib.nullcontext():
                composer = build(config).to(map_location)
        except Exception as error:
            if limits.exceeded:
                raise ValueError(f"{path} belongs to another model: {limits.exceeded}") from error
            if not is_stated and not isinstance(error, ValueError):
                raise
            raise ValueError(f"{path} has a config that cannot be built: {error}") from error
        check_weights(composer, checkpoint, path)
        composer.load_state_dict(checkpoint["state_dict"])
    vars(composer)[_TRAINED_ON] = checkpoint.get("data")
    return composer.eval()


def stated_config(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the config of the model in a checkpoint, after checking the classes that it names.

    Args:
        checkpoint: Content of the checkpoint, as `read` returns it.
        path: Path of the checkpoint for messages.

    Raises:
        ValueError: If the checkpoint has no config, or names classes of modules that were not named.
    """
    config = checkpoint.get("composer")
    if isinstance(config, Mapping):
        check_classes(config, path)
        return dict(config)
    if parts := parts_of(checkpoint["state_dict"]):
        raise ValueError(
            f"{path} holds weights of a composer of this software ({', '.join(parts)}), but no config of its model, because "
            "another tool saved it, or it was created in Python: pass its config with `--config FILE` of cli.py, or "
            f"`composers.load({str(path)!r}, config=FILE)`, such as the config.yaml of its run. `composers.save` then writes a "
            "complete checkpoint."
        )
    raise ValueError(
        f"{path} has no config of its model, and its weights are not those of a composer: it was written by other software. "
        "Convert released weights with `python -m tools.released`."
    )


class _Limits(TorchDispatchMode):
    """Refuse to create many more modules and parameters, or much larger tensors, than the weights of a checkpoint need.

    Args:
        state: The weights, whose number and sizes set the limits.

    Attributes:
        exceeded: What exceeded a limit; empty if nothing did.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parts = 10 * len(state) + _FREE_PARTS
        self._values = 10 * sum(tensor.numel() for tensor in state.values()) + _FREE_VALUES
        self.exceeded = ""
        self._count = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        """Start counting."""
        for register in (register_module_parameter_registration_hook, register_module_module_registration_hook):
            self._hooks.append(register(self._counted))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator, unless it would create a tensor of a stated size that is too large."""
        size = args[0] if args and isinstance(args[0], list | tuple) else ()
        if all(isinstance(length, int) for length in size) and math.prod(size) > self._values:
            self._refuse(f"its config states a tensor of {tuple(size)}, which is much larger than its weights.")
        return func(*args, **(kwargs or {}))

    def _counted(self, module: nn.Module, name: str, part: Any) -> None:
        """Count a module or parameter."""
        self._count += 1
        if self._count > self._parts:
            self._refuse(
                f"its config states more than {self._parts:,} modules and parameters, many more than it has weights."
            )

    def _refuse(self, reason: str) -> None:
        """Record the reason and raise a `ValueError`; the parser of configs replaces its message."""
        self.exceeded = reason
        raise ValueError(reason)


def _config_of_file(path: Path) -> Mapping[str, Any]:
    """Return the config of a model in a YAML file; raise a `ValueError` if there is none."""
    loaded = load_config(path)
    config = loaded.get("model", loaded)
    if not isinstance(config, Mapping) or "class_path" not in config:
        raise ValueError(
            f"{path} contains no config of a model: pass a file with a `model`, such as config.yaml of a run."
        )
    return config


def save(composer: Composer, path: str | Path) -> None:
    """Save the weights and the config of a composer, without the state of training.

    Facts of the training data are kept if the composer was loaded from a checkpoint that states them, or `state_data` did.

    Raises:
        ValueError: If the composer has no config because it was created in Python.
    """
    if composer.config is None:
        raise ValueError(
            "This composer was created in Python and has no config: create it with `composers.build(config)`."
        )
    checkpoint: dict[str, Any] = {"state_dict": composer.state_dict(), "composer": composer.config}
    if (data := vars(composer).get(_TRAINED_ON)) is not None:
        checkpoint["data"] = data
    checkpoint["pytorch-lightning_version"] = lightning.__version__  # required by Lightning
    WholeFiles().save_checkpoint(checkpoint, path)


def check_weights(composer: Composer, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Check that the names and shapes of the weights of a checkpoint are those of a composer.

    Raises:
        ValueError: If they differ; the message lists the first differences.
    """
    model, file = composer.state_dict(), checkpoint["state_dict"]
    differences = [
        f"{key}: {tuple(file[key].shape)} in the file, {tuple(model[key].shape)} in the model"
        for key in model
        if key in file and file[key].shape != model[key].shape
    ]
    differences += [f"{key}: missing in the file" for key in model if key not in file]
    differences += [f"{key}: not in the model" for key in file if key not in model]
    if differences:
        lines = "\n".join(f"  {line}" for line in differences[:8])
        more = f"\n  and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise ValueError(
            f"{path} belongs to another model than the {type(composer).__name__} of this config:\n{lines}{more}\n"
            "Use the config it was trained with (`config.yaml` beside the folder of the checkpoint), or another checkpoint."
        )


def state_data(composer: Composer, spec: DataSpec) -> Composer:
    """State the training data of a composer, as loading a checkpoint that contains them does, and return the composer."""
    vars(composer)[_TRAINED_ON] = spec.facts()
    return composer


def stated_domain(composer: Composer) -> Domain:
    """Return the domain that a loaded composer was trained on; ``[-1, 1]`` per axis if its checkpoint does not state it."""
    return training_domain({"data": vars(composer).get(_TRAINED_ON)}) or Grid.unit(composer.network.coord_dim)


def stated_scale(composer: Composer) -> float:
    """Return the largest scale of super-resolution that a loaded composer was trained on; 4 if its checkpoint states none."""
    scales = (vars(composer).get(_TRAINED_ON) or {}).get("scales")
    return float(scales[1]) if scales else 4.0
