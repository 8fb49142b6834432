"""Programs of `torch.export`: traced for any number of instances and coordinates, and written."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from composers.base import Composer
from tools.export.modules import DecoderModule, EncoderModule, ExportModule, Inputs

_B, _N = Dim("B"), Dim("N")


def export_encoder(composer: Composer, shape: Sequence[int] | None = None) -> ExportedProgram:
    """Return the program from a signal ``(B, C, *shape)`` to the latents by name, for any ``B``.

    Args:
        composer: In float32 on the CPU; traced in evaluation mode, its modes are restored.
        shape: Sizes of the axes of the signal, only where the encoder leaves them open.

    Returns:
        A program that shares its weights with the composer; `torch.export.save` writes it.

    Raises:
        ValueError: If the composer has an inner loop, its start reads no tensor signal, or it cannot be traced.
    """
    return trace(EncoderModule(composer, shape))


def export_decoder(composer: Composer, shape: Sequence[int] | None = None) -> ExportedProgram:
    """Return the program from latents and ``coords (N, D)``, shared by the batch, to values ``(B, N, C)``.

    It holds for any ``B``, any ``N`` and any coordinates, and can be differentiated with respect to the latents, for
    refinement elsewhere. Where the shape of the latents depends on the signal, it holds for the layout of one ``shape``.

    Args:
        composer: As for `export_encoder`.
        shape: Likewise.

    Raises:
        ValueError: If the renderer does not render single points of the field, the layout of the latents is unknown, or the
            composer cannot be traced.
    """
    return trace(DecoderModule(composer, shape))


def trace(module: ExportModule) -> ExportedProgram:
    """Return the program of a module, with no weights other than those it reads."""
    with module.evaluating():
        program = torch.export.export(
            module,
            tuple(module.inputs.values()),
            dynamic_shapes=dynamic_shapes(module.inputs),
            strict=True,  # otherwise both programs hold all weights of the composer
        )
    for name in program.state_dict.keys() - {spec.target for spec in program.graph_signature.input_specs}:
        del program.state_dict[name]
    return program


def dynamic_shapes(inputs: Inputs) -> dict[str, Any]:
    """Return the dynamic sizes of inputs: their first, ``N`` of coordinates and ``B`` of all others."""
    return {
        name: {0: _N if name == "coords" else _B} if isinstance(value, Tensor) else {key: {0: _B} for key in value}
        for name, value in inputs.items()
    }


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a program."""
    buffer = io.BytesIO()  # torch.save reports no error on a full disk
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*No complete tensor found.*", UserWarning
        )  # of weights that programs share in part
        torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())  # no view: Python 3.12.1 crashes if it outlives a full disk
