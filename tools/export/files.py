"""Files of an export: written atomically, compared with the composer, and described."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composers.base import Composer
from datamodules.storage.files import flush_file, flush_folder, temporary_folder
from tools.export.modules import DecoderModule, EncoderModule, ExportModule, missing_encoder
from tools.export.onnx import check_packages, flattened, read_onnx, write_onnx
from tools.export.programs import trace, write_program

TOLERANCE = 1e-5
PROGRAMS = ("encoder.pt2", "decoder.pt2", "encoder.onnx", "decoder.onnx")
DESCRIPTION = "export.json"

_COMPARED_SIZES = ((1, 1), (3, 7), (2, 64))  # instances and coordinates


def export(
    composer: Composer,
    folder: str | Path,
    onnx: bool = False,
    shape: Sequence[int] | None = None,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write encoder and decoder, read them again and compare them with the composer; write all files or none.

    The folder then holds ``decoder.pt2`` and, if the latents are predicted from a tensor signal, ``encoder.pt2``; with ``onnx``
    the same as ``.onnx``; and ``export.json``, which describes inputs, outputs, domain and layout. A composer with an inner
    loop has no encoder, because `torch.export` cannot trace gradient steps, nor has one whose start reads no signal.

    Args:
        composer: In float32 on the CPU; the modes of its modules are restored.
        folder: Created if it does not exist.
        onnx: Whether to write ONNX too; requires the packages onnx, onnxscript and onnxruntime.
        shape: Sizes of the axes of the signal, only where the encoder leaves them open.
        overwrite: Whether to replace an earlier export in the folder.

    Returns:
        The largest difference from the composer by file name, at random signals, latents and coordinates of the domain:
        absolute where values are below 1, else relative to the largest value.

    Raises:
        ValueError: If the composer cannot be exported, a package is missing, the folder cannot be written or holds an
            export, or a program differs by more than 1e-5.
    """
    if onnx:
        check_packages()
    folder = Path(folder)
    if not overwrite and (existing := [name for name in (*PROGRAMS, DESCRIPTION) if (folder / name).exists()]):
        raise ValueError(
            f"{folder} contains {', '.join(existing)}: choose another folder, or replace the files with --overwrite true."
        )
    modules: list[ExportModule] = [DecoderModule(composer, shape)]
    if missing_encoder(composer) is None:
        modules.insert(0, EncoderModule(composer, shape))
    with _temporary_subfolder(folder) as temporary:
        differences = {
            path.name: _difference(module, path) for module in modules for path in _write(module, temporary, onnx)
        }
        _check(differences)
        description = json.dumps(_describe(composer, modules, differences), indent=2)
        (temporary / DESCRIPTION).write_text(description + "\n", encoding="utf-8")
        _replace(temporary, folder)
    return differences


def _write(module: ExportModule, folder: Path, onnx: bool) -> list[Path]:
    """Write the programs of a module and return their files."""
    program = trace(module)
    path = folder / f"{module.name}.pt2"
    write_program(program, path)
    if not onnx:
        return [path]
    write_onnx(module, program, path.with_suffix(".onnx"))
    return [path, path.with_suffix(".onnx")]


def _difference(module: ExportModule, path: Path) -> float:
    """Return the largest difference between a file, read again, and the composer."""
    program = read_onnx(path) if path.suffix == ".onnx" else torch.export.load(path).module()
    differences = []
    for sizes in _COMPARED_SIZES:
        inputs = module.random_inputs(*sizes)
        actual = module.call(program, inputs)
        for name, expected in module.call(module.expected, inputs).items():
            differences.append((actual[name] - expected).abs().max() / expected.abs().max().clamp_min(1))
    return torch.stack(differences).max().item()


def _check(differences: Mapping[str, float]) -> None:
    """Raise a `ValueError` if a program differs from the composer."""
    if exceeding := {name: difference for name, difference in differences.items() if not difference <= TOLERANCE}:
        raise ValueError(
            f"{', '.join(f'{name} differs by {difference:.1e}' for name, difference in exceeding.items())} from the composer, "
            f"more than {TOLERANCE:.0e}, so that nothing was written. Steep activations and high frequencies of the network "
            "amplify rounding errors. Omit --onnx if only ONNX differs."
        )


def _describe(composer: Composer, modules: Sequence[ExportModule], differences: Mapping[str, float]) -> dict[str, Any]:
    """Return what a user of the files needs to know."""
    decoder = modules[-1]
    assert isinstance(decoder, DecoderModule)
    encoder = "encoder(signal) returns the latents, " if len(modules) > 1 else ""
    description: dict[str, Any] = {
        "composer": type(composer).__name__,
        "torch": torch.__version__,
        "dtype": "float32",
        "letters": {"B": "instances, at least 1", "N": "coordinates, at least 1, shared by all instances"},
        "domain": decoder.domain.config(),
        "layout": decoder.layout.config(),
        "coords": {
            "shape": ["N", composer.network.coord_dim],
            "values": "Any coordinates, in any order: of the training grid, between its points, or outside the domain, where "
            "the network extrapolates. Axes have the order of the signal, rows before columns. The centre of cell i of n "
            "along an axis from low to high is low + (high - low) * (i + 1/2) / n; low and high are the ranges of the domain.",
        },
        "values": "Not clipped; in the range of the training data, which is [0, 1] for images and [-1, 1] for audio.",
        "pt2": f"torch.export.load(file).module() is a function: {encoder}decoder(latents, coords) returns the values. The "
        "latents are a dictionary by name.",
        "onnx": "Inputs and outputs have names; the inputs of the decoder are the latents, one by one, and coords.",
    }
    if reason := missing_encoder(composer):
        description["encoder"] = None
        description["missing_encoder"] = reason
    for module in modules:
        description[module.name] = {
            "largest_difference": {name: number for name, number in differences.items() if module.name in name},
            "inputs": {name: _shape(name, value) for name, value in flattened(module.inputs).items()},
            "outputs": {name: _shape(name, value) for name, value in module.outputs.items()},
        }
    return description


def _shape(name: str, value: Tensor) -> list[int | str]:
    """Return the shape of an input or output with letters for dynamic sizes."""
    letters = {"coords": ["N"], "values": ["B", "N"]}.get(name, ["B"])
    return [*letters, *value.shape[len(letters) :]]


@contextmanager
def _temporary_subfolder(folder: Path) -> Iterator[Path]:
    """Create a folder and a temporary folder in it; finally remove the latter, and the folder if it is new and empty."""
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as temporary:
            yield temporary
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {error.strerror or error}. Choose a folder that can be written."
        ) from error
    finally:
        if not existed:
            with suppress(OSError):
                folder.rmdir()


def _replace(temporary: Path, folder: Path) -> None:
    """Move all files to the folder, and remove the remaining files of an earlier export."""
    names = [path.name for path in temporary.iterdir()]
    for name in names:
        flush_file(temporary / name)
        (temporary / name).replace(folder / name)
    flush_folder(folder)
    for name in set(PROGRAMS).difference(names):
        (folder / name).unlink(missing_ok=True)
