"""Checkpoint files: write them atomically, and read them without running code (``weights_only=True``)."""

from __future__ import annotations

import io
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import load_file
from torch import Tensor

from datamodules.base import CoordinateDataModule
from datamodules.domain import Domain, Grid, Rays
from datamodules.spec import agrees
from datamodules.storage.files import written_whole
from datamodules.storage.text import visible

_LAST, _PREVIOUS = "last.ckpt", "previous.ckpt"  # as in `callbacks.saving`, which this module may not import
_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
_TRAINING_KEYS = ("optimizer_states", "lr_schedulers", "loops", "epoch", "global_step", "pytorch-lightning_version")
_STATES = ("model_state_dict", "model", "module", "weights", "ema")  # where other tools keep weights
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_PARTS = {"network", "parametrization", "start", "inner", "refinement", "renderer", "loss", "measures", "means"}
_COUNTERS = ("n_averaged",)  # of torch.optim.swa_utils.AveragedModel
_FIX = "copy or download it again, or use another file"
WEIGHTS = Path(__file__).parent.parent / "weights"
_verified: set[tuple[str, int, int, int]] = (
    set()
)  # path, size, modification time and inode of files with valid checksums


class WholeFiles(TorchCheckpointIO):
    """Write checkpoints atomically; read them after verifying their checksums, without running code.

    A checkpoint is written to a temporary file in its folder and then renamed. Lightning's plugin writes to the temporary
    folder of the system and copies the file if that is on another disk: if the disk is full or the run is killed, a truncated
    file replaces the earlier checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, or leave the earlier one unchanged."""
        buffer = io.BytesIO()  # `torch.save` to a file does not report a full disk as such
        torch.save(checkpoint, buffer)
        with written_whole(Path(path)) as part:
            part.write_bytes(buffer.getvalue())  # no view: Python 3.12.1 crashes if it outlives a full disk

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the content of a checkpoint as `read` does, always as with ``weights_only=True``.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file is damaged, holds other objects than tensors and plain data, or is not a checkpoint.
        """
        checkpoint = read(path, map_location)
        checkpoint.setdefault(
            "pytorch-lightning_version", lightning.__version__
        )  # the version that Lightning migrates from
        return checkpoint


def located(path: str | Path) -> Path:
    """Return the path of a checkpoint: ``path`` itself, or that of the bundled weights with this name.

    Raises:
        FileNotFoundError: If neither exists.
    """
    for candidate in (Path(path), WEIGHTS / path / "weights.ckpt"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(folder.name for folder in WEIGHTS.glob("*/")))
    raise FileNotFoundError(
        f"There is no checkpoint {path}: train one with `cli.py fit`, pass another path, or the name of bundled weights: "
        f"{names}."
    )


def check_whole(path: Path) -> None:
    """Check that a file is complete and matches its checksums; a file that has not changed is checked once.

    Raises:
        ValueError: If it is truncated or damaged; the message names the damaged record.
    """
    stat = path.stat()
    state = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if state in _verified:
        return
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is truncated or not a checkpoint: {_FIX}.")
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise ValueError("its records are compressed, which torch.save does not do")
            if sum(record.file_size for record in records) > stat.st_size:
                raise ValueError("its records overlap")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_FIX}.") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: its record {damaged} differs from its checksum; {_FIX}.")
    _verified.add(state)


def read(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Return the content of a checkpoint after verifying its checksums.

    Args:
        path: Path of the file, or the name of bundled weights.
        map_location: Device of the tensors, as in `torch.load`.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged, holds other objects than tensors and plain data, or is not a checkpoint.
    """
    path = located(path)
    content = _content(path, map_location)
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        state = _state_of_other_tools(content)
    if state is None:
        raise ValueError(f"{path} is not a checkpoint of this software: it has no `state_dict`.")
    if not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path} is not a checkpoint of this software: a name in its `state_dict` is not a string.")
    normalised = _own_names(state)
    for name, weight in normalised.items():
        if not isinstance(weight, Tensor):
            raise ValueError(
                f"{path} is not a checkpoint of this software: {visible(name)} in its `state_dict` is not a tensor."
            )
        if weight.layout != torch.strided or weight.untyped_storage().nbytes() < weight.nbytes:
            raise ValueError(f"{path} is not a checkpoint of this software: {visible(name)} is not a dense tensor.")
    checkpoint = {} if state is content else {key: value for key, value in content.items() if value is not state}
    if "composer" not in checkpoint:
        checkpoint["composer"] = _config_of_other_tools(checkpoint)
    return checkpoint | {"state_dict": normalised}


def parts_of(state: Mapping[str, Any]) -> list[str]:
    """Return the parts of a composer that weights belong to, by their names; empty if these are not weights of a composer."""
    parts = list(dict.fromkeys(name.partition(".")[0] for name in state))
    return parts if set(parts) <= _PARTS and {"network", "start"} & set(parts) else []


def _content(path: Path, map_location: Any) -> dict[Any, Any]:
    """Return the content of a checkpoint or of a safetensors file; raise a `ValueError` if it is damaged."""
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path, device=str(map_location)))
        except Exception as error:  # damaged data may raise any exception
            raise ValueError(f"{path} is damaged or not a safetensors file: {_FIX}.") from error
    check_whole(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # damaged data may raise any exception
        if match := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds an object, {visible(match[1])}, which could run code and is not loaded: "
                "a checkpoint may only hold tensors and plain data."
            ) from error
        raise ValueError(f"{path} is damaged: {_FIX}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint of this software: it has no `state_dict`.")
    return content


def _state_of_other_tools(content: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """Return the weights of a composer in a file without ``state_dict``, its content or one of its entries; None if missing."""
    for state in (content, *(content.get(key) for key in _STATES)):
        if isinstance(state, Mapping) and all(isinstance(name, str) for name in state) and parts_of(_own_names(state)):
            return state
    return None


def _own_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights by their names in a composer, without the prefixes that wrappers and other tools add.

    These are the wrappers of `torch.compile`, data parallelism, FSDP and averaged weights, and the attribute of a module that
    holds the composer. Weights that are not those of a composer keep their names.
    """
    names = {name: _WRAPPERS.sub("", name).removeprefix("module.") for name in state if name not in _COUNTERS}
    while names and len(first := {name.partition(".")[0] for name in names.values()}) == 1 and not first & _PARTS:
        if not all("." in name for name in names.values()):
            return dict(state)
        names = {name: short.partition(".")[2] for name, short in names.items()}
    return (
        {short: state[name] for name, short in names.items()}
        if parts_of(dict.fromkeys(names.values()))
        else dict(state)
    )


def _config_of_other_tools(checkpoint: Mapping[str, Any]) -> Any:
    """Return the config of a model where other tools than this software keep it; None if there is none."""
    for key in ("hyper_parameters", "config"):
        stated = checkpoint.get(key)
        for config in (stated, stated.get("model") if isinstance(stated, Mapping) else None):
            if isinstance(config, Mapping) and isinstance(config.get("class_path"), str):
                return config
    return None


def check_state(checkpoint: Mapping[str, Any], path: str | Path, command: str) -> None:
    """Check that a checkpoint holds everything that a command of the trainer restores.

    Args:
        checkpoint: Content of the checkpoint.
        path: Path of the checkpoint for the error message.
        command: ``fit``, which resumes training, ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: If entries are missing.
    """
    if command == "fit" and "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{path} holds weights but no state of training to resume: use a checkpoint of `cli.py fit`, or start a new run "
            f"from its weights with `--weights {path}`."
        )
    loops = checkpoint.get("loops")
    missing = [name for name in _TRAINING_KEYS if name not in checkpoint] if command == "fit" else []
    if loops is not None:
        missing += [f"loops.{name}" for name in _LOOPS if name == f"{command}_loop" and name not in loops]
    if missing:
        action, fix = (
            ("resumed", f"start a new run from its weights with `--weights {path}`")
            if command == "fit"
            else ("loaded", "load its weights in Python with `composers.load` and save them with `composers.save`")
        )
        raise ValueError(f"{path} cannot be {action}, it lacks {', '.join(missing)}: use another checkpoint, or {fix}.")


def check_data(data: CoordinateDataModule, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Check that domain and sampling rate of the data are those of the training data; a checkpoint without them passes.

    Raises:
        ValueError: If they differ.
    """
    stated, spec = _training_data(checkpoint), data.spec
    if stated is None or (stated.domain.agrees(spec.domain) and agrees(stated.sample_rate, spec.sample_rate)):
        return
    actual = _DataFacts(spec.domain, spec.signal_shape, spec.sample_rate)
    fix = "use data with the coordinates of the training data"
    if (sample_rate := stated.sample_rate) is not None:
        seconds = f"{stated.signal_shape[-1] / sample_rate:g}"
        fix = (
            f"use `--data.init_args.sample_rate {sample_rate}` and, for a data set, `--data.init_args.seconds {seconds}` as in "
            "training"
        )
    raise ValueError(
        f"{path} was trained with {stated.describe()}; this {type(data).__name__} has {actual.describe()}: {fix}, or use "
        "another checkpoint."
    )


def training_domain(checkpoint: Mapping[str, Any]) -> Domain | None:
    """Return the domain that the model of a checkpoint was trained on; None if the checkpoint does not state it."""
    stated = _training_data(checkpoint)
    return None if stated is None else stated.domain


def stated_sample_rate(checkpoint: Mapping[str, Any]) -> int | None:
    """Return the sampling rate in Hz of the audio that a model was trained on; None if its checkpoint does not state it.

    Example:
        >>> stated_sample_rate({"data": {"coord_range": [-3.0, 3.0], "signal_shape": [1, 48000]}})
        16000
    """
    stated = _training_data(checkpoint)
    return None if stated is None else stated.sample_rate


def newest(folder: str | Path) -> Path:
    """Return the newest ``last.ckpt`` of the runs in a folder; if it is damaged, ``previous.ckpt`` with a warning.

    Raises:
        FileNotFoundError: If no run in the folder has a ``last.ckpt``.
        ValueError: If both are damaged, or ``last.ckpt`` is damaged and ``previous.ckpt`` does not exist.
    """
    paths = sorted(Path(folder).glob(f"*/checkpoints/{_LAST}"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise FileNotFoundError(
            f"There is no */checkpoints/last.ckpt in {folder}: train first, or pass the path of a checkpoint."
        )
    return intact(paths[-1])


def intact(last: Path) -> Path:
    """Return the path of a ``last.ckpt``; if it is damaged, that of ``previous.ckpt`` with a warning.

    Raises:
        ValueError: If both are damaged, or ``last.ckpt`` is damaged and ``previous.ckpt`` does not exist.
    """
    previous = last.with_name(_PREVIOUS)
    try:
        check_whole(last)
    except ValueError as error:
        if not previous.is_file():
            raise
        try:
            check_whole(previous)
        except ValueError as previous_error:
            raise ValueError(f"{error} {previous_error}") from previous_error
        rank_zero_only(print)(f"warning: {error} Using the previous checkpoint {previous} instead.", file=sys.stderr)
        return previous
    return last


class _DataFacts(NamedTuple):
    """Facts of data that decide whether a model fits them."""

    domain: Domain
    signal_shape: tuple[int, ...]
    sample_rate: int | None

    def describe(self) -> str:
        """Return the domain as text, for audio with duration and sampling rate."""
        if self.sample_rate is None:
            return self.domain.describe()
        if self.signal_shape[-1] < 0:
            return f"{self.domain.describe()} ({self.sample_rate:,} Hz)"
        seconds = self.signal_shape[-1] / self.sample_rate
        return f"{self.domain.describe()} ({seconds:g} s at {self.sample_rate:,} Hz)"


def _training_data(checkpoint: Mapping[str, Any]) -> _DataFacts | None:
    """Return the facts of the training data in a checkpoint, or None if it has none.

    Raises:
        ValueError: If it states no domain or no signal shape.
    """
    stated = checkpoint.get("data")
    if not isinstance(stated, Mapping):
        return None
    try:
        shape = tuple(stated["signal_shape"])
        if "domain" not in stated:
            return _legacy_data(stated["coord_range"], shape)
        return _DataFacts(Domain.from_config(stated["domain"]), shape, stated.get("sample_rate"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The checkpoint states its training data without a domain and a signal_shape ({error}): use another file."
        ) from error


def _legacy_data(coord_range: tuple[float, float], shape: tuple[int, ...]) -> _DataFacts:
    """Return the facts of the training data in a checkpoint of an earlier version, with one coordinate range for all axes.

    In these versions, only views had signals of four axes, and only audio had signals of two.
    """
    low, high = coord_range
    domain = Rays() if len(shape) == 4 else Grid(((low, high),) * (len(shape) - 1))
    return _DataFacts(domain, shape, round(2 * shape[-1] / (high - low)) if len(shape) == 2 else None)
