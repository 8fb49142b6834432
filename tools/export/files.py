"""The files of an export: written together or not at all, compared with the composer, and described."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from composers.meta_learned import MetaLearned
from torch import Tensor

from composers.base import Composer
from composers.checkpoint import stated_domain
from datamodules.storage.files import flush_file, flush_folder, temporary_folder
from tools.export.halves import Decoder, Encoder, Half
from tools.export.onnx import check_packages, flat, read_onnx, write_onnx
from tools.export.programs import trace, write_program

TOLERANCE = 1e-5
PROGRAMS = ("encoder.pt2", "decoder.pt2", "encoder.onnx", "decoder.onnx")
DESCRIPTION = "export.json"

_COMPARED = ((1, 1), (3, 7))  # instances and coordinates


def export(
    composer: Composer,
    folder: str | Path,
    onnx: bool = False,
    shape: Sequence[int] | None = None,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write encoder and decoder, read them again and compare them with the composer: all files are written, or none.

    The folder then holds ``encoder.pt2`` and ``decoder.pt2``, with ``onnx`` also ``encoder.onnx`` and ``decoder.onnx``, and
    ``export.json``, which says what goes in and what comes out. A meta-learned composer has a decoder alone: what finds its
    latents is an optimisation, which torch.export cannot trace.

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
        check_packages()
    folder = Path(folder)
    if not overwrite and (there := [name for name in (*PROGRAMS, DESCRIPTION) if (folder / name).exists()]):
        raise ValueError(
            f"{folder} holds {', '.join(there)}: name another folder, or replace them with --overwrite true."
        )
    kinds: list[type[Half]] = [Decoder] if isinstance(composer, MetaLearned) else [Encoder, Decoder]
    halves = [kind(composer, shape) for kind in kinds]
    with _workplace(folder) as work:
        differences = {path.name: _difference(half, path) for half in halves for path in _write(half, work, onnx)}
        _check(differences)
        described = json.dumps(_describe(halves, differences), indent=2)
        (work / DESCRIPTION).write_text(described + "\n", encoding="utf-8")
        _move(work, folder)
    return differences


def _write(half: Half, folder: Path, onnx: bool) -> list[Path]:
    """Write the programs of a half and return their files."""
    program = trace(half)
    path = folder / f"{half.name}.pt2"
    write_program(program, path)
    if not onnx:
        return [path]
    write_onnx(half, program, path.with_suffix(".onnx"))
    return [path, path.with_suffix(".onnx")]


def _difference(half: Half, path: Path) -> float:
    """Return the largest difference between a file, read again, and the composer."""
    program = read_onnx(path) if path.suffix == ".onnx" else torch.export.load(path).module()
    differences = []
    for sizes in _COMPARED:
        inputs = half.inputs(*sizes)
        found, wanted = half.call(program, inputs), half.call(half.eager, inputs)
        for name, value in wanted.items():
            differences.append((found[name] - value).abs().max() / value.abs().max().clamp_min(1))
    return torch.stack(differences).max().item()


def _check(differences: Mapping[str, float]) -> None:
    """Refuse programs that differ from the composer."""
    if wrong := {name: number for name, number in differences.items() if not number <= TOLERANCE}:
        raise ValueError(
            f"{', '.join(f'{name} differs by {number:.1e}' for name, number in wrong.items())} from the composer, "
            f"more than {TOLERANCE:.0e}, so nothing was written: this network amplifies rounding, as steep activations and "
            "high frequencies do. Leave --onnx out if only ONNX differs."
        )


def _describe(halves: Sequence[Half], differences: Mapping[str, float]) -> dict[str, Any]:
    """Return what a user of the files has to know."""
    encoder = "encoder(signal) returns the latents, " if len(halves) > 1 else ""
    described: dict[str, Any] = {
        "composer": type(halves[0].composer).__name__,
        "torch": torch.__version__,
        "dtype": "float32",
        "letters": {"B": "instances, at least 1", "N": "coordinates, at least 1, shared by the instances"},
        "coords": "Cell centres, axes in the order of the signal's, row before column: cell i of n along an axis from low "
        "to high lies at low + (high - low) (i + 1/2) / n; the ends are the ranges of the domain.",
        "domain": stated_domain(halves[0].composer).config(),
        "value_range": [0, 1] if halves[0].composer.network.output_offset == 0.5 else None,
        "pt2": f"torch.export.load(file).module() is a function: {encoder}decoder(latents, coords) returns the values; latents "
        "are a dictionary by name.",
        "onnx": "Inputs and outputs go by name; those of the decoder are the latents one by one, and coords.",
    }
    for half in halves:
        described[half.name] = {
            "largest_difference": {name: number for name, number in differences.items() if half.name in name},
            "inputs": {name: _shape(name, value) for name, value in flat(half.example).items()},
            "outputs": {name: _shape(name, value) for name, value in half.outputs.items()},
        }
    return described


def _shape(name: str, value: Tensor) -> list[int | str]:
    """Return the shape of an input or output, its free sizes as letters."""
    letters = {"coords": ["N"], "values": ["B", "N"]}.get(name, ["B"])
    return [*letters, *value.shape[len(letters) :]]


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """Make a folder, and in it a temporary one; afterwards remove that one, and the folder if it is new and empty."""
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as work:
            yield work
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {error.strerror or error}. Name a folder that takes the export."
        ) from error
    finally:
        if not existed:
            with suppress(OSError):
                folder.rmdir()


def _move(work: Path, folder: Path) -> None:
    """Move finished files to their place, after what is left of an earlier export."""
    new = [path.name for path in work.iterdir()]
    for name in new:
        flush_file(work / name)
        (work / name).replace(folder / name)
    flush_folder(folder)
    for name in set(PROGRAMS).difference(new):
        (folder / name).unlink(missing_ok=True)
