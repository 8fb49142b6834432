"""Export a checkpoint as programs that run without this software: encoder and decoder for torch.export, and for ONNX."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import logging
import sys
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from composers.base import Composer
from composers.checkpoint import load
from composers.configuration import readable
from composers.refinement import Latents
from composers.rendering import PointRenderer
from datamodules.batch import Observation

TOLERANCE = 1e-5
PROGRAMS = ("encoder.pt2", "decoder.pt2", "encoder.onnx", "decoder.onnx")
DESCRIPTION = "export.json"

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_TRACED = (2, 5)  # instances and coordinates; tracing takes sizes of 0 and 1 for constants
_COMPARED = ((1, 1), (3, 7))
_B, _N = Dim("B"), Dim("N")

Inputs = dict[str, Tensor | Latents]
Program = Callable[..., Tensor | Latents]


def export_encoder(composer: Composer, shape: Sequence[int] | None = None) -> ExportedProgram:
    """Return the program from a signal ``(B, C, *shape)`` to the latents, a dictionary by name, for any ``B``.

    Args:
        composer: In float32 on the CPU; traced as in evaluation, and left in the mode it is in.
        shape: Sizes of the axes of the signal, only where the tokenizer leaves them open.

    Returns:
        A program that shares its weights with the composer; `torch.export.save` writes them.

    Raises:
        ValueError: If the composer looks at no tensor signal, or cannot be traced.
    """
    return _trace(_Encoder(composer, shape))


def export_decoder(composer: Composer, shape: Sequence[int] | None = None) -> ExportedProgram:
    """Return the program from latents and ``coords (N, D)``, shared by the batch, to values ``(B, N, C)``.

    It holds for any ``B`` and ``N``, and can be differentiated by the latents, for a refinement elsewhere.

    Args:
        composer: In float32 on the CPU; traced as in evaluation, and left in the mode it is in.
        shape: Sizes of the axes of the signal, only where the tokenizer leaves them open.

    Returns:
        A program that shares its weights with the composer; `torch.export.save` writes them.

    Raises:
        ValueError: If the composer looks at no tensor signal, renders otherwise than at points, or cannot be traced.
    """
    return _trace(_Decoder(composer, shape))


def export(
    composer: Composer,
    folder: str | Path,
    onnx: bool = False,
    shape: Sequence[int] | None = None,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write encoder and decoder, read them again and compare them with the composer: all files are written, or none.

    The folder then holds ``encoder.pt2`` and ``decoder.pt2``, with ``onnx`` also ``encoder.onnx`` and ``decoder.onnx``, and
    ``export.json``, which says what goes in and what comes out.

    Args:
        composer: In float32 on the CPU; left in the mode it is in.
        folder: Made if it does not exist.
        onnx: Whether to write ONNX too; needs the packages onnx, onnxscript and onnxruntime.
        shape: Sizes of the axes of the signal, only where the tokenizer leaves them open.
        overwrite: Whether an earlier export in the folder is replaced.

    Returns:
        By file name, the largest difference to the composer, for one instance at one coordinate and for several at several:
        absolute where numbers stay below 1, else relative to the largest.

    Raises:
        ValueError: If the composer cannot be exported, a package is missing, the folder cannot be written or holds an
            export, or a program differs by more than 1e-5.
    """
    if onnx:
        _check_packages()
    folder = Path(folder)
    if not overwrite and (there := [name for name in (*PROGRAMS, DESCRIPTION) if (folder / name).exists()]):
        raise ValueError(
            f"{folder} holds {', '.join(there)}: name another folder, or replace them with --overwrite true."
        )
    halves: list[_Half] = [_Encoder(composer, shape), _Decoder(composer, shape)]
    with _workplace(folder) as work:
        differences = {path.name: _difference(half, path) for half in halves for path in _write(half, work, onnx)}
        if wrong := {name: number for name, number in differences.items() if not number <= TOLERANCE}:
            raise ValueError(
                f"{', '.join(f'{name} differs by {number:.1e}' for name, number in wrong.items())} from the composer, "
                f"more than {TOLERANCE:.0e}, so nothing was written: this network amplifies rounding, as steep activations and "
                "high frequencies do. Leave --onnx out if only ONNX differs."
            )
        described = json.dumps(_describe(halves, differences), indent=2)
        (work / DESCRIPTION).write_text(described + "\n", encoding="utf-8")
        _move(work, folder)
    return differences


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends with one message, and exit status 2 if in the arguments, else 1.

    Args:
        args: What the command line would say; the command line itself if None.
    """
    parser = ArgumentParser(prog="python -m composers.export", description=__doc__, exit_on_error=False)
    parser.add_function_arguments(_command, as_group=False, as_positional=True)
    try:
        _command(**parser.parse_args(args).as_dict())
    except ArgumentError as error:
        print(f"error: {readable(error)}", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _command(
    checkpoint: Path, folder: Path, onnx: bool = False, shape: list[int] | None = None, overwrite: bool = False
) -> None:
    """Export a checkpoint and say what was written.

    Args:
        checkpoint: A checkpoint of cli.py fit, of composers.save, or of python -m composers.released.
        folder: Where to write; made if it does not exist.
        onnx: Whether to write ONNX too; needs the packages onnx, onnxscript and onnxruntime.
        shape: Sizes of the axes of the signal, as in "[178, 178]"; only for a checkpoint that leaves them open.
        overwrite: Whether an earlier export in the folder is replaced.
    """
    differences = export(load(checkpoint), folder, onnx, shape, overwrite)
    for name, difference in differences.items():
        size = (folder / name).stat().st_size / 1e6
        print(f"Wrote {folder / name}: {size:.1f} MB, read again, differs by at most {difference:.1e}.")
    print(f"Wrote {folder / DESCRIPTION}: what goes in and what comes out.")


class _Half(nn.Module, ABC):
    """One of the two programs, as torch traces it and as the composer itself computes it.

    Args:
        composer: What is exported.
        shape: Sizes of the axes of the signal, or None.

    Attributes:
        example: Inputs that it is traced with.
        outputs: What it makes of them, by name.
    """

    name: str

    def __init__(self, composer: Composer, shape: Sequence[int] | None) -> None:
        super().__init__()
        _check_weights(composer)
        self.composer = composer
        self.signal_shape = _signal_shape(composer, shape)
        self.example = self.inputs(*_TRACED)
        self.outputs = self.call(self, self.example)

    @abstractmethod
    def inputs(self, batch_size: int, num_coords: int) -> Inputs:
        """Return random inputs by name, in the order of `forward`."""

    @abstractmethod
    def eager(self, *inputs: Any) -> Tensor | Latents:
        """Return what the composer makes of these inputs."""

    def signals(self, batch_size: int) -> Tensor:
        """Return random signals ``(B, C, *shape)`` in [0, 1]."""
        generator = torch.Generator().manual_seed(batch_size)
        return torch.rand(batch_size, *self.signal_shape, generator=generator)

    def call(self, program: Program, inputs: Inputs) -> Latents:
        """Return the outputs of a program by name, without gradients and in evaluation mode."""
        message = f"The {self.name} of {type(self.composer).__name__} cannot be exported"
        with _refusing(message), _evaluating(self.composer), torch.no_grad():
            outputs = program(*inputs.values())
        return {"values": outputs} if isinstance(outputs, Tensor) else outputs


class _Encoder(_Half):
    """From a signal to latents."""

    name = "encoder"

    def inputs(self, batch_size: int, num_coords: int) -> Inputs:
        """Return random signals."""
        return {"signal": self.signals(batch_size)}

    def forward(self, signal: Tensor) -> Latents:
        """Return the latents of signals ``(B, C, *shape)``."""
        return self.composer.encode(Observation(signal))

    eager = forward


class _Decoder(_Half):
    """From latents and coordinates to values: the field itself, because a renderer's chunks would fix ``N``."""

    name = "decoder"

    def __init__(self, composer: Composer, shape: Sequence[int] | None) -> None:
        if not isinstance(composer.renderer, PointRenderer):
            raise ValueError(
                f"The renderer is a {type(composer.renderer).__name__}; only values at points (PointRenderer) are exported."
            )
        super().__init__(composer, shape)

    def inputs(self, batch_size: int, num_coords: int) -> Inputs:
        """Return the latents of random signals, and random coordinates in [-1, 1]."""
        signals: Inputs = {"signal": self.signals(batch_size)}
        latents = self.call(lambda signal: self.composer.encode(Observation(signal)), signals)
        generator = torch.Generator().manual_seed(num_coords)
        coords = 2 * torch.rand(num_coords, self.composer.inr.coord_dim, generator=generator) - 1
        return {"latents": latents, "coords": coords}

    def forward(self, latents: Latents, coords: Tensor) -> Tensor:
        """Return the values ``(B, N, C)`` at ``coords (N, D)``."""
        values: Tensor = self.composer.inr(coords, self.composer.compose(latents))
        return values

    def eager(self, latents: Latents, coords: Tensor) -> Tensor:
        """Return the values ``(B, N, C)`` as the composer renders them."""
        return self.composer.render(self.composer.compose(latents), coords)


def _trace(half: _Half) -> ExportedProgram:
    """Return the program of a half, with the weights that it reads and no others."""
    with _refusing(f"The {half.name} of {type(half.composer).__name__} cannot be exported"), _evaluating(half.composer):
        program = torch.export.export(
            half,
            tuple(half.example.values()),
            dynamic_shapes=_free_sizes(half.example),
            strict=True,  # or else the len() of a tensor becomes a constant
        )
    for name in program.state_dict.keys() - {spec.target for spec in program.graph_signature.input_specs}:
        del program.state_dict[name]
    return program


def _free_sizes(inputs: Inputs) -> dict[str, Any]:
    """Return which sizes of the inputs are free: the first, ``N`` of coordinates and ``B`` of all else."""
    return {
        name: {0: _N if name == "coords" else _B} if isinstance(value, Tensor) else {key: {0: _B} for key in value}
        for name, value in inputs.items()
    }


def _write(half: _Half, folder: Path, onnx: bool) -> list[Path]:
    """Write the programs of a half and return their files."""
    program = _trace(half)
    path = folder / f"{half.name}.pt2"
    written = io.BytesIO()  # torch.save to a full disk does not say that it is full
    torch.export.save(program, written)
    path.write_bytes(written.getbuffer())
    if not onnx:
        return [path]
    _write_onnx(half, program, path.with_suffix(".onnx"))
    return [path, path.with_suffix(".onnx")]


def _write_onnx(half: _Half, program: ExportedProgram, path: Path) -> None:
    """Write a program as ONNX, its inputs, outputs and free sizes by name."""
    with _refusing(f"{path.name} cannot be written, leave --onnx out"), _quiet():
        written = torch.onnx.export(
            program,
            input_names=list(_flat(half.example)),
            output_names=list(half.outputs),
            dynamic_shapes=_free_sizes(half.example),
            dynamo=True,
            verbose=False,
        )
        assert written is not None, "without a file name a program is returned"
    written.save(path)


def _difference(half: _Half, path: Path) -> float:
    """Return the largest difference between a file, read again, and the composer."""
    program = _onnx_program(path) if path.suffix == ".onnx" else torch.export.load(path).module()
    differences = []
    for sizes in _COMPARED:
        inputs = half.inputs(*sizes)
        found, wanted = half.call(program, inputs), half.call(half.eager, inputs)
        for name, value in wanted.items():
            differences.append((found[name] - value).abs().max() / value.abs().max().clamp_min(1))
    return torch.stack(differences).max().item()


def _onnx_program(path: Path) -> Program:
    """Return an ONNX file as a function like the program that it was made of."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names, outputs = ([place.name for place in places] for places in (session.get_inputs(), session.get_outputs()))

    def program(*inputs: Tensor | Latents) -> Latents:
        parts = [part for value in inputs for part in ([value] if isinstance(value, Tensor) else value.values())]
        found = session.run(outputs, {name: part.numpy() for name, part in zip(names, parts, strict=True)})
        return {name: torch.from_numpy(array) for name, array in zip(outputs, found, strict=True)}

    return program


def _describe(halves: Sequence[_Half], differences: Mapping[str, float]) -> dict[str, Any]:
    """Return what a user of the files has to know."""
    described: dict[str, Any] = {
        "composer": type(halves[0].composer).__name__,
        "torch": torch.__version__,
        "dtype": "float32",
        "letters": {"B": "instances, at least 1", "N": "coordinates, at least 1, shared by the instances"},
        "coords": "Cell centres in [-1, 1], axes in the order of the signal's, row before column: "
        "cell i of n along an axis lies at (2 i + 1) / n - 1.",
        "value_range": [0, 1] if len(halves[0].signal_shape) == 3 else None,
        "pt2": "torch.export.load(file).module() is a function: encoder(signal) returns the latents, a dictionary by name; "
        "decoder(latents, coords) returns the values.",
        "onnx": "Inputs and outputs go by name; those of the decoder are the latents one by one, and coords.",
    }
    for half in halves:
        described[half.name] = {
            "largest_difference": {name: number for name, number in differences.items() if half.name in name},
            "inputs": {name: _shape(name, value) for name, value in _flat(half.example).items()},
            "outputs": {name: _shape(name, value) for name, value in half.outputs.items()},
        }
    return described


def _shape(name: str, value: Tensor) -> list[int | str]:
    """Return the shape of an input or output, its free sizes as letters."""
    letters = {"coords": ["N"], "values": ["B", "N"]}.get(name, ["B"])
    return [*letters, *value.shape[len(letters) :]]


def _flat(inputs: Inputs) -> Latents:
    """Return inputs by name, every latent for itself."""
    return {
        key: part
        for name, value in inputs.items()
        for key, part in ({name: value} if isinstance(value, Tensor) else value).items()
    }


def _move(work: Path, folder: Path) -> None:
    """Move finished files to their place, after what is left of an earlier export."""
    new = [path.name for path in work.iterdir()]
    for name in new:
        (work / name).replace(folder / name)
    for name in set(PROGRAMS).difference(new):
        (folder / name).unlink(missing_ok=True)


def _check_packages() -> None:
    """Refuse ONNX where a package for it is missing."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"ONNX needs {', '.join(missing)}: run pip install {' '.join(missing)}, or leave --onnx out for torch.export alone."
        )


def _check_weights(composer: Composer) -> None:
    """Refuse weights that are not in float32 on the CPU."""
    for name, parameter in composer.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise ValueError(
                f"{name} is {parameter.dtype} on {parameter.device}; only float32 on the CPU is exported: "
                "call composer.float().cpu() first."
            )


def _signal_shape(composer: Composer, shape: Sequence[int] | None) -> tuple[int, ...]:
    """Return ``(C, *shape)`` of the signals that a composer encodes."""
    stated = [found for module in composer.modules() if (found := getattr(module, "signal_shape", None))]
    if not stated:
        raise ValueError(f"{type(composer).__name__} encodes no tensor signal, so there is no encoder to export.")
    channels, *sizes = stated[0]
    given = sizes if shape is None else list(shape)
    if len(given) != len(sizes) or any(g < 1 or s not in (-1, g) for s, g in zip(sizes, given, strict=True)):
        raise ValueError(
            f"shape is {shape and list(shape)}; this model takes {channels} channels of the sizes {sizes}, where -1 is open: "
            'state all sizes, as in --shape "[178, 178]", or leave shape out where none is open.'
        )
    return channels, *given


@contextmanager
def _evaluating(composer: Composer) -> Iterator[None]:
    """Switch every module to evaluation, and back."""
    training = [module for module in composer.modules() if module.training]
    composer.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _refusing(message: str) -> Iterator[None]:
    """Turn what tracing and foreign code raise into one line, with the reason that lies deepest."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # what a tracer raises is not foreseeable
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ValueError(f"{message}: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from people what torch's ONNX exporter says of itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that torchvision is absent, which nothing here needs
    try:
        with warnings.catch_warnings():
            # https://github.com/Lightning-AI/pytorch-lightning/issues/21326, here from torch's own copies
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
            warnings.filterwarnings("ignore", ".*axis name: B will not be used.*", UserWarning)  # again, for latents
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """Make a folder, and in it a temporary one; afterwards remove that one, and the folder if it is new and empty."""
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as work:
            yield Path(work)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {error.strerror or error}. Name a folder that takes the export."
        ) from error
    finally:
        if not existed:
            with suppress(OSError):
                folder.rmdir()


if __name__ == "__main__":
    main()
