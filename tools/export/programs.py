"""Programs of torch.export: traced for any number of instances and coordinates, and written."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from composers.base import Composer
from tools.export.halves import Decoder, Encoder, Half, Inputs

_B, _N = Dim("B"), Dim("N")


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
    return trace(Encoder(composer, shape))


def export_decoder(composer: Composer, shape: Sequence[int] | None = None) -> ExportedProgram:
    """Return the program from latents and ``coords (N, D)``, shared by the batch, to values ``(B, N, C)``.

    It holds for any ``B`` and ``N``, and can be differentiated by the latents, for a refinement elsewhere. What it takes is
    said at `export_encoder`.

    Raises:
        ValueError: If the composer looks at no tensor signal, renders otherwise than at points, or cannot be traced.
    """
    return trace(Decoder(composer, shape))


def trace(half: Half) -> ExportedProgram:
    """Return the program of a half, with the weights that it reads and no others."""
    with half.evaluating():
        program = torch.export.export(
            half,
            tuple(half.example.values()),
            dynamic_shapes=free_sizes(half.example),
            strict=True,  # or else every weight of the composer belongs to each half, read or not
        )
    for name in program.state_dict.keys() - {spec.target for spec in program.graph_signature.input_specs}:
        del program.state_dict[name]
    return program


def free_sizes(inputs: Inputs) -> dict[str, Any]:
    """Return which sizes of the inputs are free: the first, ``N`` of coordinates and ``B`` of all else."""
    return {
        name: {0: _N if name == "coords" else _B} if isinstance(value, Tensor) else {key: {0: _B} for key in value}
        for name, value in inputs.items()
    }


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a program."""
    written = io.BytesIO()  # torch.save to a full disk does not say that it is full
    torch.export.save(program, written)
    path.write_bytes(written.getbuffer())
