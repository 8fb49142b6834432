"""Checkpoints: composers rebuilt from a file, which is data and never code (``weights_only=True``)."""

from __future__ import annotations

import copy
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
from torch import Tensor

from composers.base import Composer
from datamodules.base import CoordinateDataModule
from datamodules.configuration import instantiate
from datamodules.domain import Domain, Grid, Rays
from datamodules.storage.files import written_whole

_LAST, _PREVIOUS = "last.ckpt", "previous.ckpt"  # of callbacks.saving
_LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
_OF_TRAINING = ("optimizer_states", "lr_schedulers", "loops", "epoch", "global_step", "pytorch-lightning_version")
_WAY_OUT = "take it from its source again, or name another file"
WEIGHTS = Path(__file__).parent.parent / "weights"
_TRAINED_ON = "_trained_on"  # of a loaded composer: what its checkpoint says of the data
_whole: set[tuple[str, int, int, int]] = set()  # files whose checksums were right, as they were then


def build(config: Mapping[str, Any]) -> Composer:
    """Return a new composer of a config: ``class_path`` and ``init_args``, as in ``configs/composers``.

    Raises:
        ValueError: If the config names no composer of this version, or arguments that it does not take.
    """
    composer = instantiate(Composer, config)
    composer.config = copy.deepcopy(dict(config))
    return composer


def load(path: str | Path, map_location: str | torch.device = "cpu") -> Composer:
    """Return the composer of a checkpoint, ready for evaluation.

    Args:
        path: A checkpoint of ``cli.py fit``, of `save`, or of ``python -m tools.released``; or the name of bundled
            weights: ``photos_ipc``.
        map_location: The device of its weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, no checkpoint of this software, or does not fit its own config.

    Example:
        ``composer = composers.load("photos_ipc")``
    """
    checkpoint = read(path, map_location)
    config = checkpoint.get("composer")
    if not isinstance(config, Mapping):
        raise ValueError(
            f"{path} does not say how its model is built: it comes from other software, or from a composer made in Python. "
            "Convert released weights with python -m tools.released; build your own and load its state_dict."
        )
    with torch.inference_mode(False):  # weights made in inference mode could never be differentiated through
        composer = build(config).to(map_location)
        check_weights(composer, checkpoint, path)
        composer.load_state_dict(checkpoint["state_dict"])
    vars(composer)[_TRAINED_ON] = checkpoint.get("data")
    return composer.eval()


def save(composer: Composer, path: str | Path) -> None:
    """Write the weights and the config of a composer, without any state of training.

    What the checkpoint that it was loaded from says of the data of training is written too.

    Raises:
        ValueError: If the composer does not know its config, because it was made in Python.
    """
    if composer.config is None:
        raise ValueError("This composer was made in Python and knows no config: make it with composers.build(config).")
    checkpoint: dict[str, Any] = {"state_dict": composer.state_dict(), "composer": composer.config}
    if (data := vars(composer).get(_TRAINED_ON)) is not None:
        checkpoint["data"] = data
    checkpoint["pytorch-lightning_version"] = lightning.__version__  # cli.py test asks for it
    WholeFiles().save_checkpoint(checkpoint, path)


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there when it is whole; reads it as data alone, if it is undamaged.

    Lightning's own writes to the temporary folder, and copies from there if that is on another disk: when the disk is full
    or the run is killed meanwhile, half a checkpoint is left in the place of the earlier one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, or leave the earlier one as it was."""
        written = io.BytesIO()  # torch.save to a full disk does not say that it is full
        torch.save(checkpoint, written)
        with written_whole(Path(path)) as part:
            part.write_bytes(written.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the content of a checkpoint as `read` does; tensors and plain data alone, whatever ``weights_only`` says.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, holds code, or is no checkpoint.
        """
        checkpoint = read(path, map_location)
        checkpoint.setdefault("pytorch-lightning_version", lightning.__version__)  # what to migrate from
        return checkpoint


def located(path: str | Path) -> Path:
    """Return the file of a checkpoint: the path itself, or that of bundled weights of this name.

    Raises:
        FileNotFoundError: If there is neither.
    """
    shipped = WEIGHTS / path / "weights.ckpt"
    for found in (Path(path), shipped):
        if found.is_file():
            return found
    names = ", ".join(sorted(folder.name for folder in WEIGHTS.glob("*/")))
    raise FileNotFoundError(
        f"There is no checkpoint {path}: train one with cli.py fit, name another file, or take bundled weights: "
        f"{names}."
    )


def check_whole(path: Path) -> None:
    """Refuse a file that is cut off or whose content differs from its checksums; once for a file that does not change.

    Raises:
        ValueError: With the file, and the record in it that is damaged.
    """
    facts = path.stat()
    state = (str(path.resolve()), facts.st_size, facts.st_mtime_ns, facts.st_ino)
    if state in _whole:
        return
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off or no checkpoint: {_WAY_OUT}.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {_WAY_OUT}.") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: its record {damaged} differs from its checksum; {_WAY_OUT}.")
    _whole.add(state)


def read(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Return the content of a checkpoint, which `located` finds, after comparing it with its checksums.

    Args:
        path: The file, or the name of bundled weights.
        map_location: Where tensors go, as of `torch.load`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds code, or is no checkpoint.
    """
    path = located(path)
    check_whole(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # what damaged data raises is not foreseeable
        if held := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds an object, {held[1]}, which could run code and is not loaded: "
                "a checkpoint holds tensors and plain data only."
            ) from error
        raise ValueError(f"{path} is damaged: {_WAY_OUT}.") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ValueError(f"{path} is no checkpoint of this software: it has no state_dict.")
    if odd := [name for name, weight in checkpoint["state_dict"].items() if not isinstance(weight, Tensor)]:
        raise ValueError(f"{path} is no checkpoint of this software: {odd[0]} in its state_dict is no tensor.")
    return checkpoint


def check_state(checkpoint: Mapping[str, Any], path: str | Path, command: str) -> None:
    """Refuse a checkpoint without what a command of the trainer restores.

    Args:
        checkpoint: Its content.
        path: Its name in messages.
        command: ``fit``, which resumes, ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: With what is missing, and the fix.
    """
    if command == "fit" and "optimizer_states" not in checkpoint:
        raise ValueError(
            f"{path} holds weights but no state of training to resume: take a checkpoint of cli.py fit, or start a new run "
            f"from its weights with --weights {path}."
        )
    loops = checkpoint.get("loops")
    missing = [name for name in _OF_TRAINING if name not in checkpoint] if command == "fit" else []
    if loops is not None:
        own = "validate_loop" if command == "validate" else f"{command}_loop"
        missing += [f"loops.{name}" for name in _LOOPS if name == own and name not in loops]
    if missing:
        what, instead = (
            ("resumed", f"start a new run from its weights with --weights {path}")
            if command == "fit"
            else ("loaded", "load its weights in Python with composers.load and write them with composers.save")
        )
        raise ValueError(
            f"{path} cannot be {what}, it lacks {', '.join(missing)}: take another checkpoint, or {instead}."
        )


def check_weights(composer: Composer, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint whose weights are not exactly those of a composer.

    Raises:
        ValueError: With the first differences, both sizes named.
    """
    if found := _differences(composer.state_dict(), checkpoint["state_dict"]):
        shown = "\n".join(f"  {line}" for line in found[:8])
        more = f"\n  and {len(found) - 8} more" if len(found) > 8 else ""
        raise ValueError(
            f"{path} belongs to another model than the {type(composer).__name__} of this config:\n{shown}{more}\n"
            "Use the config it was trained with, which lies beside its folder of checkpoints, or another checkpoint."
        )


def check_data(data: CoordinateDataModule, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse data whose domain is not that which a model was trained on; a checkpoint that does not say passes.

    Raises:
        ValueError: With both domains, what they mean, and the way out.
    """
    stated, spec = _stated_data(checkpoint), data.spec
    if stated is None or stated.domain.agrees(spec.domain):
        return
    found = _Stated(spec.domain, spec.signal_shape, spec.sample_rate)
    way_out = "take data with the coordinates of training"
    if (sample_rate := stated.sample_rate) is not None:
        seconds = f"{stated.signal_shape[-1] / sample_rate:g}"
        way_out = (
            f"give the sampling rate and length of training, --data.init_args.sample_rate {sample_rate}, of a data set seconds "
            f"{seconds} too"
        )
    raise ValueError(
        f"{path} was trained with {stated.describe()}; this {type(data).__name__} has {found.describe()}: {way_out}, or take "
        "another checkpoint."
    )


def stated_domain(composer: Composer) -> Domain:
    """Return the domain that a loaded composer was trained on; ``[-1, 1]`` along every axis if its checkpoint does not say."""
    stated = _stated_data({"data": vars(composer).get(_TRAINED_ON)})
    return Grid.unit(composer.network.coord_dim) if stated is None else stated.domain


def stated_sample_rate(checkpoint: Mapping[str, Any]) -> int | None:
    """Return the samples per second of the sound that a model was trained with; None if its checkpoint does not say.

    Example:
        >>> stated_sample_rate({"data": {"coord_range": [-3.0, 3.0], "signal_shape": [1, 48000]}})
        16000
    """
    stated = _stated_data(checkpoint)
    return None if stated is None else stated.sample_rate


def newest(folder: str | Path) -> Path:
    """Return the newest ``last.ckpt`` of the runs in a folder; if it is damaged, ``previous.ckpt`` beside it, and say so.

    Raises:
        FileNotFoundError: If no run there has one.
        ValueError: If it is damaged, and the one before too or not there.
    """
    found = sorted(Path(folder).glob(f"*/checkpoints/{_LAST}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"There is no */checkpoints/last.ckpt in {folder}: train first, or give the path of a checkpoint."
        )
    return intact(found[-1])


def intact(last: Path) -> Path:
    """Return a ``last.ckpt``; if it is damaged, ``previous.ckpt`` beside it, with a warning.

    Raises:
        ValueError: If it is damaged, and the one before too or not there.
    """
    previous = last.with_name(_PREVIOUS)
    try:
        check_whole(last)
    except ValueError as error:
        if not previous.is_file():
            raise
        try:
            check_whole(previous)
        except ValueError as other:
            raise ValueError(f"{error} {other}") from other
        _warn(f"{error} Continuing from {previous}, the checkpoint before it.")
        return previous
    return last


@rank_zero_only
def _warn(line: str) -> None:
    """Print a warning of one line, on one process."""
    print(f"warning: {line}", file=sys.stderr)


class _Stated(NamedTuple):
    """What a checkpoint states of the data of training, as far as it is compared."""

    domain: Domain
    signal_shape: tuple[int, ...]
    sample_rate: int | None

    def describe(self) -> str:
        """Return the domain in words, and of audio what it means."""
        if self.sample_rate is None:
            return self.domain.describe()
        seconds = self.signal_shape[-1] / self.sample_rate
        return f"{self.domain.describe()} (pieces of {seconds:g} s at {self.sample_rate:,} samples a second)"


def _stated_data(checkpoint: Mapping[str, Any]) -> _Stated | None:
    """Return what a checkpoint states of the data of training; None if it does not say.

    Raises:
        ValueError: If it states no domain.
    """
    stated = checkpoint.get("data")
    if not isinstance(stated, Mapping):
        return None
    try:
        shape = tuple(stated["signal_shape"])
        if "domain" not in stated:
            return _stated_before(stated["coord_range"], shape)
        return _Stated(Domain.from_config(stated["domain"]), shape, stated.get("sample_rate"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The checkpoint states its data without a domain and a signal_shape ({error}): name another file."
        ) from error


def _stated_before(coord_range: tuple[float, float], shape: tuple[int, ...]) -> _Stated:
    """Return what a checkpoint means that states one range for all axes, as they did before there were domains.

    Of its shapes, only those of views had four numbers, and only those of audio two.
    """
    low, high = coord_range
    domain = Rays() if len(shape) == 4 else Grid(((low, high),) * (len(shape) - 1))
    return _Stated(domain, shape, round(2 * shape[-1] / (high - low)) if len(shape) == 2 else None)


def _differences(model: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> list[str]:
    """Return one readable line for every entry that differs."""
    missing = [f"{key}: missing in the file" for key in model if key not in file]
    unknown = [f"{key}: not in the model" for key in file if key not in model]
    sizes = [
        f"{key}: {tuple(file[key].shape)} in the file, {tuple(model[key].shape)} in the model"
        for key in model
        if key in file and file[key].shape != model[key].shape
    ]
    return sizes + missing + unknown
